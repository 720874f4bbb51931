"""Engines: what a killed, hanging or failing clip costs, kills and resumption, Apache Beam."""

import contextlib
import csv
import importlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from etils import epath
from faulty_clips import FaultyClip, faulty
from media_files import make_video

from cavmae_sync_jax.utils import cli
from cavmae_sync_jax.utils.errors import UserError
from data_prep.pipeline import output, shards, tfds_writer, writers
from data_prep.pipeline.clips import Preparation
from data_prep.pipeline.executors import Engine
from data_prep.pipeline.tfds_writer import write_dataset
from data_prep.sources import lengths

ROOT = Path(__file__).parents[3]
SMALL = Preparation(num_frames=2, image_size=16, clip_seconds=2)


def write(output, splits, **settings):
    settings = {"engine": Engine(workers=2, time_limit=20)} | settings
    return write_dataset(output, splits, SMALL, class_names=(), source="noise", **settings)


def content(output, split="train"):
    (info,) = output.glob("*/*/dataset_info.json")
    records = tfds.builder_from_directory(info.parent).as_data_source(split=split)
    return {
        record["clip_id"]: (tuple(record["frames"]), record["fbank"].tobytes())
        for record in records
    }


@pytest.fixture(params=["one writer", "two writers"])
def each_writing(request, monkeypatch):
    """Lets two workers have one process that writes, and then one each."""
    monkeypatch.setattr(writers, "WORKERS", 1 if request.param == "two writers" else 2)


def test_a_clip_takes_nothing_down_but_itself(tmp_path):
    good = [f"good{number}" for number in range(12)]
    bad = {"crash": "crashed", "killed": "crashed", "hang": "too_slow"}
    bad |= {"bug": "failed", "nfs": "failed"}
    clips = faulty(*good[:5], "crash", "hang", *good[5:], "bug", "killed", "nfs")
    summary = write(tmp_path, {"train": clips}, engine=Engine(workers=2, time_limit=3))
    assert {reject.clip_id: reject.reason for reject in summary.rejects} == bad
    assert summary.examples == {"train": len(good)}
    assert set(content(tmp_path)) == {clip_id.encode() for clip_id in good}
    details = {reject.clip_id: reject.detail for reject in summary.rejects}
    assert "SIGSEGV" in details["crash"]
    assert "SIGKILL" in details["killed"]
    assert "3 s" in details["hang"]
    assert "ZeroDivisionError: by design" in details["bug"]
    assert "Connection timed out" in details["nfs"]


