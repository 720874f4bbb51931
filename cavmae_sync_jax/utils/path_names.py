"""Names of files and folders that not every library can take."""

import os

from etils import epath

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
