"""Scores a fine-tuned model: classes from both modalities, and with either one missing.

Example:
  python -m cavmae_sync_jax.evals.classify --checkpoint=runs/vggsound --data=DATASET \\
      --output=runs/vggsound/evals

The predictions for all pairs of a clip (a frame and its window) are averaged: sigmoids, or
softmaxes if the model was trained with cross-entropy. The scores are those of the AudioSet papers:
mean average precision, mean area under the ROC curve, d', and accuracy if each clip has one label.
Each has an interval over clips. A model trained with both modalities is also scored with the sound
alone and with the picture alone. --from_scratch=DIR also scores another fine-tuning.

Prints a table and writes OUTPUT/classify.json with every class, and OUTPUT/classify.png, which
shows the classes that are confused.
"""

import argparse
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Array, Float

from cavmae_sync_jax.checkpoints.pretrained import Pretrained, load
from cavmae_sync_jax.data import labels, loader
from cavmae_sync_jax.distributed import multihost, sharding
from cavmae_sync_jax.evals import common, probe
from cavmae_sync_jax.evals.figures import probe as figure
from cavmae_sync_jax.evals.metrics import bootstrap, classification
from cavmae_sync_jax.evals.report import results_table
from cavmae_sync_jax.inference import features
from cavmae_sync_jax.inference.classes import require_fine_tuned
from cavmae_sync_jax.models.classifier import ALONE, SEEN, Classifier
from cavmae_sync_jax.training import finetune_step
from cavmae_sync_jax.utils import cli
from cavmae_sync_jax.utils.errors import UserError
from cavmae_sync_jax.utils.modalities import BOTH

TITLES = {
    "both": "sound and picture",
    "audio": "sound",
    "visual": "picture",
    **results_table.MISSING,
}
RESAMPLES = 200  # hundreds of classes are scored in each
SCRATCH = "trained from scratch"


class Predictions(NamedTuple):
    """A split's truth, and the probabilities of each mode, the mean over a clip's frames."""

    truth: labels.Truth
    by_mode: dict[str, Float[np.ndarray, "clips classes"]]

    @property
    def main(self) -> str:
        """The mode that the model was trained in."""
        return next(iter(self.by_mode))

    def scores(self) -> dict[str, dict[str, float]]:
        """`[MODE][SCORE]`."""
        return {
            mode: classification.scores_of(self.truth, found)
            for mode, found in self.by_mode.items()
        }


def probabilities(
    module: Classifier, params: Any, batch: dict[str, Array], *, modes: Sequence[str], loss: str
) -> dict[str, Array]:
    """A clip's mean probabilities in each mode, for `features.extract`."""
    seen = [m for m in ("audio", "visual") if any(m in SEEN[mode] for mode in modes)]

    flat = {m: batch[m].reshape(-1, *batch[m].shape[2:]) for m in seen}
    logits: Any = module.apply({"params": params}, flat, modes, method="of_raw")
    frames = batch[seen[0]].shape[1]
    rows = {mode: finetune_step.probabilities(loss, logits[mode]) for mode in modes}
    return {
        mode: each.reshape(-1, frames, each.shape[-1]).mean(axis=1) for mode, each in rows.items()
    }


def modes_of(model: Pretrained) -> tuple[str, ...]:
    """The modes that a model is scored in, that of its training first."""
    stream = model.config.classifier.stream
    return (stream, *ALONE) if stream == BOTH else (stream,)


def predict(
    model: Pretrained,
    records: loader.Records,
    mesh: Mesh | None = None,
    cache: epath.PathLike | None = None,
) -> Predictions:
    """The predictions of a fine-tuned model for a split.

    Raises:
      UserError: if it is not a fine-tuned model, or knows other classes than the split.
    """
    require_fine_tuned(model)
    ours, theirs = list(model.config.classifier.names), labels.class_names(records)
    if ours != theirs:
        new = sorted(set(theirs) ^ set(ours))[:3] or ["the same ones in another order"]
        raise UserError(
            f"{model.directory} knows {len(ours)} classes and {records.directory} has "
            f"{len(theirs)}, which are not the same (such as {', '.join(map(str, new))}): "
            "name a dataset with the classes that the model was trained with"
        )
    loss, modes = model.config.classifier.loss, modes_of(model)
    function = functools.partial(probabilities, modes=modes, loss=loss)
    mesh = mesh or sharding.make_mesh()
    found = features.extract(function, model, records, mesh, cache)
    return Predictions(labels.read(records), {mode: found[mode] for mode in modes})


