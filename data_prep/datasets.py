"""Clips to a TFDS dataset in ArrayRecord format, in a pool of processes, without TensorFlow.

A dataset is a folder `OUTPUT/SOURCE/VERSION` as TFDS writes it, with `OUTPUT/rejects.csv` beside
it, which lists the clips that did not become examples. TFDS orders the examples by a hash of their
ids, so the same clips give the same dataset however many processes prepare them.
"""

import collections
import contextlib
import csv
import dataclasses
import functools
import itertools
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
import threadpoolctl
from tqdm import tqdm

from cavmae_sync_jax import audio, cli
from cavmae_sync_jax.cli import UserError
from data_prep.clips import Clip, Preparation, Reject, prepare_clip

# Of the features below: raise it when a reader of the old ones could not read the new ones.
VERSION = "1.0.0"
REJECTS = "rejects.csv"

Example = dict[str, Any]


class Summary(NamedTuple):
    """What came of the clips: the dataset's folder, examples per split, and the rejects."""

    directory: Path
    examples: dict[str, int]
    rejects: tuple[Reject, ...]

    def report(self) -> str:
        """Returns the same in words."""
        counts = ", ".join(f"{count} in {name}" for name, count in self.examples.items())
        report = f"{self.directory} has {sum(self.examples.values())} examples: {counts}."
        if self.rejects:
            path = self.directory.parents[1] / REJECTS
            report += f"\n{len(self.rejects)} clips were rejected ({count_reasons(self.rejects)}); "
            report += f"{path} lists them."
        return report


def features(
    class_names: Sequence[str], num_frames: int, has_truth: bool
) -> tfds.features.FeaturesDict:
    """Returns the features of an example; see `clips.prepare_clip` for what they mean.

    The log-mel and the images are stored as plain bytes, which needs no TensorFlow to read and
    write. Truth (`frame_class`, `frame_mask`, `events`) is there only if the source has it.
    """
    spec = {
        "clip_id": tfds.features.Text(),
        "frames": tfds.features.Sequence(tfds.features.Text()),
        "fbank": tfds.features.Tensor(shape=(None, audio.BINS), dtype=np.float16, encoding="bytes"),
        "labels": tfds.features.Sequence(tfds.features.ClassLabel(names=list(class_names))),
    }
    if has_truth:
        spec |= {
            "frame_class": tfds.features.Tensor(shape=(num_frames,), dtype=np.int64),
            "frame_mask": tfds.features.Sequence(tfds.features.Text()),
            "events": tfds.features.Sequence(
                {"class": np.int64, "start": np.float32, "end": np.float32}
            ),
        }
    return tfds.features.FeaturesDict(spec)


