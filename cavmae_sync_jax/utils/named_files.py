"""The files that a user names by a folder, or by a list of paths."""

import contextlib
import os
from collections.abc import Iterator

from etils import epath

from cavmae_sync_jax.utils import tables
from cavmae_sync_jax.utils.errors import UserError


def in_folder(folder: str) -> Iterator[str]:
    """Yields the files' places in a folder, but not the hidden ones.

    Follows links to folders, too, but goes into no folder twice.

    Raises:
      OSError: if a folder in it can't be read.
    """
    walked = set()
    for parent, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        place = os.path.realpath(parent)
        if place in walked:
            folders.clear()
            continue
        walked.add(place)
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = "" if parent == folder else f"{os.path.relpath(parent, folder)}/"
        yield from (inside + name for name in names if not name.startswith("."))


def _refuse(error: OSError) -> None:
    raise error


def in_list(source: epath.Path) -> Iterator[tuple[str, epath.Path | None]]:
    """Yields each line of a list of paths, with its file; None where there is none.

    Paths are relative to the list. A line that begins with # and is no file's is a comment.

    Raises:
      UserError: if it is no text.
      OSError: if it can't be read.
    """
    try:
        lines = tables.text_of(source).replace("\r", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{source} isn't a list of paths in UTF-8: {error}") from error
    for line in filter(None, map(str.strip, lines)):
        # Shells and spreadsheets put names with spaces into quotes.
        texts = (line, bare := line.strip("\"'"), bare.replace("\\", "/"))
        path = next((path for text in texts if _is_file(path := source.parent / text)), None)
        if path is not None or not line.startswith("#"):
            yield line, path


def _is_file(path: epath.Path) -> bool:
    with contextlib.suppress(OSError, ValueError):  # names that no file can have
        return path.is_file()
    return False
