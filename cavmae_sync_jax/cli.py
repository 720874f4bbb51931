"""What every command-line program shares: how a user's mistake is told, and the exit status.

Exit status: 0 only on success, 2 after a user's mistake (one sentence on stderr, no traceback),
130 after Ctrl-C. Anything else that goes wrong is a defect and keeps its traceback.
"""

import argparse
import difflib
import importlib.metadata
import os
import sys
from collections.abc import Callable

from absl import flags, logging
from etils import epath
from ml_collections import ConfigDict, config_flags


class UserError(ValueError):
    """A mistake the user can mend; the message is one sentence naming the file, field or flag."""


def version() -> str:
    """The installed package's version, which results and datasets carry."""
    try:
        return importlib.metadata.version("cavmae_sync_jax")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def make_folder(path: epath.PathLike) -> epath.Path:
    """Makes an output folder before the work whose results it is for.

    Raises:
      UserError: if it can't be made.
    """
    folder = epath.Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {folder} can't be made: {error.strerror}") from error
    return folder


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the examples of a description as written and shows the defaults of all flags."""


def parser(description: str) -> argparse.ArgumentParser:
    """Returns a parser whose `--help` prints `description` (usually the module's docstring).

    Flags can't be abbreviated, so that a script keeps its meaning when a flag is added.
    """
    return argparse.ArgumentParser(
        description=description, formatter_class=HelpFormatter, allow_abbrev=False
    )


def main(
    arguments: argparse.ArgumentParser, run: Callable[..., None], *, config: bool = False
) -> None:
    """Parses the command line, calls `run` with the result and exits with the promised status.

    With `config`, the program takes `--config=FILE[:VARIANT]` and `--config.KEY=VALUE` besides,
    and `run` gets the config as its second argument.
    """
    logging.set_verbosity(logging.ERROR)  # the libraries' warnings are about our own settings
    try:
        if config:
            known, rest = arguments.parse_known_args()
            run(known, _parse_config(arguments, rest))
        else:
            run(arguments.parse_args())
    except UserError as error:
        sys.exit(_tell(arguments.prog, str(error), 2))
    except KeyboardInterrupt:
        sys.exit(_tell(arguments.prog, "stopped by Ctrl-C", 130))


def _parse_config(arguments: argparse.ArgumentParser, rest: list[str]) -> ConfigDict:
    """Reads the config file and the overrides, all choices checked against the file's keys."""
    files = [argument for argument in rest if argument.startswith("--config=")]
    overrides = [argument for argument in rest if argument.startswith("--config.")]
    strange = [argument for argument in rest if argument not in files + overrides]
    if strange:
        arguments.error(f"unrecognized arguments: {' '.join(strange)}")
    if len(files) != 1:
        arguments.error("give one --config=FILE, such as --config=configs/pretrain.py")
    file = files[0].removeprefix("--config=").split(":")[0]
    if not os.path.isfile(file):
        raise UserError(f"no config file {file!r}: give one, such as --config=configs/pretrain.py")
    known = keys(_config_flag(files))
    for override in overrides:
        key, equals, _ = override.removeprefix("--config.").partition("=")
        if not equals:
            raise UserError(f"{override} needs a value: --config.{key}=VALUE")
        if key not in known:
            near = difflib.get_close_matches(key, known, 1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else f"; the keys are {', '.join(known)}"
            raise UserError(f"{files[0]} has no key {key!r}{hint}")
    return _config_flag(files + overrides)


def keys(config: ConfigDict, prefix: str = "") -> list[str]:
    """The dotted keys of all values of a config."""
    dotted = []
    for key, value in config.items():
        deeper = isinstance(value, ConfigDict)
        dotted += keys(value, f"{prefix}{key}.") if deeper else [f"{prefix}{key}"]
    return dotted


def _config_flag(argv: list[str]) -> ConfigDict:
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=["", *argv])
    try:
        values(["", *argv])
        return values.config
    except flags.Error as error:
        # The libraries put the config file's own traceback into the message; its last line says it.
        reason = str(error).strip().splitlines()[-1].strip()
        if "get_config() takes 0 positional arguments" in reason:
            reason = "this config has no variants; leave out the colon and what is behind it"
        raise UserError(f"{' '.join(argv)}: {reason}") from error


def _tell(program: str, message: str, status: int) -> int:
    print(f"{program}: error: {message}", file=sys.stderr)
    return status
