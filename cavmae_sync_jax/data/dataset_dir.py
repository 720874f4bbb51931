"""Where a prepared dataset lies, and the statistics that `--compute_stats` stores with it."""

import json
import os
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float, Num

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
      UserError: if there is none, or more than one.
    """
    directory = os.fspath(directory)
    if not directory or not epath.Path(directory).is_dir():
        raise UserError(f"no dataset folder {directory!r}: give what data_prep had as --output")
    directory = epath.Path(directory)
    found = [p.parent for depth in ("", "*/", "*/*/") for p in directory.glob(depth + _MARKER)]
    if len(found) != 1:
        names = ", ".join(sorted(map(str, found)))
        raise UserError(
            f"{directory} must hold one prepared dataset, but it holds "
            + (
                f"{len(found)}: give one of {names}"
                if found
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
