"""CAV-MAE Sync (paper section 3): two encoders, a joint block, a shared decoder.

Both modalities share one code path: what differs between them is a value in a dict keyed by
`MODALITIES`. Masks are inputs (index arrays of kept patches). Nothing in the model is random.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num
from ml_collections import ConfigDict

from cavmae_sync_jax.models import masking
from cavmae_sync_jax.models import patches as patching
from cavmae_sync_jax.models.layers import REMAT_POLICIES, Norm, Stack, dense
from cavmae_sync_jax.models.patches import Grid
from cavmae_sync_jax.utils.errors import UserError
from cavmae_sync_jax.utils.modalities import AUDIO, BOTH, MODALITIES, VISUAL

IMAGE_MEAN = (0.485, 0.456, 0.406)  # of ImageNet, for pixels in 0–1
IMAGE_STD = (0.229, 0.224, 0.225)
MAX_REGISTERS = 16


class Tokens(NamedTuple):
    """One modality's tokens. Without a global token that field is None."""

    global_token: Float[Array, "batch dim"] | None
    patches: Float[Array, "batch tokens dim"]
    registers: Float[Array, "batch registers dim"]


class Embedding(NamedTuple):
    """One modality's output of the joint block's own pass, after its norm; not unit length."""

    global_token: Float[Array, "batch dim"]
    patch_tokens: Float[Array, "batch tokens dim"]


class Outputs(NamedTuple):
    """What a training step needs."""

    embeddings: dict[str, Embedding]
    latent: Float[Array, "batch tokens dim"]
    predictions: dict[str, Float[Array, "batch patches pixels"]]


def _positions(
    owner: nn.Module, name: str, grid: Grid, dim: int, learned: bool
) -> Float[Array, "1 patches {dim}"]:
    """Sin-cos positions: fixed ones, or a parameter that begins with them."""
    fixed = jnp.asarray(patching.sincos_positions(grid, dim))[None]
    return owner.param(name, lambda _: fixed) if learned else fixed


class Encoder(nn.Module):
    """A ViT over the kept patches of one modality: `[global, patches, registers]`."""

    grid: Grid
    width: int
    registers: int
    global_token: bool
    learned_positions: bool
    residual: Any  # type of the tokens between the blocks
    stack: dict[str, Any]

    @nn.compact
    def __call__(
        self,
        patches: Float[Array, "batch kept pixels"],
        keep: Int[Array, "batch kept"] | None,
    ) -> Tokens:
        """Encodes patches whose places are in `keep` (None: all, in order)."""
        width = self.width
        positions = _positions(self, "positions", self.grid, width, self.learned_positions)
        if keep is not None:
            positions = positions[0][keep]
        small = nn.initializers.normal(0.02)
        x = dense(width, self.stack["dtype"], "patch_projection")(patches)
        x = x + (positions + self.param("modality", small, (1, 1, width))).astype(self.residual)
        batch, kept = x.shape[:2]
        parts = [x]
        if self.global_token:
            parts.insert(0, self._repeat("global_token", small, 1, batch))
        if self.registers:
            parts.append(
                self._repeat("registers", nn.initializers.normal(1), self.registers, batch)
            )
        x = Stack(**self.stack, name="stack")(jnp.concatenate(parts, axis=1))
        return split_tokens(x, kept, self.global_token)

    def _repeat(self, name: str, init: Any, count: int, batch: Any) -> Array:
        tokens = self.param(name, init, (1, count, self.width)).astype(self.residual)
        return jnp.broadcast_to(tokens, (batch, count, self.width))


def split_tokens(x: Float[Array, "batch tokens dim"], patches: int, global_token: bool) -> Tokens:
    """Takes `[global, patches, registers]` apart."""
    first = int(global_token)
    return Tokens(
        x[:, 0] if global_token else None, x[:, first : first + patches], x[:, first + patches :]
    )


