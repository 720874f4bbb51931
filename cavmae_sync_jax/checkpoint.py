"""Checkpoints (Orbax): the train state, the data position and the config, saved together.

`DIRECTORY/checkpoints/STEP/` holds the items `state` (arrays) and `meta` (JSON: `config`, the data
`position` and the code's `version`), so that an evaluation needs nothing but the directory.
"""

import contextlib
import logging
import re
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import absl.logging
import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from ml_collections import ConfigDict

from cavmae_sync_jax import cli
from cavmae_sync_jax.cli import UserError

FOLDER = "checkpoints"
# Settings that older checkpoints lack, with the value that was the only one then.
SINCE = {"init_from": "", "model.learned_positions": False}
Shape = tuple[int, ...]


class Checkpoints:
    """The checkpoints of a workdir that is being trained; saves are asynchronous."""

    def __init__(self, workdir: epath.PathLike, keep: int):
        """Opens `WORKDIR/checkpoints`, where the newest `keep` stay."""
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        self.directory = epath.Path(workdir).resolve() / FOLDER
        self._manager = _manager(self.directory, options)

    @property
    def latest(self) -> int | None:
        """The step of the newest finished checkpoint."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, config: ConfigDict, position: dict[str, Any]) -> None:
        """Starts to save; returns as soon as the state has left the device."""
        if step == self.latest:
            return
        meta = {"config": config.to_dict(), "position": position, "version": cli.version()}
        items = ocp.args.Composite(state=ocp.args.PyTreeSave(state), meta=ocp.args.JsonSave(meta))
        self._manager.save(step, args=items, force=True)

    def meta(self) -> dict[str, Any]:
        """The newest checkpoint's JSON part."""
        items = ocp.args.Composite(meta=ocp.args.JsonRestore())
        meta = self._manager.restore(self.latest, args=items).meta
        return {**meta, "config": _completed(ConfigDict(meta["config"])).to_dict()}

    def restore(self, abstract_state: Any) -> Any:
        """The newest checkpoint's state, laid out as the shapes and shardings given.

        Raises:
          UserError: if names or shapes differ from the checkpoint's.
        """
        return _restore(self._manager, self.latest, abstract_state, self.directory)

    def close(self) -> None:
        """Waits until the last save is finished on disk."""
        self._manager.wait_until_finished()
        self._manager.close()


def write(directory: epath.PathLike, state: dict[str, Any], config: ConfigDict) -> None:
    """Writes a new workdir whose one checkpoint, of step 0, holds `state`; it appears complete.

    Args:
      directory: what must not exist yet.
      state: trees of arrays; `params` among them.
      config: with the section that `params` belong to.

    Raises:
      UserError: if `directory` exists or can't be written.
    """
    directory = epath.Path(directory)
    cli.refuse_existing(directory)
    partial = cli.make_folder(directory.parent / f".{directory.name}.{uuid.uuid4().hex[:8]}")
    try:
        with _quiet():
            checkpoints = Checkpoints(partial, keep=1)
            # Orbax copies NumPy's arrays before it saves them, but not JAX's.
            checkpoints.save(0, jax.tree.map(jax.device_put, state), config, position={})
            checkpoints.close()
        cli.refuse_existing(directory)
        partial.rename(directory)
    except UserError:
        raise
    except Exception as error:  # Orbax wraps what the file system says in errors of many kinds
        reason = str(error).strip().split("\n")[0][:200]
        raise UserError(f"{directory} can't be written: {reason}") from error
    finally:
        _remove(partial)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Lets an error speak once; each array's task would say the same, some after the error."""
    before = absl.logging.get_verbosity(), logging.getLogger("asyncio").level, sys.unraisablehook
    absl.logging.set_verbosity(absl.logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    sys.unraisablehook = lambda _: None
    yield
    absl.logging.set_verbosity(before[0])
    logging.getLogger("asyncio").setLevel(before[1])
    sys.unraisablehook = before[2]


def _remove(folder: epath.Path) -> None:
    """Removes a folder to which the threads of a failed save may still be writing."""
    for _ in range(50):
        if not folder.exists():
            return
        with contextlib.suppress(OSError):
            folder.rmtree()
        time.sleep(0.1)


class Stored(NamedTuple):
    """A finished checkpoint, opened for reading."""

    config: ConfigDict
    step: int
    folder: epath.Path
    manager: ocp.CheckpointManager

    def restore(self, abstract: Any) -> Any:
        """What `abstract` names, laid out as its shapes and shardings say.

        Raises:
          UserError: if names or shapes differ.
        """
        return _restore(self.manager, self.step, abstract, self.folder)

    def weights(self) -> Any:
        """The parameters to use, as NumPy arrays: their average, where a training kept one."""
        trees = self.arrays("params", "average", "averaged")
        return trees["average" if int(trees.get("averaged", 0)) else "params"]

    def arrays(self, *names: str) -> dict[str, Any]:
        """The trees of these names, as far as there are any, as NumPy arrays."""
        stored = self.manager.item_metadata(self.step).state.tree
        abstract = {name: stored[name] for name in names if stored.get(name)}
        if not abstract:
            return {}
        kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), abstract)
        arguments = ocp.args.PyTreeRestore(abstract, restore_args=kinds, partial_restore=True)
        return self.manager.restore(self.step, args=ocp.args.Composite(state=arguments)).state


