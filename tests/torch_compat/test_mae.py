"""The weights of MAE and of CAV-MAE as the beginning of a training."""

import json

import numpy as np
import pytest
import tiny
from small_weights import HEADS, SMALL, make, refused

from benchmarks.inference import convert as sizes
from cavmae_sync_jax import convert, train
from cavmae_sync_jax.checkpoints.pretrained import load
from cavmae_sync_jax.models.patches import Grid, sincos_positions
from cavmae_sync_jax.torch_compat import torch_io
from cavmae_sync_jax.utils.errors import UserError


@pytest.fixture(scope="module")
def mae_file(tmp_path_factory):
    state = sizes.mae_state(**SMALL)
    path = tmp_path_factory.mktemp("mae") / "mae.pth"
    import torch

    torch.save({"model": {k: torch.from_numpy(np.array(v)) for k, v in state.items()}}, path)
    return str(path), state


def test_mae_goes_where_the_paper_puts_it(mae_file, tmp_path):
    path, state = mae_file
    counts = convert.import_weights(
        path, str(tmp_path / "mae"), [*HEADS, "--config.model.registers=3"]
    )
    assert counts["tensors"] == len(state)
    back = tmp_path / "back.pth"
    convert.export_weights(str(tmp_path / "mae"), str(back))
    ours = torch_io.read(str(back))
    for layer in range(2):
        for short in "av":
            for part in ("attn.qkv.weight", "norm1.bias", "mlp.fc2.weight"):
                expected = state[f"blocks.{layer}.{part}"]
                np.testing.assert_array_equal(ours[f"blocks_{short}.{layer}.{part}"], expected)
    for suffix in ("", "_a", "_v"):
        for part in ("norm1{}.weight", "norm2{}.bias"):
            expected = state[f"blocks.2.{part.format('')}"]
            np.testing.assert_array_equal(ours[f"blocks_u.0.{part.format(suffix)}"], expected)
        np.testing.assert_array_equal(ours[f"norm{suffix}.weight"], state["norm.weight"])
    np.testing.assert_array_equal(ours["blocks_u.0.mlp.fc1.bias"], state["blocks.2.mlp.fc1.bias"])
    kernel = state["patch_embed.proj.weight"]
    np.testing.assert_array_equal(ours["patch_embed_v.proj.weight"], kernel)
    np.testing.assert_allclose(
        ours["patch_embed_a.proj.weight"][:, 0], kernel[:, 0] + kernel[:, 1] + kernel[:, 2], 1e-6
    )
    np.testing.assert_array_equal(ours["pos_embed_v"], state["pos_embed"][:, 1:])
    assert ours["pos_embed_a"].shape == (1, 8 * 26, 16)  # 4 s, sin-cos
    np.testing.assert_array_equal(ours["decoder_pred_a.weight"], state["decoder_pred.weight"][:256])
    np.testing.assert_array_equal(ours["decoder_pred_v.bias"], state["decoder_pred.bias"])
    np.testing.assert_array_equal(ours["mask_token"], state["mask_token"])
    assert ours["register_tokens"].shape == (6, 16)
    assert 0.6 < ours["register_tokens"].std() < 1.4
    assert 0.01 < ours["cls_token_a"].std() < 0.04 and not np.allclose(ours["cls_token_a"], 0.5)


def test_the_seed_draws_what_mae_lacks(mae_file, tmp_path):
    path, _ = mae_file
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        convert.import_weights(path, str(tmp_path / name), HEADS, seed)
    a, b, c = (load(str(tmp_path / name)).params["encoders_audio"] for name in "abc")
    np.testing.assert_array_equal(a["registers"], b["registers"])
    assert not np.allclose(a["registers"], c["registers"])
    np.testing.assert_array_equal(a["patch_projection"]["kernel"], c["patch_projection"]["kernel"])


def test_cav_mae_gets_the_tokens_that_are_asked_for(tmp_path, capsys):
    state = sizes.random_state(**SMALL | {"registers": 0, "global_token": False})
    source = make(tmp_path / "before.pth", state)
    tokens = ["--config.model.global_token=True", "--config.model.registers=3"]
    convert.import_weights(source, str(tmp_path / "ours"), [*HEADS, *tokens])
    encoder = load(str(tmp_path / "ours")).params["encoders_visual"]
    assert encoder["registers"].shape == (1, 3, 16) and encoder["global_token"].any()
    assert "drawn from seed 0: encoders_audio/global_token, enc" in capsys.readouterr().err


