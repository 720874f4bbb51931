"""The device's idle time and the bound on steps in flight, with steps that end when told."""

import threading
import time

import pytest

from cavmae_sync_jax.training.device_clock import DeviceClock


class Step:
    def __init__(self):
        self.finish = threading.Event()

    def block_until_ready(self):
        self.finish.wait()
        return self


@pytest.fixture
def clock():
    clock = DeviceClock(ahead=2)
    yield clock
    clock.close()


def settled(clock, count):
    for _ in range(1000):
        if clock._finished == count:
            return
        time.sleep(0.002)
    raise AssertionError("the clock has not seen the step end")


def test_waiting_while_the_device_works_is_not_idle(clock):
    step = Step()
    clock.wait_for_slot()
    clock.dispatched(step)
    now = time.perf_counter()
    assert clock.idle(now - 3, now) == 0
    step.finish.set()
    settled(clock, 1)
    later = clock._finished_at + 2.0
    assert clock.idle(now, later) == pytest.approx(2.0)  # from the step's end only
    assert clock.idle(later - 0.5, later) == pytest.approx(0.5)  # the wait began after it


def test_a_step_waits_while_too_many_are_unfinished(clock):
    steps = [Step() for _ in range(3)]
    for step in steps[:2]:
        clock.wait_for_slot()
        clock.dispatched(step)
    third = threading.Thread(target=clock.wait_for_slot)
    third.start()
    third.join(0.1)
    assert third.is_alive()
    steps[0].finish.set()
    third.join(5)
    assert not third.is_alive()
    steps[1].finish.set()
