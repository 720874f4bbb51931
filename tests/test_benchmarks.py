"""The benchmarks run; what they measure is theirs to say."""

import json

import pytest

from benchmarks import convert, demo_seeds, retrieval
from cavmae_sync_jax import cli
from cavmae_sync_jax.evals import scores


def test_retrieval_times_every_aggregation(monkeypatch, capsys):
    for name, value in (("FRAMES", 2), ("DIM", 4), ("LOOPED", 3)):
        monkeypatch.setattr(retrieval, name, value)
    monkeypatch.setattr("sys.argv", ["retrieval", "--clips=6", "--repeats=2"])
    retrieval.main()
    title, *rows = capsys.readouterr().out.splitlines()
    assert title.startswith("6 clips × 2 × 4")
    assert [row.split()[0] for row in rows] == list(scores.STRATEGIES)
    assert all("GiB" in row and "double loop" in row for row in rows)


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


def test_convert_measures_every_kind_both_ways(monkeypatch, capsys):
    tiny = {"image_size": 32, "audio_rows": 96, "width": 16, "depth": 1, "decoder_width": 8}
    tiny |= {"heads": 2, "decoder_heads": 2, "decoder_depth": 1}
    make, make_mae = convert.random_state, convert.mae_state
    monkeypatch.setattr(convert, "random_state", lambda seed=0, **own: make(seed, **tiny | own))
    monkeypatch.setattr(convert, "mae_state", lambda: make_mae())
    measured = []

    def measure(source, destination):
        measured.append(source.split("/")[-1])
        if destination.endswith((".pth", ".safetensors")):
            open(destination, "wb").close()
        return 1.0, 2.0

    monkeypatch.setattr(convert, "measure", measure)
    convert.main()
    rows = capsys.readouterr().out.splitlines()[3:]
    assert len(rows) == 6 and all(row.endswith("| 1.0 | 2.00 |") for row in rows)
    assert measured[:4] == ["sync.pth", "sync.safetensors", "cav_mae.pth", "mae.pth"]
