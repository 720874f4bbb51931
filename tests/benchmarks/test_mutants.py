"""The program that puts faults into modules, with a stand-in for mutmut."""

import ast
import fnmatch
import subprocess
import tomllib

import pytest

from benchmarks.testing import mutants
from cavmae_sync_jax.utils.errors import UserError

RESULTS = """    cavmae_sync_jax.training.losses.x_total__mutmut_1: killed
    cavmae_sync_jax.training.losses.x_total__mutmut_2: survived
    cavmae_sync_jax.training.losses.x_total__mutmut_3: not checked
"""


def test_modules_and_their_tests_exist():
    for module, tests in mutants.MODULES.items():
        assert (mutants.ROOT / mutants.PACKAGE / f"{module}.py").exists()
        for test in tests:
            file, _, name = test.partition("::")
            assert f"def {name}" in (mutants.ROOT / file).read_text(), test


@pytest.mark.parametrize(("tenths", "last"), [(1, "1"), (3, "147"), (10, "1234567890")])
def test_a_share_is_even_and_holds_the_first_of_each_function(tenths, last):
    (pattern,) = mutants.patterns(tenths)
    names = [f"a.b.x_f__mutmut_{number}" for number in range(1, 101)]
    chosen = fnmatch.filter(names, pattern)
    assert len(chosen) == 10 * tenths and {name[-1] for name in chosen} == set(last)
    assert chosen[0] == names[0]


@pytest.fixture
def asked(monkeypatch):
    """What a stand-in for mutmut is asked for."""
    asked = []

    def stand_in(folder, *arguments):
        asked.append((folder, *arguments))
        said = {"results": RESULTS, "show": f"- of {arguments[-1]}", "run": None}[arguments[0]]
        return subprocess.CompletedProcess(arguments, 0, said)

    monkeypatch.setattr(mutants, "mutmut", stand_in)
    monkeypatch.setattr(mutants.importlib.util, "find_spec", lambda name: name)
    return asked


def test_what_is_not_noticed_is_printed(asked, tmp_path, monkeypatch, capsys):
    flags = ["mutants", "training/losses", "--tenths=2", f"--workdir={tmp_path}"]
    monkeypatch.setattr("sys.argv", flags)
    mutants.main()
    printed = capsys.readouterr().out
    assert "- of cavmae_sync_jax.training.losses.x_total__mutmut_2" in printed
    assert "mutmut_1" not in printed and "mutmut_3" not in printed
    assert printed.endswith("training/losses: 2 mutants: 1 killed, 1 survived\n")
    folder = tmp_path / "training/losses"
    assert asked[0] == (folder, "run", "--max-children=1", "*__mutmut_*[16]")
    settings = tomllib.loads((folder / "pyproject.toml").read_text())["tool"]["mutmut"]
    assert settings["only_mutate"] == ["cavmae_sync_jax/training/losses.py"]
    (tests,) = settings["pytest_add_cli_args_test_selection"]
    assert (folder / tests).exists() and (folder / settings["only_mutate"][0]).exists()


def test_mistakes_are_told(asked, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"MODULE=losses must be one of training/losses, "):
        mutants.run("losses", tmp_path, 1)
    failed = subprocess.CompletedProcess((), 1)
    monkeypatch.setattr(mutants, "mutmut", lambda *_: failed)
    with pytest.raises(UserError, match="mutmut ended with status 1"):
        mutants.run("training/losses", tmp_path, 1)
    monkeypatch.setattr(mutants.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"mutmut is missing: pip install -e"):
        mutants.run("training/losses", tmp_path, 1)


def test_no_test_module_starts_jax_when_it_is_imported():
    files = {test.partition("::")[0] for tests in mutants.MODULES.values() for test in tests}
    for file in files:
        for node in ast.parse((mutants.ROOT / file).read_text()).body:
            if isinstance(node, ast.Assign | ast.AnnAssign | ast.Expr):
                names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
                assert not names & {"jax", "jnp"}, f"{file}, line {node.lineno}"
