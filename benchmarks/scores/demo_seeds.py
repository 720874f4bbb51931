"""Mean and spread of the demo's scores over several seeds, as two Markdown tables.

for s in 0 1 2; do make demo SEED=$s DEMO=runs/seed$s; done
python -m benchmarks.scores.demo_seeds runs/seed0 runs/seed1 runs/seed2

The first table has every headline score. Beside it stand an untrained model and the best trivial
baseline of each seed. A ⚠ marks a mean that is not better than both. The second table has all of
retrieval.
"""

import argparse
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from cavmae_sync_jax.evals.report import results_table
from cavmae_sync_jax.utils import cli
from cavmae_sync_jax.utils.errors import UserError

DIRECTIONS = ("visual_to_audio", "audio_to_visual")


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean ± standard deviation."""
    deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{deviation}"


def all_evaluations(results: Sequence[dict[str, Any]]) -> list[str]:
    """The lines of the table of all headline scores."""
    seeds = [
        results_table.rows(
            {name: results_table.read(name, result[name]) for name in results_table.READERS}
        )
        for result in results
    ]
    lines = ["| | model | untrained model | best trivial baseline |", "|---" * 4 + "|"]
    for rows in zip(*seeds, strict=True):
        first = rows[0]
        factor, digits = 100, 1
        if results_table.lower_is_better(first.column):
            factor, digits = 1, 3 if first.column.endswith(results_table.ERROR) else 1
        columns = [[factor * row.model for row in rows]]
        if first.untrained is not None:
            columns.append([factor * row.untrained for row in rows])
        if first.baseline is not None:
            columns.append([factor * row.baseline[1] for row in rows])
        means = [float(np.mean(column)) for column in columns]
        lower = results_table.lower_is_better(first.column)
        worse = any((other <= means[0]) if lower else (other >= means[0]) for other in means[1:])
        cells = [spread(column, digits) for column in columns]
        if first.untrained is None:
            cells.insert(1, "–")
        if first.baseline is None:
            cells.append("–")
        else:
            names = sorted({row.baseline[0] for row in rows})
            cells[-1] += f", {' or '.join(names)}"
        title = f"{first.evaluation}, {first.score}".replace("_", " ")
        lines.append(f"| {title}{' ⚠' * bool(worse)} | {' | '.join(cells)} |")
    return lines


def retrieval(results: Sequence[dict[str, Any]]) -> list[str]:
    """The lines of R@1, R@5 and the median rank of every row of the retrieval tables."""
    found = [result["retrieval"] for result in results]
    rows = {f"model, {name}": [r["scores"][name] for r in found] for name in found[0]["scores"]}
    rows |= {name: [r["baselines"][name] for r in found] for name in found[0]["baselines"]}
    titles = (f"{d.replace('_to_', ' → ')}: R@1 | R@5 | median" for d in DIRECTIONS)
    lines = [f"| | {' | '.join(titles)} |", "|---" * 7 + "|"]
    for name, runs in rows.items():
        cells = [
            spread([factor * run[direction][score] for run in runs])
            for direction in DIRECTIONS
            for score, factor in (("R1", 100), ("R5", 100), ("median_rank", 1))
        ]
        lines.append(f"| {name.replace('_', ' ')} | " + " | ".join(cells) + " |")
    return lines


def run(folders: list[str]) -> None:
    """Prints both tables; shares are in percent.

    Raises:
      UserError: if a folder has no results, or not those of all evaluations.
    """
    results = []
    for folder in folders:
        path = pathlib.Path(folder, "results.json")
        if not path.is_file():
            raise UserError(f"{folder} holds no results.json: give the DEMO of a `make demo`")
        results.append(json.loads(path.read_text()))
        if missing := [name for name in results_table.READERS if name not in results[-1]]:
            raise UserError(f"{path} has no {', '.join(missing)}: let `make demo` end")
    print("\n".join([*all_evaluations(results), "", *retrieval(results)]))


def main() -> None:
    """Runs the command line."""
    arguments = cli.parser(__doc__)
    arguments.add_argument(
        "folders", metavar="DEMO", nargs="+", help="the DEMO folders of several runs of `make demo`"
    )

    def start(args: argparse.Namespace) -> None:
        run(args.folders)

    cli.main(arguments, start)


if __name__ == "__main__":
    main()
