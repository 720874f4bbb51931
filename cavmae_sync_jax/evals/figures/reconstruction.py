"""Reconstruction's figure: a grid of masked, predicted and true pictures."""

import numpy as np
from etils import epath
from matplotlib import pyplot as plt

from cavmae_sync_jax.evals.figures import save


def draw(columns: dict[str, list[np.ndarray]], names: list[str], path: epath.Path) -> None:
    """Draws a row for each name; the log-mels of a row have the colours of its last one."""
    figure, axes = plt.subplots(
        len(names),
        len(columns),
        figsize=(1.7 * len(columns), 1.7 * len(names) + 0.6),
        squeeze=False,
        layout="constrained",
    )
    magma = plt.get_cmap("magma").with_extremes(bad="0.6")
    originals = list(columns.values())[-1]
    for column, (title, pictures) in zip(axes.T, columns.items(), strict=True):
        column[0].set_title(title, fontsize=8)
        for axis, shown, original in zip(column, pictures, originals, strict=True):
            if shown.ndim == 3:
                axis.imshow(np.where(np.isnan(shown), 0.6, shown).clip(0, 1))
            else:
                low, high = original.min(), original.max()
                axis.imshow(shown, origin="lower", aspect="auto", cmap=magma, vmin=low, vmax=high)
            axis.set(xticks=[], yticks=[])
    for axis, name in zip(axes[:, 0], names, strict=True):
        axis.set_ylabel(name, fontsize=7, parse_math=False)
    save(figure, path)
