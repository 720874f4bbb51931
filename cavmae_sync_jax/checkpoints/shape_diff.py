"""All differences between the arrays that a model needs and those that a file holds."""

import re
from collections.abc import Iterable, Iterator, Mapping

Shape = tuple[int, ...]


def mismatch(expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> str | None:
    """All missing, unexpected and wrongly shaped names, one kind per line; None if there are none.

    Names that differ only in a layer's number are joined, such as `blocks.{0–10}.bias`.
    """
    both = [name for name in expected if name in found]
    wrong = [
        (name, f"{list(found[name])} instead of {list(expected[name])}")
        for name in both
        if tuple(found[name]) != tuple(expected[name])
    ]
    lines = [
        f"\n  {title}: {', '.join(_grouped(named))}"
        for title, named in (
            ("missing", [(name, "") for name in expected if name not in found]),
            ("unexpected", [(name, "") for name in found if name not in expected]),
            ("wrongly shaped", wrong),
        )
        if named
    ]
    return "".join(lines) or None


def _grouped(named: Iterable[tuple[str, str]]) -> Iterator[str]:
    layers: dict[tuple[str, str, str], list[int]] = {}
    for name, text in named:
        match = re.fullmatch(r"(.*?)(?:\.(\d{1,4})(\..*))?", name, re.DOTALL)
        assert match  # the first group matches any name
        before, number, after = match.groups()
        layers.setdefault((before, after or "", text), []).extend([int(number)] if number else [])
    for (before, after, text), numbers in layers.items():
        yield f"{before}{'.' + _ranges(sorted(numbers)) if numbers else ''}{after} {text}".rstrip()


def _ranges(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return str(numbers[0])
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return "{" + ", ".join(f"{r[0]}–{r[-1]}" if r[1:] else str(r[0]) for r in runs) + "}"
