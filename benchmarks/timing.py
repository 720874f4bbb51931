"""What the benchmarks of speed share: the machine's name, interleaved repeats, a table."""

import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple


class Spread(NamedTuple):
    """Median, smallest and largest of some repeats."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of at least one value."""
        return cls(statistics.median(values), min(values), max(values))

    def text(self, digits: int = 2) -> str:
        """Like "1.20 (1.15–1.31)"."""
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}–{self.high:.{digits}f})"


def machine(*packages: str) -> str:
    """One line: Python, the given packages' releases, the processor and the cores to use."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    cores = f"{len(os.sched_getaffinity(0))} cores"
    return ", ".join([f"Python {platform.python_version()}", *versions, _processor(), cores])


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def interleaved(
    candidates: Mapping[str, Callable[[], object]], repeats: int, warmups: int = 1
) -> dict[str, list[float]]:
    """Seconds of each call, `repeats` times for each candidate.

    The candidates take turns, so that a machine that slows down slows all of them. A candidate
    must not return before its work is done.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(-warmups, repeats):
        for name, call in candidates.items():
            began = time.perf_counter()
            call()
            if turn >= 0:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
