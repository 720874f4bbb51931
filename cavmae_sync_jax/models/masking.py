"""Which patches the encoders see, drawn outside the model (paper section 3.2; Table 8).

Every draw is a noise value per patch. The `int(N · (1 - ratio))` patches with the smallest noise
are kept. Structured masks (CAV-MAE's ablation, for audio) lift the noise of whole rows or columns.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from cavmae_sync_jax.models.patches import Grid

# The share of frequency bands and of times that each structure lifts, per unit of the ratio.
STRUCTURES = {
    "unstructured": (0.0, 0.0),
    "frequency": (1.0, 0.0),
    "time": (0.0, 1.0),
    "time_frequency": (0.7, 0.7),
}


class Mask(NamedTuple):
    """The indices of each sample's kept patches and of all others, smallest noise first."""

    kept: Int[Array, "batch kept"]
    masked: Int[Array, "batch masked"]


def kept_patches(patches: int, ratio: float) -> int:
    """How many of `patches` stay visible, in the reference's own float arithmetic."""
    return int(patches * (1 - ratio))


def keep_smallest(noise: Float[Array, "batch patches"], kept: int) -> Mask:
    """Keeps the patches of each sample's `kept` smallest noises."""
    order = jnp.argsort(noise, axis=1)
    return Mask(order[:, :kept], order[:, kept:])


def draw(
    key: PRNGKeyArray, batch: int, grid: Grid, ratio: float, structure: str = "unstructured"
) -> Mask:
    """Draws the mask of each sample.

    Args:
      key: the draw's random key.
      batch: number of samples.
      grid: the patches' layout; its rows are frequency bands for audio.
      ratio: share of masked patches, 0 <= ratio < 1.
      structure: a key of `STRUCTURES`.

    Raises:
      ValueError: if no patch would be kept, or the structure is unknown.
    """
    kept = kept_patches(grid.patches, ratio)
    if not kept:
        raise ValueError(f"a mask ratio of {ratio} keeps none of the {grid.patches} patches")
    if structure not in STRUCTURES:
        raise ValueError(f"unknown mask structure {structure!r}: use one of {list(STRUCTURES)}")
    row_share, column_share = STRUCTURES[structure]
    noise_key, row_key, column_key = jax.random.split(key, 3)
    noise = jax.random.uniform(noise_key, (batch, grid.rows, grid.columns))
    if row_share or column_share:
        rows = _lifted(row_key, batch, grid.rows, row_share * ratio)
        columns = _lifted(column_key, batch, grid.columns, column_share * ratio)
        # Lifted patches stay ordered by their own noise: those needed to fill up are drawn fairly.
        noise = noise + (rows[:, :, None] | columns[:, None, :])
    return keep_smallest(noise.reshape(batch, grid.patches), kept)


def _lifted(key: PRNGKeyArray, batch: int, size: int, share: float) -> Bool[Array, "batch {size}"]:
    ranks = jnp.argsort(jax.random.uniform(key, (batch, size)), axis=1)
    return ranks < int(size * share)


def is_masked(keep: Int[Array, "batch kept"], patches: int) -> Bool[Array, "batch {patches}"]:
    """True where a patch is not kept."""
    visible = jax.vmap(lambda row: jnp.zeros(patches, bool).at[row].set(True))(keep)
    return ~visible


def complement(keep: Int[Array, "batch kept"], patches: int) -> Int[Array, "batch masked"]:
    """The indices of the patches that are not kept, in ascending order."""
    return jnp.argsort(~is_masked(keep, patches), axis=1)[:, : patches - keep.shape[1]]
