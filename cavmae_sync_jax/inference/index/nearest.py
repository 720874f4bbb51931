"""Exact search in an index for the files nearest to a sound, a picture or a video, in NumPy.

Sounds are compared with pictures, as the model was trained, and never with sounds. A video is
compared both ways, and the mean of both is used.
"""

import contextlib
import itertools
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32

from cavmae_sync_jax.inference import similarity
from cavmae_sync_jax.inference.index.store import Index
from cavmae_sync_jax.inference.index.vectors import ModalityVectors
from cavmae_sync_jax.inference.model import Embedded
from cavmae_sync_jax.utils.errors import UserError
from cavmae_sync_jax.utils.modalities import AUDIO, OPPOSITE, VISUAL

BLOCK = 2**17  # vectors that are compared at once; few, for threads wait for each other after each
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
    index: Index,
    query: Embedded,
    top: int,
    apart: float,
    among: Sequence[str] | None = None,
    own: str | None = None,
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
      own: the query's file, which is no other clip even if the index holds it by any name.

    Raises:
      UserError: if the index holds nothing that the query could be compared with.
    """
    asked = [m for m in (AUDIO, VISUAL) if getattr(query, m) is not None]
    # Without a choice of files, the next search finds the vectors in memory.
    read = index.vectors_in_memory if among is None else index.vectors
    sides = {m: read(OPPOSITE[m], among) for m in asked}
    for modality, side in sides.items():
        if not side.files:
            raise UserError(
                f"{index.directory} holds no {_NAMES[OPPOSITE[modality]]}, which "
                f"{_NAMES[modality]} are compared with"
            )
    side, moments, clips = _compared(sides, query)
    known = np.isfinite(clips)
    if not known.any():
        raise UserError(f"{index.directory} holds no videos, which a video is compared with")
    # Of the files that are found, only videos could have asked.
    facts = zip(side.files, side.kinds, known, strict=True)
    videos = [n for n, kind, there in facts if there and kind == "video" and n != own]
    chosen = [name for name in _chosen(videos) if own is None or not _is_same(name, own)]
    others = {m: read(m, chosen) for m in asked}
    places = {m: {name: i for i, name in enumerate(one.files)} for m, one in sides.items()}
    hits = []
    for place in np.argsort(-clips, kind="stable")[: min(top, known.sum())].tolist():
        file, rows = side.files[place], side.rows(place)
        best = rows.start + int(np.argmax(moments[rows]))
        targets = {m: one.vectors[one.rows(places[m][file])] for m, one in sides.items()}
        value, theirs = float(clips[place]), _of_others(others, targets, file)
        among_others = similarity.percentile(value, theirs) if len(theirs) else None
        hits.append(Hit(file, side.kinds[place], float(side.times[best]), value, among_others))
    return Found(hits, _moments(side, moments, top, apart))


def _compared(
    sides: dict[str, ModalityVectors], query: Embedded
) -> tuple[ModalityVectors, Float[np.ndarray, " rows"], Float[np.ndarray, " files"]]:
    """A side, and the similarities of its moments and files to the query, over all sides.

    They are -inf where another side lacks the file.
    """
    first, *rest = sides
    moments, clips = scores(sides[first], getattr(query, first))
    for m in rest:
        theirs = scores(sides[m], getattr(query, m))
        if sides[m].files != sides[first].files:
            theirs = _aligned(sides[m], *theirs, sides[first])
        moments, clips = moments + theirs[0], clips + theirs[1]
    return sides[first], moments / len(sides), clips / len(sides)


def _aligned(
    side: ModalityVectors,
    moments: Float[np.ndarray, " side_rows"],
    clips: Float[np.ndarray, " side_files"],
    like: ModalityVectors,
) -> tuple[Float[np.ndarray, " rows"], Float[np.ndarray, " files"]]:
    """Similarities in the order of another side; -inf for what this one lacks."""
    lookup = {name: place for place, name in enumerate(side.files)}
    found = np.full(len(like.times), -np.inf), np.full(len(like.files), -np.inf)
    for place, name in enumerate(like.files):
        if name in lookup:
            found[0][like.rows(place)] = moments[side.rows(lookup[name])]
            found[1][place] = clips[lookup[name]]
    return found


def scores(
    side: ModalityVectors, query: Float32[np.ndarray, "pairs dim"]
) -> tuple[Float[np.ndarray, " rows"], Float[np.ndarray, " files"]]:
    """The similarities of a query with every moment, and with every file.

    The latter are `similarity.of_pair`'s "diagonal_mean", to float32's rounding.
    """
    mean, flat = query.mean(axis=0), query.ravel()
    counts = np.diff(side.offsets)
    equal = counts == len(query)
    moments = np.empty(len(side.vectors), np.float32)
    exact = np.zeros(len(counts))
    # In blocks, for vectors of files with as many pairs as the query may have to be copied.
    edges = np.searchsorted(side.offsets, np.arange(0, len(moments), BLOCK))
    for first, last in itertools.pairwise([*np.unique(edges), len(counts)]):
        block = slice(int(side.offsets[first]), int(side.offsets[last]))
        vectors, same = side.vectors[block], equal[first:last]
        moments[block] = vectors @ mean
        if same.any():
            chosen = vectors if same.all() else vectors[np.repeat(same, counts[first:last])]
            exact[first:last][same] = chosen.reshape(-1, flat.size) @ flat
    means = np.add.reduceat(moments.astype(np.float64), side.offsets[:-1]) / counts
    return moments, np.where(equal, exact / len(query), means)


def _chosen(files: Sequence[str]) -> list[str]:
    """Files whose queries are compared with the found ones: some of all, evenly chosen."""
    if not files:
        return []
    return [files[i] for i in np.unique(np.linspace(0, len(files) - 1, OTHERS).astype(int))]


def _is_same(file: str, own: str) -> bool:
    """Whether two names are of one file, such as by way of a link."""
    with contextlib.suppress(OSError):  # one of them is gone
        return os.path.samefile(file, own)
    return False


def _of_others(
    others: dict[str, ModalityVectors], targets: dict[str, np.ndarray], file: str
) -> Float[np.ndarray, " others"]:
    """The similarities of a file's vectors with what other clips would have asked."""
    found = {}
    for m, side in others.items():
        matches = scores(side, targets[m])[1] if side.files else []
        found[m] = dict(zip(side.files, matches, strict=True))
    shared = set.intersection(*(set(matches) for matches in found.values())) - {file}
    return np.array([np.mean([one[name] for one in found.values()]) for name in sorted(shared)])


def _moments(
    side: ModalityVectors, moments: Float[np.ndarray, " rows"], top: int, apart: float
) -> list[Hit]:
    """The best moments, of which those of one file are some seconds apart."""
    count = 0
    while True:
        # Sorting all of a large index would take longer than comparing them.
        count = min(len(moments), max(64 * top, 8 * count))
        best = np.argpartition(-moments, count - 1)[:count]
        taken: list[Hit] = []
        for row in best[np.lexsort((best, -moments[best]))]:
            place = int(np.searchsorted(side.offsets, row, side="right")) - 1
            file, time = side.files[place], float(side.times[row])
            if moments[row] == -np.inf:
                return taken
            if all(hit.file != file or abs(hit.time - time) >= apart for hit in taken):
                taken.append(Hit(file, side.kinds[place], time, float(moments[row]), None))
            if len(taken) == top:
                return taken
        if count == len(moments):
            return taken
