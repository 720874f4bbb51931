import collections
import io
import itertools
import os
import shutil

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from cavmae_sync_jax.data import dataset_dir as dataset_dirs
from cavmae_sync_jax.data import loader
from cavmae_sync_jax.data.loader import PairSpec
from cavmae_sync_jax.distributed import sharding
from cavmae_sync_jax.media import images
from cavmae_sync_jax.utils.errors import UserError

FRAMING = PairSpec(4, clip_rows=1024, audio_rows=96, audio_bins=128, image_size=32)


@pytest.fixture(scope="module")
def records(dataset_dir):
    return loader.Records(dataset_dir, "train")


def take(iterator, count):
    batches = [next(iterator) for _ in range(count)]
    iterator.close()
    return batches


def train(records, start=0, workers=0, batch_size=6, seed=3):
    return loader.train_batches(records, FRAMING, batch_size, seed, start, workers, 2)


def test_a_config_says_how_a_clip_becomes_pairs():
    data = {"num_frames": 3, "clip_rows": 5, "window_spread": "padded"}
    model = {"audio_rows": 7, "audio_bins": 11, "image_size": 13}
    config = ConfigDict({"data": data, "model": model})
    sizes = {**model, "num_frames": 3, "clip_rows": 5}
    assert PairSpec.of(config) == PairSpec(**sizes, window_spread="padded", only_frame=None)
    config.data.only_frame = 2
    one = PairSpec.of(config)
    assert one.only_frame == 2 and list(one.frames) == [2]


def test_every_clip_comes_once_an_epoch(records):
    # 20 clips in batches of 6: epochs end inside batches.
    order = np.concatenate([batch["clip"] for batch in take(train(records), 10)])
    first, second, third = order[:20], order[20:40], order[40:60]
    for epoch in (first, second, third):
        assert sorted(epoch) == list(range(20))
    assert first.tolist() != second.tolist() and first.tolist() != list(range(20))


@pytest.mark.parametrize("workers", [0, 2])
def test_any_position_continues_the_same_stream(records, workers):
    whole = take(train(records), 6)
    resumed = take(train(records, start=12, workers=workers), 4)
    for before, after in zip(whole[2:], resumed, strict=True):
        for name in before:
            np.testing.assert_array_equal(before[name], after[name])


@pytest.mark.parametrize("weights", [None, np.arange(20.0)])
def test_the_order_is_known_without_the_records(records, weights):
    batches = take(loader.train_batches(records, FRAMING, 6, 3, 6, 0, 2, weights=weights), 2)
    expected = np.concatenate([batch["clip"] for batch in batches]).tolist()
    assert loader.order(20, 3, 6, 12, weights) == expected


def test_seeds_differ(records):
    one, other = (take(train(records, seed=seed), 1)[0] for seed in (0, 1))
    assert one["clip"].tolist() != other["clip"].tolist()


def test_processes_share_each_batch(records, monkeypatch):
    whole = take(train(records), 3)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr(jax, "process_index", lambda rank=rank: rank)
        shares.append(take(train(records), 3))
    for batch, left, right in zip(whole, *shares, strict=True):
        for name in batch:
            joined = np.concatenate([left[name], right[name]])
            np.testing.assert_array_equal(joined, batch[name])


def test_a_pair_is_the_frame_and_its_window(records):
    record = records[0]
    pair = FRAMING.pair(record, 2)
    np.testing.assert_array_equal(pair["visual"], images.decode_jpeg(record["frames"][2]))
    # 4 s are clearly less than the nominal 1024 rows, so frame 2 of 4 is at 2 s.
    assert record["seconds"] == 4
    np.testing.assert_array_equal(pair["audio"], record["fbank"][152:248])


