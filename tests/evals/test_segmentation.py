"""Sound-prompted segmentation: its scores on hand-made maps, and the way from data to table."""

import functools
import itertools
import json
import pathlib

import jax
import jax.numpy as jnp
import media_files
import numpy as np
import pytest
import test_ade20k_sound
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from cavmae_sync_jax.checkpoints.pretrained import Pretrained
from cavmae_sync_jax.data import loader
from cavmae_sync_jax.distributed import sharding
from cavmae_sync_jax.evals import segmentation, sound_maps
from cavmae_sync_jax.evals.metrics import average_precision, bootstrap
from cavmae_sync_jax.evals.metrics import segmentation as segmentation_metrics
from cavmae_sync_jax.inference import heatmaps
from cavmae_sync_jax.models import cavmae_sync
from cavmae_sync_jax.utils.errors import UserError
from data_prep import ade20k_sound
from data_prep.pipeline.clips import Preparation, VideoClip
from data_prep.pipeline.executors import Engine
from data_prep.pipeline.tfds_writer import write_dataset

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "segmentation.npz"
LEFT = np.arange(32) < np.full((32, 1), 16)
LEFT_MAP = np.array([[1, 0], [1, 0]], np.float32)


def test_golden_values():
    with np.load(GOLDEN, allow_pickle=False) as golden:
        cosine, masks = golden["cosine"], golden["mask"] > 0
        scaled = segmentation_metrics.scale(cosine)
        heat = np.stack([segmentation_metrics.upsample(small, 112, 112) for small in scaled])
        np.testing.assert_allclose(heat, golden["heatmap"], atol=1e-5)
        table = segmentation_metrics.by_class(cosine, masks, golden["class_id"])
        assert list(table) == golden["classes"].tolist()
        for name, expected in (("AP", golden["ap"]), ("IoU", golden["iou"])):
            np.testing.assert_allclose([row[name] for row in table.values()], expected, atol=1e-5)
        means = segmentation_metrics.means(table.values())
        assert means["mAP"] == pytest.approx(golden["mean_ap"], abs=1e-5)
        assert means["mIoU"] == pytest.approx(golden["mean_iou"], abs=1e-5)
        assert sum(row["items"] for row in table.values()) == len(masks)


# Few levels make ties, many make none.
CASES = st.tuples(st.integers(1, 60), st.integers(1, 40), st.integers(0, 2**32 - 1))


@settings(deadline=None)
@given(CASES)
def test_scores_equal_their_definitions(case):
    pixels, levels, seed = case
    rng = np.random.default_rng(seed)
    values = (rng.integers(levels, size=pixels) / np.float32(7)).astype(np.float32)
    truth = rng.random(pixels) < rng.random()
    truth[0] = True
    expected = average_precision_score(truth, values)
    assert average_precision.average_precision(values, truth) == pytest.approx(expected, abs=1e-9)
    exact = values.astype(np.float64)
    predictions = [exact > at for at in np.linspace(exact.min(), exact.max(), 20)]
    ious = [(chosen & truth).sum() / (chosen | truth).sum() for chosen in predictions]
    assert segmentation_metrics.best_iou(values, truth) == pytest.approx(max(ious), abs=1e-9)


def test_scores_by_hand():
    truth = np.array([True, True, False, False])
    falling = np.array([3, 2, 1, 0], np.float32)
    assert (
        average_precision.average_precision(falling, truth)
        == segmentation_metrics.best_iou(falling, truth)
        == 1
    )
    # Recall of a half is gained at a precision of 1/3, the other at 2/4.
    assert average_precision.average_precision(-falling, truth) == pytest.approx(
        (1 / 3 + 2 / 4) / 2
    )
    # All but the lowest pixel, which is a true one.
    assert segmentation_metrics.best_iou(-falling, truth) == 1 / 4
    constant = np.ones(4, np.float32)
    assert average_precision.average_precision(constant, truth) == 1 / 2
    assert segmentation_metrics.best_iou(constant, truth) == 0
    everything = np.ones(4, bool)
    assert average_precision.average_precision(falling, everything) == 1
    assert segmentation_metrics.best_iou(falling, everything) == 3 / 4


@pytest.mark.parametrize(
    "score", [average_precision.average_precision, segmentation_metrics.best_iou]
)
def test_scores_refuse_what_has_none(score):
    with pytest.raises(ValueError, match="nothing is true"):
        score(np.zeros(3, np.float32), np.zeros(3, bool))
    with pytest.raises(ValueError, match="not a number"):
        score(np.array([0, np.nan], np.float32), np.ones(2, bool))


