"""Training on real (tiny) videos: it learns, resumes exactly and stops on a NaN."""

import json
import shutil
import signal
import types

import jax
import numpy as np
import pytest
import tiny

from benchmarks.data import bucket_emulator
from cavmae_sync_jax import train
from cavmae_sync_jax.checkpoints import manager
from cavmae_sync_jax.checkpoints.pretrained import load
from cavmae_sync_jax.data import bucket_shards, loader
from cavmae_sync_jax.distributed import sharding
from cavmae_sync_jax.evals import clip_lists, retrieval, sound_maps
from cavmae_sync_jax.models import cavmae_sync
from cavmae_sync_jax.training import augmentation, metric_writer, train_step
from cavmae_sync_jax.utils.errors import Terminated, UserError


def lines(workdir, split="train"):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["split"] == split]


def losses(workdir):
    return [(row["step"], row["loss"]) for row in lines(workdir)]


@pytest.fixture(scope="module")
def finished(dataset_dir, tmp_path_factory):
    """An uninterrupted run of 15 steps."""
    workdir = tmp_path_factory.mktemp("finished")
    config = tiny.config(dataset_dir)
    return config, workdir, train.train_and_evaluate(config, workdir)


@pytest.mark.release
def test_workdir_is_as_promised(finished):
    config, workdir, scores = finished
    assert {"config.json", "metrics.jsonl", "checkpoints"} <= {p.name for p in workdir.iterdir()}
    assert list(workdir.glob("events.out.tfevents*"))
    assert json.loads((workdir / "config.json").read_text()) == json.loads(config.to_json())
    assert [row["step"] for row in lines(workdir)] == [2, 4, 6, 8, 10, 12, 14, 15]
    keys = {"loss", "contrast", "nce_accuracy", "reconstruction_audio", "reconstruction_visual"}
    keys |= {"grad_norm", "learning_rate", "examples_per_second", "data_wait", "epoch"}
    assert keys <= set(lines(workdir)[0])
    assert sorted(int(p.name) for p in (workdir / "checkpoints").iterdir()) == [12, 15]
    (final,) = lines(workdir, "eval")
    assert final["step"] == 15 and final["audio_to_visual/R5"] == scores["audio_to_visual/R5"] == 1


def test_logged_loss_is_the_sum_of_its_parts(finished):
    config, workdir, _ = finished
    for row in lines(workdir):
        parts = row["reconstruction_audio"] + row["reconstruction_visual"]
        expected = config.loss.contrast_weight * row["contrast"] + parts
        assert row["loss"] == pytest.approx(expected, rel=1e-5)


def test_interrupted_and_resumed_equals_uninterrupted(finished, tmp_path, monkeypatch, capsys):
    config, workdir, scores = finished
    real, calls = train_step.batch_ratio, []

    def interrupt(ratios, seed, number):
        calls.append(number)
        if len(calls) == 11:
            raise KeyboardInterrupt
        return real(ratios, seed, number)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train_step, "batch_ratio", interrupt)
        train.train_and_evaluate(config, tmp_path)
    assert losses(tmp_path)[-1][0] == 10  # two steps past the last checkpoint
    resumed = config.copy_and_resolve_references()
    resumed.data.workers = 1  # another number of workers changes nothing
    capsys.readouterr()
    again = train.train_and_evaluate(resumed, tmp_path)
    assert f"resuming {tmp_path} at step 8" in capsys.readouterr().err
    assert losses(tmp_path) == losses(workdir)
    assert again == scores
    ours, theirs = (load(path).params for path in (tmp_path, workdir))
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(mine, other)


@pytest.mark.release
def test_a_failing_bucket_trains_and_evaluates_as_the_disk_does(
    finished, bucket_server, dataset_dir, tmp_path, monkeypatch
):
    config, workdir, scores = finished
    place = bucket_emulator.upload(dataset_dir, bucket_server.folder, "bucket", "train")
    there = config.copy_and_resolve_references()
    there.data.dir = place
    real = manager.Checkpoints.save

    def first_only(self, step, *args):
        if step > 4:
            raise KeyboardInterrupt
        real(self, step, *args)

    monkeypatch.setitem(bucket_shards.RETRIES, "initial_delay", "20ms")
    bucket_server.turn(errors=0.05)
    with bucket_server.pointed_at():
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(manager.Checkpoints, "save", first_only)
            train.train_and_evaluate(there, tmp_path)
        assert train.train_and_evaluate(there, tmp_path) == scores
        records = [loader.Records(data, "eval") for data in (place, dataset_dir)]
        theirs, ours = (retrieval.run(load(workdir), split, None) for split in records)
    assert bucket_server.counts()["faults"] > 1
    assert losses(tmp_path) == losses(workdir)
    assert ours["scores"] == theirs["scores"]


