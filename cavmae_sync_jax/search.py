"""Finds the files and moments of an index that are nearest to a sound, a picture or a video.

Examples:
  python -m cavmae_sync_jax.search runs/index --sound=bark.wav --output=runs/bark
  python -m cavmae_sync_jax.search runs/index --image=dog.jpg --top=20

A sound finds pictures, a picture finds sounds, and a video finds both. Prints a table and writes
OUTPUT/search.json and OUTPUT/search.html, a page with a player at every hit's moment.

The search is exact. --approximate is for indexes that are too large for that: it builds a graph of
the vectors first, keeps it in INDEX, and compares the files that the graph proposes.

A similarity is a mean of cosines, from -1 to 1. Its percentile says more: of the index's other
videos, the percentage that match the hit less than the query does. Some sounds, such as beeps,
match everything equally: they have high similarities, but percentiles near 50.
"""

import argparse
import html
import json
import os
import pathlib
import string
from typing import Any
from urllib.parse import quote

from cavmae_sync_jax.inference import model as models
from cavmae_sync_jax.inference import reading
from cavmae_sync_jax.inference.index import approximate as graphs
from cavmae_sync_jax.inference.index import nearest
from cavmae_sync_jax.inference.index.nearest import Found, Hit
from cavmae_sync_jax.inference.index.store import Index
from cavmae_sync_jax.inference.model import Model
from cavmae_sync_jax.media.audio import ROWS_PER_SECOND
from cavmae_sync_jax.utils import cli, path_names
from cavmae_sync_jax.utils.errors import UserError

QUERIES = {"sound": "sound", "image": "picture", "video": "video"}

ABOUT = (
    "The similarity is a mean of cosines, from \u22121 to 1. The percentile compares it with up to "
    f"{nearest.OTHERS} other videos of the index: it is the percentage of them that match the file "
    "less than this query does. At chance it is 50."
)
# Browsers play few formats, and files may be gone.
_FAILED = "onerror=\"this.replaceWith('This browser can\u2019t show the file.')\""
_PAGE = string.Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Search: $title</title>
<style>
body { font-family: sans-serif; max-width: 72rem; margin: 1rem auto; padding: 0 1rem; }
ol { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem; }
li { overflow-wrap: anywhere; }
video, img, audio { display: block; width: 100%; max-height: 12rem; background: #eee; }
video, img { object-fit: contain; }
p { margin: 0.3rem 0; }
</style>
</head>
<body>
<h1>Nearest to $title</h1>
<figure>$query</figure>
<p>$about</p>
<h2>Files</h2>
<ol>
$clips
</ol>
<h2>Moments</h2>
<ol>
$moments
</ol>
</body>
</html>
""")


def run(
    model: Model,
    index: Index,
    kind: str,
    file: str,
    output: str | os.PathLike,
    top: int = 10,
    *,
    approximate: bool = False,
) -> dict[str, Any]:
    """Searches an index; writes `search.json` and `search.html`.

    Args:
      model: that the index was made by.
      index: where to look.
      kind: of `QUERIES`.
      file: the query.
      output: a folder.
      top: how many files and moments.
      approximate: whether only files that `inference.index.approximate` proposes are compared.

    Returns:
      What `search.json` holds.

    Raises:
      UserError: if the file can't be read, the model is another one, or nothing can be compared.
    """
    if top < 1:
        raise UserError(f"--top must be at least 1, not {top}")
    index.check(model)
    path_names.check_text(file)
    _check_kind(kind, file)
    found = find(model, index, kind, file, top, approximate=approximate)
    result = {
        "query": {"kind": kind, "file": os.path.abspath(file)},
        "clips": [hit._asdict() for hit in found.clips],
        "moments": [hit._asdict() for hit in found.moments],
        "index": {"directory": str(index.directory), "model": index.model},
        "approximate": approximate,
        "version": cli.version(),
    }
    folder = pathlib.Path(cli.make_folder(output))
    (folder / "search.json").write_text(json.dumps(result, indent=2) + "\n")
    page = _page(kind, file, found, window_of(model), folder)
    (folder / "search.html").write_text(page, encoding="utf-8")  # as it says of itself
    return result


def _check_kind(kind: str, file: str) -> None:
    """Says by which flag a file is named, if it is not of the kind that its flag says."""
    there = reading.file_info(file).kind
    fits = {QUERIES[kind]} | ({"video"} if kind == "sound" else set())  # of a video, its sound
    if there not in fits:
        (flag,) = (name for name, named in QUERIES.items() if named == there)
        raise UserError(f"{file} is a {there}: name it by --{flag}, not --{kind}")


def find(
    model: Model, index: Index, kind: str, file: str, top: int, *, approximate: bool = False
) -> Found:
    """The files and moments of an index that are nearest to a file; writes nothing.

    The arguments and errors are those of `run`.
    """
    every = index.manifest["settings"]["every"]
    if kind == "image":
        query = model.embed_image(file)
    else:
        embed = model.embed_sound if kind == "sound" else model.embed_video
        query = embed(file, every=every)
    # Of an empty shortlist nothing could be said; of an empty index it is said what it lacks.
    among = (graphs.shortlist(index, query, top) or None) if approximate else None
    own = os.path.abspath(file)
    return nearest.search(index, query, top, apart=window_of(model), among=among, own=own)


def window_of(model: Model) -> float:
    """The length of a model's windows of sound, in seconds."""
    return model.pair_spec.audio_rows / ROWS_PER_SECOND


def format_table(result: dict[str, Any]) -> str:
    """The hits of `run` as text."""
    lines = [f"{'rank':>4}  {'similarity':>10}  {'percentile':>10}  {'time':>9}  file"]
    for rank, hit in enumerate(result["clips"], 1):
        place = "–" if hit["percentile"] is None else f"{hit['percentile']:.0f}"
        row = f"{rank:4}  {hit['similarity']:10.3f}  {place:>10}  {_clock(hit['time']):>9}"
        gone = "" if os.path.exists(hit["file"]) else "  (there is no such file any more)"
        lines.append(f"{row}  {hit['file']}{gone}")
    return "\n".join(lines)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds, 1), 60)  # 59.97 is 1:00.0, not 0:60.0
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02}:{rest:04.1f}" if hours else f"{minutes}:{rest:04.1f}"


