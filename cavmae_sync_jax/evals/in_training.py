"""The evaluations that a training runs on held-out clips, each by its own `run()`."""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jax.sharding import Mesh

from cavmae_sync_jax.checkpoints.pretrained import Pretrained
from cavmae_sync_jax.data import loader
from cavmae_sync_jax.utils.errors import UserError

# Modules of this package, imported when they run (scikit-learn and matplotlib take seconds, in the
# pipeline's workers, too): each with settings of its `run` and the part of its result to log.
EVALUATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "retrieval": ({"strategies": ["diagonal_mean"]}, "scores"),
    "segmentation": ({"maps": ("cosine",)}, "scores"),  # evidence takes too long for a training
    "temporal": ({}, "scores"),
    "reconstruction": ({}, "errors"),
}


def check(names: Sequence[str], records: loader.Records) -> None:
    """Before a training begins, refuses what is known to fail at an evaluation.

    Raises:
      UserError: for an unknown evaluation, or one that this dataset can't have.
    """
    for name in names:
        if name not in EVALUATIONS:
            raise UserError(
                f"config.evaluations={tuple(names)}: {name!r} must be one of "
                f"{', '.join(EVALUATIONS)}"
            )
    for name, fields in (
        ("segmentation", ("frame_class", "frame_mask")),
        ("temporal", ("frame_class",)),
    ):
        if name in names:
            loader.Records(records.directory, records.split, fields)


def run(
    names: Sequence[str], model: Pretrained, records: loader.Records, mesh: Mesh
) -> dict[str, float]:
    """The scores of some of `EVALUATIONS`, without baselines.

    Names are paths, such as `temporal/both/boundary_f1`; retrieval's, which every dataset has, are
    `DIRECTION/R1` and so on.
    """
    flat: dict[str, float] = {}
    for name in names:
        settings, part = EVALUATIONS[name]
        evaluate = importlib.import_module(f"cavmae_sync_jax.evals.{name}").run
        result = evaluate(model, records, mesh=mesh, with_baselines=False, **settings)
        scores = result.get(part, {})
        if name == "retrieval":
            flat |= _flat("", scores["diagonal_mean"])
        else:
            flat |= _flat(f"{name}/", scores)
    return flat


def _flat(prefix: str, scores: Mapping[str, Any]) -> dict[str, float]:
    def leaves(path: str, value: Any) -> Iterator[tuple[str, float]]:
        if not isinstance(value, Mapping):
            yield path, float(value)
            return
        for key, deeper in value.items():
            yield from leaves(f"{path}/{key}" if path else key, deeper)

    return {prefix + name: value for name, value in leaves("", scores)}
