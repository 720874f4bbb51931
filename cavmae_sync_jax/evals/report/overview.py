"""Pieces of HTML about a model: facts, training curves and scores.

All text and all values are escaped.
"""

import base64
import html
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from cavmae_sync_jax.checkpoints import manager
from cavmae_sync_jax.evals.report import curves, results_table
from cavmae_sync_jax.utils.errors import UserError

METRICS, EVALS = "metrics.jsonl", "evals"
COLUMNS = ("score", "model", results_table.UNTRAINED, "best trivial baseline", "verdict")


def facts(pairs: Iterable[tuple[str, Any]]) -> str:
    """A list of names and values."""
    return f"<dl>{''.join(f'<dt>{_text(k)}</dt><dd>{_text(v)}</dd>' for k, v in pairs)}</dl>"


def training(workdir: pathlib.Path) -> str | None:
    """The curves of a training, and where each ends; None if the workdir has none.

    Raises:
      UserError: if its metrics can't be read.
    """
    path = workdir / METRICS
    if not path.is_file():
        return None
    series = curves.read(path)
    pictures = "".join(_picture(title, data) for title, data in curves.draw(series))
    ends = [(name, f"{value:.4g}", f"{step:g}") for name, step, value in curves.last_values(series)]
    return pictures + _table(("metric", "last value", "at step"), ends)


def workdir_of(directory: str) -> pathlib.Path:
    """The workdir of a checkpoint, which may be named by its own folder or the one around it."""
    path = pathlib.Path(directory)
    if (path / manager.FOLDER).is_dir():  # whatever it and the folder around it are called
        return path
    return next((p.parent for p in (path, path.parent) if p.name == manager.FOLDER), path)


def scores(folder: pathlib.Path, workdir: pathlib.Path, step: int) -> str | None:
    """The scores and pictures that evaluations of a model left in a folder; None if there are none.

    Args:
      folder: the evaluations' `--output`.
      workdir: of the model; results of other models are left out.
      step: of the model, for other steps are other models.

    Raises:
      UserError: if a file is not what its name says.
    """
    pieces = []
    for name in results_table.READERS:
        path = folder / f"{name}.json"
        if not path.is_file():
            continue
        try:
            result = json.loads(path.read_text())
            if "embeddings" in result:  # of another system
                continue
            checkpoint = result["checkpoint"]
            directory, of_step = checkpoint["directory"], checkpoint["step"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is not the JSON of an evaluation: {error!r}") from error
        # A relative name is one from the folder that the evaluation ran in, which lies above.
        places = (pathlib.Path(), *folder.resolve().parents)
        theirs = {workdir_of(str(place / directory)).resolve() for place in places}
        if workdir.resolve() not in theirs or of_step != step:
            continue
        found = results_table.read(name, result)
        if found is None:
            continue
        rows = [(row.score, *row.cells) for row in results_table.rows({name: found})]
        picture = path.with_suffix(".png")
        pieces.append(f"<h3>{_text(found.title)}</h3>{_table(COLUMNS, rows)}")
        if picture.is_file():
            pieces.append(_picture(found.title, picture.read_bytes()))
    return "".join(pieces) or None


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{_text(cell)}</{tag}>' for cell in cells)}</tr>"

    body = "".join(row(cells, "td") for cells in rows)
    return f"<table><thead>{row(columns, 'th')}</thead><tbody>{body}</tbody></table>"


def _picture(title: str, png: bytes) -> str:
    data = base64.b64encode(png).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{_text(title)}">'


def _text(value: Any) -> str:
    return html.escape(str(value))
