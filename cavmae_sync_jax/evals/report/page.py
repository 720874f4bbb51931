"""One HTML page of all evaluations of a model, which needs no other file and no network."""

import base64
import datetime
import re
import shlex
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from xml.etree import ElementTree

from etils import epath

from cavmae_sync_jax.evals.report import curves, results_table
from cavmae_sync_jax.evals.report.results_table import Evaluation, ScoreRow
from cavmae_sync_jax.evals.report.texts import CSS, MEANINGS
from cavmae_sync_jax.utils.errors import UserError

Node = ElementTree.Element
PNG = b"\x89PNG\r\n\x1a\n"
NUMBERS = 100  # of an unknown result that are shown


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
      UserError: if a picture is no PNG, or `workdir` or its metrics can't be read.
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
        shown = [_numbers(results[name]), *_figures(pictures[name], f"Picture of {name}")]
        sections[f"other-{number}"] = (f"Other results: {name}", shown)
    title = f"CAV-MAE Sync: report of {folder}"
    links = [
        _node("li", _node("a", heading, href=f"#{anchor}"))
        for anchor, (heading, _) in sections.items()
    ]
    body = _node("main", _node("h1", title))
    body.append(_node("nav", _node("ul", *links), aria_label="Contents"))
    for anchor, (heading, nodes) in sections.items():
        body.append(_node("section", _node("h2", heading), *nodes, id=anchor))
    root = _node(
        "html",
        _node(
            "head",
            _node("meta", charset="utf-8"),
            _node("meta", name="viewport", content="width=device-width, initial-scale=1"),
            _node("title", title),
            _node("style", CSS),
        ),
        _node("body", body),
        lang="en",
    )
    text = "<!DOCTYPE html>\n" + ElementTree.tostring(root, encoding="unicode", method="html")
    # HTML has no control characters, and UTF-8 no lone surrogates; JSON may have both.
    return re.sub("[\0-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", "\ufffd", text).encode()


def _node(tag: str, *children: Node | str, **attributes: str) -> Node:
    """An element; the serialiser escapes all its text and attributes."""
    node = Node(tag, {name.strip("_").replace("_", "-"): v for name, v in attributes.items()})
    for child in children:
        if not isinstance(child, str):
            node.append(child)
        elif len(node):
            node[-1].tail = (node[-1].tail or "") + child
        else:
            node.text = (node.text or "") + child
    return node


def _table(
    columns: Sequence[str], rows: Iterable[tuple[str, Sequence[str], bool]], kind: str = "all"
) -> Node:
    """A table of (heading, cells, whether it is the model's); the first column heads the rows."""
    head = _node("tr", *(_node("th", column, scope="col") for column in columns))
    body = _node("tbody")
    for heading, cells, ours in rows:
        row = _node("tr", _node("th", heading, scope="row"), *(_node("td", c) for c in cells))
        if ours:
            row.set("class", "ours")
        body.append(row)
    table = _node("table", _node("thead", head), body, class_=kind)
    # Scrolls sideways where it is too wide, for which the keyboard needs a focus.
    return _node("div", table, class_="wide", tabindex="0")


def _at(result: Any, *keys: str) -> Any:
    """The value at a path of keys, None where it does not go on."""
    for key in keys:
        result = result.get(key) if isinstance(result, dict) else None
    return result


def _run(folder: epath.Path, results: dict[str, Any]) -> list[Node]:
    """Whose scores these are; more than one list if the files differ in that."""
    groups: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for name, result in results.items():
        told = {
            "checkpoint": _at(result, "checkpoint", "directory"),
            "step": _at(result, "checkpoint", "step"),
            "embeddings": _at(result, "embeddings", "file"),
            "dataset": _at(result, "data", "identity"),
            "dataset's folder": _at(result, "data", "directory"),
            "code version": _at(result, "version"),
        }
        known = tuple((key, str(value)) for key, value in told.items() if value is not None)
        groups.setdefault(known, []).append(name)
    nodes = []
    if len(groups) > 1:
        warning = "These files are not all of the same checkpoint, data and code version."
        nodes.append(_node("p", warning, class_="mixed"))
    for known, names in groups.items():
        items = [*known] or [("model and data", "the files do not tell")]
        dates = [f"{name}.json of {_date(folder / f'{name}.json')}" for name in names]
        items.append(("files", "; ".join(dates)))
        pairs = [node for key, value in items for node in (_node("dt", key), _node("dd", value))]
        nodes.append(_node("dl", *pairs))
    return nodes


def _date(path: epath.Path) -> str:
    return f"{datetime.datetime.fromtimestamp(path.stat().mtime, datetime.UTC):%Y-%m-%d %H:%M} UTC"


