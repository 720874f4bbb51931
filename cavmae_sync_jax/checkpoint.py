"""Checkpoints (Orbax): the train state, the data position and the config, saved together.

`DIRECTORY/checkpoints/STEP/` holds the items `state` (arrays) and `meta` (JSON: `config`, the data
`position` and the code's `version`), so that an evaluation needs nothing but the directory.
"""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jaxtyping import Num
from ml_collections import ConfigDict

from cavmae_sync_jax import cli
from cavmae_sync_jax import model as modeling
from cavmae_sync_jax.cli import UserError

FOLDER = "checkpoints"


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
        return self._manager.restore(self.latest, args=items).meta

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


def _manager(directory: epath.Path, options: ocp.CheckpointManagerOptions) -> ocp.CheckpointManager:
    handlers = {"state": ocp.PyTreeCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
    return ocp.CheckpointManager(directory, options=options, item_handlers=handlers)


def _restore(manager: ocp.CheckpointManager, step: int, abstract: Any, where: epath.Path) -> Any:
    """Restores what `abstract` names, after comparing every name and shape with what is stored."""
    stored = manager.item_metadata(step).state.tree
    names = {name: leaf.shape for name, leaf in _leaves(stored).items()}
    wrong = [
        f"{name} {tuple(leaf.shape)}"
        + (f" is {tuple(names[name])}" if name in names else " is missing")
        for name, leaf in _leaves(abstract).items()
        if names.get(name) is None or tuple(names[name]) != tuple(leaf.shape)
    ]
    if wrong:
        raise UserError(
            f"checkpoint {where}/{step} does not hold this model: {'; '.join(wrong[:8])}"
            + (f"; and {len(wrong) - 8} more" if len(wrong) > 8 else "")
        )
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


class Pretrained(NamedTuple):
    """A trained model with its parameters on the device, for evaluation and use."""

    module: modeling.CavMaeSync
    params: Any
    config: ConfigDict
    step: int
    directory: str

    def encode_audio(self, fbank: Num[np.ndarray, "batch rows bins"]) -> modeling.Embedding:
        """Raw log-mel windows to `(global_token, patch_tokens)`, unnormalised."""
        return self._encode(modeling.AUDIO, fbank)

    def encode_image(self, image: Num[np.ndarray, "batch height width 3"]) -> modeling.Embedding:
        """RGB 0–255 (uint8 or float) to `(global_token, patch_tokens)`, unnormalised."""
        return self._encode(modeling.VISUAL, image)

    def _encode(self, modality: str, raw: Num[np.ndarray, "batch *shape"]) -> modeling.Embedding:
        expected = self.module.raw_shape(modality)
        if tuple(raw.shape[1:]) != expected:
            raise UserError(
                f"this model takes {modality} of shape {list(expected)} "
                f"after the batch axis, not {list(raw.shape[1:])}"
            )
        return _embed(self.module, modality, self.params, raw)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _embed(
    module: modeling.CavMaeSync, modality: str, params: Any, raw: jax.Array
) -> modeling.Embedding:
    return module.apply({"params": params}, modality, raw, method="embed")


def load(directory: epath.PathLike, step: int | None = None) -> Pretrained:
    """Loads a model from a training workdir (or its `checkpoints` folder), its config included.

    Args:
      directory: what `--workdir` of the training was.
      step: which checkpoint; None takes the newest.

    Raises:
      UserError: if there is no such checkpoint, or it does not hold the model of its config.
    """
    directory = epath.Path(directory)
    folder = directory if directory.name == FOLDER else directory / FOLDER
    if not folder.is_dir():
        raise UserError(f"{directory} holds no checkpoints: give the --workdir of a training")
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
        module = modeling.from_config(config.model)
        shapes = jax.eval_shape(module.init_params, jax.random.key(0))
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), shapes
        )
        state = _restore(manager, step, {"params": abstract}, folder)
    return Pretrained(module, state["params"], config, step, str(directory))