def test_finished_run_only_evaluates(finished, tmp_path):
    config, workdir, scores = finished
    copy = shutil.copytree(workdir, tmp_path / "copy")
    before = (copy / "metrics.jsonl").read_text()
    assert train.train_and_evaluate(config, copy) == scores
    assert (copy / "metrics.jsonl").read_text() == before
    # Killed between the last save and its evaluation: the restart makes up for it.
    (copy / "metrics.jsonl").write_text("".join(before.splitlines(keepends=True)[:-1]))
    train.train_and_evaluate(config, copy)
    assert (copy / "metrics.jsonl").read_text() == before
    # An evaluation that is added later gets a line of its own.
    config = tiny.config(config.data.dir, evaluations=("retrieval", "reconstruction"))
    more = train.train_and_evaluate(config, copy)
    *old, new = lines(copy, "eval")
    assert old == lines(workdir, "eval") and new == {"step": 15, "split": "eval"} | {
        name: more[name] for name in more.keys() - scores.keys()
    }
    assert {name.partition("/")[0] for name in new} == {"step", "split", "reconstruction"}


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_evaluation_ends_at_the_first_signal(finished, tmp_path, monkeypatch, number, status):
    config, workdir, scores = finished
    copy = shutil.copytree(workdir, tmp_path / "copy")

    def told_to_stop(*_):
        signal.raise_signal(number)
        pytest.fail("the evaluation went on")

    with monkeypatch.context() as patch, pytest.raises(Terminated) as stop:
        patch.setattr(train.Pretraining, "scores", told_to_stop)
        train.train_and_evaluate(config, copy)
    assert stop.value.status == status and "step 15 is saved (not evaluated)" in str(stop.value)
    assert train.train_and_evaluate(config, copy) == scores


@pytest.mark.release
def test_periodic_evaluation_and_several_mask_ratios(dataset_dir, tmp_path):
    for every, steps in ((0.1, 1), (0.0, 5), (1.0, 2)):  # an epoch is 2.5 steps
        config = tiny.config(dataset_dir, epochs=2.0, eval_every=every, mask__ratios=(0.5, 0.7))
        assert train.Pretraining(config).eval_every == steps
    train.train_and_evaluate(config, tmp_path)
    assert [row["step"] for row in lines(tmp_path, "eval")] == [2, 4, 5]
    assert all(np.isfinite(row["loss"]) for row in lines(tmp_path))


def test_a_run_killed_before_its_first_checkpoint_begins_anew(dataset_dir, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 2, "split": "train", "loss": 1}\n{"step": 4')
    train.train_and_evaluate(tiny.config(dataset_dir, epochs=1.0, data__eval_split=""), tmp_path)
    assert [row["step"] for row in lines(tmp_path)] == [2]
    assert lines(tmp_path)[0]["loss"] != 1 and not lines(tmp_path, "eval")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model__width": 32}, "config.model.width was 16 and is now 32"),
        ({"seed": 5}, "config.seed was 0 and is now 5"),
        ({"batch_size": 16}, "config.batch_size was 8 and is now 16"),
        ({"mask__ratios": (0.6,)}, r"config.mask.ratios was .*0.5.* and is now .*0.6"),
        ({"data__train_split": "eval"}, r"the dataset was .*split train.* and is now .*split eval"),
    ],
)
def test_resuming_with_other_settings_is_refused(finished, overrides, message):
    config, workdir, _ = finished
    before = (workdir / "metrics.jsonl").read_text()
    with pytest.raises(UserError, match=message):
        train.train_and_evaluate(tiny.config(config.data.dir, **overrides), workdir)
    assert (workdir / "metrics.jsonl").read_text() == before


