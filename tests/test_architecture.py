"""Imports point one way, by folder, and neither a file nor a folder outgrows a reader."""

import ast
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = "cavmae_sync_jax"
# A folder may import those of its own and of lower tiers.
TIERS = (
    ("utils", "media"),
    ("distributed",),
    ("models", "data"),
    ("torch_compat", "checkpoints"),
    ("training",),
    ("inference",),
    ("evals",),
    ("ablations",),
)
TIER = {folder: tier for tier, folders in enumerate(TIERS) for folder in folders}
PROGRAM = len(TIERS)
LONGEST_FILE, FULLEST_FOLDER = 400, 13
# What stands before a dot in backticks, but is none of our modules.
NO_MODULES = ("arguments", "config", "csv", "functools")
# What data_prep may import of the package: nothing of it imports JAX.
FOR_PREPARATION = (f"{PACKAGE}.utils", f"{PACKAGE}.media", f"{PACKAGE}.data.dataset_dir")


def sources():
    for folder in (PACKAGE, "data_prep", "configs"):
        yield from sorted((ROOT / folder).rglob("*.py"))


def name_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def is_module(name):
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def imports(path):
    """Modules of ours that a file imports at its top level (`from package import module` too)."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            within = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if is_module(name) else node.module for name in within]
        else:
            continue
        yield from (n for n in names if n.split(".")[0] in (PACKAGE, "data_prep", "configs"))


def tier_of(name):
    """The tier of a module of the package; its programs, which lie at the top, are above all."""
    folder = name.split(".")[1]
    return TIER.get(folder, PROGRAM)


def allowed(name, target):
    """Whether module `name` may import `target`."""
    package = target.split(".")[0]
    if name.startswith("configs") or package == "configs":
        return False
    if name.startswith("data_prep"):
        return package == "data_prep" or target.startswith(FOR_PREPARATION)
    if package == "data_prep" or target == PACKAGE:
        return False
    if tier_of(name) == tier_of(target) and name.split(".")[1] != target.split(".")[1]:
        # Of two folders in one tier neither needs the other, but programs may share.
        return tier_of(name) == PROGRAM
    return tier_of(target) <= tier_of(name)


def test_every_folder_has_a_tier():
    folders = {path.name for path in (ROOT / PACKAGE).iterdir() if (path / "__init__.py").exists()}
    assert folders == set(TIER)


def test_imports_point_one_way():
    pairs = [(name_of(path), target) for path in sources() for target in imports(path)]
    assert len(pairs) > 200
    assert [pair for pair in pairs if not allowed(*pair)] == []


@pytest.mark.parametrize(
    ("name", "target"),
    [
        (f"{PACKAGE}.models.layers", f"{PACKAGE}.training.losses"),
        (f"{PACKAGE}.data.loader", f"{PACKAGE}.models.cavmae_sync"),
        (f"{PACKAGE}.evals.probe", f"{PACKAGE}.train"),
        ("data_prep.videos", f"{PACKAGE}.data.loader"),
        ("configs.demo", f"{PACKAGE}.models.cavmae_sync"),
    ],
)
def test_what_is_forbidden(name, target):
    assert not allowed(name, target)


def test_a_module_that_is_run_lies_at_the_top_of_its_package():
    folders = {
        path.parent.relative_to(ROOT).as_posix()
        for path in sources()
        if "\nif __name__ ==" in path.read_text()
    }
    assert folders == {PACKAGE, f"{PACKAGE}/evals", "data_prep"}


def test_files_and_folders_stay_small():
    lines = {name_of(path): len(path.read_text().splitlines()) for path in sources()}
    assert {name: count for name, count in lines.items() if count > LONGEST_FILE} == {}
    modules = [path.parent for path in sources() if path.name != "__init__.py"]
    crowded = {folder for folder in modules if modules.count(folder) > FULLEST_FOLDER}
    assert crowded == set()


def defined(path):
    """The functions, classes and variables of a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def test_what_comments_and_docstrings_name_exists():
    paths = [*sources(), *(ROOT / "benchmarks").rglob("*.py")]
    names = {path: set(defined(path)) for path in paths}
    known = set().union(*names.values())
    folders = {part for path in paths for part in path.relative_to(ROOT).parts[:-1]}
    stale = []
    for path in paths:
        for module, name in re.findall(r"`([a-z_]+)\.([A-Za-z_]+)`", path.read_text()):
            if name not in known or module in (*folders, *NO_MODULES) or name == "html":
                continue
            if not any(name in found for where, found in names.items() if where.stem == module):
                stale.append((path.name, f"{module}.{name}"))
    assert stale == []


def test_no_module_shadows_the_standard_library():
    # A program may be run by its path, which puts its folder first on the search path.
    tops = [path.stem for path in sources() if path.name != "__init__.py"]
    assert set(tops) & set(sys.stdlib_module_names) == set()


@pytest.mark.parametrize("path", ["data_prep/scenes.py", "cavmae_sync_jax/convert.py"])
def test_a_program_runs_by_its_path(path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}  # as where the package is installed
    command = [sys.executable, path, "--help"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "--" in done.stdout, done.stderr


def test_a_test_module_imports_no_other():
    for path in (ROOT / "tests").rglob("test_*.py"):
        text = path.read_text()
        assert not re.search(r"^ *(from|import) test_", text, re.MULTILINE), path
