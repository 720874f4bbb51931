"""Clips to a TFDS dataset in ArrayRecord format, without TensorFlow.

A dataset is a folder `OUTPUT/SOURCE/VERSION` with TFDS's metadata, and `OUTPUT/rejects.csv` beside
it lists the clips that did not become examples; `OUTPUT/summary.json` counts all of them. While it
is being prepared, its shards are in `OUTPUT/.incomplete`. The same command goes on from there after
an interruption.
"""

import collections
import csv
import dataclasses
import hashlib
import io
import re
from collections.abc import Mapping, Sequence

import tensorflow_datasets as tfds
from etils import epath

from cavmae_sync_jax.data import dataset_dir
from cavmae_sync_jax.utils import cli
from cavmae_sync_jax.utils.errors import UserError
from data_prep.pipeline import executors, shards, stats, writers
from data_prep.pipeline.clips import PASSING, Clip, Preparation, Reject
from data_prep.pipeline.executors import Engine
from data_prep.pipeline.output import check_output, publish, workplace
from data_prep.pipeline.shards import Job, Outcome, Schema, Shard
from data_prep.pipeline.summary import (
    REJECTS,
    Findings,
    SplitSummary,
    Summary,
    count_files,
    count_reasons,
)

# Of the features: raise it when a reader of the old ones could not read the new ones.
VERSION = "1.0.0"


def write_dataset(
    output: epath.PathLike,
    splits: Mapping[str, Sequence[Clip]],
    preparation: Preparation,
    *,
    class_names: Sequence[str],
    source: str,
    engine: Engine = Engine(),  # noqa: B008 (immutable)
    overwrite: bool = False,
    compute_stats: bool = False,
    findings: Findings | None = None,
) -> Summary:
    """Prepares the clips of all splits and writes them as the TFDS dataset `OUTPUT/SOURCE/VERSION`.

    The dataset is complete or absent: it is moved to its place when it is finished, and whatever
    it replaces stays until then. Shards that an interrupted call with the same arguments has
    finished are used, not prepared again, but for those with clips that were too slow or failed. A
    split of which no clip can be used is left out. The metadata hold `source`, `class_names`,
    `has_truth`, `preparation` (a dict of its fields), `longest_rows` of a log-mel, `contents` (a
    hash of each split's records) and `code_version`.

    Args:
      output: the folder to write to; it may hold other things. gs:// works, too.
      splits: clips by split name, such as "train", all of one class. All have truth, or none.
      preparation: what is stored with each clip.
      class_names: in the order of the label indices.
      source: the dataset's name, lower case with underscores.
      engine: what does the work; it has no influence on the dataset.
      overwrite: whether a dataset in `output` may be replaced.
      compute_stats: whether to store `stats.compute` of the split train with the dataset.
      findings: what the source has seen, for the summary.

    Raises:
      UserError: there is a dataset already, an id comes twice, a label is not a class name, or
        no clip can be used.
    """
    output = epath.Path(output)
    has_truth, extras = _check_clips(splits, class_names)
    engine.check()
    there = {
        split: clips
        for split, clips in splits.items()
        if any(clip.refusal is None for clip in clips)
    }
    old = check_output(output, source, overwrite)
    findings, directory = findings or Findings(), output / source / VERSION
    if not there:  # reported at once, because this costs no decoding
        _refuse_empty(output, old, Summary(directory, _count(splits, (), ()), findings))
    if compute_stats and stats.SPLIT not in there:
        raise UserError(f"--compute_stats is of the split {stats.SPLIT!r}, which has no clip")
    stored = preparation.num_frames, has_truth, preparation.fbank_dtype
    schema = Schema(tuple(class_names), *stored, extras)
    planned = shards.plan(there)
    job = Job(schema, preparation)
    with workplace(output, shards.fingerprint(planned, job)) as work:
        folder = work / "shards"
        folder.mkdir(exist_ok=True)
        todo = _unfinished(planned, folder)
        _prepare(todo, job, folder, engine)
        outcomes = _outcomes(planned, folder)
        summary = Summary(directory, _count(splits, planned, outcomes), findings)
        if not summary.examples:
            work.rmtree()
            _refuse_empty(output, old, summary)
        if compute_stats and stats.SPLIT not in summary.examples:
            raise UserError(
                f"none of the clips of the split {stats.SPLIT!r} can be used: leave out "
                "--compute_stats; what is prepared is kept"
            )
        new = work / source
        new.rmtree(missing_ok=True)
        metadata = _metadata(source, job, planned, outcomes)
        _assemble(planned, outcomes, folder, new / VERSION, schema, metadata)
        if compute_stats:
            stats.store(new / VERSION, stats.compute(new / VERSION))
        _write_rejects(output / REJECTS, summary.rejects)
        summary.write(output)
        publish(new, output / source, old, work)
        work.rmtree()
    return summary