def test_a_dataset_of_the_same_size_but_other_contents_is_refused(finished, tmp_path):
    config, workdir, _ = finished
    again = tiny.prepared_again(config.data.dir, tmp_path / "again")
    before, now = (train.Pretraining(one) for one in (config, tiny.config(again)))
    assert before.dataset == now.dataset
    with pytest.raises(UserError, match="the dataset was prepared again, with other settings"):
        train.train_and_evaluate(tiny.config(again), workdir)


def test_a_run_beyond_its_new_end_is_refused(finished, tmp_path):
    config, workdir, _ = finished
    copy = shutil.copytree(workdir, tmp_path / "copy")
    before = (copy / "metrics.jsonl").read_text()
    for epochs, end, advice in ((4.0, 10, "or use"), (5.0, 12, "resume .* --resume_step=12, or")):
        shorter = tiny.config(config.data.dir, epochs=epochs)
        message = f"is at step 15, but .* end at step {end}: raise --config.epochs, {advice}"
        with pytest.raises(UserError, match=message):
            train.train_and_evaluate(shorter, copy)
        assert (copy / "metrics.jsonl").read_text() == before
    train.train_and_evaluate(shorter, copy, resume_step=12)
    assert [row["step"] for row in lines(copy, "eval")] == [12]
    assert losses(copy) == losses(workdir)[:6]


def test_all_splits_have_as_many_requests_in_flight(dataset_dir):
    task = train.Pretraining(tiny.config(dataset_dir, data__requests=7))
    assert task.records.requests == task.held_out.requests == 7
    # What an evaluation opens again, and what it chooses, is asked alike.
    assert sound_maps.RepeatedImages(task.held_out, 4).requests == 7
    assert clip_lists.Selected(task.held_out, [0]).requests == 7


