"""A training's curves, from the lines of `WORKDIR/metrics.jsonl` (`metric_writer.Writer`)."""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib
from etils import epath

from cavmae_sync_jax.utils.errors import UserError

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

PANELS = {
    "loss": {"loss": "loss"},
    "reconstruction error": {
        "reconstruction_audio": "audio",
        "reconstruction_visual": "visual",
    },
    "contrastive loss": {"contrast": "contrast"},
    "matched pairs found in a batch, %": {"nce_accuracy": "nce_accuracy"},
    "held-out retrieval R@5, %": {
        "audio_to_visual/R5": "audio → visual",
        "visual_to_audio/R5": "visual → audio",
    },
    "learning rate": {"learning_rate": "learning_rate"},
    "clips per second": {"examples_per_second": "examples_per_second"},
}
Series = dict[str, tuple[list[float], list[float]]]  # a name's steps and values


def read(path: epath.Path) -> Series:
    """The series of a metrics file.

    A last line that is half-written, as a killed training leaves it, does not count.

    Raises:
      UserError: if a line before it is unreadable.
    """
    series: Series = {}
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read: {error}") from error
    for number, line in enumerate(lines, 1):
        try:
            step, values = _parsed(line)
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise UserError(f"{path}, line {number} is not a line of metrics: {error!r}") from error
        for name, value in values.items():
            steps, known = series.setdefault(name, ([], []))
            steps.append(step)
            known.append(value)
    return series


def _parsed(line: str) -> tuple[float, dict[str, float]]:
    scalars: dict[str, Any] = dict(json.loads(line))
    step = float(scalars.pop("step"))
    scalars.pop("split")
    return step, {name: float(value) for name, value in scalars.items()}


def draw(series: Series) -> Iterator[tuple[str, bytes]]:
    """Title and PNG of each of the `PANELS` for which there are values."""
    for title, names in PANELS.items():
        shown = {label: series[name] for name, label in names.items() if name in series}
        if shown:
            yield title, _panel(title, shown)


def _panel(title: str, shown: Series) -> bytes:
    figure, axis = plt.subplots(figsize=(4, 2.6), layout="constrained")
    factor = 100 if title.endswith("%") else 1
    for label, (steps, values) in shown.items():
        few = "o" if len(steps) < 3 else ""
        scaled = [factor * value for value in values]
        axis.plot(steps, scaled, marker=few, linewidth=1.4, label=label)
    axis.set_title(title, fontsize=11)
    axis.set_xlabel("step", fontsize=9)
    axis.set_xlim(left=0)
    axis.tick_params(labelsize=9)
    axis.grid(alpha=0.3)
    if len(shown) > 1:
        axis.legend(fontsize=9)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, dpi=150, format="png")
    plt.close(figure)
    return file.getvalue()


def compare(runs: Mapping[str, Sequence[Series]]) -> bytes | None:
    """A PNG of several trainings: a panel per metric, a colour per name, a line per training.

    None if there are no values.
    """
    metrics = [
        (name, title if len(names) == 1 else f"{title.removesuffix(', %')}, {label}")
        for title, names in PANELS.items()
        for name, label in names.items()
        if any(name in series for several in runs.values() for series in several)
    ]
    if not metrics:
        return None
    across = min(3, len(metrics))
    down = -(-len(metrics) // across)
    figure, axes = plt.subplots(
        down, across, figsize=(4 * across, 2.5 * down + 0.6), squeeze=False, layout="constrained"
    )
    for axis, (name, title) in zip(axes.flat, metrics, strict=False):
        for number, (label, several) in enumerate(runs.items()):
            known = [series[name] for series in several if name in series]
            for first, (steps, values) in zip([True] + [False] * len(known), known, strict=False):
                axis.plot(
                    steps,
                    values,
                    marker="o" if len(steps) < 3 else "",
                    color=f"C{number % 10}",
                    linestyle="-" if number < 10 else "--",
                    linewidth=1.1,
                    alpha=0.8,
                    label=label if first else None,
                )
        axis.set_title(title.removesuffix(", %"), fontsize=10)
        axis.set_xlabel("step", fontsize=8)
        axis.set_xlim(left=0)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(metrics) :]:
        axis.set_visible(False)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(5, len(labels)), fontsize=9
    )
    return _png(figure)


def last_values(series: Series) -> Iterator[tuple[str, float, float]]:
    """Name, step and value of each curve's end."""
    for names in PANELS.values():
        for name in names:
            if name in series:
                steps, values = series[name]
                yield name, steps[-1], values[-1]
