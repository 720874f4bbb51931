"""The authors' PyTorch names and layouts ↔ ours: one table, used in both directions.

A row holds a PyTorch name, the place of the same weights in our parameter tree, and how the layout
differs. `{i}` in a name stands for the layers that we keep stacked in one array. A tensor that no
row names has no place in our tree. Examples are the norms that a PyTorch block holds but never
uses, and fixed sin-cos positions.
"""

import re
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any, NamedTuple

import flax.traverse_util
import numpy as np

Arrays = list[np.ndarray]
POSITIONS = re.compile(r"(decoder_)?pos_embed_[av]")
UNUSED_NORMS = re.compile(
    r"(blocks_[av]|decoder_blocks|classifier_layers)\.\d+\.norm[12]_[av]\.(weight|bias)"
)


class Layout(NamedTuple):
    """How one PyTorch array becomes ours (several, where we keep them apart), and back."""

    ours: Callable[[np.ndarray], Arrays]
    theirs: Callable[[Arrays, int], np.ndarray]


class Row(NamedTuple):
    """One line of the table."""

    name: str
    paths: tuple[str, ...]
    layout: Layout


def _kernel(weight: np.ndarray) -> Arrays:
    return [weight.transpose(2, 3, 1, 0).reshape(-1, weight.shape[0])]


def _conv(arrays: Arrays, channels: int) -> np.ndarray:
    pixels, width = arrays[0].shape
    patch = int((pixels // channels) ** 0.5)
    return arrays[0].reshape(patch, patch, channels, width).transpose(3, 2, 0, 1)


SAME = Layout(lambda a: [a], lambda arrays, _: arrays[0])
LINEAR = Layout(lambda a: [a.T], lambda arrays, _: arrays[0].T)
CONV = Layout(_kernel, _conv)
HALVES = Layout(lambda a: list(np.split(a[None], 2, axis=1)), lambda a, _: np.concatenate(a, 1)[0])


def _pair(name: str, path: str, layout: Layout = LINEAR) -> Iterator[Row]:
    weight = "scale" if layout is SAME else "kernel"
    yield Row(f"{name}.weight", (f"{path}/{weight}",), layout)
    yield Row(f"{name}.bias", (f"{path}/bias",), SAME)


def _blocks(name: str, path: str, norms: Mapping[str, str]) -> Iterator[Row]:
    name, path = f"{name}.{{i}}", f"{path}/blocks"
    for theirs, ours in norms.items():
        yield from _pair(f"{name}.norm1{theirs}", f"{path}/attention_norm{ours}", SAME)
        yield from _pair(f"{name}.norm2{theirs}", f"{path}/mlp_norm{ours}", SAME)
    yield from _pair(f"{name}.attn.qkv", f"{path}/attention/qkv")
    yield from _pair(f"{name}.attn.proj", f"{path}/attention/projection")
    yield from _pair(f"{name}.mlp.fc1", f"{path}/mlp/hidden")
    yield from _pair(f"{name}.mlp.fc2", f"{path}/mlp/output")


def _table() -> Iterator[Row]:
    for short, modality in (("a", "audio"), ("v", "visual")):
        encoder = f"encoders_{modality}"
        yield Row(f"modality_{short}", (f"{encoder}/modality",), SAME)
        yield Row(f"pos_embed_{short}", (f"{encoder}/positions",), SAME)
        yield Row(f"decoder_pos_embed_{short}", (f"decoder/positions_{modality}",), SAME)
        yield Row(f"cls_token_{short}", (f"{encoder}/global_token",), SAME)
        yield from _pair(f"patch_embed_{short}.proj", f"{encoder}/patch_projection", CONV)
        yield from _blocks(f"blocks_{short}", f"{encoder}/stack", {"": ""})
        yield from _pair(f"norm_{short}", f"norms_{modality}", SAME)
        yield Row(f"decoder_modality_{short}", (f"decoder/modality_{modality}",), SAME)
        yield from _pair(f"decoder_pred_{short}", f"decoder/head_{modality}")
    registers = tuple(f"encoders_{modality}/registers" for modality in ("audio", "visual"))
    yield Row("register_tokens", registers, HALVES)
    yield from _blocks("blocks_u", "joint", {"": "_both", "_a": "_audio", "_v": "_visual"})
    yield from _pair("norm", "norms_both", SAME)
    yield from _pair("decoder_embed", "decoder/embed")
    yield Row("mask_token", ("decoder/mask_token",), SAME)
    yield from _blocks("decoder_blocks", "decoder/stack", {"": ""})
    yield from _pair("decoder_norm", "decoder/norm", SAME)
    # The head of a fine-tuned model.
    yield from _pair("mlp_head.0", "head/norm", SAME)
    yield from _pair("mlp_head.1", "head/classifier")
    # The probe's head, a tree of its own.
    yield Row("cls_cls_token", ("cls_token",), SAME)
    yield from _blocks("classifier_layers", "stack", {"": ""})
    yield from _pair("classifier_norm", "norm", SAME)
    yield from _pair("classifier_head", "classifier")


TABLE = tuple(_table())


def take_params(state: MutableMapping[str, np.ndarray]) -> dict[str, Any]:
    """The parameter tree of a PyTorch state dict (names without `module.`).

    An array that has a place in the tree is taken out of `state`, so that large arrays can be freed
    one by one. What is left in `state` has no place.
    """
    flat = {}
    for row in TABLE:
        pattern = re.compile(re.escape(row.name).replace(r"\{i\}", r"(\d+)"))
        layers = {m[1] if m.groups() else None: n for n in state if (m := pattern.fullmatch(n))}
        if not layers:
            continue
        ordered = [layers[key] for key in sorted(layers, key=lambda key: int(key or 0))]
        parts = zip(
            *(row.layout.ours(np.asarray(state.pop(name))) for name in ordered), strict=True
        )
        for path, arrays in zip(row.paths, parts, strict=True):
            flat[path] = np.stack(arrays) if "{i}" in row.name else np.ascontiguousarray(arrays[0])
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def state_dict(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The PyTorch state dict of a parameter tree, with the authors' names; views where possible."""
    flat = flax.traverse_util.flatten_dict(dict(params), sep="/")
    state = {}
    for row in TABLE:
        if row.paths[0] not in flat:
            continue
        arrays = [np.asarray(flat[path]) for path in row.paths]
        channels = 1 if row.name.startswith("patch_embed_a") else 3
        if "{i}" not in row.name:
            state[row.name] = row.layout.theirs(arrays, channels)
            continue
        for i, layer in enumerate(zip(*arrays, strict=True)):
            state[row.name.format(i=i)] = row.layout.theirs(list(layer), channels)
    return state


def unused_norms(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The norms that the authors' class has besides those of `state`, as it initialises them."""
    norms = {}
    for name, array in state.items():
        if match := re.fullmatch(r"(\w+\.\d+\.norm[12])\.(weight|bias)", name):
            fill = np.ones_like if match[2] == "weight" else np.zeros_like
            extra = {f"{match[1]}_{short}.{match[2]}" for short in "av"} - set(state)
            norms |= {other: fill(array) for other in sorted(extra)}
    return norms
