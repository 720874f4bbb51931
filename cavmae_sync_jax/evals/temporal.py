"""Clips cut into segments in time (paper supplement 11, Figure 6) by a trained model's features.

The global embeddings of a clip's frames are clustered: those of the sound, those of the picture,
and both concatenated after each is scaled to length one. If the dataset says what sounds in every
frame, a clip is cut into its true number of segments, and the cuts are scored. A segment is a run
of frames of one class. Silence is a class.

Example:
  python -m cavmae_sync_jax.evals.temporal --checkpoint=runs/sync --data=DATASET --output=runs/t

Prints a table and writes OUTPUT/temporal.json, OUTPUT/temporal.npz (the label of every frame) and
OUTPUT/temporal.png, where some clips are shown with their segments.
"""

import argparse
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Int

from cavmae_sync_jax.checkpoints.pretrained import Pretrained
from cavmae_sync_jax.data import loader
from cavmae_sync_jax.distributed import multihost, sharding
from cavmae_sync_jax.evals import common
from cavmae_sync_jax.evals.figures import temporal as figure
from cavmae_sync_jax.evals.metrics import temporal as temporal_metrics
from cavmae_sync_jax.inference import features
from cavmae_sync_jax.inference.features import Arrays
from cavmae_sync_jax.utils import cli, console
from cavmae_sync_jax.utils.errors import UserError
from cavmae_sync_jax.utils.modalities import AUDIO, BOTH, MODALITIES, VISUAL

SEGMENTS = 4
TOLERANCE = 1
KINDS = (*MODALITIES, BOTH)

Labels = Int[np.ndarray, "clips frames"]


def run(
    model: Pretrained,
    records: loader.Records,
    output: epath.PathLike | None = None,
    *,
    mesh: Mesh | None = None,
    segments: int = SEGMENTS,
    tolerance: int = TOLERANCE,
    with_baselines: bool = True,
    cache: epath.PathLike | None = None,
) -> dict[str, Any]:
    """Cuts a split's clips into segments and, if the truth is known, scores the cuts.

    Scores are means over the clips with at least two true segments. Labels are classes: one that
    comes back later is the same cluster for the adjusted Rand index.

    Args:
      model: whose global embeddings are clustered.
      records: the clips; `frame_class` is the truth.
      output: a folder for `temporal.json`, `temporal.npz` and `temporal.png`; None writes and
        prints nothing.
      mesh: the devices; None means all.
      segments: how many a clip is cut into, where the dataset has no truth.
      tolerance: frames by which a boundary may be off.
      with_baselines: also scores an untrained model of the same shape and cuts that hear nothing.
      cache: see `features.extract`.

    Returns:
      What `temporal.json` holds.

    Raises:
      UserError: if `segments` or `tolerance` makes no sense.
    """
    if segments < 1 or tolerance < 0:
        raise UserError("--segments must be at least 1 and --tolerance at least 0")
    mesh = mesh or sharding.make_mesh()
    truth = _truth(records, model.config.data.num_frames)
    if truth is None:
        wanted = np.full(len(records), segments)
    else:
        wanted = np.array([len(temporal_metrics.boundaries(row)) + 1 for row in truth])
    embedded = features.extract(features.embeddings, model, records, mesh, cache)
    labels, by_kmeans = _segmented(embedded, wanted)
    result: dict[str, Any] = {
        "clips": len(records),
        "segments": segments if truth is None else "the true number of each clip",
        "by_kmeans": by_kmeans,
    }
    scored = np.flatnonzero(wanted > 1) if truth is not None else np.array([], int)
    if len(scored):
        result |= {"clips_scored": len(scored), "tolerance": tolerance}
        result["scores"] = _scores(labels, truth, scored, tolerance)
        if with_baselines:
            plain = common.untrained(model)
            embedded = features.extract(features.embeddings, plain, records, mesh, cache)
            untrained = _segmented(embedded, wanted)[0]
            others = {f"untrained model, {kind}": rows for kind, rows in untrained.items()}
            frames = truth.shape[1]
            others["equally long segments"] = np.stack(
                [temporal_metrics.uniform(frames, int(number)) for number in wanted]
            )
            others["one segment"] = np.zeros_like(truth)
            result["baselines"] = _scores(others, truth, scored, tolerance)
    result |= common.describe(model, records)
    if output is not None:
        common.write(output, "temporal", result, format_table(result))
        if jax.process_index() == 0:
            folder = epath.Path(output)
            ids = np.array(records.ids(list(range(len(records)))))
            with (folder / "temporal.npz").open("wb") as file:
                np.savez(file, clip_id=ids, **labels)
            pair_spec = loader.PairSpec.of(model.config)
            shown = scored if len(scored) else np.arange(len(records))
            figure.draw(records, pair_spec, labels, truth, shown, folder / "temporal.png")
    return result


