"""Finds out what a PyTorch file of weights holds: its kind from names, its sizes from shapes."""

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from cavmae_sync_jax.models.patches import Grid, sincos_positions
from cavmae_sync_jax.torch_compat import key_mapping, mae
from cavmae_sync_jax.utils import cli
from cavmae_sync_jax.utils.errors import UserError

# What a file's shapes do not show. configs/pretrain.py has the same values, which a test compares.
RELEASED = {
    "data": {
        "num_frames": 16,
        "clip_rows": 1024,
        "window_spread": "clip",
        "workers": 8,
        "prefetch": 2,
    },
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
        "residual_dtype": "auto",
        "unroll": False,
        "remat": "none",
    },
}
CAV_MAE_FRAMES = 10
VGGSOUND_CLASSES = 309  # one per clip, unlike AudioSet's
MAX_PATCHES = 2**14
# Heads of the widths that are known: ViT's (B, L, H), MAE's decoder, probes of one or two streams.
HEADS = {768: 12, 1024: 16, 1280: 16}
DECODER_HEADS = {512: 16}
PROBE_HEADS = {768: 12, 1536: 12}
# Positions nearer to sin-cos ones than this are those; in half precision they are rounded.
SIN_COS_TOLERANCE, HALF_TOLERANCE = 1e-4, 5e-3


class Kind(NamedTuple):
    """What a file holds, and which of the authors' names it lacks, because they are new to it."""

    title: str
    new: tuple[re.Pattern, ...] = ()

    def lacks(self, name: str) -> bool:
        """Whether a file of this kind may lack `name`, such as norms that are never used."""
        return any(pattern.fullmatch(name) for pattern in (key_mapping.UNUSED_NORMS, *self.new))


TOKENS = re.compile(r"cls_token_[av]|register_tokens")  # what Sync added, if they are asked for
SYNC, CAV_MAE, HEAD = Kind("CAV-MAE Sync"), Kind("CAV-MAE", (TOKENS,)), Kind("a probe's head")
FINE_TUNED = Kind("a fine-tuned CAV-MAE", (TOKENS,))
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
        if "mlp_head.1.weight" in state:
            return FINE_TUNED
        return SYNC if state.keys() & {"cls_token_a", "cls_token_v", "register_tokens"} else CAV_MAE
    if "classifier_head.weight" in state:
        return HEAD
    raise UserError(
        f"{source} holds no CAV-MAE Sync, CAV-MAE (fine-tuned or not), MAE ViT or probe's head: "
        f"its names begin with {', '.join(sorted(state)[:4])}"
    )


class _Shapes:
    """Looks sizes up by name, with a value to go on with where a file lacks them."""

    def __init__(self, state: Mapping[str, np.ndarray]):
        self._shapes = {name: array.shape for name, array in state.items()}

    def size(self, name: str, axis: int, otherwise: int) -> int:
        """The length of an axis."""
        shape = self._shapes.get(name, ())
        return (shape[axis] if axis < len(shape) else 0) or otherwise

    def layers(self, name: str, otherwise: int) -> int:
        """How many blocks are called `NAME.N`; a file has more tensors than blocks."""
        pattern = re.compile(rf"{name}\.(\d{{1,4}})\.mlp\.fc1\.weight")
        matches = filter(None, map(pattern.fullmatch, self._shapes))
        found = [int(match[1]) for match in matches if int(match[1]) < len(self._shapes)]
        return max(found, default=otherwise - 1) + 1

    def ratio(self, name: str, width: int) -> float:
        """The hidden width of a block's MLP over its own."""
        return self.size(f"{name}.0.mlp.fc1.weight", 0, 4 * width) / width


