"""Published lists of clips, and a split's records that are on one.

An id of a list must equal a dataset's `clip_id`, which `data_prep` makes from the file's name.
"""

import collections
import hashlib
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from etils import epath

from cavmae_sync_jax.data import loader
from cavmae_sync_jax.utils import console
from cavmae_sync_jax.utils.errors import UserError

NAMED = 3  # of the clips that are missing


def read(path: epath.PathLike) -> list[str]:
    """The clip ids of a published list: CAV-MAE's JSON, or text with an id a line.

    Raises:
      UserError: if it can't be read, is neither, names no clip or one of them twice.
    """
    path = epath.Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"the list of clips {path} can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"the list of clips {path} is neither JSON nor text in UTF-8") from error
    if path.suffix == ".json" or text.lstrip().startswith("{"):
        try:
            whole = json.loads(text)
        except ValueError as error:
            raise UserError(f"the list of clips {path} is no JSON: {error}") from error
        entries = whole.get("data") if isinstance(whole, dict) else None
        if not isinstance(entries, list):
            raise UserError(
                f'the list of clips {path} must be {{"data": [{{"video_id": "…"}}, …]}}'
            )
        ids = [_id_of(entry, number, path) for number, entry in enumerate(entries, 1)]
    else:
        ids = [line.strip() for line in text.splitlines() if line.strip()]
    if not ids:
        raise UserError(f"the list of clips {path} names no clip")
    often, count = collections.Counter(ids).most_common(1)[0]
    if count > 1:
        raise UserError(f"the list of clips {path} names {often!r} {count} times")
    return ids


def _id_of(entry: Any, number: int, path: epath.Path) -> str:
    if isinstance(entry, dict):
        if "video_id" in entry:
            names = [entry["video_id"]]
        else:
            paths = (entry.get(key) for key in ("wav", "video_path"))
            # A video_path that ends with a slash is the folder of all clips.
            files = (p for p in paths if isinstance(p, str) and not p.endswith("/"))
            names = [pathlib.PurePosixPath(file).stem for file in files]
        if names and isinstance(names[0], str) and names[0]:
            return names[0]
    raise UserError(f"the list of clips {path}, entry {number}, has no video_id")


class Selected(loader.Records):
    """Some of a split's records, by their indices."""

    def __init__(self, records: loader.Records, indices: Sequence[int]):
        self.directory, self.split = records.directory, records.split
        self.features, self.longest_rows = records.features, records.longest_rows
        digest = hashlib.sha256(repr(list(indices)).encode()).hexdigest()[:16]
        self.identity = f"{records.identity}; {len(indices)} of them chosen ({digest})"
        self._records, self._indices = records, list(indices)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._records[self._indices[index]]

    def pairs(
        self, index: int, pair_spec: loader.PairSpec, frames: Iterable[int]
    ) -> list[loader.Batch]:
        """Some of a clip's frames with their windows, see `dataset.PairSpec.pair`."""
        return self._records.pairs(self._indices[index], pair_spec, frames)


def select(records: loader.Records, wanted: Sequence[str], name: str) -> tuple[Selected, list[str]]:
    """The records whose ids are wanted, in the split's order, and the ids that it lacks.

    Args:
      records: the whole split.
      wanted: clip ids, each once.
      name: of the list, for messages.

    Raises:
      UserError: if there is none of them.
    """
    where, ids = f"{records.directory}, split {records.split}", []
    with console.progress("clip ids", len(records), "clip") as bar:
        for index in range(len(records)):
            ids += records.ids([index])
            bar.update()
    have = {clip: index for index, clip in enumerate(ids)}
    indices = sorted(have[clip] for clip in wanted if clip in have)
    if not indices:
        raise UserError(
            f"{where} has none of the {len(wanted)} clips of {name}: the list begins with "
            f"{wanted[0]!r}, the dataset with {ids[0]!r}"
        )
    missing = [clip for clip in wanted if clip not in have]
    if missing:
        first = ", ".join(missing[:NAMED]) + (", …" if len(missing) > NAMED else "")
        console.log(
            f"{len(missing)} of the {len(wanted)} clips of {name} are not in {where} ({first}); "
            f"the scores are of the other {len(indices)}"
        )
    return Selected(records, indices), missing
