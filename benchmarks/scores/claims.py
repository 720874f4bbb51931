"""The paper's claims at the demo's size, each with a verdict: writes results/claims.md.

    make claims
    python -m benchmarks.scores.claims --workdir=runs/claims --output=results/claims.md

`claims_plan/` has a table per claim: rows, columns and what is claimed. It was written before any
of its trainings. `make claims` trains and scores them with `cavmae_sync_jax.ablate`. This program
takes what is new in WORKDIR/table_NAME.json to the folder beside the page (results/claims), and
writes the page from all tables of that folder. A text table_NAME.md there follows its table.
"""

import argparse
import datetime
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from benchmarks import timing
from cavmae_sync_jax.ablations import rendering, tables
from cavmae_sync_jax.ablations import scores as ablation_scores
from cavmae_sync_jax.evals.report import texts
from cavmae_sync_jax.utils import cli
from cavmae_sync_jax.utils.errors import UserError

PLAN = pathlib.Path(__file__).parent / "claims_plan"
MEANING = """\
A claim is *seen* if the whole interval of its difference is above 0, and *the other way round* if
it is below 0. Otherwise it is *not seen*. Differences are taken within each seed and on the same
clips. Brackets hold the middle 95 % of 1,000 resamples over seeds and clips. For the probe and the
tokens, only seeds are resampled. Three seeds say little about the spread over seeds. With fewer
there is no verdict.

The models have 0.7 M parameters, and the scenes are composed. So a verdict says what the method
does at this size, where the truth is known. It does not say whether the paper's figures are right.
"""


def plan() -> list[pathlib.Path]:
    """The files of the planned tables, in their order."""
    return sorted(PLAN.glob("[a-z]_*.py"))


def sections(results: Mapping[str, Any], remarks: Mapping[str, str]) -> list[str]:
    """The lines of every table that is there, in the plan's order, each with its remarks."""
    lines = []
    for path in plan():
        table = tables.read(path)
        lines += ["", f"## {table.title}", ""]
        result = results.get(table.name)
        if result is None:
            lines.append("Not run yet.")
            continue
        names = ablation_scores.columns_of(result)
        rows = [
            [row["title"], *(rendering.cell(n, row["scores"][n]) for n in names)]
            for row in result["rows"].values()
        ]
        lines.append(timing.table(["", *rendering.head(result, names)], rows))
        lines += ["", timing.table(rendering.CLAIMS_HEAD, rendering.claims(result))]
        seeds = ", ".join(map(str, result["seeds"]))
        name = "Seeds" if len(result["seeds"]) > 1 else "Seed"
        data = "; ".join(map(texts.data_text, dict.fromkeys(result["data"].values())))
        lines += ["", f"{name} {seeds}; {data}.", f"Measured with {result['measured']}."]
        if result["missing"]:
            lines.append(f"Not finished: {', '.join(result['missing'])}.")
        if table.name in remarks:
            lines += ["", remarks[table.name].strip()]
    return lines


def store(workdir: pathlib.Path, folder: pathlib.Path, measured: str) -> None:
    """Takes the tables of `workdir` that are new or have other figures to `folder`.

    `measured` is stored with them: the machine, the day and the code's version.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(workdir.glob("table_*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        stored = folder / path.name
        known = json.loads(stored.read_text(encoding="utf-8")) if stored.exists() else {}
        if known != result | {"measured": known.get("measured")}:
            text = json.dumps(result | {"measured": measured}, indent=2, ensure_ascii=False)
            stored.write_text(text + "\n", encoding="utf-8")


def run(workdir: str, output: str, measured: str | None = None) -> None:
    """Writes the page.

    Args:
      workdir: the ablations' workdir.
      output: the page. The tables are stored in a folder beside it, without its suffix.
      measured: what the new tables were measured with; by default this machine, today.

    Raises:
      UserError: if no table is there.
    """
    page = pathlib.Path(output)
    folder = page.with_suffix("")
    if measured is None:
        today = datetime.datetime.now(datetime.UTC).date()
        machine = timing.machine("jax", "flax", "numpy")
        measured = f"{machine}, on {today}, version {cli.version()}"
    store(pathlib.Path(workdir), folder, measured)
    results, remarks = {}, {}
    for path in plan():
        stored = folder / f"table_{path.stem}.json"
        if stored.exists():
            results[path.stem] = json.loads(stored.read_text(encoding="utf-8"))
        if stored.with_suffix(".md").exists():
            remarks[path.stem] = stored.with_suffix(".md").read_text(encoding="utf-8")
    if not results:
        raise UserError(f"{workdir} holds no table of the plan: run `make claims`")
    lines = [
        "# The paper's claims in miniature",
        "",
        "Which of the paper's claims hold at the demo's size, where the truth is known?",
        "",
        "```\nmake claims\n```",
        "",
        "The plan was written before the runs (`benchmarks/scores/claims_plan/`). The settings are",
        "the demo's, which were chosen on the split `val`; the scores are of the split `eval`.",
        "The scores of each seed are in `results/claims/`.",
        "",
        MEANING.rstrip(),
        *sections(results, remarks),
    ]
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"written: {output}")


def main() -> None:
    """Runs the command line."""
    arguments = cli.parser(__doc__)
    arguments.add_argument("--workdir", required=True, help="workdir of the ablations")
    arguments.add_argument(
        "--output", required=True, help="Markdown file to write; beside it is the tables' folder"
    )
    arguments.add_argument(
        "--measured", help="machine, date and commit of the new tables; default: here and today"
    )

    def start(args: argparse.Namespace) -> None:
        run(args.workdir, args.output, args.measured)

    cli.main(arguments, start)


if __name__ == "__main__":
    main()
