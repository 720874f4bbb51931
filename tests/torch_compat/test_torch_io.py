"""Files of weights as users have them: broken, hostile, half-precision, wrapped."""

import argparse
import os
import pathlib
import pickle
import zipfile

import jax  # noqa: F401 (teaches NumPy bfloat16)
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cavmae_sync_jax import convert
from cavmae_sync_jax.torch_compat import torch_io
from cavmae_sync_jax.utils.errors import UserError

WEIGHT = torch.arange(6.0).reshape(2, 3)


class Bomb:
    """Unpickling it would make a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path(self.path),)


class Shell:
    def __reduce__(self):
        return os.system, ("true",)


def saved(path, content, **settings):
    torch.save(content, path, **settings)
    return path


@pytest.mark.parametrize(
    "content",
    [
        {"w": WEIGHT},
        {"model": {"w": WEIGHT}, "epoch": 3},
        {"state_dict": {"module.w": WEIGHT}},
        {"model": {"module.module.w": WEIGHT}, "args": argparse.Namespace(lr=1.0)},
        {"w": torch.nn.Parameter(WEIGHT)},
        {"w": WEIGHT.T.contiguous().T},
    ],
    ids=["plain", "mae", "module", "namespace", "parameter", "strided"],
)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_state_dicts_in_their_wrappings(tmp_path, content, zipped):
    path = saved(tmp_path / "file.pth", content, _use_new_zipfile_serialization=zipped)
    state = torch_io.read(str(path))
    assert list(state) == ["w"] and state["w"].dtype == np.float32
    np.testing.assert_array_equal(state["w"], WEIGHT)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(tmp_path, suffix, dtype):
    path = tmp_path / f"half{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)({"w": WEIGHT.to(dtype)}, path)
    state = torch_io.read(str(path))
    assert state["w"].dtype == np.float32
    np.testing.assert_array_equal(state["w"], WEIGHT)


def compressed(path):
    """A checkpoint whose zip entries are compressed, as a bomb's would be."""
    saved(path, {"w": torch.zeros(10**6)})
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


def truncated(path, share=0.5, **settings):
    saved(path, {"w": torch.ones(1000)}, **settings)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def bits_flipped(path):
    save_file({"w": WEIGHT}, path)
    data = bytearray(path.read_bytes())
    data[3] ^= 0xFF  # of the header's length
    path.write_bytes(data)


def directory_damaged(path):
    saved(path, {"w": WEIGHT})
    data = bytearray(path.read_bytes())
    data[data.rindex(b"PK\x01\x02")] ^= 0xFF
    path.write_bytes(data)


HOSTILE = {
    "empty.pth": (lambda p: p.write_bytes(b""), "damaged or no checkpoint"),
    "empty.safetensors": (lambda p: p.write_bytes(b""), "header too small"),
    "page.pth": (lambda p: p.write_text("<html>404</html>"), "not a PyTorch checkpoint"),
    "page.safetensors": (lambda p: p.write_text("<html>404</html>"), "damaged or no checkpoint"),
    "truncated.pth": (truncated, "damaged or no checkpoint"),
    "late.pt": (lambda p: truncated(p, 0.99), "damaged or no checkpoint"),
    "legacy.bin": (
        lambda p: truncated(p, _use_new_zipfile_serialization=False),
        "damaged or no checkpoint",
    ),
    "flipped.safetensors": (bits_flipped, "damaged or no checkpoint"),
    "shell.pth": (lambda p: saved(p, {"w": Shell()}), r"holds \w+\.system objects besides tensors"),
    "pickle.pth": (lambda p: p.write_bytes(pickle.dumps(Shell())), "can't be read"),
    "directory.pth": (directory_damaged, "damaged or no checkpoint"),
    "meta.pth": (lambda p: saved(p, {"w": WEIGHT.to("meta")}), "not a plain weight"),
    "float8.safetensors": (
        lambda p: save_file({"w": WEIGHT.to(torch.float8_e4m3fn)}, p),
        "w is stored as F8_E4M3, which is not a plain weight",
    ),
    "compressed.pth": (compressed, "torch.save compresses nothing"),
    "expanded.pth": (
        lambda p: saved(p, {"w": torch.ones(1).expand(10**10)}),
        "w would be larger than the file",
    ),
    "list.pth": (lambda p: saved(p, [WEIGHT]), "holds no state dict, but a list"),
    "nothing.pth": (lambda p: saved(p, {}), "holds no state dict"),
    "number.pth": (lambda p: saved(p, {"w": WEIGHT, "epoch": 3}), "holds 'epoch', a int, among"),
    "integer.pth": (lambda p: saved(p, {"w": WEIGHT.long()}), "w as torch.int64"),
    "integer.safetensors": (lambda p: save_file({"w": WEIGHT.long()}, p), "w is stored as I64"),
    "sparse.pth": (lambda p: saved(p, {"w": WEIGHT.to_sparse()}), "not a plain weight"),
    "nan.pth": (lambda p: saved(p, {"w": WEIGHT / 0}), "values that are not finite in w"),
    "twice.pth": (lambda p: saved(p, {"w": WEIGHT, "module.w": WEIGHT}), "holds w twice"),
    "other.pth": (
        lambda p: saved(p, {"fc.weight": WEIGHT}),
        "holds no CAV-MAE Sync, CAV-MAE .* MAE",
    ),
    "weights.npz": (lambda p: np.savez(p, w=WEIGHT), "must end in one of .pth, .pt, .bin"),
    "missing.pth": (lambda p: None, "no file"),
    "folder.pth": (lambda p: p.mkdir(), "no file"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_checkpoint_gets_one_sentence(tmp_path, name):
    make, message = HOSTILE[name]
    make(tmp_path / name)
    with pytest.raises(UserError, match=message) as error:
        convert.import_weights(str(tmp_path / name), str(tmp_path / "ours"))
    assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)
    assert len(str(error.value)) < 300 + len(str(tmp_path))
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_no_pickled_code_ever_runs(tmp_path, zipped):
    path = tmp_path / "bomb.pth"
    saved(path, {"w": Bomb(tmp_path / "boom")}, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="objects besides tensors, and only tensors"):
        torch_io.read(str(path))
    assert not (tmp_path / "boom").exists()


def test_without_pytorch_the_extra_is_named(tmp_path, monkeypatch):
    path = saved(tmp_path / "file.pth", {"w": WEIGHT})
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(UserError, match=r"needs torch: .* -e '\.\[convert\]'"):
        torch_io.read(str(path))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_in_a_bucket(bucket_server, tmp_path, monkeypatch, suffix):
    monkeypatch.chdir(tmp_path)
    place = f"gs://bucket/weights/file{suffix}"
    with bucket_server.pointed_at():
        bucket_server.turn(errors=0, status=0, latency_ms=0)
        with pytest.raises(UserError, match=f"there is no file {place}"):
            torch_io.read(place)
        torch_io.write(place, {"w": WEIGHT.numpy()})
        np.testing.assert_array_equal(torch_io.read(place)["w"], WEIGHT)
        with pytest.raises(UserError, match="exists already"):
            torch_io.write(place, {"w": WEIGHT.numpy()})
    assert list(tmp_path.iterdir()) == []
