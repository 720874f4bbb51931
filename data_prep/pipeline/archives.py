"""Media files in archives (.tar, .tar.gz, .zip), read one by one without unpacking the archive.

A member's path is that of its archive and its name: `videos.tar/folder/a.mp4`. While a member is
read, it is copied to a local file. Its name never becomes a path.
"""

import collections
import contextlib
import errno
import functools
import os
import posixpath
import re
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any

from cavmae_sync_jax.media.demuxer import MediaError
from cavmae_sync_jax.utils import cli
from cavmae_sync_jax.utils.errors import UserError

EXTENSIONS = (".tar", ".tar.gz", ".tgz", ".zip")
# Where the name of an archive may end, or that of a folder that is called like one.
_END = re.compile(r"\.(?:tar|tar\.gz|tgz|zip)/", re.IGNORECASE)
# What archives begin with, whatever they are called.
_MARKS = {
    **{"gz": b"\x1f\x8b", "zip": b"PK", "xz": b"\xfd7zXZ", "bzip2": b"BZh"},
    **{"zstd": b"\x28\xb5\x2f\xfd", "rar": b"Rar!", "7z": b"7z\xbc\xaf"},
}
_IN_TAR, _HEAD = b"ustar", 512
# Bytes between the places of a .gz from which it can be read; each costs 32 KiB of memory.
_SPACING = 2**26
_BLOCK = 2**20  # bytes copied at once
_ENCRYPTED = 1  # among the flags of a zip's member
_LINKS = 40  # that lead from one to the next, as in Linux
_OPEN = 64  # archives that a process keeps open
# What damaged archives raise.
_ERRORS = (
    *(OSError, EOFError, ValueError, RuntimeError, NotImplementedError, KeyError),
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error),
)

_folder: str | None = None  # of this process's copies, if its parent removes it


def is_archive(path: str) -> bool:
    """Returns whether a file is an archive by its name."""
    return path.lower().endswith(EXTENSIONS)


def split(path: str) -> tuple[str, str] | None:
    """Returns the archive and the member that a path names; None for any other path."""
    ends = [match.end() for match in _END.finditer(path)]
    if not ends or os.path.lexists(path):
        return None
    both = ((path[: end - 1], path[end:]) for end in ends)
    return next(((archive, name) for archive, name in both if os.path.isfile(archive)), None)


def members(archive: str) -> dict[str, str]:
    """Returns the names of an archive's files and links, each with that of the file it leads to.

    A file leads to itself, and so does a link to nothing in the archive.

    Raises:
      UserError: it is damaged, or its format needs an extra.
    """
    try:
        return _opened(archive, *_state(archive)).places
    except UserError:
        raise
    except _ERRORS as error:
        raise UserError(
            f"the archive {archive} can't be read ({_why(error)}): get it again, or move it away"
        ) from error


def replaced(archive: str) -> int:
    """Returns how many of an archive's files a later one of the same name replaces.

    Raises:
      UserError: as `members`.
    """
    members(archive)
    return _opened(archive, *_state(archive)).replaced


@contextlib.contextmanager
def extracted(archive: str, member: str) -> Iterator[str]:
    """Copies a member to a local file that exists as long as the context lasts.

    Raises:
      MediaError: missing or unreadable.
      UserError: the disk for copies is full.
    """
    path = f"{archive}/{member}"
    with temporary_folder() as folder:
        copy = Path(folder) / f"member{PurePosixPath(member).suffix}"
        try:
            opened = _opened(archive, *_state(archive))
            if opened.size(member) > shutil.disk_usage(folder).free:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            with opened.open(member) as source, copy.open("wb") as file:
                shutil.copyfileobj(source, file, _BLOCK)
        except (MediaError, UserError):
            raise
        except KeyError as error:
            raise MediaError("missing", f"There is no {path}.") from error
        except _ERRORS as error:
            if isinstance(error, OSError) and error.errno in cli.FULL:
                raise no_room(path) from error
            raise MediaError("unreadable", f"{path} can't be read: {_why(error)}.") from error
        yield str(copy)


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """Returns a new folder that is removed when its context ends, or when this process's is."""
    return tempfile.TemporaryDirectory(dir=_folder, ignore_cleanup_errors=True)


def leave_copies(shared: str) -> None:
    """Makes all temporary folders of this process lie in one that its parent removes.

    A worker that crashes or is too slow can't remove its own. What processes that are gone have
    left there is removed, for the next one may need the room.
    """
    global _folder
    for left in os.listdir(shared):
        if _is_gone(left):
            shutil.rmtree(Path(shared, left), ignore_errors=True)
    _folder = str(Path(shared, str(os.getpid())))
    Path(_folder).mkdir(exist_ok=True)


def _is_gone(process: str) -> bool:
    """Whether a process has ended, although nobody may have asked for its status yet."""
    try:
        state = Path("/proc", process, "stat").read_text(errors="replace").rpartition(")")[2]
    except OSError:
        return True
    return state.split()[0] in "ZX"


