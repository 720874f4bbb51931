"""Compiles the train step for TPU pods, on a machine that has no TPU: memory, collectives, time.

    pip install -e ".[tpu]"
    python -m benchmarks.training.tpu_aot --topology=v5e:16x16 --config=configs/pretrain.py
    python -m benchmarks.training.tpu_aot --table --config=configs/pretrain.py

`2xv5e:16x16` are two slices, which only the data-centre network connects.

Memory is what the compiled program's own analysis says, for each chip. FLOPs are those of the whole
step before compilation, layers unrolled, recomputed ones included. Collectives are read from the
compiled program, each as often as its loops run it. The time is a model on paper. Matrices run at
`UTILISATION` of the chip's peak. Every collective is a ring over one axis of the torus, in both
directions where the axis closes. Between slices, each chip has its share of its host's network. The
model leaves out what memory bandwidth costs, and no collective overlaps with arithmetic.
"""

import argparse
import math
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

# Before JAX: libtpu would look for a TPU, and JAX for what it finds.
os.environ.update(
    JAX_PLATFORMS="cpu",
    TPU_SKIP_MDS_QUERY="1",
    TPU_WORKER_HOSTNAMES="localhost",
    TPU_ACCELERATOR_TYPE="v5litepod-8",
    TPU_WORKER_ID="0",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
)

import jax
from jax.experimental import topologies
from ml_collections import ConfigDict

from benchmarks.training import hlo_text
from cavmae_sync_jax.distributed import sharding
from cavmae_sync_jax.models import cavmae_sync
from cavmae_sync_jax.training import config_checks, train_step
from cavmae_sync_jax.utils import cli
from cavmae_sync_jax.utils.errors import UserError

UTILISATION = 0.5
FAST = {"exec_time_optimization_effort": -1.0}  # a tenth of the compiler's time
GIB = 2**30


class Chip(NamedTuple):
    """The makers' figures: bfloat16 FLOP/s, bytes, a link's bytes/s one way, where tori close.

    `network` is a chip's share of its host's network, in bytes/s.
    """

    flops: float
    memory: float
    link: float
    closes: int
    network: float


CHIPS = {
    "v5e": Chip(197e12, 16 * GIB, 45e9, 16, 3.125e9),
    "v5p": Chip(459e12, 95 * GIB, 90e9, 4, 6.25e9),
    "v6e": Chip(918e12, 32 * GIB, 90e9, 16, 12.5e9),
}
TOPOLOGIES = ("v5e:4x4", "v5e:16x16", "2xv5e:16x16", "v5p:2x2x1", "v6e:4x4")
LARGEST = 64  # samples of a chip at a time, in the table's large batches


class Topology(NamedTuple):
    """So many slices of chips, each an array of `shape` that libtpu calls `name`."""

    slices: int
    name: str
    chip: Chip
    shape: tuple[int, ...]

    @classmethod
    def of(cls, text: str) -> "Topology":
        """Reads a text such as `v5e:4x4` or `2xv5e:16x16`.

        Raises:
          UserError: if it is another one.
        """
        match = re.fullmatch(r"(?:(\d+)x)?((v\w+):(\d+(?:x\d+)*))", text)
        if not match or match[3] not in CHIPS:
            raise UserError(f"--topology={text}: must be such as {', '.join(TOPOLOGIES)}")
        shape = tuple(map(int, match[4].split("x")))
        return cls(int(match[1] or 1), match[2], CHIPS[match[3]], shape)

    @property
    def chips(self) -> int:
        """Of all slices."""
        return self.slices * math.prod(self.shape)

    def devices(self) -> list[jax.Device]:
        """What libtpu compiles for."""
        several = {"num_slices": self.slices} if self.slices > 1 else {}
        described = topologies.get_topology_desc(platform="tpu", topology_name=self.name, **several)
        return list(described.devices)


class Collectives(NamedTuple):
    """Of one kind: how many per step, bytes that a chip takes part with, and seconds on paper."""

    count: int
    bytes: float
    seconds: float


class Estimate(NamedTuple):
    """What one compilation says; `memory` is bytes per chip, FLOPs are of all chips together."""

    chips: int
    memory: float
    fits: bool
    flops: float
    compute: float
    collectives: dict[str, Collectives]

    @property
    def seconds(self) -> float:
        """Of one step, arithmetic and collectives one after the other."""
        return self.compute + sum(kind.seconds for kind in self.collectives.values())


KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BETWEEN = "between slices"
# libtpu's own word for what a chip sends to the other slices, by way of its host.
_SENT = re.compile(r'= (.*?) send\(.*_xla_megascale_transfer_type="(\w+)"')


def collectives(text: str, topology: Topology) -> dict[str, Collectives]:
    """The collectives of a compiled program's text, by kind."""
    blocks = hlo_text.computations(text)
    totals, sums = hlo_text.runs(blocks), {}
    for name, lines in blocks.items():
        for line in lines if totals.get(name) else ():
            found = _collective(line, "all-reduce-scatter" in name, topology)
            if not found:
                continue
            kind, size, seconds = found
            old, times = sums.get(kind, Collectives(0, 0.0, 0.0)), totals[name]
            sums[kind] = Collectives(
                old.count + times, old.bytes + times * size, old.seconds + times * seconds
            )
    return sums


def _collective(
    line: str, scattered: bool, topology: Topology
) -> tuple[str, float, float] | tuple[()]:
    """The kind, bytes and seconds of a line's collective, which may be part of a `scattered`."""
    if sent := _SENT.search(line):
        size = sum(hlo_text.sizes(sent[1]))
        others = (topology.slices - 1) * size
        passes = 2 / topology.slices if sent[2] == "ALL_REDUCE" else 1
        return BETWEEN, size, passes * others / topology.chip.network
    match = re.search(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(", line)
    if not match:
        return ()
    kind = "reduce-scatter" if scattered else match[2]
    sizes = hlo_text.sizes(match[1])
    if match[3] and kind != "all-reduce":  # (operands, results)
        sizes = sizes[len(sizes) // 2 :]
    group = _group(line, math.prod(topology.shape))
    size = sum(sizes) * (group if match[2] == "reduce-scatter" else 1)
    return kind, size, _ring(kind, size, group, topology.chip, topology.shape)


def _group(line: str, chips: int) -> int:
    """How many chips take part in a collective, from one of three ways to write it."""
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return match[1].count(",") + 1
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(match[1])
    if match := re.search(r"replica_groups=mesh\[(.*?)\].*? \{(.*?)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", match[2]))
    return chips


def _ring(kind: str, size: float, group: int, chip: Chip, shape: tuple[int, ...]) -> float:
    """Seconds of a ring over one axis of the torus; one that does not close is half as fast."""
    if kind == "collective-permute":
        return size / chip.link
    bandwidth = chip.link * (2 if max(shape) % chip.closes == 0 else 1)
    passes = 2 if kind == "all-reduce" else 1
    return passes * size * (group - 1) / group / bandwidth


def estimate(topology: Topology, config: ConfigDict, flops: float) -> Estimate:
    """Compiles the train step of `config`, which has so many `flops`, for a topology's chips."""
    asked = config.mesh.data * config.mesh.fsdp  # negative if one of them is the rest
    devices = topology.devices()[: asked if asked > 0 else None]
    mesh = sharding.make_mesh(**config.mesh, devices=devices)
    config_checks.check(config, mesh.size)
    config_checks.check_pretraining(config, cavmae_sync.from_config(config.model))
    try:
        compiled = lowered(config, mesh).compile(compiler_options=FAST)
    except jax.errors.JaxRuntimeError as error:
        # Two ways to say it, with the figure in the middle.
        needed = re.search(r"(?:Used |temporaries \()([\d.]+)G(?: of|\) exceeds)", str(error))
        if needed:
            return Estimate(mesh.size, float(needed[1]) * GIB, False, flops, math.nan, {})
        raise
    about = compiled.memory_analysis()
    memory = about.argument_size_in_bytes + about.output_size_in_bytes + about.temp_size_in_bytes
    memory += about.generated_code_size_in_bytes - about.alias_size_in_bytes
    return Estimate(
        mesh.size,
        memory,
        memory < topology.chip.memory,
        flops,
        flops / mesh.size / topology.chip.flops / UTILISATION,
        collectives(compiled.as_text(), topology),
    )


def on_a_tpu(config: ConfigDict) -> ConfigDict:
    """The config with the type that a TPU would choose."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        if config.model.dtype == "auto":
            config.model.dtype = "bfloat16"
    return config


def lowered(config: ConfigDict, mesh: jax.sharding.Mesh) -> jax.stages.Lowered:
    """The train step of a config, ready to compile for the devices of a mesh."""
    module = cavmae_sync.from_config(config.model)
    optimizer, _ = train_step.make_optimizer(config, 1000, 100.0)
    with jax.set_mesh(mesh):
        return train_step.lowered(module, optimizer, config, mesh)


def step_flops(config: ConfigDict) -> float:
    """Of a whole step in one piece, before compilation: layers unrolled, as a loop counts once."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.update_from_flattened_dict({"model.unroll": True, "microbatches": 1})
    one = sharding.make_mesh(devices=jax.devices()[:1])
    return lowered(config, one).cost_analysis()["flops"]


COLUMNS = "chips,batch,fsdp,remat,parts,GiB per chip,TFLOP,collectives,ms,efficiency"


def row(topology: str, config: ConfigDict, found: Estimate) -> str:
    """One row of the table."""
    fsdp, remat = config.mesh.fsdp, config.model.remat
    settings = [{1: "–", -1: "all"}.get(fsdp, fsdp), "–" if remat == "none" else remat]
    parts = [topology, config.batch_size, *settings, config.microbatches]
    memory = f"{found.memory / GIB:.1f}"
    if not found.fits:
        cells = [*parts, f"{memory}: does not fit", f"{found.flops / 1e12:.1f}", "", "", ""]
        return f"| {' | '.join(map(str, cells))} |"
    kinds = ", ".join(
        f"{kind.count} {name} {kind.bytes / 1e6:.0f} MB"
        for name, kind in sorted(found.collectives.items())
    )
    cells = [*parts, memory, f"{found.flops / 1e12:.1f}", kinds]
    if config.microbatches == 1:
        cells += [f"{1e3 * found.seconds:.0f}", f"{found.compute / found.seconds:.0%}"]
    else:
        cells += ["", ""]  # the arithmetic of embedding twice is not counted
    return f"| {' | '.join(map(str, cells))} |"


def table(config: ConfigDict, topology: Topology) -> Iterator[ConfigDict]:
    """The settings of results/tpu_pods.md: two batches, with and without fsdp and remat.

    A batch of 4096 comes in as many parts as few chips need, and then always rematerialised.
    Several slices get the large batch only, and split parameters inside of each slice.
    """
    for batch in (512, 4096) if topology.slices == 1 else (4096,):
        parts = max(1, batch // topology.chips // LARGEST) if batch > 512 else 1
        for fsdp in (1, -1):
            for remat in ("none", "full") if parts == 1 else ("full",):
                chosen = config.copy_and_resolve_references()
                with chosen.unlocked():
                    chosen.update_from_flattened_dict(
                        {"batch_size": batch, "microbatches": parts, "model.remat": remat}
                        | {"mesh.fsdp": fsdp, "mesh.data": topology.slices if fsdp < 0 else -1}
                    )
                yield chosen


def main() -> None:
    """Runs the command line."""
    arguments = cli.parser(__doc__)
    arguments.add_argument(
        "--topology",
        nargs="+",
        default=TOPOLOGIES,
        help="TPU slice to compile for, such as v5e:16x16",
    )
    arguments.add_argument(
        "--table", action="store_true", help="compile all rows of results/tpu_pods.md"
    )

    def start(args: argparse.Namespace, config: ConfigDict) -> None:
        config, titles = on_a_tpu(config), COLUMNS.split(",")
        print(f"| {' | '.join(titles)} |\n{'|---' * len(titles)}|", flush=True)
        known: dict[tuple[int, str], float] = {}  # no other setting of the table changes them
        for text, topology in [(text, Topology.of(text)) for text in args.topology]:
            for chosen in table(config, topology) if args.table else [config]:
                which = chosen.batch_size, chosen.model.remat
                known[which] = known.get(which) or step_flops(chosen)
                found = estimate(topology, chosen, known[which])
                print(row(text, chosen, found), flush=True)

    cli.main(arguments, start, config=True)


if __name__ == "__main__":
    main()
