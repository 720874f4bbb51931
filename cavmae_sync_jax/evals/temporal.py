"""Clips cut into segments in time (paper supplement 11, Figure 6) by a trained model's features.

The global embeddings of a clip's frames are clustered: those of the sound, of the picture, and both
concatenated, each of length one first. Where the dataset knows what sounds in every frame, a clip
is cut into its true number of segments (runs of frames of one class, silence being a class), and
the cuts are scored.

Example:
  python -m cavmae_sync_jax.evals.temporal --checkpoint=runs/sync --data=DATASET --output=runs/t

Prints a table and writes OUTPUT/temporal.json, OUTPUT/temporal.npz (the label of every frame) and
OUTPUT/temporal.png, where some clips are shown with their segments.
"""

import argparse
import itertools
from typing import Any

import jax
import matplotlib
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Int

from cavmae_sync_jax import audio, cli, dataset, features, metrics, processes, sharding
from cavmae_sync_jax.cli import UserError
from cavmae_sync_jax.evals import common, temporal_scores
from cavmae_sync_jax.features import Arrays
from cavmae_sync_jax.model import AUDIO, BOTH, MODALITIES, VISUAL
from cavmae_sync_jax.pretrained import Pretrained

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

SEGMENTS = 4
TOLERANCE = 1
KINDS = (*MODALITIES, BOTH)
SILENCE = -1
SILENCE_COLOUR = (0.85, 0.85, 0.85)
PAIRED = plt.get_cmap("tab20").colors
COLOURS = [*PAIRED[::2], *PAIRED[1::2]]  # the strong ones first

Labels = Int[np.ndarray, "clips frames"]


