"""The evaluations' figures, drawn without a display."""

import matplotlib

matplotlib.use("Agg")

from etils import epath
from matplotlib import pyplot
from matplotlib.figure import Figure


def save(figure: Figure, path: epath.Path) -> None:
    """Writes a figure as a PNG and closes it."""
    with path.open("wb") as file:
        figure.savefig(file, dpi=110, format="png")
    pyplot.close(figure)
