"""The one table and the one page of all evaluations, from hand-made results."""

import base64
import html.parser
import io
import json
import shlex

import numpy as np
import pytest
from etils import epath
from PIL import Image

from cavmae_sync_jax.evals import summary
from cavmae_sync_jax.evals.report import curves, results_table
from cavmae_sync_jax.evals.report import page as report_page
from cavmae_sync_jax.utils.errors import UserError

HOSTILE = "<script>alert('x')</script>"
VOID = {"meta", "img"}


def both(r1, r5, rank):
    score = {"R1": r1, "R5": r5, "R10": 1.0, "median_rank": rank}
    return {"audio_to_visual": score, "visual_to_audio": score}


ABOUT = {
    "checkpoint": {"directory": "runs/x", "step": 7},
    "data": {"identity": f"{HOSTILE}/1, split val: 8 clips, 9 KiB bytes", "directory": "data/x"},
    "version": "0.1.0",
}
RESULTS = {
    "retrieval": {
        "clips": 8,
        "scores": {"diagonal_mean": both(0.5, 0.75, 2.0), "max": both(0.1, 0.2, 4.0)},
        "baselines": {
            "chance": both(0.125, 0.625, 4.5),
            "untrained model": both(0.6, 0.7, 3.0),
            "oracle (true class of each frame)": both(1.0, 1.0, 1.0),
        },
    },
    "probe": {
        "clips": 8,
        "stream": "both",
        "scores": {"mAP": 0.431, "d_prime": 1.234},
        "missing": {"audio_alone": {"mAP": 0.25, "d_prime": 0.5}},
        "baselines": {"class frequencies": {"mAP": 0.2}, "untrained model": {"mAP": 0.3}},
        "classes": {HOSTILE: {"AP": 0.5, "clips": 3}, "dog": {"AP": None, "clips": 0}},
        "config": {"stream": "both", "epochs": 2},
    },
    "classify": {
        "clips": 8,
        "stream": "both",
        "scores": {"both": {"mAP": 0.5, "AUC": 0.9}, "audio_alone": {"mAP": 0.4, "AUC": 0.8}},
        "baselines": {"class frequencies": {"mAP": 0.2}, "trained from scratch": {"mAP": 0.6}},
        "from_scratch": {"directory": "runs/scratch", "step": 3},
    },
    "tokens": {
        "clips": 8,
        "stream": "both",
        "scores": {
            "linear": {"global": {"mAP": 0.4, "AUC": 0.9, "d_prime": 1.8}},
            "transformer": {"global": {"mAP": 0.5}},
        },
        "untrained": {"linear": {"global": {"mAP": 0.4}}, "transformer": {"global": {"mAP": 0.3}}},
    },
    "segmentation": {
        "items": 8,
        "query": "frame",
        "tokens": "joint",
        "scores": {"mAP": 0.11, "mIoU": 0.09},
        "baselines": {
            "constant map (every pixel)": {"mAP": 0.07, "mIoU": 0.07},
            "blob in the middle": {"mAP": 0.13, "mIoU": 0.12},
            "untrained model": {"mAP": 0.12, "mIoU": 0.10},
        },
    },
    "temporal": {
        "clips": 8,
        "clips_scored": 8,
        "tolerance": 1,
        "segments": "the true number of each clip",
        "scores": {"audio": {"boundary_f1": 0.9, "adjusted_rand": 0.8}},
        "baselines": {
            "untrained model, audio": {"boundary_f1": 0.95, "adjusted_rand": 0.5},
            "equally long segments": {"boundary_f1": 0.5, "adjusted_rand": 0.4},
        },
    },
    "reconstruction": {
        "clips": 8,
        "mask": {"ratio": 0.75},
        "errors": {"audio": 0.9, "visual": 1.2},
        "baselines": {
            "untrained model": {"audio": 1.5, "visual": 1.5},
            "prediction of zero (the patch's mean)": {"audio": 1.0, "visual": 1.0},
        },
    },
    "mine": {"score": 0.123456, "nested": {"list": [1, 2]}, "text": HOSTILE},
}


