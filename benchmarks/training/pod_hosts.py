"""What each host of a TPU pod has to read and decode, at the speeds of a table of `tpu_aot`.

    python -m benchmarks.training.pod_hosts --config=configs/pretrain.py --page=results/tpu_pods.md

Nothing is measured. The rows of the page's table that have a time give the examples/s. Each example
is one request for one record, and takes the CPU time that `benchmarks.data.streaming` measured.
Memory is that of the worker processes: themselves, their batches, and the records that they have
asked for ahead.
"""

import argparse
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from ml_collections import ConfigDict

from cavmae_sync_jax.utils import cli
from cavmae_sync_jax.utils.errors import UserError


class Host(NamedTuple):
    """A virtual machine of four chips: vCPUs, bytes of memory, bytes/s of its network."""

    cores: int
    memory: float
    network: float


# Google's pages of each TPU tell chips, vCPUs, memory and network; half of what hosts of 8 share.
HOSTS = {
    "v5e": Host(112, 192e9, 12.5e9),  # ct5lp-hightpu-4t; 2 x 100 Gbit/s per 8 chips
    "v5p": Host(208, 448e9, 25e9),  # ct5p-hightpu-4t; 50 Gbit/s per chip
    "v6e": Host(180, 720e9, 50e9),  # ct6e-standard-4t; 4 x 200 Gbit/s per 8 chips
}
CHIPS = 4  # per host


class Row(NamedTuple):
    """A row of the table of `tpu_aot`: the topology's text, the batch, seconds per step."""

    topology: str
    batch: int
    fsdp: str
    remat: str
    seconds: float


class Example(NamedTuple):
    """What one example costs a host: seconds of a core, bytes of its record and of its pair."""

    seconds: float
    record: float
    pair: float


class Needs(NamedTuple):
    """What one host needs; `reads` and `bytes` are per second."""

    hosts: int
    reads: float
    bytes: float
    cores: float
    workers: int
    memory: float


def rows(text: str) -> Iterator[Row]:
    """The rows of a page's first table of `tpu_aot`, as far as they have a time."""
    titles: list[str] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not titles:
            titles = cells if cells[:2] == ["chips", "batch"] else []
        elif not line.startswith("|"):
            return
        elif ":" in cells[0] and not set(line) <= set("|-"):
            found = dict(zip(titles, cells, strict=True))
            if found["ms"]:
                kept = (found["chips"], int(found["batch"]), found["fsdp"], found["remat"])
                yield Row(*kept, float(found["ms"]) / 1e3)


def chips(topology: str) -> tuple[str, int]:
    """The kind of chip and how many there are, of a text such as `v5e:4x4` or `2xv5e:16x16`.

    Raises:
      UserError: if it is another text.
    """
    match = re.fullmatch(r"(?:(\d+)x)?(v\w+):(\d+(?:x\d+)*)", topology)
    if not match or match[2] not in HOSTS:
        raise UserError(f"the topology {topology!r} must be such as v5e:4x4 or 2xv5e:16x16")
    return match[2], int(match[1] or 1) * math.prod(map(int, match[3].split("x")))


def needs(row: Row, example: Example, config: ConfigDict, worker_bytes: float) -> Needs:
    """What a host needs at the speed of a row, each of its workers being busy with one core."""
    hosts = max(1, chips(row.topology)[1] // CHIPS)
    share = row.batch / hosts
    reads = share / row.seconds
    cores = reads * example.seconds
    workers = math.ceil(cores)
    batches = (config.data.prefetch + 1) * share * example.pair
    asked = config.data.requests * example.record
    memory = workers * (worker_bytes + batches + asked)
    return Needs(hosts, reads, reads * example.record, cores, workers, memory)


TITLES = (
    "chips,batch,fsdp,remat,hosts,requests/s per host,GB/s,of its network,cores,of its vCPUs,"
    "GB of memory,of its memory,requests/s of all,Gbit/s of all"
)


def cells(row: Row, found: Needs) -> list[str]:
    """One row of the table."""
    host = HOSTS[chips(row.topology)[0]]
    settings = [row.topology, str(row.batch), row.fsdp, row.remat, str(found.hosts)]
    return [
        *settings,
        f"{found.reads:,.0f}",
        f"{found.bytes / 1e9:.2f}",
        f"{found.bytes / host.network:.0%}",
        f"{found.cores:.1f}",
        f"{found.cores / host.cores:.0%}",
        f"{found.memory / 1e9:.1f}",
        f"{found.memory / host.memory:.1%}",
        f"{found.hosts * found.reads:,.0f}",
        f"{8 * found.hosts * found.bytes / 1e9:,.0f}",
    ]


def table(text: str, example: Example, config: ConfigDict, worker_bytes: float) -> list[str]:
    """The lines of the table that answers a page with one of `tpu_aot`.

    Raises:
      UserError: if it has none.
    """
    found = [cells(row, needs(row, example, config, worker_bytes)) for row in rows(text)]
    if not found:
        raise UserError("the page has no table of benchmarks.training.tpu_aot with times")
    titles = TITLES.split(",")
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    return [*lines, *(f"| {' | '.join(line)} |" for line in found)]


def pair_bytes(config: ConfigDict) -> int:
    """Of a frame in uint8 and its window of sound in float16."""
    model = config.model
    return 3 * model.image_size**2 + 2 * model.audio_rows * model.audio_bins


def main() -> None:
    """Runs the command line."""
    arguments = cli.parser(__doc__)
    arguments.add_argument("--page", required=True, help="has the table of tpu_aot")
    arguments.add_argument("--cpu_ms", type=float, default=0.63, help="core ms per example")
    arguments.add_argument("--record_kb", type=float, default=582, help="kB per record")
    arguments.add_argument("--worker_mb", type=float, default=400, help="MB of an idle worker")

    def start(args: argparse.Namespace, config: ConfigDict) -> None:
        try:
            with open(args.page) as file:
                text = file.read()
        except OSError as error:
            raise UserError(f"--page={args.page} can't be read: {error.strerror}") from error
        example = Example(args.cpu_ms / 1e3, 1e3 * args.record_kb, pair_bytes(config))
        print("\n".join(table(text, example, config, 1e6 * args.worker_mb)))

    cli.main(arguments, start, config=True)


if __name__ == "__main__":
    main()
