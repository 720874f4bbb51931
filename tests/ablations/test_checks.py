"""What a table of ablations refuses before it trains, because an evaluation would refuse it."""

import importlib
import sys
import textwrap

import pytest

from cavmae_sync_jax import ablate
from cavmae_sync_jax.ablations import checks, plan, tables
from cavmae_sync_jax.ablations.datasets import Datasets
from cavmae_sync_jax.data import loader
from cavmae_sync_jax.utils import cli
from cavmae_sync_jax.utils.errors import UserError

SIZES = {"batch_size": 8, "data.num_frames": 4, "model.image_size": 32, "model.image_patch": 16}


@pytest.fixture
def ablation_of(tmp_path, dataset_dir):
    """Makes an ablation of a table's text; its probe's batches have 8 clips."""

    def make(text, probe="demo"):
        (tmp_path / "mine.py").write_text(text)
        sizes = {"data.dir": dataset_dir, **SIZES}
        flags = [f"--config.{key}={value}" for key, value in sizes.items()]
        todo = plan.make(tables.read(tmp_path / "mine.py"), cli.Rows("configs/demo.py", flags), 2)
        recipe = cli.config_of(f"configs/probe.py:{probe}")
        recipe.batch_size = 8
        data = Datasets(str(dataset_dir), "eval", "train", {}, {})
        return ablate.Ablation(todo, data, tmp_path / "work", recipe)

    return make


@pytest.mark.parametrize(
    ("row", "column", "message"),
    [
        (
            {"frame": 9},
            "retrieval/visual_to_audio/R1",
            "the rows a evaluate frame 9 of 4, which are counted from 0: frame must be from 0 to 3",
        ),
        ({"frame": -1}, "probe/mAP", "the rows a evaluate frame -1 of 4, which are counted"),
        ({"frame": 2, "num_frames": 2}, "tokens/linear/global", "frame must be from 0 to 1"),
        (
            {"frame": 1},
            "temporal/both/boundary_f1",
            "the rows a evaluate a single frame, which temporal can't: leave out `frame` or the",
        ),
        ({"frame": 1}, "segmentation/cosine/mIoU", "a single frame, which segmentation can't"),
        ({"frame": 1}, "reconstruction/audio", "a single frame, which reconstruction can't"),
        ({"num_frames": 0}, "reconstruction/audio", "0 frames per clip: num_frames must be at"),
        ({"num_frames": 5}, "segmentation/cosine/mIoU", "evaluate 5 frames per clip, but "),
    ],
)
def test_frames_that_cant_be_evaluated(ablation_of, row, column, message):
    with pytest.raises(UserError) as refused:
        # The other row shares the training, but is not to blame.
        ablation_of(f"ROWS = {{'all': {{}}, 'a': {row}}}\nCOLUMNS = [{column!r}]").check()
    assert message in str(refused.value)


def test_frames_of_another_size(ablation_of, dataset_dir):
    ablation = ablation_of("ROWS = {'a': {}}\nCOLUMNS = ['temporal/both/boundary_f1']")
    (training, _) = ablation.plan.trainings.values()
    (spec,) = training.evaluations
    records = loader.Records(dataset_dir, "eval")
    checks.frames(training, spec, records, ["a"])
    training.config.model.image_size = 64
    message = (
        f"the rows a evaluate {records.directory}: config.model.image_size=64, but the dataset's"
    )
    with pytest.raises(UserError, match=message):
        checks.frames(training, spec, records, ["a"])


def test_the_evaluations_of_one_frame_are_those_with_its_flag(monkeypatch, capsys):
    found = []
    for name in tables.PLACES:
        if name != "training":
            monkeypatch.setattr(sys, "argv", [name, "--help"])
            with pytest.raises(SystemExit):
                importlib.import_module(f"cavmae_sync_jax.evals.{name}").main()
            found += [name] * ("--frame FRAME" in capsys.readouterr().out)
    assert found == list(checks.ONE_FRAME)


@pytest.mark.parametrize(
    ("probe", "evaluation", "settings", "message"),
    [
        (
            "demo",
            "probe",
            {"epochs": 6},
            "probe, by --probe and SETTINGS['probe']: config.average_from=7 must be from 1 to "
            "config.epochs=6: ",
        ),
        ("demo", "probe", {"epohs": 6}, "SETTINGS: probe has no setting 'epohs'; it has adam_b1, "),
        ("demo", "probe", {"epochs": "many"}, "SETTINGS of probe: "),
        ("demo", "tokens", {"heads": 7}, "config.heads=7 must divide the features' width of 192"),
        ("demo,audio", "probe", {"heads": 64}, "must divide the features' width of 96"),
        ("demo", "probe", {"batch_size": 24}, "=24 is more than the 20 clips of the split 'train'"),
        ("demo", "probe", {"batch_size": 12}, "=12 must be a multiple of 8 devices"),
        ("demo", "probe", {"train_split": "none"}, "has no split 'none'; it has"),
        (
            "as20k",
            "tokens",
            {},
            "tokens, by --probe and SETTINGS['tokens']: the token analysis probes the same",
        ),
    ],
)
def test_recipes_that_do_not_fit(ablation_of, probe, evaluation, settings, message):
    column = {"probe": "probe/mAP", "tokens": "tokens/linear/global"}[evaluation]
    text = (
        f"ROWS = {{'a': {{}}}}\nCOLUMNS = [{column!r}]\nSETTINGS = {{{evaluation!r}: {settings}}}"
    )
    with pytest.raises(UserError) as refused:
        ablation_of(text, probe).check()
    assert message in str(refused.value)


def test_the_example_of_a_table_passes(ablation_of):
    _, _, example = tables.__doc__.partition("are needed:\n")
    ablation = ablation_of(textwrap.dedent(example))
    assert len(ablation.plan.table.rows) == 4 and ablation.plan.table.settings["probe"]
    steps = ablation.check()
    assert len(steps) == 6 and set(steps.values()) == {round(47 * 20 / 8)}
