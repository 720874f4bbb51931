"""Where a training run's numbers go: a JSON line, TensorBoard and the progress bar."""

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import tensorboardX
from etils import epath
from tqdm import tqdm


class Writer:
    """Appends scalars to `WORKDIR/metrics.jsonl` and TensorBoard files, on process 0 only."""

    def __init__(self, workdir: epath.Path):
        self._path = workdir / "metrics.jsonl"
        self._active = jax.process_index() == 0
        self._board: tensorboardX.SummaryWriter | None = None

    def write(self, step: int, split: str, scalars: Mapping[str, float]) -> None:
        """Records the scalars of one step; each line is complete on disk when this returns."""
        if not self._active:
            return
        # Made with the first line, so that a run that is refused leaves neither file nor thread.
        self._board = self._board or tensorboardX.SummaryWriter(str(self._path.parent))
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, "split": split, **scalars}) + "\n")
        for name, value in scalars.items():
            self._board.add_scalar(f"{split}/{name}", value, step)

    def drop_after(self, step: int) -> None:
        """Forgets the lines of steps that a resumed run is about to repeat."""
        if not self._active or not self._path.exists():
            return
        kept = "".join(f"{line}\n" for line in self._lines() if _step(line) <= step)
        fresh = self._path.with_suffix(".jsonl.new")
        fresh.write_text(kept)
        fresh.replace(self._path)

    def has(self, step: int, split: str) -> bool:
        """Whether a line of this step and split was written."""
        return any(
            _step(line) == step and json.loads(line)["split"] == split for line in self._lines()
        )

    def _lines(self) -> list[str]:
        return self._path.read_text().splitlines() if self._path.exists() else []

    def close(self) -> None:
        """Writes what TensorBoard still buffers."""
        if self._board is not None:
            self._board.close()


def _step(line: str) -> float:
    # A line that a killed process left half-written belongs to no finished step.
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError):
        return float("inf")


def tell(message: str) -> None:
    """Says something to the user beside the progress bars, from process 0."""
    if jax.process_index() == 0:
        tqdm.write(message, file=sys.stderr)


@contextlib.contextmanager
def progress(description: str, total: int, unit: str, initial: int = 0) -> Iterator[Any]:
    """A progress bar with rate and time left, shown by process 0."""
    hidden = jax.process_index() != 0
    with tqdm(
        total=total, desc=description, unit=unit, initial=initial, disable=hidden, mininterval=1
    ) as bar:
        yield bar
