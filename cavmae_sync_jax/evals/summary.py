"""Collects what several evaluations wrote: one file, one table and, if asked, one page.

Examples:
  python -m cavmae_sync_jax.evals.summary runs/demo/evals --output=runs/demo/results.json
  python -m cavmae_sync_jax.evals.summary runs/demo/evals --output=runs/demo/results.json \\
      --workdir=runs/demo/train --report=runs/demo/report.html

FOLDER holds NAME.json and NAME.png as the evaluations write them. OUTPUT gets one key per
evaluation. The table has every headline score beside an untrained model of the same shape and the
best trivial baseline. --report writes one HTML file, which needs no other file. It has the table,
the pictures, all scores and, from --workdir, the training's curves.
"""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from etils import epath

from cavmae_sync_jax.evals.report import page as report_page
from cavmae_sync_jax.evals.report import results_table
from cavmae_sync_jax.utils import cli, path_names
from cavmae_sync_jax.utils.errors import UserError

COLUMNS = ("model", results_table.UNTRAINED, "best trivial baseline", "verdict")


def run(
    folder: epath.PathLike,
    output: epath.PathLike,
    *,
    workdir: epath.PathLike | None = None,
    page: epath.PathLike | None = None,
) -> dict[str, Any]:
    """Writes the evaluations' results of `folder` to `output`, one key each, and returns them.

    Args:
      folder: of `NAME.json` and `NAME.png`.
      output: the JSON file to write.
      workdir: of the training, whose curves the page shows.
      page: the HTML file to write, if any.

    Raises:
      UserError: if there are none, or one of them is not valid JSON or not what its name says.
    """
    folder, output = epath.Path(folder), epath.Path(output)
    results = {}
    for path in sorted(path_names.matching(folder, "*.json")):
        if path.resolve() == output.resolve():  # of an earlier run
            continue
        try:
            results[path.stem] = json.loads(path.read_text())
        except ValueError as error:
            raise UserError(
                f"{path} is not the JSON of an evaluation ({error}): delete it or evaluate again"
            ) from error
    evaluations = {
        name: evaluation
        for name in sorted(results, key=_place)
        if (evaluation := results_table.read(name, results[name])) is not None
    }
    if not evaluations:
        raise UserError(
            f"{folder} holds no evaluation's NAME.json: give the --output of evaluations"
        )
    rows = results_table.rows(evaluations)
    html = None
    if page is not None:
        page = epath.Path(page)
        html = report_page.page(folder, results, evaluations, workdir)
    cli.make_folder(output.parent)
    output.write_text(json.dumps(results, indent=2) + "\n")
    if rows:
        print(format_table(rows))
    print(f"scores: {output}")
    for picture in sorted(path_names.matching(folder, "*.png")):
        print(f"picture: {picture}")
    if page is not None:
        cli.make_folder(page.parent)
        page.write_bytes(html)
        print(f"report: {page}")
    return results


def _place(name: str) -> int:
    order = list(results_table.READERS)
    return order.index(name) if name in order else len(order)


def format_table(rows: Sequence[results_table.ScoreRow]) -> str:
    """The one table as text: shares in percent; ranks and errors are better when lower."""
    lines = [("all evaluations, %, ranks and errors", *COLUMNS)]
    for row in rows:
        lines.append((f"{row.evaluation}, {row.score}", *row.cells))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            f"{cell:>{width}}" if column in (1, 2) else f"{cell:{width}}"
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def main() -> None:
    """Runs the command line."""
    arguments = cli.parser(__doc__)
    arguments.add_argument("folder", metavar="FOLDER", help="the evaluations' --output")
    arguments.add_argument("--output", required=True, help="JSON file to write")
    arguments.add_argument("--report", metavar="FILE", help="HTML page to write")
    arguments.add_argument(
        "--workdir", help="the training's --workdir, whose curves the page shows"
    )

    def start(args: argparse.Namespace) -> None:
        if args.workdir is not None and args.report is None:
            raise UserError("--workdir is for the page: give --report=FILE.html, too")
        run(args.folder, args.output, workdir=args.workdir, page=args.report)

    cli.main(arguments, start)


if __name__ == "__main__":
    main()