def test_a_batch_larger_than_the_dataset_is_refused(dataset_dir, tmp_path):
    message = "config.batch_size=24 is more than the 20 clips of split 'train'.*batch_size=20"
    with pytest.raises(UserError, match=message):
        train.train_and_evaluate(tiny.config(dataset_dir, batch_size=24), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_the_end_says_where_the_run_is_and_what_comes_next(finished, tmp_path, capsys):
    config, workdir, _ = finished
    train.train_and_evaluate(config, workdir)
    said = capsys.readouterr().err
    assert "training on 8 × cpu, mesh {'data': 8, 'fsdp': 1}" in said
    assert f"trained to step 15: {workdir}" in said
    assert f"evals.retrieval --checkpoint={workdir} --data={config.data.dir} --split=eval" in said


@pytest.mark.release
def test_a_diverged_run_goes_on_with_the_advice_it_gave(finished, tmp_path, monkeypatch):
    config, workdir, _ = finished
    copy = shutil.copytree(workdir, tmp_path / "copy")
    longer = config.copy_and_resolve_references()
    longer.epochs = 8.0
    real = metric_writer.History.flush

    def diverge(self, batch_size):
        if self._pending[-1][0] >= 18:
            raise metric_writer.NotFiniteError(18, "loss", float("nan"))
        return real(self, batch_size)

    with monkeypatch.context() as patch:
        patch.setattr(metric_writer.History, "flush", diverge)
        with pytest.raises(UserError, match="checkpoint is of step 15: look") as error:
            train.train_and_evaluate(longer, copy)
    assert str(error.value).endswith(f"--config.learning_rate={config.learning_rate / 2:g}")
    longer.learning_rate = config.learning_rate / 2
    train.train_and_evaluate(longer, copy)
    assert losses(copy)[-1][0] == 20
    assert lines(copy)[-2]["learning_rate"] < lines(workdir)[-2]["learning_rate"]


@pytest.mark.release
def test_nan_stops_with_step_and_clips(dataset_dir, tmp_path):
    config = tiny.config(dataset_dir, learning_rate=1e15)
    with pytest.raises(UserError, match=r"of step 2 is nan; .* the clips clip\d+, clip"):
        train.train_and_evaluate(config, tmp_path)
    assert not any((tmp_path / "checkpoints").glob("[0-9]*"))
    records = loader.Records(dataset_dir, "train")
    pair_spec = loader.PairSpec.of(config)
    batches = loader.train_batches(records, pair_spec, 8, config.seed, 0, 0, 2)
    second = [next(batches)["clip"] for _ in range(2)][1]
    named = (tmp_path / "clips_of_step_2.txt").read_text().split()
    assert named == records.ids(second.tolist())


@pytest.mark.parametrize("name", ["loss", "grad_norm", "update_norm"])
def test_no_value_that_is_not_finite_passes(name):
    history = metric_writer.History()
    history.add(7, {"loss": jax.numpy.ones(()), name: jax.numpy.full((), np.nan)})
    with pytest.raises(metric_writer.NotFiniteError, match=f"the {name} of step 7 is nan"):
        history.flush(8)


def test_one_batch_is_overfitted():
    config = tiny.config(learning_rate=3e-3)
    module = cavmae_sync.from_config(config.model)
    optimizer, _ = train_step.make_optimizer(config, 150, 10.0)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    state = jax.jit(lambda key: train_step.init_state(module, optimizer, key))(jax.random.key(0))
    step_fn = train_step.make_train_step(
        module, optimizer, config, sharding.state_shardings(state, mesh)
    )
    rng = np.random.default_rng(0)
    batch = {
        "audio": rng.normal(-5, 4, (8, *module.raw_shape("audio"))).astype(np.float32),
        "visual": rng.integers(0, 256, (8, *module.raw_shape("visual")), np.uint8),
    }
    history = []
    for _ in range(150):
        state, scalars = step_fn(state, batch, 0.75)
        history.append(jax.device_get(scalars))
    assert np.mean([scalars["nce_accuracy"] for scalars in history[-10:]]) > 0.9
    assert history[-1]["loss"] < 0.6 * history[0]["loss"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"schedule": "linear"}, "config.schedule='linear' must be one of cosine, halving"),
        ({"mask__audio_structure": "x"}, "mask.audio_structure='x' must be one of unstructured"),
        ({"loss__contrast_direction": "x"}, "contrast_direction='x' must be one of"),
        ({"batch_size": 12}, "config.batch_size=12 must be a multiple of 8 devices"),
        (
            {"loss__contrast_groups": 3},
            "batch_size=8 must be a multiple of config.loss.contrast_groups=3",
        ),
        ({"mask__ratios": (1.5,)}, r"mask.ratios=\(1.5,\) must be ratios between 0 and 1"),
        ({"mask__ratios": (0.9,)}, "that keep some of 4 patches"),
        ({"epochs": -1.0}, "config.epochs=-1.0 must be above 0"),
        ({"epochs": np.inf}, "config.epochs=inf must be a finite number"),
        ({"eval_every": np.inf}, "config.eval_every=inf must be a finite number"),
        ({"loss__contrast_weight": np.nan}, "loss.contrast_weight=nan must be a finite number"),
        ({"loss__contrast_groups": 0}, "loss.contrast_groups=0 must be at least 1"),
        ({"keep_checkpoints": 0}, "keep_checkpoints=0 must be at least 1"),
        ({"seed": -1}, "config.seed=-1 must be at least 0"),
        ({"loss__contrast_groups": 8}, "contrast_groups=8 leaves one clip per group, which has"),
        ({"loss__contrast_weight": -0.1}, "loss.contrast_weight=-0.1 must be at least 0"),
        ({"warmup_share": 2.0}, "warmup_share=2.0 must be from 0 to 1"),
        ({"learning_rate_floor": 10.0}, "learning_rate_floor=10.0 must be from 0 to 1"),
        ({"adam_b1": 1.0}, "adam_b1=1.0 must be from 0 to below 1"),
        ({"model__mlp_ratio": 0.1}, "mlp_ratio=0.1 must be larger: it makes a hidden width of 0"),
        ({"evaluations": ("temporal",)}, "has no frame_class"),
        ({"loss__temperature": 0.0}, "loss.temperature=0.0 must be above 0"),
        ({"mesh__fsdp": 0}, "does not fit 8 devices"),
        ({"mesh__fsdp": -1}, "does not fit 8 devices"),
        ({"model__heads": 0}, "config.model.heads=0 must be at least 1"),
        ({"model__audio_bins": 64}, "audio_bins=64, but the dataset has 128"),
        ({"data__clip_rows": 304}, "dataset holds clips of 398 rows"),
        ({"data__window_spread": "wide"}, "window_spread='wide' must be one of clip, padded"),
        ({"data__num_frames": 5}, "the dataset holds 4 frames"),
        ({"model__image_size": 64}, "frames have 32 pixels"),
        ({"data__eval_split": "test"}, "no split 'test'; it has"),
    ],
)
def test_settings_are_refused_before_anything_is_written(dataset_dir, tmp_path, overrides, message):
    workdir = tmp_path / "workdir"
    with pytest.raises(UserError, match=message):
        train.train_and_evaluate(tiny.config(dataset_dir, **overrides), workdir)
    assert not workdir.exists()


