"""Retrieval's ranks at scale, block by block on the devices: no array has the size clips × clips.

The ranks are exactly those of the dense float64 definition in `retrieval`, whatever the blocks, the
devices and the order of their sums. Similarities are computed in float32, and `margin` bounds their
error. If a clip's own score and another one are further apart, the device compares them. The few
that are closer are compared again by the definition itself.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt8

from cavmae_sync_jax.distributed import sharding
from cavmae_sync_jax.evals.metrics import retrieval as retrieval_metrics
from cavmae_sync_jax.inference import similarity as similarity_of
from cavmae_sync_jax.utils import console
from cavmae_sync_jax.utils.errors import UserError

ROWS, COLUMNS = 2048, 512  # audio clips × visual clips of a block
SETTLED = 256  # side of the parts in which a block's near comparisons are settled
CROWDED = 0.1  # share of a part's pairs from which on the whole part is computed
FEW = 16  # clips or pairs that float64 takes at a time, so that they stay in the cache
CHUNK = 128  # products that one float32 sum holds; sums of sums have smaller errors
ROUNDING = 2.0**-24  # of one float32 operation
NORMS = 1e-30, 1e30  # lengths that float32 divides by without loss

Rows = Float[Array, "rows audio_frames dim"]
Columns = Float[Array, "columns visual_frames dim"]
Block = Float[Array, "rows columns"]


class Ranks(NamedTuple):
    """The rank (1 is best) of each clip's own target, in both directions."""

    audio_to_visual: Float[np.ndarray, " clips"]
    visual_to_audio: Float[np.ndarray, " clips"]


def retrieval(
    audio: Float[np.ndarray, "clips audio_frames dim"],
    visual: Float[np.ndarray, "clips visual_frames dim"],
    strategy: str = "diagonal_mean",
) -> dict[str, dict[str, float]]:
    """Scores of both directions; arguments and errors as of `ranks`."""
    both = ranks(audio, visual, strategy)
    return {
        direction: retrieval_metrics.summary(rank) for direction, rank in both._asdict().items()
    }


def ranks(
    audio: Float[np.ndarray, "clips audio_frames dim"],
    visual: Float[np.ndarray, "clips visual_frames dim"],
    strategy: str = "diagonal_mean",
) -> Ranks:
    """The ranks of `retrieval.ranks` for the whole similarity, in both directions in one pass.

    Rows of a block are shared by this process's devices; every process computes all.

    Args:
      audio: embeddings of any length and float type; they are not copied.
      visual: embeddings of the same clips; another number of frames only for "mean" and "max".
      strategy: of `similarity.STRATEGIES`.

    Raises:
      UserError: if a value is not finite, or the strategy can't compare these frames.
    """
    clips, frames, dim = audio.shape
    if strategy.startswith("diagonal") and frames != visual.shape[1]:
        raise UserError(
            f"{strategy} compares equal frames, but audio has {frames} per clip and visual "
            f"{visual.shape[1]}; only these can score them: --strategies=mean,max"
        )
    lengths = _lengths(audio, "audio"), _lengths(visual, "visual")
    own = _paired(audio, visual, (np.arange(clips),) * 2, strategy)
    result = Ranks(np.ones(clips), np.ones(clips))
    mesh = sharding.make_mesh(devices=jax.local_devices())
    rows, columns = (math.ceil(clips / math.ceil(clips / size)) for size in (ROWS, COLUMNS))
    rows = math.ceil(rows / mesh.size) * mesh.size
    doubt = margin(max(frames, visual.shape[1]), dim)

    def put(values: np.ndarray, start: int, count: int, layout: jax.NamedSharding) -> Array:
        values = values[start : start + count]
        filling = [(0, count - len(values))] + [(0, 0)] * (values.ndim - 1)
        return jax.device_put(np.pad(values, filling) if filling[0][1] else values, layout)

    with jax.set_mesh(mesh), console.progress(f"ranks, {strategy}", clips, "clip") as bar:
        for row in range(0, clips, rows):
            layout = sharding.batch_sharding(mesh)
            queries = _unit(*(put(x, row, rows, layout) for x in (audio, lengths[0])))
            own_rows = put(own, row, rows, layout)
            for column in range(0, clips, columns):
                layout = sharding.replicated(mesh)
                targets = (put(x, column, columns, layout) for x in (visual, lengths[1], own))
                *better, near = jax.device_get(
                    _block(
                        queries, own_rows, *targets, row, column, clips, doubt, strategy=strategy
                    )
                )
                for rank, start, count in zip(result, (row, column), better, strict=True):
                    rank[start : start + len(count)] += count[: clips - start]
                _settle(near, audio, visual, strategy, own, (row, column), result)
            bar.update(min(rows, clips - row))
    return result


