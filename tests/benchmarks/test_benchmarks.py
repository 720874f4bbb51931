"""The benchmarks run; what they measure is theirs to say."""

import json
from unittest import mock

import pytest

from benchmarks.inference import convert, exact_search, nearest, retrieval
from benchmarks.scores import claims, demo_seeds, evidence_settings
from cavmae_sync_jax.ablations import plan, tables
from cavmae_sync_jax.evals.metrics import retrieval as retrieval_metrics
from cavmae_sync_jax.evals.report import results_table
from cavmae_sync_jax.inference import heatmaps
from cavmae_sync_jax.utils import cli
from cavmae_sync_jax.utils.errors import UserError

pytestmark = pytest.mark.release


def test_retrieval_times_every_aggregation(monkeypatch, capsys):
    for name, value in (("FRAMES", 2), ("DIM", 4), ("LOOPED", 3)):
        monkeypatch.setattr(retrieval, name, value)
    monkeypatch.setattr("sys.argv", ["retrieval", "--clips=6", "--repeats=2"])
    retrieval.main()
    title, *rows = capsys.readouterr().out.splitlines()
    assert title.startswith("6 clips × 2 × 4")
    assert [row.split()[0] for row in rows] == list(retrieval_metrics.STRATEGIES)
    assert all("GiB" in row and "double loop" in row for row in rows)


def test_claims_are_written_from_the_tables(tmp_path, capsys, monkeypatch):
    planned = {path.stem: tables.read(path) for path in claims.plan()}
    assert len(planned) == 11 and all(table.claims for table in planned.values())
    config_of = cli.Rows("configs/demo.py", [])
    for table in planned.values():
        assert plan.make(table, config_of, 3).trainings
    column, score = "retrieval/visual_to_audio/R1", {"mean": 0.2, "interval": [0.1, 0.3]}
    difference = {"mean": 0.1, "interval": [0.05, 0.15]}
    claim = {"text": "More is better", "row": "b", "than": "a", "column": column}
    result = {
        "columns": {column: "V → A R@1"},
        "rows": {"a": {"title": "few", "scores": {column: score}}},
        "claims": [claim | {"difference": difference, "verdict": "seen"}],
        "seeds": [0, 1],
        "data": {"retrieval": "scenes"},
        "missing": ["b-seed1"],
    }
    output = tmp_path / "page" / "c.md"
    arguments = ["claims", f"--workdir={tmp_path}", f"--output={output}"]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit):
        claims.main()
    assert "holds no table of the plan" in capsys.readouterr().err
    made = tmp_path / "table_c_registers.json"
    made.write_text(json.dumps(result))
    monkeypatch.setattr("sys.argv", [*arguments, "--measured=one machine"])
    claims.main()
    page = output.read_text()
    assert "| few | 20.0 [10.0, 30.0] |" in page and page.count("Not run yet.") == 10
    assert "| More is better | V → A R@1, % | +10.0 [+5.0, +15.0] | seen |" in page
    assert "Not finished: b-seed1." in page

    # A later run keeps the tables and the remarks that are there, and what they were measured with.
    (output.with_suffix("") / "table_c_registers.md").write_text("Few seeds say little.\n")
    (tmp_path / "table_d_global_token.json").write_text(json.dumps(result))
    monkeypatch.setattr("sys.argv", [*arguments, "--measured=another machine"])
    claims.main()
    page = output.read_text()
    assert page.count("Measured with one machine.") == 1 and "Few seeds say little." in page
    assert page.count("Measured with another machine.") == 1
    made.write_text(json.dumps(result | {"missing": []}))
    claims.main()
    assert output.read_text().count("Measured with another machine.") == 2


