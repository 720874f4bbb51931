"""The project's own files agree with each other, and a packed copy holds every module."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
VERSIONS = [
    text.rpartition(" ")[2]
    for text in PROJECT["classifiers"]
    if text.startswith("Programming Language")
]


def test_the_workflow_runs_on_every_supported_python():
    assert VERSIONS == ["3.11", "3.12", "3.13", "3.14"]
    first, last = (int(version.partition(".")[2]) for version in (VERSIONS[0], VERSIONS[-1]))
    assert PROJECT["requires-python"] == f">=3.{first},<3.{last + 1}"
    workflow = (ROOT / ".github/workflows/test.yml").read_text()
    assert re.findall(r'"(3\.\d+)"', workflow) == VERSIONS and "run: .ci/run" in workflow
    assert "3.11, 3.12, 3.13 or 3.14" in (ROOT / "README.md").read_text()


def test_every_commit_is_checked_by_the_ruff_of_the_suite():
    ruff = next(name for name in PROJECT["optional-dependencies"]["test"] if "ruff" in name)
    assert f"rev: v{ruff.partition('==')[2]}" in (ROOT / ".pre-commit-config.yaml").read_text()


def test_dataflow_gets_every_module(tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    subprocess.run(
        [sys.executable, "setup.py", "-q", "egg_info", f"-e{tmp_path}", "sdist", f"-d{tmp_path}"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    [archive] = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        inside = {name.partition("/")[2] for name in packed.getnames()}
    ours = {
        path.relative_to(ROOT).as_posix()
        for package in ("cavmae_sync_jax", "data_prep")
        for path in (ROOT / package).rglob("*")
        if path.suffix == ".py" or path.name == "py.typed"
    }
    assert len(ours) > 100 and ours <= inside
