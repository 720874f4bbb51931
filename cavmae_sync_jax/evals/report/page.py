"""One HTML page with all evaluations of a model; it needs no other file and no network."""

import datetime
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from cavmae_sync_jax.evals.report import curves, markup, published, results_table
from cavmae_sync_jax.evals.report.markup import Node
from cavmae_sync_jax.evals.report.results_table import Evaluation, ScoreRow
from cavmae_sync_jax.evals.report.texts import MEANINGS, data_text
from cavmae_sync_jax.utils import path_names
from cavmae_sync_jax.utils.errors import UserError

NUMBERS = 100  # of an unknown result that are shown
FINE_TUNED_FROM = "fine-tuned from"


def page(
    folder: epath.Path,
    results: dict[str, Any],
    evaluations: dict[str, Evaluation],
    workdir: epath.PathLike | None = None,
) -> bytes:
    """The page, in UTF-8.

    Args:
      folder: of the results' files and pictures.
      results: all that were found, by the name of their file.
      evaluations: the scores of those that are the project's own, in the order of the page.
      workdir: of the training, for its curves.

    Raises:
      UserError: if a picture is not a PNG, or `workdir` or its metrics can't be read.
    """
    rows = results_table.rows(evaluations)
    sections = {"run": ("What was evaluated", _run(folder, results))}
    if rows:
        sections["scores"] = ("All scores in one table", _scores(rows, evaluations))
    if workdir is not None and (shown := _training(epath.Path(workdir))):
        sections["training"] = ("Training curves", shown)
    pictures = _pictures(folder, results)
    for name, evaluation in evaluations.items():
        shown = _evaluation(folder, name, results[name], evaluation, pictures[name])
        sections[name] = (evaluation.title, shown)
    for number, name in enumerate((n for n in results if n not in evaluations), 1):
        shown = [_numbers(results[name]), *markup.figures(pictures[name], f"Picture of {name}")]
        sections[f"other-{number}"] = (f"Other results: {name}", shown)
    return markup.document(f"CAV-MAE Sync: report of {folder}", sections)


def _at(result: Any, *keys: str) -> Any:
    """The value at a path of keys, None where it does not go on."""
    for key in keys:
        result = result.get(key) if isinstance(result, dict) else None
    return result


def _about(result: Any) -> dict[str, str]:
    """Whose scores a result holds, as far as it says so."""
    known = {
        "checkpoint": _at(result, "checkpoint", "directory"),
        "step": _at(result, "checkpoint", "step"),
        FINE_TUNED_FROM: _at(result, "init_from") or None,
        "embeddings": _at(result, "embeddings", "file"),
        "dataset": data_text(_at(result, "data", "identity") or "") or None,
        "dataset's folder": _at(result, "data", "directory"),
        "code version": _at(result, "version"),
    }
    return {key: str(value) for key, value in known.items() if value is not None}


def _mixed(abouts: Sequence[dict[str, str]]) -> bool:
    """Whether results differ in more than that one's model was fine-tuned from the others'."""
    origins, steps = set(), set()
    for about in abouts:
        step, start = about.pop("step", None), about.pop(FINE_TUNED_FROM, None)
        if start is None:
            steps.add(step)
        else:
            about["checkpoint"] = start
        origins.add(tuple(sorted(about.items())))
    return len(origins) > 1 or len(steps) > 1


def _run(folder: epath.Path, results: dict[str, Any]) -> list[Node]:
    """Whose scores these are; more than one list if the files differ."""
    groups: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for name, result in results.items():
        groups.setdefault(tuple(_about(result).items()), []).append(name)
    nodes = []
    if _mixed([_about(result) for result in results.values()]):
        warning = "These files are not all of the same checkpoint, data and code version."
        nodes.append(markup.node("p", warning, class_="mixed"))
    for known, names in groups.items():
        items = [*known] or [("model and data", "not in the files")]
        dates = [f"{name}.json of {_date(folder / f'{name}.json')}" for name in names]
        items.append(("files", "; ".join(dates)))
        pairs = [
            markup.node(tag, text)
            for item in items
            for tag, text in zip(("dt", "dd"), item, strict=True)
        ]
        nodes.append(markup.node("dl", *pairs))
    return nodes


