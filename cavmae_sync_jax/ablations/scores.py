"""From finished trainings to the cells of a table: means over seeds, with bootstrap intervals.

A resample draws the seeds again and, if an evaluation has resamples of its clips, the clips. All
trainings of a resample have the same clips, and differences of two rows are taken within each seed.
So the variation that rows share does not widen the interval of their difference.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from cavmae_sync_jax.ablations.folders import Folder
from cavmae_sync_jax.ablations.plan import EvaluationSpec, Plan, Training
from cavmae_sync_jax.ablations.tables import Column, Row
from cavmae_sync_jax.evals.metrics import bootstrap
from cavmae_sync_jax.evals.report import published

FEWEST_SEEDS = 3  # with which a claim is judged


class Values(NamedTuple):
    """A cell's value per seed, and per seed those of the resamples of its clips, if it has them."""

    seeds: dict[int, float]
    resampled: dict[int, np.ndarray]

    def minus(self, other: "Values") -> "Values":
        """The differences within each seed that both have."""
        both = [seed for seed in self.seeds if seed in other.seeds]
        clips = [seed for seed in both if seed in self.resampled and seed in other.resampled]
        return Values(
            {seed: self.seeds[seed] - other.seeds[seed] for seed in both},
            {seed: self.resampled[seed] - other.resampled[seed] for seed in clips},
        )


def interval(values: Values, seed: int = 0) -> list[float] | None:
    """The middle 95 % of resamples over seeds and clips.

    None with one seed and without resamples of the clips, because nothing varies then.
    """
    runs = list(values.seeds)
    over_clips = bool(runs) and all(run in values.resampled for run in runs)
    if not runs or (len(runs) == 1 and not over_clips):
        return None
    generator = np.random.default_rng(seed)
    count = bootstrap.RESAMPLES
    drawn = generator.integers(len(runs), size=(count, len(runs)))
    if over_clips:
        table = np.stack([values.resampled[run] for run in runs])
        chosen = table[drawn, np.arange(count)[:, None]]
    else:
        chosen = np.array([values.seeds[run] for run in runs])[drawn]
    return bootstrap.interval(chosen.mean(axis=1))


class Sources(NamedTuple):
    """Where the scores of a plan lie, and which count.

    `counts` tells whether a training, and an evaluation of it if one is named, are finished with
    the plan's settings. Scores of other settings may lie in the same folders.
    """

    plan: Plan
    workdir: epath.PathLike
    counts: Callable[[Training, EvaluationSpec | None], bool]


def _result(sources: Sources, row: Row, column: Column, seed: int) -> dict[str, Any] | None:
    spec = sources.plan.evaluation_of(row, column)
    training = sources.plan.trainings[sources.plan.of_row[row.name, seed]]
    if not sources.counts(training, spec):
        return None
    return Folder(sources.workdir, training.name).result(spec)


def lacks(sources: Sources, row: Row, column: Column, seed: int) -> bool:
    """Whether a cell's evaluation is finished with one seed, but has no such score."""
    result = _result(sources, row, column, seed)
    return result is not None and column.value(result, row) is None


def values_of(sources: Sources, row: Row, column: Column) -> Values:
    """The values of the finished trainings for a cell."""
    found, plan = Values({}, {}), sources.plan
    spec = plan.evaluation_of(row, column)
    for seed in plan.seeds:
        result = _result(sources, row, column, seed)
        value = None if result is None else column.value(result, row)
        if value is None:
            continue
        found.seeds[seed] = value
        folder = Folder(sources.workdir, plan.of_row[row.name, seed])
        clips = folder.resampled(spec).get(column.resampled_key(row))
        if clips is not None:
            found.resampled[seed] = clips
    return found


def cell(values: Values) -> dict[str, Any] | None:
    """Mean, interval and the value of each seed; None without any."""
    if not values.seeds:
        return None
    return {
        "mean": float(np.mean(list(values.seeds.values()))),
        "interval": interval(values),
        "over": "seeds and clips" if values.resampled else "seeds",
        "seeds": {str(seed): value for seed, value in values.seeds.items()},
    }


