"""Checksums of arrays that are the same on any mesh, to notice a damaged checkpoint.

An array's fingerprint is the sum modulo 2³² of a hash of (place, bits) over its elements. Sums of
integers depend neither on their order nor on the sharding. The hash is one to one in the bits. A
change of one element therefore always shows; any other change is missed once in 2³² times.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32


def fingerprints(tree: Any) -> dict[str, int]:
    """The fingerprint of every leaf by its path, such as `params/decoder/norm/scale`.

    Args:
      tree: of arrays with elements of 8 to 32 bits, on the host or on any devices.
    """
    leaves = {name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    found = jax.device_get(_fingerprints(leaves))
    return {name: int(value) for name, value in found.items()}


def name_of(path: tuple[Any, ...]) -> str:
    """A leaf's path as a name; a dataclass's fields and a dict's keys give the same."""
    return "/".join(str(getattr(e, "key", getattr(e, "name", getattr(e, "idx", e)))) for e in path)


@jax.jit
def _fingerprints(leaves: dict[str, Array]) -> dict[str, UInt32[Array, ""]]:
    return {name: _fingerprint(leaf) for name, leaf in leaves.items()}


def _fingerprint(x: Array) -> UInt32[Array, ""]:
    if x.dtype == bool:
        x = x.astype(jnp.uint8)
    unsigned = {1: np.uint8, 2: np.uint16, 4: np.uint32}[x.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
    place = jnp.arange(x.size, dtype=jnp.uint32).reshape(x.shape)
    # MurmurHash3's finaliser (public domain): multiplications by odd numbers and xor-shifts, each
    # of which can be undone.
    mixed = bits ^ (place * np.uint32(0x9E3779B1) + np.uint32(1))
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        mixed = (mixed ^ (mixed >> shift)) * np.uint32(factor)
    return jnp.sum(mixed, dtype=jnp.uint32)
