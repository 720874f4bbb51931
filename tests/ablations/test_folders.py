"""What counts as finished: the same config on the same data, and a probe of the same clips."""

import json

import pytest
import tiny

from cavmae_sync_jax import ablate
from cavmae_sync_jax.ablations import plan, tables
from cavmae_sync_jax.ablations.datasets import Datasets
from cavmae_sync_jax.ablations.folders import Folder
from cavmae_sync_jax.data import loader
from cavmae_sync_jax.utils import cli
from cavmae_sync_jax.utils.errors import UserError

SIZES = {"batch_size": 8, "data.num_frames": 4, "model.image_size": 32, "model.image_patch": 16}


@pytest.fixture(scope="module")
def prepared_again(dataset_dir, tmp_path_factory):
    place = tmp_path_factory.mktemp("again") / "data"
    return tiny.prepared_again(dataset_dir, place, audio_channel="mix")


def ablation_of(tmp_path, text, data, others=(), probe="configs/probe.py:demo"):
    """An ablation of a table's text on a dataset."""
    (tmp_path / "mine.py").write_text(text)
    flags = [f"--config.{key}={value}" for key, value in (("data.dir", data), *SIZES.items())]
    config_of = cli.Rows("configs/demo.py", flags)
    todo = plan.make(tables.read(tmp_path / "mine.py"), config_of, 1)
    datasets = Datasets(str(data), "eval", "train", dict(others), {})
    return ablate.Ablation(todo, datasets, tmp_path / "work", cli.config_of(probe))


def test_a_training_of_other_data_is_another_training(tmp_path, dataset_dir, prepared_again):
    config = tiny.config(dataset_dir)
    folder = Folder(tmp_path, "unchanged-seed0")
    folder.path.mkdir(parents=True)
    clips, others = (loader.Records(dataset_dir, split) for split in ("train", "eval"))
    again = loader.Records(prepared_again, "train")
    assert not folder.is_trained(config, clips)
    folder.note_trained(config, clips, 15, "1 device", 1)
    assert folder.is_trained(config, clips)
    copy = tiny.config("elsewhere", model__dtype="bfloat16")  # as a training may go on
    assert folder.is_trained(copy, clips)
    message = f"{folder.path} holds another training: the dataset was"
    with pytest.raises(UserError, match=message) as refused:
        folder.is_trained(config, others)
    assert f"was {clips.identity} and is now {others.identity}: use" in str(refused.value)
    with pytest.raises(UserError, match=r"training: the dataset was prepared again, with other"):
        folder.is_trained(config, again)
    longer = tiny.config(dataset_dir, epochs=7.0)
    assert not folder.is_trained(longer, clips)
    with pytest.raises(UserError, match=r"config.epochs was 6.0 and is now 7.0; the dataset was"):
        folder.is_trained(longer, again)
    # What was noted before the data were.
    path = folder.path / "trained.json"
    noted = json.loads(path.read_text())
    path.write_text(json.dumps({k: noted[k] for k in ("config", "step", "devices", "version")}))
    assert folder.is_trained(config, again)


def test_a_table_refuses_a_training_of_other_data(tmp_path, dataset_dir, prepared_again):
    text = "ROWS = {'a': {}}\nCOLUMNS = ['training/loss']"
    ablation = ablation_of(tmp_path, text, dataset_dir)
    ((name, training),) = ablation.plan.trainings.items()
    clips = loader.Records(dataset_dir, "train")
    ablation.folder(name).path.mkdir(parents=True)
    ablation.folder(name).note_trained(training.config, clips, 15, "1 device", 1)
    assert ablation.is_trained(training) and ablation.counts(training, None)
    with pytest.raises(UserError, match=r"the dataset was prepared again"):
        ablation_of(tmp_path, text, prepared_again).check()


def test_a_probe_that_learned_from_other_clips_is_made_again(tmp_path, dataset_dir, prepared_again):
    text = "ROWS = {'a': {}}\nCOLUMNS = ['probe@as20k/mAP', 'retrieval/visual_to_audio/R1']"
    ablation, other = (
        ablation_of(tmp_path, text, dataset_dir, {"as20k": str(data)})
        for data in (dataset_dir, prepared_again)
    )
    ((name, training),) = ablation.plan.trainings.items()
    probe, retrieval = training.evaluations
    about = ablation.about(name, probe)
    clips = loader.Records(dataset_dir, "train")
    assert about["learned_from"] == {"data": clips.identity, "contents": clips.contents}
    changed = loader.Records(prepared_again, "train").contents
    assert other.about(name, probe)["learned_from"]["contents"] == changed != clips.contents
    assert "learned_from" not in ablation.about(name, retrieval)
    # The scored clips alone don't tell: those to learn from may be others.
    folder = ablation.folder(name)
    folder.begin(probe, about)
    folder.end(probe, about)
    assert folder.has(probe, about)
    assert not folder.has(probe, about | {"learned_from": {"data": "x", "contents": "x"}})
    # What was noted before these clips were.
    path = folder.output(probe) / "asked.json"
    noted = json.loads(path.read_text())
    del noted["learned_from"], noted["contents"]
    path.write_text(json.dumps(noted))
    assert folder.has(probe, about) and not folder.has(probe, about | {"step": 7})
