"""A training's curves, from the lines that `metrics.Writer` appends to `WORKDIR/metrics.jsonl`."""

import io
import json
from collections.abc import Iterator
from typing import Any

import matplotlib
from etils import epath

from cavmae_sync_jax.utils.errors import UserError

matplotlib.use("Agg")
from matplotlib import pyplot as plt

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
    file = io.BytesIO()
    figure.savefig(file, dpi=150, format="png")
    plt.close(figure)
    return file.getvalue()


def last_values(series: Series) -> Iterator[tuple[str, float, float]]:
    """Name, step and value of each curve's end."""
    for names in PANELS.values():
        for name in names:
            if name in series:
                steps, values = series[name]
                yield name, steps[-1], values[-1]