class Decoder(nn.Module):
    """Predicts masked patches of both modalities from the kept ones' joint tokens.

    Its blocks see the kept tokens of audio and visual, then the mask tokens of both. Attention does
    not depend on the order, so that no token has to be put back to its place.
    """

    grids: dict[str, Grid]
    pixels: dict[str, int]
    width: int
    learned_positions: bool
    residual: Any  # type of the tokens between the blocks
    stack: dict[str, Any]

    @nn.compact
    def __call__(
        self,
        latent: Float[Array, "batch tokens dim"],
        keep: Mapping[str, Int[Array, "batch _"]],
        masked: Mapping[str, Int[Array, "batch _"]] | None,
    ) -> dict[str, Float[Array, "batch _ _"]]:
        """Takes the kept audio then visual tokens; returns each modality's predictions.

        They are those of the patches in `masked`, all that are not kept. None asks for every patch.
        """
        dtype, small = self.stack["dtype"], nn.initializers.normal(0.02)
        places = {
            m: masking.complement(keep[m], self.grids[m].patches) if masked is None else masked[m]
            for m in MODALITIES
        }
        latent = dense(self.width, dtype, "embed")(latent)
        mask_token = self.param("mask_token", small, (1, 1, self.width))
        seen, hidden = [], []
        for m, tokens in zip(MODALITIES, _cut(latent, keep), strict=True):
            grid, learned = self.grids[m], self.learned_positions
            positions = _positions(self, f"positions_{m}", grid, self.width, learned)[0]
            # Added after the gathering, so that their gradients are sums and no scattered ones.
            code = self.param(f"modality_{m}", small, (1, 1, self.width))
            seen.append(tokens + (positions[keep[m]] + code).astype(self.residual))
            hidden.append((positions[places[m]] + (mask_token + code)).astype(self.residual))
        x = jnp.concatenate(seen + hidden, axis=1)
        stack, norm = Stack(**self.stack, name="stack"), Norm(dtype, name="norm")
        if masked is not None:
            ends = _cut(norm(stack(x, first=latent.shape[1])), masked)
        else:
            kept, others = jnp.split(norm(stack(x)), [latent.shape[1]], axis=1)
            ends = [
                patching.restore(pair, (keep[m], places[m]))
                for m, *pair in zip(MODALITIES, _cut(kept, keep), _cut(others, places), strict=True)
            ]
        return {
            m: dense(self.pixels[m], dtype, f"head_{m}")(tokens)
            for m, tokens in zip(MODALITIES, ends, strict=True)
        }


def _cut(
    x: Float[Array, "batch tokens dim"], places: Mapping[str, Int[Array, "batch _"]]
) -> list[Float[Array, "batch _ dim"]]:
    """Takes audio and visual tokens apart, as many of each as it has places."""
    return jnp.split(x, [places[AUDIO].shape[1]], axis=1)