def run(
    model: Pretrained,
    records: loader.Records,
    output: epath.PathLike | None = None,
    *,
    mesh: Mesh | None = None,
    scratch: Pretrained | None = None,
    cache: epath.PathLike | None = None,
) -> dict[str, Any]:
    """Scores a fine-tuned model in each of its modes.

    Args:
      model: what `finetune` trained, or a conversion of such a file.
      records: the clips that are scored.
      output: a folder for the results; None writes and prints nothing.
      mesh: the devices; None means all.
      scratch: another one, that began without pre-training; it sees the same frames.
      cache: see `features.extract`.

    Returns:
      What `classify.json` holds.

    Raises:
      UserError: if the model or the data do not fit.
    """
    if scratch is not None:
        scratch = _comparable(scratch, model)
    found = predict(model, records, mesh, cache)
    beside = None if scratch is None else (scratch, predict(scratch, records, mesh, cache))
    return report(found, model, records, output, beside)


def _comparable(scratch: Pretrained, model: Pretrained) -> Pretrained:
    """The other fine-tuning, for the frames that `model` is scored on."""
    require_fine_tuned(scratch)
    if start := scratch.config.get("init_from", ""):
        raise UserError(
            f"--from_scratch={scratch.directory} began with the weights of {start}: name a "
            "fine-tuning without --config.init_from"
        )
    ours, theirs = (one.config.classifier.stream for one in (model, scratch))
    if ours != theirs:
        raise UserError(
            f"--from_scratch={scratch.directory} was trained with the stream {theirs!r}, and "
            f"{model.directory} with {ours!r}: name one with the same --config.classifier.stream"
        )
    data = model.config.data
    return common.with_frames(scratch, data.num_frames, data.get("only_frame"))


def report(
    found: Predictions,
    model: Pretrained,
    records: loader.Records,
    output: epath.PathLike | None,
    beside: tuple[Pretrained, Predictions] | None = None,
) -> dict[str, Any]:
    """What `run` returns and writes, for given predictions."""
    truth, best = found.truth, found.by_mode[found.main]
    weights = bootstrap.draw_weights(len(truth), RESAMPLES)
    precisions = classification.class_precisions(truth, best)
    chance = np.broadcast_to(truth.mean(axis=0), truth.shape)
    result = {
        "clips": len(records),
        "stream": found.main,
        "scores": found.scores(),
        "intervals": {
            mode: classification.intervals_of(truth, scores, weights)
            for mode, scores in found.by_mode.items()
        },
        "baselines": {"class frequencies": classification.scores_of(truth, chance)},
        "classes": {
            label: {"AP": None if np.isnan(ap) else float(ap), "clips": int(count)}
            for label, ap, count in zip(
                labels.class_names(records), precisions, truth.sum(axis=0), strict=True
            )
        },
        "classifier": {k: model.config.classifier[k] for k in ("tokens", "loss", "stream")},
        "init_from": model.config.get("init_from", ""),
        **common.describe(model, records),
    }
    result |= probe.by_modality(records, truth, found.by_mode)
    if beside is not None:
        scratch, other = beside
        result["from_scratch"] = {"directory": scratch.directory, "step": scratch.step}
        result["baselines"][SCRATCH] = other.scores()[other.main]
    if output is not None:
        common.write(output, "classify", result, format_table(result))
        if jax.process_index() == 0:
            figure.draw(
                truth, best, labels.class_names(records), epath.Path(output) / "classify.png"
            )
    return result


def format_table(result: dict[str, Any]) -> str:
    """The scores of `run` as a text table: in percent with their intervals, d' as it is."""
    names = list(result["scores"][result["stream"]])
    title = f"classes, {result['clips']} clips, % (95 % interval)"
    lines = [f"{title:42}" + "".join(f"{name:>20}" for name in names)]
    rows = {TITLES[mode]: (s, result["intervals"][mode]) for mode, s in result["scores"].items()}
    rows |= {name: (scores, {}) for name, scores in result["baselines"].items()}
    for label, (scores, intervals) in rows.items():
        cells = (_cell(name, scores.get(name), intervals.get(name)) for name in names)
        lines.append(f"{label:42}" + "".join(f"{cell:>20}" for cell in cells))
    return "\n".join([*lines, *probe.modality_lines(result)])


def _cell(name: str, value: float | None, interval: list[float] | None) -> str:
    if value is None:
        return "–"
    shown = results_table.format_value(name, value)
    if interval:
        low, high = (results_table.format_value(name, bound) for bound in interval)
        shown += f" ({low}–{high})"
    return shown


def main() -> None:
    """Runs the command line."""
    arguments = common.parser(__doc__, "classify")
    arguments.add_argument(
        "--from_scratch", metavar="DIR", help="a fine-tuning without pre-training, to compare with"
    )

    def start(args: argparse.Namespace) -> None:
        model, records = common.opened(args)
        scratch = None if args.from_scratch is None else load(args.from_scratch)
        run(model, records, args.output, scratch=scratch, cache=args.cache)

    cli.main(arguments, start, within=multihost.connected)


if __name__ == "__main__":
    main()
