import dataclasses
import functools
import hashlib
import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from cavmae_sync_jax.media import decoding
from cavmae_sync_jax.media.audio import SAMPLE_RATE, log_mel
from cavmae_sync_jax.utils.errors import UserError
from data_prep import scenes
from data_prep.synthetic import composer, render
from data_prep.synthetic import objects as scene_objects
from data_prep.synthetic.composer import FRAME_RATE, SceneSegment

OBJECTS = scene_objects.BuiltInObjects()
CLASSES = len(OBJECTS.class_names)


def renderer(size=48, seed=0, objects=OBJECTS):
    return render.SceneRenderer(objects, scene_objects.drawn_background, size, 10.0, 16, seed)


@functools.cache
def scene(number, size=32):
    rng = np.random.default_rng([5, number])
    return composer.compose(OBJECTS, scene_objects.drawn_background, size, 10.0, rng)


def solo(class_id, rng, seconds=3.0, size=64):
    alone = [SceneSegment(0.0, seconds, ((class_id, True),))]
    return composer.stage(OBJECTS, scene_objects.drawn_background, size, alone, rng)


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def rms(wave):
    return np.sqrt(np.mean(np.square(wave)))


def test_a_seed_gives_the_same_bytes_again_and_another_one_others(tmp_path):
    files = [tmp_path / f"{name}.mp4" for name in "abcd"]
    names = [
        render.render_clip(renderer(seed=seed), "train", number, file)
        for file, seed, number in zip(files, [3, 3, 4, 3], [1, 1, 1, 2], strict=True)
    ]
    assert names[0] == names[1]
    assert digest(files[0]) == digest(files[1])
    assert digest(files[0].with_suffix(".npz")) == digest(files[1].with_suffix(".npz"))
    assert len({digest(file) for file in files}) == 3
    assert len({digest(file.with_suffix(".npz")) for file in files}) == 3


def test_what_was_encoded_before_does_not_matter(tmp_path):
    path, other = tmp_path / "clip.mp4", tmp_path / "other.mp4"
    digests = set()
    for number in range(10):
        render.render_clip(renderer(size=40 + 4 * number), "val", number, other)
        render.render_clip(renderer(), "train", 0, path)
        digests.add(digest(path))
    assert len(digests) == 1


def test_no_two_clips_share_a_random_generator():
    draws = [
        tuple(render.generator(seed, split, number).integers(2**63, size=2))
        for seed in (0, 1)
        for split in render.SPLITS
        for number in range(300)
    ]
    assert len(set(draws)) == len(draws)


def test_timelines_have_one_to_three_events_in_order_and_of_neighbouring_classes_that_differ():
    counts, pauses, with_silent = [], 0, 0
    for number in range(60):
        events = scene(number).events
        counts.append(len(events))
        for event in events:
            assert event.start >= 0 and event.end <= 10
            assert event.end - event.start >= composer.SHORTEST[True] - 1e-9
        for before, after in itertools.pairwise(events):
            assert before.class_id != after.class_id
            gap = after.start - before.end
            assert gap == 0 or gap >= composer.SHORTEST[False] - 1e-9
            pauses += gap > 0
        with_silent += any(not layer.sounds for layer in scene(number).layers)
    assert set(counts) == {1, 2, 3}
    assert counts.count(3) > counts.count(1)
    assert pauses > 5
    assert 30 < with_silent < 60


def test_the_mask_is_where_the_sounding_object_changes_the_picture():
    occluded = 0
    for number in range(12):
        whole = scene(number, size=96)
        truth = composer.truth(whole, 16)
        silent = [layer for layer in whole.layers if not layer.sounds]
        without = composer.render(dataclasses.replace(whole, layers=tuple(silent)))
        changed = (composer.render(whole) != without).any(axis=3)[::10]
        for frame, (mask, difference) in enumerate(zip(truth.frame_mask, changed, strict=True)):
            time = frame * 10 / 16
            sounding = [e.class_id for e in whole.events if e.start <= time < e.end]
            assert truth.frame_class[frame] == (sounding[0] if sounding else -1)
            assert mask.any() == difference.any() == bool(sounding)
            if sounding:
                assert difference[mask].mean() > 0.95
                # What changes outside of the mask is the object's soft edge.
                assert mask[difference].mean() > 0.6
                bare = [layer for layer in whole.layers if layer.sounds]
                alone = dataclasses.replace(whole, layers=tuple(bare))
                hidden = composer.truth(alone, 16).frame_mask[frame] & ~mask
                assert hidden.sum() < 0.5 * (mask.sum() + hidden.sum())
                occluded += hidden.any()
    assert occluded > 0


