"""Where a prepared dataset lies, and what is stored beside its records: statistics, an index."""

import contextlib
import io
import itertools
import json
import os
import zipfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float, Int, Num

from cavmae_sync_jax.utils import path_names
from cavmae_sync_jax.utils.errors import UserError

BUCKET = "gs://"  # how the name of a dataset in one begins
STATISTICS = "statistics.json"
# The only class of a dataset that marks what sounds without naming it.
SOUNDING = "sounding object"
# How a label may be perceived: heard, seen, or both.
MODALITIES = ("A", "V", "AV")
_MARKER = "dataset_info.json"
_RARITY_OFFSET = 0.01


def find(directory: epath.PathLike) -> epath.Path:
    """Returns the version folder of the one dataset at or below `directory` (NAME/VERSION).

    Raises:
      UserError: if there is none, or more than one, or its name is not UTF-8.
    """
    directory = os.fspath(directory)
    if not directory or not epath.Path(directory).is_dir():
        raise UserError(
            f"no dataset folder {directory!r}: give the --output of a data_prep program"
        )
    path_names.check_text(directory)
    directory = epath.Path(directory)
    found = [
        p.parent
        for depth in ("", "*/", "*/*/")
        for p in path_names.matching(directory, depth + _MARKER)
    ]
    if len(found) != 1:
        # A parent of trainings and data may hold some further below, which are only named.
        deeper = (path.parent for path in path_names.matching(directory, f"*/*/*/{_MARKER}"))
        # A killed preparation leaves its parts in hidden folders.
        below = found or [p for p in deeper if not any(n.startswith(".") for n in p.parts[-3:])]
        names = ", ".join(sorted(map(str, below)))
        what = f"{len(found)}: give" if found else "it further below: give"
        raise UserError(
            f"{directory} must hold one prepared dataset, but it holds "
            + (
                f"{what} one of {names}"
                if below
                else f"none: python -m data_prep.videos {directory} --output=DATASET makes one of "
                "the videos in a folder"
            )
        )
    return found[0]


def class_weights(counts: Num[np.ndarray, " classes"]) -> Float[np.ndarray, " classes"]:
    """Returns what a class of `counts` clips adds to each one's weight in balanced sampling.

    1000 / (count + 0.01), as in CAV-MAE's data preparation.
    """
    return 1000 / (counts + _RARITY_OFFSET)


def read_statistics(directory: epath.PathLike) -> dict[str, Any]:
    """Returns the statistics of a dataset; `data_prep.pipeline.stats.compute` lists their keys.

    Raises:
      UserError: there are none, or none that can be read.
    """
    path = epath.Path(directory) / STATISTICS
    mend = f"python -m data_prep.inspect_dataset {directory} --compute_stats makes it"
    try:
        statistics = json.loads(path.read_text())
        usable = statistics["fbank_std"] > 0
    except FileNotFoundError as error:
        raise UserError(f"{path} is not there: {mend}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} can't be read ({error}): {mend}") from error
    if not usable:
        raise UserError(f"{path} has no deviation above 0: {mend}")
    return statistics


class ClipIndex(NamedTuple):
    """What is known of a split's clips without their records, in the records' order.

    Attributes:
      ids: the clips' ids.
      labels: the indices of each clip's classes.
    """

    ids: list[str]
    labels: list[Int[np.ndarray, " labels"]]


def write_index(
    directory: epath.PathLike, split: str, ids: Sequence[str], labels: Sequence[Sequence[int]]
) -> None:
    """Stores the index of a split beside its records.

    Args:
      directory: the dataset's version folder.
      split: its name.
      ids: of all clips, in the records' order.
      labels: the indices of each clip's classes.
    """
    names = [clip_id.encode("utf-8", "surrogateescape") for clip_id in ids]
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        ids=np.frombuffer(b"".join(names), np.uint8),
        id_ends=np.cumsum([len(name) for name in names], dtype=np.int64),
        labels=np.fromiter(itertools.chain.from_iterable(labels), np.int32),
        label_ends=np.cumsum([len(row) for row in labels], dtype=np.int64),
    )
    index_path(directory, split).write_bytes(buffer.getvalue())


def read_index(directory: epath.PathLike, split: str, clips: int) -> ClipIndex | None:
    """Returns what `write_index` has stored of a split with so many clips.

    None means that there is none, as in datasets of version 0.1.0, or that it is of other records.
    """
    damaged = (OSError, ValueError, KeyError, zipfile.BadZipFile)
    with contextlib.suppress(*damaged), index_path(directory, split).open("rb") as file:
        with np.load(io.BytesIO(file.read()), allow_pickle=False) as stored:
            names, labels = stored["ids"].tobytes(), stored["labels"]
            ends = [stored[name].tolist() for name in ("id_ends", "label_ends")]
        if [len(some) for some in ends] == [clips, clips]:
            spans = [list(zip([0, *some], some, strict=False)) for some in ends]
            return ClipIndex(
                [names[a:b].decode("utf-8", "surrogateescape") for a, b in spans[0]],
                [labels[a:b] for a, b in spans[1]],
            )
    return None


def index_path(directory: epath.PathLike, split: str) -> epath.Path:
    """Where `write_index` stores the index of a split."""
    return epath.Path(directory) / f"clips-{split}.npz"
