"""A table of tiny trainings, made by processes that are killed and that share a workdir."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
import tiny

from cavmae_sync_jax import ablate, train
from cavmae_sync_jax.ablations import plan, tables
from cavmae_sync_jax.ablations.datasets import Datasets
from cavmae_sync_jax.utils import cli
from cavmae_sync_jax.utils.errors import UserError

pytestmark = pytest.mark.release

ROOT = pathlib.Path(__file__).parents[2]
TABLE = """
TITLE = "Three tiny rows"
ROWS = {
    "as it is": {},
    "more contrast": {"changes": {"loss.contrast_weight": 2.0}},
    "two frames": {"num_frames": 2},
}
COLUMNS = [
    "retrieval@audioset/visual_to_audio/R1",
    "retrieval@elsewhere/visual_to_audio/R1",
    "segmentation/cosine/mIoU",
    "training/loss",
]
"""
SIZES = {
    "batch_size": 8,
    "epochs": 12,  # 30 steps
    "checkpoint_every": 10,
    "log_every": 1,
    "data.num_frames": 4,
    "model.image_size": 32,
    "model.image_patch": 16,
    "model.width": 16,
    "model.depth": 1,
    "model.decoder_width": 8,
    "model.decoder_heads": 1,
    "model.remat": "none",
}


@pytest.fixture(scope="module")
def arguments(dataset_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablation")
    (folder / "mine.py").write_text(TABLE)
    flags = [f"--config.{key}={value}" for key, value in SIZES.items()]
    flags += [f"--config.data.dir={dataset_dir}", "--config=configs/demo.py"]
    return folder, [f"--table={folder / 'mine.py'}", f"--workdir={folder / 'work'}", *flags]


def begin(arguments):
    command = [sys.executable, "-m", "cavmae_sync_jax.ablate", *arguments]
    # One device compiles faster than eight.
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)


def here(arguments, monkeypatch, capsys):
    """Calls the program in this process: (status, out, err)."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["ablate", *arguments])
    capsys.readouterr()
    status = 0
    try:
        ablate.main()
    except SystemExit as ended:
        status = ended.code
    return (status, *capsys.readouterr())


