"""Segmentation's figure: images with their maps and the truth (paper Figure 5)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float
from matplotlib import pyplot as plt

from cavmae_sync_jax.data import loader
from cavmae_sync_jax.evals.figures import save
from cavmae_sync_jax.evals.metrics import average_precision
from cavmae_sync_jax.evals.metrics import segmentation as segmentation_metrics
from cavmae_sync_jax.utils.modalities import VISUAL

EXTREMES = (0.01, 0.999)  # quantiles of a row's values at the ends of its colours


def draw(
    records: loader.Records,
    pair_spec: loader.PairSpec,
    items: segmentation_metrics.Items,
    maps: Mapping[str, Mapping[str, segmentation_metrics.Maps]],
    matches: Mapping[str, Float[np.ndarray, " items"]],
    names: list[str],
    path: epath.Path,
    columns: int = 6,
) -> None:
    """Draws evenly chosen images with their maps and the truth.

    One scale of colours serves all maps of a kind, so that a weak map looks weak. A caption says
    how well the whole image matches the sound, and for the own sound the map's AP.

    Args:
      records: of the images.
      pair_spec: how they were read.
      items: the images' frames, classes and masks.
      maps: of all items, by kind and by sound; a row of the figure each. The first sound of a
        kind is the image's own.
      matches: the cosines of the whole images with the sounds, by sound.
      names: of the classes.
      path: the PNG to write.
      columns: images.
    """
    chosen = np.linspace(0, len(items.records) - 1, min(columns, len(items.records))).astype(int)
    rows = [(kind, sound) for kind, of_kind in maps.items() for sound in of_kind]
    figure, axes = plt.subplots(
        len(rows) + 2,
        len(chosen),
        figsize=(1.9 * len(chosen) + 1, 2.1 * (len(rows) + 2)),
        squeeze=False,
        layout="constrained",
    )
    for column, item in enumerate(chosen):
        (pair,) = records.pairs(int(items.records[item]), pair_spec, [int(items.frames[item])])
        mask, image = items.masks[item], pair[VISUAL]
        axes[0, column].imshow(image)
        axes[0, column].set_title(names[items.classes[item]], fontsize=9)
        axes[-1, column].imshow(np.where(mask[..., None], image, image // 5))
        axes[-1, column].set_title(f"{mask.mean():.0%} of the pixels", fontsize=9)
        for axis, (kind, sound) in zip(axes[1:-1, column], rows, strict=True):
            of_kind = maps[kind]
            heat = segmentation_metrics.upsample(of_kind[sound][item], *mask.shape)
            low, high = _limits(of_kind)
            axis.imshow(np.dot(image, (0.299, 0.587, 0.114)), cmap="gray", vmin=0, vmax=255)
            shown: Any = axis.imshow(heat, cmap="turbo", alpha=0.6, vmin=low, vmax=high)
            caption = f"match {matches[sound][item]:.2f}"
            if sound == next(iter(of_kind)):
                found = average_precision.average_precision(heat.ravel(), mask.ravel())
                caption = f"AP {found:.2f}, {caption}"
            axis.set_title(caption, fontsize=8)
            if column == len(chosen) - 1:
                figure.colorbar(shown, ax=axis, fraction=0.05).ax.tick_params(labelsize=7)
    labels = ["image", *(f"{kind}:\n{sound}" for kind, sound in rows), "truth"]
    for axis, label in zip(axes[:, 0], labels, strict=True):
        axis.set_ylabel(label, fontsize=8)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    save(figure, path)


def _limits(of_kind: Mapping[str, segmentation_metrics.Maps]) -> tuple[float, float]:
    """The ends of the colours of all maps of a kind."""
    low, high = np.quantile(np.stack(list(of_kind.values())), EXTREMES)
    return float(low), float(high)
