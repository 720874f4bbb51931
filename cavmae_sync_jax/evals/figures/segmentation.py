"""Segmentation's figure: images with their maps and the truth (paper Figure 5)."""

import numpy as np
from etils import epath
from matplotlib import pyplot as plt

from cavmae_sync_jax.data import loader
from cavmae_sync_jax.evals.figures import save
from cavmae_sync_jax.evals.metrics import average_precision
from cavmae_sync_jax.evals.metrics import segmentation as segmentation_metrics
from cavmae_sync_jax.utils.modalities import VISUAL


def draw(
    records: loader.Records,
    pair_spec: loader.PairSpec,
    items: segmentation_metrics.Items,
    maps: segmentation_metrics.Maps,
    names: list[str],
    path: epath.Path,
    columns: int = 6,
) -> None:
    """Draws evenly chosen images with their maps and the truth.

    The colours of a map go from its own lowest value to its highest; scores compare all maps.
    """
    chosen = np.linspace(0, len(maps) - 1, min(columns, len(maps))).astype(int)
    figure, axes = plt.subplots(
        3, len(chosen), figsize=(1.9 * len(chosen) + 1, 6.3), squeeze=False, layout="constrained"
    )
    for column, item in zip(axes.T, chosen, strict=True):
        (pair,) = records.pairs(int(items.records[item]), pair_spec, [int(items.frames[item])])
        mask = items.masks[item]
        heat = segmentation_metrics.upsample(maps[item], *mask.shape)
        grey = np.dot(pair[VISUAL], (0.299, 0.587, 0.114))
        column[0].imshow(pair[VISUAL])
        column[0].set_title(names[items.classes[item]], fontsize=9)
        column[1].imshow(grey, cmap="gray", vmin=0, vmax=255)
        shown = column[1].imshow(heat, cmap="turbo", alpha=0.6)
        column[1].set_title(
            f"AP {average_precision.average_precision(heat.ravel(), mask.ravel()):.2f}", fontsize=9
        )
        column[2].imshow(np.where(mask[..., None], pair[VISUAL], pair[VISUAL] // 5))
        column[2].set_title(f"{mask.mean():.0%} of the pixels", fontsize=9)
    for axis, label in zip(axes[:, 0], ("image", "map of the sound", "truth"), strict=True):
        axis.set_ylabel(label, fontsize=10)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    bar = figure.colorbar(shown, ax=axes[1, -1], ticks=shown.get_clim(), fraction=0.05)
    bar.ax.set_yticklabels(["its\nlowest", "its\nhighest"], fontsize=8)
    save(figure, path)
