"""What `app` shows of a model: the scores that its evaluations left."""

import json

import pytest

from cavmae_sync_jax.evals.report import overview

RANKS = {"R1": 0.25, "R5": 0.5, "R10": 0.75, "median_rank": 3.0}


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("named", ["{root}/runs/demo/train", "runs/demo/train", "demo/train"])
def test_scores_are_found_from_any_folder(tmp_path, monkeypatch, beside, named):
    workdir = tmp_path / "runs" / "demo" / "train"
    folder = (workdir.parent if beside else workdir) / "evals"
    folder.mkdir(parents=True)
    scores = {way: RANKS for way in ("audio_to_visual", "visual_to_audio")}
    directory = named.format(root=tmp_path)
    result = {"scores": {"diagonal_mean": scores}, "checkpoint": {"directory": directory}}
    (folder / "retrieval.json").write_text(json.dumps(result))
    (tmp_path / "elsewhere").mkdir()
    for place in (tmp_path, tmp_path / "elsewhere"):
        monkeypatch.chdir(place)
        assert "25.0" in overview.scores(folder, str(workdir))
        assert overview.scores(folder, str(workdir.parent / "finetune")) is None
