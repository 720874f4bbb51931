"""Every program of the project, run as a user runs it: its help, its work and its errors."""

import errno
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from calls import call_here

from cavmae_sync_jax.utils import cli

ROOT = pathlib.Path(__file__).parent.parent
TRAIN, RETRIEVAL = "cavmae_sync_jax.train", "cavmae_sync_jax.evals.retrieval"
SUMMARY = "cavmae_sync_jax.evals.summary"
CONVERT = "cavmae_sync_jax.convert"
PROGRAMS = [
    TRAIN,
    RETRIEVAL,
    SUMMARY,
    CONVERT,
    "cavmae_sync_jax.ablate",
    "cavmae_sync_jax.app",
    "cavmae_sync_jax.finetune",
    "cavmae_sync_jax.embed",
    "cavmae_sync_jax.search",
    "cavmae_sync_jax.localize",
    "cavmae_sync_jax.evals.classify",
    "cavmae_sync_jax.evals.probe",
    "cavmae_sync_jax.evals.reconstruction",
    "cavmae_sync_jax.evals.segmentation",
    "cavmae_sync_jax.evals.temporal",
    "cavmae_sync_jax.evals.tokens",
    "data_prep.ade20k_sound",
    "data_prep.cavmae_json",
    "data_prep.inspect_dataset",
    "data_prep.localisation",
    "data_prep.videos",
    "data_prep.scenes",
    "data_prep.scene_preview",
]
# The demo's model at the smallest sizes, as a user would ask for it.
SMALL = [
    "--config=configs/demo.py",
    "--config.batch_size=8",
    "--config.epochs=1",
    "--config.data.num_frames=4",
    "--config.model.image_size=32",
    "--config.model.image_patch=16",
    "--config.model.audio_rows=96",
    "--config.model.width=16",
    "--config.model.depth=1",
    "--config.model.heads=2",
    "--config.model.decoder_width=8",
    "--config.model.decoder_heads=1",
]


def call(*arguments):
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=ROOT,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=300,
    )


def error_of(*arguments):
    """The one sentence that a user's mistake gives."""
    status, _, said = call_here(*arguments)
    assert status == 2, said
    assert "Traceback" not in said
    *_, sentence = said.strip().splitlines()
    return sentence


def test_every_program_is_here():
    mains = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for folder in ("cavmae_sync_jax", "data_prep")
        for path in (ROOT / folder).rglob("*.py")
        if "\nif __name__ ==" in path.read_text()
    ]
    assert sorted(mains) == sorted(PROGRAMS)


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_says_what_it_does_with_an_example(program):
    status, said, _ = call_here(program, "--help")
    assert status == 0
    assert f"python -m {program}" in said
    assert "default: None" not in said and "default: False" not in said and "default: )" not in said


@pytest.mark.parametrize(
    ("number", "file", "said"),
    [
        (errno.ENOSPC, None, "No space left on device: make room, start again"),
        (errno.EROFS, "/x/a.json", "file system (/x/a.json): name another place, or change its"),
        (
            errno.EACCES,
            "/x",
            "Permission denied (/x): name another place, or change its permissions",
        ),
        (errno.EIO, "/x", None),  # it may be this program's fault
    ],
)
def test_what_the_file_system_refuses_is_one_sentence(number, file, said, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["program"])

    def run(_):
        raise OSError(number, os.strerror(number), file)

    with pytest.raises(OSError if said is None else SystemExit):
        cli.main(cli.parser("A program.\n\nIt fails."), run)
    assert said is None or said in capsys.readouterr().err


TEMPORARY = """
import tempfile, time
from cavmae_sync_jax.utils import cli

def run(_):
    with tempfile.TemporaryDirectory() as folder:
        try:
            print(folder, flush=True)
            time.sleep(600)
        finally:
            print("ends", flush=True)
            time.sleep(SECONDS)

cli.main(cli.parser("A program."), run)
"""