def test_a_record_without_seconds_is_spread_over_its_log_mel(records):
    # As version 0.1.0 stored them: 4 s have 398 rows, so frame 2 of 4 is at row 199.
    record = {name: value for name, value in records[0].items() if name != "seconds"}
    np.testing.assert_array_equal(FRAMING.pair(record, 2)["audio"], record["fbank"][151:247])
    padded = FRAMING._replace(window_spread="padded").pair(record, 1)
    np.testing.assert_array_equal(padded["audio"], record["fbank"][208:304])


def test_fewer_frames_are_spread_over_the_clip(records):
    record = records[0]
    half = FRAMING._replace(num_frames=2)
    for name, value in half.pair(record, 1).items():
        np.testing.assert_array_equal(value, FRAMING.pair(record, 2)[name])


def test_frames_between_two_stored_ones_are_the_earlier_ones(records):
    record = records[0]
    thirds = FRAMING._replace(num_frames=3)  # of 4 that are stored: 0, 4/3 and 8/3
    for frame in range(3):
        for name, value in thirds.pair(record, frame).items():
            np.testing.assert_array_equal(value, FRAMING.pair(record, frame)[name])


def test_clips_longer_than_the_nominal_rows_are_refused(records):
    # Their late frames would get the sound of an earlier moment.
    with pytest.raises(UserError, match=r"set --config.data.clip_rows=398"):
        FRAMING._replace(clip_rows=304).pair(records[0], 0)


def test_training_draws_every_frame(records):
    seen = collections.defaultdict(set)
    for batch in take(train(records, batch_size=20), 30):
        for clip, image in zip(batch["clip"], batch["visual"], strict=True):
            seen[int(clip)].add(image.tobytes())
    assert all(2 <= len(frames) <= 4 for frames in seen.values())
    assert sum(len(frames) for frames in seen.values()) > 70


def test_a_batch_may_hold_one_clip(records):
    # Grain takes the length of an endless sequence for a float.
    (pair,) = take(train(records, batch_size=1), 1)
    assert pair["clip"].shape == (1,)


def test_ids_and_labels_are_known_without_the_records(dataset_dir, records, monkeypatch):
    whole = [records[index] for index in range(len(records))]
    ids = [record["clip_id"].decode() for record in whole]
    labels = [list(record["labels"]) for record in whole]
    assert records.ids(range(len(records))) == ids
    assert [row.tolist() for row in records.labels()] == labels
    for name in ("clip_id", "fbank"):
        for value, record in zip(records.column(name), whole, strict=True):
            np.testing.assert_array_equal(value, record[name])
    fresh = loader.Records(dataset_dir, records.split)
    monkeypatch.setattr(fresh, "shards", None)
    monkeypatch.setattr(fresh, "column", None)
    assert fresh.ids([3, 0]) == [ids[3], ids[0]] and fresh.labels()[1].tolist() == labels[1]


@pytest.mark.parametrize("damage", ["absent", "cut", "of other clips"])
def test_without_an_index_the_records_tell(dataset_dir, tmp_path, damage):
    shutil.copytree(dataset_dir, tmp_path / "data")
    first = loader.Records(tmp_path / "data", "eval")
    index = first.directory / "clips-eval.npz"
    content = index.read_bytes()
    index.unlink()
    if damage == "cut":
        index.write_bytes(content[:-100])
    elif damage == "of other clips":
        dataset_dirs.write_index(first.directory, "eval", ["x"], [[0]])
    expected = loader.Records(dataset_dir, "eval")
    assert first.ids(range(5)) == expected.ids(range(5))
    assert [row.tolist() for row in first.labels()] == [row.tolist() for row in expected.labels()]


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_evaluation_sees_every_clip_once(dataset_dir, batch_size):
    records = loader.Records(dataset_dir, "eval")
    batches = list(loader.clip_batches(records, FRAMING, batch_size, 0, 2))
    clips = np.concatenate([batch["clip"][batch["valid"]] for batch in batches])
    assert clips.tolist() == [0, 1, 2, 3, 4]
    assert all(len(batch["clip"]) == batch_size for batch in batches)
    np.testing.assert_array_equal(batches[0]["visual"][0, 3], FRAMING.pair(records[0], 3)["visual"])


