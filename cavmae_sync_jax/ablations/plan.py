"""From a table to its plan: which trainings it needs, and how each is evaluated.

Rows whose configs are equal share a training, and so do tables that share a workdir. A training's
name states its seed and what it changes in the given config.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from cavmae_sync_jax.ablations.tables import Column, Row, Table
from cavmae_sync_jax.utils import cli
from cavmae_sync_jax.utils.errors import UserError

LONGEST_NAME = 100
UNCHANGED = "unchanged"


class EvaluationSpec(NamedTuple):
    """An evaluation of a training: which, on which dataset, with which frames and settings."""

    evaluation: str
    dataset: str
    num_frames: int | None
    frame: int | None
    settings: tuple[tuple[str, Any], ...] = ()

    @property
    def folder(self) -> str:
        """The name of its folder."""
        frames = "" if self.num_frames is None else f"frames_{self.num_frames}"
        frame = "" if self.frame is None else f"frame_{self.frame}"
        maps = dict(self.settings).get("maps", ())
        return "-".join(filter(None, (self.evaluation, self.dataset, frames, frame, *maps)))


class Training(NamedTuple):
    """One training with one seed, and all its evaluations."""

    name: str
    config: ConfigDict
    rows: tuple[str, ...]
    evaluations: tuple[EvaluationSpec, ...]


class Plan(NamedTuple):
    """The trainings by name, and where each row of each seed finds its scores."""

    table: Table
    seeds: tuple[int, ...]
    trainings: dict[str, Training]
    of_row: dict[tuple[str, int], str]

    def evaluation_of(self, row: Row, column: Column) -> EvaluationSpec:
        """The training and the evaluation that a cell's value is read from."""
        frames = row.num_frames, row.frame
        settings = dict(self.table.settings.get(column.evaluation, {}))
        if column.evaluation == "segmentation":
            # An evidence map comes with its difference from the bank's mean, in one evaluation.
            settings["maps"] = ("cosine",) if column.path[0] == "cosine" else ("evidence",)
        if column.evaluation == "training":
            frames = None, None
        hashable = {key: tuple(v) if isinstance(v, list) else v for key, v in settings.items()}
        return EvaluationSpec(
            column.evaluation, column.dataset, *frames, tuple(sorted(hashable.items()))
        )


def make(
    table: Table,
    config_of: Callable[[str], ConfigDict],
    seeds: int,
    chosen: Sequence[str] | None = None,
) -> Plan:
    """Plans a table, the rows of one seed before those of the next.

    Args:
      table: rows and columns.
      config_of: the config with the named rows of its file.
      seeds: how many, from the config's own on.
      chosen: names of the rows that are wanted; None: all.

    Raises:
      UserError: for an unknown row or setting, or no seed.
    """
    if seeds < 1:
        raise UserError(f"--seeds={seeds} must be at least 1")
    known = [row.name for row in table.rows]
    for name in chosen or ():
        if name not in known:
            raise UserError(f"--rows: table {table.name} has no row {name!r}; it has {known}")
    rows = tuple(row for row in table.rows if chosen is None or row.name in chosen)
    table = table._replace(rows=rows)
    base = config_of("")
    plan = Plan(table, tuple(range(base.seed, base.seed + seeds)), {}, {})
    for seed in plan.seeds:
        for row in rows:
            config = _config(row, config_of, seed)
            name = f"{_name(base, config)}-seed{seed}"
            evaluations = [
                plan.evaluation_of(row, c) for c in table.columns if c.evaluation != "training"
            ]
            before = plan.trainings.get(name, Training(name, config, (), ()))
            plan.trainings[name] = before._replace(
                rows=(*before.rows, row.name),
                evaluations=tuple(dict.fromkeys((*before.evaluations, *evaluations))),
            )
            plan.of_row[row.name, seed] = name
    return plan


def _config(row: Row, config_of: Callable[[str], ConfigDict], seed: int) -> ConfigDict:
    config = config_of(row.row).copy_and_resolve_references()
    known = cli.keys(config)
    for key in row.changes:
        if key not in known:
            raise UserError(f"row {row.name!r}: the config has no key {key!r}")
    try:
        config.update_from_flattened_dict({**row.changes, "seed": seed})
    except TypeError as error:
        raise UserError(f"row {row.name!r}: {error}") from error
    return config


def changes(base: ConfigDict, config: ConfigDict) -> dict[str, Any]:
    """The settings in which a config differs from another one, except the seed."""
    return {
        key: cli.value(config, key)
        for key in cli.keys(config)
        if key != "seed" and cli.value(config, key) != cli.value(base, key)
    }


def _name(base: ConfigDict, config: ConfigDict) -> str:
    def text(value: Any) -> str:
        return "+".join(map(str, value)) if isinstance(value, tuple) else str(value)

    changed = changes(base, config).items()
    described = ",".join(f"{key}={text(value)}" for key, value in changed) or UNCHANGED
    name = re.sub(r"[^\w.=,+-]+", "", described)
    # Values that differ only in what a folder's name can't have are other settings.
    if name == described and len(name) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME - 9]}-{hashlib.sha256(described.encode()).hexdigest()[:8]}"


def left_out(
    table: Table, why_not: Callable[[Column], str | None]
) -> tuple[Table, Mapping[str, str]]:
    """The table without the columns that can't be had, and the reason of each.

    Raises:
      UserError: if none is left.
    """
    reasons = {column.name: why_not(column) for column in table.columns}
    kept = tuple(column for column in table.columns if reasons[column.name] is None)
    missing = {name: reason for name, reason in reasons.items() if reason is not None}
    if not kept:
        raise UserError(
            f"no column of table {table.name} can be had: {'; '.join(missing.values())}"
        )
    return table._replace(columns=kept), missing