class CavMaeSync(nn.Module):
    """The model; its fields are the keys of a config's `model` section, explained there."""

    image_size: int
    image_patch: int
    audio_rows: int
    audio_bins: int
    audio_patch: int
    width: int
    depth: int
    heads: int
    joint_depth: int
    mlp_ratio: float
    decoder_width: int
    decoder_depth: int
    decoder_heads: int
    registers: int
    global_token: bool
    registers_in_joint: bool
    learned_positions: bool
    audio_mean: float
    audio_std: float
    dtype: str
    residual_dtype: str
    unroll: bool
    remat: str

    @property
    def grids(self) -> dict[str, Grid]:
        """The patch grid of each modality."""
        side = self.image_size // self.image_patch
        audio = Grid(self.audio_bins // self.audio_patch, self.audio_rows // self.audio_patch)
        return {AUDIO: audio, VISUAL: Grid(side, side)}

    @property
    def pixels(self) -> dict[str, int]:
        """The number of values in a patch of each modality."""
        return {AUDIO: self.audio_patch**2, VISUAL: 3 * self.image_patch**2}

    def raw_shape(self, modality: str) -> tuple[int, ...]:
        """The shape of one sample of raw input, as `patchify` takes it."""
        if modality == AUDIO:
            return self.audio_rows, self.audio_bins
        return self.image_size, self.image_size, 3

    @property
    def compute_dtype(self) -> Any:
        """bfloat16 on accelerators and float32 on a CPU, unless `dtype` says which."""
        automatic = "float32" if jax.default_backend() == "cpu" else "bfloat16"
        return jnp.dtype(automatic if self.dtype == "auto" else self.dtype)

    @property
    def token_dtype(self) -> Any:
        """The tokens' type between the blocks; PyTorch's autocast, as released, has float32."""
        chosen = self.residual_dtype
        return self.compute_dtype if chosen == "auto" else jnp.dtype(chosen)

    def setup(self) -> None:
        """Makes the submodules."""
        shared = {
            "mlp_ratio": self.mlp_ratio,
            "dtype": self.compute_dtype,
            "unroll": self.unroll,
            "remat": self.remat,
        }
        encoder = {**shared, "depth": self.depth, "heads": self.heads}
        tokens = self.learned_positions, self.token_dtype
        self.encoders = {
            modality: Encoder(
                self.grids[modality],
                self.width,
                self.registers,
                self.global_token,
                *tokens,
                encoder,
            )
            for modality in MODALITIES
        }
        passes = (*MODALITIES, BOTH)
        self.joint = Stack(**shared, depth=self.joint_depth, heads=self.heads, norm_sets=passes)
        self.norms = {name: Norm(self.compute_dtype) for name in passes}
        decoder = {**shared, "depth": self.decoder_depth, "heads": self.decoder_heads}
        self.decoder = Decoder(self.grids, self.pixels, self.decoder_width, *tokens, decoder)

    def patchify(
        self,
        modality: str,
        raw: Num[Array, "batch *shape"],
        chosen: Int[Array, "batch chosen"] | None = None,
    ) -> Float[Array, "batch _ _"]:
        """Cuts raw input into patches and normalises them; they are input and target alike.

        Args:
          modality: `AUDIO` or `VISUAL`.
          raw: log-mel `[batch, rows, bins]`, or RGB 0–255 `[batch, height, width, 3]`.
          chosen: indices of the patches to return; None: all, in order.
        """
        picture = patching.fbank_as_picture(raw) if modality == AUDIO else raw
        size = self.audio_patch if modality == AUDIO else self.image_patch
        patches = patching.patchify(picture, size)
        # Raw bytes are cheaper to move about than what they are normalised to.
        if chosen is not None:
            patches = patching.gather(patches, chosen)
        patches = patches.astype(jnp.float32)
        if modality == AUDIO:
            return (patches - self.audio_mean) / self.audio_std
        mean, std = (
            np.tile(np.asarray(v, np.float32), size**2)[None, None] for v in (IMAGE_MEAN, IMAGE_STD)
        )
        return (patches / 255 - mean) / std

    def encode(
        self,
        modality: str,
        patches: Float[Array, "batch patches pixels"],
        keep: Int[Array, "batch kept"] | None = None,
    ) -> Tokens:
        """The modality's own encoder, before the joint block and any final norm.

        Only the patches in `keep` are encoded (None: all). Masked patches cost nothing.
        """
        chosen = patches if keep is None else patching.gather(patches, keep)
        return self.encoders[modality](chosen, keep)

    def join(self, modality: str, tokens: Tokens) -> Embedding:
        """The joint block's pass of one modality and its norm (section 3.4).

        Registers are dropped before it, as in the released model, unless `registers_in_joint`
        (the paper's text). Without a global token the patches' mean takes its place.
        """
        parts = [tokens.patches]
        if tokens.global_token is not None:
            parts.insert(0, tokens.global_token[:, None])
        if self.registers_in_joint:
            parts.append(tokens.registers)
        x = self.norms[modality](self.joint(jnp.concatenate(parts, axis=1), modality))
        split = split_tokens(x, tokens.patches.shape[1], self.global_token)
        pooled = split.patches.mean(axis=1) if split.global_token is None else split.global_token
        return Embedding(pooled, split.patches)

    def embed(self, modality: str, raw: Num[Array, "batch *shape"]) -> Embedding:
        """Raw input (see `patchify`), nothing masked, to its embedding."""
        return self.join(modality, self.encode(modality, self.patchify(modality, raw)))

    def fuse(self, tokens: Mapping[str, Tokens]) -> Float[Array, "batch tokens dim"]:
        """The joint block's pass "both": kept audio then visual patches, and the final norm.

        A modality that `tokens` lacks is missing.
        """
        there = [tokens[modality].patches for modality in MODALITIES if modality in tokens]
        x = jnp.concatenate(there, axis=1)
        return self.norms[BOTH](self.joint(x, BOTH))

    def __call__(
        self,
        visible: Mapping[str, Float[Array, "batch _ _"]],
        keep: Mapping[str, Int[Array, "batch _"]],
        masked: Mapping[str, Int[Array, "batch _"]] | None = None,
    ) -> Outputs:
        """The training pass.

        Args:
          visible: the patches in `keep` by modality, `[batch, kept, pixels]`.
          keep: the indices of the kept patches.
          masked: the indices of all others, which are predicted. None: every patch is predicted,
            the kept ones as well, in order.

        Returns:
          Embeddings of the kept patches and predictions.
        """
        tokens = {m: self.encoders[m](visible[m], keep[m]) for m in MODALITIES}
        embeddings = {m: self.join(m, tokens[m]) for m in MODALITIES}
        latent = self.fuse(tokens)
        return Outputs(embeddings, latent, self.decoder(latent, keep, masked))

    def init_params(self, key: jax.Array) -> dict[str, Any]:
        """Draws all parameters, float32; `jax.eval_shape` of it gives their shapes."""
        visible = {m: jnp.zeros((1, 1, self.pixels[m])) for m in MODALITIES}
        keep = {m: jnp.zeros((1, 1), jnp.int32) for m in MODALITIES}
        return self.init(key, visible, keep)["params"]


def from_config(section: ConfigDict | Mapping[str, Any]) -> CavMaeSync:
    """Builds the model of a config's `model` section.

    Raises:
      UserError: if a key is missing or unknown, or sizes do not go together.
    """
    names = {field.name for field in dataclasses.fields(CavMaeSync)} - {"parent", "name"}
    if set(section) != names:
        raise UserError(
            f"config.model has missing keys {sorted(names - set(section))} "
            f"and unknown keys {sorted(set(section) - names)}"
        )
    sizes = [name for name in names if type(section[name]) is int and name != "registers"]
    for name in sizes:
        if section[name] < 1:
            raise UserError(f"config.model.{name}={section[name]} must be at least 1")
    if not section["mlp_ratio"] * min(section["width"], section["decoder_width"]) >= 1:
        ratio = f"config.model.mlp_ratio={section['mlp_ratio']}"
        raise UserError(f"{ratio} must be larger: it makes a hidden width of 0")
    model = CavMaeSync(**section)
    for larger, smaller in (
        ("image_size", "image_patch"),
        ("audio_rows", "audio_patch"),
        ("audio_bins", "audio_patch"),
        ("width", "heads"),
        ("decoder_width", "decoder_heads"),
    ):
        if getattr(model, larger) % getattr(model, smaller):
            raise UserError(
                f"config.model.{larger}={getattr(model, larger)} must be a multiple of "
                f"config.model.{smaller}={getattr(model, smaller)}"
            )
    for name in ("width", "decoder_width"):
        if getattr(model, name) % 4:
            raise UserError(f"config.model.{name} must be a multiple of 4 (sin-cos positions)")
    if not 0 <= model.registers <= MAX_REGISTERS:
        raise UserError(f"config.model.registers must be 0 to {MAX_REGISTERS}")
    for name, values in (
        ("dtype", ("auto", "float32", "bfloat16")),
        ("residual_dtype", ("auto", "float32")),
        ("remat", ("none", *REMAT_POLICIES)),
    ):
        if getattr(model, name) not in values:
            raise UserError(f"config.model.{name} must be one of {', '.join(values)}")
    return model
