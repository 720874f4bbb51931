"""Statistics of the training clips: by hand, stored, and used by a training that asks for them."""

import json
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
import tiny
from faulty_clips import faulty

from cavmae_sync_jax import train
from cavmae_sync_jax.data import dataset_dir as data_dataset_dir
from cavmae_sync_jax.media import audio
from cavmae_sync_jax.training import config_checks
from cavmae_sync_jax.utils.errors import UserError
from data_prep.pipeline import stats
from data_prep.pipeline.clips import Preparation
from data_prep.pipeline.executors import Engine
from data_prep.pipeline.tfds_writer import write_dataset

NAMES = ("cat", "dog", "cow")


@pytest.fixture(scope="module", params=["float16", "uint8"])
def written(request, tmp_path_factory):
    labels = {"a": ("cat",), "b": ("cat", "dog"), "c": (), "d": ("dog",)}
    clips = [
        type(clip)(clip.clip_id, clip.path, labels=labels[clip.clip_id]) for clip in faulty(*labels)
    ]
    summary = write_dataset(
        tmp_path_factory.mktemp(request.param),
        {"train": clips[:3], "eval": clips[3:]},
        Preparation(num_frames=2, image_size=16, clip_seconds=2, fbank_dtype=request.param),
        class_names=NAMES,
        source="noise",
        engine=Engine(workers=1),
        compute_stats=True,
    )
    return summary.directory


def test_they_are_those_of_the_training_clips(written):
    records = list(tfds.builder_from_directory(written).as_data_source(split="train"))
    values = np.concatenate([audio.dequantize(record["fbank"]) for record in records])
    found = data_dataset_dir.read_statistics(written)
    assert (found["clips"], found["rows"]) == (3, len(values))
    assert found["fbank_mean"] == pytest.approx(values.mean(dtype=np.float64), rel=1e-9)
    assert found["fbank_std"] == pytest.approx(values.std(dtype=np.float64), rel=1e-9)
    assert found["class_counts"] == {"cat": 2, "dog": 1, "cow": 0}
    weights = found["class_weights"]
    assert weights == pytest.approx({"cat": 1000 / 2.01, "dog": 1000 / 1.01, "cow": 1e5})


@pytest.mark.release
def test_a_training_uses_them_if_told(dataset_dir, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(dataset_dir, folder)
    config = tiny.config(folder, data__own_statistics=True, epochs=0.4, evaluations=())
    with pytest.raises(UserError, match=r"statistics\.json is not there: .* --compute_stats"):
        train.train_and_evaluate(config, tmp_path / "run")
    directory = data_dataset_dir.find(folder)
    stats.store(directory, found := stats.compute(directory))
    train.train_and_evaluate(config, tmp_path / "run")
    stored = json.loads((tmp_path / "run/config.json").read_text())
    assert stored["model"]["audio_mean"] == found["fbank_mean"] != tiny.config().model.audio_mean
    assert stored["model"]["audio_std"] == found["fbank_std"]
    other = tiny.config(folder)
    assert config_checks.with_statistics(other) is other


@pytest.mark.parametrize("text", ["", "{}", '{"fbank_std": 0}', '{"fbank_std": "x"}', "[1]"])
def test_damaged_statistics_are_told(tmp_path, text):
    (tmp_path / data_dataset_dir.STATISTICS).write_text(text)
    with pytest.raises(UserError, match=r"statistics\.json .*--compute_stats makes it"):
        data_dataset_dir.read_statistics(tmp_path)


def test_without_a_training_split_there_are_none(tmp_path):
    with pytest.raises(UserError, match="--compute_stats is of the split 'train'"):
        write_dataset(
            tmp_path / "out",
            {"eval": faulty("a")},
            Preparation(),
            class_names=(),
            source="noise",
            compute_stats=True,
        )
