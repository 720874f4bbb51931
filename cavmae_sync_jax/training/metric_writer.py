"""Writes a training's numbers: means as JSON lines, to TensorBoard and on the progress bar."""

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import Array, Float

from cavmae_sync_jax.utils import console
from cavmae_sync_jax.utils.errors import UserError


class Writer:
    """Appends scalars to `WORKDIR/metrics.jsonl` and TensorBoard files, on process 0 only."""

    def __init__(self, workdir: epath.Path):
        self._path = workdir / "metrics.jsonl"
        self._active = jax.process_index() == 0
        self._board: Any = None
        self._text: str | None = None  # of a file in a bucket
        self._purged = 0  # TensorBoard forgets this step and all after it

    def write(self, step: int, split: str, scalars: Mapping[str, float]) -> None:
        """Records the scalars of one step; each line is complete on disk when this returns.

        Raises:
          UserError: if it can't be written.
        """
        if not self._active:
            return
        with self._writing():
            self._append(json.dumps({"step": step, "split": split, **scalars}) + "\n")
        # Made with the first line, so that a run that is refused leaves neither file nor thread.
        self._board = self._board or _board(self._path.parent, self._purged)
        for name, value in scalars.items():
            self._board.add_scalar(f"{split}/{name}", value, step)

    def _append(self, line: str) -> None:
        if "://" not in os.fspath(self._path):
            with self._path.open("a") as file:
                file.write(line)
            return
        # Objects in a bucket can't grow: each line writes the whole file again.
        if self._text is None:
            self._text = self._path.read_text() if self._path.exists() else ""
        self._text += line
        self._path.write_text(self._text)

    def drop_after(self, step: int) -> None:
        """Forgets the lines of steps that a resumed run is about to repeat.

        Raises:
          UserError: if they can't be written.
        """
        self._purged = step + 1
        if not self._active or not self._path.exists():
            return
        with self._writing():
            kept = "".join(f"{line}\n" for line in self._lines() if _step(line) <= step)
            self._text = None
            fresh = self._path.with_suffix(".jsonl.new")
            fresh.write_text(kept)
            fresh.replace(self._path)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # each library of a bucket has kinds of its own
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise UserError(
                f"{self._path} can't be written ({reason}): fix that and start again"
            ) from error

    def names(self, step: int, split: str) -> set[str]:
        """The scalars of this step and split that were written."""
        written: set[str] = set()
        for line in self._lines():
            if _step(line) == step and (row := json.loads(line))["split"] == split:
                written |= row.keys() - {"step", "split"}
        return written

    def _lines(self) -> list[str]:
        return self._path.read_text().splitlines() if self._path.exists() else []

    def close(self) -> None:
        """Writes what TensorBoard still buffers; says so if it can't."""
        if self._board is None:
            return
        try:
            self._board.close()
        except Exception as error:  # the run is saved, and its metrics are in metrics.jsonl
            console.warn(f"TensorBoard's file in {self._path.parent} can't be written: {error}")


def _board(folder: epath.Path, purged: int) -> Any:
    import tensorboardX  # imports PyTorch, where that is installed, which no worker needs

    # A thread of its own writes. It ends when it can't, and a queue with an end would then block
    # the training for ever. This one has none.
    return tensorboardX.SummaryWriter(str(folder), purge_step=purged, max_queue=0)


class NotFiniteError(ValueError):
    """A step's loss, gradient or update is not finite."""

    def __init__(self, step: int, name: str, value: float):
        super().__init__(f"the {name} of step {step} is {value}")
        self.step = step


class History:
    """Scalars of the steps since the last look, kept on the device so that no step waits."""

    def __init__(self) -> None:
        self._pending: list[tuple[int, Mapping[str, Float[Array, ""]]]] = []
        self.restart()

    def restart(self) -> None:
        """Restarts the clock, so that a compilation or an evaluation does not count."""
        self._began, self._waited = time.perf_counter(), 0.0
        self._untimed = len(self._pending)  # steps that ended before it

    def waited(self, seconds: float) -> None:
        """Adds time in which the device had nothing to do, for want of data."""
        self._waited += seconds

    def add(self, step: int, scalars: Mapping[str, Float[Array, ""]]) -> None:
        """Remembers a step's scalars."""
        self._pending.append((step, scalars))

    def flush(self, batch_size: int) -> dict[str, float]:
        """Means over the steps since the last flush, with examples/s and the data-wait share.

        These two are of the steps since the last restart. Without such steps they are left out.

        Raises:
          NotFiniteError: if a value of one of them is not finite.
        """
        fetched = jax.device_get([scalars for _, scalars in self._pending])
        for (step, _), scalars in zip(self._pending, fetched, strict=True):
            for name, value in scalars.items():
                if not np.isfinite(value):
                    raise NotFiniteError(step, name, float(value))
        elapsed = time.perf_counter() - self._began
        means = {name: float(np.mean([s[name] for s in fetched])) for name in fetched[0]}
        if timed := len(fetched) - self._untimed:
            means["examples_per_second"] = batch_size * timed / elapsed
            means["data_wait"] = self._waited / elapsed
        self._pending = []
        self.restart()
        return means


def _step(line: str) -> float:
    # A line that a killed process left half-written belongs to no finished step.
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError):
        return float("inf")
