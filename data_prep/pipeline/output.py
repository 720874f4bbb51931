"""Where a dataset is prepared and published: by one process at a time, whole or not at all.

In a folder the finished dataset is moved to its place in one step. In a bucket nothing can be
moved. There the files are copied, and `dataset_info.json` last, because it makes them a dataset.
"""

import contextlib
import json
from collections.abc import Iterator

from etils import epath

from cavmae_sync_jax.utils import locks, path_names
from cavmae_sync_jax.utils.buckets import in_bucket
from cavmae_sync_jax.utils.errors import UserError

INCOMPLETE, OLD = ".incomplete", "replaced"
_LOCK, _MARK = ".preparing", "dataset_info.json"


@contextlib.contextmanager
def workplace(output: epath.Path, fingerprint: str) -> Iterator[epath.Path]:
    """Gives `OUTPUT/.incomplete`, emptied where it is of another preparation, to one process.

    Raises:
      UserError: another process has it, or it can't be written to.
    """
    work = output / INCOMPLETE
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output={output} can't be written to: {error.strerror}") from error
    with _locked(output, work):
        plan = work / "plan.json"
        if plan.exists() and json.loads(plan.read_text() or "null") != fingerprint:
            print(f"{work} is of other clips or settings, so preparation starts again.")
            (work / "shards").rmtree(missing_ok=True)
        plan.write_text(json.dumps(fingerprint))
        yield work


@contextlib.contextmanager
def _locked(output: epath.Path, work: epath.Path) -> Iterator[None]:
    """Holds the lock of a preparation, which in a bucket lies beside the folder that is removed."""
    place = output / _LOCK if in_bucket(output) else work / "lock"
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locks.held(place))
        except locks.Busy as busy:
            if busy.host is None:
                raise UserError(f"another process is preparing {output} at this time") from busy
            raise UserError(
                f"a process is preparing {output} (on {busy.host}), or was killed less than "
                f"{locks.STALE / 60:.0f} minutes ago: wait, or delete {place} if it was"
            ) from busy
        except OSError as error:
            raise UserError(f"--output={output} can't be written to: {error.strerror}") from error
        yield


def publish(new: epath.Path, final: epath.Path, old: epath.Path | None, work: epath.Path) -> None:
    """Puts a finished dataset to its place.

    Args:
      new: the dataset's folder, with a folder of its version.
      final: its place.
      old: what is there and replaced, if anything.
      work: of `workplace`.
    """
    if not in_bucket(final):
        if old:
            (work / OLD).rmtree(missing_ok=True)
            (work / OLD).mkdir()
            old.rename(work / OLD / final.name)
        new.rename(final)
        return
    for version in new.iterdir():
        place = final / version.name
        (place / _MARK).unlink(missing_ok=True)  # what is there is no dataset any more
        names = [path.name for path in version.iterdir()]
        if place.exists():
            for path in place.iterdir():
                if path.name not in names:
                    path.unlink()
        place.mkdir(parents=True, exist_ok=True)
        for name in sorted(names, key=lambda name: name == _MARK):
            (version / name).copy(place / name, overwrite=True)


def check_output(output: epath.PathLike, source: str, overwrite: bool) -> epath.Path | None:
    """Returns the dataset `OUTPUT/SOURCE` that is to be replaced, None if there is none.

    Raises:
      UserError: there is one and `overwrite` is not set; something else is in the way; there is
        another dataset, which would make OUTPUT ambiguous and is not ours to delete.
    """
    output = epath.Path(output)
    if output.exists() and not output.is_dir():
        raise UserError(f"--output={output} is a file; give a folder")
    stranded = output / INCOMPLETE / OLD / source
    if stranded.exists() and not (output / source).exists():  # a replacement was interrupted
        stranded.rename(output / source)
    found = {path.parent.parent for path in path_names.matching(output, f"*/*/{_MARK}")}
    own = output / source
    others = sorted(str(path) for path in found - {own})
    if others:
        raise UserError(f"{others[0]} is another dataset; give another --output")
    if own in found and not overwrite:
        raise UserError(f"{own} is a dataset already; replace it with --overwrite")
    # In a bucket, a publication that was interrupted leaves a part.
    unfinished = in_bucket(output) and (output / INCOMPLETE / source).exists()
    if own.exists() and own not in found and not unfinished:
        raise UserError(f"{own} is in the way; give another --output")
    return own if own in found else None
