"""The paper's figures in the package are those of the rows of its tables, cell by cell."""

import pathlib

import pytest

from cavmae_sync_jax.ablations import paper
from cavmae_sync_jax.evals.report import published

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "paper_tables.txt"


def golden():
    """The figures of each row as they stand in the paper's text, by table and row."""
    rows = {}
    for line in GOLDEN.read_text().splitlines():
        table, *cells = (cell.strip() for cell in line.split("|"))
        figures = [float(cell) for cell in cells if cell.replace(".", "", 1).isdigit()]
        rows.setdefault(table, {})[cells[0]] = figures
    return rows


RECALLS = ("R1", "R5", "R10")
RETRIEVAL = [
    f"retrieval@{d}/visual_to_audio/{k}" for d in ("audioset", "vggsound") for k in RECALLS
]
MIOU, MAP = "segmentation@ade20k/cosine/mIoU", "probe@as20k/mAP"
TOKENS = [f"tokens@as20k/transformer/{kind}" for kind in ("registers", "patches", "global")]


@pytest.mark.parametrize(
    ("table", "row", "columns", "place"),
    [
        ("4", "sync", RETRIEVAL, ("Table 4", "Ours")),
        ("5", "train_16_eval_16", RETRIEVAL, ("Table 5", "35.2")),
        ("7", "global", [*RETRIEVAL, MIOU, MAP], ("Table 7", "w/")),
        ("8", "mask_0.6", [*RETRIEVAL, MIOU], ("Table 8", "0.6")),
        ("11", "diagonal_mean", RETRIEVAL, ("Table 11", "diag mean")),
        ("12", "registers_0", TOKENS[1:], ("Table 12", "0")),
        ("12", "registers_8", TOKENS, ("Table 12", "8")),
    ],
)
def test_ablations_are_the_papers_rows(table, row, columns, place):
    figures = golden()[place[0]][place[1]]
    first = 1 if place[1] in ("0.6", "0", "8") else 0  # a heading that is a number itself
    assert published.ABLATIONS[table][row] == dict(zip(columns, figures[first:], strict=True))


def test_every_published_cell_is_a_cell_of_our_table():
    assert set(published.ABLATIONS) == set(paper.TABLES)
    for name, rows in published.ABLATIONS.items():
        table = paper.TABLES[name]
        assert set(rows) <= {row.name for row in table.rows}
        for cells in rows.values():
            assert set(cells) <= {column.name for column in table.columns}
    shown = {(t, r) for t, rows in published.ABLATIONS.items() for r in rows}
    assert shown - {("6", "registers_8")} == {  # whose one cell Table 7 has, too
        *(("4", "sync"), ("5", "train_16_eval_16"), ("7", "global"), ("8", "mask_0.6")),
        *(("11", "diagonal_mean"), ("12", "registers_0"), ("12", "registers_8")),
    }


def test_the_evaluations_systems_are_the_papers_rows():
    rows = golden()
    both = [s for s in published.RETRIEVAL if s.name == "CAV-MAE Sync"]
    found = [both[0].scores, both[1].scores]
    directions = [
        [scores[f"{d}/{k}"] for scores in found for k in RECALLS] for d in published.DIRECTIONS
    ]
    assert directions[0] + directions[1] == rows["Table 1"]["Ours"]
    for system in ("CAV-MAE Sync", "VAB-Encodec"):
        scores = {k: v for s in published.PROBE if s.name == system for k, v in s.scores.items()}
        row = {"CAV-MAE Sync": "Ours", "VAB-Encodec": "VAB-Encodec [37]"}[system]
        assert [scores["mAP"], scores["accuracy"]] == rows["Table 2"][row]
    tokens = {s.name: list(s.scores.values()) for s in published.TOKENS}
    assert [8.0, *tokens["8 registers"]] == rows["Table 12"]["8"]
    assert [0.0, *tokens["0 registers"]] == rows["Table 12"]["0"]


def test_they_are_told_as_published():
    first, *rest = published.text_lines("probe")
    assert "published" in first and "other data and models than yours" in first
    assert "  CAV-MAE Sync, AudioSet-20K (Table 2): mAP 30.5" in rest
    assert published.text_lines("temporal") == []
