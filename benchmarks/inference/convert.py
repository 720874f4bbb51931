"""How long a conversion of the released checkpoints' sizes takes, and how much memory.

    python -m benchmarks.inference.convert

Each file has its real size and random weights. Every conversion is a process of its own, Python's
start and imports included; memory is its largest resident set.
"""

import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
from ml_collections import ConfigDict

from cavmae_sync_jax import convert
from cavmae_sync_jax.models import cavmae_sync
from cavmae_sync_jax.torch_compat import detect, torch_io

BEFORE_SYNC = {"registers": 0, "global_token": False, "audio_rows": 1024}


def random_state(seed: int = 0, **overrides: object) -> dict[str, np.ndarray]:
    """A state dict with all the authors' names for the released sizes, or others."""
    config = ConfigDict(detect.RELEASED)
    config.model.update(overrides)
    module = cavmae_sync.from_config(config.model)
    shapes = jax.eval_shape(module.init_params, jax.random.key(0))
    zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes)
    rng = np.random.default_rng(seed)
    return {
        name: array if "pos_embed" in name else rng.standard_normal(array.shape, np.float32)
        for name, array in convert.complete(zeros, module).items()
    }


def mae_state(seed: int = 0, decoder: bool = True, **overrides: object) -> dict[str, np.ndarray]:
    """A MAE ViT's state dict of the released sizes, or others, with random weights."""
    ours, state = random_state(seed, **overrides), {}
    last = 1 + max(int(m[1]) for name in ours if (m := re.match(r"blocks_v\.(\d+)", name)))
    for name, array in ours.items():
        if re.search(r"norm\d?_[av]\.", name) or (not decoder and re.match("decoder|mask", name)):
            continue
        if match := re.fullmatch(r"(decoder_)?pos_embed_v", name):
            no_position = np.zeros_like(array[:, :1])
            state[f"{match[1] or ''}pos_embed"] = np.concatenate([no_position, array], axis=1)
        elif match := re.fullmatch(r"(patch_embed|blocks|decoder_pred)_v(\..*)", name):
            state[match[1] + match[2]] = array
        elif match := re.fullmatch(r"blocks_u\.0(\..*)", name):
            state[f"blocks.{last}{match[1]}"] = array
        elif re.match(r"norm\.|mask_token|decoder_(embed|blocks|norm)\.", name):
            state[name] = array
    width = ours["norm.weight"].size
    return {"cls_token": np.full((1, 1, width), 0.5, np.float32), **state}


def measure(*arguments: str) -> tuple[float, float]:
    """Runs one conversion; returns its seconds and its peak memory in GB."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "cavmae_sync_jax.convert", *arguments], stderr=subprocess.PIPE
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(process.stderr.read().decode())
    return time.perf_counter() - began, usage.ru_maxrss * 1024 / 1e9


def main() -> None:
    """Prints the table."""
    print(f"{os.cpu_count()} cores, JAX {jax.__version__}")
    print("| from | to | file | seconds | peak GB |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        for name, make in (
            ("sync.pth", random_state),
            ("sync.safetensors", random_state),
            ("cav_mae.pth", lambda: random_state(**BEFORE_SYNC)),
            ("mae.pth", mae_state),
        ):
            torch_io.write(str(root / name), make())
            seconds, peak = measure(str(root / name), str(root / f"from_{name.replace('.', '_')}"))
            megabytes = (root / name).stat().st_size / 1e6
            print(f"| {name} | checkpoint | {megabytes:.0f} MB | {seconds:.1f} | {peak:.2f} |")
        for name in ("back.pth", "back.safetensors"):
            seconds, peak = measure(str(root / "from_sync_pth"), str(root / name))
            megabytes = (root / name).stat().st_size / 1e6
            print(f"| checkpoint | {name} | {megabytes:.0f} MB | {seconds:.1f} | {peak:.2f} |")


if __name__ == "__main__":
    main()
