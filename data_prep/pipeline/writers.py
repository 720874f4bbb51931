"""Prepares all shards with processes of this machine.

The records of a few workers pass through one process, which writes them. One writer would be too
slow for many workers, so every `WORKERS` workers share a writer. The parent hands out the shards.
"""

import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from etils import epath
from tqdm import tqdm

from cavmae_sync_jax.utils.errors import UserError
from data_prep.pipeline import archives, executors, shards
from data_prep.pipeline.executors import Engine, Workers
from data_prep.pipeline.shards import Job, Shard

# That one process can serve: it passes on some 500 records per second, each worker brings 20.
WORKERS = 16


def prepare(todo: Sequence[Shard], job: Job, folder: epath.Path, engine: Engine) -> None:
    """Writes all the given shards to `folder` with processes of this machine.

    Raises:
      UserError: see `shards.write_shard` and `Workers.results`; or a writer was killed.
    """
    total = sum(len(shard.clips) for shard in todo)
    workers = engine.workers or os.cpu_count() or 1
    writers = min(-(-workers // WORKERS), len(todo))
    with tqdm(total=total, unit="clip", desc="preparing clips") as bar:
        if writers == 1:
            _write(todo, job, folder, workers, engine.time_limit, bar.update)
        else:
            shares = [len(range(index, workers, writers)) for index in range(writers)]
            _delegate(iter(todo), shares, bar.update, job, folder, engine.time_limit)


def _write(
    todo: Iterable[Shard],
    job: Job,
    folder: epath.Path,
    workers: int,
    time_limit: float | int,
    done: Callable[[int], Any],
) -> None:
    """Writes shards with some workers; they begin with the next shard before one is written."""
    ahead, behind = itertools.tee(todo)
    with Workers(workers, time_limit) as pool:
        clips = (clip for shard in ahead for clip in shard.clips)
        results = executors.prepared(clips, job, pool, done)
        for shard in behind:
            shards.write_shard(shard, itertools.islice(results, len(shard.clips)), folder)


def _delegate(
    todo: Iterator[Shard],
    shares: Sequence[int],
    done: Callable[[int], Any],
    job: Job,
    folder: epath.Path,
    time_limit: float | int,
) -> None:
    """Starts a writer for each of `shares` of workers, and gives shards to whoever asks for one."""
    context = executors.context()
    writers: dict[Connection, Any] = {}
    place = archives.temporary_folder()
    try:
        for share in shares:
            ours, theirs = context.Pipe()
            owner = os.getpid(), place.name
            writer = context.Process(
                target=_writer, args=(theirs, owner, job, folder, share, time_limit)
            )
            writer.start()
            theirs.close()
            writers[ours] = writer
        waiting = set(writers)
        while waiting:
            for connection in wait(list(waiting)):
                assert isinstance(connection, Connection)
                if not _serve(connection, todo, done):
                    waiting.remove(connection)
        for writer in writers.values():
            writer.join()
            if writer.exitcode:
                raise UserError(
                    f"a process that writes shards ended with status {writer.exitcode}, perhaps "
                    "for lack of memory: start again, perhaps with fewer --workers"
                )
    finally:
        for writer in writers.values():
            writer.kill()  # its workers end with it
            writer.join()
        place.cleanup()


def _serve(connection: Connection, todo: Iterator[Shard], done: Callable[[int], Any]) -> bool:
    """Takes a writer's message: clips that are done, None for "the next shard", or an error.

    Returns:
      False where the writer has ended.

    Raises:
      UserError: the writer's.
    """
    with contextlib.suppress(EOFError, ConnectionError):
        message = connection.recv()
        if isinstance(message, UserError):
            raise message
        if message is None:
            connection.send(next(todo, None))
        else:
            done(message)
        return True
    return False


def _writer(
    connection: Connection,
    owner: tuple[int, str],
    job: Job,
    folder: epath.Path,
    workers: int,
    time_limit: float | int,
) -> None:
    """Writes the shards that the process `owner` gives; the other end of what `_serve` takes."""
    executors.start_worker(*owner)

    def given() -> Iterator[Shard]:
        connection.send(None)
        while (shard := connection.recv()) is not None:
            yield shard
            connection.send(None)

    try:
        _write(given(), job, folder, workers, time_limit, connection.send)
    except UserError as error:
        connection.send(error)
