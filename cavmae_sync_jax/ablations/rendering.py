"""A table of ablations as Markdown and as a picture."""

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from cavmae_sync_jax.ablations import scores as ablation_scores
from cavmae_sync_jax.ablations.tables import column
from cavmae_sync_jax.evals.report import published, texts

OURS, PAPERS = "#1a55a8", "#8a8f98"


def number(name: str, value: float, signed: bool = False) -> str:
    """A column's value as text: shares in percent, all others unchanged."""
    sign = "+" if signed else ""
    return f"{100 * value:{sign}.1f}" if column(name).is_share else f"{value:{sign}.4g}"


def cell(name: str, found: Mapping[str, Any] | None, paper: float | None = None) -> str:
    """A mean with its interval, and the paper's figure, as text."""
    text = "–"
    if found is not None:
        text = number(name, found["mean"])
        if found["interval"] is not None:
            text += f" [{', '.join(number(name, bound) for bound in found['interval'])}]"
    return text if paper is None else f"{text} (paper: {number(name, paper)})"


def head(result: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """The columns' titles, with the unit."""
    return [result["columns"][n] + (", %" if column(n).is_share else "") for n in names]


def notes(result: Mapping[str, Any]) -> list[str]:
    """Sentences that belong below a table."""
    seeds = len(result["seeds"])
    lines = [
        f"Each figure is the mean over {'up to ' * bool(result['missing'])}{seeds} "
        f"seed{'s' * (seeds > 1)}. "
        "Brackets hold the middle 95 % of 1,000 resamples over seeds and, where the evaluation "
        "keeps them, over clips."
    ]
    if result["baseline"]:
        title = result["rows"][result["baseline"]]["title"]
        lines.append(f"The JSON file has the paired differences from the row “{title}”.")
    if result["paper"]:
        lines.append(
            f"The paper's figures ({result['paper']}) are of other data and a model of 190 M "
            "parameters. A cell without one is one of which we have no reliable text."
        )
    lines += [f"{name}: {texts.data_text(data)}." for name, data in result["data"].items()]
    lines += [f"{reason}." for reason in dict.fromkeys(result["left_out"].values())]
    lines += [
        f"{name} is not among the scores of {', '.join(f'“{row}”' for row in rows)}."
        for name, rows in result["lacking"].items()
    ]
    if result["missing"]:
        lines.append(f"Not finished: {', '.join(result['missing'])}.")
    return lines


def difference(name: str, found: Mapping[str, Any] | None) -> str:
    """A difference in a column with its interval."""
    if found is None:
        return "–"
    text = number(name, found["mean"], signed=True)
    if found["interval"] is not None:
        bounds = [number(name, bound, signed=True) for bound in found["interval"]]
        text += f" [{', '.join(bounds)}]"
    return text


CLAIMS_HEAD = ("claim", "score", "difference", "verdict")


def claims(result: Mapping[str, Any]) -> list[list[str]]:
    """A line of cells per claim, under `CLAIMS_HEAD`."""
    return [
        [
            claim["text"],
            head(result, [claim["column"]])[0],
            difference(claim["column"], claim["difference"]),
            claim["verdict"] or _why_none(claim),
        ]
        for claim in result["claims"]
    ]


def _why_none(claim: Mapping[str, Any]) -> str:
    if claim["difference"] is None:
        return "none without a score of both rows"
    return f"none before {ablation_scores.FEWEST_SEEDS} seeds"


def markdown(result: Mapping[str, Any]) -> str:
    """The table of `scores.collect` with its notes."""
    names = ablation_scores.columns_of(result) or list(result["columns"])
    rows = [["", *head(result, names)]]
    for row in result["rows"].values():
        cells = [cell(name, row["scores"][name], row["paper"].get(name)) for name in names]
        rows.append([row["title"], *cells])
    lines = [f"# {result['title']}", "", *_grid(rows)]
    if judged := claims(result):
        lines += ["", *_grid([CLAIMS_HEAD, *judged])]
    lines += ["", *(f"{note}\n" for note in notes(result))]
    return "\n".join(lines).rstrip() + "\n"


def _grid(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of a table in Markdown, whose first row is its head; a bar in a cell ends no cell."""
    for number, cells in enumerate(rows):
        line = " | ".join(text.replace("|", "\\|") for text in cells)
        yield f"| {line} |"
        if not number:
            yield "|---" * len(cells) + "|"


def picture(result: Mapping[str, Any]) -> bytes | None:
    """A PNG with a panel per column: a point with its interval per row, the paper's as diamonds.

    None where nothing is finished.
    """
    names = ablation_scores.columns_of(result)
    if not names:
        return None
    across = min(4, len(names))
    down = -(-len(names) // across)
    rows = list(result["rows"].values())
    figure, axes = plt.subplots(
        down,
        across,
        figsize=(1.6 + 2.9 * across, down * (1.1 + 0.34 * len(rows))),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis, name in zip(axes.flat, names, strict=False):
        factor = 100 if column(name).is_share else 1
        for place, row in enumerate(rows):
            found, paper = row["scores"][name], row["paper"].get(name)
            if found is not None:
                mean = factor * found["mean"]
                for value in found["seeds"].values():
                    axis.plot(factor * value, place, ".", color=OURS, alpha=0.35, markersize=5)
                if found["interval"] is not None:
                    low, high = (factor * bound for bound in found["interval"])
                    axis.plot([low, high], [place, place], color=OURS, linewidth=2)
                axis.plot(mean, place, "o", color=OURS, markersize=6)
            if paper is not None:
                axis.plot(factor * paper, place, "D", color=PAPERS, fillstyle="none")
        axis.set_title(head(result, [name])[0], fontsize=9)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3, axis="x")
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    for axis in axes[:, 0]:
        axis.set_yticks(range(len(rows)), [row["title"] for row in rows])
    axes[0, 0].set_ylim(len(rows) - 0.5, -0.5)
    told = "●: mean over seeds, with its interval; small dots: single seeds"
    if any(row["paper"] for row in rows):
        told += f"; ◇: the paper's ({published.PAPER}), other data"
    figure.suptitle(f"{result['title']}\n{told}", fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=130, format="png")
    plt.close(figure)
    return buffer.getvalue()
