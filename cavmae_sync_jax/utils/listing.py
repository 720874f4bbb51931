"""Media files of folders and of lists of paths."""

import contextlib
import os
from collections.abc import Iterator

from etils import epath

from cavmae_sync_jax.utils import tables
from cavmae_sync_jax.utils.errors import UserError

_BUCKETS = ("gs://", "s3://")
# Where systems keep what was deleted, and what is theirs, on the disks of Windows, Macs and NAS.
_OF_SYSTEMS = (
    *("$recycle.bin", "system volume information", "__macosx"),
    *("#recycle", "@recycle", "@eadir", "lost+found"),
)


def is_hidden(name: str) -> bool:
    """Returns whether a file or folder is called as what people don't mean."""
    return name.startswith(".") or name.lower() in _OF_SYSTEMS


def in_folder(folder: str, *, all_names: bool = False) -> Iterator[str]:
    """Yields the places of a folder's files in it, without those that are hidden or deleted.

    Follows links to folders, too, but not in circles.

    Args:
      folder: where the files are.
      all_names: whether a folder comes once for each name that a link gives it, not only once.
        Links in it are followed once, so that many links to each other end.

    Raises:
      OSError: it or a folder in it can't be read.
    """
    walked: set[str] = set()
    above: dict[str, tuple[str, ...]] = {folder: ()}  # where the folders lie that one has come by
    for parent, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        place, outer = os.path.realpath(parent), above.pop(parent)
        again = place in walked
        if place in outer or (again and not all_names):
            folders.clear()
            continue
        walked.add(place)
        # In this order, each machine goes on by the same one of several names.
        folders[:] = sorted(
            name
            for name in folders
            if not is_hidden(name) and not (again and os.path.islink(os.path.join(parent, name)))
        )
        above |= {os.path.join(parent, name): (*outer, place) for name in folders}
        inside = "" if parent == folder else f"{os.path.relpath(parent, folder)}/"
        yield from (inside + name for name in names if not is_hidden(name))


def _refuse(error: OSError) -> None:
    raise error


def in_list(
    source: epath.Path, *, ask_buckets: bool = True
) -> Iterator[tuple[str, epath.Path | None]]:
    """Yields each line of a list of paths, with its file, or None where there is none.

    A path is relative to the list. A line that begins with # and is no file's is a comment.

    Args:
      source: the list.
      ask_buckets: whether files in buckets are looked for; if not, their addresses have None.

    Raises:
      UserError: the list is no text.
      OSError: the list can't be read.
    """
    try:
        lines = tables.text_of(source).replace("\r", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{source} isn't a list of paths in UTF-8 or UTF-16: {error}") from error
    for line in filter(None, map(str.strip, lines)):
        # Shells and spreadsheets put names with spaces into quotes.
        texts = (line, bare := line.strip("\"'"), bare.replace("\\", "/"))
        if not ask_buckets and bare.startswith(_BUCKETS):
            yield bare, None
            continue
        path = next(filter(_is_file, (_path(source, text) for text in texts)), None)
        if path is not None or not line.startswith("#"):
            yield line, path


def _path(source: epath.Path, text: str) -> epath.Path:
    return epath.Path(text) if text.startswith(_BUCKETS) else source.parent / text


def _is_file(path: epath.Path) -> bool:
    with contextlib.suppress(OSError, ValueError):  # names that no file can have
        return path.is_file()
    return False
