"""Shards prepared by Apache Beam (the extra `beam`): one element of the pipeline is one shard.

A shard is whole or absent, whoever writes it and however often. Runners may therefore retry as they
like. No record passes through a runner's shuffle.
"""

from collections.abc import Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from etils import epath

from cavmae_sync_jax.utils.errors import UserError
from data_prep.pipeline import executors, shards
from data_prep.pipeline.clips import Clip
from data_prep.pipeline.shards import Job, Shard


def prepare(todo: Sequence[Shard], job: Job, folder: epath.Path, engine: executors.Engine) -> None:
    """Writes all the given shards to `folder`, which every machine must reach.

    Raises:
      UserError: for a runner or options that Beam doesn't know.
    """
    try:
        pipeline = beam.Pipeline(options=pipeline_options(engine))
    except (ValueError, AttributeError) as error:
        raise UserError(f"Apache Beam refuses --runner={engine.runner}: {error}") from error
    clip_class = type(todo[0].clips[0])
    paths = [str(path) for path in shards.store(todo, folder)]
    with pipeline:
        _ = (
            pipeline
            | "shards" >> beam.Create(paths)
            | "spread" >> beam.Reshuffle()
            | "prepare" >> beam.ParDo(_PrepareShard(clip_class, job, str(folder), engine))
        )


def pipeline_options(engine: executors.Engine) -> PipelineOptions:
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


class _PrepareShard(beam.DoFn):
    """Prepares the shard whose clips are listed at a path; the clips run in a child process."""

    def __init__(
        self, clip_class: type[Clip], job: Job, folder: str, engine: executors.Engine
    ) -> None:
        self._clip_class, self._job, self._folder = clip_class, job, folder
        self._time_limit = engine.time_limit

    def setup(self) -> None:
        """Starts the child process."""
        self._workers = executors.Workers(1, self._time_limit)

    def teardown(self) -> None:
        """Ends the child process."""
        self._workers.__exit__(None, None, None)

    def process(self, element: str) -> None:
        """Prepares the shard whose description lies at the path `element`."""
        shard = shards.load(epath.Path(element), self._clip_class)
        if shards.finished(shard, epath.Path(self._folder)) is not None:
            return  # the runner tries again what succeeded
        results = executors.prepared(shard.clips, self._job, self._workers, lambda _: None)
        shards.write_shard(shard, results, epath.Path(self._folder))