@pytest.mark.parametrize("again", [False, True], ids=["once", "twice"])
def test_sigterm_removes_what_is_temporary_and_again_ends_at_once(tmp_path, again):
    process = subprocess.Popen(
        [sys.executable, "-c", TEMPORARY.replace("SECONDS", "600" if again else "0")],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    folder = pathlib.Path(process.stdout.readline().strip())
    assert folder.parent == tmp_path and folder.is_dir()
    process.terminate()
    assert process.stdout.readline() == "ends\n"
    if again:
        process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == (-signal.SIGTERM if again else 143)
    assert folder.exists() == again
    assert said == ("" if again else "-c: stopped by SIGTERM\n")


@pytest.mark.parametrize("before", [signal.SIG_IGN, signal.default_int_handler])
def test_sigterm_stays_with_whoever_listens_already(before, monkeypatch):
    monkeypatch.setattr("sys.argv", ["program"])
    handlers = []
    default = signal.signal(signal.SIGTERM, before)
    try:
        cli.main(
            cli.parser("A program."), lambda _: handlers.append(signal.getsignal(signal.SIGTERM))
        )
    finally:
        after = signal.signal(signal.SIGTERM, default)
    assert handlers == [before] and after == before


def test_help_shows_defaults_that_are_values():
    assert "moments to find (default: 10)" in " ".join(
        call_here("cavmae_sync_jax.search", "--help")[1].split()
    )


def test_a_config_file_without_variants(tmp_path):
    plain = tmp_path / "plain.py"
    plain.write_text(
        "import ml_collections\ndef get_config():\n  return ml_collections.ConfigDict()\n"
    )
    sentence = error_of(TRAIN, f"--config={plain}:large", f"--workdir={tmp_path / 'x'}")
    assert "this config has no variants" in sentence


def test_a_config_lists_its_keys_with_their_meaning():
    status, said, _ = call_here(
        TRAIN, "--config=configs/demo.py:few_videos", "--config.seed=3", "--help_config"
    )
    lines = {line.split("=")[0].strip(): line for line in said.splitlines()}
    assert status == 0 and len(lines) > 40
    assert "--config.batch_size=4 " in lines["--config.batch_size"]
    assert "clips in a global batch" in lines["--config.batch_size"]
    assert "--config.seed=3" in said
    assert "10 ms each" in lines["--config.model.audio_rows"]


@pytest.mark.parametrize("program", [TRAIN, "data_prep.videos"])
def test_a_mistake_is_one_sentence_in_a_process_of_its_own(program):
    done = call(program, "--workdir=x", "--output=x")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "error:" in done.stderr.splitlines()[-1]


@pytest.fixture(scope="module")
def trained(dataset_dir, tmp_path_factory):
    """A workdir that the command line trained, and what it printed."""
    workdir = tmp_path_factory.mktemp("cli") / "workdir"
    done = call(TRAIN, *SMALL, f"--config.data.dir={dataset_dir}", f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    return workdir, done


@pytest.mark.release
def test_train_shows_progress_and_leaves_a_workdir(trained):
    workdir, done = trained
    assert "train: 100%" in done.stderr and "step/s" in done.stderr
    assert json.loads((workdir / "config.json").read_text())["model"]["width"] == 16
    assert (workdir / "checkpoints" / "2").is_dir()


@pytest.mark.release
def test_ctrl_c_saves_and_says_so(dataset_dir, tmp_path):
    flags = [*SMALL, "--config.epochs=10000", "--config.log_every=1", "--config.data.eval_split="]
    command = [TRAIN, *flags, f"--config.data.dir={dataset_dir}", f"--workdir={tmp_path}"]
    process = subprocess.Popen(
        [sys.executable, "-m", *command], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    metrics = tmp_path / "metrics.jsonl"
    for _ in range(1200):
        if metrics.exists() and metrics.read_text().count("\n") > 2:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    step = max(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert f"step {step} is saved (loss " in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("program", "config", "lacks"),
    [
        (TRAIN, "finetune.py", "mask"),
        (TRAIN, "probe.py", "data"),
        ("cavmae_sync_jax.finetune", "demo.py", "classifier"),
    ],
)
def test_a_config_of_another_program(dataset_dir, tmp_path, program, config, lacks):
    arguments = [f"--config=configs/{config}", f"--workdir={tmp_path / 'run'}"]
    sentence = error_of(program, *arguments)
    assert f"is of another program, as it has no '{lacks}': take one like --config=" in sentence


def test_retrieval_prints_and_writes(trained, dataset_dir, tmp_path):
    workdir, _ = trained
    arguments = [f"--checkpoint={workdir}", f"--data={dataset_dir}", f"--output={tmp_path}"]
    done = call(RETRIEVAL, *arguments)
    assert done.returncode == 0, done.stderr
    assert "model, diagonal mean" in done.stdout
    result = json.loads((tmp_path / "retrieval.json").read_text())
    assert result["clips"] == 5 and result["checkpoint"]["step"] == 2
    done = call(SUMMARY, tmp_path, f"--output={tmp_path}/all/results.json")
    assert f"picture: {tmp_path}/retrieval.png" in done.stdout
    assert json.loads((tmp_path / "all" / "results.json").read_text()) == {"retrieval": result}
    assert "holds no evaluation's NAME.json" in error_of(SUMMARY, dataset_dir, "--output=x.json")
    missing = f"{workdir}/nothing"
    assert missing in error_of(RETRIEVAL, f"--checkpoint={missing}", *arguments[1:])
    assert "no split 'val'" in error_of(RETRIEVAL, *arguments, "--split=val")


def test_a_checkpoint_of_another_shape(trained, dataset_dir):
    workdir, _ = trained
    arguments = [*SMALL, "--config.model.width=32", f"--config.data.dir={dataset_dir}"]
    sentence = error_of(TRAIN, *arguments, f"--workdir={workdir}")
    assert "config.model.width was 16 and is now 32" in sentence


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--config=configs/demo.py:register_4"], "did you mean 'registers_4'"),
        (["--config=configs/nothing.py"], "no config file 'configs/nothing.py'"),
        (["--config=configs/pretrain.py:register_4"], "did you mean 'registers_4'"),
        (["--config=configs/pretrain.py", "--config.batchsize=4"], "did you mean 'batch_size'"),
        (["--config=configs/pretrain.py", "--config.model.witdh=4"], "did you mean 'model.width'"),
        (["--config=configs/pretrain.py", "--config.batch_size=many"], "many"),
        (["--config=configs/pretrain.py", "--config.batch_size"], "needs a value"),
        (["--config=configs/pretrain.py"], "no dataset folder ''"),
        (["--config=configs/pretrain.py", "--config.data.dir=/none"], "no dataset folder '/none'"),
        (["--config=configs/pretrain.py", "--wrokdir=x"], "unrecognized arguments: --wrokdir=x"),
        ([], "give one --config=FILE"),
    ],
)
def test_mistakes_at_the_training_are_one_sentence(arguments, expected, tmp_path):
    workdir = tmp_path / "workdir"
    assert expected in error_of(TRAIN, *arguments, f"--workdir={workdir}")
    assert not workdir.exists()


@pytest.mark.release
def test_convert_and_evaluate_what_came_of_it(trained, dataset_dir, tmp_path):
    workdir, _ = trained
    done = call(CONVERT, workdir, tmp_path / "file.safetensors")
    assert done.returncode == 0 and "written:" in done.stderr
    heads = ["--config.model.heads=2", "--config.model.decoder_heads=1"]
    done = call(
        CONVERT,
        tmp_path / "file.safetensors",
        tmp_path / "back",
        *heads,
        "--config.data.num_frames=4",
        "--config.data.workers=0",
    )
    assert done.returncode == 0, done.stderr
    results = []
    for checkpoint in (workdir, tmp_path / "back"):
        output = tmp_path / f"evals_{checkpoint.name}"
        arguments = [f"--checkpoint={checkpoint}", f"--data={dataset_dir}", f"--output={output}"]
        assert call(RETRIEVAL, *arguments).returncode == 0
        results.append(json.loads((output / "retrieval.json").read_text())["scores"])
    assert results[0] == results[1]


def test_mistakes_at_a_conversion_are_one_sentence(trained, tmp_path):
    workdir, _ = trained
    out, file = tmp_path / "out", tmp_path / "out.pth"
    (tmp_path / "broken.pth").write_bytes(b"PK")
    assert "broken.pth can't be read" in error_of(CONVERT, tmp_path / "broken.pth", out)
    assert "there is no file or folder" in error_of(CONVERT, tmp_path / "none", file)
    assert "--seed can't change" in error_of(CONVERT, workdir, file, "--seed=1")
    assert "must be from 0 to" in error_of(CONVERT, tmp_path / "broken.pth", out, "--seed=-1")
    assert "must end in one of .pth" in error_of(CONVERT, workdir, out)
    assert "holds no checkpoints" in error_of(CONVERT, tmp_path, file)
    flag = "--config.model.heads=2"
    assert "can't change a checkpoint's weights" in error_of(CONVERT, workdir, file, flag)
    prefix = "--module_prefix"
    assert "is for writing" in error_of(CONVERT, tmp_path / "broken.pth", out, prefix)
    assert not out.exists() and not file.exists()


def test_a_folder_without_checkpoints(dataset_dir, tmp_path):
    sentence = error_of(RETRIEVAL, f"--checkpoint={tmp_path}", f"--data={dataset_dir}")
    assert f"{tmp_path} holds no checkpoints" in sentence
    (tmp_path / "runs/mine/checkpoints").mkdir(parents=True)
    (tmp_path / "weights.pth").touch()
    given = [tmp_path / "runs", tmp_path / "weights.pth"]
    said = [error_of(RETRIEVAL, f"--checkpoint={one}", f"--data={dataset_dir}") for one in given]
    assert f"holds no checkpoints: give {tmp_path}/runs/mine" in said[0]
    assert f"convert {tmp_path}/weights.pth FOLDER makes" in said[1]
    (tmp_path / "demo" / "train" / "checkpoints").mkdir(parents=True)
    (tmp_path / "demo" / "data").mkdir()
    sentence = error_of(RETRIEVAL, f"--checkpoint={tmp_path}/demo", f"--data={dataset_dir}")
    assert f"demo holds no checkpoints: give {tmp_path}/demo/train" in sentence