def _page(kind: str, file: str, found: Found, window: float, folder: pathlib.Path) -> str:
    def address(path: str) -> str:
        # Relative, so that the page also works where its folder is served or moved with the files.
        return quote(os.path.relpath(path, os.path.abspath(folder)))

    lists = {
        name: "\n".join(item(hit, address(hit.file), window) for hit in hits)
        for name, hits in (("clips", found.clips), ("moments", found.moments))
    }
    query = _player(QUERIES[kind], file, address(file), None, window)
    return _PAGE.substitute(
        lists, title=html.escape(os.path.basename(file)), query=query, about=ABOUT
    )


def item(hit: Hit, address: str, window: float) -> str:
    """A hit as an item of an HTML list, with a player at its moment.

    Args:
      hit: what was found.
      address: of its file, as a page may name it.
      window: the length of a moment's sound, in seconds.
    """
    told = f"{_clock(hit.time)}, similarity {hit.similarity:.3f}"
    if hit.percentile is not None:
        told += f", percentile {hit.percentile:.0f}"
    player = _player(hit.kind, hit.file, address, hit.time, window)
    name, place = html.escape(os.path.basename(hit.file)), html.escape(address)
    return f'<li>{player}<p>{told}</p><p><a href="{place}">{name}</a></p></li>'


def _player(kind: str, file: str, address: str, time: float | None, window: float) -> str:
    """An element that plays a file, from the window around a moment on."""
    address = html.escape(address)
    if kind == "picture":
        name = html.escape(os.path.basename(file))
        return f'<img src="{address}" alt="{name}" loading="lazy" {_FAILED}>'
    if time is not None:
        begin = max(0.0, time - window / 2)
        address += f"#t={begin:.2f},{begin + window:.2f}"
    tag = "audio" if kind == "sound" else "video"
    return f'<{tag} src="{address}" controls preload="metadata" {_FAILED}></{tag}>'


def main() -> None:
    """Runs the command line."""
    arguments = cli.parser(__doc__)
    arguments.add_argument("index", metavar="INDEX", help="folder that embed wrote")
    query = arguments.add_mutually_exclusive_group(required=True)
    for kind in QUERIES:
        query.add_argument(f"--{kind}", metavar="FILE", help=f"{kind} to search with")
    arguments.add_argument(
        "--checkpoint", help="folder of the model; without it, the one that the index names"
    )
    arguments.add_argument(
        "--top", type=int, default=10, help="number of files and of moments to find"
    )
    arguments.add_argument(
        "--approximate", action="store_true", help="compare only a shortlist of files"
    )
    arguments.add_argument("--output", default="runs/search", help="folder of the results")

    def start(args: argparse.Namespace) -> None:
        index = Index(args.index)
        model = models.load(args.checkpoint or index.model["directory"])
        (kind,) = (name for name in QUERIES if getattr(args, name) is not None)
        result = run(
            model,
            index,
            kind,
            getattr(args, kind),
            args.output,
            args.top,
            approximate=args.approximate,
        )
        print(f"{format_table(result)}\nwritten: {args.output}/search.html")

    cli.main(arguments, start)


if __name__ == "__main__":
    main()
