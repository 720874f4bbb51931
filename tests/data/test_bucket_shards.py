"""Batches out of a bucket are those from the disk, to the byte, whatever its server does."""

import itertools
import os
import resource
import struct
import threading

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from benchmarks.data import bucket_emulator
from cavmae_sync_jax.data import array_record_format, bucket_shards, disk_shards, loader
from cavmae_sync_jax.data.pair_spec import PairSpec
from cavmae_sync_jax.evals import clip_lists
from cavmae_sync_jax.utils.errors import UserError

FRAMING = PairSpec(4, clip_rows=1024, audio_rows=96, audio_bins=128, image_size=32)


@pytest.fixture(scope="module")
def emulator(bucket_server):
    with bucket_server.pointed_at(), pytest.MonkeyPatch.context() as patch:
        # Else each retry costs a test a second.
        patch.setitem(bucket_shards.RETRIES, "initial_delay", "20ms")
        patch.setitem(bucket_shards.RETRIES, "max_delay", "200ms")
        yield bucket_server


@pytest.fixture(scope="module")
def stored(emulator, dataset_dir):
    """The dataset in the bucket."""
    return bucket_emulator.upload(dataset_dir, emulator.folder, "bucket", "data")


@pytest.fixture(autouse=True)
def undisturbed(emulator):
    emulator.turn(errors=0, status=0, latency_ms=0)
    emulator.settle()
    yield


def take(records, count, workers=0, start=0):
    stream = loader.train_batches(records, FRAMING, 6, 3, start, workers, 2)
    batches = [next(stream) for _ in range(count)]
    stream.close()
    return batches


