"""The token study's figure: scores as bars."""

from typing import Any

from etils import epath
from matplotlib import pyplot as plt

from cavmae_sync_jax.evals.figures import save


def draw(result: dict[str, Any], path: epath.Path) -> None:
    """Draws the scores as bars, the untrained model's as lines across them."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.4), sharey=True)
    for axis, (head, of_kind) in zip(axes, result["scores"].items(), strict=True):
        values = [100 * of_kind[kind]["mAP"] for kind in of_kind]
        bars = axis.bar(list(of_kind), values, color="tab:blue", width=0.6)
        axis.bar_label(bars, fmt="%.1f")
        plain = result.get("untrained", {}).get(head, {})
        for place, kind in enumerate(plain):
            height = 100 * plain[kind]["mAP"]
            label = "untrained model" if place == 0 else None
            axis.hlines(height, place - 0.3, place + 0.3, color="tab:orange", label=label)
        if plain:
            axis.legend(loc="upper right", frameon=False)
        axis.set(title=f"{head} probe", ylim=(0, 124), yticks=range(0, 101, 20))
    axes[0].set_ylabel("mAP, %")
    figure.tight_layout()
    save(figure, path)
