"""Files that crash a decoder or keep it busy end in a sentence, and the next one is read."""

import contextlib
import threading
import time
from concurrent.futures import CancelledError

import pytest
import soundfile
from media_files import noise

from cavmae_sync_jax.inference import reading, workers
from cavmae_sync_jax.utils.errors import UserError


def test_who_waits_for_an_answer_is_told_when_the_workers_end():
    told = []
    with workers.started(1) as started:

        def ask():
            with workers.within(started), contextlib.suppress(CancelledError):
                workers.call(eval, "__import__('time').sleep(600)")
            told.append("ended")

        waiting = [threading.Thread(target=ask, daemon=True) for _ in range(2)]
        for thread in waiting:
            thread.start()
        while len(started.answers) < 2:
            time.sleep(0.01)
    for thread in waiting:
        thread.join(20)
    assert told == ["ended"] * 2


def test_a_crash_and_a_time_limit_are_sentences(tmp_path):
    sound = tmp_path / "sound.wav"
    soundfile.write(sound, noise(1), 16_000)
    with workers.started(1) as started, workers.within(started):
        first = reading.file_info(sound)
        with pytest.raises(UserError, match=r"\(6\) made the decoder crash$"):
            workers.call(eval, "__import__('os')._exit(6)")
        with (
            workers.within(started._replace(limit=0.2)),
            pytest.raises(UserError, match=r"\(60\) took longer than 0 s to decode$"),
        ):
            workers.call(eval, "__import__('time').sleep(60)")
        gone = "(_ for _ in ()).throw(TimeoutError(110, 'Connection timed out'))"
        with pytest.raises(UserError, match=r"can.t be read: Connection timed out$"):
            workers.call(eval, gone)
        with pytest.raises(UserError, match="there is no file"):
            reading.file_info(tmp_path / "nothing")
        assert reading.file_info(sound) == first
        # Neither JAX nor the program that started it is loaded there.
        assert workers.call(eval, "'jax' in __import__('sys').modules") is False
    assert reading.file_info(sound) == first
