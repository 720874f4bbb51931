"""Measures exact search in a large index: seconds per query once it is loaded, and memory.

    python -m benchmarks.inference.exact_search --clips=100000 --index=runs/large_index

The index is made up of random unit vectors, and written if it is not there. Its first search reads
the vectors; the others find them in memory. Plain NumPy takes turns with them: one product of all
moments with the query's mean, one of all clips with the whole query, and no more.
"""

import pathlib
import resource

import numpy as np

from benchmarks import timing
from benchmarks.inference import nearest as made_up
from cavmae_sync_jax.inference.index import nearest
from cavmae_sync_jax.inference.index.store import Index
from cavmae_sync_jax.inference.similarity import unit
from cavmae_sync_jax.utils import cli

TOP, APART = 10, 4.0
WARMUPS = 1


def run(clips: int, dim: int, repeats: int, folder: pathlib.Path) -> None:
    """Prints the table."""
    print(timing.machine("numpy", "pyarrow"))
    rng = np.random.default_rng(0)
    if not folder.exists():
        centres = unit(rng.standard_normal((made_up.CLASSES, dim)))
        took, _ = made_up.timed(lambda: made_up.synthetic_index(folder, clips, dim, centres))
        print(f"written in {took:.0f} s")
    index = Index(folder)
    vectors = unit(rng.standard_normal((2, made_up.MOMENTS, dim))).astype(np.float32)
    times, padded = np.arange(made_up.MOMENTS) * 0.625, np.zeros(made_up.MOMENTS, np.float32)
    sound = made_up.Embedded(times, vectors[0], None, padded)
    before = _peak()
    first, _ = made_up.timed(lambda: nearest.search(index, sound, TOP, APART))
    loaded = _peak()
    side = index.vectors_in_memory("visual")
    print(f"{len(side.files)} clips, {len(side.times)} moments × {side.vectors.shape[1]}")
    size = side.vectors.nbytes / 1e9
    print(f"first search {first:.1f} s; vectors {size:.2f} GB, peak {loaded - before:.2f} GB more")

    def plain() -> None:
        side.vectors @ vectors[0].mean(axis=0)
        side.vectors.reshape(len(side.files), -1) @ vectors[0].ravel()

    seconds = timing.interleaved(
        {
            "search": lambda: nearest.search(index, sound, TOP, APART),
            "plain products": plain,
            "scores": lambda: nearest.scores(side, vectors[0]),
        },
        repeats,
        WARMUPS,
    )
    rows = [[name, timing.Spread.of(values).text(3)] for name, values in seconds.items()]
    print(timing.table(["", "seconds"], rows))
    print(f"peak while searching {_peak() - before:.2f} GB more")


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    """Runs the command line."""
    arguments = cli.parser(__doc__)
    arguments.add_argument("--clips", type=int, default=5000, help="clips in the index")
    arguments.add_argument("--dim", type=int, default=768, help="numbers per vector")
    arguments.add_argument("--repeats", type=int, default=10, help="timed searches")
    arguments.add_argument(
        "--index",
        type=pathlib.Path,
        required=True,
        help="folder of the index; an existing index is used",
    )
    cli.main(arguments, lambda args: run(args.clips, args.dim, args.repeats, args.index))


if __name__ == "__main__":
    main()
