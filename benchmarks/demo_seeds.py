"""Mean and spread of the demo's scores over several seeds, as a Markdown table.

for s in 0 1 2; do make demo SEED=$s DEMO=runs/seed$s; done
python -m benchmarks.demo_seeds runs/seed0 runs/seed1 runs/seed2
"""

import argparse
import json
import pathlib

import numpy as np

from cavmae_sync_jax import cli

DIRECTIONS = ("visual_to_audio", "audio_to_visual")


def run(folders: list[str]) -> None:
    """Prints R@1, R@5 and the median rank of every row of the retrieval tables, in percent."""
    results = []
    for folder in folders:
        path = pathlib.Path(folder, "results.json")
        if not path.is_file():
            raise cli.UserError(f"{folder} holds no results.json: give the DEMO of a `make demo`")
        results.append(json.loads(path.read_text())["retrieval"])
    rows = {f"model, {name}": [r["scores"][name] for r in results] for name in results[0]["scores"]}
    rows |= {name: [r["baselines"][name] for r in results] for name in results[0]["baselines"]}
    titles = (f"{d.replace('_to_', ' → ')}: R@1 | R@5 | median" for d in DIRECTIONS)
    print(f"| | {' | '.join(titles)} |")
    print("|---" * 7 + "|")
    for name, runs in rows.items():
        cells = []
        for direction in DIRECTIONS:
            for score, factor in (("R1", 100), ("R5", 100), ("median_rank", 1)):
                values = factor * np.array([run[direction][score] for run in runs])
                spread = f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else ""
                cells.append(f"{values.mean():.1f}{spread}")
        print(f"| {name.replace('_', ' ')} | " + " | ".join(cells) + " |")


def main() -> None:
    """Runs the command line."""
    arguments = cli.parser(__doc__)
    arguments.add_argument("folders", metavar="DEMO", nargs="+", help="folder of a `make demo`")

    def start(args: argparse.Namespace) -> None:
        run(args.folders)

    cli.main(arguments, start)


if __name__ == "__main__":
    main()
