"""Floating-point operations: what the model needs, what a step contains, what a device reaches."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from ml_collections import ConfigDict

from cavmae_sync_jax.distributed import sharding
from cavmae_sync_jax.models import cavmae_sync, masking
from cavmae_sync_jax.training import train_step
from cavmae_sync_jax.utils.modalities import MODALITIES

PRODUCT = {"cpu": 2048}  # rows and columns of the matrix that is multiplied; elsewhere 8192


def model_flops(config: ConfigDict) -> float:
    """Floating-point operations of one sample's forward pass; a training step has three times that.

    Two for every multiplication and addition of a matrix product: patch projections, encoders (kept
    patches, global and register tokens), the joint block's three passes, the decoder and its heads.
    Norms, softmax, GELU, losses and the optimiser are left out. In a block of width d, n tokens
    take 2·n·d² for key and value. Every token whose output is wanted takes d² for its query, 2·n·d
    for attention, d² for the projection and 2·d·hidden for the MLP. In the decoder's last block
    these are the masked patches, elsewhere all tokens.
    """
    model, ours = config.model, cavmae_sync.from_config(config.model)
    ratio = config.mask.ratios[0]
    kept = {m: masking.kept_patches(ours.grids[m].patches, ratio) for m in MODALITIES}
    width, decoder_width = model.width, model.decoder_width

    def block(queries: int, tokens: int, dim: int) -> int:
        hidden = int(dim * model.mlp_ratio)
        each = 2 * dim * dim + 2 * tokens * dim + 2 * dim * hidden
        return tokens * 2 * dim * dim + queries * each

    def stack(depth: int, tokens: int, dim: int) -> int:
        return depth * block(tokens, tokens, dim)

    first, last = int(model.global_token), model.registers
    products = stack(model.joint_depth, sum(kept.values()), width)
    for m in MODALITIES:
        products += kept[m] * ours.pixels[m] * width
        products += stack(model.depth, first + kept[m] + last, width)
        joined = first + kept[m] + last * model.registers_in_joint
        products += stack(model.joint_depth, joined, width)
        products += kept[m] * width * decoder_width
        products += (ours.grids[m].patches - kept[m]) * decoder_width * ours.pixels[m]
    patches = sum(grid.patches for grid in ours.grids.values())
    products += stack(model.decoder_depth - 1, patches, decoder_width)
    products += block(patches - sum(kept.values()), patches, decoder_width)
    return 2.0 * products


def matrix_flops(config: ConfigDict) -> float:
    """Of all matrix products of one step: what a loop runs counts as often as it runs.

    Attention's fused kernels multiply as often as ours, which are counted in their place.
    """
    module = cavmae_sync.from_config(config.model)
    one = sharding.make_mesh(devices=jax.devices()[:1])
    params = jax.eval_shape(module.init_params, jax.random.key(0))
    batch = train_step.abstract_batch(module, config.batch_size, one)

    def gradients(params: Any, batch: Any) -> Any:
        ratio = config.mask.ratios[0]
        return train_step.loss_and_grads(module, config, params, batch, jnp.int32(0), ratio)

    return _flops(jax.make_jaxpr(gradients)(params, batch).jaxpr)


def _flops(jaxpr: core.Jaxpr) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            arrays: list[Any] = [equation.invars[0].aval, equation.outvars[0].aval]
            terms = np.prod([arrays[0].shape[axis] for axis in contracted], dtype=float)
            total += 2 * terms * np.prod(arrays[1].shape, dtype=float)
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)  # closed or open
            if isinstance(inner, core.Jaxpr):
                total += times * _flops(inner)
    return total


def matrix_product(dtype: Any) -> tuple[Callable[[], object], float]:
    """A call that multiplies two large matrices, and its floating-point operations."""
    size = PRODUCT.get(jax.default_backend(), 8192)
    times = 1 if jax.default_backend() == "cpu" else 16  # so that starting it costs little
    x = jax.random.normal(jax.random.key(0), (size, size), dtype) / size**0.5
    chain = jax.jit(lambda x: jax.lax.fori_loop(0, times, lambda _, y: y @ x, x))
    return lambda: chain(x).block_until_ready(), 2.0 * times * size**3
