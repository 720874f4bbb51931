"""One HTML page of an ablation: its table, the curves of all rows, their pictures side by side."""

from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from cavmae_sync_jax.ablations import rendering
from cavmae_sync_jax.ablations import scores as ablation_scores
from cavmae_sync_jax.ablations.folders import Folder
from cavmae_sync_jax.ablations.plan import Plan
from cavmae_sync_jax.ablations.scores import Sources
from cavmae_sync_jax.evals.report import curves, markup
from cavmae_sync_jax.evals.report.markup import Node, node

# Pictures that are worth looking at side by side.
DRAWN = ("retrieval", "segmentation", "probe", "tokens", "temporal", "reconstruction")


def page(
    sources: Sources,
    result: Mapping[str, Any],
    picture: bytes | None,
    command: str,
) -> bytes:
    """The page, which needs no other file.

    Args:
      sources: of the table's scores and pictures.
      result: of `scores.collect`.
      picture: of `rendering.picture`.
      command: the command line that it comes from.
    """
    plan, workdir = sources.plan, sources.workdir
    sections: dict[str, tuple[str, list[Node]]] = {
        "table": ("Scores", [_scores(result), *map(_note, rendering.notes(result))])
    }
    if picture is not None:
        shown = [(f"table_{result['table']}.png", picture)]
        alt = "A panel per score: mean and interval of each row, and the paper's figure"
        sections["table"][1].extend(markup.figures(shown, alt))
    if result["baseline"] and len(result["rows"]) > 1:
        sections["differences"] = ("Differences from the baseline", list(_differences(result)))
    if judged := rendering.claims(result):
        rows = [(claim, cells, False) for claim, *cells in judged]
        sections["claims"] = ("Claims", [markup.table(rendering.CLAIMS_HEAD, rows)])
    if found := _curves(plan, workdir):
        sections["curves"] = ("Training curves of all rows", found)
    for name, nodes in _pictures(sources):
        sections[f"pictures-{name}"] = (f"Side by side: {name}", nodes)
    sections["runs"] = ("Trainings", _trainings(plan, workdir, command))
    return markup.document(f"CAV-MAE Sync: {result['title']}", sections)


def _note(text: str) -> Node:
    return node("p", text, class_="note")


def _scores(result: Mapping[str, Any]) -> Node:
    names = ablation_scores.columns_of(result)
    rows = [
        (
            row["title"],
            [rendering.cell(name, row["scores"][name], row["paper"].get(name)) for name in names],
            key == result["baseline"],
        )
        for key, row in result["rows"].items()
    ]
    return markup.table(("", *rendering.head(result, names)), rows)


def _differences(result: Mapping[str, Any]) -> Iterator[Node]:
    names = ablation_scores.columns_of(result)
    rows = []
    for key, row in result["rows"].items():
        if key == result["baseline"]:
            continue
        cells = []
        for name in names:
            found = (row["scores"][name] or {}).get("difference")
            cells.append(rendering.difference(name, found))
        rows.append((row["title"], cells, False))
    title = result["rows"][result["baseline"]]["title"]
    yield markup.table((f"minus “{title}”", *rendering.head(result, names)), rows)
    yield _note(
        "Differences are taken within each seed, on the same clips. Where an interval holds 0, the "
        "rows are not distinguished. With few seeds an interval is narrower than it should be."
    )


def _curves(plan: Plan, workdir: epath.PathLike) -> list[Node]:
    runs: dict[str, list[curves.Series]] = {}
    for row in plan.table.rows:
        names = [plan.of_row[row.name, seed] for seed in plan.seeds]
        if any(set(names) == set(others) for others in _names_so_far(plan, row.name)):
            continue  # of a row that shares its trainings
        series = [found for name in names if (found := Folder(workdir, name).series())]
        if series:
            runs[row.title] = series
    picture = curves.compare(runs)
    if picture is None:
        return []
    alt = "A panel per metric over the steps, a colour per row, a line per seed"
    return list(markup.figures([("curves.png", picture)], alt))


def _names_so_far(plan: Plan, row_name: str) -> Iterator[list[str]]:
    for row in plan.table.rows:
        if row.name == row_name:
            return
        yield [plan.of_row[row.name, seed] for seed in plan.seeds]


def _pictures(sources: Sources) -> Iterator[tuple[str, list[Node]]]:
    """The pictures of the evaluations that count; others may lie in the same folders."""
    plan, seed = sources.plan, sources.plan.seeds[0]
    for name in DRAWN:
        figures: dict[str, Node] = {}
        for row in plan.table.rows:
            training = plan.trainings[plan.of_row[row.name, seed]]
            folder = Folder(sources.workdir, training.name)
            for column in plan.table.columns:
                spec = plan.evaluation_of(row, column)
                path = folder.output(spec) / f"{folder.stem(spec)}.png"
                if spec.evaluation != name or str(path) in figures or not path.exists():
                    continue
                if not sources.counts(training, spec):
                    continue
                title = f"{row.title}, seed {seed}, {spec.folder}"
                shown = [(title, path.read_bytes())]
                (figures[str(path)],) = markup.figures(shown, "what the evaluation drew")
        if figures:
            yield name, [node("div", *figures.values(), class_="beside")]


def _trainings(plan: Plan, workdir: epath.PathLike, command: str) -> list[Node]:
    rows = []
    for name, training in plan.trainings.items():
        folder = Folder(workdir, name)
        noted = folder.trained()
        rate = folder.examples_per_second()
        cells = [
            ", ".join(dict.fromkeys(training.rows)),
            str(noted["step"]) if noted else f"stopped at {folder.newest_step()}",
            noted["devices"] if noted else "–",
            f"{rate:.4g}" if rate else "–",
        ]
        rows.append((name, cells, False))
    columns = ("training", "rows", "steps", "devices", "clips per second")
    return [
        markup.table(columns, rows),
        node("p", "Made by this command:", class_="note"),
        node("pre", node("code", command)),
    ]
