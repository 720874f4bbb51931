"""What every command-line program shares: flags, reports of users' mistakes, the exit status.

The exit status is 0 only on success. It is 2 after a user's mistake, with one sentence on stderr
and no traceback. It is 3 if the work is done, but does not meet what a flag demands. It is 130
after Ctrl-C and 143 after SIGTERM, which both let a program remove its temporary files. Any other
error is a defect and keeps its traceback.
"""

import argparse
import contextlib
import difflib
import errno
import functools
import importlib.metadata
import io
import os
import runpy
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import flags, logging
from etils import epath
from ml_collections import ConfigDict, config_flags

from cavmae_sync_jax.utils.config_help import describe, keys
from cavmae_sync_jax.utils.errors import Terminated, Unsatisfied, UserError

HELP_CONFIG = "--help_config"
# What the file system says when a disk, a quota or the largest size of a file is used up.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What it says where a program may not write or read.
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def version() -> str:
    """The installed package's version, which results and datasets store."""
    try:
        return importlib.metadata.version("cavmae_sync_jax")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def make_folder(path: epath.PathLike) -> epath.Path:
    """Makes an output folder, before the work begins.

    Raises:
      UserError: if it can't be made.
    """
    folder = epath.Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {folder} can't be made: {error.strerror}") from error
    return folder


def refuse_existing(destination: epath.PathLike) -> None:
    """Refuses a destination that exists.

    Raises:
      UserError: if there is.
    """
    if epath.Path(destination).exists():
        raise UserError(f"{destination} exists already: delete it or give another name")


class _Sigterm(KeyboardInterrupt):
    """SIGTERM, which ends a program as Ctrl-C does, so that it removes its temporary files."""


@contextlib.contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """Has SIGTERM raise an error; a second one ends the program at once, as it does by default."""
    program = os.getpid()

    def stop(number: int, frame: Any) -> None:
        del frame
        signal.signal(number, signal.SIG_DFL)
        if os.getpid() != program:  # a forked process has nothing to remove
            os.kill(os.getpid(), number)
        raise _Sigterm

    is_main = threading.current_thread() is threading.main_thread()  # it alone may set handlers
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the examples of a description as written and shows defaults that are values."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False or action.default in ("", []):
            return action.help
        return super()._get_help_string(action)


def parser(description: str) -> argparse.ArgumentParser:
    """Returns a parser whose `--help` prints `description` (usually the module's docstring).

    Flags can't be abbreviated, so that a script keeps its meaning when a flag is added.
    """
    return argparse.ArgumentParser(
        description=description, formatter_class=HelpFormatter, allow_abbrev=False
    )


def add_workdir(arguments: argparse.ArgumentParser) -> None:
    """Adds the flags of a training: `--workdir` and `--resume_step`."""
    arguments.add_argument(
        "--workdir", required=True, help="folder of the run; resumed if it has checkpoints"
    )
    arguments.add_argument(
        "--resume_step",
        type=int,
        help="resume from this checkpoint once; newer ones are moved to WORKDIR/set_aside_STEP",
    )


def main(
    arguments: argparse.ArgumentParser,
    run: Callable[..., Any],
    *,
    config: bool = False,
    rows: bool = False,
    overrides: bool = False,
    within: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
) -> None:
    """Parses the command line, calls `run` with the result and exits with a documented status.

    With `config`, the program takes `--config=FILE[:VARIANT]` and `--config.KEY=VALUE` besides,
    and `run` gets the config as its second argument; with `rows`, too, a function that takes names
    of further rows of the file's variants and returns the config (see `Rows`). With `overrides`, it
    takes only the latter, and `run` gets them as a list for `override`. `run` is called in a
    context made by `within`.
    """
    logging.set_verbosity(logging.ERROR)  # the libraries' warnings are about our own settings
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may lack some of our characters
            stream.reconfigure(errors="replace")
    if config:
        arguments.epilog = (
            "The settings: --config=FILE[:ROW,ROW] names a config file and rows of its table of "
            "variants; --config.KEY=VALUE changes one key. --config=FILE --help_config prints all "
            "keys with their values and meanings."
        )
    try:
        known, rest = _parse_known(arguments, sys.argv[1:], config)
        given: list[Any] = [known]
        if config:
            with_rows = _parse_config(arguments, rest)
            given.append(with_rows if rows else with_rows())
        elif overrides:
            given.append(_only(arguments, rest, "--config."))
        else:
            _only(arguments, rest)
        with _sigterm_unwinds(), within():
            run(*given)
    except UserError as error:
        sys.exit(_report_error(arguments.prog, str(error), 2))
    except Unsatisfied as verdict:
        sys.exit(_report_error(arguments.prog, str(verdict), 3))
    except Terminated as stop:
        sys.exit(_report(arguments.prog, f"stopped: {stop}", stop.status))
    except _Sigterm:
        sys.exit(_report(arguments.prog, "stopped by SIGTERM", 143))
    except KeyboardInterrupt:
        sys.exit(_report(arguments.prog, "stopped by Ctrl-C", 130))
    except OSError as error:
        if error.errno in FULL:
            advice = "make room, start again"
        elif error.errno in FORBIDDEN and error.filename:
            advice = "name another place, or change its permissions"
        else:
            raise
        where = f" ({error.filename})" if error.filename else ""
        sys.exit(_report_error(arguments.prog, f"{error.strerror}{where}: {advice}", 2))


