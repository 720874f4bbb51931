"""A training whose dataset and workdir lie in a bucket: killed, resumed, evaluated."""

import gc
import json
import signal

import pytest
import tiny

from benchmarks.data import bucket_emulator
from benchmarks.training import launch
from cavmae_sync_jax import train
from cavmae_sync_jax.checkpoints import manager
from cavmae_sync_jax.checkpoints.pretrained import load
from cavmae_sync_jax.data import loader
from cavmae_sync_jax.evals import retrieval

pytestmark = pytest.mark.release
# What `tiny.config` sets, as flags.
SIZES = {"image_size": 32, "image_patch": 16, "audio_rows": 96, "width": 16, "depth": 2, "heads": 2}
SIZES |= {"decoder_width": 8, "decoder_heads": 2, "registers": 2}
STEPS, SAVED = 15, 4


@pytest.fixture
def place(bucket_server, dataset_dir):
    bucket_server.turn(errors=0, latency_ms=0, kill=0)
    with bucket_server.pointed_at():
        yield bucket_emulator.upload(dataset_dir, bucket_server.folder, "bucket", "killed/data")
        # TensorBoard's writers upload once more when they are collected, and wait for a bucket that
        # has gone.
        gc.collect()


def rows(text):
    found = [json.loads(line) for line in text.splitlines()]
    return {row["step"]: row["loss"] for row in found if row["split"] == "train"}


def start(data, workdir, logs):
    settings = {"batch_size": 8, "epochs": 6.0, "warmup_share": 0.0, "log_every": 1}
    settings |= {"checkpoint_every": SAVED, "data.dir": data, "data.num_frames": 4}
    settings |= {"data.eval_split": "", "data.workers": 0}
    settings |= {f"model.{name}": size for name, size in SIZES.items()}
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    program = ["cavmae_sync_jax.train", "--config=configs/demo.py", *flags]
    program.append(f"--workdir={workdir}")
    (process,) = launch.start(1, [program], logs, together=False)
    return process


def said(logs):
    return (logs / "0.log").read_text(errors="replace")


def test_killed_by_requests_it_goes_on_with_the_same_losses(
    bucket_server, place, dataset_dir, tmp_path
):
    process = start(dataset_dir, tmp_path / "disk", tmp_path / "logs")
    assert launch.finish([process]) == [0], said(tmp_path / "logs")
    expected = rows((tmp_path / "disk/metrics.jsonl").read_text())
    workdir = "gs://bucket/killed/run"
    store = bucket_emulator.Store(bucket_server.folder)
    checkpoints = "killed/run/checkpoints"
    # In the middle of the first save, and at a later request, maybe of a save, maybe of the data.
    for moment in (f"{checkpoints}/{SAVED}/state/", f"{checkpoints}/{2 * SAVED}/"):
        process = start(place, workdir, tmp_path / "logs")
        launch.wait_for(lambda moment=moment: bool(store.names("bucket", moment)), [process])
        process.kill()
        assert process.wait(60) == -signal.SIGKILL
    process = start(place, workdir, tmp_path / "logs")
    assert launch.finish([process]) == [0], said(tmp_path / "logs")
    text, _, _ = store.read("bucket", "killed/run/metrics.jsonl", None)
    assert list(rows(text.decode())) == list(range(1, STEPS + 1))
    assert rows(text.decode()) == expected
    # A second end finds nothing to do, and evaluations read the weights from there.
    process = start(place, workdir, tmp_path / "logs")
    assert launch.finish([process]) == [0], said(tmp_path / "logs")
    assert f"resuming {workdir} at step {STEPS}" in said(tmp_path / "logs")
    records = loader.Records(place, "eval")
    found = [
        retrieval.run(load(each), records, None)["scores"] for each in (workdir, tmp_path / "disk")
    ]
    assert found[0] == found[1]


def test_it_goes_on_after_ctrl_c_and_through_faults(
    bucket_server, place, dataset_dir, tmp_path, monkeypatch
):
    config = tiny.config(dataset_dir, data__eval_split="", data__workers=0)
    train.train_and_evaluate(config, tmp_path)
    expected, workdir = (tmp_path / "metrics.jsonl").read_text(), "gs://bucket/faulty/run"
    config.data.dir = place
    real = manager.Checkpoints.save

    def second_only(self, step, *args):
        if step > 2 * SAVED:
            raise KeyboardInterrupt
        real(self, step, *args)

    bucket_server.turn(errors=0.05)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(manager.Checkpoints, "save", second_only)
        train.train_and_evaluate(config, workdir)
    train.train_and_evaluate(config, workdir)
    assert bucket_server.counts()["faults"] > 1
    bucket_server.turn(errors=0)
    store = bucket_emulator.Store(bucket_server.folder)
    text, _, _ = store.read("bucket", "faulty/run/metrics.jsonl", None)
    assert rows(text.decode()) == rows(expected)