def test_the_silent_mask_is_where_the_silent_object_changes_the_picture():
    seen = 0
    for number in range(6):
        whole = scene(number, size=96)
        truth = composer.truth(whole, 16)
        heard = tuple(layer for layer in whole.layers if layer.sounds)
        without = composer.render(dataclasses.replace(whole, layers=heard))
        changed = (composer.render(whole) != without).any(axis=3)[::10]
        for frame, mask in enumerate(truth.frame_silent_mask):
            shown = [layer.class_id for layer in whole.layers if not layer.sounds]
            assert mask.any() == changed[frame].any() == (truth.frame_silent_class[frame] >= 0)
            assert not (mask & truth.frame_mask[frame]).any()
            if mask.any():
                assert truth.frame_silent_class[frame] in shown
                assert changed[frame][mask].mean() > 0.95
                seen += 1
    assert seen > 10


def test_the_encoded_video_shows_the_frames_and_sounds_that_the_truth_is_about(tmp_path):
    path = tmp_path / "clip.mp4"
    for number in range(2):
        render.render_clip(renderer(size=64), "eval", number, path)
        rng = render.generator(0, "eval", number)
        whole = composer.compose(OBJECTS, scene_objects.drawn_background, 64, 10.0, rng)
        clip = decoding.read_clip(path, num_frames=16)
        video = composer.render(whole).astype(np.float32)
        assert clip.seconds == clip.picture_seconds == pytest.approx(10)
        for index, frame in enumerate(clip.frames):
            errors = np.abs(frame - video).mean(axis=(1, 2, 3))
            assert errors[10 * index] == pytest.approx(errors.min(), abs=0.1)
            assert errors[10 * index] < 6
        assert np.corrcoef(clip.waveform / 32768, whole.waveform)[0, 1] > 0.99


def test_the_truth_file_tells_the_same_as_the_scene(tmp_path):
    path = tmp_path / "clip.mp4"
    names = render.render_clip(renderer(), "train", 7, path)
    rng = render.generator(0, "train", 7)
    whole = composer.compose(OBJECTS, scene_objects.drawn_background, 48, 10.0, rng)
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as truth:
        assert truth["frame_class"].shape == (16,)
        assert truth["frame_mask"].shape == (16, 48, 48) and truth["frame_mask"].dtype == bool
        classes = [event.class_id for event in whole.events]
        np.testing.assert_array_equal(truth["event_class"], classes)
        np.testing.assert_allclose(truth["event_start"], [e.start for e in whole.events])
        np.testing.assert_allclose(truth["event_end"], [e.end for e in whole.events])
    assert list(names) == list(dict.fromkeys(OBJECTS.class_names[k] for k in classes))


def test_events_are_far_louder_than_pauses():
    seen = 0
    for number in range(30):
        whole = scene(number)
        quiet = np.ones(len(whole.waveform), bool)
        for event in whole.events:
            quiet[int(event.start * SAMPLE_RATE) : int(event.end * SAMPLE_RATE) + 1] = False
        for event in whole.events:
            first, last = int(event.start * SAMPLE_RATE), int(event.end * SAMPLE_RATE)
            level = 20 * np.log10(rms(whole.waveform[first:last]))
            assert -28.5 < level < -17.5
            if quiet.any():
                assert level - 20 * np.log10(rms(whole.waveform[quiet])) > 14
                seen += 1
    assert seen > 10


