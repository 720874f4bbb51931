"""Positions of converted weights: kept, interpolated, or rebuilt."""

import jax.numpy as jnp
import numpy as np
import pytest
from small_weights import HEADS, SMALL, make

from benchmarks.inference import convert as sizes
from cavmae_sync_jax import convert
from cavmae_sync_jax.checkpoints.pretrained import load
from cavmae_sync_jax.models.patches import Grid, resize_positions, sincos_positions
from cavmae_sync_jax.torch_compat import torch_io


@pytest.fixture(scope="module")
def small():
    return sizes.random_state(**SMALL)


@pytest.mark.release
def test_learned_positions_are_kept_and_interpolated(small, tmp_path, capsys):
    state = dict(small)
    rng = np.random.default_rng(0)
    state["pos_embed_v"] = state["pos_embed_v"] + rng.normal(size=(1, 4, 16)).astype(np.float32)
    source = make(tmp_path / "learned.pth", state)
    convert.import_weights(source, str(tmp_path / "same"), HEADS)
    ours = load(str(tmp_path / "same"))
    assert ours.config.model.learned_positions
    np.testing.assert_array_equal(ours.params["encoders_visual"]["positions"], state["pos_embed_v"])
    convert.export_weights(str(tmp_path / "same"), str(tmp_path / "back.pth"))
    back = torch_io.read(str(tmp_path / "back.pth"))
    assert all(np.array_equal(back[name], array) for name, array in state.items())

    larger = [*HEADS, "--config.model.image_size=64", "--config.model.audio_rows=192"]
    convert.import_weights(source, str(tmp_path / "larger"), larger)
    assert (
        "visual positions: interpolated for 4 x 4 patches (were 2 x 2)" in capsys.readouterr().err
    )
    grown = load(str(tmp_path / "larger"))
    expected = resize_positions(jnp.asarray(state["pos_embed_v"]), Grid(2, 2), Grid(4, 4))
    np.testing.assert_array_equal(grown.params["encoders_visual"]["positions"], expected)
    assert grown.params["decoder"]["positions_audio"].shape == (1, 8 * 12, 8)
    assert grown.encode_image(np.zeros((1, 64, 64, 3), np.uint8)).patch_tokens.shape == (1, 16, 16)


def test_resized_positions_by_hand():
    # A plane that rises along the columns only keeps rising along them only.
    plane = np.tile(np.arange(4.0, dtype=np.float32), 2)[None, :, None]
    resized = np.asarray(resize_positions(jnp.asarray(plane), Grid(2, 4), Grid(3, 8)))
    rows = resized.reshape(3, 8)
    np.testing.assert_allclose(rows[0], rows[2], atol=1e-6)
    assert (np.diff(rows[1]) > 0).all() and rows.mean() == pytest.approx(1.5, abs=1e-5)


def test_fixed_positions_are_rebuilt_for_another_length(small, tmp_path, capsys):
    source = make(tmp_path / "fixed.pth", small)
    convert.import_weights(
        source, str(tmp_path / "long"), [*HEADS, "--config.model.audio_rows=192"]
    )
    assert "audio positions: rebuilt for 8 x 12 patches (were 8 x 6)" in capsys.readouterr().err
    convert.export_weights(str(tmp_path / "long"), str(tmp_path / "back.safetensors"))
    back = torch_io.read(str(tmp_path / "back.safetensors"))
    np.testing.assert_array_equal(back["pos_embed_a"][0], sincos_positions(Grid(8, 12), 16))
    np.testing.assert_array_equal(back["pos_embed_v"], small["pos_embed_v"])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_positions_are_still_fixed_ones(small, tmp_path, dtype):
    import torch

    half = {k: torch.from_numpy(np.array(v)).to(getattr(torch, dtype)) for k, v in small.items()}
    torch.save(half, tmp_path / "half.pth")
    convert.import_weights(str(tmp_path / "half.pth"), str(tmp_path / "ours"), HEADS)
    assert not load(str(tmp_path / "ours")).config.model.learned_positions


def test_another_number_of_mel_bands_is_told_by_the_positions(tmp_path):
    state = sizes.random_state(**SMALL | {"audio_bins": 64})
    convert.import_weights(make(tmp_path / "bins.pth", state), str(tmp_path / "ours"), HEADS)
    model = load(str(tmp_path / "ours")).config.model
    assert (model.audio_bins, model.audio_rows, model.learned_positions) == (64, 96, False)