def test_upsampling_is_that_of_half_pixel_centres():
    small = np.random.default_rng(0).normal(size=(14, 14)).astype(np.float32)
    for height, width in ((224, 224), (112, 100)):
        expected = jax.image.resize(small, (height, width), "bilinear")
        np.testing.assert_allclose(
            segmentation_metrics.upsample(small, height, width), expected, atol=1e-5
        )


def test_maps_are_scaled_together_and_pixels_pooled_by_class():
    maps = np.stack([LEFT_MAP, 4 * LEFT_MAP])
    np.testing.assert_array_equal(segmentation_metrics.scale(maps).max(axis=(1, 2)), [0.25, 1])
    np.testing.assert_array_equal(segmentation_metrics.scale(np.full((2, 2, 2), 7, np.float32)), 0)
    # Alone, each finds its half. Together, the first has nothing above most of the second's.
    masks = np.stack([LEFT, LEFT])
    table = segmentation_metrics.by_class(maps, masks, np.array([3, 8]))
    assert [row["AP"] for row in table.values()] == [1, 1] and list(table) == [3, 8]
    together = segmentation_metrics.by_class(maps, masks, np.array([3, 3]))[3]
    values = np.concatenate([segmentation_metrics.upsample(one, 32, 32).ravel() for one in maps])
    assert together["AP"] == pytest.approx(average_precision_score(masks.ravel(), values))
    assert together["AP"] < 1 and together["items"] == 2 and together["share"] == 0.5
    inverted = segmentation_metrics.by_class(-maps, masks, np.array([3, 8]))
    # Columns fall from both ends to the middle: 8 of the true half lie at the very bottom.
    assert all(row["AP"] < 0.4 and row["IoU"] == 8 / 32 for row in inverted.values())


def test_baselines_by_hand():
    blob = segmentation_metrics.blob()
    assert blob.shape == (32, 32) and blob.dtype == np.float32
    np.testing.assert_allclose(blob, blob[::-1, ::-1])
    # From the middle to the left edge: 1/64 and 31/64 of a side from the centre.
    falls = np.exp(-0.5 * ((31 / 64) ** 2 - (1 / 64) ** 2) / 0.25**2)
    assert blob[16, 0] / blob[16, 16] == pytest.approx(falls)
    middle = blob[None] > 0.5
    found = segmentation_metrics.by_class(blob[None], middle, np.array([0]))[0]
    assert found["AP"] == 1 and found["IoU"] > 0.9 and found["share"] == middle.mean()
    missed = segmentation_metrics.by_class(blob[None], ~middle, np.array([0]))[0]
    assert missed["AP"] < missed["share"]
    shares = segmentation_metrics.constant([{"share": 0.5}, {"share": 0.1}])
    assert shares == {"mAP": 0.3, "mIoU": 0.3}


def test_pointing_by_hand():
    corners = np.zeros((4, 4), bool)
    corners[0, 0] = corners[3, 0] = True
    maps = np.stack([LEFT_MAP, np.eye(2, dtype=np.float32), np.ones((2, 2), np.float32)])
    # 4 × 4 pixels: all of the left column are highest; two corners; all.
    found = segmentation_metrics.pointing(maps, np.stack([corners] * 3))
    np.testing.assert_allclose(found, [2 / 4, 1 / 2, 2 / 16])
    exact = segmentation_metrics.pointing(-maps[:1], np.stack([LEFT[:4, -4:]]))
    assert exact == [0]


def test_silent_objects_that_are_beaten_by_hand():
    left = np.zeros((3, 4, 4), bool)
    left[:, :, :2] = True
    maps = np.stack([LEFT_MAP, 1 - LEFT_MAP, np.ones((2, 2), np.float32)])
    np.testing.assert_array_equal(
        segmentation_metrics.beats_silent_object(maps, left, ~left), [1, 0, 0.5]
    )
    np.testing.assert_array_equal(
        segmentation_metrics.beats_silent_object(-maps, left, ~left), [0, 1, 0.5]
    )
    unseen = left & (np.arange(3) != 1)[:, None, None]
    found = segmentation_metrics.beats_silent_object(maps, unseen, ~left)
    np.testing.assert_array_equal(found, [1, np.nan, 0.5])


