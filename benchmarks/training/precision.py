"""How far a step's gradients in bfloat16 are from those in float32.

    python -m benchmarks.training.precision --config=configs/pretrain.py --config.batch_size=2

The parameters are freshly drawn, and the batch is noise. Compared are tokens between the blocks in
bfloat16 (`model.residual_dtype=auto`) and in float32, with all other arithmetic in bfloat16.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from cavmae_sync_jax.models import cavmae_sync
from cavmae_sync_jax.training import train_step
from cavmae_sync_jax.utils import cli
from cavmae_sync_jax.utils.modalities import AUDIO, VISUAL

RESIDUALS = ("auto", "float32")


def gradients(config: ConfigDict, dtype: str, residual: str) -> dict[str, Any]:
    """Those of one step by part of the model, float32, with the given types inside."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.model.dtype, config.model.residual_dtype = dtype, residual
    module = cavmae_sync.from_config(config.model)
    params = jax.jit(module.init_params)(jax.random.key(config.seed))
    rng = np.random.default_rng(config.seed)
    sound, picture = ((config.batch_size, *module.raw_shape(m)) for m in (AUDIO, VISUAL))
    batch = {
        AUDIO: jnp.asarray(rng.normal(-5, 4.5, sound), jnp.float32),
        VISUAL: jnp.asarray(rng.integers(0, 256, picture), jnp.uint8),
    }

    def step(params: Any) -> Any:
        ratio = config.mask.ratios[0]
        return train_step.loss_and_grads(module, config, params, batch, jnp.int32(0), ratio)[1]

    return jax.device_get(jax.jit(step)(params))


def errors(found: dict[str, Any], exact: dict[str, Any]) -> dict[str, float]:
    """|found - exact| / |exact| of each part and of `all`."""

    def norm(tree: Any) -> float:
        return float(np.sqrt(sum(np.square(x, dtype=np.float64).sum() for x in _leaves(tree))))

    difference = jax.tree.map(np.subtract, found, exact)
    parts = {name: norm(difference[name]) / norm(exact[name]) for name in exact}
    return {"all": norm(difference) / norm(exact), **parts}


def _leaves(tree: Any) -> list[np.ndarray]:
    return jax.tree.leaves(tree)


def table(config: ConfigDict) -> list[str]:
    """The lines of a Markdown table, with one row per part of the model."""
    exact = gradients(config, "float32", "auto")
    columns = [errors(gradients(config, "bfloat16", each), exact) for each in RESIDUALS]
    lines = ["| gradient of | tokens in bfloat16 | tokens in float32 |", "|---|---|---|"]
    for name in columns[0]:
        lines.append(f"| {name} | {' | '.join(f'{column[name]:.2%}' for column in columns)} |")
    return lines


def main() -> None:
    """Runs the command line."""

    def start(args: argparse.Namespace, config: ConfigDict) -> None:
        del args
        print("\n".join(table(config)))

    cli.main(cli.parser(__doc__), start, config=True)


if __name__ == "__main__":
    main()
