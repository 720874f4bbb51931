"""What the sources of published benchmarks share: folders, lists, and the type of their result."""

import collections
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from etils import epath

from cavmae_sync_jax.utils import clip_names
from cavmae_sync_jax.utils.errors import UserError
from data_prep.pipeline.clips import Clip
from data_prep.pipeline.summary import Findings
from data_prep.sources import csv_files


class Benchmark(NamedTuple):
    """A benchmark as its folder has it.

    Attributes:
      splits: the clips of each split.
      class_names: in the labels' order.
      num_frames: stored per clip.
      clip_seconds: how long its clips are.
      findings: what the summary says of its files.
      notes: sentences on what was left out.
    """

    splits: Mapping[str, Sequence[Clip]]
    class_names: Sequence[str]
    num_frames: int = 1
    clip_seconds: float = 10.0
    findings: Findings | None = None
    notes: tuple[str, ...] = ()


def files_by_stem(folder: epath.Path, *extensions: str) -> dict[str, list[str]]:
    """Returns the paths of a folder's files of some extensions by their names without it.

    There are several where only extensions tell files apart.

    Raises:
      UserError: there is no such folder, or it can't be read.
    """
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in extensions)
    except (OSError, ImportError) as error:
        raise UserError(f"the folder {folder} can't be read: {error}") from error
    found: dict[str, list[str]] = collections.defaultdict(list)
    for path in paths:
        if not path.name.startswith("."):
            found[path.stem].append(str(path))
    return dict(found)


def read_list(path: epath.PathLike | None) -> set[str] | None:
    """Returns the first cells of a CSV without their extensions; None of no list.

    Raises:
      UserError: it can't be read, or is empty.
    """
    if path is None:
        return None
    with csv_files.lines_of(path) as lines:
        names = {clip_names.without_extension(PurePosixPath(row[0].strip()).name) for row in lines}
    if not names:
        raise UserError(f"the list {path} names nothing")
    return names


def chosen(names: Sequence[str], wanted: set[str] | None, source: str) -> tuple[list[str], str]:
    """Returns the names that are wanted, and a sentence on the others, or "".

    Raises:
      UserError: there is none, or none is wanted.
    """
    if not names:
        raise UserError(f"{source} holds no annotation")
    kept = [name for name in names if wanted is None or name in wanted]
    if not kept:
        raise UserError(f"{source} has none of the names in --list, such as {min(wanted or '?')!r}")
    notes = []
    if left_out := len(names) - len(kept):
        notes.append(f"{left_out} of {len(names)} are not in --list.")
    if absent := len((wanted or set()) - set(kept)):
        notes.append(f"{absent} names in --list are not here.")
    return kept, " ".join(notes)
