"""Copies of a file: the same bytes, under the names that people and programs give to copies."""

import collections
import contextlib
import filecmp
import itertools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from cavmae_sync_jax.media.errors import MediaError
from cavmae_sync_jax.utils.buckets import in_bucket
from data_prep.pipeline import archives, readers

_MARKS = re.compile(
    r"^copy of |( - copy| copy)?(\s*\(\d{1,2}\)|(?<=copy) \d{1,2})?$", re.ASCII | re.IGNORECASE
)
_HEAD = 2**16  # bytes that tell nearly all files apart


def groups(paths: Sequence[str], names: Iterable[Path]) -> list[list[int]]:
    """Returns which files hold the same, each file once; most are alone.

    Only files of one size whose names differ by no more than their folders and the mark of a copy,
    such as `a (1).mp4` and `a - Copy.mp4`, are compared. Files in buckets are not.

    Args:
      paths: of the files.
      names: of the files.
    """
    by_name: dict[str, list[int]] = collections.defaultdict(list)
    for number, name in enumerate(names):
        by_name[_plain(name)].append(number)
    made: list[list[int]] = []
    for members in by_name.values():
        if len(members) == 1:  # nearly all are, and nothing needs to be asked of them
            made.append(members)
            continue
        by_size: dict[int, list[list[int]]] = collections.defaultdict(list)
        for one in members:
            kinds = by_size[_size(paths[one])]
            same = (kind for kind in kinds if _same(paths[kind[0]], paths[one]))
            if (kind := next(same, None)) is None:
                kinds.append([one])
            else:
                kind.append(one)
        made += itertools.chain(*by_size.values())
    return sorted(made)


def _plain(name: Path) -> str:
    return f"{_MARKS.sub('', name.stem).casefold()}{name.suffix.casefold()}"


def _size(path: str) -> int:
    """Returns a file's bytes, 0 where nobody may compare it."""
    if in_bucket(path):
        return 0
    with contextlib.suppress(OSError):
        return archives.size(path)
    return 0


def _same(one: str, other: str) -> bool:
    if not _size(one):
        return False
    with (
        contextlib.suppress(OSError, MediaError),
        readers.local(one) as first,
        readers.local(other) as second,
    ):
        heads = []
        for path in (first, second):
            with open(path, "rb") as file:
                heads.append(file.read(_HEAD))
        return heads[0] == heads[1] and filecmp.cmp(first, second, shallow=False)
    return False
