"""What version 0.1.0 stored still loads, resumes and evaluates to the same numbers.

`golden/version_0_1_0.tar.xz` holds a prepared dataset, a workdir that was trained on it to step 4,
and a checkpoint that `convert` wrote; the JSON beside it what version 0.1.0 computed from them.
"""

import json
import pathlib
import tarfile

import numpy as np
import pytest

import cavmae_sync_jax
from cavmae_sync_jax import train
from cavmae_sync_jax.data.loader import Records
from cavmae_sync_jax.evals import retrieval
from data_prep.inspection.dataset import open_dataset

GOLDEN = pathlib.Path(__file__).parent / "golden"
EXPECTED = json.loads((GOLDEN / "version_0_1_0.json").read_text())


@pytest.fixture
def stored(tmp_path):
    with tarfile.open(GOLDEN / "version_0_1_0.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


@pytest.mark.parametrize("name", ["workdir", "converted"])
def test_checkpoints_load_and_encode(stored, name):
    model = cavmae_sync_jax.load(str(stored / name))
    rng = np.random.default_rng(0)
    shapes = {modality: (2, *model.module.raw_shape(modality)) for modality in ("audio", "visual")}
    sound = model.encode_audio(rng.normal(-5, 4, shapes["audio"]).astype(np.float32))
    picture = model.encode_image(rng.integers(0, 256, shapes["visual"]).astype(np.uint8))
    for modality, found in (("audio", sound), ("visual", picture)):
        for key, tokens in ((modality, found.global_token), (f"{modality}_patches", found[1])):
            assert np.abs(tokens).sum() == pytest.approx(EXPECTED[name][key], rel=1e-4)


@pytest.mark.release
def test_a_training_resumes(stored):
    model = cavmae_sync_jax.load(str(stored / "workdir"))
    config = model.config.copy_and_resolve_references()
    config.update_from_flattened_dict(
        {"epochs": 6.0, "log_every": 1, "data.dir": str(stored / "dataset"), "data.eval_split": ""}
    )
    train.train_and_evaluate(config, stored / "workdir")
    lines = map(json.loads, (stored / "workdir" / "metrics.jsonl").read_text().splitlines())
    steps = {line["step"]: line for line in lines if line["split"] == "train"}
    assert set(steps) == {2, 4, 5, 6}
    for step, expected in EXPECTED["steps"].items():
        for key, value in expected.items():
            assert steps[int(step)][key] == pytest.approx(value, rel=1e-3)


def test_a_dataset_opens_and_is_scored(stored):
    assert open_dataset(stored / "dataset").splits.keys() == {"train", "eval"}
    model = cavmae_sync_jax.load(str(stored / "workdir"))
    result = retrieval.run(model, Records(stored / "dataset", "eval"))
    assert result["scores"]["diagonal_mean"]["audio_to_visual"]["median_rank"] == 1.5
