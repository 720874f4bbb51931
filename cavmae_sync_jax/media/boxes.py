"""Annotators' boxes around what sounds, turned into one map of their agreement."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

Box = tuple[float, float, float, float]  # left, top, right, bottom, as shares of the picture
_ROUNDING = 1e-3  # of a pixel, which a side that is stored in float32 may lack


def consensus(
    boxes: Sequence[Box], weights: Sequence[float], size: int
) -> Float32[np.ndarray, "{size} {size}"]:
    """Returns for each pixel the sum of the weights of the boxes around it, at most 1.

    It is the consensus of Senocak et al. (CVPR 2018): where a pixel counts fully once two
    annotators agree, each box weighs a half. As in the public evaluation of VGG-SS (Chen et al.,
    CVPR 2021), sides are rounded down to whole pixels, and what lies outside is cut off. A box
    without a pixel adds nothing.

    Args:
      boxes: of one picture.
      weights: of each box.
      size: height and width of the map in pixels.
    """
    total = np.zeros((size, size), np.float32)
    for box, weight in zip(boxes, weights, strict=True):
        shares = (min(max(side, 0.0), 1.0) for side in box)
        left, top, right, bottom = (int(size * share + _ROUNDING) for share in shares)
        total[top:bottom, left:right] += np.float32(weight)
    return np.minimum(total, 1)
