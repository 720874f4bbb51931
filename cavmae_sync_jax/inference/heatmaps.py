"""Maps of a picture that show where a sound comes from.

`cosine` is the paper's map (section 3.5.3): the cosine of each patch token with the sound. But the
contrastive loss trains global tokens only. So `evidence` finds the patches that the picture's
global token needs. Most patches are hidden, as in training, and the match of the global token with
the sound is scored. This is repeated for many sets of kept patches. A patch is evidence if keeping
it raises the score.
"""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Num

from cavmae_sync_jax.models.cavmae_sync import CavMaeSync
from cavmae_sync_jax.models.patches import Grid
from cavmae_sync_jax.utils.modalities import VISUAL

Tokens = Literal["joint", "encoder"]
Against = Literal["nothing", "bank", "bank_mean"]
SETS = 64  # sets of kept patches per picture
SHARE = 0.0625  # of the patches, in a set
CHUNK = 16  # sets that are embedded at once
SMOOTHING = 0.7  # patches
NOISE = 10.0  # variance of a score's noise, in units of a patch's prior variance
TEMPERATURE = 0.05  # of the paper's contrastive loss


def unit(vectors: Float[Array, "*shape dim"]) -> Float32[Array, "*shape dim"]:
    """Divides vectors by their lengths, in float32; a vector of zeros stays one."""
    vectors = vectors.astype(jnp.float32)
    norms = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / jnp.maximum(norms, jnp.finfo(jnp.float32).tiny)


@functools.partial(jax.jit, static_argnames=("module", "tokens"))
def cosine(
    module: CavMaeSync,
    params: Any,
    images: Num[Array, "batch height width 3"],
    sounds: Float[Array, "batch sounds dim"],
    *,
    tokens: Tokens = "joint",
) -> Float32[Array, "batch sounds rows columns"]:
    """The cosine of each sound with each of the picture's patch tokens (paper section 3.5.3).

    Args:
      module: the model; it needs no global token.
      params: its parameters.
      images: RGB 0–255.
      sounds: vectors of the sounds that each picture is searched for, of any length above 0.
      tokens: the patch tokens after their `joint` pass (the paper's), or those of the `encoder`.

    Returns:
      Cosines on the grid of patches.
    """

    def patches_of(model: CavMaeSync, raw: Array) -> Array:
        encoded = model.encode(VISUAL, model.patchify(VISUAL, raw))
        return encoded.patches if tokens == "encoder" else model.join(VISUAL, encoded).patch_tokens

    patches = module.apply({"params": params}, images, method=patches_of)
    # At full precision, where accelerators would round the cosines to 3 digits.
    cosines = jnp.einsum("bpd,bsd->bsp", unit(patches), unit(sounds), precision="highest")
    return _on_grid(cosines, module.grids[VISUAL])


@functools.partial(jax.jit, static_argnames="module")
def match(
    module: CavMaeSync,
    params: Any,
    images: Num[Array, "batch height width 3"],
    sounds: Float[Array, "batch sounds dim"],
) -> Float32[Array, "batch sounds"]:
    """The cosine of each sound with the global token of the whole picture, nothing hidden.

    It says whether the sound's object is on screen at all, which a map does not. The arguments are
    those of `cosine`.
    """
    seen = module.apply({"params": params}, VISUAL, images, method="embed").global_token
    return jnp.einsum("bd,bsd->bs", unit(seen), unit(sounds), precision="highest")


