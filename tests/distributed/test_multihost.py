"""Runs of two and four real processes do what one process does, and end when one of them dies."""

import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import tiny

from benchmarks.training import faults, launch
from cavmae_sync_jax.distributed import multihost
from cavmae_sync_jax.utils.errors import UserError

pytestmark = pytest.mark.release

STEPS = 12
# The others are made of the same stages: temporal of embeddings, tokens of the probe's training.
EVALS = ("retrieval", "segmentation", "reconstruction", "probe")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Scenes with labels and masks: 21 to train on, 5 to evaluate; neither divides by the batch."""
    return tiny.write_scenes(tmp_path_factory.mktemp("scenes") / "data", train=21, eval=5)


def training(data, workdir):
    sizes = {"image_size": 32, "image_patch": 16, "width": 16, "depth": 1, "decoder_width": 8}
    settings = {"batch_size": 8, "epochs": STEPS * 8 / 21, "log_every": 1, "checkpoint_every": 8}
    settings |= {"data.dir": data, "data.num_frames": 4, "eval_every": 0.0}
    settings |= {f"model.{name}": size for name, size in sizes.items()}
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    return ["cavmae_sync_jax.train", "--config=configs/demo.py", *flags, f"--workdir={workdir}"]


def evaluations(data, checkpoint, output):
    flags = [f"--checkpoint={checkpoint}", f"--data={data}", f"--output={output}"]
    recipe = ["--config=configs/probe.py:demo", "--config.batch_size=8", "--config.epochs=2"]
    recipe += ["--config.average_from=1"]
    return [
        [f"cavmae_sync_jax.evals.{name}", *flags, *(recipe if name == "probe" else [])]
        for name in EVALS
    ]


def lines(workdir, split="train"):
    path = workdir / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [row for row in rows if row["split"] == split]


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    """One process trains and evaluates, without any word of others in its environment."""
    folder = tmp_path_factory.mktemp("alone")
    commands = [training(data, folder / "train")]
    commands += evaluations(data, folder / "train", folder / "evals")
    started = launch.start(1, commands, folder / "logs", together=False)
    assert launch.finish(started) == [0], (folder / "logs/0.log").read_text()
    return folder


@pytest.fixture(scope="module")
def pair(data, alone, tmp_path_factory):
    """Two processes evaluate what one has trained, and train until one of them gets SIGTERM."""
    folder = tmp_path_factory.mktemp("pair")
    commands = evaluations(data, alone / "train", folder / "evals")
    started = launch.start(2, [*commands, training(data, folder / "train")], folder / "logs")
    launch.wait_for(lambda: len(lines(folder / "train")) >= 3, started)
    started[1].send_signal(signal.SIGTERM)
    return folder, launch.finish(started)


def test_two_processes_give_the_same_scores(alone, pair):
    folder, _ = pair
    for name in EVALS:
        ours = json.loads((folder / f"evals/{name}.json").read_text())
        theirs = json.loads((alone / f"evals/{name}.json").read_text())
        for part in ("scores", "errors", "baselines"):
            same(ours.get(part), theirs.get(part))
    pictures = {path.name for path in (alone / "evals").glob("*.png")}
    assert {path.name for path in (folder / "evals").glob("*.png")} == pictures
    # Only the first process speaks and writes.
    said = (folder / "logs/1.log").read_text()
    assert "mIoU" in (folder / "logs/0.log").read_text() and "mIoU" not in said


def same(ours, theirs):
    if isinstance(theirs, dict):
        assert set(ours) == set(theirs)
        for key, value in theirs.items():
            same(ours[key], value)
    else:
        assert (ours is None) == (theirs is None)
        assert theirs is None or ours == pytest.approx(theirs, rel=1e-5, nan_ok=True)


def test_sigterm_to_one_saves_and_ends_both(pair):
    folder, statuses = pair
    assert statuses == [143, 143]
    told = re.findall(r"stopped: step (\d+) is saved", (folder / "logs/0.log").read_text())
    last = lines(folder / "train")[-1]["step"]
    assert told == [str(last)] and last < STEPS
    assert (folder / "train/checkpoints" / told[0]).is_dir()


def test_four_go_on_where_two_stopped_as_one_would(alone, pair, data):
    folder, _ = pair
    stopped = lines(folder / "train")[-1]["step"]
    started = launch.start(4, [training(data, folder / "train")], folder / "more")
    assert launch.finish(started) == [0] * 4, (folder / "more/0.log").read_text()
    assert f"at step {stopped}" in (folder / "more/0.log").read_text()
    ours, theirs = lines(folder / "train"), lines(alone / "train")
    assert [row["step"] for row in ours] == list(range(1, STEPS + 1))
    # Neither a clip twice nor a clip left out would give these losses.
    for name in ("loss", "contrast", "reconstruction_audio", "grad_norm"):
        mine, other = ([row[name] for row in rows] for rows in (ours, theirs))
        np.testing.assert_allclose(mine, other, rtol=1e-4, err_msg=name)
    ours, theirs = lines(folder / "train", "eval"), lines(alone / "train", "eval")
    assert [row["step"] for row in ours] == [STEPS]
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.pop("split") == other.pop("split")
        same(mine, other)


def test_when_one_is_killed_the_other_ends_with_a_message(data, tmp_path):
    started = launch.start(2, [training(data, tmp_path / "train")], tmp_path)
    launch.wait_for(lambda: len(lines(tmp_path / "train")) >= 1, started)
    started[1].kill()
    survivor, _ = launch.finish(started, timeout=3 * launch.SECONDS)
    assert survivor not in (0, None)
    said = (tmp_path / "0.log").read_text()
    assert "one of them has stopped" in said or "another task died" in said


def test_the_benchmark_of_faults_damages_and_tells(tmp_path):
    (tmp_path / "file").write_bytes(bytes(100))
    faults.flip(tmp_path / "file")
    assert sum((tmp_path / "file").read_bytes()) == 16
    faults.truncate(tmp_path / "file")
    assert (tmp_path / "file").stat().st_size == 50
    said = "train: 5%\nmodule: error: checkpoint /a/b/31 is damaged\nwarnings.warn('x')"
    assert faults.shorten(said) == "checkpoint …/31 is damaged"
    run = faults.Run(tmp_path, tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "loss": 0.5}\n{"step": 4, "lo')
    for name in ("8", "12", "16.orbax-checkpoint-tmp"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert run.losses() == {3: 0.5} and run.last() == 3 and run.saved() == [8, 12]


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (["JAX_PROCESS_ID=0"], "JAX_PROCESS_ID set, but not JAX_COORDINATOR_ADDRESS"),
        (["host:1", "2", "2"], "a rank below it"),
        (["host", "2", "1"], "must be HOST:PORT"),
        (["host:1", "two", "1"], "must be HOST:PORT"),
    ],
)
def test_an_environment_that_makes_no_sense(variables, message, monkeypatch):
    pairs = [v.split("=") for v in variables if "=" in v] or zip(
        multihost.VARIABLES, variables, strict=True
    )
    for name, value in pairs:
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        multihost.initialize()


def test_a_worker_outlives_signals_but_not_its_parent(tmp_path):
    worker = (
        "import os, time; from cavmae_sync_jax.distributed import preemption; "
        "preemption.init_worker(0, 1); print(os.getpid(), flush=True); time.sleep(60)"
    )
    parent = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    with subprocess.Popen(
        [sys.executable, "-c", parent, worker], stdout=subprocess.PIPE, text=True
    ) as process:
        pid = int(process.stdout.readline())
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(pid, number)
        process.kill()
        assert process.stdout.read() == ""  # returns when the worker, too, has closed its end
