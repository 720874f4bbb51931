"""The figure of the probe and of `classify`: the confusion matrix of the classes."""

import numpy as np
from etils import epath
from jaxtyping import Bool, Float
from matplotlib import pyplot as plt

from cavmae_sync_jax.evals.figures import save
from cavmae_sync_jax.evals.metrics import classification

NAMED_CLASSES = 40  # a picture of more has no names


Truth = Bool[np.ndarray, "_ classes"]  # of one split or the other


def draw(
    truth: Truth,
    logits: Float[np.ndarray, "clips classes"],
    classes: list[str],
    path: epath.Path,
) -> None:
    """Draws the confusion matrix: for the clips of each class, the shares of their best classes."""
    spread = classification.confusion(truth, logits)
    side = 3.5 + 0.28 * min(len(classes), NAMED_CLASSES)
    figure, axis = plt.subplots(figsize=(side + 1, side))
    image = axis.imshow(spread, cmap="magma", vmin=0, vmax=1)
    axis.set(xlabel="best class", ylabel="a class of the clip")
    if len(classes) <= NAMED_CLASSES:
        axis.set_xticks(range(len(classes)), classes, rotation=90)
        axis.set_yticks(range(len(classes)), classes)
    figure.colorbar(image, label="share of the row's clips", shrink=0.8)
    figure.tight_layout()
    save(figure, path)
