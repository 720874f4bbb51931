"""The keys of a config file with their values and the comments beside them."""

import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict


def keys(config: ConfigDict, prefix: str = "") -> list[str]:
    """The dotted keys of all values of a config."""
    dotted = []
    for key, value in config.items():
        deeper = isinstance(value, ConfigDict)
        dotted += keys(value, f"{prefix}{key}.") if deeper else [f"{prefix}{key}"]
    return dotted


def describe(file: str | Path, config: ConfigDict) -> str:
    """A line for each key: `--config.KEY=VALUE` and its comment.

    A key without a comment has the one of `pretrain.py` in the same folder.
    """
    comments: dict[str, str] = {}
    for source in (Path(file).with_name("pretrain.py"), Path(file)):
        if source.is_file():
            comments |= _comments(source.read_text())
    lines = []
    for key in keys(config):
        value = config
        for part in key.split("."):
            value = value[part]
        setting = f"--config.{key}={value}"
        lines.append(f"  {setting:48}  {comments.get(key, '')}".rstrip())
    return "\n".join(lines)


def _comments(source: str) -> dict[str, str]:
    """The comment behind each value of the dicts in a file, by its dotted key."""
    behind = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT and token.line.split("#")[0].strip()
    }

    def walk(node: ast.Dict, prefix: str) -> Iterator[tuple[str, str]]:
        for key, value in zip(node.keys, node.values, strict=True):
            if not (isinstance(key, ast.Constant) and isinstance(key.value, str)):
                continue
            dotted = f"{prefix}{key.value}"
            if isinstance(value, ast.Dict):
                yield from walk(value, f"{dotted}.")
            if isinstance(value, ast.Dict) and value.end_lineno != value.lineno:
                continue
            if value.end_lineno in behind:
                yield dotted, behind[value.end_lineno]

    found: dict[str, str] = {}
    for node in ast.walk(ast.parse(source)):
        # The config itself, not the table of variants.
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Dict):
            found |= dict(walk(node.args[0], ""))
    return found
