"""Sound-prompted segmentation: its scores on hand-made maps, and the way from data to table."""

import itertools
import json
import pathlib
from unittest import mock

import ade20k_folders
import jax
import jax.numpy as jnp
import media_files
import numpy as np
import pytest
import tiny
from planted_maps import one_device, plant, pretrained

from cavmae_sync_jax.checkpoints.pretrained import Pretrained
from cavmae_sync_jax.data import loader
from cavmae_sync_jax.evals import segmentation, sound_maps
from cavmae_sync_jax.evals.metrics import bootstrap
from cavmae_sync_jax.evals.metrics import segmentation as segmentation_metrics
from cavmae_sync_jax.media import audio as audio_media
from cavmae_sync_jax.models import cavmae_sync
from cavmae_sync_jax.utils.errors import UserError
from data_prep import ade20k_sound
from data_prep.pipeline.clips import Preparation, VideoClip
from data_prep.pipeline.executors import Engine
from data_prep.pipeline.tfds_writer import write_dataset

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "segmentation.npz"
LEFT = np.arange(32) < np.full((32, 1), 16)
LEFT_MAP = np.array([[1, 0], [1, 0]], np.float32)


def halves(number, size):
    """A red half and a blue half; red is left in the first two of four seconds."""
    image = np.full((size[1], size[0], 3), (200, 30, 30), np.uint8)
    blue = slice(size[0] // 2, None) if number < 8 else slice(size[0] // 2)
    image[:, blue] = (30, 30, 200)
    return image


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Clips of 4 frames. What is low is red, what is high is blue; high is heard at frame 2."""
    folder = tmp_path_factory.mktemp("clips")
    low, high = (media_files.tone(hertz, 1.5, 16_000) for hertz in (200, 5000))
    wave = np.concatenate([low, high[:16_000], low])
    left = np.zeros((64, 64), bool)
    left[:, :32] = True
    hidden = np.stack([left, False & left, left, ~left])
    shown = np.stack([left, left, left, ~left])
    made = []
    for masks, classes in (
        (shown, [0, 0, 1, 0]),
        (hidden, [0, 0, 1, 0]),
        (shown, [-1, -1, -1, -1]),
    ):
        path = folder / f"clip{len(made)}.mp4"
        media_files.make_video(
            path, seconds=4, fps=4, size=(64, 64), waves=wave[None], picture=halves
        )
        truth = path.with_suffix(".npz")
        empty = np.zeros(0, np.float32)
        np.savez(
            truth,
            frame_class=np.array(classes),
            frame_mask=masks,
            event_class=empty.astype(np.int64),
            event_start=empty,
            event_end=empty,
        )
        made.append(VideoClip(path.stem, str(path), labels=("low", "high"), truth=str(truth)))
    write_dataset(
        folder / "prepared",
        {"eval": made[:2], "silent": made[2:]},
        Preparation(num_frames=4, image_size=32, clip_seconds=4),
        class_names=["low", "high"],
        source="videos",
        engine=Engine(workers=1),
    )
    return folder / "prepared"


@pytest.fixture(scope="module")
def stills(tmp_path_factory):
    """One image of two halves, prompted by a low and by a high sound, and a second image."""
    folder = tmp_path_factory.mktemp("stills")
    published = ade20k_folders.Published(folder / "published")
    published.image("a.jpg", ade20k_folders.ids_of(7, 300, height=40, width=40))
    published.image("b.jpg", ade20k_folders.ids_of(300, 7, height=40, width=40), grey=200)
    rising = np.sin(2 * np.pi * np.cumsum(np.linspace(100, 7000, 64_000)) / 16_000)
    published.sound("a.wav", 0.3 * rising)
    for image, class_id in (("a.jpg", 7), ("b.jpg", 300)):
        published.row(image, "a.wav", class_id)
    table = ade20k_sound.read_table(published.save())
    preparation = Preparation(num_frames=1, image_size=32)
    ade20k_folders.write(folder / "prepared", table, preparation)
    return folder / "prepared"


@pytest.fixture
def knowing(monkeypatch):
    return plant(monkeypatch)


def test_a_model_that_knows_the_answer_scores_1(clips, knowing, tmp_path, capsys):
    records = loader.Records(clips, "eval")
    result = segmentation.run(knowing, records, tmp_path, mesh=one_device())
    assert json.loads((tmp_path / "segmentation.json").read_text()) == result
    with np.load(tmp_path / "segmentation_resamples.npz") as resampled:
        for name, row in result["maps"].items():
            assert bootstrap.interval(resampled[f"{name}/mIoU"]) == row["intervals"]["mIoU"]
            other = resampled[f"{name}/another clip's sound/mIoU"]
            told = row["another clip's sound"]["intervals"]["mIoU"]
            assert bootstrap.interval(other) == told and other.max() < 1
    assert (tmp_path / "segmentation.png").read_bytes().startswith(b"\x89PNG")
    assert result["items"] == 7 and result["query"] == "frame" and result["tokens"] == "joint"
    assert result["framing"]["num_frames"] == 4 and knowing.config.data.num_frames == 16
    best = dict.fromkeys(("mAP", "mIoU", "pointing", "J", "F"), 1)
    assert result["scores"] == best
    assert result["classes"] == {
        "low": {"AP": 1, "IoU": 1, "items": 5, "share": 0.5},
        "high": {"AP": 1, "IoU": 1, "items": 2, "share": 0.5},
    }
    assert list(result["maps"]) == ["cosine", "evidence", "evidence minus the bank's mean"]
    for row in result["maps"].values():
        assert row["scores"] == row["untrained model"]["scores"] == best
        assert row["intervals"]["pointing"] == [1, 1]
        # The other clip's sound of the other class points to the other half.
        other = row["another clip's sound"]["scores"]
        assert other["mAP"] < 0.4 and other["mIoU"] == 8 / 32 and other["pointing"] == 0
        assert row["own_minus_another"]["pointing"] == [1, 1]
        # Nothing sounds in no window, and no silent object is told of.
        assert list(row["tells_own_sound_from"]) == ["another clip's sound"]
        assert row["tells_own_sound_from"]["another clip's sound"]["roc_auc"] == 0.5
        assert "beats_silent_object" not in row
    assert set(result["match_tells_own_sound_from"]) == {"another clip's sound"}
    constant = dict.fromkeys(best, 0.5) | {"F": pytest.approx(0.65 / 1.15)}
    assert result["baselines"]["constant map (every pixel)"] == constant
    # A blob says of the left half what it says of the right one.
    blob = result["baselines"]["blob in the middle"]
    assert blob["mAP"] == pytest.approx(0.5, abs=0.01) and 0.45 < blob["mIoU"] < 0.5
    assert blob["pointing"] == 0.5
    printed = capsys.readouterr().out
    assert "segmentation, 7 images of 2 classes" in printed and "cosine (the paper's)" in printed
    assert "100.0 [100.0, 100.0]" in printed


def test_one_map_and_no_baselines(clips, knowing, capsys):
    records = loader.Records(clips, "eval")
    settings = {"mesh": one_device(), "with_baselines": False}
    result = segmentation.run(knowing, records, maps=("evidence",), **settings)
    assert list(result["maps"]) == ["evidence", "evidence minus the bank's mean"]
    assert result["scores"] == result["maps"]["evidence"]["scores"]
    assert "baselines" not in result and "untrained model" not in result["maps"]["evidence"]
    # Most of each clip is low, and so is the mean of its windows: the 2 high frames are missed.
    clip = segmentation.run(knowing, records, maps=("cosine",), query="clip", **settings)
    assert clip["query"] == "clip" and list(clip["maps"]) == ["cosine"]
    assert clip["classes"]["low"]["AP"] == 1 and clip["classes"]["high"]["AP"] < 0.4
    assert clip["scores"]["pointing"] == pytest.approx(5 / 7)
    assert capsys.readouterr().out == ""


def test_the_frames_that_count(clips):
    truth = loader.Records(clips, "eval")
    items = sound_maps.find_items(truth, 4)
    places = sorted(zip(truth.ids(items.records.tolist()), items.frames.tolist(), strict=True))
    every_frame = [(name, frame) for name in ("clip0", "clip1") for frame in range(4)]
    assert places == [place for place in every_frame if place != ("clip1", 1)]
    assert items.classes[items.frames == 2].tolist() == [1, 1]
    np.testing.assert_array_equal(items.masks[items.frames == 3][0], ~LEFT)
    halved = sound_maps.find_items(truth, 2)
    assert halved.frames.tolist() == [0, 1, 0, 1] and halved.classes.tolist() == [0, 1, 0, 1]


def cosines(vectors, query):
    unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (unit @ (query / np.linalg.norm(query))).reshape(2, 2)


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def mapper(records, items, query, **settings):
    settings = {"mesh": one_device(), "cache": None, "tokens": "joint", "sets": 8} | settings
    return sound_maps.Mapper(pretrained(), records, items, query, **settings)


@pytest.mark.parametrize("tokens", ["joint", "encoder"])
@pytest.mark.parametrize("query", ["frame", "clip"])
def test_maps_are_cosines_of_the_sound_and_the_patches(clips, query, tokens):
    records, tiny_model = loader.Records(clips, "eval"), pretrained()
    items = sound_maps.find_items(loader.Records(clips, "eval", sound_maps.TRUTH), 4)
    found = mapper(records, items, query, tokens=tokens).maps(tiny_model, ("cosine",))
    maps = found["cosine"]["own sound"]
    assert maps.shape == (7, 2, 2)
    (item,) = np.flatnonzero((items.records == 1) & (items.frames == 2))
    pairs = records.pairs(1, loader.PairSpec.of(tiny_model.config), range(4))
    audio = tiny_model.encode_audio(np.stack([pair["audio"] for pair in pairs])).global_token
    image = jnp.asarray(pairs[2]["visual"][None])
    vectors = tiny_model.encode_image(image).patch_tokens[0]
    if tokens == "encoder":

        def encode(module):
            return module.encode("visual", module.patchify("visual", image)).patches[0]

        params = {"params": tiny_model.params}
        vectors = jax.jit(lambda: tiny_model.module.apply(params, method=encode))()
    heard_by = unit(np.asarray(audio))
    heard_by = heard_by[2] if query == "frame" else heard_by.mean(axis=0)
    np.testing.assert_allclose(maps[item], cosines(np.asarray(vectors), heard_by), atol=1e-5)


def test_each_item_is_searched_for_another_sound_that_is_not_on_screen():
    generator = np.random.default_rng(0)
    windows = generator.normal(size=(6, 4, 5)).astype(np.float32)
    records, frames = np.divmod(np.arange(24), 4)
    classes, silent = generator.integers(4, size=(2, 24))
    masks = np.ones((24, 2, 2), bool)
    items = segmentation_metrics.Items(records, frames, classes, masks, silent, masks)
    asked = sound_maps.queries(windows, items, "frame", np.array([[2, 1]]))
    assert asked.names == ("own sound", "another clip's sound", "silence")
    np.testing.assert_allclose(asked.sounds[:, 0], unit(windows).reshape(24, 5), rtol=1e-5)
    np.testing.assert_allclose(asked.sounds[:, 2], np.tile(unit(windows[2, 1]), (24, 1)), rtol=1e-5)
    sources = [
        np.abs(asked.sounds[:, 0] - other).sum(axis=1).argmin() for other in asked.sounds[:, 1]
    ]
    for item, source in enumerate(sources):
        np.testing.assert_array_equal(asked.sounds[source, 0], asked.sounds[item, 1])
        assert records[source] != records[item]
        assert classes[source] not in (classes[item], silent[item])
    assert len(asked.bank) == 24
    many = sound_maps.queries(np.tile(windows, (1, 40, 1)), items, "frame", np.zeros((0, 2), int))
    assert len(many.bank) == sound_maps.BANK and many.names == asked.names[:2]
    # One class has no other sound.
    alone = items._replace(classes=np.zeros(24, int))
    assert sound_maps.queries(windows, alone, "clip", np.array([[2, 1]])).names == ("own sound",)


def test_another_clips_whole_sound_has_no_class_that_is_on_screen():
    records, frames = np.divmod(np.arange(12), 2)
    classes = np.array([0, 1, 0, 2, 3, 3, 1, 3, 2, 2, 0, 0])  # two frames of each of six clips
    silent = np.where(classes == 3, 2, -1)
    masks = np.ones((12, 2, 2), bool)
    items = segmentation_metrics.Items(records, frames, classes, masks, silent, masks)
    windows = np.eye(6, dtype=np.float32)[:, None].repeat(2, axis=1)  # a clip is its own axis
    for seed in range(20):
        asked = sound_maps.queries(windows, items, "clip", np.zeros((0, 2), int), seed=seed)
        for item, other in enumerate(asked.sounds[:, 1].argmax(axis=1)):
            heard = classes[records == other]
            assert other != records[item]
            assert not {classes[item], silent[item]} & set(heard)
    # Without names any other clip's sound will do.
    asked = sound_maps.queries(windows, items, "clip", np.zeros((0, 2), int), named=False)
    assert asked.names == ("own sound", "another clip's sound")
    # Each other clip has a frame of the class on screen.
    everywhere = items._replace(classes=np.tile([0, 1], 6))
    asked = sound_maps.queries(windows, everywhere, "clip", np.zeros((0, 2), int))
    assert asked.names == ("own sound",)


def test_the_mean_of_a_sound_takes_each_of_its_windows_once():
    vectors = np.eye(4, dtype=np.float32)[None, [0, 0, 1, 2]]
    items = segmentation_metrics.Items(*np.zeros((2, 1), int), *[np.zeros(1, int)] * 4)
    distinct = np.array([[True, False, True, True]])
    asked = sound_maps.queries(vectors, items, "clip", np.zeros((0, 2), int), distinct=distinct)
    np.testing.assert_allclose(asked.sounds[0, 0], [1 / 3, 1 / 3, 1 / 3, 0], rtol=1e-6)


def test_windows_that_the_edges_of_a_clip_repeat_are_told():
    tiny_model = pretrained()
    shape = tiny_model.module.raw_shape("audio")
    window = np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32)
    batch = {"audio": jnp.asarray(window[[0, 0, 1, 2, 2]])[None]}
    found = sound_maps.window_tokens(tiny_model.module, tiny_model.params, batch)
    assert found["distinct"].tolist() == [[True, False, True, True, False]]
    np.testing.assert_allclose(found["audio"][0, 3], found["audio"][0, 4], rtol=1e-5)


def windows(frames, rows, clip_rows=1024):
    return loader.PairSpec(frames, clip_rows, rows, 128, 32)


def test_windows_of_silence_meet_no_sound(clips):
    silent = loader.Records(clips, "silent", ("frame_class",))
    found = sound_maps.windows_of_silence(silent, windows(4, 512))
    assert found.tolist() == [[0, i] for i in range(4)]
    found = sound_maps.windows_of_silence(silent, windows(2, 512))
    assert found.tolist() == [[0, 0], [0, 1]]
    sounding = loader.Records(clips, "eval", ("frame_class",))
    assert len(sound_maps.windows_of_silence(sounding, windows(4, 102))) == 0


def truth_of(classes, rows, seconds):
    truth = mock.create_autospec(loader.Records, instance=True)
    truth.__len__.return_value, truth.ahead.return_value = 1, [0]
    fbank = np.zeros((rows, 128), np.float16)
    record = {"frame_class": np.array(classes), "fbank": fbank, "seconds": seconds}
    truth.__getitem__.return_value = record
    return truth


def test_silence_is_where_no_window_meets_a_sound():
    for sounding, frames, rows in ((5, 16, 416), (10, 16, 416), (3, 8, 256)):
        classes = np.full(frames, -1)
        classes[sounding] = 0
        truth = truth_of(classes, 998, 10.0)
        found = sound_maps.windows_of_silence(truth, windows(frames, rows))
        silent = {frame for _, frame in found.tolist()}
        for frame in range(frames):
            begin = audio_media.window_start(frame, frames, 1024, rows) * frames / 1000
            meets = begin < sounding + 1 and begin + rows * frames / 1000 > sounding
            assert not (meets and frame in silent), (sounding, frame)
        assert silent  # those that are farther away


@pytest.mark.parametrize(("rows", "silent"), [(416, []), (250, [0, 1]), (96, [0, 1, 2])])
def test_a_short_clips_windows_are_a_larger_share_of_it(rows, silent):
    # Of 5 s, 416 rows are the most, although they are less than half of a nominal clip.
    truth = truth_of([-1, -1, -1, -1, 3, 3], 498, 5.0)
    found = sound_maps.windows_of_silence(truth, windows(6, rows))
    assert [frame for _, frame in found.tolist()] == silent


def test_a_single_image_is_prompted_by_all_windows_of_its_sound(stills, tmp_path):
    records, tiny_model = loader.Records(stills, "eval"), pretrained()
    result = segmentation.run(tiny_model, records, tmp_path, mesh=one_device())
    assert result["query"] == "clip" and result["framing"]["num_frames"] == 4
    assert set(result["classes"]) == {"ade_7", "ade_300"} and result["items"] == 2
    assert set(result["baselines"]) == {
        "constant map (every pixel)",
        "blob in the middle",
        "untrained model",
    }
    assert result["scores"] != result["baselines"]["untrained model"]
    repeated = sound_maps.RepeatedImages(records, 4)
    pairs = repeated.pairs(0, loader.PairSpec.of(tiny_model.config), range(4))
    windows = np.stack([pair["audio"] for pair in pairs])
    assert all((one != other).any() for one, other in itertools.pairwise(windows))
    audio = unit(np.asarray(tiny_model.encode_audio(windows).global_token))
    patches = tiny_model.encode_image(pairs[0]["visual"][None]).patch_tokens[0]
    items = sound_maps.find_items(loader.Records(stills, "eval", sound_maps.TRUTH), 1)
    found = mapper(repeated, items, "clip").maps(tiny_model, ("cosine",))["cosine"]
    assert found["own sound"].shape == (2, 2, 2)
    expected = cosines(np.asarray(patches), audio.mean(axis=0))
    np.testing.assert_allclose(found["own sound"][0], expected, atol=1e-5)
    with pytest.raises(UserError, match=r"--query=frame: .* has one image per sound"):
        segmentation.run(tiny_model, records, query="frame", mesh=one_device())


def test_what_cannot_be_scored_is_told_in_a_sentence(clips, dataset_dir):
    tiny_model = pretrained()
    with pytest.raises(UserError, match=r"of your own videos use cavmae_sync_jax\.localize"):
        segmentation.run(tiny_model, loader.Records(dataset_dir, "eval"), mesh=one_device())
    with pytest.raises(UserError, match="split silent has no frame with a class"):
        segmentation.run(tiny_model, loader.Records(clips, "silent"), mesh=one_device())
    with pytest.raises(UserError, match="--sets=1 must be at least 2"):
        segmentation.run(tiny_model, loader.Records(clips, "eval"), mesh=one_device(), sets=1)


def test_a_model_without_a_global_token_is_scored(clips):
    config = tiny.config(model__global_token=False)
    with config.unlocked():
        del config["loss"]  # as a conversion's config
    module = cavmae_sync.from_config(config.model)
    params = jax.jit(module.init_params)(jax.random.key(0))
    model = Pretrained(module, params, config, 0, "nowhere")
    records = loader.Records(clips, "eval")
    settings = {"mesh": one_device(), "sets": 8, "with_baselines": False}
    result = segmentation.run(model, records, **settings)
    assert all(0 < row["scores"]["mAP"] < 1 for row in result["maps"].values())
    assert result["scores"] != result["maps"]["evidence"]["scores"]
