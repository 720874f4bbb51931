"""Compares approximate search with exact search: recall, seconds per search, seconds to build.

    python -m benchmarks.inference.nearest --clips=5000
    python -m benchmarks.inference.nearest --clips=100000 --queries=50

The index is made up: each clip belongs to a class and has a place of its own in it, and its moments
lie around that. Queries are other clips of these classes, with the same number of moments. Recall
is the share of the exact search's ten best clips that the approximate search finds. Where
usearch is installed, it looks through the same vectors as FAISS: the share of each query's 100
nearest vectors that they find.
"""

import functools
import json
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Float32

from benchmarks import timing
from cavmae_sync_jax.inference.index import approximate, nearest, store
from cavmae_sync_jax.inference.index.store import Index, Stat
from cavmae_sync_jax.inference.model import Embedded
from cavmae_sync_jax.inference.similarity import unit
from cavmae_sync_jax.utils import cli

CLASSES, MOMENTS = 300, 16
# How far a clip lies from its class's centre, and a moment from its clip, in the centre's length.
APART, AROUND = 0.8, 0.8
TOP, NEIGHBOURS = 10, 100


def embedded(rng: np.random.Generator, centres: np.ndarray, clips: int) -> Iterator[Embedded]:
    """Clips around the centres of random classes, for both modalities alike."""
    dim = centres.shape[1]
    times = np.arange(MOMENTS) * 0.625
    for number in rng.integers(0, len(centres), clips):
        sides = []
        for _ in range(2):
            place = centres[number] + APART * rng.standard_normal(dim) / np.sqrt(dim)
            around = rng.standard_normal((MOMENTS, dim), np.float32) * (AROUND / np.sqrt(dim))
            sides.append(unit(place + around).astype(np.float32))
        yield Embedded(times, sides[0], sides[1], np.zeros(MOMENTS, np.float32))


def synthetic_index(folder: pathlib.Path, clips: int, dim: int, centres: np.ndarray) -> Index:
    """An index of made-up clips."""
    (folder / "shards").mkdir(parents=True)
    about = {"format": store.FORMAT, "model": {"dim": dim}, "settings": {}}
    (folder / store.MANIFEST).write_text(json.dumps(about))
    found = Index(folder)
    writer = store.Writer(found)
    for number, parts in enumerate(embedded(np.random.default_rng(0), centres, clips)):
        writer.add(f"{number:07}.mp4", Stat(0, 0), "video", [parts])
    writer.flush()
    return found


def run(clips: int, queries: int, dim: int) -> None:
    """Prints the table."""
    centres = unit(np.random.default_rng(1).standard_normal((CLASSES, dim)))
    print(timing.machine("faiss-cpu", "numpy"))
    print(f"{clips} clips × {MOMENTS} moments × {dim}, {queries} queries by sound")
    with tempfile.TemporaryDirectory() as scratch:
        index = synthetic_index(pathlib.Path(scratch) / "index", clips, dim, centres)
        query_clips = embedded(np.random.default_rng(2), centres, queries)
        asked = [clip._replace(visual=None) for clip in query_clips]
        took, _ = timed(lambda: approximate.shortlist(index, asked[0], TOP))
        size = sum(f.stat().st_size for f in (index.directory / "approximate").iterdir())
        print(f"graphs built in {took:.0f} s, {size / 1e9:.2f} GB")
        hits, lengths, seconds = [], [], {"exact": [], "shortlist": [], "approximate": []}
        search = functools.partial(nearest.search, index)
        for query in asked:
            took, exact = timed(functools.partial(search, query, TOP, 1.0))
            seconds["exact"].append(took)
            took, names = timed(functools.partial(approximate.shortlist, index, query, TOP))
            seconds["shortlist"].append(took)
            rest, near = timed(functools.partial(search, query, TOP, 1.0, names))
            seconds["approximate"].append(took + rest)
            best = {hit.file for hit in exact.clips}
            hits.append(len(best & {hit.file for hit in near.clips}) / len(best))
            lengths.append(len(names))
        print(f"recall of the {TOP} best clips {np.mean(hits):.3f}, smallest {min(hits):.1f}")
        print(f"files on the shortlist {np.mean(lengths):.0f}")
        for name, values in seconds.items():
            print(f"{name:12} {timing.Spread.of(values).text(3)} s")
        vectors = index.vectors("visual").vectors
        compare_libraries(
            vectors, np.concatenate([unit(q.audio.mean(axis=0)[None]) for q in asked])
        )


def compare_libraries(vectors: Float32[np.ndarray, "rows dim"], asked: np.ndarray) -> None:
    """Prints recall and speed of FAISS and, if it is installed, of usearch on single vectors."""
    import faiss

    queries, dim = asked.astype(np.float32), vectors.shape[1]
    truth = np.argsort(-(queries @ vectors.T), axis=1)[:, :NEIGHBOURS]
    lists = max(1, int(4 * np.sqrt(len(vectors))))
    for name, key, value in (
        (approximate.KIND, "efSearch", approximate.EFFORT),
        (f"IVF{lists},SQfp16", "nprobe", lists // 20 + 1),
    ):
        library: Any = faiss.index_factory(dim, name, faiss.METRIC_INNER_PRODUCT)
        trained, _ = timed(functools.partial(library.train, vectors))
        added, _ = timed(functools.partial(library.add, vectors))
        faiss.ParameterSpace().set_index_parameter(library, key, value)
        search = functools.partial(faiss_labels, library)
        print_row(f"FAISS {name}", trained + added, truth, search, queries)
    try:
        import usearch.index
    except ImportError:
        print("usearch is not installed")
        return
    settings = {"connectivity": 24, "expansion_search": approximate.EFFORT}
    for kind in ("f16", "i8"):
        graph = usearch.index.Index(ndim=dim, metric="ip", dtype=kind, **settings)
        took, _ = timed(functools.partial(graph.add, np.arange(len(vectors)), vectors))
        print_row(f"usearch {kind}", took, truth, functools.partial(usearch_keys, graph), queries)


def usearch_keys(graph: Any, query: np.ndarray) -> Any:
    """What usearch finds."""
    return graph.search(query, NEIGHBOURS).keys


def faiss_labels(library: Any, query: np.ndarray) -> Any:
    """What faiss finds."""
    return library.search(query, NEIGHBOURS)[1]


def print_row(
    name: str, took: float, truth: np.ndarray, search: Callable[[Any], Any], queries: np.ndarray
) -> None:
    """Prints a library's row."""
    seconds, found = timed(lambda: [np.asarray(search(row[None])).ravel() for row in queries])
    shares = [len(set(a) & set(b)) / NEIGHBOURS for a, b in zip(found, truth, strict=True)]
    each = 1000 * seconds / len(queries)
    print(f"{name:22} built in {took:.0f} s, {each:.2f} ms per query, recall {np.mean(shares):.3f}")


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of a call, and what it returned."""
    began = time.perf_counter()
    result = call()
    return time.perf_counter() - began, result


def main() -> None:
    """Runs the command line."""
    arguments = cli.parser(__doc__)
    arguments.add_argument("--clips", type=int, default=5000, help="clips in the index")
    arguments.add_argument("--queries", type=int, default=50, help="clips that are searched with")
    arguments.add_argument("--dim", type=int, default=768, help="numbers per vector")
    cli.main(arguments, lambda args: run(args.clips, args.queries, args.dim))


if __name__ == "__main__":
    main()
