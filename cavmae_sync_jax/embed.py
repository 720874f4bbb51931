"""Embeds videos, sounds and pictures of any length into an index on disk.

Examples:
  python -m cavmae_sync_jax.embed VIDEOS --checkpoint=runs/sync --output=runs/index
  python -m cavmae_sync_jax.embed a.mp4 b.wav c.jpg --checkpoint=runs/sync --output=runs/index

Each source is a file, a folder or a text file with a path per line. In a folder, files that are
hidden or that have no extension of media are only counted. Files that the index holds already are
skipped; changed ones are embedded again. After an interruption, repeat the command.

There is a pair of vectors every 10/16 s. A file that can't be read is reported and skipped.
python -m cavmae_sync_jax.search searches the index. It consists of Parquet files, which pandas or
DuckDB can read.
"""

import argparse
import collections
import contextlib
import math
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from etils import epath

from cavmae_sync_jax.inference import model as models
from cavmae_sync_jax.inference.index import store as indexes
from cavmae_sync_jax.inference.index.store import Stat
from cavmae_sync_jax.inference.model import Model
from cavmae_sync_jax.utils import buckets, cli, clip_names, console, listing, path_names
from cavmae_sync_jax.utils.errors import UserError

_MEDIA = {*clip_names.VIDEOS, *clip_names.SOUNDS, *clip_names.PICTURES}


class Counts(NamedTuple):
    """How many files were embedded, skipped because the index has them, and refused."""

    embedded: int
    skipped: int
    refused: int
    pairs: int


def run(
    model: Model,
    sources: Sequence[str],
    output: str | os.PathLike,
    *,
    every: float | None = None,
    workers: int = 1,
) -> Counts:
    """Embeds files into an index, which may exist.

    Args:
      model: whose vectors the index holds.
      sources: files, folders, or text files that list files.
      output: the index's folder.
      every: seconds between pairs; None: as a clip's frames.
      workers: processes that decode.

    Raises:
      UserError: if a source is not there or names no media, the index is of another model or other
        settings, or none of its files could be embedded.
    """
    if workers < 0:
        raise UserError(f"--workers must be at least 0, not {workers}")
    if every is not None and not 0 < every < math.inf:
        raise UserError(f"--every must be above 0 seconds, not {every:g}")
    found = find_files(sources)
    files = [file for file in found if _has_a_text_name(file)]
    embedded, refused, pairs = 0, len(found) - len(files), 0
    with indexes.writing(output, model, every) as (index, writer):
        known = index.known()
        stats = {file: _stat(file) for file in files}
        new = [file for file in files if stats[file] is None or known.get(file) != stats[file]]
        with (
            console.progress("embed", len(new), "file") as bar,
            contextlib.closing(model.embed_files(new, workers, every)) as embedding,
        ):
            for file, kind, parts in embedding:
                try:
                    if isinstance(parts, UserError):
                        raise parts
                    pairs += writer.add(file, stats[file], kind, parts)
                    embedded += 1
                except UserError as error:
                    refused += 1
                    kept = "; the index keeps the vectors of its earlier contents"
                    console.log(f"refused: {error}{kept if file in known else ''}")
                    writer.flush_if_due()
                bar.update()
    if refused and not embedded and refused == len(found):
        raise UserError(f"none of the {refused} files could be embedded; the reasons are above")
    return Counts(embedded, len(files) - len(new), refused, pairs)


def _has_a_text_name(file: str) -> bool:
    """Whether an index can hold a file's name; says so where it can't."""
    try:
        path_names.check_text(file)
    except UserError as error:
        console.log(f"refused: {error}")
        return False
    return True


def find_files(sources: Iterable[str]) -> list[str]:
    """The absolute paths of the files that sources name, each once.

    Of a folder, it logs how many files are left out because they are not named as media.

    Raises:
      UserError: if a source is not there or can't be read, names no file, or one in a bucket.
    """
    found: dict[str, None] = {}
    for source in sources:
        try:
            files = [source] if buckets.in_bucket(source) else _files(pathlib.Path(source))
        except OSError as error:
            place, why = error.filename or source, error.strerror or error
            raise UserError(f"{place} can't be read: {why}") from error
        if not files:
            raise UserError(f"{source} has no videos, sounds or pictures")
        if remote := next(filter(buckets.in_bucket, files), None):
            raise UserError(f"{remote} lies in a bucket: copy it to a disk of this machine first")
        found |= dict.fromkeys(map(os.path.abspath, files))
    return list(found)


def _files(source: pathlib.Path) -> list[str]:
    if source.is_dir():
        inside = sorted(listing.in_folder(str(source)))
        endings = {name: os.path.splitext(name)[1].lower() for name in inside}
        if other := collections.Counter(
            end or "none" for end in endings.values() if end not in _MEDIA
        ):
            counts = ", ".join(f"{count:,} {end}" for end, count in other.most_common())
            console.log(f"left out in {source}, which are not named as media: {counts}")
        return [os.path.join(source, name) for name in inside if endings[name] in _MEDIA]
    if source.suffix.lower() == ".txt" and source.is_file():
        lines = listing.in_list(epath.Path(source), ask_buckets=False)
        return [
            line if buckets.in_bucket(line) else str(path or source.parent / line)
            for line, path in lines
        ]
    if source.exists():
        return [str(source)]
    raise UserError(f"there is no file or folder {source}")


def _stat(file: str) -> Stat | None:
    """What shows that a file changed; None if it is not there, which reading it will report."""
    try:
        stat = os.stat(file)
    except OSError:
        return None
    return Stat(stat.st_size, stat.st_mtime_ns)


def main() -> None:
    """Runs the command line."""
    arguments = cli.parser(__doc__)
    arguments.add_argument(
        "sources",
        nargs="+",
        metavar="FILE",
        help="files, folders, or text files with a path per line",
    )
    arguments.add_argument("--checkpoint", required=True, help="folder of a trained model")
    arguments.add_argument("--output", required=True, metavar="INDEX", help="folder of the index")
    arguments.add_argument("--every", type=float, help="seconds between pairs; without it, 10/16 s")
    arguments.add_argument("--workers", type=int, default=1, help="processes that decode")
    arguments.add_argument(
        "--export", metavar="FILE", help="also write all vectors into one .npz or .parquet"
    )

    def start(args: argparse.Namespace) -> None:
        exported = None if args.export is None else pathlib.Path(args.export)
        if exported is not None:
            indexes.check_export(exported)
        model = models.load(args.checkpoint)
        counts = run(model, args.sources, args.output, every=args.every, workers=args.workers)
        print(
            f"{counts.embedded} files embedded ({counts.pairs} pairs), {counts.skipped} were in "
            f"the index, {counts.refused} refused\nwritten: {args.output}"
        )
        if exported is not None:
            indexes.export(indexes.Index(args.output), exported)
            print(f"written: {exported}")

    cli.main(arguments, start)


if __name__ == "__main__":
    main()
