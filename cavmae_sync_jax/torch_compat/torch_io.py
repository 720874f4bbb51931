"""PyTorch's files of weights, `.pth` and `.safetensors`, as named NumPy arrays, and back.

Only plain tensors are read from a file. No pickled object is ever built.
"""

import argparse
import importlib
import os
import pathlib
import re
import tempfile
import uuid
import warnings
import zipfile
from collections.abc import Iterator, MutableMapping
from typing import Any

import numpy as np
from etils import epath

from cavmae_sync_jax.utils import buckets, cli
from cavmae_sync_jax.utils.errors import UserError

SAFETENSORS = ".safetensors"
SUFFIXES = (".pth", ".pt", ".bin", SAFETENSORS)
WRAPPERS = ("model", "state_dict", "model_state_dict")
SAFETENSORS_FLOATS = ("F16", "BF16", "F32", "F64")
PREFIX = "module."  # of DataParallel
StateDict = dict[str, np.ndarray]


def check_suffix(path: str) -> None:
    """Refuses the name of a file whose format is unknown.

    Raises:
      UserError: naming the formats.
    """
    if pathlib.Path(path).suffix not in SUFFIXES:
        raise UserError(f"{path} must end in one of {', '.join(SUFFIXES)}")


def read(path: str) -> StateDict:
    """The state dict in a file: float32 arrays by name, without `module.`.

    A dict around it, such as MAE's `{"model": …}`, is opened. Such a dict may keep a training's
    flags in an `argparse.Namespace`. That is the one object besides tensors that is accepted, and
    it is left out.

    Raises:
      UserError: if there is no such file, or it is broken, holds objects besides tensors, or
        values that are not finite.
    """
    check_suffix(path)
    if not epath.Path(path).is_file():
        raise UserError(f"there is no file {path}")
    if buckets.in_bucket(path):
        with tempfile.TemporaryDirectory() as folder:
            copy = os.path.join(folder, os.path.basename(path))
            epath.Path(path).copy(copy)
            return read(copy)
    load = _safetensors if path.endswith(SAFETENSORS) else _torch
    state: StateDict = {}
    for name, array in load(path):
        short = name
        while short.startswith(PREFIX):
            short = short.removeprefix(PREFIX)
        if short in state:
            raise UserError(f"{path} holds {short} twice, with and without {PREFIX!r}")
        array = np.asarray(array, np.float32)
        if not np.isfinite(array).all():
            raise UserError(f"{path} holds values that are not finite in {name}")
        state[short] = array
    return state


def _torch(path: str) -> Iterator[tuple[str, np.ndarray]]:
    torch = _import("torch", path)
    try:
        _check_zip(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file may raise nearly anything in there
        raise UserError(f"{path} can't be read: {_reason(error)}") from error
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path} holds no state dict, but a {type(content).__name__}")
    size = os.path.getsize(path)
    for name in list(content):
        tensor = content.pop(name)  # so that each can be freed when its user is done with it
        if not (isinstance(name, str) and isinstance(tensor, torch.Tensor)):
            raise UserError(f"{path} holds {name!r}, a {type(tensor).__name__}, among its tensors")
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not (plain and tensor.is_floating_point()):
            raise UserError(f"{path} holds {name} as {tensor.dtype}, which is not a plain weight")
        if tensor.numel() * tensor.element_size() > size:
            raise UserError(f"{path} is broken: {name} would be larger than the file")
        yield name, tensor.detach().to(torch.float32).numpy()


def _check_zip(path: str) -> None:
    """Refuses compressed entries, which may be far larger than the file."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("torch.save compresses nothing, but it is compressed")


def _safetensors(path: str) -> Iterator[tuple[str, np.ndarray]]:
    safetensors = _import("safetensors", path)
    try:
        with safetensors.safe_open(path, "np") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                kind = file.get_slice(name).get_dtype()
                if kind not in SAFETENSORS_FLOATS:
                    raise ValueError(f"{name} is stored as {kind}, which is not a plain weight")
                yield name, file.get_tensor(name)
    except (safetensors.SafetensorError, OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} can't be read: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """One line of an error's text; for a refused pickle, what it asked for."""
    text = str(error)
    if asked := re.search(r"(?:GLOBAL|class) (\S+)", text):
        return f"it holds {asked[1]} objects besides tensors, and only tensors are ever loaded"
    if "Weights only load failed" in text:
        return "it is not a PyTorch checkpoint of tensors"
    first = text.strip().split("\n")[0].split(". ")[0][:150]
    return f"it is damaged or no checkpoint ({first or type(error).__name__})"


def write(path: str, state: MutableMapping[str, np.ndarray]) -> None:
    """Writes a state dict in the format of the path's suffix and empties it.

    Raises:
      UserError: if the file exists or can't be written; nothing new is left then.
    """
    check_suffix(path)
    if buckets.in_bucket(path):
        cli.refuse_existing(path)
        with tempfile.TemporaryDirectory() as folder:
            copy = os.path.join(folder, os.path.basename(path))
            write(copy, state)
            epath.Path(copy).copy(path)
        return
    place = pathlib.Path(path)
    cli.make_folder(place.parent)
    partial = place.with_name(f".{place.stem}.{uuid.uuid4().hex[:8]}{place.suffix}")
    try:
        contiguous = {name: np.ascontiguousarray(state.pop(name)) for name in list(state)}
        if place.suffix == SAFETENSORS:
            _import("safetensors.numpy", path).save_file(contiguous, partial)
        else:
            torch = _import("torch", path)
            torch.save({name: torch.from_numpy(a) for name, a in contiguous.items()}, partial)
        cli.refuse_existing(place)
        partial.replace(place)
    except UserError:
        raise
    except Exception as error:  # PyTorch and safetensors wrap what the file system says
        raise UserError(f"{path} can't be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def _import(library: str, path: str) -> Any:
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise UserError(
            f"{path} needs {library}: install it with pip install -e '.[convert]'"
        ) from error