def test_a_conversion_is_no_workdir(dataset_dir, tmp_path):
    config = tiny.config(dataset_dir)
    params = jax.jit(cavmae_sync.from_config(config.model).init_params)(jax.random.key(0))
    manager.write(tmp_path / "converted", {"params": params}, config)
    with pytest.raises(UserError, match=r"is a conversion.*--config.init_from"):
        train.train_and_evaluate(config, tmp_path / "converted")


def test_resuming_from_an_older_step_repeats_what_followed(finished, tmp_path):
    config, workdir, scores = finished
    copy = shutil.copytree(workdir, tmp_path / "copy")
    assert train.train_and_evaluate(config, copy, resume_step=12) == scores
    assert (copy / "set_aside_15").is_dir() and losses(copy) == losses(workdir)
    before = sorted(path.name for path in (copy / "checkpoints").iterdir())
    with pytest.raises(UserError, match="seed was 0"):
        train.train_and_evaluate(tiny.config(config.data.dir, seed=1), copy, resume_step=12)
    assert sorted(path.name for path in (copy / "checkpoints").iterdir()) == before


def test_a_workdir_that_is_a_file(dataset_dir, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="file can't be made"):
        train.train_and_evaluate(tiny.config(dataset_dir), tmp_path / "file")


@pytest.mark.release
def test_profile_on_request(dataset_dir, tmp_path):
    train.train_and_evaluate(tiny.config(dataset_dir, epochs=2.0, profile_step=2), tmp_path)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


class LoggedStep:
    """A train step that tells when it is compiled and when it runs."""

    def __init__(self):
        self.log = []

    def lower(self, state, batch, ratio):
        def run(*given):
            self.log.append(("runs", ratio, *given))
            return given

        self.log.append(("compiles", ratio))
        return types.SimpleNamespace(compile=lambda: run)


@pytest.mark.parametrize("ratios", [(0.75,), (0.6, 0.75, 0.9)])
def test_the_steps_of_all_mask_ratios_are_compiled_before_the_first_one_runs(monkeypatch, ratios):
    step, config = LoggedStep(), tiny.config(mask__ratios=ratios)
    monkeypatch.setattr(train_step, "make_train_step", lambda *_: step)
    task = types.SimpleNamespace(config=config, module=None, optimizer=None)
    run = train.Pretraining.step_function(task, train_step.TrainState(None, None, None))
    for number in range(1, 9):
        run("state", "batch", number)
    expected = [train_step.batch_ratio(ratios, config.seed, number) for number in range(1, 9)]
    assert step.log[: len(ratios)] == [("compiles", ratio) for ratio in ratios]
    assert step.log[len(ratios) :] == [("runs", ratio, "state", "batch") for ratio in expected]


def test_mask_ratios_are_drawn_from_seed_and_step():
    ratios = (0.6, 0.75, 0.9)
    drawn = [train_step.batch_ratio(ratios, 0, number) for number in range(60)]
    assert set(drawn) == set(ratios)
    assert drawn == [train_step.batch_ratio(ratios, 0, number) for number in range(60)]
    assert drawn != [train_step.batch_ratio(ratios, 1, number) for number in range(60)]


def test_augmentation_is_a_shift_and_small_noise():
    fbank = np.broadcast_to(np.arange(20.0)[:, None] * 10, (3, 20, 4)).astype(np.float32)
    out = np.asarray(augmentation.augment_audio(jax.random.key(0), jax.numpy.asarray(fbank), 2.0))
    shifts = [int(np.argmin(sample[:, 0])) for sample in out]
    assert len(set(shifts)) > 1
    for sample, shift in zip(out, shifts, strict=True):
        noise = sample - np.roll(fbank[0], shift, axis=0)
        assert noise.min() >= 0 and 0 < noise.max() < 0.2 and noise.std() > 0
