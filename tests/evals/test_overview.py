"""What `app` shows of a model: the scores that its evaluations left."""

import json

import pytest

from cavmae_sync_jax.evals.report import overview

RANKS = {"R1": 0.25, "R5": 0.5, "R10": 0.75, "median_rank": 3.0}
SCORES = {"diagonal_mean": {way: RANKS for way in ("audio_to_visual", "visual_to_audio")}}


def write(folder, name, **about):
    """Writes the result of an evaluation into a folder, which it makes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(about))


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("named", ["{root}/runs/demo/train", "runs/demo/train", "demo/train"])
def test_scores_are_found_from_any_folder(tmp_path, monkeypatch, beside, named):
    workdir = tmp_path / "runs" / "demo" / "train"
    folder = (workdir.parent if beside else workdir) / "evals"
    checkpoint = {"directory": named.format(root=tmp_path), "step": 7}
    write(folder, "retrieval", scores=SCORES, checkpoint=checkpoint)
    (tmp_path / "elsewhere").mkdir()
    for place in (tmp_path, tmp_path / "elsewhere"):
        monkeypatch.chdir(place)
        assert "25.0" in overview.scores(folder, workdir, 7)
        assert overview.scores(folder, workdir.parent / "finetune", 7) is None


@pytest.mark.parametrize("named", ["", "checkpoints", "checkpoints/7"])
def test_scores_of_another_step_are_another_models(tmp_path, named):
    """A training that went on, or one of its older checkpoints, was not evaluated."""
    folder, workdir = tmp_path / "evals", tmp_path / "train"
    (workdir / "checkpoints" / "7").mkdir(parents=True)
    checkpoint = {"directory": str(workdir / named), "step": 7}
    write(folder, "retrieval", scores=SCORES, checkpoint=checkpoint)
    assert "25.0" in overview.scores(folder, workdir, 7)
    assert overview.scores(folder, workdir, 9) is None


def test_another_systems_embeddings_hide_no_scores(tmp_path):
    """They have no checkpoint, and may lie beside the scores of the model."""
    errors = {"audio": 0.125, "visual": 0.5}
    write(tmp_path, "retrieval", scores=SCORES, embeddings={"file": "other.npz"})
    assert overview.scores(tmp_path, tmp_path, 7) is None
    checkpoint = {"directory": str(tmp_path), "step": 7}
    write(tmp_path, "reconstruction", errors=errors, checkpoint=checkpoint)
    shown = overview.scores(tmp_path, tmp_path, 7)
    assert "0.125" in shown and "25.0" not in shown
