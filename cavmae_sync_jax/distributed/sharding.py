"""The device mesh, and the one rule by which arrays are laid out on it.

Axes: `data` splits the batch, `fsdp` splits the batch and the parameters. A parameter of at least
`MIN_SHARDED` elements is split over `fsdp` along its largest divisible axis (the last of equals).
The layer axis of a scanned stack is never split. Smaller parameters are replicated. The optimiser's
moments follow their parameter.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Shaped

from cavmae_sync_jax.utils.errors import UserError

AXES = ("data", "fsdp")
BATCH = P(AXES)
MIN_SHARDED = 2**14


def make_mesh(data: int = -1, fsdp: int = 1, devices: list[jax.Device] | None = None) -> Mesh:
    """Arranges all devices as `data` x `fsdp`; one of the two may be -1 (the rest).

    TPU slices, which only a data-centre network connects, lie along `data`: it carries one sum of
    gradients per step, but `fsdp` carries parameters in every layer.

    Raises:
      UserError: if the shape does not use all devices, or `fsdp` would cross slices.
    """
    devices = jax.devices() if devices is None else devices
    shape = [data, fsdp]
    if shape.count(-1) == 1 and 0 not in shape:
        shape[shape.index(-1)] = max(1, len(devices) // -(data * fsdp))
    if min(shape) < 1 or shape[0] * shape[1] != len(devices):
        raise UserError(
            f"mesh data={data}, fsdp={fsdp} does not fit {len(devices)} devices: "
            "their product must be the number of devices (-1 stands for the rest)"
        )
    return Mesh(arrange((shape[0], shape[1]), devices), AXES)


def arrange(shape: tuple[int, int], devices: Sequence[Any]) -> np.ndarray:
    """The devices as an array of a mesh's shape.

    Raises:
      UserError: if `fsdp` would cross slices.
    """
    # A GPU calls its host a slice; hosts follow each other in the plain order already.
    # Devices that are only described, to compile for them, need not name theirs.
    tpus = [device for device in devices if device.platform == "tpu"]
    slices = len({getattr(device, "slice_index", 0) for device in tpus}) or 1
    if shape[0] % slices:
        raise UserError(
            f"mesh data={shape[0]}, fsdp={shape[1]} does not fit {slices} TPU slices: "
            f"set config.mesh.data to a multiple of {slices}"
        )
    # Along the wires of a TPU's torus, whose axes may have to be split or joined for the shape.
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return mesh_utils.create_hybrid_device_mesh(
        (shape[0] // slices, shape[1]), (slices, 1), devices, allow_split_physical_axes=True
    )


def constrain_batch(x: jax.Array) -> jax.Array:
    """Pins the first axis of an activation to the mesh's batch axes; no mesh, no effect.

    Without the pin, XLA may gather activations of a model with sharded parameters.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, BATCH)


def platform() -> str:
    """Where the program that is being traced will run: on the mesh's devices, if there is one.

    These may be described ones, which a program is only compiled for.

    Returns:
      JAX's name of the platform, such as "cpu", "tpu", and for a GPU "gpu" or "cuda".
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def cuda_capability() -> float:
    """The compute capability of this process's NVIDIA GPUs, such as 9.0.

    Without a GPU one is only compiled for, and the newest is assumed. An AMD GPU has 0.
    """
    if jax.default_backend() != "gpu":
        return math.inf
    try:
        return float(jax.local_devices()[0].compute_capability)
    except ValueError:  # such as gfx942
        return 0.0


def split_batch(x: Shaped[Array, "batch *rest"], parts: int) -> Shaped[Array, "{parts} _ *rest"]:
    """Cuts a batch into `parts`, part i of rows i::parts, so that no row leaves its device."""
    x = jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0)
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, P(None, *BATCH))


def merge_batch(x: Shaped[Array, "parts part *rest"]) -> Shaped[Array, "batch *rest"]:
    """Undoes `split_batch`."""
    return constrain_batch(jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:]))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """How a global batch lies on the mesh."""
    return NamedSharding(mesh, BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
    """How a value that every device holds lies on the mesh."""
    return NamedSharding(mesh, P())


def state_shardings(state: object, mesh: Mesh) -> object:
    """The sharding of every leaf of a (possibly abstract) train state or parameter tree."""

    def rule(path: tuple, leaf: jax.Array | jax.ShapeDtypeStruct) -> NamedSharding:
        stacked = any(getattr(entry, "key", None) == "blocks" for entry in path)
        return NamedSharding(mesh, _spec(leaf.shape, stacked, mesh.shape["fsdp"]))

    return jax.tree_util.tree_map_with_path(rule, state)


def laid_out(shapes: object, shardings: object) -> object:
    """The same shapes with their shardings, to restore a checkpoint to."""
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        shardings,
    )


def _spec(shape: tuple[int, ...], stacked: bool, fsdp: int) -> P:
    axes = [a for a in range(stacked, len(shape)) if shape[a] % fsdp == 0]
    if fsdp == 1 or not axes or np.prod(shape) < MIN_SHARDED:
        return P()
    split = max(axes, key=lambda axis: (shape[axis], axis))
    return P(*(AXES[1] if axis == split else None for axis in range(len(shape))))