def same(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        assert set(one) == set(other)
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


@pytest.fixture(scope="module")
def from_disk(dataset_dir):
    return take(loader.Records(dataset_dir, "train"), 8)


@pytest.mark.parametrize("requests", [1, 4, 128])
def test_a_bucket_gives_the_batches_of_the_disk(stored, from_disk, requests):
    records = loader.Records(stored, "train", requests=requests)
    assert records.in_bucket
    same(take(records, 8), from_disk)


def test_workers_read_a_bucket_whose_server_fails(stored, emulator, from_disk):
    records = loader.Records(stored, "train")
    emulator.turn(errors=0.2, seed=1)
    same(take(records, 8, workers=1), from_disk)
    assert emulator.counts()["faults"] > 3


def test_errors_in_5_percent_of_the_requests_change_no_byte(stored, emulator, from_disk, capsys):
    records, before = loader.Records(stored, "train"), bucket_shards.repeats()
    emulator.turn(errors=0.05)
    for _ in range(6):
        same(take(records, 8), from_disk)
    repeated = bucket_shards.repeats() - before
    assert emulator.counts()["faults"] >= 10 and repeated >= 5
    assert "requests to gs:// failed and were repeated" in capsys.readouterr().err


def test_a_server_that_is_gone_for_a_while_changes_no_byte(stored, emulator, from_disk):
    records = loader.Records(stored, "train")
    stream = loader.train_batches(records, FRAMING, 6, 3, 0, 0, 2)
    batches = [next(stream) for _ in range(2)]
    emulator.stop()
    back = threading.Timer(1.0, emulator.start)
    back.start()
    batches += [next(stream) for _ in range(6)]
    stream.close()
    back.join()
    same(batches, from_disk)


def test_a_server_that_does_not_come_back_ends_with_a_sentence(stored, emulator, monkeypatch):
    records = loader.Records(stored, "train")
    monkeypatch.setitem(bucket_shards.RETRIES, "max_retries", 2)
    emulator.turn(errors=1)
    with pytest.raises(UserError, match=r"gs://bucket/data/.*train.* can't be read: .*2 retry"):
        take(records, 1)


def test_what_no_repeat_mends_is_told_at_once(stored, emulator):
    records = loader.Records(stored, "train")
    emulator.turn(errors=1, status=403)
    with pytest.raises(UserError, match=r"gs://bucket/data/.*train.* can't be read: PERMISSION"):
        records[0]
    assert emulator.counts()["requests"] == 1


def test_a_silent_server_is_told_of(stored, emulator, monkeypatch, capsys):
    records = loader.Records(stored, "train")
    monkeypatch.setattr(bucket_shards, "LOG_EVERY", 0.05)
    emulator.turn(latency_ms=150)
    assert records[3]["clip_id"]
    monkeypatch.setattr(bucket_shards, "LONGEST_WAIT", 0.1)
    with pytest.raises(UserError, match=r"train.* has not been answered for 0 s: start again"):
        records[3]
    assert "waiting for gs://bucket/data/videos/1.0.0/videos-train" in capsys.readouterr().err


def test_a_few_requests_are_in_flight_and_each_byte_comes_once(stored, emulator):
    records = loader.Records(stored, "train", requests=5)
    records[0]  # now it is known where the records are
    emulator.turn(latency_ms=20)
    order = [7, 3, 3, 19, *range(12)]
    read = [records[index]["clip_id"] for index in records.ahead(order)]
    assert read == [records[index]["clip_id"] for index in order]
    counts = emulator.counts()
    assert counts["most_in_flight"] == 5 and counts["requests"] == 2 * len(order)
    (path,) = (emulator.folder / "bucket").glob("data%2F*train.array_record*")
    largest = max(len(records.shards.read(index)) for index in range(20))
    assert counts["bytes"] < 2 * len(order) * (largest + 200) < path.stat().st_size * 2


def test_who_stops_early_leaves_nothing_behind(stored):
    records = loader.Records(stored, "train", requests=4)
    ahead = records.ahead(range(20))
    assert records[next(ahead)]["clip_id"] == records[0]["clip_id"]
    ahead.close()
    assert not records.shards._asked


def test_ids_and_chosen_clips_come_from_a_bucket(stored, dataset_dir):
    here, there = (loader.Records(place, "train") for place in (dataset_dir, stored))
    assert there.identity == here.identity
    assert there.ids([4, 1, 1]) == here.ids([4, 1, 1])
    chosen = [clip_lists.Selected(records, [5, 2, 11]) for records in (here, there)]
    batches = [list(loader.clip_batches(c, FRAMING, 2, 0, 2)) for c in chosen]
    same(*batches)
    assert [clip for b in batches[1] for clip in b["clip"][b["valid"]]] == [0, 1, 2]


def test_what_is_not_whole_is_named(stored, emulator, dataset_dir):
    store = bucket_emulator.Store(emulator.folder)
    where = bucket_emulator.upload(dataset_dir, emulator.folder, "bucket", "broken")
    (name,) = store.names("bucket", "broken/videos/1.0.0/videos-train")
    whole, _, _ = store.read("bucket", name, None)
    records = loader.Records(where, "train")
    records[0]
    store.write("bucket", name, whole)
    with pytest.raises(UserError, match=r"videos-train.* was replaced while it was read"):
        records[1]
    for data, why in (
        (whole[: len(whole) // 2], "does not end as|no whole chunk|disagree"),
        (b"", "can't be read|no whole chunk"),
        (
            whole[: -2 * array_record_format.BLOCK] + bytes(2 * array_record_format.BLOCK),
            "no whole",
        ),
    ):
        store.write("bucket", name, data)
        with pytest.raises(UserError, match=f"gs://bucket/broken/videos/1.0.0/videos-train.*{why}"):
            loader.Records(where, "train")[0]
    store.path("bucket", name).unlink()
    with pytest.raises(UserError, match="is not there, though the dataset says so"):
        loader.Records(where, "train")[0]
    with pytest.raises(UserError, match="no dataset folder 'gs://bucket/none'"):
        loader.Records("gs://bucket/none", "train")


@pytest.mark.parametrize("group", [1, 7])
def test_records_are_found_as_by_array_record(tmp_path, group):
    path, rng = tmp_path / "a", np.random.default_rng(0)
    writer = ArrayRecordWriter(str(path), f"group_size:{group},uncompressed")
    # Records around the size of a block, and without a byte.
    sizes = [0, 1, 65_536 - 64 - 24 - 40 - 5, 65_536, 70_000, 200_000, *rng.integers(0, 90_000, 40)]
    for size in sizes:
        writer.write(rng.bytes(int(size)))
    writer.close()
    data = path.read_bytes()
    begin = array_record_format.footer_place(data[-array_record_format.BLOCK :])
    index = array_record_format.read_footer(data[begin:], begin)
    assert index.records == len(sizes)
    reader = ArrayRecordReader(str(path))
    for position, theirs in enumerate(reader.read_all()):
        first, end, number = index.span(position)
        assert array_record_format.records(data[first:end], first)[number] == theirs
        with pytest.raises(ValueError, match=r"no whole chunk|disagree"):
            array_record_format.records(data[first : end - 1], first)


def test_a_compressed_file_is_refused(tmp_path):
    path = tmp_path / "a"
    writer = ArrayRecordWriter(str(path), "group_size:1")
    writer.write(bytes(1000))
    writer.close()
    data = path.read_bytes()
    begin = array_record_format.footer_place(data[-array_record_format.BLOCK :])
    with pytest.raises(ValueError, match="compressed"):
        array_record_format.read_footer(data[begin:], begin)


def varint(number):
    parts = [number >> shift & 0x7F for shift in range(0, max(1, number.bit_length()), 7)]
    return bytes([*(part | 0x80 for part in parts[:-1]), parts[-1]])


def chunk(records, length=None, sizes=None):
    """A chunk of records that lies within a block; the last two are told wrongly."""
    sizes = b"".join(varint(len(one)) for one in records) if sizes is None else sizes
    body = b"\0" + varint(len(sizes) if length is None else length) + sizes + b"".join(records)
    head = 0, len(body), 0, len(records) << 8 | ord("r"), sum(map(len, records))
    return struct.pack("<5Q", *head) + body


@pytest.mark.parametrize("length", [4, 100, 2**38, 2**63, 2**66])
def test_sizes_that_are_longer_than_their_chunk_are_told(length):
    assert array_record_format.records(chunk([b"ab", b"c"]), 100) == [b"ab", b"c"]
    with pytest.raises(ValueError, match="the sizes of its records disagree"):
        array_record_format.records(chunk([b"a", b""], length), 100)


def test_a_number_without_an_end_is_told():
    with pytest.raises(ValueError, match="a number in it is too long"):
        array_record_format.records(chunk([b"a"], sizes=b"\xff" * 30_000), 100)


@pytest.mark.parametrize("entry", [{1: 2**64 - 1, 3: 1}, {1: 64, 3: 2**64 - 1}, {1: 101, 3: 1}])
def test_a_footer_that_leads_beyond_the_file_is_told(entry):
    def footer(fields):
        packed = b"".join(varint(key << 3) + varint(value) for key, value in fields.items())
        return chunk([b"", packed])

    assert array_record_format.read_footer(footer({1: 64, 3: 5}), 100).records == 5
    with pytest.raises(ValueError, match="beyond its end"):
        array_record_format.read_footer(footer(entry), 100)


def test_more_shards_than_a_process_may_open(tmp_path, monkeypatch):
    paths, used = [], len(os.listdir("/proc/self/fd"))
    for number in range(40):
        paths.append(str(tmp_path / f"{number}"))
        writer = ArrayRecordWriter(paths[-1], "group_size:1,uncompressed")
        for record in range(3):
            writer.write(f"{number} {record}".encode())
        writer.close()
    places = disk_shards.Places(paths, [3] * 40)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 24, hard))
    try:
        shards = disk_shards.DiskShards(places)
        for index in itertools.chain(range(120), range(119, -1, -1)):
            assert shards.read(index) == f"{index // 3} {index % 3}".encode()
        assert len(os.listdir("/proc/self/fd")) < used + 24
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with pytest.raises(IndexError):
        shards.read(120)


@pytest.mark.parametrize(("given", "used"), [(None, "1"), ("4", "4")])
def test_a_process_has_one_http_thread_unless_its_user_wants_more(monkeypatch, given, used):
    name = "TENSORSTORE_HTTP_THREADS"
    monkeypatch.setenv(name, given or "")
    if given is None:
        monkeypatch.delenv(name)  # what is set below ends with this test
    bucket_shards.BucketShards(disk_shards.Places(["gs://bucket/shard"], [1]), 1)
    assert os.environ[name] == used
