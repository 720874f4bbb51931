"""Files of fine-tuned CAV-MAEs, there and back, and what `classify` makes of a file."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict
from PIL import Image

from cavmae_sync_jax import convert, load
from cavmae_sync_jax.models import classifier
from cavmae_sync_jax.torch_compat import detect, torch_io
from cavmae_sync_jax.utils.errors import UserError

CSV = "index,mid,display_name\n1,/m/b,Bark\n0,/m/a,Bark\n2,/m/c,Rain\n"
HEADS = ["--config.model.heads=2"]


def random_state(classes=3, **overrides):
    """A state dict with all the names of CAV-MAE's fine-tuned class, and learned positions."""
    sizes = {"registers": 0, "global_token": False, "learned_positions": True}
    sizes |= {"audio_rows": 1024} | overrides
    config = ConfigDict({"model": detect.RELEASED["model"] | sizes})
    names = tuple(map(str, range(classes)))
    config.classifier = {"stream": "both", "tokens": "patches", "loss": "bce", "names": names}
    module = classifier.from_config(config)
    shapes = jax.eval_shape(module.init_params, jax.random.key(0))
    zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes)
    rng = np.random.default_rng(0)
    return {
        name: rng.standard_normal(array.shape, np.float32)
        for name, array in convert.complete(zeros, module).items()
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A file of the authors' names and its conversion."""
    folder = tmp_path_factory.mktemp("finetuned")
    state = random_state(image_size=32, audio_rows=96, width=16, depth=2, heads=2)
    torch_io.write(str(folder / "file.pth"), {f"module.{name}": state[name] for name in state})
    (folder / "classes.csv").write_text(CSV)
    flags = [*HEADS, "--config.data.clip_rows=398", "--config.data.num_frames=4"]
    source, ours = str(folder / "file.pth"), str(folder / "ours")
    convert.import_weights(source, ours, flags, class_names=str(folder / "classes.csv"))
    return folder, state


def test_there_and_back_is_bit_exact(files):
    folder, state = files
    convert.export_weights(str(folder / "ours"), str(folder / "back.pth"), module_prefix=True)
    back = torch_io.read(str(folder / "back.pth"))
    assert back.keys() == state.keys() and not any("decoder" in name for name in back)
    for name, array in state.items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)


def test_what_a_file_does_not_say_is_told(files, tmp_path, capsys):
    folder, state = files
    flags = ["--config.classifier.loss=ce", "--config.model.audio_mean=-4.0"]
    source = str(folder / "file.pth")
    convert.import_weights(source, str(tmp_path / "ours"), [*HEADS, *flags])
    capsys.readouterr()
    convert.export_weights(str(tmp_path / "ours"), str(tmp_path / "back.pth"))
    said = capsys.readouterr().err
    assert "convert it back with " in said and all(flag in said for flag in flags)
    assert "classifier.stream" not in said and state


def test_the_classs_names_at_full_size():
    state = random_state(527)
    # 12 blocks of 20 tensors per stream; patch kernels, positions, codes, norms and the head.
    assert len(state) == (11 + 11 + 1) * 20 + 4 + 2 + 2 + 6 + 4
    config = detect.infer(state, detect.kind_of(state, "file"))
    assert (config.model.audio_rows, config.model.learned_positions) == (1024, True)
    assert config.classifier.loss == "bce" and config.data.num_frames == 10
    vggsound = random_state(309, width=32, depth=1, heads=2)
    assert detect.infer(vggsound, detect.FINE_TUNED).classifier.loss == "ce"


def test_a_file_is_classified(files, dataset_dir, tmp_path):
    model = load(str(files[0] / "ours"))
    names = {"Bark (/m/a)", "Bark (/m/b)", "Rain"}
    video = next(dataset_dir.parent.glob("clip*.mp4"))
    found = model.classify(video)
    assert set(found) == names
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert all(0 <= value <= 1 for value in found.values())
    picture = tmp_path / "grey.png"
    Image.fromarray(np.full((40, 40, 3), 99, np.uint8)).save(picture)
    pixels = jnp.asarray(model.picture(picture)[None])
    alone = model.module.apply(
        {"params": model.params}, {"visual": pixels}, ("visual_alone",), method="of_raw"
    )
    expected = 1 / (1 + np.exp(-np.asarray(alone["visual_alone"][0])))
    seen = model.classify(picture)
    ordered = [seen[name] for name in model.config.classifier.names]
    np.testing.assert_allclose(ordered, expected, rtol=1e-4)


def test_mistakes_are_told(files, tmp_path):
    folder, _ = files
    source = str(folder / "file.pth")
    (tmp_path / "two.csv").write_text("index,mid,display_name\n0,/m/a,Bark\n1,/m/b,Rain\n")
    with pytest.raises(UserError, match=r"two.csv has 2 classes, but .* has 3"):
        convert.import_weights(source, str(tmp_path / "x"), HEADS, 0, str(tmp_path / "two.csv"))
    with pytest.raises(UserError, match="must be a CSV with the columns index"):
        convert.import_weights(source, str(tmp_path / "x"), HEADS, 0, source)
    convert.import_weights(
        source, str(tmp_path / "sound"), [*HEADS, "--config.classifier.stream=audio"]
    )
    picture = tmp_path / "grey.png"
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(picture)
    with pytest.raises(UserError, match="trained with audio only: give a file that has a sound"):
        load(str(tmp_path / "sound")).classify(picture)
    plain = tiny.write_model(tmp_path / "plain")
    with pytest.raises(UserError, match="is not a fine-tuned model and knows no classes"):
        load(str(plain)).classify(picture)
