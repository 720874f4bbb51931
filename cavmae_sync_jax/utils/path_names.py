"""Names of files and folders that not every library can take."""

import os
import pathlib
from collections.abc import Iterator

from etils import epath

from cavmae_sync_jax.utils.buckets import in_bucket
from cavmae_sync_jax.utils.errors import UserError


def check_text(path: epath.PathLike) -> None:
    """Refuses a path that is no text, as Linux allows.

    Raises:
      UserError: it is not UTF-8.
    """
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError as error:
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")
        raise UserError(f"the name of {shown} is not UTF-8: rename it") from error


def matching(folder: epath.PathLike, pattern: str) -> Iterator[epath.Path]:
    """What matches a pattern below a folder, whose own path is none, though it may look like one.

    `epath` takes both together for a pattern.
    """
    if in_bucket(folder):
        return iter(epath.Path(folder).glob(pattern))
    return map(epath.Path, pathlib.Path(folder).glob(pattern))
