"""What counts as finished: the same config on the same data, and a probe of the same clips."""

import base64
import json
from xml.etree import ElementTree

import pytest
import tiny

from cavmae_sync_jax import ablate
from cavmae_sync_jax.ablations import page, plan, rendering, scores, tables
from cavmae_sync_jax.ablations.datasets import Datasets
from cavmae_sync_jax.ablations.folders import Folder
from cavmae_sync_jax.data import loader
from cavmae_sync_jax.utils import cli
from cavmae_sync_jax.utils.errors import UserError

SIZES = {"batch_size": 8, "data.num_frames": 4, "model.image_size": 32, "model.image_patch": 16}
HEAD_OF_PNG = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + b"\0\0\0\1" * 2


@pytest.fixture(scope="module")
def prepared_again(dataset_dir, tmp_path_factory):
    place = tmp_path_factory.mktemp("again") / "data"
    return tiny.prepared_again(dataset_dir, place)


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
    with pytest.raises(UserError, match=r"config.epochs was 6.0 and is now 7.0: use"):
        folder.is_trained(longer, clips)
    with pytest.raises(UserError, match=r"config.epochs was 6.0 and is now 7.0; the dataset was"):
        folder.is_trained(longer, again)
    # What was noted before the data were.
    path = folder.path / "trained.json"
    noted = json.loads(path.read_text())
    path.write_text(json.dumps({k: noted[k] for k in ("config", "step", "devices", "version")}))
    assert folder.is_trained(config, again)


def test_a_training_that_was_stopped_keeps_its_schedule(tmp_path, dataset_dir):
    folder, config = Folder(tmp_path, "unchanged-seed0"), tiny.config(dataset_dir)
    clips = loader.Records(dataset_dir, "train")
    (folder.train / "checkpoints" / "3").mkdir(parents=True)
    (folder.train / "config.json").write_text(config.to_json())
    assert not folder.is_trained(config, clips)
    for key, value in (("learning_rate", 1e-9), ("epochs", 99.0)):
        with pytest.raises(UserError, match=f"holds another training: config.{key} was"):
            folder.is_trained(tiny.config(dataset_dir, **{key: value}), clips)
    (folder.train / "checkpoints" / "3").rmdir()  # nothing of it is kept
    assert not folder.is_trained(tiny.config(dataset_dir, epochs=99.0), clips)


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


def finish(ablation, result):
    """Notes that an ablation's only training and its evaluations are finished, with a result."""
    ((name, training),) = ablation.plan.trainings.items()
    folder = ablation.folder(name)
    folder.train.mkdir(parents=True)
    clips = ablation.datasets.of_training(training.config)
    folder.note_trained(training.config, clips, 15, "1 device", 1)
    for spec in training.evaluations:
        place = folder.begin(spec, ablation.about(name, spec))
        for file, scored in result.items():
            (place / f"{file}.json").write_text(json.dumps(scored))
            (place / f"{file}.png").write_bytes(HEAD_OF_PNG + file.encode())
        folder.end(spec, ablation.about(name, spec))
    return folder


@pytest.mark.parametrize(
    ("row", "file"), [("demo", "probe"), ("demo,audio", "probe_audio"), ("demo,visual", None)]
)
def test_a_probe_of_one_stream_has_files_of_its_own_name(tmp_path, dataset_dir, row, file):
    text = "ROWS = {'a': {}}\nCOLUMNS = ['probe/mAP']"
    ablation = ablation_of(tmp_path, text, dataset_dir, probe=f"configs/probe.py:{row}")
    made = {"probe": {"scores": {"mAP": 0.25}}, "probe_audio": {"scores": {"mAP": 0.5}}}
    folder = finish(ablation, made)
    (spec,) = ablation.plan.trainings["unchanged-seed0"].evaluations
    assert folder.stem(spec) == (file or "probe_visual")
    assert folder.result(spec) == made.get(file)
    found = dict(page._pictures(ablation.sources)).values()
    pictures = "".join(ElementTree.tostring(one, "unicode") for nodes in found for one in nodes)
    shown = {name: base64.b64encode(HEAD_OF_PNG + name.encode()).decode() for name in made}
    assert [name for name in made if shown[name] in pictures] == [file] * (file is not None)


