"""Conversions by the command line and what comes of them: every kind of file, both ways."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from benchmarks.inference import convert as sizes
from cavmae_sync_jax import convert, train
from cavmae_sync_jax.checkpoints import manager
from cavmae_sync_jax.checkpoints.pretrained import load
from cavmae_sync_jax.models import cavmae_sync
from cavmae_sync_jax.models.patches import Grid, resize_positions, sincos_positions
from cavmae_sync_jax.models.probe_head import ProbeHead
from cavmae_sync_jax.torch_compat import detect, torch_io
from cavmae_sync_jax.utils.errors import UserError
from configs import pretrain

# Sizes that convert in no time; two heads because no width of ViT tells them.
SMALL = {
    "image_size": 32,
    "audio_rows": 96,
    "width": 16,
    "depth": 2,
    "heads": 2,
    "decoder_width": 8,
    "decoder_depth": 1,
    "decoder_heads": 2,
    "registers": 2,
}
HEADS = ["--config.model.heads=2", "--config.model.decoder_heads=2"]


def make(path, state):
    torch_io.write(str(path), dict(state))
    return str(path)


@pytest.fixture(scope="module")
def small():
    return sizes.random_state(**SMALL)


def convert_by_command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "cavmae_sync_jax.convert", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
    )


def refused(source, destination, overrides=HEADS):
    """The message of a refusal, after which nothing is left at the destination or beside it."""
    with pytest.raises(UserError) as error:
        convert.import_weights(str(source), str(destination), overrides)
    assert not list(destination.parent.glob(f"*{destination.name}*"))
    return str(error.value)


def test_what_shapes_do_not_tell_is_the_recipe():
    assert detect.RELEASED["model"] == pretrain.get_config().model.to_dict()
    data = pretrain.get_config().data
    assert detect.RELEASED["data"] == {key: data[key] for key in detect.RELEASED["data"]}


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors"])
def test_there_and_back_is_bit_exact(small, tmp_path, suffix):
    # Norms that nobody uses and positions are random or off by a bit, and come back so.
    state = dict(small) | {"pos_embed_a": small["pos_embed_a"] + np.float32(1e-6)}
    source = make(tmp_path / f"file{suffix}", {f"module.{k}": v for k, v in state.items()})
    counts = convert.import_weights(source, str(tmp_path / "ours"), HEADS)
    assert counts["tensors"] == len(state)
    assert convert.export_weights(str(tmp_path / "ours"), str(tmp_path / f"back{suffix}")) == len(
        state
    )
    back = torch_io.read(str(tmp_path / f"back{suffix}"))
    assert back.keys() == state.keys()
    for name, array in state.items():
        assert back[name].shape == array.shape
        np.testing.assert_array_equal(back[name], array, err_msg=name)
    pretrained = load(str(tmp_path / "ours"))
    assert {key: pretrained.config.model[key] for key in SMALL} == SMALL


@pytest.mark.release
def test_a_trained_model_becomes_a_file_of_the_authors_names(dataset_dir, tmp_path, small):
    train.train_and_evaluate(tiny.config(dataset_dir, epochs=1.0), tmp_path / "run")
    destination = tmp_path / "new" / "file.pth"
    convert.export_weights(str(tmp_path / "run"), str(destination), module_prefix=True)
    import torch

    stored = torch.load(destination, weights_only=True)
    assert {name.removeprefix("module.") for name in stored} == {
        name for name in small if not name.startswith("decoder_blocks.1")
    }
    assert all(tensor.is_contiguous() for tensor in stored.values())
    assert (stored["module.blocks_a.1.norm2_v.weight"] == 1).all()
    grid, width = Grid(8, 6), stored["module.pos_embed_a"].shape[-1]
    np.testing.assert_array_equal(stored["module.pos_embed_a"][0], sincos_positions(grid, width))
    convert.import_weights(str(destination), str(tmp_path / "again"), HEADS)
    ours, again = (load(str(tmp_path / name)) for name in ("run", "again"))
    jax.tree.map(np.testing.assert_array_equal, ours.params, again.params)
    fbank = np.random.default_rng(0).normal(-5, 4, (2, 96, 128)).astype(np.float32)
    np.testing.assert_array_equal(ours.encode_audio(fbank)[0], again.encode_audio(fbank)[0])


def kill_in_the_middle(source, destination):
    """Kills a conversion while it writes: there is no destination then."""
    command = [sys.executable, "-m", "cavmae_sync_jax.convert", str(source), str(destination)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not list(destination.parent.glob(f".{destination.name}.*")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not destination.exists()
    (partial,) = destination.parent.glob(f".{destination.name}.*")
    shutil.rmtree(partial)


@pytest.mark.parametrize(
    ("overrides", "tensors", "values"),
    [({}, 650, 190.661e6), (sizes.BEFORE_SYNC, 647, 191.036e6)],
)
def test_the_released_sizes_are_counted(overrides, tensors, values):
    state = sizes.random_state(**overrides)
    assert len(state) == tensors
    assert sum(array.size for array in state.values()) == pytest.approx(values, abs=500)


@pytest.mark.release
def test_the_released_size_converts_with_nothing_left_over(tmp_path):
    name, state = "sync.pth", sizes.random_state()
    probe = state["blocks_u.0.norm1_v.weight"].copy(), state["blocks_v.7.attn.qkv.weight"].copy()
    torch_io.write(str(tmp_path / name), state)
    kill_in_the_middle(tmp_path / name, tmp_path / "ours")
    done = convert_by_command(tmp_path / name, tmp_path / "ours")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "ours"])
    assert "650 tensors, 190.661 M values" in done.stderr
    with manager.opened(tmp_path / "ours") as stored:
        assert stored.config.model.to_dict() == detect.RELEASED["model"]
        assert stored.config.data.num_frames == 16
        params = stored.arrays("params")["params"]
    module = cavmae_sync.from_config(pretrain.get_config().model)
    expected = jax.eval_shape(module.init_params, jax.random.key(0))
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda leaf: leaf.shape, expected)
    norms = params["joint"]["blocks"]["attention_norm_visual"]["scale"]
    np.testing.assert_array_equal(norms[0], probe[0])
    qkv = params["encoders_visual"]["stack"]["blocks"]["attention"]["qkv"]["kernel"]
    np.testing.assert_array_equal(qkv[7].T, probe[1])


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


def test_all_that_does_not_fit_is_told_at_once(small, tmp_path):
    state = dict(small)
    for name in ("blocks_a.0.attn.qkv.weight", "blocks_a.1.attn.qkv.weight", "decoder_norm.bias"):
        del state[name]
    state["norm.weight"] = np.ones(17, np.float32)
    state["mlp_head.0.weight"] = state["blocks_v.2.norm1.extra"] = np.ones(3, np.float32)
    state["blocks_v.0.adapters.1.weight"] = state["foo{bar}"] = np.ones(3, np.float32)
    source = make(tmp_path / "wrong.pth", state)
    lines = refused(source, tmp_path / "ours").splitlines()
    assert lines[0] == f"{source} does not hold CAV-MAE Sync of its sizes:"
    missing, unexpected, shaped = sorted(line.strip() for line in lines[1:])
    assert missing.startswith("missing: ")
    assert "blocks_a.{0–1}.attn.qkv.weight" in missing and "decoder_norm.bias" in missing
    for name in ("mlp_head.0.weight", "blocks_v.2.norm1.extra", "foo{bar}"):
        assert name in unexpected
    assert "blocks_v.0.adapters.1.weight" in unexpected
    assert shaped == "wrongly shaped: norm.weight [17] instead of [16]"


def test_what_mae_misses_is_told_by_its_own_names(tmp_path):
    state = sizes.mae_state(**SMALL)
    del state["blocks.1.norm1.weight"], state["blocks.2.norm2.bias"]
    state["head.weight"] = np.ones((10, 16), np.float32)
    told = refused(make(tmp_path / "mae.pth", state), tmp_path / "ours")
    assert "missing: blocks.1.norm1.weight, blocks.2.norm2.bias\n" in told + "\n"
    assert "unexpected: head.weight" in told


def test_heads_are_asked_for_where_no_width_tells_them(small, tmp_path):
    told = refused(make(tmp_path / "small.pth", small), tmp_path / "ours", [])
    assert "give --config.model.decoder_heads=N, --config.model.heads=N" in told


def test_the_probe_head(tmp_path):
    golden = np.load(os.path.join(os.path.dirname(__file__), "golden", "probe_head.npz"))
    state = {key[6:]: golden[key] for key in golden if key.startswith("state/")}
    source = make(tmp_path / "head.pth", {f"module.{key}": state[key] for key in state})
    assert "--config.head.heads=N" in refused(source, tmp_path / "ours", [])
    convert.import_weights(source, str(tmp_path / "ours"), ["--config.head.heads=4"])
    with manager.opened(tmp_path / "ours") as stored:
        params, config = stored.arrays("params")["params"], stored.config
    features = np.concatenate([golden["global_a"], golden["global_v"]], axis=-1)
    logits = ProbeHead(**config.head).apply({"params": params}, jnp.asarray(features))
    np.testing.assert_allclose(logits, golden["logits"], atol=1e-5)
    convert.export_weights(str(tmp_path / "ours"), str(tmp_path / "back.pth"))
    back = torch_io.read(str(tmp_path / "back.pth"))
    assert back.keys() == state.keys()
    assert all(np.array_equal(back[name], state[name]) for name in state)
    with pytest.raises(UserError, match="holds a probe's head, not a model"):
        load(str(tmp_path / "ours"))


def test_a_failed_write_leaves_nothing(small, tmp_path, monkeypatch):
    source = make(tmp_path / "small.pth", small)

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(manager.Checkpoints, "save", fail)
    with pytest.raises(UserError, match=r"ours can.t be written: .*No space left"):
        convert.import_weights(source, str(tmp_path / "ours"), HEADS)
    assert [path.name for path in tmp_path.iterdir()] == ["small.pth"]
    monkeypatch.undo()
    convert.import_weights(source, str(tmp_path / "ours"), HEADS)
    with pytest.raises(UserError, match="ours exists already"):
        convert.import_weights(source, str(tmp_path / "ours"), HEADS)
    with pytest.raises(UserError, match="can't be made"):
        convert.export_weights(str(tmp_path / "ours"), str(tmp_path / "small.pth" / "x.pth"))
    (tmp_path / "file.pth").write_text("mine")
    with pytest.raises(UserError, match=r"file\.pth exists already"):
        convert.export_weights(str(tmp_path / "ours"), str(tmp_path / "file.pth"))
    assert (tmp_path / "file.pth").read_text() == "mine"


@pytest.mark.release
def test_a_full_disk_is_one_sentence(small, tmp_path):
    source = make(tmp_path / "small.pth", small)
    convert.import_weights(source, str(tmp_path / "ours"), HEADS)
    limited = (
        "import resource, sys; from cavmae_sync_jax import convert;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); convert.main()"
    )
    before = sorted(path.name for path in tmp_path.iterdir())
    for arguments in ((source, "new", *HEADS), ("ours", "new.pth"), ("ours", "new.safetensors")):
        done = subprocess.run(
            [sys.executable, "-c", limited, *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 2, done.stderr
        assert f"{arguments[1]} can't be written" in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
        assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.release
def test_of_two_conversions_at_once_one_wins(small, tmp_path):
    source = make(tmp_path / "small.pth", small)
    command = [sys.executable, "-m", "cavmae_sync_jax.convert", source, str(tmp_path / "ours")]
    both = [
        subprocess.Popen([*command, *HEADS], stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    told = [process.communicate()[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], told
    assert "Traceback" not in "".join(told)
    assert load(str(tmp_path / "ours")).config.model.width == 16
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "small.pth"]


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


def test_patches_that_do_not_divide_the_audio_are_told_with_the_file(tmp_path):
    state = dict(sizes.mae_state(**SMALL))
    state["patch_embed.proj.weight"] = np.ones((16, 3, 14, 14), np.float32)
    told = refused(make(tmp_path / "h14.pth", state), tmp_path / "ours")
    assert "h14.pth does not give a model of ours: config.model.audio_bins=128 must be" in told


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("blocks_v.999999999.mlp.fc1.weight", (3,)),
        (f"blocks_v.{'9' * 5000}.mlp.fc1.weight", (3,)),
        ("blocks_v.0.mlp.fc1.weight", (0, 16)),
        ("patch_embed_a.proj.weight", (16, 1, 500, 500)),
        ("pos_embed_a", (1, 4, 16)),
        ("pos_embed_v", ()),
        ("decoder_embed.weight", (0,)),
        ("register_tokens", (3, 16)),
    ],
    ids=lambda value: str(value)[:30],
)
def test_absurd_shapes_are_told(small, tmp_path, name, shape):
    source = make(tmp_path / "odd.pth", {**small, name: np.ones(shape, np.float32)})
    assert "odd.pth does not" in refused(source, tmp_path / "ours")


@pytest.mark.parametrize(
    ("name", "shape"), [("pos_embed", (5,)), ("decoder_pred.bias", ()), ("blocks.x.foo", (1,))]
)
def test_absurd_shapes_of_mae_are_told(tmp_path, name, shape):
    state = {**sizes.mae_state(**SMALL), name: np.ones(shape, np.float32)}
    assert "odd.pth does not" in refused(make(tmp_path / "odd.pth", state), tmp_path / "ours")


def test_settings_that_weights_can_not_follow_are_refused(small, tmp_path):
    state = {**small, "pos_embed_v": small["pos_embed_v"] + 1}
    source = make(tmp_path / "learned.pth", state)
    drop = [*HEADS, "--config.model.learned_positions=False"]
    assert "are learned, which" in refused(source, tmp_path / "ours", drop)
    none = [*HEADS, "--config.data.num_frames=0"]
    assert "config.data.num_frames=0 must be" in refused(source, tmp_path / "ours", none)
    wide = [*HEADS, "--config.data.window_spread=wide"]
    assert "must be one of clip, padded" in refused(source, tmp_path / "ours", wide)
    with pytest.raises(UserError, match="would be a folder"):
        convert.import_weights(source, str(tmp_path / "ours.pth"), HEADS)


def test_learned_mae_positions_leave_the_audios_sin_cos(tmp_path):
    state = dict(sizes.mae_state(**SMALL))
    state["pos_embed"] = state["pos_embed"] + 1
    longer = [*HEADS, "--config.model.audio_rows=1024"]
    convert.import_weights(make(tmp_path / "mae.pth", state), str(tmp_path / "ours"), longer)
    positions = load(str(tmp_path / "ours")).params["encoders_audio"]["positions"]
    np.testing.assert_array_equal(positions[0], sincos_positions(Grid(8, 64), 16))


def test_older_checkpoints_and_odd_names_load(small, tmp_path):
    convert.import_weights(
        make(tmp_path / "small.pth", small), str(tmp_path / "checkpoints"), HEADS
    )
    model = load(str(tmp_path / "checkpoints"))
    assert load(str(tmp_path / "checkpoints" / "checkpoints")).config == model.config
    older = model.config.copy_and_resolve_references()
    del older.model["learned_positions"]
    manager.write(tmp_path / "older", {"params": model.params}, older)
    assert load(str(tmp_path / "older")).config.model == model.config.model


def test_encode_takes_what_is_like_an_array(small, tmp_path):
    import torch

    convert.import_weights(make(tmp_path / "small.pth", small), str(tmp_path / "ours"), HEADS)
    model = load(str(tmp_path / "ours"))
    image = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    expected = model.encode_image(image).global_token
    for given in (image.tolist(), torch.from_numpy(image), jnp.asarray(image)):
        np.testing.assert_allclose(model.encode_image(given).global_token, expected, atol=1e-6)
    for bad in (image.astype(complex), image.astype(str), [["a"]]):
        with pytest.raises(UserError, match="visual must be real numbers"):
            model.encode_image(bad)


def test_any_batch_size_few_compilations(small, tmp_path, monkeypatch):
    convert.import_weights(make(tmp_path / "small.pth", small), str(tmp_path / "ours"), HEADS)
    model = load(str(tmp_path / "ours"))
    from cavmae_sync_jax.checkpoints import pretrained as checkpoints_pretrained

    monkeypatch.setattr(checkpoints_pretrained, "LARGEST", 8)
    image = np.random.default_rng(0).integers(0, 256, (21, 32, 32, 3), np.uint8)
    before = checkpoints_pretrained._embed._cache_size()
    whole = model.encode_image(image)
    assert whole.global_token.shape == (21, 16) and whole.patch_tokens.shape == (21, 4, 16)
    for count in (1, 2, 3, 5, 8, 9):
        part = model.encode_image(jnp.asarray(image[:count]))
        np.testing.assert_allclose(part.global_token, whole.global_token[:count], atol=1e-5)
        np.testing.assert_allclose(part.patch_tokens, whole.patch_tokens[:count], atol=1e-5)
    assert checkpoints_pretrained._embed._cache_size() - before <= 4  # 1, 2, 4, 8
    with pytest.raises(UserError, match="no visual in a batch"):
        model.encode_image(image[:0])
