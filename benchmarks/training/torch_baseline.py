"""The same model, losses and optimiser in PyTorch, from its library's fast parts, to measure by.

Modules and their attributes are named as in our parameter tree, so that `load_params` is one rule.
Masks come as orders of all patches, the kept ones first. As in our step, raw input is normalised on
the device, and the decoder's last block computes the masked patches only.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import numpy as np
import torch
import torch.nn.functional as F
from ml_collections import ConfigDict
from torch import Tensor, nn

from cavmae_sync_jax.models import cavmae_sync, masking
from cavmae_sync_jax.models.patches import Grid, sincos_positions
from cavmae_sync_jax.training.losses import DIRECTIONS
from cavmae_sync_jax.utils.errors import UserError
from cavmae_sync_jax.utils.modalities import AUDIO, BOTH, MODALITIES


class Attention(nn.Module):
    """Multi-head self-attention: one projection for query, key and value, fused attention."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.projection = nn.Linear(dim, dim)

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        """`[batch, tokens, dim]` to the outputs of the tokens from `first` on."""
        if first:
            dim = x.shape[-1]
            query = F.linear(x[:, first:], self.qkv.weight[:dim], self.qkv.bias[:dim])
            rest = F.linear(x, self.qkv.weight[dim:], self.qkv.bias[dim:])
            parts = [query, *rest.chunk(2, -1)]
        else:
            parts = self.qkv(x).chunk(3, -1)
        heads = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        return self.projection(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(dim, hidden)
        self.output = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, tokens, dim]` to the same."""
        return self.output(F.gelu(self.hidden(x)))


class Block(nn.Module):
    """A pre-norm block with one pair of norms for each of `sets`."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, sets: tuple[str, ...]) -> None:
        super().__init__()
        self.attention = Attention(dim, heads)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        for name in sets:
            self.add_module(f"attention_norm{name}", nn.LayerNorm(dim))
            self.add_module(f"mlp_norm{name}", nn.LayerNorm(dim))

    def forward(self, x: Tensor, norm_set: str = "", first: int = 0) -> Tensor:
        """Applies it with the norms of `norm_set`; returns the tokens from `first` on."""
        x = x[:, first:] + self.attention(getattr(self, f"attention_norm{norm_set}")(x), first)
        return x + self.mlp(getattr(self, f"mlp_norm{norm_set}")(x))


def _stack(
    depth: int, dim: int, heads: int, mlp_ratio: float, sets: tuple[str, ...] = ("",)
) -> nn.ModuleList:
    return nn.ModuleList(Block(dim, heads, mlp_ratio, sets) for _ in range(depth))


def _positions(grid: Grid, dim: int, learned: bool) -> Tensor:
    fixed = torch.from_numpy(sincos_positions(grid, dim))[None]
    return nn.Parameter(fixed) if learned else nn.Buffer(fixed, persistent=False)


def _spread(index: Tensor, dim: int) -> Tensor:
    return index[:, :, None].expand(-1, -1, dim)


class Encoder(nn.Module):
    """A ViT over one modality's kept patches; `model` is a config's section of that name."""

    def __init__(self, model: ConfigDict, grid: Grid, pixels: int) -> None:
        super().__init__()
        width = model.width
        self.patch_projection = nn.Linear(pixels, width)
        self.modality = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = _positions(grid, width, model.learned_positions)
        ends = {"global_token": int(model.global_token), "registers": model.registers}
        for name, count in ends.items():
            self.register_parameter(
                name, nn.Parameter(torch.zeros(1, count, width)) if count else None
            )
        self.stack = _stack(model.depth, width, model.heads, model.mlp_ratio)

    def forward(self, patches: Tensor, keep: Tensor) -> list[Tensor]:
        """Kept patches `[batch, kept, pixels]` to global, kept and register tokens."""
        x = self.patch_projection(patches)
        x = x + (self.positions[0][keep] + self.modality).to(x.dtype)
        ends = [
            x[:, :0] if end is None else end.to(x.dtype).expand(len(x), -1, -1)
            for end in (self.global_token, self.registers)
        ]
        parts = [ends[0], x, ends[1]]
        x = torch.cat(parts, 1)
        for block in self.stack:
            x = block(x)
        return list(x.split([part.shape[1] for part in parts], 1))


class Decoder(nn.Module):
    """Predicts the masked patches of both modalities from the kept ones' joint tokens."""

    def __init__(
        self, model: ConfigDict, grids: Mapping[str, Grid], pixels: Mapping[str, int]
    ) -> None:
        super().__init__()
        width = model.decoder_width
        self.embed = nn.Linear(model.width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        for m in MODALITIES:
            positions = _positions(grids[m], width, model.learned_positions)
            setattr(self, f"positions_{m}", positions)
            self.register_parameter(f"modality_{m}", nn.Parameter(torch.zeros(1, 1, width)))
            self.add_module(f"head_{m}", nn.Linear(width, pixels[m]))
        self.stack = _stack(model.decoder_depth, width, model.decoder_heads, model.mlp_ratio)
        self.norm = nn.LayerNorm(width)

    def forward(
        self, latent: Tensor, keep: Mapping[str, Tensor], masked: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The kept audio, then visual tokens to each modality's predictions."""
        latent = self.embed(latent)
        kept = latent.split([keep[m].shape[1] for m in MODALITIES], 1)
        seen, hidden = [], []
        for m, tokens in zip(MODALITIES, kept, strict=True):
            positions, code = getattr(self, f"positions_{m}")[0], getattr(self, f"modality_{m}")
            seen.append(tokens + (positions[keep[m]] + code).to(latent.dtype))
            hidden.append((positions[masked[m]] + (self.mask_token + code)).to(latent.dtype))
        x = torch.cat(seen + hidden, 1)
        for index, block in enumerate(self.stack):
            x = block(x, first=latent.shape[1] if index == len(self.stack) - 1 else 0)
        ends = self.norm(x).split([part.shape[1] for part in hidden], 1)
        return {m: getattr(self, f"head_{m}")(x) for m, x in zip(MODALITIES, ends, strict=True)}


class TorchCavMaeSync(nn.Module):
    """The model and its training loss.

    Args:
      config: as the train step's; its layer loop, rematerialisation and microbatches are ours only.
      dtype: what matrices are computed in: torch.float32, or torch.bfloat16 by autocast.
    """

    def __init__(self, config: ConfigDict, dtype: torch.dtype) -> None:
        super().__init__()
        self.settings, self.loss, self.dtype = config.model, dict(config.loss), dtype
        ours = cavmae_sync.from_config(config.model)
        model, passes = config.model, (*MODALITIES, BOTH)
        ratio = config.mask.ratios[0]
        self.kept = {m: masking.kept_patches(ours.grids[m].patches, ratio) for m in MODALITIES}
        for m in MODALITIES:
            self.add_module(f"encoders_{m}", Encoder(model, ours.grids[m], ours.pixels[m]))
        sets = tuple(f"_{name}" for name in passes)
        self.joint = _stack(model.joint_depth, model.width, model.heads, model.mlp_ratio, sets)
        for name in passes:
            self.add_module(f"norms_{name}", nn.LayerNorm(model.width))
        self.decoder = Decoder(model, ours.grids, ours.pixels)
        scale = torch.tensor([cavmae_sync.IMAGE_MEAN, cavmae_sync.IMAGE_STD])
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, raw: Mapping[str, Tensor], orders: Mapping[str, Tensor]) -> Tensor:
        """The loss of raw log-mel and RGB; `orders` are those of each sample's patches."""
        keep = {m: order[:, : self.kept[m]] for m, order in orders.items()}
        masked = {m: order[:, self.kept[m] :] for m, order in orders.items()}
        patches = {m: self._cut(m, raw[m]) for m in MODALITIES}
        visible, hidden = (
            {m: self._normalised(m, patches[m], chosen[m]) for m in MODALITIES}
            for chosen in (keep, masked)
        )
        automatic = self.dtype != torch.float32
        with torch.autocast(self.scale.device.type, self.dtype, enabled=automatic):
            tokens = {m: getattr(self, f"encoders_{m}")(visible[m], keep[m]) for m in MODALITIES}
            embeddings = [self._join(m, *tokens[m]).float() for m in MODALITIES]
            both = torch.cat([tokens[m][1] for m in MODALITIES], 1)
            predictions = self.decoder(self._joint(both, BOTH), keep, masked)
        errors = [_reconstruction(predictions[m].float(), hidden[m]) for m in MODALITIES]
        weights = self.loss["contrast_weight"], self.loss["reconstruction_weight"]
        return weights[0] * self._contrast(*embeddings) + weights[1] * sum(errors)

    def embed(self, modality: str, raw: Tensor) -> Tensor:
        """The global embeddings `[batch, dim]` of raw input, nothing masked, float32."""
        patches = self._cut(modality, raw)
        every = torch.arange(patches.shape[1], device=raw.device).expand(len(raw), -1)
        automatic = self.dtype != torch.float32
        with torch.autocast(self.scale.device.type, self.dtype, enabled=automatic):
            encoder = getattr(self, f"encoders_{modality}")
            tokens = encoder(self._normalised(modality, patches, every), every)
            return self._join(modality, *tokens).float()

    def _cut(self, modality: str, raw: Tensor) -> Tensor:
        audio = modality == AUDIO
        x = raw.transpose(1, 2)[..., None] if audio else raw
        patch = self.settings.audio_patch if audio else self.settings.image_patch
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height // patch, patch, width // patch, patch, channels)
        return x.permute(0, 1, 3, 2, 4, 5).reshape(batch, -1, patch * patch * channels)

    def _normalised(self, modality: str, patches: Tensor, chosen: Tensor) -> Tensor:
        x = patches.gather(1, _spread(chosen, patches.shape[2])).float()
        if modality == AUDIO:
            return (x - self.settings.audio_mean) / self.settings.audio_std
        pixels = x.unflatten(2, (-1, 3))
        return ((pixels / 255 - self.scale[0]) / self.scale[1]).flatten(2)

    def _joint(self, x: Tensor, name: str) -> Tensor:
        for block in self.joint:
            x = block(x, f"_{name}")
        return getattr(self, f"norms_{name}")(x)

    def _join(self, m: str, global_token: Tensor, kept: Tensor, registers: Tensor) -> Tensor:
        more = [registers] if self.settings.registers_in_joint else []
        x = self._joint(torch.cat([global_token, kept, *more], 1), m)
        return x[:, 0] if global_token.shape[1] else x[:, : kept.shape[1]].mean(1)

    def _contrast(self, audio: Tensor, visual: Tensor) -> Tensor:
        groups = self.loss["contrast_groups"]
        audio, visual = (F.normalize(x, dim=1).unflatten(0, (groups, -1)) for x in (audio, visual))
        logits = audio @ visual.transpose(1, 2) / self.loss["temperature"]
        axes = DIRECTIONS[self.loss["contrast_direction"]]
        parts = [-logits.log_softmax(1 + a).diagonal(dim1=1, dim2=2).mean() for a in axes]
        return sum(parts) / len(parts)


def _reconstruction(predictions: Tensor, patches: Tensor) -> Tensor:
    variance, mean = torch.var_mean(patches, -1, correction=1, keepdim=True)
    target = (patches - mean) * torch.rsqrt(variance + 1e-6)
    return (predictions - target).square().mean()


def named(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Our parameter tree, or gradients in its shape, by the PyTorch modules' names and layouts."""
    state = {}
    for (*where, leaf), array in flax.traverse_util.flatten_dict(dict(params)).items():
        stacked = "blocks" in where
        for layer, values in enumerate(np.asarray(array) if stacked else np.asarray(array)[None]):
            path = [str(layer) if name == "blocks" else name for name in where]
            leaf_name = re.sub("^(kernel|scale)$", "weight", leaf)
            state[".".join([*path, leaf_name])] = values.T if leaf == "kernel" else values
    return state


def load_params(model: TorchCavMaeSync, params: Mapping[str, Any]) -> None:
    """Copies our parameter tree into `model`; both must have exactly the same weights."""
    model.load_state_dict({name: torch.tensor(array) for name, array in named(params).items()})


class Trainer:
    """Training steps of a model on `device`.

    Args:
      config: as the train step's.
      dtype: "float32" or "bfloat16".
      device: where it computes.
    """

    def __init__(self, config: ConfigDict, dtype: str, device: torch.device) -> None:
        self.device = device
        self.model = TorchCavMaeSync(config, getattr(torch, dtype)).to(device)
        self.optimizer = torch.optim.Adam(
            self.model.parameters(),
            config.learning_rate,
            (config.adam_b1, config.adam_b2),
            eps=1e-8,
            weight_decay=config.l2,  # coupled: added to the gradient
            fused=True,
        )
        self.forward = {"eager": self.model, "compiled": torch.compile(self.model, dynamic=False)}

    def put(self, arrays: Mapping[str, Any]) -> dict[str, Tensor]:
        """A modality's arrays on the device; indices as PyTorch wants them."""
        tensors = {m: torch.from_numpy(np.array(arrays[m])).to(self.device) for m in MODALITIES}
        return {m: t.long() if t.dtype == torch.int32 else t for m, t in tensors.items()}

    def draw(self, orders: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Other masks of the same sizes."""
        return {m: torch.rand(x.shape, device=self.device).argsort(1) for m, x in orders.items()}

    def gradients(
        self, how: str, raw: Mapping[str, Tensor], orders: Mapping[str, Tensor]
    ) -> Tensor:
        """Leaves the gradients of the loss, which it returns, in the parameters."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.forward[how](raw, orders)
        loss.backward()
        return loss.detach()

    def gradient_norm(self) -> float:
        """Of the gradients left in the parameters."""
        return torch.nn.utils.get_total_norm([p.grad for p in self.model.parameters()]).item()

    def step(self, how: str, raw: Mapping[str, Tensor], orders: Mapping[str, Tensor]) -> Tensor:
        """One training step, "eager" or "compiled"; returns its loss."""
        loss = self.gradients(how, raw, orders)
        self.optimizer.step()
        return loss

    def wait(self) -> None:
        """Until the device has done its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def peak_bytes(self) -> int | None:
        """The most memory of the device in use at once since the last call; None: not known."""
        if self.device.type != "cuda":
            return None
        peak = torch.cuda.max_memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        return peak


def prepare(platform: str) -> torch.device:
    """PyTorch's counterpart of a JAX platform, with JAX's own threads and float32 precision.

    Raises:
      UserError: if this PyTorch has no such device.
    """
    if platform == "cpu":
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        return torch.device("cpu")
    if platform != "gpu" or not torch.cuda.is_available():
        raise UserError(
            f"this PyTorch {torch.__version__} can't compute on JAX's platform {platform!r}: "
            "install a build that can, or give --peers without names"
        )
    torch.set_float32_matmul_precision("high")  # TensorFloat-32, JAX's default there
    return torch.device("cuda")