def _truth(records: loader.Records, frames: int) -> Labels | None:
    """The class that sounds in each frame that the model sees, if the dataset knows it.

    Datasets of marked pictures, such as AVSBench, know no times: they have classes without events.
    """
    if not {"frame_class", "events"} <= set(records.features):
        return None
    known = loader.Records(records.directory, records.split, ("frame_class",), records.requests)
    found = []
    for index in known.ahead(range(len(known))):
        clip = known[index]
        if not len(clip["events"]["class"]) and (clip["frame_class"] >= 0).any():
            return None
        found.append(clip["frame_class"])
    classes = np.stack(found)
    return classes[:, np.arange(frames) * classes.shape[1] // frames]


def _segmented(
    embedded: Arrays, wanted: Int[np.ndarray, " clips"]
) -> tuple[dict[str, Labels], dict[str, float]]:
    """The labels by each of `KINDS`, and the share of clips for which no threshold was found."""
    vectors = dict(embedded)
    vectors[BOTH] = temporal_metrics.concatenated(embedded[AUDIO], embedded[VISUAL])
    labels, by_kmeans = {}, {}
    with console.progress("segments", len(KINDS) * len(wanted), "clip") as bar:
        for kind in KINDS:
            found = []
            for clip, number in zip(vectors[kind], wanted, strict=True):
                found.append(temporal_metrics.segment(clip, int(number)))
                bar.update()
            labels[kind] = np.stack([segmentation.labels for segmentation in found])
            by_kmeans[kind] = float(np.mean([not each.by_threshold for each in found]))
    return labels, by_kmeans


def _scores(
    labels: dict[str, Labels],
    truth: Labels,
    scored: Int[np.ndarray, " scored"],
    tolerance: int,
) -> dict[str, dict[str, float]]:
    """The mean scores over the clips `scored`, of each row of labels."""

    def mean(predicted: Labels) -> dict[str, float]:
        clips = [temporal_metrics.scores(predicted[i], truth[i], tolerance) for i in scored]
        return {name: float(np.mean([clip[name] for clip in clips])) for name in clips[0]}

    return {name: mean(rows) for name, rows in labels.items()}


def format_table(result: dict[str, Any]) -> str:
    """The scores of `run` as a text table, in percent."""
    if "scores" not in result:
        return f"temporal segmentation, {result['clips']} clips: no truth to score against"
    title = f"temporal segmentation, {result['clips_scored']} clips, %"
    tolerance = f"boundary F1 (±{result['tolerance']} frames)"
    rows = [(f"model, {kind}", score) for kind, score in result["scores"].items()]
    rows += list(result.get("baselines", {}).items())
    lines = [f"{title:42}  {tolerance:>23}  {'adjusted Rand index':>19}"]
    for name, score in rows:
        cells = f"{100 * score['boundary_f1']:23.1f}  {100 * score['adjusted_rand']:19.1f}"
        lines.append(f"{name:42}  {cells}")
    return "\n".join([*lines, "every row knows the true number of segments of each clip"])


def main() -> None:
    """Runs the command line."""
    arguments = common.parser(__doc__, "temporal")
    arguments.add_argument(
        "--segments",
        type=int,
        default=SEGMENTS,
        help="segments of a clip, where the dataset does not know them",
    )
    arguments.add_argument(
        "--tolerance", type=int, default=TOLERANCE, help="frames by which a boundary may be off"
    )

    def start(args: argparse.Namespace) -> None:
        model, records = common.opened(args)
        settings = {"segments": args.segments, "tolerance": args.tolerance}
        run(model, records, args.output, **settings, cache=args.cache)

    cli.main(arguments, start, within=multihost.connected)


if __name__ == "__main__":
    main()