def test_evaluation_goes_on_with_any_batch(dataset_dir):
    records = loader.Records(dataset_dir, "eval")
    rest = list(loader.clip_batches(records, FRAMING, 2, 0, 2, np.array([4, 2, 0]), start=1))
    assert [batch["clip"][batch["valid"]].tolist() for batch in rest] == [[0]]


def test_clips_are_drawn_by_their_weights(records):
    weights = np.zeros(20)
    weights[[3, 17]] = 1, 3
    batches = take(loader.train_batches(records, FRAMING, 40, 0, 0, 0, 2, weights=weights), 5)
    drawn = collections.Counter(np.concatenate([batch["clip"] for batch in batches]).tolist())
    assert set(drawn) == {3, 17} and 110 < drawn[17] < 180  # 150 of 200 on average


def test_rounding_of_the_weights_draws_no_clip_beyond_the_last():
    highest = np.nextafter(1, 0)

    class Highest(np.random.Generator):
        def random(self):
            return highest

    choice = loader._RandomFrame(1, np.full(10, 0.1))
    assert choice._upto[-1] == highest  # ten tenths, added one by one
    assert choice.random_map(0, Highest(np.random.PCG64())) == (9, 0)


def test_a_training_is_refused_before_its_first_batch(records, monkeypatch):
    monkeypatch.setattr(records, "longest_rows", 1100)
    with pytest.raises(UserError, match="dataset holds clips of 1100 rows"):
        train(records)


def test_to_device_keeps_order_and_shards(records):
    mesh = sharding.make_mesh()
    batches = loader.to_device(train(records, batch_size=8), mesh)
    arrays, host = next(batches)
    batches.close()
    assert len(arrays["audio"].sharding.device_set) == 8
    assert arrays["audio"].addressable_shards[0].data.shape == (1, 96, 128)
    np.testing.assert_array_equal(arrays["visual"], host["visual"])


def test_wrong_folders_and_splits_are_told(dataset_dir, tmp_path):
    for folder in (tmp_path / "none", ""):
        with pytest.raises(UserError, match="no dataset folder"):
            loader.Records(folder, "train")
    with pytest.raises(UserError, match=r"holds none: python -m data_prep.videos .*--output"):
        loader.Records(tmp_path, "train")
    named = r"no split 'test'; it has .*train.*: name one by --split, .*--config\.data\.eval_split"
    with pytest.raises(UserError, match=named):
        loader.Records(dataset_dir, "test")
    with pytest.raises(UserError, match="has no frame_class: name a dataset that has it"):
        loader.Records(dataset_dir, "eval", ("frame_class",))
    shutil.copytree(dataset_dir / "videos", tmp_path / "a")
    shutil.copytree(dataset_dir / "videos", tmp_path / "b")
    with pytest.raises(
        UserError, match=r"must hold one prepared dataset, but it holds 2: give one of .*, "
    ):
        loader.Records(tmp_path, "train")
    (tmp_path / "runs/demo").mkdir(parents=True)
    (tmp_path / "a").rename(tmp_path / "runs/demo/videos")
    with pytest.raises(UserError, match=r"it further below: give one of .*/videos/1\.0\.0$"):
        loader.Records(tmp_path / "runs", "train")


def damaged(dataset_dir, folder, change):
    copy = shutil.copytree(dataset_dir, folder / "copy")
    (path,) = copy.rglob("*train*array_record*")
    data = bytearray(path.read_bytes())
    path.write_bytes(change(data))
    return copy


