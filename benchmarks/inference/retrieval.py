"""Times retrieval's ranks, both directions, for each aggregation, beside a plain double loop.

    python -m benchmarks.inference.retrieval                                   # the paper's size
    python -m benchmarks.inference.retrieval --clips=20000 --strategies=diagonal_mean --repeats=1

The embeddings are unrelated noise: own scores lie in the thick of the others, so that many
comparisons are near and settled in float64; a trained model has fewer. The double loop computes
cosine by cosine and is extrapolated from some pairs. Memory is the process's peak so far, the
embeddings included. The first run of each aggregation compiles, too.
"""

import argparse
import resource
import statistics
import time

import jax
import numpy as np
from jaxtyping import Float

from cavmae_sync_jax.evals.metrics import ranking
from cavmae_sync_jax.evals.metrics import retrieval as retrieval_metrics
from cavmae_sync_jax.utils import cli

FRAMES, DIM, LOOPED = 16, 768, 200  # pairs that the double loop is timed on


def run(clips: int, strategies: list[str], repeats: int) -> None:
    """Prints each aggregation's seconds and the process's peak memory."""
    rng = np.random.default_rng(0)
    audio, visual = (rng.standard_normal((clips, FRAMES, DIM), np.float32) for _ in range(2))
    print(f"{clips} clips × {FRAMES} × {DIM}, {jax.devices()}, JAX {jax.__version__}")
    for strategy in strategies:
        seconds = []
        for _ in range(repeats):
            began = time.perf_counter()
            ranking.ranks(audio, visual, strategy)
            seconds.append(time.perf_counter() - began)
        loop = looped(audio, visual, strategy) * clips**2
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"{strategy:14} {statistics.median(seconds):8.2f} s "
            f"({min(seconds):.2f}–{max(seconds):.2f})  peak {peak:.2f} GiB  "
            f"double loop {loop / 60:.1f} min, {loop / statistics.median(seconds):.0f} ×",
            flush=True,
        )


def looped(
    audio: Float[np.ndarray, "clips frames dim"],
    visual: Float[np.ndarray, "clips frames dim"],
    strategy: str,
) -> float:
    """Seconds a pair of clips that are compared cosine by cosine in a Python loop."""

    def cosine(x: np.ndarray, y: np.ndarray) -> float:
        return float(x @ y) / float(np.linalg.norm(x) * np.linalg.norm(y))

    combine = max if strategy.endswith("max") else statistics.fmean
    diagonal = strategy.startswith("diagonal")
    pairs = [divmod(pair, len(visual)) for pair in range(min(LOOPED, len(audio) * len(visual)))]
    began = time.perf_counter()
    for query, target in pairs:
        a, v = audio[query], visual[target]
        if diagonal:
            combine([cosine(a[t], v[t]) for t in range(FRAMES)])
        else:
            combine([cosine(a[t], v[u]) for t in range(FRAMES) for u in range(FRAMES)])
    return (time.perf_counter() - began) / len(pairs)


def main() -> None:
    """Runs the command line."""
    arguments = cli.parser(__doc__)
    arguments.add_argument("--clips", type=int, default=1545, help="clips to score")
    arguments.add_argument("--repeats", type=int, default=5, help="runs of each aggregation")
    arguments.add_argument(
        "--strategies",
        nargs="+",
        choices=retrieval_metrics.STRATEGIES,
        default=list(retrieval_metrics.STRATEGIES),
        help="aggregations of frames to score",
    )

    def start(args: argparse.Namespace) -> None:
        run(args.clips, args.strategies, args.repeats)

    cli.main(arguments, start)


if __name__ == "__main__":
    main()