def _date(path: epath.Path) -> str:
    return f"{datetime.datetime.fromtimestamp(path.stat().mtime, datetime.UTC):%Y-%m-%d %H:%M} UTC"


def _scores(rows: Sequence[ScoreRow], evaluations: dict[str, Evaluation]) -> list[Node]:
    columns = ("model", results_table.UNTRAINED, "best trivial baseline", "verdict")
    head = markup.node(
        "tr", *(markup.node("th", name, scope="col") for name in ("score", *columns))
    )
    table = markup.node("table", markup.node("thead", head), class_="scores")
    for name, evaluation in evaluations.items():
        mine = [row for row in rows if row.evaluation == name]
        if not mine:
            continue
        link = markup.node("a", evaluation.title, href=f"#{name}")
        heading = markup.node("th", link, colspan="5", scope="rowgroup")
        body = markup.node("tbody", markup.node("tr", heading))
        for row in mine:
            cells = [
                markup.node("td", cell, data_label=column)
                for cell, column in zip(row.cells, columns, strict=True)
            ]
            cells[-1].set("class", _class(row))
            lower = " (lower is better)" if results_table.lower_is_better(row.column) else ""
            body.append(
                markup.node("tr", markup.node("th", row.score + lower, scope="row"), *cells)
            )
        table.append(body)
    counts = {kind: sum(_class(row) == kind for row in rows) for kind in ("better", "mixed")}
    total, compared = len(rows), sum(bool(row.comparisons) for row in rows)
    note = (
        f"Of {total} scores, {compared} can be compared: {counts['better']} are better than all "
        f"that they are compared with, {compared - counts['better']} are not. "
        "Scores are in percent, ranks and errors as they are. The best trivial baseline is the "
        "best of the answers that need no encoder; it is named beside its score. A verdict only "
        "compares two numbers of the same clips: small differences may be luck."
    )
    return [markup.node("p", note), markup.node("div", table, class_="wide", tabindex="0")]


def _class(row: ScoreRow) -> str:
    """The colour of a verdict, in addition to its words."""
    kinds = set(row.comparisons.values())
    if not kinds:
        return "none"
    if kinds == {"better than"}:
        return "better"
    return "mixed" if "better than" in kinds else "worse"


def _training(workdir: epath.Path) -> list[Node]:
    if not workdir.is_dir():
        raise UserError(f"--workdir={workdir} is not a folder")
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return []
    series = curves.read(path)
    pictures = [
        figure
        for title, data in curves.draw(series)
        for figure in markup.figures([(path, data)], f"Curve of the training: {title}")
    ]
    if not pictures:
        return []
    last = [
        (name, (f"{step:g}", f"{value:.4g}"), False)
        for name, step, value in curves.last_values(series)
    ]
    return [
        markup.node("p", f"From {path}. The last value of each curve is in the table."),
        markup.node("div", *pictures, class_="curves"),
        markup.table(("metric", "last step", "last value"), last),
    ]


def _evaluation(
    folder: epath.Path,
    name: str,
    result: Any,
    evaluation: Evaluation,
    pictures: list[tuple[epath.Path, bytes]],
) -> Iterator[Node]:
    meaning, alt = MEANINGS[_module(name)]
    yield markup.node("p", meaning)
    rows = _titled("model", evaluation.model)
    ours = set(rows)
    rows |= _titled(results_table.UNTRAINED, evaluation.untrained)
    rows |= evaluation.baselines | evaluation.ceilings
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    if rows:
        cells = [
            (
                label,
                [results_table.format_value(c, row[c]) if c in row else "–" for c in columns],
                label in ours,
            )
            for label, row in rows.items()
        ]
        yield markup.table(("", *columns), cells)
    else:
        yield markup.node("p", "The dataset has no truth to score against.")
    classes = _at(result, "classes")
    if isinstance(classes, dict) and all(isinstance(row, dict) for row in classes.values()):
        yield _classes(classes)
    if name in published.SYSTEMS and _at(result, "stream") in (None, "both"):
        yield _published(published.SYSTEMS[name])
    yield from markup.figures(pictures, alt)
    yield markup.node("p", "Made by this command, as far as the file says:", class_="note")
    yield markup.node("pre", markup.node("code", command(folder, name, result)))


