"""Shards prepared by Apache Beam (the extra `beam`): one element of the pipeline is one shard.

A shard is whole or absent, even if several workers write it. So runners may retry. No record passes
through a runner's shuffle.
"""

import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from etils import epath

from cavmae_sync_jax.utils.errors import UserError
from data_prep.pipeline import executors, shards
from data_prep.pipeline.clips import Clip
from data_prep.pipeline.executors import Engine, Failure, Workers
from data_prep.pipeline.shards import Job, Shard

_TOGETHER = 256  # files that a worker looks at before it says so


def results(
    function: Callable[[str], Any], items: Sequence[str], folder: epath.Path, engine: Engine
) -> Iterator[tuple[str, Any]]:
    """Yields each item with what the function returns of it, or its `Failure`, as `Workers` does.

    Args:
      function: returns a number or a `Failure`; workers find it by its name.
      items: paths.
      folder: which every machine must reach; nothing stays in it.
      engine: of the runner.
    """
    place = folder / f"asked-{uuid.uuid4().hex}"
    place.mkdir(parents=True)
    try:
        parts = []
        for begin in range(0, len(items), _TOGETHER):
            parts.append(place / f"{begin:09d}.json")
            parts[-1].write_text(json.dumps(items[begin : begin + _TOGETHER]))
        with _pipeline(engine) as pipeline:
            _ = (
                pipeline
                | "files" >> beam.Create([str(part) for part in parts])
                | "spread" >> beam.Reshuffle()
                | "look" >> beam.ParDo(_Ask(function, engine))
            )
        for part in parts:
            for item, found in json.loads(_answers(str(part)).read_text()):
                yield item, Failure(*found) if isinstance(found, list) else found
    finally:
        place.rmtree(missing_ok=True)


def _answers(part: str) -> epath.Path:
    return epath.Path(f"{part}.answers")


def prepare(todo: Sequence[Shard], job: Job, folder: epath.Path, engine: Engine) -> None:
    """Writes all the given shards to `folder`, which every machine must reach.

    Raises:
      UserError: for a runner or options that Beam doesn't know.
    """
    pipeline = _pipeline(engine)
    clip_class = type(todo[0].clips[0])
    paths = [str(path) for path in shards.store(todo, folder)]
    with pipeline:
        _ = (
            pipeline
            | "shards" >> beam.Create(paths)
            | "spread" >> beam.Reshuffle()
            | "prepare" >> beam.ParDo(_PrepareShard(clip_class, job, str(folder), engine))
        )


def _pipeline(engine: Engine) -> beam.Pipeline:
    try:
        return beam.Pipeline(options=pipeline_options(engine))
    except (ValueError, AttributeError) as error:
        raise UserError(f"Apache Beam refuses --runner={engine.runner}: {error}") from error


def pipeline_options(engine: Engine) -> PipelineOptions:
    """Returns an engine's runner and its flags as Beam takes them.

    Raises:
      UserError: for a flag that Beam doesn't know, or a value that it doesn't take.
    """
    flags = [f"--{option}" for option in engine.beam_options]
    try:
        options = PipelineOptions(flags, runner=engine.runner)
        known = options.get_all_options()
    except (SystemExit, ValueError) as error:
        raise UserError(f"Apache Beam refuses {' '.join(flags)}: {error}") from error
    # Beam only warns of these.
    strange = [option for option in engine.beam_options if option.partition("=")[0] not in known]
    if strange:
        raise UserError(f"--beam_pipeline_options: Apache Beam has no option {strange[0]!r}")
    return options


class _InChild(beam.DoFn):
    """Does its work in a child process, which a decoder may crash."""

    def __init__(self, time_limit: float | int) -> None:
        self._time_limit = time_limit

    def setup(self) -> None:
        """Starts the child process."""
        self._workers = Workers(1, self._time_limit)

    def teardown(self) -> None:
        """Ends the child process."""
        self._workers.__exit__(None, None, None)


class _Ask(_InChild):
    """Writes what a function returns of each item that is listed at a path."""

    def __init__(self, function: Callable[[str], Any], engine: Engine) -> None:
        super().__init__(engine.time_limit)
        self._function = function

    def process(self, element: str) -> None:
        """Answers the list at the path `element`."""
        items = json.loads(epath.Path(element).read_text())
        found = list(self._workers.results(self._function, items))
        _answers(element).write_text(json.dumps(found))


class _PrepareShard(_InChild):
    """Prepares the shard whose clips are listed at a path."""

    def __init__(self, clip_class: type[Clip], job: Job, folder: str, engine: Engine) -> None:
        super().__init__(engine.time_limit)
        self._clip_class, self._job, self._folder = clip_class, job, folder

    def process(self, element: str) -> None:
        """Prepares the shard whose description lies at the path `element`."""
        shard = shards.load(epath.Path(element), self._clip_class)
        if shards.finished(shard, epath.Path(self._folder)) is not None:
            return  # the runner tries again what succeeded
        results = executors.prepared(shard.clips, self._job, self._workers, lambda _: None)
        shards.write_shard(shard, results, epath.Path(self._folder))
