"""Temporal segmentation's figure: clips with their segments as bars (paper Figure 6)."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from cavmae_sync_jax.data import loader
from cavmae_sync_jax.evals.figures import save
from cavmae_sync_jax.evals.metrics import temporal as temporal_metrics
from cavmae_sync_jax.media import audio
from cavmae_sync_jax.utils.modalities import BOTH, VISUAL

SILENCE = -1


SILENCE_COLOUR = (0.85, 0.85, 0.85)


PAIRED = plt.color_sequences["tab20"]


COLOURS = [*PAIRED[::2], *PAIRED[1::2]]  # the strong ones first


Labels = Int[np.ndarray, "clips frames"]


def draw(
    records: loader.Records,
    pair_spec: loader.PairSpec,
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
    size = max(6.0, 0.8 * pair_spec.num_frames), 2.9 * len(chosen) + 0.4
    figure = plt.figure(figsize=size, layout="constrained")
    colours = "true classes" if truth is not None else "clusters by both modalities"
    figure.suptitle(f"colours: each bar's clusters matched one to one with the {colours}", size=9)
    for part, clip in zip(figure.subfigures(len(chosen), squeeze=False).flat, chosen, strict=True):
        record = records[int(clip)]
        axes = part.subplots(3, sharex=True, height_ratios=(1, 0.75, 1))
        _draw_clip(axes, records, pair_spec, int(clip), record)
        bars = {kind: rows[clip] for kind, rows in labels.items()}
        _draw_bars(axes[2], bars, None if truth is None else truth[clip], names)
        title = f"clip {record['clip_id'].decode()}"
        axes[0].set_title(title, fontsize=9, loc="left", parse_math=False)
    save(figure, path)


def _draw_clip(
    axes: Any,
    records: loader.Records,
    pair_spec: loader.PairSpec,
    clip: int,
    record: Mapping[str, Any],
) -> None:
    """Frame i lies around its own instant, i, and the log-mel where its seconds are."""
    frames, fbank = pair_spec.num_frames, audio.dequantize(record["fbank"])
    heard = len(fbank) / audio.ROWS_PER_SECOND
    seconds = audio.stored_seconds(record) or heard
    for frame, pair in enumerate(records.pairs(clip, pair_spec, range(frames))):
        axes[0].imshow(pair[VISUAL], extent=(frame - 0.48, frame + 0.48, 0, 1), aspect="auto")
    axes[0].set(yticks=[], ylim=(0, 1), ylabel="frames")
    axes[1].imshow(
        fbank.T.astype(np.float32),
        origin="lower",
        aspect="auto",
        cmap="magma",
        extent=(0, frames * heard / seconds, 0, 1),
    )
    axes[1].set(yticks=[], xlim=(-0.5, frames), ylabel="log-mel")
    for axis in axes:
        axis.tick_params(length=0)
        axis.yaxis.label.set(fontsize=8, rotation=0, ha="right", va="center")
        for spine in axis.spines.values():
            spine.set_visible(False)
    axes[2].set_xticks(
        np.arange(frames), [f"{i * seconds / frames:.1f}" for i in range(frames)], fontsize=7
    )
    axes[2].set_xlabel("seconds", fontsize=8, labelpad=1)


def _draw_bars(
    axis: Axes, bars: dict[str, np.ndarray], truth: np.ndarray | None, names: list[str]
) -> None:
    reference = bars[BOTH] if truth is None else temporal_metrics.in_order(truth)
    bars = {kind: temporal_metrics.named_like(row, reference) for kind, row in bars.items()}
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
        cuts = [0, *temporal_metrics.boundaries(truth), frames]
        for start, end in itertools.pairwise(cuts):
            name = "silence" if truth[start] == SILENCE else names[truth[start]]
            _write(axis, name, Rectangle((start - 0.5, len(bars) - 1), end - start, 1))
    axis.set_yticks(np.arange(len(bars)) + 0.5, list(bars), fontsize=8)


def _write(axis: Axes, text: str, box: Rectangle) -> None:
    """Writes into the middle of a box and cuts off what does not fit."""
    x, y = box.get_center()
    written = axis.text(x, y, text, ha="center", va="center", fontsize=7, parse_math=False)
    box.set_transform(axis.transData)
    written.set_clip_path(box)