def exists(directory: epath.PathLike) -> bool:
    """Whether a workdir holds a finished checkpoint."""
    folder = epath.Path(directory) / FOLDER
    return folder.is_dir() and bool(ocp.utils.checkpoint_steps(folder))


@contextlib.contextmanager
def opened(directory: epath.PathLike, step: int | None = None) -> Iterator[Stored]:
    """Opens the newest checkpoint of a workdir (or its `checkpoints` folder), or that of `step`.

    Raises:
      UserError: if there is no such checkpoint.
    """
    directory = epath.Path(directory)
    folder = directory / FOLDER
    if directory.name == FOLDER and not folder.is_dir():
        folder = directory
    if not folder.is_dir():
        raise UserError(
            f"{directory} holds no checkpoints: give the folder of a training or a conversion"
        )
    options = ocp.CheckpointManagerOptions(read_only=True)
    with _manager(folder.resolve(), options) as manager:
        steps = sorted(manager.all_steps())
        if not steps:
            raise UserError(f"{folder} holds no finished checkpoint")
        step = steps[-1] if step is None else step
        if step not in steps:
            raise UserError(f"{folder} has no checkpoint of step {step}; it has {steps}")
        items = ocp.args.Composite(meta=ocp.args.JsonRestore())
        config = ConfigDict(manager.restore(step, args=items).meta["config"])
        yield Stored(_completed(config), step, folder, manager)


def _completed(config: ConfigDict) -> ConfigDict:
    """Adds settings that came after a checkpoint was written, as they were then."""
    for key, value in SINCE.items():
        section, _, name = key.rpartition(".")
        if not section or section in config:
            place = config[section] if section else config
            place[name] = place.get(name, value)
    return config


def mismatch(expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> str | None:
    """All missing, unexpected and wrongly shaped names, one kind a line; None if there are none.

    Names that differ only in a layer's number are told as one, such as `blocks.{0–10}.bias`.
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


def _manager(directory: epath.Path, options: ocp.CheckpointManagerOptions) -> ocp.CheckpointManager:
    # Compressing weights saves a twelfth of the disk and costs a save as much memory as they have.
    state = ocp.PyTreeCheckpointHandler(use_compression=False)
    handlers = {"state": state, "meta": ocp.JsonCheckpointHandler()}
    return ocp.CheckpointManager(directory, options=options, item_handlers=handlers)


def _restore(manager: ocp.CheckpointManager, step: int, abstract: Any, where: epath.Path) -> Any:
    """Restores what `abstract` names, after comparing every name and shape with what is stored."""
    expected = {name: leaf.shape for name, leaf in _leaves(abstract).items()}
    parts = {name.split("/")[0] for name in expected}
    stored = _leaves(manager.item_metadata(step).state.tree)
    found = {name: leaf.shape for name, leaf in stored.items() if name.split("/")[0] in parts}
    if wrong := mismatch(expected, found):
        raise UserError(f"checkpoint {where}/{step} does not hold this model:{wrong}")
    restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
    arguments = ocp.args.PyTreeRestore(abstract, restore_args=restore_args, partial_restore=True)
    return manager.restore(step, args=ocp.args.Composite(state=arguments)).state


def _leaves(tree: Any) -> dict[str, Any]:
    """Leaves by name; a state's fields and a stored dict's keys give the same names."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        "/".join(str(getattr(e, "key", getattr(e, "name", getattr(e, "idx", e)))) for e in path): x
        for path, x in leaves
    }