def _unfinished(planned: Sequence[Shard], folder: epath.Path) -> list[Shard]:
    """Returns the shards that are to be prepared, and says what is there already."""
    found = {shard.name: shards.finished(shard, folder) for shard in planned}
    done = [outcome for outcome in found.values() if outcome is not None]
    if done:
        print(f"{len(done)} of {len(planned)} shards are finished already.")
    others = sorted({outcome.version for outcome in done} - {cli.version()})
    if others:
        print(
            f"Version {', '.join(others)} of the code prepared some of them, this is "
            f"{cli.version()}: delete {folder.parent} to prepare all of them again."
        )
    # A longer --time_limit or fewer --workers may help what was too slow, or lacked memory.
    again = {name for name, outcome in found.items() if outcome is not None and _may_pass(outcome)}
    if again:
        print(f"{len(again)} of them are prepared again, as clips were too slow or failed.")
    return [shard for shard in planned if found[shard.name] is None or shard.name in again]


def _may_pass(outcome: Outcome) -> bool:
    return any(reject.reason in PASSING for reject in outcome.rejects)


def _count(
    splits: Mapping[str, Sequence[Clip]], planned: Sequence[Shard], outcomes: Sequence[Outcome]
) -> dict[str, SplitSummary]:
    """Returns each split's counts; clips of a split without a shard are all refused."""
    counted = {}
    for split, clips in splits.items():
        ours = [o for s, o in zip(planned, outcomes, strict=True) if s.split == split]
        notes = collections.Counter()
        for outcome in ours:
            notes.update(outcome.notes)
        rejects = tuple(reject for outcome in ours for reject in outcome.rejects)
        if not ours:
            rejects = tuple(Reject(clip.clip_id, clip.path, *clip.refusal) for clip in clips)
        examples = sum(outcome.examples for outcome in ours)
        counted[split] = SplitSummary(
            count_files(clips), len(clips), examples, rejects, dict(notes)
        )
    return counted


def _prepare(todo: Sequence[Shard], job: Job, folder: epath.Path, engine: Engine) -> None:
    """Writes all the given shards to `folder`, here or with Apache Beam."""
    if not todo:
        return
    if not engine.runner:
        writers.prepare(todo, job, folder, engine)
        return
    executors.beam().prepare(todo, job, folder, engine)


def _outcomes(planned: Sequence[Shard], folder: epath.Path) -> list[Outcome]:
    """Returns the outcome of each shard; every clip must be an example or a reject, once."""
    outcomes = []
    for shard in planned:
        outcome = shards.finished(shard, folder)
        if outcome is None or outcome.examples + len(outcome.rejects) != len(shard.clips):
            raise RuntimeError(f"the shard {shard.name} in {folder} is not complete")
        outcomes.append(outcome)
    return outcomes


def _refuse_empty(output: epath.Path, old: epath.Path | None, summary: Summary) -> None:
    """Raises a UserError, for there is no example; what was rejected stays in OUTPUT."""
    if not old:  # where the old dataset stays, so does its list
        cli.make_folder(output)
        _write_rejects(output / REJECTS, summary.rejects)
        summary.write(output)
    unused = summary.findings.unused
    hint = (
        f" No list names {unused[0]!r}: --help says which names are understood." if unused else ""
    )
    raise UserError(
        f"none of the {len(summary.rejects)} clips can be used "
        f"({count_reasons(summary.rejects)}); the first: {summary.rejects[0].detail}{hint}"
    )


