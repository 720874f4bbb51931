"""What in an index is nearest to a sound, a picture or a video: exact search, in NumPy.

Sounds are compared with pictures, as the model was trained, and never with sounds. A video is
compared both ways, and the mean counts.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32

from cavmae_sync_jax.inference import similarity
from cavmae_sync_jax.inference.index import Index, Side
from cavmae_sync_jax.inference.model import Embedded
from cavmae_sync_jax.utils.errors import UserError
from cavmae_sync_jax.utils.modalities import AUDIO, OPPOSITE, VISUAL

OTHERS = 200  # clips that a similarity's percentile is taken among
_NAMES = {AUDIO: "sounds", VISUAL: "pictures"}


class Hit(NamedTuple):
    """A file or a moment of it, with its similarity to the query.

    `time` is the (best) moment in seconds. `percentile` says where a file's similarity lies among
    those of other clips' queries with the same file; None where the index has no others.
    """

    file: str
    kind: str
    time: float
    similarity: float
    percentile: float | None


class Found(NamedTuple):
    """The nearest files, and the nearest moments of all files; best first."""

    clips: list[Hit]
    moments: list[Hit]


def search(
    index: Index, query: Embedded, top: int, apart: float, among: Sequence[str] | None = None
) -> Found:
    """Finds the files and moments of an index that are nearest to a query.

    A file's similarity is `Model.similarity`'s. A moment's is the mean cosine of the query's pairs
    with the moment's.

    Args:
      index: where to look.
      query: what `embed_sound`, `embed_image` or `embed_video` returned.
      top: how many of each.
      apart: seconds that moments of one file are apart at least.
      among: the files to look at; None is all. Percentiles are taken among these.

    Raises:
      UserError: if the index holds nothing that the query could be compared with.
    """
    asked = [m for m in (AUDIO, VISUAL) if getattr(query, m) is not None]
    sides = {m: index.side(OPPOSITE[m], among) for m in asked}
    shared = set.intersection(*(set(side.files) for side in sides.values()))
    for modality, side in sides.items():
        if not side.files:
            raise UserError(
                f"{index.directory} holds no {_NAMES[OPPOSITE[modality]]}, which "
                f"{_NAMES[modality]} are compared with"
            )
    if not shared:
        raise UserError(f"{index.directory} holds no videos, which a video is compared with")
    sides = {m: only(side, shared) for m, side in sides.items()}
    scored = [scores(side, getattr(query, m)) for m, side in sides.items()]
    moments = np.mean([one[0] for one in scored], axis=0)
    clips = np.mean([one[1] for one in scored], axis=0)
    side = next(iter(sides.values()))
    best = np.argsort(-clips, kind="stable")[:top].tolist()
    others = _others(index, query, side.files)
    hits = []
    for place in best:
        rows = side.rows(place)
        moment = rows.start + int(np.argmax(moments[rows]))
        targets = {OPPOSITE[m]: one.vectors[one.rows(place)] for m, one in sides.items()}
        value = float(clips[place])
        theirs = [_match(o, targets) for name, o in others.items() if name != side.files[place]]
        among = similarity.percentile(value, np.array(theirs)) if theirs else None
        time = float(side.times[moment])
        hits.append(Hit(side.files[place], side.kinds[place], time, value, among))
    return Found(hits, _moments(side, moments, top, apart))


def scores(
    side: Side, query: Float32[np.ndarray, "pairs dim"]
) -> tuple[Float[np.ndarray, " rows"], Float[np.ndarray, " files"]]:
    """The similarities of a query with every moment, and with every file.

    The latter are `similarity.of_pair`'s "diagonal_mean", to float32's rounding.
    """
    moments = side.vectors @ query.mean(axis=0)
    counts, starts = np.diff(side.offsets), side.offsets[:-1]
    clips = np.add.reduceat(moments.astype(np.float64), starts) / counts
    equal = np.flatnonzero(counts == len(query))
    if len(equal) == len(counts):
        flat = side.vectors.reshape(len(counts), -1)
        clips = (flat @ query.ravel()).astype(np.float64) / len(query)
    elif len(equal):
        sums = [side.vectors[starts[equal] + k] @ row for k, row in enumerate(query)]
        clips[equal] = np.mean(sums, axis=0)
    return moments, clips


def only(side: Side, files: set[str]) -> Side:
    """The rows of some files, in the order of their names."""
    if set(side.files) == files and side.files == sorted(side.files):
        return side
    order = sorted(range(len(side.files)), key=side.files.__getitem__)
    order = [place for place in order if side.files[place] in files]
    rows = np.concatenate([np.arange(side.offsets[p], side.offsets[p + 1]) for p in order])
    return Side(
        [side.files[p] for p in order],
        [side.kinds[p] for p in order],
        np.cumsum([0, *np.diff(side.offsets)[order]], dtype=np.int64),
        side.times[rows],
        side.vectors[rows],
    )


def _others(
    index: Index, query: Embedded, files: Sequence[str]
) -> dict[str, dict[str, np.ndarray]]:
    """What other clips would have asked with: some files of the index, evenly chosen."""
    chosen = [files[i] for i in np.unique(np.linspace(0, len(files) - 1, OTHERS).astype(int))]
    asked = [m for m in (AUDIO, VISUAL) if getattr(query, m) is not None]
    sides = {m: index.side(m, chosen) for m in asked}
    shared = set.intersection(*(set(side.files) for side in sides.values()))
    return {
        name: {m: side.vectors[side.rows(side.files.index(name))] for m, side in sides.items()}
        for name in sorted(shared)
    }


def _match(query: dict[str, np.ndarray], targets: dict[str, np.ndarray]) -> float:
    pairs = [(vectors, targets[OPPOSITE[m]]) for m, vectors in query.items()]
    return float(np.mean([similarity.of_pair(a, b, "diagonal_mean") for a, b in pairs]))


def _moments(side: Side, moments: Float[np.ndarray, " rows"], top: int, apart: float) -> list[Hit]:
    """The best moments, of which those of one file are some seconds apart."""
    taken: list[Hit] = []
    for row in np.argsort(-moments, kind="stable"):
        place = int(np.searchsorted(side.offsets, row, side="right")) - 1
        file, time = side.files[place], float(side.times[row])
        if all(hit.file != file or abs(hit.time - time) >= apart for hit in taken):
            taken.append(Hit(file, side.kinds[place], time, float(moments[row]), None))
        if len(taken) == top:
            break
    return taken
