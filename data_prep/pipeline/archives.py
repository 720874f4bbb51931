"""Media files in archives (.tar, .tar.gz, .zip), read one by one without unpacking the archive.

A member's path is that of its archive with its name behind it: `videos.tar/folder/a.mp4`. A member
is copied to a file of this machine while it is read. Its name never becomes a path.
"""

import contextlib
import functools
import os
import re
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from cavmae_sync_jax.media.demuxer import MediaError
from cavmae_sync_jax.utils.errors import UserError

EXTENSIONS = (".tar", ".tar.gz", ".tgz", ".zip")
_MEMBER = re.compile(r"(.+?\.(?:tar|tar\.gz|tgz|zip))/(.+)", re.IGNORECASE | re.DOTALL)
_COMPRESSED = (".gz", ".tgz")
# Bytes between the places of a .gz from which it can be read; each costs 32 KiB of memory.
_SPACING = 2**26
_BLOCK = 2**20  # bytes copied at once
_ENCRYPTED = 1  # among the flags of a zip's member
_OPEN = 64  # archives that a process keeps open
# What damaged archives raise.
_ERRORS = (
    *(OSError, EOFError, ValueError, RuntimeError, NotImplementedError, KeyError),
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error),
)


def is_archive(path: str) -> bool:
    """Returns whether a file is an archive by its name."""
    return path.lower().endswith(EXTENSIONS)


def split(path: str) -> tuple[str, str] | None:
    """Returns the archive and the member that a path names; None for any other path."""
    match = _MEMBER.fullmatch(path)
    if match is None or os.path.lexists(path) or not os.path.isfile(match[1]):
        return None
    return match[1], match[2]


def members(archive: str) -> list[str]:
    """Returns the names of an archive's regular files, each once.

    Raises:
      UserError: it is damaged, or its format needs an extra.
    """
    try:
        return list(_opened(archive, *_state(archive)).names)
    except UserError:
        raise
    except _ERRORS as error:
        raise UserError(
            f"the archive {archive} can't be read ({_why(error)}): get it again, or move it away"
        ) from error


@contextlib.contextmanager
def extracted(archive: str, member: str) -> Iterator[str]:
    """Gives a member as a file of this machine, for as long as the context lasts.

    Raises:
      MediaError: missing or unreadable.
    """
    path = f"{archive}/{member}"
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / f"member{PurePosixPath(member).suffix}"
        try:
            opened = _opened(archive, *_state(archive))
            if opened.size(member) > shutil.disk_usage(folder).free:
                raise MediaError("unreadable", f"{path} is larger than the room in {folder}.")
            with opened.open(member) as source, copy.open("wb") as file:
                shutil.copyfileobj(source, file, _BLOCK)
        except (MediaError, UserError):
            raise
        except KeyError as error:
            raise MediaError("missing", f"There is no {path}.") from error
        except _ERRORS as error:
            raise MediaError("unreadable", f"{path} can't be read: {_why(error)}.") from error
        yield str(copy)


class _Tar:
    """An open tar; `names` has its regular files."""

    def __init__(self, file: Any):  # indexed_gzip's files are of no type that typing knows
        self._archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115
        found = (member for member in self._archive if member.isreg())
        self.names = {_normal(member.name): member for member in found}

    def size(self, name: str) -> int:
        """The bytes of a file, unpacked."""
        return self.names[name].size

    def open(self, name: str) -> IO[bytes]:
        """A stream of a file's bytes."""
        return self._archive.extractfile(self.names[name])


class _Zip:
    """An open zip; `names` has its regular files."""

    def __init__(self, file: IO[bytes]):
        self._archive = zipfile.ZipFile(file)
        found = (info for info in self._archive.infolist() if not info.is_dir())
        self.names = {_normal(info.filename): info for info in found}

    def size(self, name: str) -> int:
        """The bytes of a file, unpacked."""
        return self.names[name].file_size

    def open(self, name: str) -> IO[bytes]:
        """A stream of a file's bytes; ValueError if it is encrypted."""
        if self.names[name].flag_bits & _ENCRYPTED:
            raise ValueError("it is encrypted: unpack the archive with its password")
        return self._archive.open(self.names[name])


def _normal(name: str) -> str:
    """Returns a name as a path has it: without "./" and double slashes."""
    return str(PurePosixPath(name))


def _state(archive: str) -> tuple[int, int]:
    state = os.stat(archive)
    return state.st_mtime_ns, state.st_size


@functools.lru_cache(maxsize=_OPEN)
def _opened(archive: str, changed: int, size: int) -> _Tar | _Zip:
    """Opens an archive; the other arguments make that of a changed file anew."""
    if archive.lower().endswith(".zip"):
        return _Zip(open(archive, "rb"))
    if not archive.lower().endswith(_COMPRESSED):
        return _Tar(open(archive, "rb"))
    try:
        import indexed_gzip  # an extra
    except ImportError as error:
        raise UserError(
            f"{archive} needs pip install '.[archives]' ({error}), or unpack it"
        ) from error
    return _Tar(indexed_gzip.IndexedGzipFile(archive, spacing=_SPACING))


def _why(error: BaseException) -> str:
    return str(error).rstrip(".") or type(error).__name__