def _metadata(
    source: str, job: Job, planned: Sequence[Shard], outcomes: Sequence[Outcome]
) -> tfds.core.MetadataDict:
    digests: dict[str, list[str]] = collections.defaultdict(list)
    for shard, outcome in zip(planned, outcomes, strict=True):
        if outcome.examples:
            digests[shard.split].append(outcome.digest)
    return tfds.core.MetadataDict(
        source=source,
        class_names=list(job.schema.class_names),
        has_truth=job.schema.has_truth,
        preparation=dataclasses.asdict(job.preparation),
        longest_rows=max(outcome.rows for outcome in outcomes),
        contents={
            split: hashlib.sha256("".join(parts).encode()).hexdigest()[:16]
            for split, parts in digests.items()
            if all(parts)  # what version 0.1.0 prepared has none
        },
        code_version=", ".join(sorted({outcome.version for outcome in outcomes})),
    )


def _assemble(
    planned: Sequence[Shard],
    outcomes: Sequence[Outcome],
    folder: epath.Path,
    directory: epath.Path,
    schema: Schema,
    metadata: tfds.core.MetadataDict,
) -> None:
    """Makes a dataset of the shards that hold records: TFDS's file names and metadata."""
    directory.mkdir(parents=True)
    infos = []
    for split in dict.fromkeys(shard.split for shard in planned):
        kept = [
            (shard, outcome)
            for shard, outcome in zip(planned, outcomes, strict=True)
            if shard.split == split and outcome.examples
        ]
        if not kept:
            continue
        template = tfds.core.ShardedFileTemplate(
            data_dir=directory,
            dataset_name=directory.parent.name,
            split=split,
            filetype_suffix="array_record",
        )
        for index, (shard, _) in enumerate(kept):
            target = template.sharded_filepath(shard_index=index, num_shards=len(kept))
            shards.link(shards.data_path(folder, shard), target)
        indices = {name: index for index, name in enumerate(schema.class_names)}
        clips = [clip for shard, outcome in kept for clip in shards.used(shard, outcome)]
        labels = [[indices[label] for label in clip.labels] for clip in clips]
        dataset_dir.write_index(directory, split, [clip.clip_id for clip in clips], labels)
        lengths = [outcome.examples for _, outcome in kept]
        size = sum(outcome.bytes for _, outcome in kept)
        infos.append(tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=size))
    tfds.folder_dataset.write_metadata(
        data_dir=directory,
        features=schema.features(),
        split_infos=infos,
        version=VERSION,
        check_data=False,  # would need TensorFlow
        description="Clips: frames as JPEG and the log-mel of one audio channel.",
        metadata=metadata,
    )


def _check_clips(
    splits: Mapping[str, Sequence[Clip]], class_names: Sequence[str]
) -> tuple[bool, tuple[str, ...]]:
    """Returns whether the clips have truth, and their extras.

    Raises:
      UserError: they can't make a dataset.
    """
    seen: dict[str, Clip] = {}
    known = set(class_names)
    if len(known) < len(class_names) or any(not n.strip() or "\n" in n for n in class_names):
        raise UserError("class names must be different from each other, of one line, not empty")
    for split, clips in splits.items():
        if not re.fullmatch(r"[A-Za-z]\w*", split) or split == "all":
            raise UserError(f"a split can't be called {split!r}: take letters, digits and _")
        if not clips:
            raise UserError(f"there is no clip for the split {split!r}")
        for clip in clips:
            other = seen.setdefault(clip.clip_id, clip)
            if other is not clip:
                raise UserError(
                    f"the clip id {clip.clip_id!r} comes twice, from {other.path} and {clip.path}"
                )
            unknown = set(clip.labels) - known
            if unknown:
                raise UserError(
                    f"{clip.path}, clip {clip.clip_id!r}, has the label {min(unknown)!r}, "
                    "which is not among the class names"
                )
    has_truth = {clip.has_truth for clip in seen.values()}
    if len(has_truth) > 1:
        raise UserError("some clips have a truth file and some have none")
    extras = {clip.extras for clip in seen.values()}
    if len(extras) > 1:
        raise UserError(f"the clips have different fields: {' and '.join(map(str, extras))}")
    return has_truth == {True}, *extras


def _write_rejects(path: epath.Path, rejects: Sequence[Reject]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(field.name for field in dataclasses.fields(Reject))
    writer.writerows(dataclasses.astuple(reject) for reject in rejects)
    # Names that are no text, as file systems allow them, are written with their bytes escaped.
    path.write_bytes(text.getvalue().encode("utf-8", "backslashreplace"))
