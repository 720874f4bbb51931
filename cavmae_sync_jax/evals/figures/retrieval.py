"""Retrieval's figure: some queries by sound with their best matches."""

import numpy as np
from etils import epath
from jaxtyping import Float, UInt8
from matplotlib import pyplot as plt

from cavmae_sync_jax.data import loader
from cavmae_sync_jax.evals.figures import save
from cavmae_sync_jax.evals.metrics import retrieval as retrieval_metrics
from cavmae_sync_jax.inference import similarity as similarity_of
from cavmae_sync_jax.inference.features import Arrays
from cavmae_sync_jax.media import audio as media_audio
from cavmae_sync_jax.utils.modalities import AUDIO, VISUAL

SEARCHED = 1024  # clips whose similarity to the drawn queries is computed at a time


def draw(
    records: loader.Records,
    pair_spec: loader.PairSpec,
    embedded: Arrays,
    path: epath.Path,
    queries: int = 6,
    matches: int = 5,
) -> None:
    """Draws evenly chosen queries by sound, with their own clip and the best matches by picture.

    A sound is the whole clip's log-mel, and a clip four of its frames in reading order. If only one
    frame is compared, they are its window and this frame. The true match has a green frame.
    """
    chosen = np.linspace(0, len(records) - 1, min(queries, len(records))).astype(int)
    sounds, pictures = embedded["audio"][chosen], embedded["visual"]
    starts = range(0, len(records), SEARCHED)
    blocks = [similarity_of.diagonal_mean(sounds, pictures[i : i + SEARCHED]) for i in starts]
    similarity = np.concatenate(blocks, axis=1)
    rank = retrieval_metrics.ranks(similarity, chosen)
    columns = 2 + min(matches, len(records))
    figure, axes = plt.subplots(
        len(chosen), columns, figsize=(1.9 * columns, 2.1 * len(chosen)), squeeze=False
    )
    for row, query, own_rank, scored in zip(axes, chosen, rank, similarity, strict=True):
        heard = _log_mel(records, pair_spec, int(query)).astype(np.float32)
        row[0].imshow(heard.T, origin="lower", aspect="auto", cmap="magma")
        row[0].set_title(f"query: sound of clip {query}", fontsize=8)
        row[1].imshow(_mosaic(records, pair_spec, int(query)))
        row[1].set_title(f"its frames (rank {own_rank:g})", fontsize=8)
        for place, target in enumerate(np.argsort(-scored)[: columns - 2], 1):
            axis = row[place + 1]
            axis.imshow(_mosaic(records, pair_spec, int(target)))
            axis.set_title(f"{place}. clip {target}: {scored[target]:.2f}", fontsize=8)
            if target == query:
                for spine in axis.spines.values():
                    spine.set(edgecolor="limegreen", linewidth=4)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    figure.tight_layout()
    save(figure, path)


def _log_mel(
    records: loader.Records, pair_spec: loader.PairSpec, clip: int
) -> Float[np.ndarray, "rows bins"]:
    if len(pair_spec.frames) == 1:
        (pair,) = records.pairs(clip, pair_spec, pair_spec.frames)
        return pair[AUDIO]
    return media_audio.dequantize(records[clip]["fbank"])


def _mosaic(
    records: loader.Records, pair_spec: loader.PairSpec, clip: int
) -> UInt8[np.ndarray, "height width 3"]:
    if len(pair_spec.frames) == 1:
        (pair,) = records.pairs(clip, pair_spec, pair_spec.frames)
        return pair[VISUAL]
    quarters = [pair_spec.frames[i * len(pair_spec.frames) // 4] for i in range(4)]
    frames = [pair[VISUAL] for pair in records.pairs(clip, pair_spec, quarters)]
    return np.concatenate([np.concatenate(frames[i : i + 2], axis=1) for i in (0, 2)])