def margin(frames: int, dim: int) -> float:
    """Bounds the error of a float32 similarity of unit vectors, with the steps to a comparison.

    A sum of n products errs by at most n roundings of the sum of their absolute values (Higham,
    Accuracy and Stability of Numerical Algorithms, §3.1). That sum is at most 1 here. The bound
    adds the roundings of each chunk's sum, of the sum over chunks, and of the sums over frames on
    both sides. 16 more cover casts, normalisation, division and comparison.
    """
    return (CHUNK + math.ceil(dim / CHUNK) + 2 * frames + 16) * ROUNDING


def _lengths(
    embeddings: Float[np.ndarray, "clips frames dim"], name: str
) -> Float[np.ndarray, "clips frames"]:
    """Lengths to divide by: 1 for zeros; NaN where float32 can't, so that float64 settles it."""
    parts = []
    for start in range(0, len(embeddings), FEW):
        block = embeddings[start : start + FEW].astype(np.float64, copy=False)
        parts.append(np.sqrt(np.vecdot(block, block)))
    lengths = np.concatenate(parts)
    bad = np.flatnonzero(~np.isfinite(lengths).all(axis=1))
    if bad.size:
        raise UserError(
            f"the {name} embeddings of {bad.size} clips are not finite (the first: clip {bad[0]})"
        )
    usable = (lengths >= NORMS[0]) & (lengths <= NORMS[1])
    return np.where(lengths == 0, 1.0, np.where(usable, lengths, np.nan)).astype(np.float32)


@jax.jit
def _unit(
    embeddings: Float[Array, "clips frames dim"], lengths: Float[Array, "clips frames"]
) -> Float[Array, "clips frames padded"]:
    """Unit vectors, filled up with zeros to whole chunks."""
    units = embeddings.astype(jnp.float32) / lengths[:, :, None]
    filling = -units.shape[-1] % min(CHUNK, units.shape[-1])
    return jnp.pad(units, ((0, 0), (0, 0), (0, filling)))


@functools.partial(jax.jit, static_argnames="strategy")
def _block(
    rows: Rows,
    own_rows: Float[Array, " rows"],
    raw_columns: Float[Array, "columns visual_frames raw_dim"],
    lengths: Float[Array, "columns visual_frames"],
    own_columns: Float[Array, " columns"],
    first_row: Int[Array, ""],
    first_column: Int[Array, ""],
    clips: Int[Array, ""],
    doubt: Float[Array, ""],
    *,
    strategy: str,
) -> tuple[Int[Array, " rows"], Int[Array, " columns"], UInt8[Array, "rows columns"]]:
    """Counts the surely better targets of the rows and of the columns of a block.

    Returns:
      Both counts, and where the comparison is left open: 1 the row's, 2 the column's, 3 both.
    """
    similarity = SIMILARITIES[strategy](rows, _unit(raw_columns, lengths))
    row = first_row + jnp.arange(similarity.shape[0])[:, None]
    column = first_column + jnp.arange(similarity.shape[1])[None, :]
    others = (row != column) & (row < clips) & (column < clips)
    similarity = jnp.where(others, similarity, -jnp.inf)

    def judge(own: Float[Array, "#rows #columns"]) -> tuple[Bool[Array, "rows columns"], Array]:
        better = similarity > own + doubt
        return better, ~better & ~(similarity < own - doubt)  # what is not a number is left open

    better_row, open_row = judge(own_rows[:, None])
    better_column, open_column = judge(own_columns[None, :])
    near = open_row.astype(jnp.uint8) + 2 * open_column.astype(jnp.uint8)
    return better_row.sum(axis=1), better_column.sum(axis=0), near