def until(condition, seconds=300.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_killed_shared_and_finished(arguments, monkeypatch, capsys):
    folder, flags = arguments
    work = folder / "work"
    first = work / "trainings" / "unchanged-seed0"

    other = begin(flags)
    until(lambda: (first / "train" / "checkpoints" / "10").is_dir() or other.poll() is not None)
    os.kill(other.pid, signal.SIGSTOP)  # it lives, and has its lock
    assert not (first / "trained.json").exists()
    status, out, err = here(flags, monkeypatch, capsys)
    assert status == 3 and "what other processes work on (unchanged-seed0)" in err
    assert "Not finished: unchanged-seed0." in out
    assert re.findall(r"training (\S+), for the rows", err) == ["loss.contrast_weight=2.0-seed0"]
    assert "needs --data=elsewhere=DIR" in err and "has no true pixels" in err

    os.kill(other.pid, signal.SIGKILL)
    other.communicate()
    status, out, err = here(flags, monkeypatch, capsys)
    assert status == 0
    assert re.findall(r"training (\S+), for the rows", err) == ["unchanged-seed0"]
    assert re.search(r"resuming \S+unchanged-seed0/train at step [123]0", err)
    assert re.findall(r"evaluating (\S+): (\S+)", err) == [
        ("unchanged-seed0", "retrieval-audioset"),
        ("unchanged-seed0", "retrieval-audioset-frames_2"),
    ]

    # Once more: nothing is left to do, and the table is whole.
    status, out, err = here(flags, monkeypatch, capsys)
    assert status == 0 and "training " not in err and "evaluating" not in err
    assert "| as it is | " in out and "Not finished" not in out
    result = json.loads((work / "table_mine.json").read_text())
    assert result["missing"] == [] and set(result["left_out"]) == {
        "retrieval@elsewhere/visual_to_audio/R1",
        "segmentation/cosine/mIoU",
    }
    rows = result["rows"]
    shared = rows["as it is"]["trainings"] == rows["two frames"]["trainings"]
    assert shared and rows["more contrast"]["trainings"] != rows["as it is"]["trainings"]
    losses = {name: row["scores"]["training/loss"]["mean"] for name, row in rows.items()}
    assert losses["as it is"] == losses["two frames"] < losses["more contrast"]
    recall = rows["two frames"]["scores"]["retrieval@audioset/visual_to_audio/R1"]
    assert recall["over"] == "seeds and clips" and len(recall["interval"]) == 2
    assert set(recall["difference"]["seeds"]) == {"0"}
    metrics = (first / "train" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in metrics if '"train"' in line]
    assert steps == list(range(1, 31))

    page = (work / "table_mine.html").read_text()
    assert page.count("data:image/png;base64,") >= 5  # the table's, curves, three of retrieval
    assert "Side by side: retrieval" in page and "two frames, seed 0" in page
    assert not re.search(r'src="(?!data:)|href="(?!#)', page)
    assert (work / "table_mine.png").read_bytes().startswith(b"\x89PNG")


def test_another_table_of_the_same_workdir_trains_nothing_anew(arguments, monkeypatch, capsys):
    folder, flags = arguments
    flags = ["--table=11", *flags[1:]]
    status, out, _ = here([*flags, "--dry_run"], monkeypatch, capsys)
    assert status == 0 and re.search(r"unchanged-seed0 +30 +30 +\d+\.\d\d ", out)
    assert "About 0.00 device-hours of training are left" in out
    status, out, err = here(flags, monkeypatch, capsys)
    assert status == 0 and "training " not in err and "evaluating" not in err
    assert "block max" in out and "(paper: 35.2)" in out
    result = json.loads((folder / "work" / "table_11.json").read_text())
    assert (
        result["rows"]["diagonal_mean"]["paper"]["retrieval@audioset/visual_to_audio/R1"] == 0.352
    )
    assert "vggsound" in json.dumps(result["left_out"])


@pytest.mark.parametrize("epochs", [6, 13])
def test_a_training_of_other_length_is_no_row(arguments, monkeypatch, capsys, epochs):
    folder, flags = arguments
    others = [flag.replace("epochs=12", f"epochs={epochs}") for flag in flags]
    work = folder / "work"
    files = work / "trainings/unchanged-seed0/train/metrics.jsonl", work / "table_mine.json"
    before = [path.read_text() for path in files]
    for more in ([], ["--dry_run"]):
        status, _, err = here([*others, *more], monkeypatch, capsys)
        assert status == 2 and f"config.epochs was 12.0 and is now {epochs}.0: use" in err
    assert [path.read_text() for path in files] == before
    assert here(flags, monkeypatch, capsys)[0] == 0  # the table is as it was


def test_a_probe_gets_its_recipe_with_the_tables_settings(tmp_path, monkeypatch, dataset_dir):
    seen = {}

    def run(model, records, config, output):
        seen.update(model=model, records=records, config=config, output=output)

    monkeypatch.setattr("cavmae_sync_jax.evals.probe.run", run)
    text = "ROWS = {'a': {'num_frames': 2}}\nCOLUMNS = ['probe/mAP']\nSETTINGS = {'probe': %r}"
    (tmp_path / "mine.py").write_text(text % {"epochs": 3})
    config_of = cli.Rows("configs/demo.py", [f"--config.data.dir={dataset_dir}"])
    todo = plan.make(tables.read(tmp_path / "mine.py"), config_of, 1)
    data = Datasets(str(dataset_dir), "eval", "train", {}, {})
    probe = cli.config_of("configs/probe.py:demo")
    ablation = ablate.Ablation(todo, data, tmp_path, probe)
    (training,) = todo.trainings.values()
    (spec,) = training.evaluations
    folder = ablation.folder(training.name)
    tiny.write_model(folder.train, data__num_frames=4)
    ablation._evaluate(folder, spec)
    assert seen["config"].epochs == 3 and probe.epochs == 12
    assert seen["model"].config.data.num_frames == 2 and len(seen["records"]) == 5
    assert seen["output"] == folder.output(spec) and spec.folder == "probe-frames_2"
    about = ablation.about(training.name, spec)
    assert about["recipe"]["epochs"] == 3
    folder.begin(spec, about)
    assert not folder.has(spec, about)
    (folder.output(spec) / "probe").mkdir()
    folder.begin(spec, about)  # goes on with what is there
    assert (folder.output(spec) / "probe").exists()
    folder.end(spec, about)
    assert folder.has(spec, about) and not folder.has(spec, {**about, "step": 7})
    folder.begin(spec, {**about, "step": 7})  # of a longer training: begins anew
    assert not (folder.output(spec) / "probe").exists()


def test_a_training_that_fails_does_not_stop_the_others(arguments, monkeypatch, capsys, tmp_path):
    _, flags = arguments
    (tmp_path / "mine.py").write_text(
        TABLE.replace('{"num_frames": 2}', '{"changes": {"learning_rate": 1e30}}')
    )
    flags = [f"--table={tmp_path / 'mine.py'}", *flags[1:]]

    def diverge(config, workdir):
        raise UserError(f"the loss of step 7 is nan in {workdir}")

    monkeypatch.setattr(train, "train_and_evaluate", diverge)
    status, out, err = here(flags, monkeypatch, capsys)
    assert status == 2 and "learning_rate=1e+30-seed0: the loss" in err.splitlines()[-1]
    assert "| as it is | " in out and "learning_rate=1e+30-seed0." in out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--config.data.eval_split="], "config.data.eval_split is empty: name the clips"),
        (["--table=5", "--rows=train_4_eval_8"], "sets this key, so leave it out"),
        (["--split=none"], "has no split 'none'"),
        (["--data=x"], "--data=x: give it as NAME=DIR"),
        (["--data=audoset=x"], "--data=audoset: no column has a dataset of this name; there are"),
        (["--clips=audoset=x"], "--clips=audoset: no column has a dataset of this name"),
        (["--rows=none"], "has no row 'none'"),
        (["--config.learning_rate=1.0"], "holds another training: config.learning_rate was"),
        (["--table=12", "--probe=configs/none.py"], "no config file 'configs/none.py'"),
    ],
)
def test_mistakes_are_one_sentence(arguments, monkeypatch, capsys, more, message):
    _, flags = arguments
    changed = {flag.partition("=")[0] for flag in more}
    kept = [flag for flag in flags if flag.partition("=")[0] not in changed]
    status, _, err = here([*kept, *more], monkeypatch, capsys)
    assert status == 2 and message in err.splitlines()[-1], err
    assert "Traceback" not in err