def test_an_object_moves_with_its_loudness():
    beeping = OBJECTS.class_names.index("star_beeps")
    whole = solo(beeping, np.random.default_rng(0), size=128)
    loudness = [rms(block) for block in whole.waveform.reshape(-1, SAMPLE_RATE // FRAME_RATE)]
    masks = composer.truth(whole, whole.frames).frame_mask
    centres = np.array([np.argwhere(mask).mean(axis=0) for mask in masks])
    moved = np.linalg.norm(centres - centres[np.argmin(loudness)], axis=1)
    assert np.corrcoef(loudness, moved)[0, 1] > 0.95
    assert np.corrcoef(loudness, masks.sum(axis=(1, 2)))[0, 1] > 0.95


def test_silent_objects_are_as_large_and_as_central_as_sounding_ones():
    layers = [layer for number in range(60) for layer in scene(number).layers]
    for measure in (
        lambda layer: np.sqrt(layer.sprites[2].shape[0] * layer.sprites[2].shape[1]),
        lambda layer: np.hypot(layer.centre[0] - 16, layer.centre[1] - 16),
        lambda layer: layer.loudness.mean(),
    ):
        values = {
            kind: [measure(layer) for layer in layers if layer.sounds == kind] for kind in (0, 1)
        }
        error = np.sqrt(sum(np.var(v) / len(v) for v in values.values()))
        assert abs(np.mean(values[0]) - np.mean(values[1])) < 4 * error


def program(module, *arguments):
    command = [sys.executable, "-m", f"data_prep.{module}", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def refused(module, *arguments):
    done = program(module, *arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


def read_split(folder, split):
    builder = tfds.builder_from_directory(next(folder.glob("scenes/*")))
    return {record["clip_id"].decode(): record for record in builder.as_data_source(split)}


def test_the_program_makes_a_dataset_with_truth(tmp_path):
    output = tmp_path / "data"
    small = ("--size=48", "--image_size=24", "--workers=2")
    done = program("scenes", f"--output={output}", "--train=3", "--val=1", "--eval=2", *small)
    assert done.returncode == 0, done.stderr
    assert "3 in train, 1 in val, 2 in eval" in done.stdout
    records = read_split(output, "train")
    assert sorted(records) == ["train_00000", "train_00001", "train_00002"]
    for name, record in records.items():
        video = output / "videos" / "train" / f"{name}.mp4"
        truth = np.load(video.with_suffix(".npz"), allow_pickle=False)
        np.testing.assert_array_equal(record["frame_class"], truth["frame_class"])
        np.testing.assert_array_equal(record["events"]["class"], truth["event_class"])
        assert sorted(record["labels"]) == sorted(set(truth["event_class"]))
        assert len(record["frames"]) == len(record["frame_mask"]) == 16
        np.testing.assert_array_equal(record["frame_silent_class"], truth["frame_silent_class"])
        assert len(record["frame_silent_mask"]) == 16
        expected = log_mel(decoding.read_clip(video).waveform / np.float32(32768), SAMPLE_RATE)
        np.testing.assert_allclose(record["fbank"], expected, atol=0.02)
    settings = json.loads((output / "videos" / "scenes.json").read_text())
    assert settings["seed"] == 0 and len(settings["class_names"]) == CLASSES
    before = digest(output / "videos" / "train" / "train_00001.mp4")

    fewer = (f"--output={output}", "--train=2", "--val=0", "--eval=0", *small)
    with pytest.raises(UserError, match="--overwrite"):
        scenes.run(scenes._parser().parse_args(fewer))
    scenes.run(scenes._parser().parse_args([*fewer, "--overwrite"]))
    assert sorted(read_split(output, "train")) == ["train_00000", "train_00001"]
    assert digest(output / "videos" / "train" / "train_00001.mp4") == before
    assert not (output / "videos" / "eval").exists()
    assert sorted(path.name for path in output.iterdir()) == [
        "rejects.csv",
        "scenes",
        "summary.json",
        "videos",
    ]


def test_the_program_says_what_it_does_and_what_is_wrong(tmp_path):
    done = program("scenes", "--help")
    assert done.returncode == 0 and "python -m data_prep.scenes --output=" in done.stdout
    other = tmp_path / "other"
    (other / "videos").mkdir(parents=True)
    (other / "videos" / "holiday.mp4").write_bytes(b"precious")
    for flags, word in {
        ("--train=-1",): "--train",
        ("--train=0", "--val=0", "--eval=0"): "not all of them 0",
        ("--seed=-1",): "--seed",
        ("--size=33",): "--size",
        ("--workers=0",): "--workers",
        ("--image_size=2",): "image_size",
        (f"--assets={tmp_path}",): "NAME.ogg",
        (f"--output={other}", "--overwrite"): "in the way",
        ("--output=gs://bucket/scenes",): "copy it to the bucket",
        ("--output=s3://bucket/scenes", "--dry_run"): "copy it to the bucket",
    }.items():
        arguments = scenes._parser().parse_args([f"--output={tmp_path / 'new'}", *flags])
        with pytest.raises(UserError) as refusal:
            scenes.run(arguments)
        assert word in str(refusal.value)
    assert (other / "videos" / "holiday.mp4").read_bytes() == b"precious"
    assert not (tmp_path / "new").exists()
    assert "nowhere is not a folder" in refused("scenes", "--output=x", "--assets=nowhere")