def write_dataset(
    output: str | Path,
    splits: Mapping[str, Sequence[Clip]],
    preparation: Preparation,
    *,
    class_names: Sequence[str],
    source: str,
    workers: int | None = None,
    overwrite: bool = False,
    prepare: Callable[[Any, Preparation], Example | Reject] = prepare_clip,
) -> Summary:
    """Prepares the clips of all splits and writes them as the TFDS dataset `OUTPUT/SOURCE/VERSION`.

    The dataset is complete or absent: it is moved to its place when it is finished, and whatever
    it replaces stays until then. Its metadata hold `source`, `class_names`, `has_truth`,
    `preparation` (a dict of its fields) and `code_version`.

    Args:
      output: the folder to write to; it may hold other things.
      splits: clips by split name, such as "train". All clips have truth, or none.
      preparation: what is stored with each clip.
      class_names: in the order of the label indices.
      source: the dataset's name, lower case with underscores.
      workers: processes; None means one a core.
      overwrite: whether a dataset in `output` may be replaced.
      prepare: makes a clip an example; a function of a module, for other processes to find.

    Raises:
      UserError: there is a dataset already, an id comes twice, a label is not a class name, or
        nothing is left of a split.
    """
    output = Path(output)
    clips = [clip for of_split in splits.values() for clip in of_split]
    has_truth = _check_clips(splits, class_names)
    old = check_output(output, source, overwrite)
    partial = output / ".incomplete"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"--output={output} can't be written to: {error.strerror}") from error
    rejects: list[Reject] = []
    make = functools.partial(prepare, preparation=preparation)
    try:
        with (
            contextlib.closing(_Workers(workers or os.cpu_count() or 1, make)) as pool,
            tqdm(total=len(clips), unit="clip", desc=f"preparing {source}") as bar,
        ):
            builder = _Builder(
                name=source,
                spec=features(class_names, preparation.num_frames, has_truth),
                examples={
                    name: functools.partial(_examples, name, of_split, pool, rejects, bar)
                    for name, of_split in splits.items()
                },
                metadata={
                    "source": source,
                    "class_names": list(class_names),
                    "has_truth": has_truth,
                    "preparation": dataclasses.asdict(preparation),
                    "code_version": cli.version(),
                },
                data_dir=partial,
            )
            tfds.disable_progress_bar()
            # TFDS prints the name of the temporary folder as if it were the place to look.
            with contextlib.redirect_stdout(None):
                builder.download_and_prepare(
                    download_config=tfds.download.DownloadConfig(try_download_gcs=False)
                )
        counts = {name: builder.info.splits[name].num_examples for name in splits}
        if sum(counts.values()) + len(rejects) != len(clips):
            raise RuntimeError(
                f"{len(clips)} clips became {counts} examples and {len(rejects)} rejects"
            )
        if old:
            os.replace(old, partial / "old")
        try:
            os.replace(partial / source, output / source)
        except OSError:
            if old:
                os.replace(partial / "old", old)
            raise
        _write_rejects(output / REJECTS, rejects)
    except UserError:
        # Where the old dataset stays, so does its list.
        if not old:
            _write_rejects(output / REJECTS, rejects)
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Summary(output / source / VERSION, counts, tuple(rejects))


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A TFDS builder whose splits are given as functions that yield (key, example)."""

    # TFDS looks beside the code for checksums of downloads, with a package it doesn't require.
    code_path = None

    def __init__(self, *, name, spec, examples, metadata, data_dir):
        self.name = name
        self.VERSION = tfds.core.Version(VERSION)
        self._spec, self._examples, self._metadata = spec, examples, metadata
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Clips: frames as JPEG and the log-mel of the first audio channel.",
            features=self._spec,
            metadata=tfds.core.MetadataDict(self._metadata),
        )

    def _split_generators(self, dl_manager):
        return {name: examples() for name, examples in self._examples.items()}

    def _generate_examples(self):
        raise AssertionError("the splits bring their own examples")


class _Workers:
    """Processes that prepare clips, with few clips in flight however many there are."""

    def __init__(self, count: int, prepare: Callable[[Clip], Example | Reject]):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["data_prep.clips"])
        self._pool = ProcessPoolExecutor(count, context, _start_worker)
        self._ahead = 4 * count
        self._prepare = prepare

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def results(self, clips: Sequence[Clip]) -> Iterator[tuple[Clip, Example | Reject]]:
        """Yields each clip and what became of it, in order."""
        waiting: collections.deque[tuple[Clip, Future]] = collections.deque()
        rest = iter(clips)
        while True:
            for clip in itertools.islice(rest, self._ahead - len(waiting)):
                waiting.append((clip, self._pool.submit(self._prepare, clip)))
            if not waiting:
                return
            clip, future = waiting.popleft()
            yield clip, self._result(clip, future, waiting)

    def _result(self, clip: Clip, future: Future, waiting) -> Example | Reject:
        try:
            return future.result()
        except BrokenProcessPool as error:
            started = [clip, *(other for other, _ in waiting)]
            paths = ", ".join(dict.fromkeys(each.path for each in started))
            raise UserError(
                "a worker process was killed, by lack of memory (try fewer --workers) or by one "
                f"of these files: {paths}"
            ) from error


def _start_worker() -> None:
    # Ctrl-C is the parent's to handle, and the other cores are the other workers'.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threadpoolctl.threadpool_limits(1)


def _examples(
    split: str, clips: Sequence[Clip], pool: _Workers, rejects: list[Reject], bar: tqdm
) -> Iterator[tuple[str, Example]]:
    """Yields the examples of a split, and adds its other clips to `rejects`."""
    refused = []
    for clip, result in pool.results(clips):
        bar.update()
        if isinstance(result, Reject):
            refused.append(result)
            rejects.append(result)
        else:
            yield clip.clip_id, result
    if len(refused) == len(clips):
        raise UserError(
            f"none of the {len(clips)} clips of the split {split!r} can be used "
            f"({count_reasons(refused)}); the first: {refused[0].detail}"
        )


def count_reasons(rejects: Sequence[Reject]) -> str:
    """Returns for example "3 silent, 1 unreadable", the most frequent reason first."""
    counts = collections.Counter(reject.reason for reject in rejects)
    return ", ".join(f"{count} {reason}" for reason, count in counts.most_common())


def _check_clips(splits: Mapping[str, Sequence[Clip]], class_names: Sequence[str]) -> bool:
    """Returns whether the clips have truth; raises UserError if they can't make a dataset."""
    seen: dict[str, Clip] = {}
    known = set(class_names)
    if len(known) < len(class_names) or any(not n.strip() or "\n" in n for n in class_names):
        raise UserError("class names must be different from each other, of one line, not empty")
    for split, clips in splits.items():
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
                    f"the clip {clip.clip_id!r} has the label {min(unknown)!r}, "
                    "which is not among the class names"
                )
    has_truth = {clip.truth is not None for clip in seen.values()}
    if len(has_truth) > 1:
        raise UserError("some clips have a truth file and some have none")
    return has_truth == {True}


def check_output(output: Path, source: str, overwrite: bool) -> Path | None:
    """Returns the dataset `OUTPUT/SOURCE` that is to be replaced, None if there is none.

    Raises:
      UserError: there is one and `overwrite` is not set, there is another dataset, which would
        make OUTPUT ambiguous and is not ours to delete, or something else is in the way.
    """
    if output.exists() and not output.is_dir():
        raise UserError(f"--output={output} is a file; give a folder")
    own, found = output / source, {info.parents[1] for info in output.glob("*/*/dataset_info.json")}
    others = sorted(found - {own})
    if others:
        raise UserError(f"{others[0]} is another dataset; give another --output")
    if own in found and not overwrite:
        raise UserError(f"{own} is a dataset already; replace it with --overwrite")
    if own.exists() and own not in found:
        raise UserError(f"{own} is in the way; give another --output")
    return own if own in found else None


def _write_rejects(path: Path, rejects: Sequence[Reject]) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(field.name for field in dataclasses.fields(Reject))
        writer.writerows(dataclasses.astuple(reject) for reject in rejects)
