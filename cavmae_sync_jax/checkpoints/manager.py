"""Checkpoints (Orbax): the train state, the data position and the config, saved together.

`DIRECTORY/checkpoints/STEP/` holds the items `state` (arrays) and `meta` (JSON: `config`, the data
`position`, the code's `version` and the arrays' `fingerprints`), so that an evaluation needs
nothing but the directory. Every array that is read is compared with its fingerprint.
"""

import contextlib
import hashlib
import json
import logging
import sys
import time
import uuid
from collections.abc import Iterator
from typing import Any, NamedTuple

import absl.logging
import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from ml_collections import ConfigDict

from cavmae_sync_jax.checkpoints import hub, places
from cavmae_sync_jax.checkpoints.checksums import fingerprints, name_of
from cavmae_sync_jax.checkpoints.shape_diff import mismatch
from cavmae_sync_jax.distributed import multihost
from cavmae_sync_jax.utils import buckets, cli, console, path_names
from cavmae_sync_jax.utils.errors import UserError

FOLDER = "checkpoints"
_NAMED = 5  # trainings that a sentence names
_WEIGHTS = (".pth", ".pt", ".bin", ".safetensors")  # of PyTorch
SET_ASIDE = "set_aside"  # beside it, with the step: what a resumed run was told to pass over
# Settings that older checkpoints lack, with the value that was the only one then.
DEFAULTS_OF_OLDER_CHECKPOINTS = {
    "init_from": "",
    "microbatches": 1,
    "evaluations": ("retrieval",),
    "model.learned_positions": False,
    "model.residual_dtype": "auto",
    "data.own_statistics": False,
    "data.window_spread": "clip",
    "data.requests": 64,
}


