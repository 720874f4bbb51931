"""Log lines and progress bars."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm


def _is_first_process() -> bool:
    # Programs that never compute must not pay for importing JAX, and are alone.
    jax = sys.modules.get("jax")
    return jax is None or jax.process_index() == 0


def log(message: str) -> None:
    """Prints a line above the progress bars, from process 0 only."""
    if _is_first_process():
        tqdm.write(message, file=sys.stderr)


def warn(message: str) -> None:
    """Prints a line from any process, also from a loader's worker, which has no device."""
    tqdm.write(message, file=sys.stderr)


@contextlib.contextmanager
def progress(description: str, total: int, unit: str, initial: int = 0) -> Iterator[Any]:
    """A progress bar with rate and time left, shown by process 0."""
    hidden = not _is_first_process()
    with tqdm(
        total=total, desc=description, unit=unit, initial=initial, disable=hidden, mininterval=1
    ) as bar:
        yield bar