def _scores(rows: Sequence[ScoreRow], evaluations: dict[str, Evaluation]) -> list[Node]:
    columns = ("model", results_table.UNTRAINED, "best trivial baseline", "verdict")
    head = _node("tr", *(_node("th", name, scope="col") for name in ("score", *columns)))
    table = _node("table", _node("thead", head), class_="scores")
    for name, evaluation in evaluations.items():
        mine = [row for row in rows if row.evaluation == name]
        if not mine:
            continue
        link = _node("a", evaluation.title, href=f"#{name}")
        body = _node("tbody", _node("tr", _node("th", link, colspan="5", scope="rowgroup")))
        for row in mine:
            cells = [
                _node("td", cell, data_label=column)
                for cell, column in zip(row.cells, columns, strict=True)
            ]
            cells[-1].set("class", _class(row))
            lower = " (lower is better)" if results_table.lower_is_better(row.column) else ""
            body.append(_node("tr", _node("th", row.score + lower, scope="row"), *cells))
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
    return [_node("p", note), _node("div", table, class_="wide", tabindex="0")]


def _class(row: ScoreRow) -> str:
    """The colour of a verdict, which its words say, too."""
    kinds = set(row.comparisons.values())
    if not kinds:
        return "none"
    if kinds == {"better than"}:
        return "better"
    return "mixed" if "better than" in kinds else "worse"


def _training(workdir: epath.Path) -> list[Node]:
    if not workdir.is_dir():
        raise UserError(f"--workdir={workdir} is no folder")
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return []
    series = curves.read(path)
    pictures = [
        figure
        for title, data in curves.draw(series)
        for figure in _figures([(path, data)], f"Curve of the training: {title}")
    ]
    if not pictures:
        return []
    last = [
        (name, (f"{step:g}", f"{value:.4g}"), False)
        for name, step, value in curves.last_values(series)
    ]
    return [
        _node("p", f"From {path}. The last value of each curve is in the table."),
        _node("div", *pictures, class_="curves"),
        _table(("metric", "last step", "last value"), last),
    ]


def _evaluation(
    folder: epath.Path,
    name: str,
    result: Any,
    evaluation: Evaluation,
    pictures: list[tuple[epath.Path, bytes]],
) -> Iterator[Node]:
    meaning, alt = MEANINGS[_module(name)]
    yield _node("p", meaning)
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
        yield _table(("", *columns), cells)
    else:
        yield _node("p", "The dataset has no truth to score against.")
    classes = _at(result, "classes")
    if isinstance(classes, dict) and all(isinstance(row, dict) for row in classes.values()):
        yield _classes(classes)
    yield from _figures(pictures, alt)
    yield _node("p", "Made by this command, as far as the file tells:", class_="note")
    yield _node("pre", _node("code", command(folder, name, result)))


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
    heading = f"Each of the {len(classes)} classes (shares in percent)"
    return _node("details", _node("summary", heading), _table(("class", *columns), rows))


def _numbers(result: Any) -> Node:
    """The first numbers of a result that the project does not know."""
    found = list(_leaves(result))
    rows = [(key, (f"{value:.6g}",), False) for key, value in found[:NUMBERS]]
    if len(found) > NUMBERS:
        rows.append((f"… and {len(found) - NUMBERS} more in the file", ("",), False))
    return _table(("key", "number"), rows)


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
    for path in sorted(folder.glob("*.png")):
        owners = [n for n in results if path.stem == n or path.stem.startswith(f"{n}_")]
        if owners:
            found[max(owners, key=len)].append((path, path.read_bytes()))
    return found


def _figures(pictures: list[tuple[epath.Path, bytes]], alt: str) -> Iterator[Node]:
    for path, data in pictures:
        if data[:8] != PNG or data[12:16] != b"IHDR" or len(data) < 24:
            raise UserError(f"{path} is no PNG picture")
        width, height = struct.unpack(">II", data[16:24])
        source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        image = _node("img", src=source, alt=alt, width=str(width), height=str(height))
        yield _node("figure", image, _node("figcaption", f"{path.name}: {alt}."))


def _module(name: str) -> str:
    return "probe" if name.startswith("probe") else name


def command(folder: epath.Path, name: str, result: dict[str, Any]) -> str:
    """The command line that a result came from, as far as the result tells, a line a flag."""
    words = [f"python -m cavmae_sync_jax.evals.{_module(name)}"]
    embeddings = _at(result, "embeddings", "file")
    flags = {
        "embeddings": embeddings,
        "checkpoint": _at(result, "checkpoint", "directory"),
        "data": _at(result, "data", "directory"),
        "clips": _at(result, "clips_list", "file"),
        "output": str(folder),
        "map": _at(result, "map"),
        "sets": _at(result, "sets"),
        "query": _at(result, "query"),
        "tokens": _at(result, "tokens"),
        "tolerance": _at(result, "tolerance"),
        "mask_ratio": _at(result, "mask", "ratio"),
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
