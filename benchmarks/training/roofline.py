"""What a train step takes on paper: its matrix FLOPs and its bytes, counted in the program itself.

    pip install -e ".[cuda]"                     # for h100 and h200; no GPU is needed
    python -m benchmarks.training.roofline --config=configs/pretrain.py --device h100 h200
    python -m benchmarks.training.roofline --config=configs/demo.py --device cpu --output=cpu.json

The step is compiled for the named GPU, which need not be here. FLOPs are those of all matrix
products that the step contains, recomputed ones included. Bytes are read from the compiled text
(`hlo_text`): every kernel reads its operands and writes its result once, and no cache helps. The
makers' figures say what they take, `UTILISATION` of the peak for matrices and of the bandwidth for
memory.

"one by one" adds the kernels' times up. "at best" is the larger of all FLOPs at the full peak and
all bytes at the full bandwidth. A measured step lies above the second, and near the first if XLA's
kernels are good. The `cpu`'s figures are measured here: a matrix product and a copy.
"""

import argparse
import json
import os
import statistics
from pathlib import Path
from typing import Any, NamedTuple

# Before JAX: it would look for a GPU, and XLA would time kernels on it.
os.environ.update(JAX_PLATFORMS="cpu", CUDA_VISIBLE_DEVICES="-1")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0".strip()

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from ml_collections import ConfigDict

from benchmarks import timing
from benchmarks.training import flops, hlo_text
from benchmarks.training import train_step as benchmark
from cavmae_sync_jax.distributed import sharding
from cavmae_sync_jax.models import cavmae_sync
from cavmae_sync_jax.training import config_checks, train_step
from cavmae_sync_jax.utils import cli
from cavmae_sync_jax.utils.errors import UserError

UTILISATION = 0.75  # of peak and of bandwidth: what large kernels reach on an H100
GIB = 2**30
GPU = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth:.0f} l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: {memory:.0f} shared_memory_per_block_optin: 232448
  cuda_compute_capability {{ major: 9 minor: 0 }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 12 minor: 9 }}
device_description_str: "{name}"
"""


class Device(NamedTuple):
    """A maker's figures: dense bfloat16 FLOP/s, bytes/s of the memory, its bytes."""

    name: str
    flops: float
    bandwidth: float
    memory: float


DEVICES = {
    "h100": Device("NVIDIA H100 80GB HBM3", 989.4e12, 3.352e12, 85017493504),
    "h200": Device("NVIDIA H200", 989.4e12, 4.8e12, 150754820096),
}


class Counts(NamedTuple):
    """What the program says of one step; times are seconds."""

    device: Device
    batch: int
    flops: float
    temporaries: int
    arguments: int
    kinds: dict[str, hlo_text.Traffic]
    largest: list[tuple[float, str, str]]

    @property
    def bytes(self) -> float:
        """Of all kernels."""
        return sum(kind.bytes for kind in self.kinds.values())

    @property
    def at_best(self) -> float:
        """Of a step whose arithmetic hides its traffic or the other way round."""
        return max(self.flops / self.device.flops, self.bytes / self.device.bandwidth)

    @property
    def one_by_one(self) -> float:
        """Of a step whose kernels run one after the other."""
        products = sum(kind.bytes for name, kind in self.kinds.items() if is_product(name))
        arithmetic = max(self.flops / self.device.flops, products / self.device.bandwidth)
        return (arithmetic + (self.bytes - products) / self.device.bandwidth) / UTILISATION


def is_product(kind: str) -> bool:
    """Whether kernels of a kind multiply matrices, attention's fused ones included."""
    return kind == "matrices" or any(word in kind for word in ("gemm", "matmul", "fmha"))


def compile_for(name: str, config: ConfigDict) -> tuple[Device, jax.stages.Compiled]:
    """The train step of a config, compiled for a device of `DEVICES` or for this machine's `cpu`.

    Raises:
      UserError: if JAX's plugin for GPUs is not installed.
    """
    if name == "cpu":
        device, platform, devices = here(), "cpu", jax.devices()[:1]
    else:
        device, platform = DEVICES[name], "cuda"
        described = GPU.format(**device._asdict())
        try:
            topology = topologies.get_topology_desc(
                platform=platform, target_config=described, topology="1x1x1"
            )
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"--device={name}: JAX can't compile for NVIDIA GPUs here "
                f"({error}): pip install 'jax[cuda12]'"
            ) from error
        devices = list(topology.devices)[:1]
    mesh = sharding.make_mesh(devices=devices)
    module = cavmae_sync.from_config(config.model)
    optimizer, _ = train_step.make_optimizer(config, 1000, 100.0)
    with jax.set_mesh(mesh):
        lowered = train_step.lowered(module, optimizer, config, mesh, (platform,))
        return device, lowered.compile()


