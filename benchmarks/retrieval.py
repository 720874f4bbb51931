"""Times the scoring of retrieval at the paper's size, both directions, for each aggregation.

python -m benchmarks.retrieval
"""

import platform
import time

import numpy as np

from cavmae_sync_jax.evals import scores

CLIPS, FRAMES, DIM, REPEATS = 1545, 16, 768, 5


def main() -> None:
    """Prints the median and the range of each aggregation's seconds."""
    rng = np.random.default_rng(0)
    audio, visual = rng.normal(size=(2, CLIPS, FRAMES, DIM)).astype(np.float32)
    print(f"{platform.processor() or platform.machine()}, NumPy {np.__version__}")
    for strategy in scores.STRATEGIES:
        seconds = []
        for _ in range(REPEATS):
            began = time.perf_counter()
            scores.retrieval(audio, visual, strategy)
            seconds.append(time.perf_counter() - began)
        median = np.median(seconds)
        print(f"{strategy:14} {median:6.2f} s  ({min(seconds):.2f}–{max(seconds):.2f})")


if __name__ == "__main__":
    main()
