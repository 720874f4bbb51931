"""Scores maps of evidence with other settings than the default ones, on clips to choose by.

    python -m benchmarks.scores.evidence_settings runs/seed0/train runs/seed1/train \\
        --data=runs/seed0/data --share 0.125 0.0625 --smoothing 0.7 1.0

Each row is a setting, each column a trained model: mAP / mIoU in percent. The split is `val`, which
is there to choose settings on.
"""

import argparse
import functools
import itertools
from unittest import mock

import jax

from benchmarks import timing
from cavmae_sync_jax.checkpoints.pretrained import load
from cavmae_sync_jax.data import loader
from cavmae_sync_jax.evals import segmentation
from cavmae_sync_jax.inference import heatmaps
from cavmae_sync_jax.utils import cli


def run(args: argparse.Namespace) -> None:
    """Prints the table."""
    records = loader.Records(args.data, args.split)
    rows = []
    for share, smoothing, sets in itertools.product(args.share, args.smoothing, args.sets):
        cells = [f"{share:g}", f"{smoothing:g}", f"{sets}"]
        for checkpoint in args.checkpoints:
            asked = functools.partial(heatmaps.evidence, share=share, smoothing=smoothing)
            with mock.patch.object(heatmaps, "evidence", asked):
                jax.clear_caches()  # a compiled function has its settings in it
                settings = {"maps": ("evidence",), "sets": sets, "with_baselines": False}
                result = segmentation.run(load(checkpoint), records, **settings)
            scores = result["maps"]["evidence"]["scores"]
            cells.append(f"{100 * scores['mAP']:.1f} / {100 * scores['mIoU']:.1f}")
        rows.append(cells)
    print(timing.machine("numpy"))
    print(f"{records.identity}\n")
    print(timing.table(["share", "smoothing", "sets", *args.checkpoints], rows))


def main() -> None:
    """Runs the command line."""
    arguments = cli.parser(__doc__)
    arguments.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help="trained models")
    arguments.add_argument("--data", required=True, help="a dataset with true masks")
    arguments.add_argument("--split", default="val", help="clips to score")
    arguments.add_argument(
        "--share",
        type=float,
        nargs="+",
        default=[heatmaps.SHARE],
        help="parts of the patches that a set keeps, one row each",
    )
    arguments.add_argument(
        "--smoothing",
        type=float,
        nargs="+",
        default=[heatmaps.SMOOTHING],
        help="widths in patches by which maps are smoothed, one row each",
    )
    arguments.add_argument(
        "--sets",
        type=int,
        nargs="+",
        default=[heatmaps.SETS],
        help="numbers of sets of kept patches, one row each",
    )
    cli.main(arguments, run)


if __name__ == "__main__":
    main()