def here() -> Device:
    """This CPU, by a product of two matrices and the copy of an array that no cache holds."""
    product, operations = flops.matrix_product(jnp.float32)
    array = np.ones(2**26, np.float32)
    target = np.zeros_like(array)

    def copy() -> None:
        target[:] = array

    rates = timing.interleaved({"product": product, "copy": copy}, 5)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    seconds = {name: statistics.median(times) for name, times in rates.items()}
    return Device(
        "this CPU", operations / seconds["product"], 2 * array.nbytes / seconds["copy"], memory
    )


def count(name: str, config: ConfigDict, largest: int = 8) -> Counts:
    """Compiles a config's step and counts.

    Raises:
      UserError: see `compile_for`.
    """
    config = benchmark.chosen(config, {})
    with config.unlocked():
        if config.model.dtype == "auto":
            config.model.dtype = "float32" if name == "cpu" else "bfloat16"
    config_checks.check(config, 1)
    config_checks.check_pretraining(config, cavmae_sync.from_config(config.model))
    device, compiled = compile_for(name, config)
    about, text = compiled.memory_analysis(), compiled.as_text()
    return Counts(
        device,
        config.batch_size,
        flops.matrix_flops(config),
        about.temp_size_in_bytes,
        about.argument_size_in_bytes,
        hlo_text.traffic(text),
        hlo_text.largest_arrays(text, largest),
    )


def report(found: Counts) -> str:
    """The counts as Markdown."""
    device = found.device

    def milliseconds(moved: float) -> str:
        return f"{1e3 * moved / device.bandwidth:.1f}"

    rows = [
        [name, str(kind.count), f"{kind.bytes / 1e9:.2f}", milliseconds(kind.bytes)]
        for name, kind in sorted(found.kinds.items(), key=lambda item: -item[1].bytes)
    ]
    rows.append(
        ["all", str(sum(k.count for k in found.kinds.values())), f"{found.bytes / 1e9:.2f}"]
    )
    rows[-1].append(milliseconds(found.bytes))
    share = found.flops / device.flops
    lines = [
        f"{device.name}, batch {found.batch}: {found.flops / 1e12:.3g} TFLOP in matrices, "
        f"{1e3 * share:.1f} ms at the peak of {device.flops / 1e12:.4g} TFLOP/s",
        f"temporaries {found.temporaries / GIB:.2f} GiB, "
        f"arguments {found.arguments / GIB:.2f} GiB, of {device.memory / GIB:.0f} GiB",
        *(
            f"{title}: {1e3 * seconds:.1f} ms, {found.batch / seconds:.0f} samples/s, "
            f"{share / seconds:.0%} of the peak"
            for title, seconds in (("one by one", found.one_by_one), ("at best", found.at_best))
        ),
        "",
        timing.table(["kind", "times", "GB", "ms at full bandwidth"], rows),
        "",
        timing.table(
            ["largest arrays, MiB", "shape", "where"],
            [[f"{size / 2**20:.1f}", shape, f"`{where}`"] for size, shape, where in found.largest],
        ),
    ]
    return "\n".join(lines)


def to_json(found: Counts) -> dict[str, Any]:
    """The counts as plain data, with both times in seconds."""
    data = found._asdict()
    data["device"] = found.device._asdict()
    data["kinds"] = {name: kind._asdict() for name, kind in found.kinds.items()}
    return {**data, "bytes": found.bytes, "one_by_one": found.one_by_one, "at_best": found.at_best}


def main() -> None:
    """Runs the command line."""
    arguments = cli.parser(__doc__)
    arguments.add_argument(
        "--device",
        nargs="+",
        choices=[*DEVICES, "cpu"],
        default=["h100"],
        help="devices to compile for",
    )
    arguments.add_argument("--output", type=Path, help="JSON file to write all counts to")

    def begin(args: argparse.Namespace, config: ConfigDict) -> None:
        found = [count(name, config) for name in args.device]
        print(timing.machine("jax"), end="\n\n")
        print("\n\n".join(map(report, found)))
        if args.output:
            args.output.write_text(json.dumps(list(map(to_json, found)), indent=1) + "\n")

    cli.main(arguments, begin, config=True)


if __name__ == "__main__":
    main()
