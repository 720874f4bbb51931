"""Reads what a compiled program does from its text: loops, traffic to memory, kernels, arrays.

The text is that of XLA's `HloModule`, as `compiled.as_text()` gives it for any device.
"""

import collections
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

WIDTHS = {"f64": 8, "s64": 8, "u64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2}
WIDTHS |= {"s16": 2, "u16": 2, "s8": 1, "u8": 1, "pred": 1}
CALL = re.compile(r"(?:calls|body|to_apply|called_computations=\{)=?%([\w.-]+)")
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)$")
# These name or arrange arrays that others wrote.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional"}
FREE |= {"call", "after-all", "async-done", "copy-done", "partition-id", "opt-barrier"}


class Instruction(NamedTuple):
    """One line of a computation. `shape` is its result's, `rest` what stands behind the operands'
    opening bracket.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str
    root: bool


class Traffic(NamedTuple):
    """Bytes that the instructions of one kind read and write, and how many of them a step runs."""

    bytes: float
    count: int


def computations(text: str) -> dict[str, list[str]]:
    """The instructions of each computation of an HLO module's text."""
    found: dict[str, list[str]] = {}
    current: list[str] = []
    for line in text.splitlines():
        if match := re.match(r"(ENTRY )?%([\w.-]+) \(.*\{$", line):
            current = found.setdefault("ENTRY" if match[1] else match[2], [])
        elif line.startswith("  "):
            current.append(line)
    return found


def runs(blocks: dict[str, list[str]]) -> dict[str, int]:
    """How often a step runs each computation: loops multiply, by the number they count to."""

    def callees(name: str) -> Iterator[tuple[str, int]]:
        for line in blocks[name]:
            times = 1
            if loop := re.search(r" while\(.*condition=%([\w.-]+)", line):
                times = _limit(blocks, loop[1])
            for callee in CALL.findall(line):
                if callee in blocks:
                    yield callee, times

    totals: collections.Counter = collections.Counter()

    def visit(name: str, times: int) -> None:
        totals[name] += times
        for callee, more in callees(name):
            visit(callee, times * more)

    visit("ENTRY", 1)
    return dict(totals)


def _limit(blocks: dict[str, list[str]], condition: str) -> int:
    """What a loop's condition compares with. On GPUs the comparison is in a fusion of its own."""
    lines = "".join(blocks[condition])
    limits = [int(number) for number in re.findall(r"constant\((\d+)\)", lines)]
    for callee in CALL.findall(lines):
        limits.append(_limit(blocks, callee) if callee in blocks else 1)
    return max(limits, default=1)


def sizes(shapes: str) -> list[float]:
    """Bytes of each array, without the scalars that asynchronous operations carry along."""
    found = re.findall(r"(\w+)\[([\d,]+)\]", shapes)
    return [
        WIDTHS[kind] * math.prod(map(int, dims.split(",")))
        for kind, dims in found
        if kind in WIDTHS
    ]


def instructions(lines: list[str]) -> list[Instruction]:
    """Takes a computation's lines apart."""
    found = []
    for line in lines:
        # Comments number the elements of long tuples, and layouts have brackets of their own.
        if match := INSTRUCTION.match(re.sub(r"/\*.*?\*/|\{[\d,]*(?::[^}]*)?\}", "", line)):
            name, shape, opcode, rest = match.groups()
            operands = tuple(re.findall(r"%([\w.-]+)", rest.split(")")[0]))
            found.append(Instruction(name, shape, opcode, operands, rest, "ROOT %" in line))
    return found


