"""Pictures to patch tokens and back, and their fixed positions (paper section 3.2).

A log-mel is a picture of one channel. Its rows are frequency bands and its columns are times. Audio
patches are therefore ordered frequency-major, as in the reference.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num


class Grid(NamedTuple):
    """How many patches lie below each other (image y, frequency) and side by side (x, time)."""

    rows: int
    columns: int

    @property
    def patches(self) -> int:
        """The number of patches."""
        return self.rows * self.columns


def fbank_as_picture(fbank: Num[Array, "batch rows bins"]) -> Num[Array, "batch bins rows 1"]:
    """Turns a log-mel `[time, frequency]` into a picture `[frequency, time, 1]`."""
    return jnp.swapaxes(fbank, 1, 2)[..., None]


def patchify(
    picture: Num[Array, "batch height width channels"], patch: int
) -> Num[Array, "batch patches pixels"]:
    """Cuts pictures into square patches, row-major; within one, pixels are (row, column, channel).

    Raises:
      TypeError: if `patch` does not divide height and width.
    """
    batch, height, width, channels = picture.shape
    grid = (height // patch, patch, width // patch, patch, channels)
    tiles = picture.reshape(batch, *grid).transpose(0, 1, 3, 2, 4, 5)
    return tiles.reshape(batch, grid[0] * grid[2], patch * patch * channels)


def unpatchify(
    patches: Num[Array, "batch patches pixels"], grid: Grid, patch: int
) -> Num[Array, "batch height width channels"]:
    """The inverse of `patchify`."""
    batch, _, pixels = patches.shape
    channels = pixels // patch**2
    tiles = patches.reshape(batch, grid.rows, grid.columns, patch, patch, channels)
    picture = tiles.transpose(0, 1, 3, 2, 4, 5)
    return picture.reshape(batch, grid.rows * patch, grid.columns * patch, channels)


def sincos_positions(grid: Grid, dim: int) -> Float[np.ndarray, "patches {dim}"]:
    """Fixed 2-D sin-cos positions of MAE: half the width for the column, half for the row.

    Each half is `[sin | cos]` of the coordinate times 10000^(-k / (dim / 4)), k = 0 … dim/4 - 1.

    Raises:
      ValueError: if `dim` is not a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"sin-cos positions need a width that is a multiple of 4, not {dim}")
    # In float32 throughout, in this order: the reference's arrays to the last bits, which depend on
    # the processor.
    omega = 1 / np.float32(10_000) ** (np.arange(dim // 4, dtype=np.float32) / (dim / 4))
    row, column = np.divmod(np.arange(grid.patches, dtype=np.float32), grid.columns)
    angles = [coordinate[:, None] * omega for coordinate in (column, row)]
    halves = [wave(angle) for angle in angles for wave in (np.sin, np.cos)]
    return np.concatenate(halves, axis=1, dtype=np.float32)


def resize_positions(
    positions: Num[Array, "1 patches dim"], grid: Grid, target: Grid
) -> Num[Array, "1 {target.patches} dim"]:
    """Interpolates learned positions (bicubic) from one grid of patches to another."""
    dim = positions.shape[-1]
    plane = positions.reshape(grid.rows, grid.columns, dim)
    resized = jax.image.resize(plane, (target.rows, target.columns, dim), "bicubic")
    return resized.reshape(1, target.patches, dim)


def gather(
    tokens: Num[Array, "batch patches dim"], keep: Num[Array, "batch kept"]
) -> Num[Array, "batch kept dim"]:
    """Picks each sample's kept tokens, in the order of `keep`."""
    # Without the promise, every number is compared with a filling for indices out of bounds.
    return jnp.take_along_axis(tokens, keep[:, :, None], axis=1, mode="promise_in_bounds")


def restore(
    parts: Sequence[Num[Array, "batch _ dim"]], places: Sequence[Int[Array, "batch _"]]
) -> Num[Array, "batch patches dim"]:
    """Puts tokens to their places; together the places are all patches of a sample, once each."""
    inverse = jnp.argsort(jnp.concatenate(places, axis=1), axis=1)
    return gather(jnp.concatenate(parts, axis=1), inverse)
