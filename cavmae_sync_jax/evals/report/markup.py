"""HTML pages that need no other file and no network: their elements, and a page of sections."""

import base64
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from xml.etree import ElementTree

from etils import epath

from cavmae_sync_jax.evals.report.texts import CSS
from cavmae_sync_jax.utils.errors import UserError

Node = ElementTree.Element
PNG = b"\x89PNG\r\n\x1a\n"


def document(title: str, sections: Mapping[str, tuple[str, Iterable[Node]]]) -> bytes:
    """A page in UTF-8 with a list of contents.

    Args:
      title: of the page.
      sections: heading and elements of each section, by its anchor.
    """
    links = [
        node("li", node("a", heading, href=f"#{anchor}"))
        for anchor, (heading, _) in sections.items()
    ]
    body = node("main", node("h1", title))
    body.append(node("nav", node("ul", *links), aria_label="Contents"))
    for anchor, (heading, nodes) in sections.items():
        body.append(node("section", node("h2", heading), *nodes, id=anchor))
    root = node(
        "html",
        node(
            "head",
            node("meta", charset="utf-8"),
            node("meta", name="viewport", content="width=device-width, initial-scale=1"),
            node("title", title),
            node("style", CSS),
        ),
        node("body", body),
        lang="en",
    )
    text = "<!DOCTYPE html>\n" + ElementTree.tostring(root, encoding="unicode", method="html")
    # HTML has no control characters, and UTF-8 no lone surrogates; JSON may have both.
    return re.sub("[\0-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", "\ufffd", text).encode()


def node(tag: str, *children: Node | str, **attributes: str) -> Node:
    """An element; the serialiser escapes all its text and attributes."""
    made = Node(tag, {name.strip("_").replace("_", "-"): v for name, v in attributes.items()})
    for child in children:
        if not isinstance(child, str):
            made.append(child)
        elif len(made):
            made[-1].tail = (made[-1].tail or "") + child
        else:
            made.text = (made.text or "") + child
    return made


def table(
    columns: Sequence[str], rows: Iterable[tuple[str, Sequence[str], bool]], kind: str = "all"
) -> Node:
    """A table of (heading, cells, whether it is the model's); the first column heads the rows."""
    head = node("tr", *(node("th", column, scope="col") for column in columns))
    body = node("tbody")
    for heading, cells, ours in rows:
        row = node("tr", node("th", heading, scope="row"), *(node("td", c) for c in cells))
        if ours:
            row.set("class", "ours")
        body.append(row)
    whole = node("table", node("thead", head), body, class_=kind)
    # Scrolls sideways where it is too wide, for which the keyboard needs a focus.
    return node("div", whole, class_="wide", tabindex="0")


def figures(pictures: Iterable[tuple[epath.Path | str, bytes]], alt: str) -> Iterator[Node]:
    """Pictures with their names, of which those of files are short, and a description.

    Raises:
      UserError: if one is not a PNG.
    """
    for source, data in pictures:
        if data[:8] != PNG or data[12:16] != b"IHDR" or len(data) < 24:
            raise UserError(f"{source} is not a PNG picture")
        width, height = struct.unpack(">II", data[16:24])
        address = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        image = node("img", src=address, alt=alt, width=str(width), height=str(height))
        name = source if isinstance(source, str) else source.name
        yield node("figure", image, node("figcaption", f"{name}: {alt}."))
