"""What a PyTorch file of weights holds: its kind by its names, the model's sizes by its shapes."""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from cavmae_sync_jax import mae
from cavmae_sync_jax import torch_names as names
from cavmae_sync_jax.cli import UserError
from cavmae_sync_jax.patches import Grid, sincos_positions

# What a file's shapes do not tell. configs/pretrain.py has the same values, which a test compares.
RELEASED = {
    "data": {"num_frames": 16, "clip_rows": 1024, "workers": 8, "prefetch": 2},
    "model": {
        "image_size": 224,
        "image_patch": 16,
        "audio_rows": 416,
        "audio_bins": 128,
        "audio_patch": 16,
        "width": 768,
        "depth": 11,
        "heads": 12,
        "joint_depth": 1,
        "mlp_ratio": 4.0,
        "decoder_width": 512,
        "decoder_depth": 8,
        "decoder_heads": 16,
        "registers": 8,
        "global_token": True,
        "registers_in_joint": False,
        "learned_positions": False,
        "audio_mean": -5.081,
        "audio_std": 4.4849,
        "dtype": "auto",
        "unroll": False,
        "remat": "none",
    },
}
CAV_MAE_FRAMES = 10
# Heads of the widths that ViT and MAE have (B, L, H), the decoder and the probe.
HEADS = {512: 16, 768: 12, 1024: 16, 1280: 16, 1536: 12}
SIN_COS_TOLERANCE = 1e-4  # positions nearer than this to sin-cos ones are those


class Kind(NamedTuple):
    """What a file holds, and which of the authors' names it lacks, because they are new to it."""

    title: str
    new: tuple[re.Pattern, ...] = ()

    def lacks(self, name: str) -> bool:
        """Whether a file of this kind may do without `name`, as without norms nobody uses."""
        return any(pattern.fullmatch(name) for pattern in (names.UNUSED_NORMS, *self.new))


TOKENS = re.compile(r"cls_token_[av]|register_tokens")  # what Sync added, if they are asked for
SYNC, CAV_MAE, HEAD = Kind("CAV-MAE Sync"), Kind("CAV-MAE", (TOKENS,)), Kind("a probe's head")
MAE = Kind("a MAE ViT with decoder", (mae.NEW,))
MAE_ENCODER = Kind("a MAE ViT without decoder", (mae.NEW, mae.DECODER))


def kind_of(state: Mapping[str, np.ndarray], source: str) -> Kind:
    """Tells a state dict's kind by its names.

    Raises:
      UserError: if it is none of those known, naming some of its names.
    """
    if mae.is_mae(set(state)):
        return MAE if "decoder_embed.weight" in state else MAE_ENCODER
    if "patch_embed_a.proj.weight" in state and "patch_embed_v.proj.weight" in state:
        return SYNC if state.keys() & {"cls_token_a", "cls_token_v", "register_tokens"} else CAV_MAE
    if "cls_cls_token" in state and "classifier_head.weight" in state:
        return HEAD
    raise UserError(
        f"{source} is no CAV-MAE Sync, CAV-MAE, MAE ViT or probe's head; "
        f"its names begin with {', '.join(sorted(state)[:4])}"
    )


def infer(state: Mapping[str, np.ndarray], kind: Kind) -> ConfigDict:
    """The config of a state dict with the authors' names, from its shapes.

    Heads that its width does not tell are 0; MAE's global and register tokens, which are new, and
    its audio are those of `RELEASED`.
    """

    def size(name: str, axis: int, otherwise: int) -> int:
        shape = state[name].shape if name in state else ()
        return shape[axis] if -len(shape) <= axis < len(shape) else otherwise

    def layers(name: str, otherwise: int) -> int:
        pattern = re.compile(rf"{name}\.(\d+)\.mlp\.fc1\.weight")
        found = [int(match[1]) for key in state if (match := pattern.fullmatch(key))]
        return max(found, default=otherwise - 1) + 1

    def ratio(name: str, width: int) -> float:
        return size(f"{name}.0.mlp.fc1.weight", 0, 4 * width) / max(1, width)

    if kind is HEAD:
        width = size("cls_cls_token", -1, 0)
        head = {
            "width": width,
            "depth": layers("classifier_layers", 0),
            "heads": HEADS.get(width, 0),
            "mlp_ratio": ratio("classifier_layers", width),
            "classes": size("classifier_head.weight", 0, 0),
        }
        return ConfigDict({"head": head})
    config = ConfigDict(RELEASED)
    model = config.model
    for key, name, axis in (
        ("width", "patch_embed_v.proj.weight", 0),
        ("image_patch", "patch_embed_v.proj.weight", 3),
        ("audio_patch", "patch_embed_a.proj.weight", 3),
        ("decoder_width", "decoder_embed.weight", 0),
    ):
        model[key] = size(name, axis, model[key]) or model[key]
    for key, name in (
        ("depth", "blocks_v"),
        ("joint_depth", "blocks_u"),
        ("decoder_depth", "decoder_blocks"),
    ):
        model[key] = layers(name, model[key])
    model.heads = HEADS.get(model.width, 0)
    model.decoder_heads = HEADS.get(model.decoder_width, 0)
    model.mlp_ratio = ratio("blocks_v", model.width)
    side = math.isqrt(size("pos_embed_v", 1, (model.image_size // model.image_patch) ** 2))
    bands = model.audio_bins // model.audio_patch
    columns = size("pos_embed_a", 1, model.audio_rows // model.audio_patch * bands) // bands
    image, audio = Grid(side, side), Grid(bands, columns)
    model.image_size, model.audio_rows = side * model.image_patch, columns * model.audio_patch
    model.learned_positions = not all(
        _is_sin_cos(state[name], grid)
        for short, grid in zip("av", (audio, image), strict=True)
        for name in (f"pos_embed_{short}", f"decoder_pos_embed_{short}")
        if name in state
    )
    if kind in (SYNC, CAV_MAE):
        model.global_token = "cls_token_a" in state
        model.registers = size("register_tokens", 0, 0) // 2
    if kind is CAV_MAE:
        config.data.num_frames = CAV_MAE_FRAMES
    return config


def _is_sin_cos(positions: np.ndarray, grid: Grid) -> bool:
    """Whether these are fixed positions; those of a wrong shape are told later, not here."""
    if positions.shape[:2] != (1, grid.patches) or positions.shape[-1] % 4:
        return True
    fixed = sincos_positions(grid, positions.shape[-1])
    return bool(np.abs(positions[0] - fixed).max(initial=0) < SIN_COS_TOLERANCE)