def infer(state: Mapping[str, np.ndarray], kind: Kind, audio_bins: int | None = None) -> ConfigDict:
    """The config of a state dict with the authors' names, from its shapes.

    Heads that its width does not tell are 0; MAE's global and register tokens, which are new, and
    its audio are those of `RELEASED`. A fine-tuned model's classes are numbered, and their count
    tells its loss.

    Args:
      state: arrays by name.
      kind: what it holds.
      audio_bins: of the log-mel; None takes what makes fixed positions sin-cos ones, else 128.
    """
    shapes = _Shapes(state)
    if kind is HEAD:
        width = shapes.size("classifier_head.weight", 1, 768)
        depth = shapes.layers("classifier_layers", 2 if "cls_cls_token" in state else 0)
        head = {
            "width": width,
            "depth": depth,
            "heads": PROBE_HEADS.get(width, 0) if depth else 1,  # a linear probe has none
            "mlp_ratio": shapes.ratio("classifier_layers", width),
            "classes": shapes.size("classifier_head.weight", 0, 1),
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
        model[key] = shapes.size(name, axis, model[key])
    for key, name in (
        ("depth", "blocks_v"),
        ("joint_depth", "blocks_u"),
        ("decoder_depth", "decoder_blocks"),
    ):
        model[key] = shapes.layers(name, model[key])
    model.heads = HEADS.get(model.width, 0)
    model.decoder_heads = DECODER_HEADS.get(model.decoder_width, 0)
    model.mlp_ratio = shapes.ratio("blocks_v", model.width)
    image, audio = _grids(state, shapes, model, audio_bins)
    model.image_size = image.rows * model.image_patch
    model.audio_bins = audio_bins or model.audio_bins
    model.audio_rows = audio.columns * model.audio_patch
    model.learned_positions = not all(
        _is_sin_cos(state[name], grid)
        for short, grid in zip("av", (audio, image), strict=True)
        for name in (f"pos_embed_{short}", f"decoder_pos_embed_{short}")
        if name in state
    )
    if kind in (SYNC, CAV_MAE, FINE_TUNED):
        model.global_token = bool(state.keys() & {"cls_token_a", "cls_token_v"})
        model.registers = shapes.size("register_tokens", 0, 0) // 2
    if kind is CAV_MAE or (kind is FINE_TUNED and not model.global_token):
        config.data.num_frames = CAV_MAE_FRAMES
    if kind is FINE_TUNED:
        classes = shapes.size("mlp_head.1.weight", 0, 1)
        config.classifier = {
            "stream": "both",
            "tokens": "patches",
            "loss": "ce" if classes == VGGSOUND_CLASSES else "bce",
            "names": tuple(f"class {number}" for number in range(classes)),
        }
    return config


def _grids(
    state: Mapping[str, np.ndarray], shapes: _Shapes, model: ConfigDict, audio_bins: int | None
) -> tuple[Grid, Grid]:
    """The grids of image and audio patches, from the positions of the encoders or the decoder."""

    def count(short: str, otherwise: int) -> int:
        decoder = shapes.size(f"decoder_pos_embed_{short}", 1, otherwise)
        return shapes.size(f"pos_embed_{short}", 1, decoder)

    side = math.isqrt(count("v", (model.image_size // model.image_patch) ** 2))
    bands = max(1, (audio_bins or model.audio_bins) // model.audio_patch)
    patches = count("a", max(1, model.audio_rows // model.audio_patch) * bands)
    positions = state.get("pos_embed_a")
    if audio_bins is None and positions is not None and patches <= MAX_PATCHES:
        divisors = [n for n in range(1, patches + 1) if patches % n == 0]
        grids = [Grid(n, patches // n) for n in sorted(divisors, key=lambda n: n != bands)]
        known = [grid.rows for grid in grids if _is_sin_cos(positions, grid)]
        if known and known[0] != bands:
            bands = known[0]
            model.audio_bins = bands * model.audio_patch
    return Grid(side, side), Grid(bands, max(1, patches // bands))


def _is_sin_cos(positions: np.ndarray, grid: Grid) -> bool:
    """Whether these are fixed positions; those of a wrong shape are reported later."""
    if positions.ndim != 3 or positions.shape[:2] != (1, grid.patches) or positions.shape[2] % 4:
        return True
    in_half = [positions.astype(np.float16), positions.view(np.uint32) & np.uint32(0xFFFF0000)]
    in_half[1] = in_half[1].view(np.float32)  # bfloat16 is float32 without its last 16 bits
    rounded = any(np.array_equal(half, positions) for half in in_half)
    fixed = sincos_positions(grid, positions.shape[2])
    error = np.abs(positions[0] - fixed).max(initial=0)
    return bool(error < (HALF_TOLERANCE if rounded else SIN_COS_TOLERANCE))


# What a file does not tell, and what changes a model's numbers.
UNSAID = (
    *("data.num_frames", "data.clip_rows", "data.window_spread"),
    *("model.heads", "model.decoder_heads", "model.mlp_ratio", "model.registers_in_joint"),
    *("model.audio_bins", "model.audio_mean", "model.audio_std"),
    *("classifier.tokens", "classifier.stream", "classifier.loss", "head.heads"),
)


def unsaid(config: ConfigDict, state: Mapping[str, np.ndarray]) -> list[str]:
    """The flags for settings of a model that a reader of its file would take otherwise."""
    kind = kind_of(state, "the file")
    read = infer(state, kind)
    known = set(cli.keys(config)) & set(cli.keys(read))
    if kind is FINE_TUNED:
        known.discard("model.decoder_heads")  # of the decoder that it began with, which is gone
    return [
        f"--config.{key}={cli.value(config, key)}"
        for key in UNSAID
        if key in known and cli.value(config, key) != cli.value(read, key)
    ]