@pytest.mark.parametrize(
    ("column", "settings", "row"),
    [
        ("retrieval/visual_to_audio/R1", {"retrieval": {"strategies": ["mean"]}}, "demo"),
        ("probe/mAP", {}, "demo,cached,audio"),
    ],
)
def test_pictures_of_other_settings_are_not_shown(tmp_path, dataset_dir, column, settings, row):
    text = f"ROWS = {{'a': {{}}}}\nCOLUMNS = [{column!r}]\nSETTINGS = "
    before = ablation_of(tmp_path, f"{text} {{}}", dataset_dir)
    finish(before, {"retrieval": {}, "probe": {}, "probe_audio": {}})
    now = ablation_of(tmp_path, f"{text} {settings}", dataset_dir, probe=f"configs/probe.py:{row}")
    shown = [dict(page._pictures(ablation.sources)) for ablation in (before, now)]
    assert [list(pictures) for pictures in shown] == [[column.split("/")[0]], []]
    assert scores.missing(now.sources) == ["unchanged-seed0"]


@pytest.mark.parametrize("title", ["w/o registers", "a|b", "gs://x", "λ/2 | 4"])
def test_a_rows_title_is_whole_wherever_it_stands(tmp_path, dataset_dir, title):
    text = f"ROWS = {{'a': {{'title': {title!r}}}}}\nCOLUMNS = ['retrieval/visual_to_audio/R1']"
    claim = {"text": title, "row": "a", "than": "a", "column": "retrieval/visual_to_audio/R1"}
    ablation = ablation_of(tmp_path, f"{text}\nCLAIMS = [{claim}]", dataset_dir)
    found = {"scores": {"diagonal_mean": {"visual_to_audio": {"R1": 0.75}}}}
    finish(ablation, {"retrieval": found})
    ((_, (beside,)),) = page._pictures(ablation.sources)
    (caption,) = beside.iter("figcaption")
    assert caption.text == f"{title}, seed 0, retrieval: what the evaluation drew."
    lines = rendering.markdown(scores.collect(ablation.sources, {}, {}, [])).splitlines()
    shown = title.replace("|", "\\|")
    table, claims = lines[2:5], lines[6:9]
    assert table[2] == f"| {shown} | 75.0 |"
    assert claims[2].startswith(f"| {shown} | visual → audio R@1, % | +0.0 | ")
    for part, bars in ((table, 3), (claims, 5)):
        assert {line.replace("\\|", "").count("|") for line in part} == {bars}


def test_a_score_that_an_evaluation_lacks_is_named(tmp_path, dataset_dir, capsys):
    text = """
ROWS = {"a": {}, "b": {"strategy": "max"}}
COLUMNS = [
    "retrieval/visual_to_audio/R1",
    "segmentation/cosine/mIuO",
    "training/audio_to_visual/R5",
    "training/los",
]
CLAIMS = [{"text": "x", "row": "a", "than": "b", "column": "training/los"}]
"""
    ablation = ablation_of(tmp_path, text, dataset_dir)
    retrieval = {"scores": {"diagonal_mean": {"visual_to_audio": {"R1": 0.75}}}}
    folder = finish(ablation, {"retrieval": retrieval, "segmentation": {"maps": {}}})
    line = {"step": 15, "split": "eval", "audio_to_visual/R5": 0.25, "audio_to_visual/R1": 0.125}
    (folder.train / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    result = scores.collect(ablation.sources, {}, {}, [])
    assert result["missing"] == []
    assert result["lacking"] == {
        "retrieval/visual_to_audio/R1": ["b"],
        "segmentation/cosine/mIuO": ["a", "b"],
        "training/los": ["a", "b"],
    }
    of_a = result["rows"]["a"]["scores"]
    assert of_a["retrieval/visual_to_audio/R1"]["mean"] == 0.75
    assert of_a["training/audio_to_visual/R5"]["mean"] == 0.25
    text = rendering.markdown(result)
    assert "retrieval/visual_to_audio/R1 is not among the scores of “b”.\n" in text
    assert "training/los is not among the scores of “a”, “b”.\n" in text
    assert "| x | los | – | none without a score of both rows |" in text
    (training,) = ablation.plan.trainings.values()
    ablation._do(training)
    said = capsys.readouterr().err.splitlines()
    assert "segmentation/cosine/mIuO is not among the scores of unchanged-seed0" in said
    assert not any("audio_to_visual" in each for each in said)