def run(
    model: Pretrained,
    records: dataset.Records,
    output: epath.PathLike | None = None,
    *,
    mesh: Mesh | None = None,
    segments: int = SEGMENTS,
    tolerance: int = TOLERANCE,
    with_baselines: bool = True,
    cache: epath.PathLike | None = None,
) -> dict[str, Any]:
    """Cuts a split's clips into segments and, where the truth is known, scores the cuts.

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
        wanted = np.array([len(temporal_scores.boundaries(row)) + 1 for row in truth])
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
                [temporal_scores.uniform(frames, int(number)) for number in wanted]
            )
            others["one segment"] = np.zeros_like(truth)
            result["baselines"] = _scores(others, truth, scored, tolerance)
    result |= common.describe(model, records)
    if output is not None:
        common.write(output, "temporal", result, table(result))
        if jax.process_index() == 0:
            folder = epath.Path(output)
            ids = np.array(records.ids(list(range(len(records)))))
            with (folder / "temporal.npz").open("wb") as file:
                np.savez(file, clip_id=ids, **labels)
            framing = dataset.Framing.of(model.config)
            shown = scored if len(scored) else np.arange(len(records))
            draw(records, framing, labels, truth, shown, folder / "temporal.png")
    return result


def _truth(records: dataset.Records, frames: int) -> Labels | None:
    """The class that sounds in each frame that the model sees, if the dataset knows it."""
    if "frame_class" not in records.features:
        return None
    known = dataset.Records(records.directory, records.split, ("frame_class",))
    classes = np.stack([known[i]["frame_class"] for i in range(len(known))])
    return classes[:, np.arange(frames) * classes.shape[1] // frames]


def _segmented(
    embedded: Arrays, wanted: Int[np.ndarray, " clips"]
) -> tuple[dict[str, Labels], dict[str, float]]:
    """The labels by each of `KINDS`, and the share of clips for which no threshold was found."""
    vectors = dict(embedded)
    vectors[BOTH] = temporal_scores.concatenated(embedded[AUDIO], embedded[VISUAL])
    labels, by_kmeans = {}, {}
    with metrics.progress("segments", len(KINDS) * len(wanted), "clip") as bar:
        for kind in KINDS:
            found = []
            for clip, number in zip(vectors[kind], wanted, strict=True):
                found.append(temporal_scores.segment(clip, int(number)))
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
        clips = [temporal_scores.scores(predicted[i], truth[i], tolerance) for i in scored]
        return {name: float(np.mean([clip[name] for clip in clips])) for name in clips[0]}

    return {name: mean(rows) for name, rows in labels.items()}


def table(result: dict[str, Any]) -> str:
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


def draw(
    records: dataset.Records,
    framing: dataset.Framing,
    labels: dict[str, Labels],
    truth: Labels | None,
    candidates: Int[np.ndarray, " candidates"],
    path: epath.Path,
    clips: int = 6,
) -> None:
    """Draws evenly chosen clips: frames, the log-mel of the whole clip, and the segments as bars.

    Clusters are matched with the true classes, or without truth with the clusters by both
    modalities, so that most frames agree, and have their colours.
    """
    chosen = candidates[
        np.linspace(0, len(candidates) - 1, min(clips, len(candidates))).astype(int)
    ]
    names = records.features["labels"].feature.names if truth is not None else []
    # As wide as makes the frames square.
    size = max(6.0, 0.8 * framing.num_frames), 2.9 * len(chosen) + 0.4
    figure = plt.figure(figsize=size, layout="constrained")
    colours = "true classes" if truth is not None else "clusters by both modalities"
    figure.suptitle(f"colours: each bar's clusters matched one to one with the {colours}", size=9)
    for part, clip in zip(figure.subfigures(len(chosen), squeeze=False).flat, chosen, strict=True):
        record = records[int(clip)]
        axes = part.subplots(3, sharex=True, height_ratios=(1, 0.75, 1))
        _draw_clip(axes, records, framing, int(clip), audio.dequantize(record["fbank"]))
        bars = {kind: rows[clip] for kind, rows in labels.items()}
        _draw_bars(axes[2], bars, None if truth is None else truth[clip], names)
        title = f"clip {record['clip_id'].decode()}"
        axes[0].set_title(title, fontsize=9, loc="left", parse_math=False)
    common.save(figure, path)


def _draw_clip(
    axes: Any, records: dataset.Records, framing: dataset.Framing, clip: int, fbank: np.ndarray
) -> None:
    """Frame i lies around its own instant, i; the log-mel spans the clip from 0 to `num_frames`."""
    frames = framing.num_frames
    for frame, pair in enumerate(records.pairs(clip, framing, range(frames))):
        axes[0].imshow(pair[VISUAL], extent=(frame - 0.48, frame + 0.48, 0, 1), aspect="auto")
    axes[0].set(yticks=[], ylim=(0, 1), ylabel="frames")
    axes[1].imshow(
        fbank.T.astype(np.float32),
        origin="lower",
        aspect="auto",
        cmap="magma",
        extent=(0, frames, 0, 1),
    )
    axes[1].set(yticks=[], xlim=(-0.5, frames), ylabel="log-mel")
    for axis in axes:
        axis.tick_params(length=0)
        axis.yaxis.label.set(fontsize=8, rotation=0, ha="right", va="center")
        for spine in axis.spines.values():
            spine.set_visible(False)
    seconds = len(fbank) / audio.ROWS_PER_SECOND
    axes[2].set_xticks(
        np.arange(frames), [f"{i * seconds / frames:.1f}" for i in range(frames)], fontsize=7
    )
    axes[2].set_xlabel("seconds", fontsize=8, labelpad=1)


def _draw_bars(
    axis: Axes, bars: dict[str, np.ndarray], truth: np.ndarray | None, names: list[str]
) -> None:
    reference = bars[BOTH] if truth is None else temporal_scores.in_order(truth)
    bars = {kind: temporal_scores.named_like(row, reference) for kind, row in bars.items()}
    silent = set()
    if truth is not None:
        bars["truth"] = reference
        silent = set(reference[truth == SILENCE].tolist())
    frames = len(reference)

    def colour(label: int) -> tuple[float, ...]:
        return SILENCE_COLOUR if label in silent else COLOURS[label % len(COLOURS)]

    picture = np.array([[colour(label) for label in row.tolist()] for row in bars.values()])
    axis.imshow(picture, aspect="auto", extent=(-0.5, frames - 0.5, len(bars), 0))
    for row in range(1, len(bars)):
        axis.axhline(row, color="white", linewidth=3)
    if truth is not None:
        cuts = [0, *temporal_scores.boundaries(truth), frames]
        for start, end in itertools.pairwise(cuts):
            name = "silence" if truth[start] == SILENCE else names[truth[start]]
            _write(axis, name, Rectangle((start - 0.5, len(bars) - 1), end - start, 1))
    axis.set_yticks(np.arange(len(bars)) + 0.5, list(bars), fontsize=8)


def _write(axis: Axes, text: str, box: Rectangle) -> None:
    """Writes into the middle of a box and cuts off what does not fit."""
    written = axis.text(
        *box.get_center(), text, ha="center", va="center", fontsize=7, parse_math=False
    )
    box.set_transform(axis.transData)
    written.set_clip_path(box)


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

    cli.main(arguments, start, within=processes.joined)


if __name__ == "__main__":
    main()
