"""Where checkpoints may lie: what Orbax needs of a path, and of a checkpoint in a bucket."""

import glob
import json
import os

from etils import epath

from cavmae_sync_jax.utils import buckets, path_names
from cavmae_sync_jax.utils.errors import UserError

MARK = "commit_success.txt"  # Orbax's last object of a checkpoint in a bucket
METADATA = "_CHECKPOINT_METADATA"  # has the time of the commit, which is written just before it


def absolute(path: epath.PathLike) -> epath.Path:
    """An absolute path, as Orbax needs; a bucket's path, such as gs://…, already is one."""
    return epath.Path(path) if "://" in os.fspath(path) else epath.Path(path).resolve()


def to_write(path: epath.PathLike) -> epath.Path:
    """An absolute path at which checkpoints can be stored.

    Orbax looks for the parts of a checkpoint by patterns, so a path must not be one itself.

    Raises:
      UserError: if it is, or is not UTF-8.
    """
    place = absolute(path)
    path_names.check_text(place)
    if glob.has_magic(os.fspath(place)):
        raise UserError(
            f"checkpoints can't be stored in {place}, as there is one of [, * and ? in its path: "
            "rename that folder, or name another one"
        )
    return place


def refuse_unmarked(folder: epath.Path) -> None:
    """Orbax takes a checkpoint without its mark for an unfinished save, and removes it.

    Raises:
      UserError: in a bucket, if a checkpoint looks whole but lacks the mark.
    """
    if not buckets.in_bucket(folder) or not folder.is_dir():
        return
    for place in folder.iterdir():
        known = place.name.isdigit() and (place / METADATA).exists()
        if not known or (place / MARK).exists():
            continue
        if json.loads((place / METADATA).read_text()).get("commit_timestamp_nsecs"):
            raise UserError(
                f"{place} has no {MARK}, as after a copy that was not finished: copy it again, or, "
                f"if it is whole, run `echo whole | gcloud storage cp - {place}/{MARK}`"
            )