def test_demo_seeds_by_hand(tmp_path, capsys, monkeypatch):
    readers = {name: results_table.READERS[name] for name in ("retrieval", "reconstruction")}
    monkeypatch.setattr(results_table, "READERS", readers)
    for seed, recall in enumerate((0.1, 0.3)):
        score = {"R1": recall, "R5": 0.5, "R10": 1.0, "median_rank": 4.0}
        both = {"visual_to_audio": score, "audio_to_visual": score}
        better = {**score, "R5": 0.6}
        others = {"chance": {"visual_to_audio": score, "audio_to_visual": better}}
        errors = {"audio": 0.5, "visual": 0.25 + 0.5 * seed}
        results = {
            "retrieval": {"scores": {"diagonal_mean": both}, "baselines": others},
            "reconstruction": {"errors": errors, "baselines": {"untrained model": {"audio": 2.0}}},
        }
        (tmp_path / str(seed)).mkdir()
        (tmp_path / str(seed) / "results.json").write_text(json.dumps(results))
    demo_seeds.run([str(tmp_path / "0"), str(tmp_path / "1")])
    lines = capsys.readouterr().out.splitlines()
    equal = "20.0 ± 14.1 | – | 20.0 ± 14.1, chance |"
    assert f"| retrieval, diagonal mean: visual → audio, R@1 ⚠ | {equal}" in lines
    worse = (
        "| retrieval, diagonal mean: audio → visual, R@5 ⚠ | 50.0 ± 0.0 | – | 60.0 ± 0.0, chance |"
    )
    assert worse in lines
    assert "| reconstruction, audio error | 0.500 ± 0.000 | 2.000 ± 0.000 | – |" in lines
    assert "| reconstruction, visual error | 0.500 ± 0.354 | – | – |" in lines
    cells = " | ".join(["20.0 ± 14.1 | 50.0 ± 0.0 | 4.0 ± 0.0"] * 2)
    assert f"| model, diagonal mean | {cells} |" in lines
    with pytest.raises(UserError, match=r"holds no results\.json"):
        demo_seeds.run([str(tmp_path)])
    (tmp_path / "0/results.json").write_text(json.dumps({"retrieval": results["retrieval"]}))
    with pytest.raises(UserError, match="has no reconstruction: let `make demo` end"):
        demo_seeds.run([str(tmp_path / "0")])


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


def test_exact_search_is_timed_in_an_index_that_stays(monkeypatch, capsys, tmp_path):
    arguments = ["--clips=40", "--dim=8", "--repeats=2", f"--index={tmp_path}/index"]
    monkeypatch.setattr("sys.argv", ["exact_search", *arguments])
    for _ in range(2):
        exact_search.main()
    said = capsys.readouterr().out
    assert said.count("written in") == 1 and said.count("40 clips, 640 moments × 8") == 2
    assert said.count("| search | ") == 2


def test_nearest_measures_recall(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["nearest", "--clips=40", "--queries=2", "--dim=8"])
    nearest.main()
    said = capsys.readouterr().out
    assert "recall of the 10 best clips 1.000, smallest 1.0" in said
    assert "FAISS HNSW" in said and "FAISS IVF" in said


def test_each_setting_of_evidence_is_scored_with_each_model(monkeypatch, capsys):
    def score(model, records, *, maps, sets, with_baselines):
        given = heatmaps.evidence.keywords
        value = given["share"] + given["smoothing"] / 1000 + sets / 1e5 + model
        return {"maps": {"evidence": {"scores": {"mAP": value, "mIoU": value / 2}}}}

    monkeypatch.setattr(evidence_settings.segmentation, "run", score)
    monkeypatch.setattr(evidence_settings, "load", lambda place: {"a": 0.0, "b": 0.5}[place])
    opened = mock.Mock(identity="scenes, split val")
    monkeypatch.setattr(evidence_settings.loader, "Records", mock.Mock(return_value=opened))
    flags = ["a", "b", "--data=d", "--share", "0.1", "0.2", "--sets", "100"]
    monkeypatch.setattr("sys.argv", ["evidence_settings", *flags])
    whole = heatmaps.evidence
    evidence_settings.main()
    said = capsys.readouterr().out
    assert "| 0.1 | 0.7 | 100 | 10.2 / 5.1 | 60.2 / 30.1 |" in said
    assert "| 0.2 | 0.7 | 100 | 20.2 / 10.1 | 70.2 / 35.1 |" in said
    assert heatmaps.evidence is whole
