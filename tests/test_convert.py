"""Conversions by the command line and what comes of them: every kind of file, both ways."""

import os
import re
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
from ml_collections import ConfigDict
from small_weights import HEADS, SMALL, make, refused

from benchmarks.inference import convert as sizes
from cavmae_sync_jax import convert, train
from cavmae_sync_jax.checkpoints import manager
from cavmae_sync_jax.checkpoints.pretrained import load
from cavmae_sync_jax.data import loader
from cavmae_sync_jax.models import cavmae_sync
from cavmae_sync_jax.models.patches import Grid, sincos_positions
from cavmae_sync_jax.models.probe_head import ProbeHead
from cavmae_sync_jax.torch_compat import detect, torch_io
from cavmae_sync_jax.utils.errors import UserError
from configs import pretrain


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


def test_a_linear_probe_goes_there_and_back(tmp_path):
    settings = {"width": 16, "depth": 0, "heads": 4, "mlp_ratio": 4.0, "classes": 3}
    params = ProbeHead(**settings).init_params(jax.random.key(0))
    manager.write(tmp_path / "ours", {"params": params}, ConfigDict({"head": settings}))
    assert convert.export_weights(str(tmp_path / "ours"), str(tmp_path / "linear.pth")) == 4
    convert.import_weights(str(tmp_path / "linear.pth"), str(tmp_path / "again"))
    with manager.opened(tmp_path / "again") as stored:
        assert ProbeHead(**stored.config.head).depth == 0 and stored.config.head.classes == 3
        jax.tree.map(np.testing.assert_array_equal, stored.weights(), params)


@pytest.mark.parametrize(
    "settings",
    [
        {"model__registers_in_joint": True, "data__clip_rows": 512},
        {"model__learned_positions": True, "model__audio_bins": 64},
        {"model__mlp_ratio": 3.3, "model__decoder_width": 64},  # 52 / 16 is 3.25
    ],
    ids=["joint registers", "mel bands", "ratio"],
)
def test_a_file_read_back_with_the_flags_that_were_said_is_the_same_model(
    tmp_path, monkeypatch, capsys, settings
):
    monkeypatch.setitem(detect.HEADS, 16, 4)  # widths that are known with other heads
    monkeypatch.setitem(detect.DECODER_HEADS, 8, 4)
    config = tiny.config(model__remat="none", **settings)
    params = cavmae_sync.from_config(config.model).init_params(jax.random.key(0))
    if config.model.learned_positions:
        params["encoders_audio"]["positions"] += 1
    manager.write(tmp_path / "ours", {"params": params}, config)
    convert.export_weights(str(tmp_path / "ours"), str(tmp_path / "file.pth"))
    flags = re.findall(r"--config\.\S+", capsys.readouterr().err)
    convert.import_weights(str(tmp_path / "file.pth"), str(tmp_path / "again"), flags)
    ours, again = (load(str(tmp_path / name)) for name in ("ours", "again"))
    assert again.module == ours.module
    assert loader.PairSpec.of(again.config) == loader.PairSpec.of(ours.config)


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
    told = refused(source, tmp_path / "ours.onnx")
    assert "ours.onnx is made of a folder: convert" in told and "to a folder first" in told


def told(monkeypatch, capsys, *arguments):
    """What the program refuses with."""
    monkeypatch.setattr(sys, "argv", ["convert", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        convert.main()
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("destination", ["sync.onnx", "hf://me/sync", "hf://me/sync.pth"])
def test_a_prefix_that_no_file_would_have_is_refused(tmp_path, monkeypatch, capsys, destination):
    monkeypatch.chdir(tmp_path)
    source, prefix = tmp_path / "model", "--module_prefix"
    source.mkdir()
    said = told(monkeypatch, capsys, source, destination, prefix)
    assert "is for writing a file of PyTorch; leave it out" in said
    assert "is for writing" in told(monkeypatch, capsys, "hf://me/sync", "pulled", prefix)
    # With a place for it, the program looks into the folder.
    assert "holds no checkpoints" in told(monkeypatch, capsys, source, "sync.pth", prefix)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("name", ["hf://me/sync.pth", "hf://me/sync.onnx"])
def test_a_repository_is_no_file_whatever_its_name(tmp_path, monkeypatch, name):
    asked = []
    monkeypatch.setattr(convert, "copy_weights", lambda *given: asked.append(given))
    monkeypatch.setattr(sys, "argv", ["convert", str(tmp_path), name])
    convert.main()
    assert asked == [(str(tmp_path), name)]


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
