"""Files are read while the model computes earlier ones, and never more than that."""

import subprocess
import sys
import threading

import pytest

from cavmae_sync_jax.inference import prefetch

PATIENCE = 20.0  # seconds, for what happens at once


def test_later_values_are_at_work_while_an_earlier_one_is_read():
    begun = {value: threading.Event() for value in range(4)}

    def work(value):
        begun[value].set()
        yield from (f"{value}{letter}" for letter in "ab")

    runs = prefetch.run(work, range(4), at_once=2)
    first, items = next(runs)
    # Nobody has taken an item yet, and the next value has begun; the one after it has not.
    assert first == 0 and begun[1].wait(PATIENCE) and not begun[2].is_set()
    assert list(items) == ["0a", "0b"]
    assert [(value, list(items)) for value, items in runs] == [
        (value, [f"{value}a", f"{value}b"]) for value in (1, 2, 3)
    ]


def test_no_more_than_one_item_waits():
    made, second = [], threading.Event()

    def work(value):
        for number in range(5):
            made.append(number)
            if number == 1:
                second.set()
            yield number

    _, items = next(runs := prefetch.run(work, ["long"], at_once=1))
    assert second.wait(PATIENCE)
    # One item waits in the queue, and one in the hand of its thread.
    assert made == [0, 1]
    assert list(items) == [0, 1, 2, 3, 4]
    assert next(runs, None) is None


def test_dropped_items_are_not_taken_for_the_end():
    runs = prefetch.run(lambda value: (one for one in [value]), [1, 2], at_once=2)
    _, dropped = next(runs)
    _, items = next(runs)
    with pytest.raises(RuntimeError, match="dropped"):
        next(dropped)
    assert list(items) == [2]


def test_an_error_comes_where_its_item_would_and_the_next_value_is_read():
    def work(value):
        yield value
        if value == "bad":
            raise ValueError("bad")

    found = []
    for value, items in prefetch.run(work, ["good", "bad", "late"], at_once=2):
        try:
            found.append((value, list(items)))
        except ValueError as error:
            found.append((value, str(error)))
    assert found == [("good", ["good"]), ("bad", "bad"), ("late", ["late"])]


def test_a_program_does_not_wait_for_what_nobody_takes():
    # An error in a loop keeps the iterator, in the error's traceback, until the program has ended.
    code = """if True:
        from cavmae_sync_jax.inference import prefetch
        runs = prefetch.run(lambda value: iter_of(value), range(9), at_once=3)
        def iter_of(value):
            while True:
                yield value
        for value, items in runs:
            raise KeyError(next(items))
        """
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120)
    assert ended.returncode == 1 and b"KeyError: 0" in ended.stderr


@pytest.mark.parametrize("leave", ["for the next value", "for good"])
def test_what_nobody_takes_ends(leave):
    ended = threading.Event()

    def work(value):
        try:
            while True:
                yield value
        finally:
            if value == 0:
                ended.set()

    runs = prefetch.run(work, range(2), at_once=1)
    _, items = next(runs)
    assert next(items) == 0 and not ended.is_set()
    if leave == "for good":
        runs.close()
    else:
        assert next(next(runs)[1]) == 1
        runs.close()
    assert ended.wait(PATIENCE)
