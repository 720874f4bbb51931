"""Statistics of a dataset's training clips: of the log-mel, for its normalisation, and of classes.

They lie beside the records; a training with `--config.data.own_statistics=True` normalises with
them.
"""

import json
import math
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from tqdm import tqdm

from cavmae_sync_jax.data.dataset_dir import STATISTICS, class_weights
from cavmae_sync_jax.media import audio
from cavmae_sync_jax.utils.errors import UserError

SPLIT = "train"


def compute(directory: epath.PathLike) -> dict[str, Any]:
    """Reads the split train of a dataset once, clip by clip.

    Returns:
      `clips`, `rows`; `fbank_mean` and `fbank_std` of the log-mel over all stored rows and bins
      (no padding); `class_counts`, the clips of each class name; `class_weights`, what each class
      adds to its clips' weight in balanced sampling.

    Raises:
      UserError: a record is damaged.
    """
    builder = tfds.builder_from_directory(str(directory))
    names = builder.info.metadata["class_names"]
    counts = np.zeros(len(names), np.int64)
    clips = rows = values = 0
    total = squares = 0.0
    source = builder.as_data_source(split=SPLIT)
    for index in tqdm(range(len(source)), unit="clip", desc="computing statistics"):
        try:
            record = source[index]
        except Exception as error:  # ArrayRecord, protobuf and TFDS have each their own
            raise UserError(
                f"{directory}, split {SPLIT}, record {index} is damaged ({error}): "
                "prepare the dataset again"
            ) from error
        fbank = audio.dequantize(record["fbank"]).astype(np.float64)
        clips, rows, values = clips + 1, rows + len(fbank), values + fbank.size
        total += fbank.sum()
        squares += np.square(fbank).sum()
        counts[np.unique(np.asarray(record["labels"], np.int64))] += 1
    mean = float(total / values)
    weights = class_weights(counts)
    return {
        "split": SPLIT,
        "clips": clips,
        "rows": rows,
        "fbank_mean": mean,
        "fbank_std": math.sqrt(max(0.0, float(squares / values) - mean**2)),
        "class_counts": dict(zip(names, counts.tolist(), strict=True)),
        "class_weights": dict(zip(names, weights.tolist(), strict=True)),
    }


def store(directory: epath.PathLike, statistics: dict[str, Any]) -> None:
    """Puts statistics beside the records that they are of."""
    path = epath.Path(directory) / STATISTICS
    path.write_text(json.dumps(statistics, indent=2, ensure_ascii=False) + "\n")
