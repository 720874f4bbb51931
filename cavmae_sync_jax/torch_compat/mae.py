"""Renames the weights of a MAE ViT, with or without its decoder, to CAV-MAE's (paper section 4.1).

Both encoders begin as MAE's blocks without the last one. The last block becomes the joint block,
with its norms in all three sets. The audio's patch kernel is the sum of the image's over RGB. The
audio's pixel head is the first rows of the image's. MAE has no counterpart for the weights in
`NEW`, so they are drawn at random.
"""

import re
from collections.abc import Iterator, MutableMapping

import numpy as np

NEW = re.compile(
    r"modality_[av]|decoder_modality_[av]|cls_token_[av]|register_tokens|(decoder_)?pos_embed_a"
)
DECODER = re.compile(r"decoder_.*|mask_token")
SETS = ("", "_a", "_v")  # of the joint block's norms


def is_mae(names: set[str]) -> bool:
    """Whether these are a MAE ViT's names."""
    return {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight"} <= names


def rename(state: MutableMapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Empties a MAE state dict into one with CAV-MAE's names; unknown names stay as they are."""
    blocks = (re.match(r"blocks\.(\d{1,4})\.mlp\.fc1\.weight", name) for name in state)
    last = max((int(m[1]) for m in blocks if m and int(m[1]) < len(state)), default=0)
    return {
        renamed: value
        for name in list(state)
        for renamed, value in _targets(name, state.pop(name), last)
    }


def _targets(name: str, array: np.ndarray, last: int) -> Iterator[tuple[str, np.ndarray]]:
    first, _, rest = name.partition(".")
    block = re.fullmatch(r"blocks\.(\d{1,4})\.(norm[12]|.+)(\.\w+)", name)
    if name == "cls_token":
        return  # ours are two, of another purpose
    if name in ("pos_embed", "decoder_pos_embed") and array.ndim == 3:
        yield f"{name}_v", array[:, 1:]  # without that of the CLS token
    elif first == "patch_embed":
        summed = array.sum(axis=1, keepdims=True) if array.ndim == 4 else array
        yield f"patch_embed_a.{rest}", summed
        yield f"patch_embed_v.{rest}", array
    elif block and int(block[1]) < last:
        yield f"blocks_a.{rest}", array
        yield f"blocks_v.{rest}", array
    elif block:
        for suffix in SETS if block[2] in ("norm1", "norm2") else ("",):
            yield f"blocks_u.{int(block[1]) - last}.{block[2]}{suffix}{block[3]}", array
    elif first == "norm":
        for suffix in SETS:
            yield f"norm{suffix}.{rest}", array
    elif first == "decoder_pred" and array.ndim:
        yield f"decoder_pred_a.{rest}", array[: len(array) // 3]
        yield f"decoder_pred_v.{rest}", array
    else:
        yield name, array


def original(name: str, last: int) -> str:
    """MAE's name of what CAV-MAE calls `name`, for messages; `last` is MAE's last block."""
    name = re.sub(r"^blocks_[av]\.", "blocks.", name)
    name = re.sub(r"^blocks_u\.0\.", f"blocks.{last}.", name)
    name = re.sub(r"(norm[12]?)_[av](?=\.)", r"\1", name)
    return re.sub(r"^(patch_embed|pos_embed|decoder_pos_embed|decoder_pred)_[av]", r"\1", name)
