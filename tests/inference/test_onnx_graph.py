"""The encoders as ONNX: onnxruntime computes what JAX does, for any batch."""

import sys

import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
import tiny

import cavmae_sync_jax
from cavmae_sync_jax import convert
from cavmae_sync_jax.inference import onnx_graph
from cavmae_sync_jax.utils.errors import UserError


def compared(model, folder):
    """The largest difference of all outputs, for two sizes of batch."""
    worst = 0.0
    for modality, encode in (("audio", model.encode_audio), ("visual", model.encode_image)):
        place = str(folder / f"model.{modality}.onnx")
        onnx.checker.check_model(place, full_check=True)
        session = onnxruntime.InferenceSession(place, providers=["CPUExecutionProvider"])
        assert [each.name for each in session.get_outputs()] == ["global_token", "patch_tokens"]
        for count in (1, 3):
            low, high = (-12, 4) if modality == "audio" else (0, 255)
            shape = count, *model.module.raw_shape(modality)
            raw = np.random.default_rng(count).uniform(low, high, shape).astype(np.float32)
            for found, own in zip(session.run(None, {modality: raw}), encode(raw), strict=True):
                assert found.shape == own.shape and np.ptp(own) > 0.1
                worst = max(worst, float(np.abs(found - np.asarray(own)).max()))
    return worst


def test_the_program_writes_both_encoders(workdir, model, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["convert", str(workdir), str(tmp_path / "model.onnx")])
    convert.main()
    assert compared(model, tmp_path) < 1e-4
    told = {p.key: p.value for p in onnx.load(tmp_path / "model.audio.onnx").metadata_props}
    assert told["checkpoint"] == str(workdir) and told["step"] == "0"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "model.audio.onnx",
        "model.visual.onnx",
    ]
    with pytest.raises(UserError, match=r"model.audio.onnx exists already"):
        onnx_graph.write(model, tmp_path / "model.onnx")


def test_a_model_without_a_global_token(tmp_path):
    folder = tiny.write_model(tmp_path / "model", model__global_token=False, model__registers=0)
    model = cavmae_sync_jax.load(str(folder))
    onnx_graph.write(model, tmp_path / "model.onnx")
    assert compared(model, tmp_path) < 1e-4


def test_an_operation_that_is_not_known():
    with pytest.raises(UserError, match="can't be written as ONNX: the operation sort is unknown"):
        onnx_graph.model_of(lambda raw: (jnp.sort(raw),), (3,), "x", ["y"])


def test_without_onnx(workdir, monkeypatch):
    monkeypatch.delattr("cavmae_sync_jax.inference.onnx_graph")
    monkeypatch.setitem(sys.modules, "cavmae_sync_jax.inference.onnx_graph", None)
    with pytest.raises(UserError, match=r"x.onnx needs onnx: pip install"):
        convert.export_onnx(str(workdir), "x.onnx")