def png(size=(4, 3)):
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    evals = tmp_path / "evals"
    evals.mkdir()
    for name, result in RESULTS.items():
        (evals / f"{name}.json").write_text(json.dumps(result | ABOUT))
    for name in ("retrieval", "segmentation", "mine"):
        (evals / f"{name}.png").write_bytes(png())
    train = tmp_path / "train"
    train.mkdir()
    lines = [
        {"step": step, "split": "train", "loss": 5 / step, "contrast": 1.0, "learning_rate": 0.1}
        for step in (1, 2, 3)
    ]
    half = '{"step": 4, "split": "tr'
    (train / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines) + half)
    return tmp_path


class Page(html.parser.HTMLParser):
    """Checks that every tag is closed, and collects what a browser would load."""

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.images, self.ids, self.words = [], [], [], set(), []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        assert tag not in ("script", "link", "iframe", "object")
        attributes = dict(attrs)
        self.ids.add(attributes.get("id"))
        if tag == "a":
            self.links.append(attributes["href"])
        if tag == "img":
            self.images.append(attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.mark.parametrize("name", [name for name in RESULTS if name != "mine"])
def test_results_without_baselines_are_summed_up(name, tmp_path, capsys):
    bare = {k: v for k, v in (RESULTS[name] | ABOUT).items() if k not in ("baselines", "untrained")}
    (tmp_path / f"{name}.json").write_text(json.dumps(bare))
    summary.run(tmp_path, tmp_path / "all.json", page=tmp_path / "report.html")
    assert "nothing to compare with" in capsys.readouterr().out
    assert name in (tmp_path / "report.html").read_text()


def test_the_page_needs_nothing_else_and_has_everything(folder, capsys):
    page = folder / "out" / "report.html"
    summary.run(folder / "evals", folder / "results.json", workdir=folder / "train", page=page)
    stored = json.loads((folder / "results.json").read_text())
    assert stored == {name: result | ABOUT for name, result in RESULTS.items()}
    text = page.read_text()
    assert text.startswith("<!DOCTYPE html>") and "url(" not in text and "@import" not in text
    found = Page(text)
    assert found.links and all(link[0] == "#" and link[1:] in found.ids for link in found.links)
    assert len(found.images) == 6  # three pictures and three curves
    for image in found.images:
        kind, data = image["src"].split(",")
        assert image["alt"] and kind == "data:image/png;base64"
        picture = Image.open(io.BytesIO(base64.b64decode(data)))
        assert (str(picture.width), str(picture.height)) == (image["width"], image["height"])
    words = "\n".join(found.words)
    assert HOSTILE in words and HOSTILE not in text
    assert "8 clips, 9 KiB" in words and "KiB bytes" not in text
    for row in results_table.rows(
        {name: results_table.read(name, r) for name, r in RESULTS.items() if name != "mine"}
    ):
        assert row.score in words and all(cell in words for cell in row.cells)
    assert "mine" in words and "0.123456" in words
    assert words.count("Published scores") == 4 and "other data and models than yours" in words
    assert "CAV-MAE Sync, ADE20K-Sound (Table 7)" in words
    printed = capsys.readouterr().out
    assert "worse than" in printed and str(page) in printed


@pytest.mark.parametrize(
    ("about", "mixed"),
    [
        ({"init_from": "runs/x"}, False),
        ({"init_from": "runs/y"}, True),
        ({"init_from": ""}, True),
        ({"init_from": "runs/x", "version": "0.2.0"}, True),
    ],
    ids=str,
)
def test_a_model_may_be_fine_tuned_from_the_others(folder, about, mixed):
    tuned = {"checkpoint": {"directory": "runs/tuned", "step": 9}}
    path = folder / "evals" / "classify.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | tuned | about))
    page = folder / "report.html"
    summary.run(folder / "evals", folder / "results.json", page=page)
    text = page.read_text()
    assert ("not all of the same checkpoint" in text) == mixed
    assert "runs/tuned" in text and ("fine-tuned from" in text) == bool(about["init_from"])


def test_another_step_of_the_checkpoint_is_another_model(folder):
    path = folder / "evals" / "probe.json"
    other = {"checkpoint": {"directory": "runs/x", "step": 8}}
    path.write_text(json.dumps(RESULTS["probe"] | ABOUT | other))
    summary.run(folder / "evals", folder / "results.json", page=folder / "report.html")
    assert "not all of the same checkpoint" in (folder / "report.html").read_text()


def test_verdicts_by_hand():
    read = {
        name: results_table.read(name, RESULTS[name])
        for name in results_table.READERS
        if name in RESULTS
    }
    verdicts = {(row.evaluation, row.score): row.verdict for row in results_table.rows(read)}

    def of(evaluation, part):
        (verdict,) = [v for (e, s), v in verdicts.items() if e == evaluation and part in s]
        return verdict

    assert (
        of("retrieval", "audio → visual, R@1")
        == "worse than the untrained model, better than its baseline"
    )
    assert of("retrieval", "audio → visual, R@5") == "better than both"
    assert of("retrieval", "audio → visual, median rank") == "better than both"  # 2 of 8 is low
    assert verdicts[("probe", "mAP")] == "better than both"
    assert verdicts[("probe", "sound alone: mAP")] == "better than its baseline"
    assert of("classify", "") == "worse than its baseline"  # by its one row of the table
    assert of("tokens", "linear head on global") == "equal to the untrained model"
    assert of("segmentation", "mIoU") == "worse than both"
    assert of("temporal", "boundary F1").startswith("worse than the untrained model")
    assert of("reconstruction", "audio error") == "better than both"  # lower is better
    assert (
        of("reconstruction", "visual error")
        == "worse than its baseline, better than the untrained model"
    )


def test_maps_of_both_kinds_are_read():
    def row(own, other, untrained):
        named = [
            dict(zip(("mAP", "mIoU", "pointing"), x, strict=True)) for x in (own, other, untrained)
        ]
        return {
            "scores": named[0],
            "another clip's sound": {"scores": named[1]},
            "untrained model": {"scores": named[2]},
            "beats_silent_object": {
                "own sound": {"share": 0.7},
                "another clip's sound": {"share": 0.45},
            },
            "tells_own_sound_from": {"silence": {"roc_auc": 0.4}},
        }

    result = RESULTS["segmentation"] | {
        "maps": {
            "cosine": row((0.11, 0.09, 0.2), (0.1, 0.09, 0.2), (0.12, 0.1, 0.2)),
            "evidence": row((0.31, 0.23, 0.4), (0.2, 0.1, 0.3), (0.05, 0.1, 0.1)),
        },
        "match_tells_own_sound_from": {"silence": {"roc_auc": 0.8}},
    }
    found = results_table.read("segmentation", result)
    assert set(found.model) == {
        *("cosine", "cosine, another clip's sound", "evidence", "evidence, another clip's sound"),
        "match of the whole picture",
    }
    assert found.model["evidence, another clip's sound"]["beats the silent object"] == 0.45
    verdicts = {row.score: row.verdict for row in results_table.rows({"segmentation": found})}
    assert verdicts == {
        "cosine: mAP": "worse than both",
        "cosine: mIoU": "worse than both",
        "cosine: pointing": "equal to the untrained model",
        "cosine: beats the silent object": "better than its baseline",
        "cosine: ROC AUC against silence": "worse than its baseline",
        "evidence: mAP": "better than both",
        "evidence: mIoU": "better than both",
        "evidence: pointing": "better than the untrained model",
        "evidence: beats the silent object": "better than its baseline",
        "evidence: ROC AUC against silence": "worse than its baseline",
        "match of the whole picture: ROC AUC against silence": "better than its baseline",
    }
    told = {"map": "evidence", "sets": 32, "query": "frame"} | ABOUT
    assert "--map=evidence" in report_page.command(epath.Path("x"), "segmentation", told)
    assert "--sets=32" in report_page.command(epath.Path("x"), "segmentation", told)


def test_curves_forget_a_half_written_line_only_at_the_end(folder):
    path = epath.Path(folder / "train" / "metrics.jsonl")
    assert curves.read(path)["loss"] == ([1, 2, 3], [5, 2.5, 5 / 3])
    path.write_text(path.read_text() + "\n" + '{"step": 5, "split": "train", "loss": 1}\n')
    with pytest.raises(UserError, match=r"metrics.jsonl, line 4 is not a line of metrics"):
        curves.read(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("probe.json", b"{", r"probe\.json is not the JSON of an evaluation"),
        ("probe.json", b"{}", r"probe\.json is not what this evaluation writes"),
        ("probe.json", b"[]", r"probe\.json is not what this evaluation writes"),
        ("probe.png", b"no picture", r"probe\.png is not a PNG picture"),
    ],
)
def test_broken_files_are_told(folder, name, content, message):
    (folder / "evals" / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        summary.run(folder / "evals", folder / "results.json", page=folder / "report.html")
    assert not (folder / "report.html").exists()


def test_a_workdir_that_is_not_there_is_told(folder):
    with pytest.raises(UserError, match="is not a folder"):
        summary.run(
            folder / "evals",
            folder / "results.json",
            workdir=folder / "none",
            page=folder / "report.html",
        )


def test_the_command_is_one_that_a_shell_takes(folder):
    about = {"checkpoint": {"directory": "a dir/$(x)", "step": 1}, "config": {"epochs": 3}}
    result = RESULTS["probe"] | about | {"baselines": {"untrained model": {}}}
    line = report_page.command(epath.Path(folder), "probe_audio", result).replace(
        "\\\n", ""
    )  # continued lines
    assert shlex.split(line) == [
        *("python", "-m", "cavmae_sync_jax.evals.probe", "--config=configs/probe.py"),
        *("--checkpoint=a dir/$(x)", f"--output={folder}", "--config.epochs=3", "--baselines"),
    ]


@pytest.mark.parametrize("scored", [("mean",), ("max", "mean"), ("mean", "diagonal_mean")])
def test_retrieval_is_in_the_table_whatever_its_aggregations(scored):
    scores = {name: both(0.1 * place, 0.5, 4.0) for place, name in enumerate(scored, 1)}
    plain = {"untrained model": both(0.05, 0.6, 5.0)}
    result = {"scores": scores, "baselines": plain}
    rows = results_table.rows({"retrieval": results_table.read("retrieval", result)})
    main = "diagonal_mean" if "diagonal_mean" in scored else scored[0]
    assert len(rows) == 6 and {row.score.split(": ")[0] for row in rows} == {main.replace("_", " ")}
    assert rows[0].model == scores[main]["audio_to_visual"]["R1"]
    assert rows[0].verdict == "better than the untrained model"


def test_the_best_trivial_baseline_is_the_one_that_is_named():
    baselines = {"chance": both(0.1, 0.2, 5.0), "linear": both(0.3, 0.1, 9.0)}
    oracle = {"oracle (truth)": both(1.0, 1.0, 1.0)}
    result = {"scores": {"diagonal_mean": both(0.2, 0.3, 4.0)}, "baselines": baselines | oracle}
    rows = results_table.rows({"retrieval": results_table.read("retrieval", result)})
    assert [row.cells[2] for row in rows[:3]] == ["30.0, linear", "20.0, chance", "5.0, chance"]
    assert rows[0].verdict == "worse than its baseline"
