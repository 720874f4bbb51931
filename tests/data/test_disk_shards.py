"""Which shard holds a record, and which shards are open."""

import pickle
import resource

import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from cavmae_sync_jax.data import disk_shards
from cavmae_sync_jax.data.disk_shards import DiskShards, Places

LENGTHS = (3, 1, 0, 4, *[1] * 8)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Shards of different lengths, one of them empty; record i of all holds the number i."""
    folder, number = tmp_path_factory.mktemp("shards"), 0
    paths = [str(folder / f"{shard:02}") for shard in range(len(LENGTHS))]
    for path, length in zip(paths, LENGTHS, strict=True):
        writer = ArrayRecordWriter(path, "group_size:1")
        for _ in range(length):
            writer.write(str(number).encode())
            number += 1
        writer.close()
    return paths


@pytest.fixture
def places(paths):
    return Places(paths, LENGTHS)


def limited(monkeypatch, files):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))


def test_each_record_is_found_in_its_shard(places):
    assert len(places) == 16
    found = [places.find(index) for index in range(8)]
    assert found == [(0, 0), (0, 1), (0, 2), (1, 0), (3, 0), (3, 1), (3, 2), (3, 3)]
    for index in (-1, 16):
        with pytest.raises(IndexError, match=f"record {index} of 16"):
            places.find(index)


def test_no_shards_hold_no_record():
    assert len(Places([], [])) == 0
    with pytest.raises(IndexError, match="record 0 of 0"):
        Places([], []).find(0)


def test_all_records_are_read_in_any_order_also_by_a_copy(places):
    shards = DiskShards(places)
    shards.read(15)
    order = [*range(15, -1, -1), 7]
    for each in (shards, pickle.loads(pickle.dumps(shards))):
        assert [int(each.read(index)) for index in order] == order
    assert list(shards.ahead([4, 2, 2])) == [4, 2, 2]


@pytest.mark.parametrize(
    ("files", "most"), [(0, 8), (39, 9), (40, 10), (resource.RLIM_INFINITY, len(LENGTHS))]
)
def test_a_quarter_of_the_files_that_may_be_open_are_shards(places, monkeypatch, files, most):
    limited(monkeypatch, files)
    shards = DiskShards(places)
    for index in range(16):
        shards.read(index)
    used = [shard for shard, length in enumerate(LENGTHS) if length]
    assert list(shards._open) == used[-most:]


def test_the_shard_that_was_not_used_for_longest_is_closed(places, monkeypatch):
    limited(monkeypatch, 32)
    shards = DiskShards(places)
    for shard in (0, 1, 3, 4, 5, 6, 7, 8, 0, 9):
        assert shards._reader(shard) is shards._reader(shard)
    assert list(shards._open) == [3, 4, 5, 6, 7, 8, 0, 9]


def test_single_records_are_read_without_reading_ahead(places, monkeypatch):
    asked, real = [], disk_shards.ArrayRecordReader

    def reader(path, **settings):
        asked.append(settings)
        return real(path, **settings)

    monkeypatch.setattr(disk_shards, "ArrayRecordReader", reader)
    assert DiskShards(places).read(2) == b"2"
    options = "readahead_buffer_size:0,max_parallelism:0"
    assert asked == [{"options": options, "file_reader_buffer_size": 2**15}]