@functools.partial(
    jax.jit,
    static_argnames=(
        *("module", "against", "sets", "share", "seed", "smoothing", "noise", "chunk"),
        "temperature",
    ),
)
def evidence(
    module: CavMaeSync,
    params: Any,
    images: Num[Array, "batch height width 3"],
    sounds: Float[Array, "batch sounds dim"],
    bank: Float[Array, "bank dim"] | None = None,
    *,
    against: tuple[Against, ...] = ("nothing",),
    sets: int = SETS,
    share: float = SHARE,
    seed: int = 0,
    smoothing: float = SMOOTHING,
    noise: float = NOISE,
    chunk: int = CHUNK,
    temperature: float = TEMPERATURE,
) -> dict[str, Float32[Array, "batch sounds rows columns"]]:
    """How much each patch of a picture speaks for each sound, in units of a score.

    Each set of kept patches is embedded by itself. Its score is the cosine of its global token with
    the sound over the temperature. `estimator` turns the scores of all sets into a map. The map of
    a picture depends on neither the others in the batch, nor `chunk`, nor the devices, but for
    rounding. Memory grows with `chunk` × batch, time with `sets` × batch.

    Args:
      module: the model. Without a global token, the mean of the kept patches takes its place.
      params: its parameters.
      images: RGB 0–255.
      sounds: global tokens of the sounds that each picture is searched for, of any length above 0.
      bank: global tokens of many other sounds, which say how special a match is. See `against`.
      against: what is taken off the score of a set, one map for each. `nothing` needs no bank.
        `bank` is the log of the mean over the bank of the exponentiated scores, as in the
        contrastive loss. `bank_mean` is the mean of the bank's scores, so that what speaks for any
        sound drops out, such as that an object is here.
      sets: how many sets of kept patches.
      share: part of the patches that a set keeps; one patch at least, and never all.
      seed: of the sets.
      smoothing: see `estimator`.
      noise: see `estimator`.
      chunk: sets that are embedded at once.
      temperature: of the contrastive loss that the model was trained with.

    Returns:
      The maps on the grid of patches, by the names in `against`.

    Raises:
      ValueError: if `against` needs a bank and there is none, or a number is out of its range.
    """
    if bank is None and set(against) != {"nothing"}:
        raise ValueError(f"against={against} needs a bank of sounds: give one, or 'nothing'")
    grid = module.grids[VISUAL]
    keep = kept_sets(grid.patches, sets, share, seed)
    weights = jnp.asarray(estimator(keep, grid, smoothing, noise))
    heard = unit(sounds) / temperature
    others = None if bank is None else unit(bank) / temperature

    def scores_of(kept: Int[Array, " kept"]) -> dict[str, Float32[Array, "batch sounds"]]:
        def embed(model: CavMaeSync, patches: Array) -> Array:
            chosen = jnp.broadcast_to(kept, (len(patches), len(kept)))
            return model.join(VISUAL, model.encode(VISUAL, patches, chosen)).global_token

        seen = unit(module.apply({"params": params}, patches, method=embed))
        own = jnp.einsum("bd,bsd->bs", seen, heard, precision="highest")
        scores = {"nothing": own}
        if others is not None:
            matches = jnp.matmul(seen, others.T, precision="highest")
            of_any = jax.nn.logsumexp(matches, axis=1, keepdims=True) - np.log(len(others))
            scores["bank"] = own - of_any
            scores["bank_mean"] = own - matches.mean(axis=1, keepdims=True)
        return {name: scores[name] for name in against}

    patches = module.apply({"params": params}, VISUAL, images, method="patchify")
    scores = jax.lax.map(scores_of, jnp.asarray(keep), batch_size=min(chunk, sets))
    return {
        name: _on_grid(jnp.einsum("pk,kbs->bsp", weights, of_sets, precision="highest"), grid)
        for name, of_sets in scores.items()
    }


def kept_sets(patches: int, sets: int, share: float, seed: int) -> Int[np.ndarray, "{sets} kept"]:
    """Draws sets of patches such that no patch is kept more than once oftener than another.

    The same arguments give the same sets on any machine.

    A set keeps the nearest whole number of patches to the `share`, at least one.

    Raises:
      ValueError: if there are fewer than two sets, or a set would keep all patches.
    """
    kept = max(1, round(patches * share))
    if sets < 2 or kept >= patches:
        raise ValueError(
            f"sets={sets} must be at least 2, and a set of share={share} must hide some of the "
            f"{patches} patches"
        )
    generator = np.random.default_rng(seed)
    counts, drawn = np.zeros(patches, np.int32), []
    for _ in range(sets):
        rarest_first = np.lexsort((generator.random(patches), counts))
        drawn.append(np.sort(rarest_first[:kept]))
        counts[drawn[-1]] += 1
    return np.array(drawn, np.int32)


def estimator(
    keep: Int[np.ndarray, "sets kept"], grid: Grid, smoothing: float, noise: float
) -> Float32[np.ndarray, "patches sets"]:
    """The matrix that turns the scores of sets into each patch's share in them.

    A score is taken for the sum over the kept patches of what each adds, plus noise. What patches
    add is a Gaussian process over the picture. The matrix gives its posterior mean. With a
    smoothing of 0 it is ridge regression. With much noise it tends to the difference between
    the mean score of the sets that keep a patch and that of the others, smoothed.

    Args:
      keep: indices of each set's patches.
      grid: of the patches.
      smoothing: the standard deviation, in patches, of the Gaussian that neighbours share.
      noise: the variance of a score's noise, in units of a patch's prior variance; above 0.
    """
    sets = len(keep)
    kept = np.zeros((sets, grid.patches))
    np.put_along_axis(kept, keep.astype(np.int64), 1.0, axis=1)
    places = np.stack(np.divmod(np.arange(grid.patches), grid.columns), axis=1)
    squares = np.square(places[:, None] - places[None]).sum(axis=-1)
    # Two Gaussians of this deviation, one around each patch, overlap by this much.
    covariance = np.exp(-squares / (4 * max(smoothing, 1e-6) ** 2))
    centred = kept - kept.mean(axis=0)
    shared = covariance @ centred.T
    solved = np.linalg.solve(centred @ shared + noise * np.eye(sets), np.eye(sets))
    # Constant scores give a map of zeros.
    matrix = shared @ (solved - solved.mean(axis=1, keepdims=True))
    return matrix.astype(np.float32)


def _on_grid(values: Array, grid: Grid) -> Float32[Array, "batch sounds rows columns"]:
    return values.reshape(*values.shape[:2], grid.rows, grid.columns)