def traffic(text: str) -> dict[str, Traffic]:
    """What a step reads from memory and writes to it, by the kind of instruction.

    Every instruction outside of fusions reads its operands and writes its result once. A fusion
    reads only what it takes of an operand, if it slices it, and writes only what it updates.
    Caches are not modelled. The kind of a custom call is its target, and that of a fusion what it
    is made of: `matrices`, `slices of stacks`, `copies`, `reductions` or `element-wise`.
    """
    blocks = computations(text)
    totals = runs(blocks)
    parsed = {name: instructions(lines) for name, lines in blocks.items()}
    fused = {
        callee
        for name in blocks
        for one in parsed[name]
        if one.opcode not in ("while", "conditional", "call", "async-start")
        for callee in CALL.findall(one.rest)
    }
    sums: dict[str, Traffic] = {}
    for name, body in parsed.items():
        if name in fused or not totals.get(name):
            continue
        shapes = {one.name: one.shape for one in body}
        for one in body:
            if one.opcode in FREE or one.opcode.endswith("-done"):
                continue
            inner = [parsed[c] for c in CALL.findall(one.rest) if c in parsed]
            kind = _kind(one, inner)
            moved = _moved(one, shapes, inner[0] if one.opcode == "fusion" and inner else None)
            old = sums.get(kind, Traffic(0.0, 0))
            sums[kind] = Traffic(old.bytes + totals[name] * moved, old.count + totals[name])
    return sums


def _moved(one: Instruction, shapes: dict[str, str], inner: list[Instruction] | None) -> float:
    operands = [sum(sizes(shapes.get(name, ""))) for name in one.operands]
    result = sum(sizes(one.shape))
    if inner is None:
        return _sliced(one, operands, result)
    by_name = {i.name: i for i in inner}
    total = 0.0
    for parameter in inner:
        if parameter.opcode != "parameter":
            continue
        index = int(parameter.rest.split(")")[0])
        users = [i for i in inner if parameter.name in i.operands]
        if users and all(_takes_part(user, parameter.name) for user in users):
            total += sum(
                sum(sizes(user.shape)) for user in users if user.opcode != "dynamic-update-slice"
            )
        else:
            total += operands[index] if index < len(operands) else 0.0
    root = next(i for i in inner if i.root)
    while root.opcode in ("bitcast", "convert", "copy") and root.operands[0] in by_name:
        root = by_name[root.operands[0]]
    written = [by_name[n] for n in root.operands] if root.opcode == "tuple" else [root]
    for output in written:
        if output.opcode == "dynamic-update-slice" and output.operands[1] in by_name:
            total += sum(sizes(by_name[output.operands[1]].shape))
        else:
            total += sum(sizes(output.shape))
    return total


def _takes_part(user: Instruction, name: str) -> bool:
    whole = user.opcode in ("dynamic-slice", "slice", "gather", "dynamic-update-slice")
    return whole and user.operands[0] == name


def _sliced(one: Instruction, operands: list[float], result: float) -> float:
    if one.opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * result
    if one.opcode == "dynamic-update-slice":
        return 2 * operands[1]
    return sum(operands) + result


def _kind(one: Instruction, inner: list[list[Instruction]]) -> str:
    if one.opcode == "custom-call":
        target = re.search(r'custom_call_target="([^"]+)"', one.rest)
        return target[1] if target else "custom-call"
    opcodes = {i.opcode for body in inner for i in body} | {one.opcode}
    for kind, members in {
        "matrices": {"dot", "convolution"},
        "slices of stacks": {"dynamic-slice", "dynamic-update-slice"},
        "gathers and scatters": {"gather", "scatter"},
        "sorts": {"sort"},
        "reductions": {"reduce", "reduce-window"},
    }.items():
        if opcodes & members:
            return kind
    moves = {"copy", "transpose", "concatenate", "slice", "pad", "broadcast", "reverse", "iota"}
    quiet = moves | FREE | {"fusion", "convert", "reshape", "copy-start"}
    return "copies" if opcodes <= quiet else "element-wise"


def largest_arrays(text: str, count: int) -> list[tuple[float, str, str]]:
    """The largest different results outside of fusions: bytes, shape and the model's line."""
    blocks = computations(text)
    totals, found = runs(blocks), {}
    for name, lines in blocks.items():
        if not totals.get(name) or name.startswith(("fused", "wrapped", "region", "gemm")):
            continue
        for line in lines:
            for one in instructions([line]):
                if one.opcode in FREE:
                    continue
                for shape in re.findall(r"\w+\[[\d,]+\]", one.shape):
                    where = re.search(r'op_name="([^"]*)"', line)
                    size = sum(sizes(shape))
                    found.setdefault((size, shape), where[1] if where else one.opcode)
    ordered = sorted(found.items(), key=lambda item: -item[0][0])
    return [(size, shape, where) for (size, shape), where in ordered[:count]]