def test_a_resample_scores_as_the_clips_that_it_holds():
    generator = np.random.default_rng(0)
    maps = generator.normal(size=(12, 4, 4)).astype(np.float32)
    masks = np.stack([segmentation_metrics.upsample(small, 16, 16) > 0.5 for small in maps])
    masks[:, 0, :4] = True
    maps += generator.normal(size=maps.shape).astype(np.float32)
    records, classes = np.repeat(np.arange(4), 3), np.tile([0, 1, 1, 0], 3)
    empty = np.zeros_like(masks)
    items = segmentation_metrics.Items(records, classes, classes, masks, classes, empty)
    # Clip 3 thrice and clip 0 twice; then all once; then clip 1, and so on.
    weights = np.array([[2, 0, 0, 3], [1, 1, 1, 1], [0, 4, 0, 0]], float)
    found = segmentation_metrics.resampled_means(maps, items, weights)
    scaled = segmentation_metrics.scale(maps)
    for row, times in enumerate(weights.astype(int)):
        chosen = np.repeat(np.arange(12), times[records])
        scores = {"mAP": [], "mIoU": []}
        for class_id in (0, 1):
            members = chosen[classes[chosen] == class_id]
            heat = [segmentation_metrics.upsample(scaled[i], 16, 16).ravel() for i in members]
            values, truth = np.concatenate(heat), masks[members].ravel()
            scores["mAP"].append(average_precision_score(truth, values))
            scores["mIoU"].append(segmentation_metrics.best_iou(values, truth))
        for name, of_classes in scores.items():
            assert found[name][row] == pytest.approx(np.mean(of_classes), abs=0.01)
    # Clip 2 alone has both classes; a class that is not there does not count.
    only = items._replace(classes=np.where(records == 0, 0, 1))
    alone = segmentation_metrics.resampled_means(maps, only, np.array([[3.0, 0, 0, 0]]))
    table = segmentation_metrics.by_class(maps, masks, only.classes)
    assert alone["mAP"][0] == pytest.approx(table[0]["AP"], abs=0.01)


@functools.cache
def pretrained():
    config = tiny.config()
    module = cavmae_sync.from_config(config.model)
    params = jax.jit(module.init_params)(jax.random.key(0))
    return Pretrained(module, params, config, 0, "nowhere")


def one_device():
    return sharding.make_mesh(devices=jax.devices()[:1])


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
    published = test_ade20k_sound.Published(folder / "published")
    published.image("a.jpg", test_ade20k_sound.ids_of(7, 300, height=40, width=40))
    published.image("b.jpg", test_ade20k_sound.ids_of(300, 7, height=40, width=40), grey=200)
    rising = np.sin(2 * np.pi * np.cumsum(np.linspace(100, 7000, 64_000)) / 16_000)
    published.sound("a.wav", 0.3 * rising)
    for image, class_id in (("a.jpg", 7), ("b.jpg", 300)):
        published.row(image, "a.wav", class_id)
    table = ade20k_sound.read_table(published.save())
    preparation = Preparation(num_frames=1, image_size=32)
    test_ade20k_sound.write(folder / "prepared", table, preparation)
    return folder / "prepared"


def heard(module, params, batch):
    """The vector of a window is whether it is low, and its opposite."""
    audio = batch["audio"].mean(axis=2)
    is_low = audio[..., :32].mean(axis=-1) > audio[..., 96:].mean(axis=-1)
    vectors = jnp.stack([is_low, ~is_low], axis=-1).astype(jnp.float32)
    return {"audio": vectors, "distinct": jnp.ones(is_low.shape, bool)}


def planted(module, params, images, sounds, *args, tokens=None, against=(), **settings):
    """Knows that what is low is red and what is high is blue."""
    cells = images.astype(jnp.float32).reshape(len(images), 2, 16, 2, 16, 3).mean(axis=(2, 4))
    red, _, blue = jnp.moveaxis(cells[:, None], -1, 0)
    is_low = (sounds[..., 0] > sounds[..., 1])[..., None, None]
    found = jnp.where(is_low, red > blue, blue > red).astype(jnp.float32)
    return {name: found for name in against} if against else found


@pytest.fixture
def knowing(monkeypatch):
    """A model of 16 frames that has the answer, by either map."""
    monkeypatch.setattr(sound_maps, "window_tokens", heard)
    monkeypatch.setattr(heatmaps, "cosine", planted)
    monkeypatch.setattr(heatmaps, "evidence", planted)
    monkeypatch.setattr(heatmaps, "match", lambda module, params, images, sounds: sounds[..., 0])
    return pretrained()._replace(config=tiny.config(data__num_frames=16))


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


def test_windows_of_silence_meet_no_sound(clips):
    silent = loader.Records(clips, "silent", ("frame_class",))
    assert sound_maps.windows_of_silence(silent, 4, 0.5).tolist() == [[0, i] for i in range(4)]
    assert sound_maps.windows_of_silence(silent, 2, 0.5).tolist() == [[0, 0], [0, 1]]
    sounding = loader.Records(clips, "eval", ("frame_class",))
    assert len(sound_maps.windows_of_silence(sounding, 4, 0.1)) == 0


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