class Checkpoints:
    """The checkpoints of a workdir that is being trained; saves are asynchronous."""

    def __init__(self, workdir: epath.PathLike, keep: int):
        """Opens `WORKDIR/checkpoints`, where the newest `keep` stay, and removes unfinished saves.

        Raises:
          UserError: if none can be stored there, or one in a bucket lacks Orbax's mark.
        """
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        self.directory = places.to_write(workdir) / FOLDER
        places.refuse_unmarked(self.directory)
        self._manager = _manager(self.directory, options)

    @property
    def finished(self) -> list[int]:
        """The steps of the checkpoints that are whole on disk, as this process sees it."""
        return _steps(self.directory)

    @property
    def latest(self) -> int | None:
        """The newest of them, as process 0 sees it; all processes must ask together."""
        newest = multihost.broadcast_from_first(max(self.finished, default=-1))
        return None if newest < 0 else newest

    def save(self, step: int, state: Any, config: ConfigDict, position: dict[str, Any]) -> None:
        """Starts to save; returns as soon as the state has left the device.

        Raises:
          UserError: if this or the save before it can't be written.
        """
        meta = {"config": config.to_dict(), "position": position, "version": cli.version()}
        meta["fingerprints"] = fingerprints(state)
        meta["digest"] = _digest(meta)
        items = ocp.args.Composite(state=ocp.args.PyTreeSave(state), meta=ocp.args.JsonSave(meta))
        with self._writing():
            self._manager.save(step, args=items, force=True)

    def stored(self, step: int) -> "Stored":
        """The checkpoint of a step.

        Raises:
          UserError: if there is none, or it is damaged.
        """
        _require(step, self.finished, self.directory)
        return _opened(self._manager, step, self.directory)

    def set_aside_after(self, step: int) -> None:
        """Moves the checkpoints after `step` to `WORKDIR/set_aside_STEP`."""
        newer = [each for each in self.finished if each > step]
        multihost.barrier("newer checkpoints are known")
        for each in newer if jax.process_index() == 0 else ():
            place = self.directory.parent / f"{SET_ASIDE}_{each}"
            while place.exists():
                place = place.with_name(f"{place.name}_again")
            (self.directory / str(each)).rename(place)
        multihost.barrier("newer checkpoints are set aside")
        self._manager.reload()

    def close(self) -> None:
        """Waits until the last save is finished on disk.

        Raises:
          UserError: if it can't be written; only a warning, if another error is being raised.
        """
        first = sys.exc_info()[1]
        try:
            with self._writing():
                self._manager.wait_until_finished()
        except UserError as error:
            if first is None:
                raise
            console.log(str(error))
        self._manager.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with _quiet():
                yield
        except (jax.errors.JaxRuntimeError, MemoryError):  # not the file system's words
            raise
        except Exception as error:  # Orbax wraps what the file system says in errors of many kinds
            newest = max(self.finished, default=None)
            whole = "" if newest is None else f"; the newest whole one is of step {newest}"
            raise UserError(
                f"a checkpoint can't be written to {self.directory} ({_reason(error)}){whole}: "
                "fix that and start again"
            ) from error


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
    # In a bucket nothing is renamed at once, but there it is Orbax's mark that makes it complete.
    hidden = directory.parent / f".{directory.name}.{uuid.uuid4().hex[:8]}"
    partial = cli.make_folder(directory if buckets.in_bucket(directory) else hidden)
    with contextlib.ExitStack() as unless_written:
        unless_written.callback(_remove, partial)
        try:
            with _quiet():
                checkpoints = Checkpoints(partial, keep=1)
                # Orbax copies NumPy's arrays before it saves them, but not JAX's.
                checkpoints.save(0, jax.tree.map(jax.device_put, state), config, position={})
                checkpoints.close()
            if partial == hidden:
                cli.refuse_existing(directory)
                partial.rename(directory)
        except UserError as error:
            if error.__cause__ is None:
                raise
            raise UserError(f"{directory} can't be written: {_reason(error.__cause__)}") from error
        except OSError as error:
            raise UserError(f"{directory} can't be written: {_reason(error)}") from error
        unless_written.pop_all()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Reports an error once; otherwise each array's task would report it, some after the error.

    After an error it stays quiet, because what is left of the tasks speaks at the program's end.
    """
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


def _steps(folder: epath.Path) -> list[int]:
    found = ocp.utils.checkpoint_steps(folder) if folder.is_dir() else []
    # Orbax takes a copy that someone has called `best_8` or `08` for step 8, too.
    return sorted({step for step in found if (folder / str(step)).is_dir()})


def _require(step: int, steps: list[int], folder: epath.Path) -> None:
    if step not in steps:
        raise UserError(f"{folder} has no checkpoint of step {step}; it has {steps or 'none'}")


class Stored(NamedTuple):
    """A finished checkpoint, opened for reading."""

    config: ConfigDict
    step: int
    folder: epath.Path
    manager: ocp.CheckpointManager
    position: dict[str, Any]
    fingerprints: dict[str, int]

    def restore(self, abstract: Any) -> Any:
        """What `abstract` names, laid out as its shapes and shardings say.

        Raises:
          UserError: if names or shapes differ, or it is damaged.
        """
        expected = {name: leaf.shape for name, leaf in _leaves(abstract).items()}
        parts = {name.split("/")[0] for name in expected}
        found = {n: x.shape for n, x in _leaves(self._tree()).items() if n.split("/")[0] in parts}
        if wrong := mismatch(expected, found):
            raise UserError(
                f"checkpoint {self.folder}/{self.step} does not hold this model:{wrong}"
            )
        return self._read(abstract, ocp.checkpoint_utils.construct_restore_args(abstract))

    def weights(self) -> Any:
        """The parameters to use, as NumPy arrays: their average, where a training kept one."""
        return self.arrays(name := self.best())[name]

    def best(self) -> str:
        """The name of the tree of parameters to use: `average`, where a training has one."""
        averaged = self.arrays("averaged").get("averaged", 0)
        return "average" if int(averaged) else "params"

    def arrays(self, *names: str) -> dict[str, Any]:
        """The trees of these names, as far as there are any, as NumPy arrays."""
        stored = self._tree()
        abstract = {name: stored[name] for name in names if stored.get(name)}
        if not abstract:
            return {}
        kinds = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), abstract)
        return self._read(abstract, kinds)

    def _tree(self) -> Any:
        with _reading(self.step, self.folder):
            return self.manager.item_metadata(self.step).state.tree

    def _read(self, abstract: Any, restore_args: Any) -> Any:
        wanted = ocp.args.PyTreeRestore(abstract, restore_args=restore_args, partial_restore=True)
        with _reading(self.step, self.folder):
            state = self.manager.restore(self.step, args=ocp.args.Composite(state=wanted)).state
        found = fingerprints(state) if self.fingerprints else {}  # older checkpoints have none
        if bad := [name for name, value in found.items() if self.fingerprints.get(name) != value]:
            raise _damaged(self.step, self.folder, f"{bad[0]} is not what was saved")
        return state


def exists(directory: epath.PathLike) -> bool:
    """Whether a workdir holds a finished checkpoint."""
    return bool(_steps(epath.Path(directory) / FOLDER))


def _advice(directory: epath.Path) -> str:
    """Returns what to give instead of a folder, or a file, without checkpoints."""
    if directory.suffix in _WEIGHTS and directory.is_file():
        return f"python -m cavmae_sync_jax.convert {directory} FOLDER makes a folder with them"
    found = (
        place.parent
        for depth in ("*", "*/*")
        for place in path_names.matching(directory, f"{depth}/{FOLDER}")
    )
    if directory.is_dir() and (below := sorted(map(str, found))):
        return f"give {' or '.join(below[:_NAMED])}"
    return "give the folder of a training or a conversion"


@contextlib.contextmanager
def opened(directory: epath.PathLike, step: int | None = None) -> Iterator[Stored]:
    """Opens the newest checkpoint of a workdir (or its `checkpoints` folder), or that of `step`.

    `WORKDIR/checkpoints/STEP` names a step, too. `hf://USER/REPO` is downloaded.

    Raises:
      UserError: if there is no such checkpoint, or it is damaged.
    """
    directory = epath.Path(hub.local(directory))
    is_step = directory.name.isdigit() and directory.parent.name == FOLDER
    if step is None and is_step and not (directory / FOLDER).is_dir():  # else a workdir's own name
        directory, step = directory.parent, int(directory.name)
    folder = directory / FOLDER
    if directory.name == FOLDER and not folder.is_dir():
        folder = directory
    if not folder.is_dir():
        raise UserError(f"{directory} holds no checkpoints: {_advice(directory)}")
    with _quiet():  # Orbax warns of what it makes of these options
        options = ocp.CheckpointManagerOptions(read_only=True)
        reader = _manager(places.absolute(folder), options)
    with reader as manager:
        steps = sorted(manager.all_steps())
        if not steps or step not in (None, *steps):
            places.refuse_unmarked(folder)
        if not steps:
            raise UserError(
                f"{folder} holds no finished checkpoint: train to the first one, or name another"
            )
        step = steps[-1] if step is None else step
        _require(step, steps, folder)
        yield _opened(manager, step, folder)


def _opened(manager: ocp.CheckpointManager, step: int, folder: epath.Path) -> Stored:
    items = ocp.args.Composite(meta=ocp.args.JsonRestore())
    with _reading(step, folder):
        meta = manager.restore(step, args=items).meta
        if "digest" in meta and meta["digest"] != _digest(meta):
            raise ValueError("its JSON is not what was saved")
        config, position = _completed(ConfigDict(meta["config"])), meta["position"]
    return Stored(config, step, folder, manager, position, meta.get("fingerprints", {}))


def _digest(meta: dict[str, Any]) -> str:
    rest = {key: value for key, value in meta.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def _reading(step: int, folder: epath.Path) -> Iterator[None]:
    try:
        with _quiet():
            yield
    except (jax.errors.JaxRuntimeError, MemoryError, PermissionError):  # no damage
        raise
    except Exception as error:  # what a damaged file leads to is of many kinds
        raise _damaged(step, folder, _reason(error)) from error


def _damaged(step: int, folder: epath.Path, reason: str) -> UserError:
    older = [each for each in _steps(folder) if each < step]
    mend = "there is no older one"
    if older:
        mend = (
            f"there are older ones: delete this one to go on from step {older[-1]}, or evaluate "
            f"with --checkpoint={folder}/{older[-1]}"
        )
    return UserError(f"checkpoint {folder}/{step} is damaged or unreadable ({reason}): {mend}")


def _reason(error: BaseException) -> str:
    first = (str(error).strip() or type(error).__name__).split("\n")[0]
    return first.split(" See full TensorStore details")[0][:200]


def _completed(config: ConfigDict) -> ConfigDict:
    """Adds settings that are newer than a checkpoint, with the values that applied then."""
    for key, value in DEFAULTS_OF_OLDER_CHECKPOINTS.items():
        section, _, name = key.rpartition(".")
        if not section or section in config:
            place = config[section] if section else config
            place[name] = place.get(name, value)
    return config


def _manager(directory: epath.Path, options: ocp.CheckpointManagerOptions) -> ocp.CheckpointManager:
    # Compressing weights saves a twelfth of the disk and costs a save as much memory as they have.
    state = ocp.PyTreeCheckpointHandler(use_compression=False)
    handlers = {"state": state, "meta": ocp.JsonCheckpointHandler()}
    return ocp.CheckpointManager(directory, options=options, item_handlers=handlers)


def _leaves(tree: Any) -> dict[str, Any]:
    return {name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