def no_room(path: str) -> UserError:
    """Returns what says that a file does not fit into the folder for copies."""
    return UserError(
        f"{path} finds no room in {tempfile.gettempdir()}: make room there, name a folder on a "
        "larger disk by the variable TMPDIR, or take fewer --workers, and start again"
    )


def size(path: str) -> int:
    """Returns the bytes of a file, which may lie in an archive.

    Raises:
      OSError: it is not there, or can't be read.
    """
    member = split(path)
    if member is None:
        return os.stat(path).st_size
    try:
        return _opened(member[0], *_state(member[0])).size(member[1])
    except KeyError as error:
        raise FileNotFoundError(path) from error


class _Tar:
    """An open tar; `names` has its regular files, and the links to them."""

    def __init__(self, file: Any):  # indexed_gzip's files are of no type that typing knows
        self._archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115
        listed = list(self._archive)
        everything = {_normal(member.name): member for member in listed}
        files = collections.Counter(_normal(one.name) for one in listed if not one.isdir())
        self.replaced = files.total() - len(files)
        # A link outside stays a name without a file, as in a folder.
        self.names = {
            name: _linked(member, everything)
            for name, member in everything.items()
            if member.isreg() or member.islnk() or member.issym()
        }
        self.places = {
            name: name if file is None or everything[name].islnk() else _normal(file.name)
            for name, file in self.names.items()
        }

    def size(self, name: str) -> int:
        """The bytes of a file, unpacked; KeyError if it is a link to none."""
        return _there(self.names[name]).size

    def open(self, name: str) -> Any:
        """A stream of a file's bytes, whose class is none that typing knows."""
        return self._archive.extractfile(_there(self.names[name]))


class _Zip:
    """An open zip; `names` has its regular files."""

    def __init__(self, file: IO[bytes]):
        self._archive = zipfile.ZipFile(file)
        found = [info for info in self._archive.infolist() if not info.is_dir()]
        self.names = {_normal(info.filename): info for info in found}
        self.replaced = len(found) - len(self.names)
        self.places = {name: name for name in self.names}

    def size(self, name: str) -> int:
        """The bytes of a file, unpacked."""
        return self.names[name].file_size

    def open(self, name: str) -> IO[bytes]:
        """A stream of a file's bytes; ValueError if it is encrypted."""
        if self.names[name].flag_bits & _ENCRYPTED:
            raise ValueError("it is encrypted: unpack the archive with its password")
        return self._archive.open(self.names[name])


def _linked(
    member: tarfile.TarInfo, everything: Mapping[str, tarfile.TarInfo]
) -> tarfile.TarInfo | None:
    """Returns the regular file of an archive that a member is or leads to, None for another."""
    for _ in range(_LINKS):
        if member.isreg():
            return member
        if not (member.islnk() or member.issym()):
            return None
        # Hard links have names from the top, symbolic ones from their own folder.
        folder = "" if member.islnk() else posixpath.dirname(member.name)
        target = posixpath.normpath(posixpath.join(folder, member.linkname))
        if (found := everything.get(target)) is None:
            return None
        member = found
    return None


def _there(member: tarfile.TarInfo | None) -> tarfile.TarInfo:
    if member is None:
        raise KeyError("a link to no file of the archive")
    return member


def _normal(name: str) -> str:
    """Returns a name as a path has it: without "./" and double slashes."""
    return str(PurePosixPath(name))


def _state(archive: str) -> tuple[int, int]:
    state = os.stat(archive)
    return state.st_mtime_ns, state.st_size


@functools.lru_cache(maxsize=_OPEN)
def _opened(archive: str, changed: int, size: int) -> _Tar | _Zip:
    """Opens an archive; the other arguments reopen a file that has changed.

    What it is, its content says: browsers unpack a .gz, and keep its name.
    """
    with open(archive, "rb") as file:
        head = file.read(_HEAD)
    for kind, mark in _MARKS.items():
        if head.startswith(mark) and kind not in ("gz", "zip"):
            raise UserError(f"the archive {archive} is packed by {kind}: unpack it")
    if head.startswith(_MARKS["zip"]):
        return _Zip(open(archive, "rb"))
    if not head.startswith(_MARKS["gz"]):
        is_tar = _IN_TAR in head or not archive.lower().endswith(".zip")
        return (_Tar if is_tar else _Zip)(open(archive, "rb"))
    try:
        import indexed_gzip  # an extra
    except ImportError as error:
        raise UserError(
            f"{archive} needs pip install '.[archives]' ({error}), or unpack it"
        ) from error
    return _Tar(indexed_gzip.IndexedGzipFile(archive, spacing=_SPACING))


def _why(error: BaseException) -> str:
    return str(error).rstrip(".") or type(error).__name__
