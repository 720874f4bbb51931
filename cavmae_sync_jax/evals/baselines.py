"""Retrieval's scores without a trained model, to compare a model's scores with."""

import numpy as np
from jaxtyping import Float, Int

from cavmae_sync_jax.data import loader
from cavmae_sync_jax.evals.metrics import ranking
from cavmae_sync_jax.utils import console
from cavmae_sync_jax.utils.modalities import AUDIO, VISUAL

FITTED_CLIPS = 2000
RIDGE = 0.1  # added to the standardised features' variances of 1


def chance(clips: int) -> dict[str, dict[str, float]]:
    """The expected scores of a random order of `clips` targets."""
    expected = {f"R{k}": min(1.0, k / clips) for k in (1, 5, 10)}
    expected["median_rank"] = (clips + 1) / 2
    return {"audio_to_visual": expected, "visual_to_audio": dict(expected)}


def linear(
    train: loader.Records,
    held_out: loader.Records,
    pair_spec: loader.PairSpec,
    strategy: str = "diagonal_mean",
) -> dict[str, dict[str, float]]:
    """Canonical correlations between colour statistics and mean log-mel, fitted on `train`.

    At most `FITTED_CLIPS` clips are fitted, evenly chosen.
    If this scores well, colours and timbres alone give the answer away.
    """
    fitted = _statistics(train, pair_spec, sample=True)
    means = [values.mean(axis=(0, 1)) for values in fitted]
    flat = [(x - mean).reshape(-1, x.shape[-1]) for x, mean in zip(fitted, means, strict=True)]
    directions = canonical_directions(*flat)
    statistics = _statistics(held_out, pair_spec, sample=False)
    projected = [
        (x - mean) @ weights for x, mean, weights in zip(statistics, means, directions, strict=True)
    ]
    return ranking.retrieval(*projected, strategy=strategy)


def canonical_directions(
    x: Float[np.ndarray, "samples dim_x"], y: Float[np.ndarray, "samples dim_y"]
) -> tuple[Float[np.ndarray, "dim_x dim"], Float[np.ndarray, "dim_y dim"]]:
    """Ridge-regularised CCA of centred samples; directions are scaled by their correlation."""
    whiten_x, whiten_y = _whitening(x), _whitening(y)
    left, correlations, right = np.linalg.svd(
        whiten_x.T @ (x.T @ y / len(x)) @ whiten_y, full_matrices=False
    )
    return whiten_x @ left * correlations, whiten_y @ right.T * correlations


def _whitening(x: Float[np.ndarray, "samples dim"]) -> Float[np.ndarray, "dim dim"]:
    scale = np.maximum(x.std(axis=0), np.finfo(x.dtype).tiny)
    values, vectors = np.linalg.eigh((x / scale).T @ (x / scale) / len(x))
    return vectors / np.sqrt(values + RIDGE) @ vectors.T / scale[:, None]


def oracle(
    held_out: loader.Records, pair_spec: loader.PairSpec, strategy: str = "diagonal_mean"
) -> dict[str, dict[str, float]]:
    """Knows the true class that sounds in every frame (silence is a class), and nothing else.

    Raises:
      UserError: if the dataset holds no `frame_class`, as datasets of plain videos.
    """
    records = loader.Records(held_out.directory, held_out.split, ("frame_class",))
    classes = np.stack(list(records.column("frame_class")))
    chosen = np.array(pair_spec.frames) * classes.shape[1] // pair_spec.num_frames
    known = _one_hot(classes[:, chosen])
    return ranking.retrieval(known, known, strategy)


def _one_hot(classes: Int[np.ndarray, "clips frames"]) -> Float[np.ndarray, "clips frames dim"]:
    return np.eye(classes.max() + 2, dtype=np.float32)[classes]  # -1, silence, is the last row


def _statistics(
    records: loader.Records, pair_spec: loader.PairSpec, sample: bool
) -> list[Float[np.ndarray, "clips frames dim"]]:
    """Per frame: mean and spread of each log-mel bin; mean and spread of each colour in cells."""
    audio, visual = [], []
    chosen = np.unique(np.linspace(0, len(records) - 1, FITTED_CLIPS).astype(int))
    indices = chosen.tolist() if sample else list(range(len(records)))
    with console.progress("statistics", len(indices), "clip") as bar:
        for index in records.ahead(indices):
            pairs = records.pairs(index, pair_spec, pair_spec.frames)
            windows = np.stack([pair[AUDIO] for pair in pairs]).astype(np.float32)
            audio.append(_moments(windows, axis=1))
            image = np.stack([pair[VISUAL] for pair in pairs]).astype(np.float32)
            cells = [c for half in np.array_split(image, 2, 1) for c in np.array_split(half, 2, 2)]
            moments = [_moments(cell, axis=(1, 2)) for cell in (image, *cells)]
            visual.append(np.concatenate(moments, axis=-1))
            bar.update()
    return [np.stack(audio), np.stack(visual)]


def _moments(x: Float[np.ndarray, "frames *shape dim"], axis: int | tuple[int, int]) -> np.ndarray:
    return np.concatenate([x.mean(axis=axis), x.std(axis=axis)], axis=-1)
