"""Batches are built in order, ahead of their use, and a bucket is asked for later ones."""

import threading
from concurrent import futures

import grain
import numpy as np
import pytest

from benchmarks.data import bucket_emulator
from cavmae_sync_jax.data import loader
from cavmae_sync_jax.data.batch_stream import Batches
from cavmae_sync_jax.data.pair_spec import PairSpec

FRAMING = PairSpec(4, clip_rows=1024, audio_rows=96, audio_bins=128, image_size=32)


class Numbers:
    """A builder whose records are numbers, of which it can't read some."""

    def __init__(self, broken=()):
        self.records, self.broken = self, broken
        self.asked = []

    def ahead(self, indices):
        for index in indices:
            self.asked.append(index)
            yield index

    def clips(self, element):
        return [3 * element, 3 * element + 1, 3 * element + 2]

    def batch(self, element, clips):
        read = []
        for clip in clips:
            if clip in self.broken:
                raise ValueError(f"{clip} is broken")
            read.append(clip)
        return {"element": np.array(element), "read": np.array(read)}


def stream(builder, ready=2, elements=6):
    numbers = grain.MapDataset.range(elements).to_iter_dataset()
    return iter(Batches(numbers, builder, ready))


@pytest.mark.parametrize("ready", [1, 3, 20])
def test_each_batch_has_its_own_records(ready):
    batches = list(stream(Numbers(), ready))
    assert [int(batch["element"]) for batch in batches] == list(range(6))
    assert [batch["read"].tolist() for batch in batches] == np.arange(18).reshape(6, 3).tolist()


def test_after_an_error_no_batch_comes():
    """The records of a later batch would be taken for those of the broken one."""
    batches = stream(Numbers(broken=[4]))
    assert next(batches)["read"].tolist() == [0, 1, 2]
    for _ in range(4):
        with pytest.raises(ValueError, match="4 is broken"):
            next(batches)


def test_a_stream_goes_on_where_its_state_says():
    batches = stream(Numbers())
    taken = [next(batches) for _ in range(2)]
    state = batches.get_state()
    later = [next(batches)["read"].tolist() for _ in range(2)]
    other = stream(Numbers())
    other.set_state(state)
    assert [next(other)["read"].tolist() for _ in range(2)] == later
    batches.set_state(state)
    assert [next(batches)["read"].tolist() for _ in range(2)] == later
    assert batches.get_state() == other.get_state() != state
    assert len(taken) == 2


def test_a_stream_that_is_closed_reads_no_more():
    builder = Numbers()
    batches = stream(builder, elements=10_000)
    next(batches)
    batches.close()
    batches._thread.join(30)
    assert len(builder.asked) <= 12


def test_the_garbage_collector_may_end_a_stream_while_a_thread_begins():
    """It may do so where a lock is held that beginning a thread needs."""
    batches = stream(Numbers(), elements=10_000)
    next(batches)
    with futures.thread._global_shutdown_lock:
        closing = threading.Thread(target=batches.close, daemon=True)
        closing.start()
        closing.join(10)
        assert not closing.is_alive()


def test_requests_are_in_flight_for_the_next_batches(bucket_server, dataset_dir):
    """Else every batch would begin with a wait for its first record."""
    with bucket_server.pointed_at():
        bucket_server.turn(errors=0, status=0, latency_ms=0)
        stored = bucket_emulator.upload(dataset_dir, bucket_server.folder, "bucket", "ahead")
        records = loader.Records(stored, "train", requests=10)
        records[0]  # now it is known where the records are
        bucket_server.turn(latency_ms=60)
        batches = loader.train_batches(records, FRAMING, 3, 3, 0, 0, 1)
        for _ in range(6):
            next(batches)
        batches.close()
        batches._thread.join(30)
        # More than the two batches that were being built at a time have.
        assert 6 < bucket_server.counts()["most_in_flight"] <= 10
        assert not records.shards._asked
        bucket_server.turn(latency_ms=0)
        bucket_server.settle()
