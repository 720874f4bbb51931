"""Puts small faults into a module, one at a time, and tells which of them its tests do not notice.

    python -m benchmarks.testing.mutants training/losses
    python -m benchmarks.testing.mutants evals/metrics/ranking --tenths=1

mutmut makes the faults (mutants) in a copy of the tree: another operator, number, argument, string
or branch. `MODULES` says which tests must notice the faults of a module. Of these, mutmut runs
those that reach the changed function. JAX and the tests are imported once, in a server that forks
a process for each mutant. A process that is forked after JAX has computed would hang. mutmut
changes no function with a decorator, such as `jax.jit`, and no constant of a module.
"""

import argparse
import collections
import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys

from cavmae_sync_jax.utils import cli
from cavmae_sync_jax.utils.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]
PACKAGE = "cavmae_sync_jax"
PREPARED = "tests/data/test_loader.py"
# The tests that must notice a fault in a module. None of them may start JAX when it is imported.
MODULES = {
    "training/losses": ("tests/training/test_losses.py",),
    "training/optim": ("tests/training/test_optim.py",),
    "training/train_step": ("tests/training/test_train_step.py",),
    "training/probing": ("tests/evals/test_probe.py",),
    "models/masking": ("tests/models/test_masking.py",),
    "media/audio": ("tests/media/test_audio.py",),
    "data/pair_spec": (PREPARED,),
    "data/loader": (PREPARED,),
    "data/disk_shards": ("tests/data/test_disk_shards.py",),
    "checkpoints/manager": (
        "tests/checkpoints/test_manager.py",
        "tests/checkpoints/test_stored_state.py",
    ),
    "evals/metrics/average_precision": ("tests/evals/test_classification_metrics.py",),
    "evals/metrics/bootstrap": ("tests/evals/test_bootstrap.py",),
    "evals/metrics/classification": ("tests/evals/test_classification_metrics.py",),
    "evals/metrics/localisation": ("tests/evals/test_localisation_metrics.py",),
    "evals/metrics/ranking": ("tests/evals/test_ranking.py",),
    "evals/metrics/retrieval": ("tests/evals/test_retrieval_metrics.py",),
    "evals/metrics/segmentation": ("tests/evals/test_segmentation_metrics.py",),
    "evals/metrics/temporal": ("tests/evals/test_temporal.py",),
    "evals/probe": ("tests/evals/test_probe.py",),
}

# A mutant may take three times as long as its tests do, and a minute more.
SETTINGS = """
[tool.mutmut]
source_paths = ["{package}"]
only_mutate = ["{package}/{module}.py"]
also_copy = ["benchmarks", "configs", "data_prep"]
pytest_add_cli_args = ["-n0", "-p", "no:cacheprovider"]
pytest_add_cli_args_test_selection = {tests}
process_isolation = "forkserver"
timeout_constant = 20.0
timeout_multiplier = 3.0
track_dependencies = false
use_git_change_detection = false
"""


def lay_out(module: str, folder: pathlib.Path) -> None:
    """Copies the tree as git knows it to a new folder, with mutmut's settings for the module."""
    shutil.rmtree(folder, ignore_errors=True)
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():  # not deleted just now
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    settings = SETTINGS.format(package=PACKAGE, module=module, tests=json.dumps(MODULES[module]))
    with (folder / "pyproject.toml").open("a") as file:
        file.write(settings)


def patterns(tenths: int) -> list[str]:
    """Names of an even share of the mutants, the first one of each function among them."""
    digits = "".join(str((1 + 10 * place // tenths) % 10) for place in range(tenths))
    return [f"*__mutmut_*[{digits}]"]


def mutmut(folder: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess:
    """Runs mutmut in a folder; its words are shown unless they are asked for."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder),
        # Nobody else needs the compiled programs of mutants.
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
    }
    command = [sys.executable, "-m", "mutmut", *arguments]
    shown = arguments[0] == "run"
    return subprocess.run(
        command, cwd=folder, env=environment, text=True, capture_output=not shown, check=not shown
    )


def run(module: str, workdir: pathlib.Path, tenths: int) -> dict[str, str]:
    """Tests mutants of a module, and returns what became of each.

    Raises:
      UserError: if the module has no tests here, or they fail without a fault.
    """
    if module not in MODULES:
        raise UserError(f"MODULE={module} must be one of {', '.join(MODULES)}")
    if importlib.util.find_spec("mutmut") is None:
        raise UserError('mutmut is missing: pip install -e ".[test,mutants]"')
    folder = workdir / module
    lay_out(module, folder)
    done = mutmut(folder, "run", "--max-children=1", *patterns(tenths))
    if done.returncode:
        raise UserError(f"mutmut ended with status {done.returncode}; its output is above")
    lines = mutmut(folder, "results", "--all=true").stdout.split("\n")
    pairs = (line.strip().rsplit(": ", 1) for line in lines if ": " in line)
    return {name: status for name, status in pairs if status != "not checked"}


def main() -> None:
    """Runs the command line."""
    arguments = cli.parser(__doc__)
    arguments.add_argument("module", metavar="MODULE", help=f"one of {', '.join(MODULES)}")
    arguments.add_argument(
        "--tenths",
        type=int,
        default=10,
        choices=range(1, 11),
        help="how many of ten mutants to try",
    )
    arguments.add_argument(
        "--workdir",
        type=pathlib.Path,
        default=pathlib.Path("runs/mutants"),
        help="folder for the copy of the tree",
    )

    def start(args: argparse.Namespace) -> None:
        found = run(args.module, args.workdir.absolute(), args.tenths)
        folder = args.workdir.absolute() / args.module
        for name, status in found.items():
            if status != "killed":
                print(f"\n{status}\n{mutmut(folder, 'show', name).stdout}")
        counts = collections.Counter(found.values())
        counted = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
        print(f"{args.module}: {len(found)} mutants: {counted}")

    cli.main(arguments, start)


if __name__ == "__main__":
    main()