def _parse_known(
    arguments: argparse.ArgumentParser, given: Sequence[str], config: bool
) -> tuple[argparse.Namespace, list[str]]:
    """The program's own flags, and the rest; none is required beside `--help_config`."""
    if config and HELP_CONFIG in given:
        return argparse.Namespace(), [a for a in given if "config" in a.partition("=")[0]]
    return arguments.parse_known_args(given)


class Rows:
    """A config file with rows of its variants and overrides; called, it gives the config."""

    def __init__(self, file: str, overrides: Sequence[str]):
        """`file` may name rows behind a colon; `overrides` are `--config.KEY=VALUE`."""
        self.file, _, self._given = file.partition(":")
        self._overrides = list(overrides)
        _check_overrides(self._overrides, self._plain(""), f"--config={file}")

    def __call__(self, row: str = "") -> ConfigDict:
        """The config with a further row, or several joined by commas.

        Raises:
          UserError: for an unknown row, or if an override names a key that the row sets.
        """
        plain, with_row = self._plain(""), self._plain(row)
        named = self._named_in(row)  # by a row of the default, too
        for override in self._overrides if row else ():
            key = override.removeprefix("--config.").partition("=")[0]
            if key in named or value(plain, key) != value(with_row, key):
                raise UserError(f"{override}: the row {row!r} sets this key, so leave it out")
        return _config_flag([self._named(row), *self._overrides])

    def _named_in(self, row: str) -> list[str]:
        """The keys that rows name in the file's table of variants, if it has one."""
        variants = runpy.run_path(self.file).get("VARIANTS", {}) if row else {}
        return [key for name in row.split(",") for key in variants.get(name, {})]

    def _named(self, row: str) -> str:
        names = ",".join(filter(None, (self._given, row)))
        return f"--config={self.file}:{names}" if names else f"--config={self.file}"

    def _plain(self, row: str) -> ConfigDict:
        return _config_flag([self._named(row)])


def config_of(text: str) -> ConfigDict:
    """The config that a text `FILE[:ROW,ROW]` names.

    Raises:
      UserError: if there is no such file or row.
    """
    _require_file(text.split(":")[0])
    return Rows(text, [])()


def _require_file(file: str) -> None:
    if not os.path.isfile(file):
        raise UserError(f"no config file {file!r}: give one, such as --config=configs/pretrain.py")


def _parse_config(arguments: argparse.ArgumentParser, rest: list[str]) -> Rows:
    """Reads the config file and the overrides, all choices checked against the file's keys."""
    _only(arguments, rest, "--config=", "--config.", HELP_CONFIG)
    files = [argument for argument in rest if argument.startswith("--config=")]
    overrides = [argument for argument in rest if argument.startswith("--config.")]
    if len(files) != 1:
        arguments.error("give one --config=FILE, such as --config=configs/pretrain.py")
    named = files[0].removeprefix("--config=")
    _require_file(named.split(":")[0])
    rows = Rows(named, overrides)
    if HELP_CONFIG in rest:
        print(describe(rows.file, rows()))
        sys.exit(0)
    return rows


def override(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    """Returns a copy of a config with `--config.KEY=VALUE` strings applied.

    Raises:
      UserError: for an unknown key, with the nearest one, or a value of another type.
    """
    _check_overrides(overrides, config, "this config")
    return _config_flag(overrides, config.copy_and_resolve_references())


def _only(arguments: argparse.ArgumentParser, rest: Sequence[str], *prefixes: str) -> Sequence[str]:
    strange = [argument for argument in rest if not argument.startswith(prefixes)]
    if strange:
        arguments.error(f"unrecognized arguments: {' '.join(strange)}")
    return rest


def _check_overrides(overrides: Sequence[str], config: ConfigDict, name: str) -> None:
    known = keys(config)
    for argument in overrides:
        key, equals, _ = argument.removeprefix("--config.").partition("=")
        if not equals:
            raise UserError(f"{argument} needs a value: --config.{key}=VALUE")
        if key not in known:
            near = difflib.get_close_matches(key, known, 1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else f"; the keys are {', '.join(known)}"
            raise UserError(f"{name} has no key {key!r}{hint}")


def value(config: ConfigDict, key: str) -> Any:
    """The value at a dotted key.

    Raises:
      UserError: if a config file, such as a copy of an older one, has no such key.
    """
    try:
        return functools.reduce(lambda section, name: section[name], key.split("."), config)
    except KeyError as error:
        raise UserError(
            f"the config has no key {key!r}: add it to its file, as the files in configs/ have it"
        ) from error


def _config_flag(argv: Sequence[str], config: ConfigDict | None = None) -> ConfigDict:
    """Has absl parse `argv` onto `config`, or onto the config file that `argv` names."""
    values = flags.FlagValues()
    if config is None:
        config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=["", *argv])
    else:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=["", *argv])
    try:
        values(["", *argv])
        return values.config
    except flags.Error as error:
        # The libraries put the config file's own traceback into the message; its last line says it.
        reason = str(error).strip().splitlines()[-1].strip()
        if "get_config() takes 0 positional arguments" in reason:
            reason = "this config has no variants; leave out the colon and what is behind it"
        raise UserError(f"{' '.join(argv)}: {reason}") from error


def _report_error(program: str, message: str, status: int) -> int:
    return _report(program, f"error: {message}", status)


def _report(program: str, message: str, status: int) -> int:
    print(f"{program}: {message}", file=sys.stderr)
    return status
