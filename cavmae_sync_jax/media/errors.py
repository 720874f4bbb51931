"""The error of a file that can't be used."""

from pathlib import Path


class MediaError(ValueError):
    """A file, or a span of it, that can't be used.

    `reason` is a key of `decoding.REASONS`; `detail` is a sentence that names the file.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return self.detail


def check_file(path: str | Path) -> None:
    """Refuses a path where no file is.

    Raises:
      MediaError: missing.
    """
    try:
        there = Path(path).is_file()
    except (OSError, ValueError) as error:  # a name that no file can have
        raise MediaError("missing", f"{path} can't be a file: {error}.") from error
    if not there:
        raise MediaError("missing", f"There is no {path}.")