def test_mae_without_decoder_gets_one(tmp_path, capsys):
    source = make(tmp_path / "encoder.safetensors", sizes.mae_state(decoder=False, **SMALL))
    overrides = ["--config.model.heads=2", "--config.model.decoder_width=8"]
    convert.import_weights(
        source, str(tmp_path / "ours"), [*overrides, "--config.model.decoder_heads=2"]
    )
    params = load(str(tmp_path / "ours")).params
    assert params["decoder"]["stack"]["blocks"]["mlp"]["hidden"]["kernel"].shape == (8, 8, 32)
    told = capsys.readouterr().err
    assert "a MAE ViT without decoder" in told and "drawn from seed 0: decoder/embed" in told


def init_from(dataset_dir, directory, **overrides):
    settings = {"init_from": str(directory), "model__decoder_depth": 1, "model__audio_rows": 416}
    settings |= {"model__decoder_heads": 2, "learning_rate": 1e-3, "log_every": 1, "epochs": 8.0}
    return tiny.config(dataset_dir, **(settings | overrides))


@pytest.mark.release
def test_training_begins_with_mae_and_learns(mae_file, dataset_dir, tmp_path, capsys):
    path, _ = mae_file
    convert.import_weights(path, str(tmp_path / "mae"), [*HEADS, "--config.model.registers=2"])
    config = init_from(dataset_dir, tmp_path / "mae", model__audio_rows=96)
    train.train_and_evaluate(config, tmp_path / "run")
    told = capsys.readouterr().err
    assert "audio positions: rebuilt for 8 x 6 patches (were 8 x 26)" in told
    assert f"beginning with the weights of {tmp_path / 'mae'}, step 0" in told
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    losses = [line["loss"] for line in lines if line["split"] == "train"]
    assert np.isfinite(losses).all() and np.mean(losses[-5:]) < 0.9 * losses[0]
    fresh = init_from(dataset_dir, "", model__audio_rows=96, epochs=0.4)
    train.train_and_evaluate(fresh, tmp_path / "fresh")
    first = json.loads((tmp_path / "fresh" / "metrics.jsonl").open().readline())
    assert first["loss"] != pytest.approx(losses[0], rel=0.01)  # the weights were taken
    # Resumed, the run goes on with its own weights and needs the first ones no more.
    (tmp_path / "mae").rename(tmp_path / "gone")
    train.train_and_evaluate(config, tmp_path / "run")


def test_weights_that_do_not_fit_a_training_are_told_before_it_begins(
    mae_file, dataset_dir, tmp_path
):
    path, _ = mae_file
    convert.import_weights(path, str(tmp_path / "mae"), [*HEADS, "--config.model.registers=2"])

    def message(**overrides):
        with pytest.raises(UserError) as error:
            train.train_and_evaluate(
                init_from(dataset_dir, tmp_path / "mae", **overrides), tmp_path / "run"
            )
        assert not (tmp_path / "run").exists()
        return str(error.value)

    assert "config.model.heads=4, but" in message(model__heads=4)
    told = message(model__registers=0, model__depth=1, model__decoder_width=4)
    assert "unexpected: params/encoders_audio/registers, params/encoders_visual/registers" in told
    assert "params/decoder/mask_token [1, 1, 8] instead of [1, 1, 4]" in told
    assert "params/encoders_audio/stack/blocks/mlp/output/bias [2, 16] instead of [1, 16]" in told
    assert "holds no checkpoints" in message(init_from=str(tmp_path / "nothing"))


def test_what_mae_misses_is_told_by_its_own_names(tmp_path):
    state = sizes.mae_state(**SMALL)
    del state["blocks.1.norm1.weight"], state["blocks.2.norm2.bias"]
    state["head.weight"] = np.ones((10, 16), np.float32)
    told = refused(make(tmp_path / "mae.pth", state), tmp_path / "ours")
    assert "missing: blocks.1.norm1.weight, blocks.2.norm2.bias\n" in told + "\n"
    assert "unexpected: head.weight" in told


@pytest.mark.parametrize(
    ("name", "shape"), [("pos_embed", (5,)), ("decoder_pred.bias", ()), ("blocks.x.foo", (1,))]
)
def test_absurd_shapes_of_mae_are_told(tmp_path, name, shape):
    state = {**sizes.mae_state(**SMALL), name: np.ones(shape, np.float32)}
    assert "odd.pth does not" in refused(make(tmp_path / "odd.pth", state), tmp_path / "ours")


def test_learned_mae_positions_leave_the_audios_sin_cos(tmp_path):
    state = dict(sizes.mae_state(**SMALL))
    state["pos_embed"] = state["pos_embed"] + 1
    longer = [*HEADS, "--config.model.audio_rows=1024"]
    convert.import_weights(make(tmp_path / "mae.pth", state), str(tmp_path / "ours"), longer)
    positions = load(str(tmp_path / "ours")).params["encoders_audio"]["positions"]
    np.testing.assert_array_equal(positions[0], sincos_positions(Grid(8, 64), 16))