def _published(systems: Sequence[published.System]) -> Node:
    columns = list(dict.fromkeys(column for system in systems for column in system.scores))
    rows = [
        (
            f"{one.name}, {one.data} ({one.source})",
            [f"{one.scores[c]:.1f}" if c in one.scores else "–" for c in columns],
            False,
        )
        for one in systems
    ]
    titles = [published.title(column) for column in columns]
    table = markup.table((published.heading(), *titles), rows)
    return markup.node("details", markup.node("summary", "Published scores"), table, open="open")


def _titled(whose: str, scores: results_table.Scores) -> results_table.Scores:
    return {f"{whose}, {label}" if label else whose: row for label, row in scores.items()}


def _classes(classes: dict[str, dict[str, Any]]) -> Node:
    columns = list(dict.fromkeys(column for row in classes.values() for column in row))

    def cell(value: Any) -> str:
        return (
            f"{100 * value:.1f}"
            if isinstance(value, float)
            else "–"
            if value is None
            else str(value)
        )

    rows = [(name, [cell(row.get(c)) for c in columns], False) for name, row in classes.items()]
    heading = markup.node("summary", f"Each of the {len(classes)} classes (shares in percent)")
    return markup.node("details", heading, markup.table(("class", *columns), rows))


def _numbers(result: Any) -> Node:
    """The first numbers of a result that the project does not know."""
    found = list(_leaves(result))
    rows = [(key, (f"{value:.6g}",), False) for key, value in found[:NUMBERS]]
    if len(found) > NUMBERS:
        rows.append((f"… and {len(found) - NUMBERS} more in the file", ("",), False))
    return markup.table(("key", "number"), rows)


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(inner, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _leaves(inner, f"{key}[{number}]")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield key, value


def _pictures(
    folder: epath.Path, results: dict[str, Any]
) -> dict[str, list[tuple[epath.Path, bytes]]]:
    """NAME.png and NAME_*.png of each result, the longest NAME that fits."""
    found: dict[str, list[tuple[epath.Path, bytes]]] = {name: [] for name in results}
    for path in sorted(path_names.matching(folder, "*.png")):
        owners = [n for n in results if path.stem == n or path.stem.startswith(f"{n}_")]
        if owners:
            found[max(owners, key=len)].append((path, path.read_bytes()))
    return found


def _module(name: str) -> str:
    return "probe" if name.startswith("probe") else name


def command(folder: epath.Path, name: str, result: dict[str, Any]) -> str:
    """The command line that a result came from, as far as it says so, one line per flag."""
    words = [f"python -m cavmae_sync_jax.evals.{_module(name)}"]
    embeddings = _at(result, "embeddings", "file")
    flags = {
        "embeddings": embeddings,
        "checkpoint": _at(result, "checkpoint", "directory"),
        "data": _at(result, "data", "directory"),
        "clips": _at(result, "clips_list", "file"),
        "head": _at(result, "head", "directory"),
        "output": str(folder),
        "map": _at(result, "map"),
        "sets": _at(result, "sets"),
        "query": _at(result, "query"),
        "tokens": _at(result, "tokens"),
        "tolerance": _at(result, "tolerance"),
        "mask_ratio": _at(result, "mask", "ratio"),
        "num_frames": _at(result, "framing", "num_frames"),
        "frame": _at(result, "framing", "only_frame"),
        "from_scratch": _at(result, "from_scratch", "directory"),
    }
    split = re.search(r", split (.+): \d+ clips", str(_at(result, "data", "identity")))
    if split:
        flags["split"] = split[1]
    if name == "temporal" and isinstance(_at(result, "segments"), int):
        flags["segments"] = result["segments"]
    if name == "retrieval":
        flags["strategies"] = ",".join(result["scores"])
    config = _at(result, "config")
    if isinstance(config, dict):
        words.append("--config=configs/probe.py")
        flags |= {f"config.{key}": value for key, value in config.items()}
    words += [shlex.quote(f"--{k}={value}") for k, value in flags.items() if value is not None]
    compared = results_table.UNTRAINED in (_at(result, "baselines") or ()) or "untrained" in result
    if compared and (name == "retrieval" or config is not None):
        words.append("--baselines")
    return " \\\n  ".join(words)
