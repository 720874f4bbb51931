"""What becomes of a training's numbers when they can't be written."""

import threading
import types

import jax.numpy as jnp
import pytest
import tensorboardX.record_writer
from etils import epath
from tensorboardX import event_file_writer

from cavmae_sync_jax.training import metric_writer
from cavmae_sync_jax.utils.errors import UserError


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("503")])
def test_a_training_never_waits_for_tensorboard(tmp_path, monkeypatch, capsys, error):
    ended, real = threading.Event(), tensorboardX.record_writer.RecordWriter.write

    def refuse(*_):
        raise error

    def write(self, data):
        if isinstance(threading.current_thread(), event_file_writer._EventLoggerThread):
            refuse()
        real(self, data)

    monkeypatch.setattr(threading, "excepthook", lambda _: ended.set())
    monkeypatch.setattr(tensorboardX.record_writer.RecordWriter, "write", write)
    monkeypatch.setattr(tensorboardX.record_writer.RecordWriter, "flush", refuse)
    writer = metric_writer.Writer(epath.Path(tmp_path))

    def train():
        writer.write(0, "train", {"loss": 1.0})
        assert ended.wait(20)  # TensorBoard's thread is no more
        for step in range(1, 61):
            writer.write(step, "train", {"loss": 1.0})
        writer.close()

    training = threading.Thread(target=train, daemon=True)
    training.start()
    training.join(30)
    assert not training.is_alive()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 61
    assert f"TensorBoard's file in {tmp_path} can't be written: {error}" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["write_text", "open"])
def test_metrics_that_cannot_be_written_end_with_a_sentence(tmp_path, monkeypatch, name):
    writer = metric_writer.Writer(epath.Path(tmp_path))
    writer.write(1, "train", {"loss": 1.0})
    writer.write(2, "train", {"loss": 1.0})

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(epath.Path(tmp_path)), name, refuse)
    with pytest.raises(UserError, match=r"metrics\.jsonl can't be written \(.*Permission denied"):
        if name == "open":
            writer.write(3, "train", {"loss": 1.0})
        else:
            writer.drop_after(1)
    writer.close()


def test_the_speed_is_of_the_steps_that_the_clock_saw(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(metric_writer, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    history = metric_writer.History()

    def steps(first, last, seconds=2.0):
        for step in range(first, last + 1):
            now[0] += seconds
            history.waited(0.5)
            history.add(step, {"loss": jnp.float32(step)})

    steps(1, 1, seconds=60.0)  # compiles
    history.restart()
    assert history.flush(8) == {"loss": 1.0}
    steps(2, 4)
    assert history.flush(8) == {"loss": 3.0, "examples_per_second": 4.0, "data_wait": 0.25}
    now[0] += 30.0  # an evaluation
    history.restart()
    # A resumed run compiles at its first step and logs later.
    steps(5, 5, seconds=60.0)
    history.restart()
    steps(6, 7)
    assert history.flush(8) == {"loss": 6.0, "examples_per_second": 4.0, "data_wait": 0.25}