def collect(
    sources: Sources,
    data: Mapping[str, str],
    left_out: Mapping[str, str],
    named: Collection[str],
) -> dict[str, Any]:
    """What the JSON of a table holds.

    Args:
      sources: of the table's scores.
      data: what each dataset is.
      left_out: why columns are missing.
      named: datasets that were given by name; a column on the training's own does not name it.

    Returns:
      `rows[ROW]["scores"][COLUMN]`: `mean`, `interval`, `seeds` and, beside the baseline's row,
      `difference` of the same kind; `rows[ROW]["paper"][COLUMN]` is the paper's figure. `claims`
      has the `difference` and the `verdict` of each claim. `lacking[COLUMN]` has the titles of the
      rows whose evaluation is finished without this score.
    """
    plan = sources.plan
    table = plan.table
    known = published.ABLATIONS.get(table.name, {})
    names = [row.name for row in table.rows]
    base = table.rows[names.index(table.baseline)] if table.baseline in names else None
    rows: dict[str, Any] = {}
    for row in table.rows:
        scores: dict[str, Any] = {}
        for column in table.columns:
            values = values_of(sources, row, column)
            found = cell(values)
            if found is not None and base is not None and row is not base:
                others = values_of(sources, base, column)
                found["difference"] = cell(values.minus(others))
            scores[column.name] = found
        rows[row.name] = {
            "title": row.title,
            "trainings": [plan.of_row[row.name, seed] for seed in plan.seeds],
            "scores": scores,
            "paper": {
                name: round(figure / 100, 6)
                for name, figure in known.get(row.name, {}).items()
                if name in scores
            },
        }
    return {
        "table": table.name,
        "title": table.title,
        "baseline": base.name if base else None,
        "columns": {
            column.name: (column if column.dataset in named else column._replace(dataset="")).title
            for column in table.columns
        },
        "rows": rows,
        "claims": _judged(sources),
        "seeds": list(plan.seeds),
        "missing": missing(sources),
        "lacking": _lacking(sources),
        "data": dict(data),
        "left_out": dict(left_out),
        "paper": published.PAPER if known else None,
    }


def verdict(difference: Mapping[str, Any] | None) -> str | None:
    """The verdict on a claim that a difference is above 0.

    None without an interval over `FEWEST_SEEDS`: trainings differ more than resamples of clips do.
    """
    if difference is None or difference["interval"] is None:
        return None
    if len(difference["seeds"]) < FEWEST_SEEDS:
        return None
    low, high = difference["interval"]
    return "seen" if low > 0 else "the other way round" if high < 0 else "not seen"


def _judged(sources: Sources) -> list[dict[str, Any]]:
    """The claims whose rows and column are in the table, with what was found."""
    plan = sources.plan
    rows = {row.name: row for row in plan.table.rows}
    columns = {column.name: column for column in plan.table.columns}
    judged = []
    for claim in plan.table.claims:
        if not (claim.row in rows and claim.than in rows and claim.column in columns):
            continue
        ours, others = (
            values_of(sources, rows[name], columns[claim.column])
            for name in (claim.row, claim.than)
        )
        difference = cell(ours.minus(others))
        found = {"difference": difference, "verdict": verdict(difference)}
        judged.append({**claim._asdict(), **found})
    return judged


def missing(sources: Sources) -> list[str]:
    """The trainings that are not finished, or lack an evaluation."""
    return [
        name
        for name, training in sources.plan.trainings.items()
        if not all(sources.counts(training, spec) for spec in (None, *training.evaluations))
    ]


def _lacking(sources: Sources) -> dict[str, list[str]]:
    table, seeds = sources.plan.table, sources.plan.seeds
    found = {
        column.name: [
            row.title
            for row in table.rows
            if any(lacks(sources, row, column, seed) for seed in seeds)
        ]
        for column in table.columns
    }
    return {name: rows for name, rows in found.items() if rows}


def columns_of(result: Mapping[str, Any]) -> Sequence[str]:
    """The columns for which some row has a value."""
    return [
        name
        for name in result["columns"]
        if any(row["scores"][name] is not None for row in result["rows"].values())
    ]
