"""The benchmarks run; what they measure is theirs to say."""

import json

import pytest

from benchmarks import demo_seeds, retrieval
from cavmae_sync_jax import cli


def test_retrieval_times_every_aggregation(monkeypatch, capsys):
    for name, value in (("CLIPS", 6), ("FRAMES", 2), ("DIM", 4), ("REPEATS", 2)):
        monkeypatch.setattr(retrieval, name, value)
    retrieval.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [
        "diagonal_mean",
        "diagonal_max",
        "mean",
        "max",
    ]


def test_demo_seeds_by_hand(tmp_path, capsys):
    for seed, recall in enumerate((0.1, 0.3)):
        score = {"R1": recall, "R5": 0.5, "R10": 1.0, "median_rank": 4.0}
        both = {"visual_to_audio": score, "audio_to_visual": score}
        results = {"retrieval": {"scores": {"diagonal_mean": both}, "baselines": {"chance": both}}}
        (tmp_path / str(seed)).mkdir()
        (tmp_path / str(seed) / "results.json").write_text(json.dumps(results))
    demo_seeds.run([str(tmp_path / "0"), str(tmp_path / "1")])
    *_, model, chance = capsys.readouterr().out.splitlines()
    cells = " | ".join(["20.0 ± 14.1 | 50.0 ± 0.0 | 4.0 ± 0.0"] * 2)
    assert model == f"| model, diagonal mean | {cells} |"
    assert chance == f"| chance | {cells} |"
    with pytest.raises(cli.UserError, match=r"holds no results\.json"):
        demo_seeds.run([str(tmp_path)])