def flip(data):
    for place in range(len(data) // 2, len(data) // 2 + 4):
        data[place] ^= 0xFF
    return data


def test_workers_that_need_more_shared_memory_than_there_is_are_refused(records, monkeypatch):
    total, used = 64_000_000, 63_999_000
    usage = shutil._ntuple_diskusage(total, used, total - used)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    # Of 6 pairs each, 3 batches per worker: two that are ready, and the next one.
    (pair,) = records.pairs(0, FRAMING, [0])
    needed = 2 * 3 * 6 * sum(values.nbytes for values in pair.values())
    message = (
        f"config.data.workers=2 needs {needed / 1e9:.2g} GB of shared memory .* has 1e-06 GB: "
        "lower --config.data.workers or --config.data.prefetch, or give a container more by "
        "docker run --shm-size$"
    )
    with pytest.raises(UserError, match=message):
        train(records, workers=2)
    take(train(records, workers=0), 1)
    # An evaluation has the workers of its training's machine, and uses as many as fit: none here.
    asked = []
    real = loader._prefetched
    monkeypatch.setattr(
        loader, "_prefetched", lambda *given: asked.append(given[2]) or real(*given)
    )
    batch = next(loader.clip_batches(records, FRAMING, 2, workers=8, prefetch=1))
    assert asked == [0] and batch["valid"].all()
    clip = 2 * 2 * FRAMING.num_frames * sum(values.nbytes for values in pair.values())
    roomy = shutil._ntuple_diskusage(total, 0, 3 * clip + 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: roomy)
    loader.clip_batches(records, FRAMING, 2, workers=8, prefetch=1)
    assert asked == [0, 3]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_record_is_named(dataset_dir, tmp_path, workers):
    records = loader.Records(damaged(dataset_dir, tmp_path, flip), "train")
    message = r"copy/videos/1.0.0, split train, record \d+ is damaged"
    with pytest.raises(UserError, match=message) as error:
        take(train(records, workers=workers), 4)
    assert "mismatch" in str(error.value)


@pytest.mark.parametrize("change", [lambda data: data[: len(data) // 2], lambda data: b""])
def test_a_truncated_file_is_named(dataset_dir, tmp_path, change):
    copy = damaged(dataset_dir, tmp_path, change)
    records = loader.Records(copy, "train")
    with pytest.raises(UserError, match=r"copy/videos/1.0.0, split train, record 0 is damaged"):
        records[0]


def test_a_truncated_jpeg_is_named(records):
    class Damaged(loader.Records):
        def __getitem__(self, index):
            record = super().__getitem__(index)
            return {**record, "frames": [frame[:-20] for frame in record["frames"]]}

    broken = Damaged(records.directory, "train")
    with pytest.raises(UserError, match=r"split train, record 3 is damaged .*Premature end"):
        broken.pairs(3, FRAMING, [0])


def test_frames_are_decoded_as_by_pillow():
    for size, channels in itertools.product(((32, 32), (17, 23), (224, 224)), ((), (3,))):
        image = np.random.default_rng(0).integers(0, 256, (*size, *channels), np.uint8)
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=95, subsampling="4:2:0")
        decoded = images.decode_jpeg(file.getvalue())
        np.testing.assert_array_equal(decoded, np.asarray(Image.open(file).convert("RGB")))


def test_a_jpeg_with_a_flaw_in_its_middle_is_refused():
    jpeg = bytearray(images.encode_jpeg(np.zeros((64, 64, 3), np.uint8) + 9, 95))
    middle = len(jpeg) - 20
    jpeg[middle : middle + 2] = b"\xff\xd9"  # the end, too early
    with pytest.raises(OSError, match=r"Corrupt|Premature"):
        images.decode_jpeg(bytes(jpeg))


def test_a_folder_whose_name_is_a_pattern(dataset_dir, tmp_path):
    place = tmp_path / "data [2024]*"
    shutil.copytree(dataset_dir, place)
    assert str(dataset_dirs.find(place)) == f"{place}/videos/1.0.0"
    assert loader.Records(place, "train")[0]["clip_id"]
    name = os.fsdecode(os.fsencode(str(tmp_path)) + b"/\xff")
    os.mkdir(name)
    with pytest.raises(UserError, match=r"xff is not UTF-8"):
        dataset_dirs.find(name)