def _products(rows: Float[Array, "rows dim"], columns: Float[Array, "columns dim"]) -> Block:
    """All scalar products, as a sum of the products of whole chunks."""
    size = min(CHUNK, rows.shape[1])

    def add(chunk: Int[Array, ""], total: Block) -> Block:
        left, right = (lax.dynamic_slice_in_dim(x, chunk * size, size, 1) for x in (rows, columns))
        contracted = (((1,), (1,)), ((), ()))
        return total + lax.dot_general(left, right, contracted, precision=lax.Precision.HIGHEST)

    start = jnp.zeros((rows.shape[0], columns.shape[0]))
    return lax.fori_loop(0, rows.shape[1] // size, add, start)


def _frame(embeddings: Float[Array, "clips frames dim"], frame: Int[Array, ""]) -> Array:
    return lax.dynamic_index_in_dim(embeddings, frame, 1, keepdims=False)


def _diagonal(
    combine: Callable[[Block, Block], Block], start: float, rows: Rows, columns: Columns
) -> Block:
    def add(frame: Int[Array, ""], total: Block) -> Block:
        return combine(total, _products(_frame(rows, frame), _frame(columns, frame)))

    return lax.fori_loop(0, rows.shape[1], add, jnp.full((len(rows), len(columns)), start))


def _diagonal_mean(rows: Rows, columns: Columns) -> Block:
    return _diagonal(jnp.add, 0.0, rows, columns) / rows.shape[1]


def _diagonal_max(rows: Rows, columns: Columns) -> Block:
    return _diagonal(jnp.maximum, -jnp.inf, rows, columns)


def _mean(rows: Rows, columns: Columns) -> Block:
    return _products(rows.mean(axis=1), columns.mean(axis=1))


def _maximum(rows: Rows, columns: Columns) -> Block:
    flat = columns.reshape(-1, columns.shape[-1])

    def add(frame: Int[Array, ""], total: Block) -> Block:
        cosines = _products(_frame(rows, frame), flat).reshape(*total.shape, -1)
        return jnp.maximum(total, cosines.max(axis=2))

    return lax.fori_loop(0, rows.shape[1], add, jnp.full((len(rows), len(columns)), -jnp.inf))


# What `similarity.STRATEGIES` define, of unit vectors in float32.
SIMILARITIES: dict[str, Callable[[Rows, Columns], Block]] = {
    "diagonal_mean": _diagonal_mean,
    "diagonal_max": _diagonal_max,
    "mean": _mean,
    "max": _maximum,
}


def _settle(
    near: UInt8[np.ndarray, "rows columns"],
    audio: Float[np.ndarray, "clips audio_frames dim"],
    visual: Float[np.ndarray, "clips visual_frames dim"],
    strategy: str,
    own: Float[np.ndarray, " clips"],
    first: tuple[int, int],
    result: Ranks,
) -> None:
    """Adds to `result` what the comparisons that a block left open give in float64.

    `near` is as of `_block`, and `first` the clips of its corner.
    """
    for top in range(0, len(near), SETTLED):
        for left in range(0, near.shape[1], SETTLED):
            part = near[top : top + SETTLED, left : left + SETTLED]
            pairs = np.nonzero(part)
            origin = first[0] + top, first[1] + left
            clips = tuple(start + places for start, places in zip(origin, pairs, strict=True))
            if pairs[0].size > CROWDED * part.size:
                sides = audio[origin[0] :][: len(part)], visual[origin[1] :][: part.shape[1]]
                similarity = similarity_of.STRATEGIES[strategy](*sides)[pairs]
            else:
                similarity = _paired(audio, visual, clips, strategy)
            for bit, rank, query in zip((1, 2), result, clips, strict=True):
                asked = part[pairs] & bit > 0
                better, equal = retrieval_metrics.compare(similarity[asked], own[query[asked]])
                np.add.at(rank, query[asked], better + equal / 2)


def _paired(
    audio: Float[np.ndarray, "clips audio_frames dim"],
    visual: Float[np.ndarray, "clips visual_frames dim"],
    pairs: tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]],
    strategy: str,
) -> Float[np.ndarray, " pairs"]:
    """The similarity of some pairs (an audio clip, a visual clip) in float64."""
    similarity = np.empty(len(pairs[0]))
    for start in range(0, len(similarity), FEW):
        of = slice(start, start + FEW)
        sides = (
            similarity_of.unit(audio[pairs[0][of]]),
            similarity_of.unit(visual[pairs[1][of]]),
        )
        similarity[of] = retrieval_metrics.PAIRED[strategy](*sides)
    return similarity