def test_workers_need_not_compile():
    # In a process of its own: what forks workers may have been started by another test.
    code = """if True:
        from data_prep.pipeline.executors import Workers
        from worker_state import scalings_compiled
        with Workers(1, 60) as workers:
            print(list(workers.results(scalings_compiled, ["a clip"])))
        """
    root = pathlib.Path(__file__).parents[3]
    env = {**os.environ, "PYTHONPATH": f"{root}:{root / 'tests/helpers'}"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout == "[('a clip', 1)]\n", done.stderr


def test_a_worker_that_is_killed_leaves_no_copy_of_an_archived_file(tmp_path):
    paths = []
    for name in ("slow", "dies", "good"):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            archive.writestr("a.mp4", b"some bytes")
        paths.append(f"{tmp_path / name}.zip/a.mp4")
    code = f"""if True:
        from data_prep.pipeline.executors import Workers
        from worker_state import hold_copies
        with Workers(1, 3) as workers:
            print([result for _, result in workers.results(hold_copies, {paths})])
        """
    root = pathlib.Path(__file__).parents[3]
    env = {**os.environ, "PYTHONPATH": f"{root}:{root / 'tests/helpers'}"}
    with tempfile.TemporaryDirectory() as copies:  # a socket's path has at most 107 letters
        env["TMPDIR"] = copies
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
        assert "too_slow" in done.stdout and "SIGKILL" in done.stdout, done.stderr
        assert done.stdout.endswith(", 0]\n")  # the next worker has removed them
        assert list(pathlib.Path(copies).rglob("*.mp4")) == []


@pytest.mark.usefixtures("each_writing")
def test_a_users_mistake_ends_the_run_and_mended_it_goes_on(tmp_path):
    clips = faulty(*(f"a{number}" for number in range(200)), "mistake")
    with pytest.raises(UserError, match="mend the truth file"):
        write(tmp_path, {"train": clips})
    assert not (tmp_path / "noise").exists()
    kept = sorted((tmp_path / ".incomplete/shards").glob("*.json"))
    # With the mistake gone the clips are others, and nothing of before is used.
    write(tmp_path, {"train": clips[:-1]})
    assert len(content(tmp_path)) == 200
    assert not (tmp_path / ".incomplete").exists()
    assert isinstance(kept, list)


def test_writers_of_their_own_write_the_same(tmp_path, monkeypatch):
    clips = faulty(*(f"a{number}" for number in range(200)), "crash", "bug")
    monkeypatch.setattr(shards, "FEWEST_CLIPS", 20)
    one = write(tmp_path / "one", {"train": clips}, engine=Engine(workers=3))
    monkeypatch.setattr(writers, "WORKERS", 2)
    two = write(tmp_path / "two", {"train": clips}, engine=Engine(workers=3))
    assert [split[:3] for split in two.splits.values()] == [(202, 202, 200)]
    assert two.splits == one.splits
    first, second = (
        [path.read_bytes() for path in sorted((tmp_path / name).glob("noise/*/*.array_record*"))]
        for name in ("one", "two")
    )
    assert first == second and len(first) == 10


def test_a_writer_that_is_killed_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(writers, "WORKERS", 1)
    clips = faulty(*(f"a{number}" for number in range(200)))
    process = writers._writer

    monkeypatch.setattr(writers, "_writer", _killed)
    with pytest.raises(UserError, match="a process that writes shards ended with status -9"):
        write(tmp_path, {"train": clips})
    monkeypatch.setattr(writers, "_writer", process)
    write(tmp_path, {"train": clips})
    assert len(content(tmp_path)) == 200


def _killed(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)


def test_finished_shards_are_not_prepared_again(tmp_path, monkeypatch, capsys):
    clips = faulty(*(f"a{number}" for number in range(200)))
    write(tmp_path / "straight", {"train": clips})
    written = []
    write_shard = shards.write_shard

    def interrupted(shard, results, folder):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(shard.index)
        return write_shard(shard, results, folder)

    monkeypatch.setattr(shards, "write_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "resumed", {"train": clips})
    assert not (tmp_path / "resumed/noise").exists()
    monkeypatch.setattr(shards, "write_shard", write_shard)
    write(tmp_path / "resumed", {"train": clips})
    assert "2 of 3 shards are finished already" in capsys.readouterr().out
    assert content(tmp_path / "resumed") == content(tmp_path / "straight")
    first, second = (
        [path.read_bytes() for path in sorted((tmp_path / name).glob("noise/*/*.array_record*"))]
        for name in ("straight", "resumed")
    )
    assert first == second


def test_shards_with_clips_that_were_too_slow_are_prepared_again(tmp_path, monkeypatch, capsys):
    ready = tmp_path / "ready"
    clips = [*faulty(*(f"a{number}" for number in range(130))), FaultyClip("wait", str(ready))]
    first = next(shard for shard in shards.plan({"train": clips}) if clips[-1] in shard.clips)
    prepare = writers.prepare

    def interrupted(todo, *arguments):
        assert {shard.index for shard in todo} == {0, 1}
        prepare([first], *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(writers, "prepare", interrupted)
        write(tmp_path / "out", {"train": clips}, engine=Engine(workers=1, time_limit=1))
    ready.touch()
    summary = write(tmp_path / "out", {"train": clips})
    said = capsys.readouterr().out
    assert "1 of 2 shards are finished already.\n1 of them are prepared again, as clips" in said
    assert not summary.rejects and summary.examples == {"train": 131}


def test_shards_of_another_version_are_told_and_named(tmp_path, monkeypatch, capsys):
    clips = faulty(*(f"a{number}" for number in range(130)))
    prepare, version = writers.prepare, cli.version

    def interrupted(todo, *arguments):
        prepare(todo[:1], *arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(writers, "prepare", interrupted)
    monkeypatch.setattr(cli, "version", lambda: "0.0.9")
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, {"train": clips})
    monkeypatch.setattr(writers, "prepare", prepare)
    monkeypatch.setattr(cli, "version", version)
    summary = write(tmp_path, {"train": clips})
    said = capsys.readouterr().out
    assert "1 of 2 shards are finished already" in said
    assert f"Version 0.0.9 of the code prepared some of them, this is {version()}" in said
    info = tfds.builder_from_directory(summary.directory).info
    assert info.metadata["code_version"] == f"0.0.9, {version()}"


def test_beam_leaves_a_finished_shard_as_it_is(tmp_path):
    beam_engine = pytest.importorskip("data_prep.pipeline.beam", reason="needs apache-beam")
    folder = tfds_writer.epath.Path(tmp_path)
    planned = shards.plan({"train": faulty("a", "b")})
    job = shards.Job(shards.Schema((), 2, False, "float16"), SMALL)
    (path,) = shards.store(planned, folder)
    results = ((clip, shards.prepare_record(clip, job)) for clip in planned[0].clips)
    shards.write_shard(planned[0], results, folder)
    again = beam_engine._PrepareShard(type(planned[0].clips[0]), job, str(folder), Engine())
    again.process(str(path))  # without `setup` there are no workers to prepare anything
    (tmp_path / f"{planned[0].name}.json").unlink()
    with pytest.raises(AttributeError, match="_workers"):
        again.process(str(path))


def test_a_shard_whose_records_are_gone_is_prepared_again(tmp_path):
    clips = faulty("a", "b")
    planned = shards.plan({"train": clips})
    schema = shards.Schema((), 2, False, "float16")
    job = shards.Job(schema, SMALL)
    folder = tfds_writer.epath.Path(tmp_path)
    results = ((clip, shards.prepare_record(clip, job)) for clip in planned[0].clips)
    shards.write_shard(planned[0], results, folder)
    assert shards.finished(planned[0], folder).examples == 2
    records = shards.data_path(folder, planned[0])
    records.write_bytes(records.read_bytes()[:-100])
    assert shards.finished(planned[0], folder) is None
    records.unlink()
    assert shards.finished(planned[0], folder) is None


def test_a_replacement_that_was_interrupted_gives_the_old_dataset_back(tmp_path):
    write(tmp_path, {"train": faulty("old")})
    hidden = tmp_path / ".incomplete/replaced"
    hidden.mkdir(parents=True)
    (tmp_path / "noise").rename(hidden / "noise")
    with pytest.raises(UserError, match="--overwrite"):
        write(tmp_path, {"train": faulty("new")})
    assert set(content(tmp_path)) == {b"old"}


def test_two_runs_do_not_share_an_output(tmp_path):
    with (
        output.workplace(tfds_writer.epath.Path(tmp_path), "x"),
        pytest.raises(UserError, match="another process"),
    ):
        write(tmp_path, {"train": faulty("a")})


def test_shards_follow_from_the_clips_alone():
    clips = faulty(*(f"c{number}" for number in range(1000)))
    planned = shards.plan({"train": clips, "eval": clips[:10]})
    assert [len(shard.clips) for shard in planned if shard.split == "eval"] == [10]
    train = [shard for shard in planned if shard.split == "train"]
    assert len(train) == 15
    assert {len(shard.clips) for shard in train} == {66, 67}
    assert {clip for shard in train for clip in shard.clips} == set(clips)
    assert shards.plan({"train": clips[::-1]}) == train
    assert [clip.clip_id for clip in train[0].clips[:5]] != ["c0", "c1", "c2", "c3", "c4"]


def test_more_clips_than_fit_the_shards_make_larger_ones(monkeypatch):
    monkeypatch.setattr(shards, "MOST_SHARDS", 10)
    planned = shards.plan({"train": faulty(*(str(number) for number in range(2001)))})
    assert len(planned) == 10
    assert {len(shard.clips) for shard in planned} == {200, 201}


def videos_program(*arguments, workers_of_a_writer=16, **settings):
    code = "from data_prep import videos; from data_prep.pipeline import writers; "
    code += f"writers.WORKERS = {workers_of_a_writer}; videos.main()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, text=True, start_new_session=True, **settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of 200 videos, which is enough for three shards."""
    folder = tmp_path_factory.mktemp("videos")
    path = make_video(folder / "v000.mp4", seconds=1.2, fps=5)
    for number in range(1, 200):
        os.link(path, folder / f"v{number:03d}.mp4")
    make_video(folder / "mute.mp4", seconds=1.2, codecs=("libx264", None))
    # One file each time, whatever its links are called.
    listed = folder / "all.txt"
    names = sorted(path.name for path in folder.glob("*.mp4"))
    listed.write_text("\n".join(names))
    return listed


FLAGS = ("--eval_share=0", "--num_frames=2", "--image_size=16", "--workers=2")


def wait_for_end_of_group(number):
    """Waits until a program's workers and their server have ended, too."""
    deadline = time.monotonic() + 20
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(number, 0)
            time.sleep(0.01)
        pytest.fail("workers outlive their parent")


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    code = (
        "import time\n"
        "from data_prep.pipeline.executors import Workers\n"
        "if __name__ == '__main__':\n"
        "    workers = Workers(2, 300)\n"
        "    results = workers.results(time.sleep, [0, 0, 300, 300])\n"
        "    print(next(results), next(results), flush=True)\n"
        "    next(results)\n"
    )
    program = tmp_path / "program.py"
    program.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, program],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "(0, None) (0, None)\n"
    process.kill()
    process.wait()
    wait_for_end_of_group(process.pid)


@pytest.mark.parametrize("workers_of_a_writer", [16, pytest.param(1, marks=pytest.mark.release)])
def test_a_killed_preparation_goes_on(tmp_path, folder, workers_of_a_writer):
    output = tmp_path / "killed"
    process = videos_program(
        folder, f"--output={output}", *FLAGS, stderr=subprocess.DEVNULL,
        workers_of_a_writer=workers_of_a_writer,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(output.glob(".incomplete/shards/*.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    wait_for_end_of_group(process.pid)
    assert not (output / "videos").exists()
    again = videos_program(
        folder, f"--output={output}", *FLAGS, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        workers_of_a_writer=workers_of_a_writer,
    )  # fmt: skip
    out, err = again.communicate(timeout=300)
    assert again.returncode == 0, err
    assert "shards are finished already" in out
    assert "200 in train" in out
    straight = tmp_path / "straight"
    whole = videos_program(folder, f"--output={straight}", *FLAGS, stderr=subprocess.DEVNULL)
    assert whole.wait(timeout=300) == 0
    assert content(output) == content(straight)
    assert (output / "rejects.csv").read_bytes() == (straight / "rejects.csv").read_bytes()
    with (output / "rejects.csv").open() as file:
        assert [row["clip_id"] for row in csv.DictReader(file)] == ["mute"]
    assert sorted(path.name for path in output.iterdir()) == [
        "rejects.csv",
        "summary.json",
        "videos",
    ]


@pytest.mark.parametrize("workers_of_a_writer", [16, pytest.param(1, marks=pytest.mark.release)])
def test_sigterm_leaves_no_copies_of_archived_files(tmp_path, folder, workers_of_a_writer):
    archive = tmp_path / "videos.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for number in range(200):
            file.write(folder.parent / "v000.mp4", f"{number}.mp4")
    with tempfile.TemporaryDirectory() as copies:
        process = videos_program(
            archive, f"--output={tmp_path / 'out'}", *FLAGS, stderr=subprocess.PIPE,
            workers_of_a_writer=workers_of_a_writer, env={**os.environ, "TMPDIR": copies},
        )  # fmt: skip
        deadline = time.monotonic() + 120
        while not list(pathlib.Path(copies).rglob("*.mp4")):
            assert process.poll() is None and time.monotonic() < deadline
        process.terminate()
        _, said = process.communicate(timeout=60)
        assert os.listdir(copies) == []
    assert process.returncode == 143, said
    assert said.endswith(": stopped by SIGTERM\n") and "Traceback" not in said
    wait_for_end_of_group(process.pid)


@pytest.mark.release
def test_beam_writes_the_same_dataset(tmp_path, folder):
    pytest.importorskip("apache_beam", reason="needs pip install '.[beam]'")
    outputs = []
    for flags in ([], ["--runner=DirectRunner", "--beam_pipeline_options=" + BEAM]):
        outputs.append(tmp_path / str(len(flags)))
        process = videos_program(
            folder, f"--output={outputs[-1]}", *FLAGS, *flags, stderr=subprocess.PIPE
        )
        _, err = process.communicate(timeout=400)
        assert process.returncode == 0, err[-3000:]
    assert content(outputs[0]) == content(outputs[1])
    assert len(content(outputs[0])) == 200
    rejects = [(output / "rejects.csv").read_bytes() for output in outputs]
    assert rejects[0] == rejects[1]


def test_a_runners_workers_look_at_the_files(tmp_path, folder, monkeypatch):
    pytest.importorskip("apache_beam", reason="needs pip install '.[beam]'")
    beam_engine = importlib.import_module("data_prep.pipeline.beam")
    monkeypatch.setattr(beam_engine, "_TOGETHER", 3)
    paths = sorted(str(path) for path in folder.parent.glob("*.mp4"))[:7]
    paths += [str(tmp_path / "gone.mp4"), str(tmp_path / "text.mp4")]
    (tmp_path / "text.mp4").write_text("no video")
    place = epath.Path(tmp_path / "out")
    here = lengths.look(paths, Engine(workers=1), place)
    assert not place.exists()
    there = lengths.look(paths, Engine(runner="DirectRunner"), place)
    assert there == here and list(there) == paths
    assert isinstance(there[paths[1]], float)
    assert [there[path].reason for path in (paths[0], paths[-1])] == ["no_audio", "unreadable"]
    assert list((place / ".incomplete").iterdir()) == []


BEAM = "direct_num_workers=2,direct_running_mode=multi_processing"


def test_beam_takes_the_documented_options():
    beam_engine = pytest.importorskip("data_prep.pipeline.beam", reason="needs apache-beam")
    text = (ROOT / "docs/data.md").read_text().replace(",\\\n", ",")
    found = re.findall(r"--runner=(\w+)[\s\\]+--beam_pipeline_options=(\S+)", text)
    assert {runner for runner, _ in found} == {
        *("DirectRunner", "DataflowRunner", "FlinkRunner", "SparkRunner")
    }
    for runner, options in found:
        given = tuple(options.replace("$", "").split(","))
        taken = beam_engine.pipeline_options(Engine(runner=runner, beam_options=given))
        taken = taken.get_all_options(drop_default=True)
        assert set(taken) == {"runner", *(option.partition("=")[0] for option in given)}


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        (Engine(workers=0), "--workers"),
        (Engine(time_limit=0), "--time_limit"),
        (Engine(beam_options=("direct_num_workers=2",)), "--runner"),
        (Engine(runner="NoRunner"), "NoRunner"),
        (Engine(runner="DirectRunner", beam_options=("direct_num_wrkers=2",)), "direct_num_wrkers"),
    ],
)
def test_engines_that_make_no_sense_are_refused(tmp_path, engine, message):
    if engine.runner:
        pytest.importorskip("apache_beam", reason="needs pip install '.[beam]'")
    with pytest.raises(UserError, match=message):
        write(tmp_path / "out", {"train": faulty("a")}, engine=engine)
