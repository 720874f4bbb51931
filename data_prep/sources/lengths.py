"""The lengths of media files, read on this machine or by a runner's workers."""

from collections.abc import Callable, Iterable, Sequence

from etils import epath
from tqdm import tqdm

from cavmae_sync_jax.media import decoding
from data_prep.pipeline import executors, output, readers
from data_prep.pipeline.executors import Engine, Failure, Workers

# A passing fault, of a network or for lack of memory, must not cost a file.
_TRIES = 2
# Why a file has no length and will have none when it is asked again.
_FINAL = ("no_video", "no_audio", "too_large")


def duration(path: str) -> float | Failure:
    """Returns a file's seconds, or why they are unknown."""
    try:
        with readers.media(path) as here:
            return decoding.probe(here).duration
    except decoding.MediaError as error:
        return Failure(error.reason, error.detail)


def durations(
    paths: Sequence[str], ask: Callable[[Sequence[str]], Iterable[tuple[str, float | Failure]]]
) -> dict[str, float | Failure]:
    """Returns the answer of `ask` for each path; failures that may pass are asked again.

    Args:
      paths: files.
      ask: yields each path with its seconds or its failure.
    """
    known: dict[str, float | Failure] = {}
    todo = list(paths)
    for _ in range(_TRIES):
        known.update(ask(todo))
        todo = [
            path
            for path in todo
            if isinstance(known[path], Failure) and known[path].reason not in _FINAL
        ]
        if not todo:
            break
    return known


def look(paths: Sequence[str], engine: Engine, place: epath.Path) -> dict[str, float | Failure]:
    """Returns the length of each file; shows a progress bar.

    Args:
      paths: the files.
      engine: asks on this machine, or through its runner.
      place: the dataset's output, where a runner's workers leave what they have found.
    """
    if engine.runner:
        folder, beam = place / output.INCOMPLETE, executors.beam()
        return durations(paths, lambda todo: beam.results(duration, todo, folder, engine))
    with Workers(engine.workers, engine.time_limit) as workers:
        return durations(
            paths,
            lambda todo: tqdm(
                workers.results(duration, todo),
                total=len(todo),
                unit="file",
                desc="looking at files",
                disable=not todo,
            ),
        )
