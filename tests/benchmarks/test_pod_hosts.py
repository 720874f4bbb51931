"""What each host of a pod needs, by hand and on the page of results."""

import pytest

from benchmarks.training import launch, pod_hosts
from cavmae_sync_jax.utils.errors import UserError
from configs import pretrain

PAGE = """# A page

| a | table |
|---|---|
| of | others |

| chips | batch | fsdp | remat | parts | ms | efficiency |
|---|---|---|---|---|---|---|
| v5e:4x4 | 512 | – | – | 1 | 50 | 72% |
| v5e:4x4 | 4096 | – | full | 4 |  |  |
| 2xv5e:16x16 | 4096 | – | full | 1 | 100 | 72% |

| chips | batch |
|---|---|
| v5e:4x4 | 512 |
"""
RESULTS = launch.ROOT / "results/tpu_pods.md"


def test_needs_by_hand():
    first, second = pod_hosts.rows(PAGE)
    example = pod_hosts.Example(seconds=1e-3, record=500e3, pair=250e3)
    config = pretrain.get_config()  # 2 batches ahead, 128 requests in flight
    found = pod_hosts.needs(first, example, config, 100e6)
    # 128 examples per host and 50 ms. Three batches and 128 records per worker.
    memory = 3 * (100e6 + 3 * 128 * 250e3 + 128 * 500e3)
    assert found == (4, 2560, 2560 * 500e3, pytest.approx(2.56), 3, memory)
    found = pod_hosts.needs(second, example, config, 100e6)
    # 32 examples per host and 0.1 s: the requests in flight are for several batches.
    memory = 100e6 + 3 * 32 * 250e3 + 128 * 500e3
    assert found == (128, 320, 160e6, pytest.approx(0.32), 1, memory)
    shares = pod_hosts.cells(first, found)
    assert shares[:5] == ["v5e:4x4", "512", "–", "–", "128"]
    assert shares[12:] == ["40,960", "164"]  # of all hosts: requests/s and Gbit/s


def test_a_pair_has_the_bytes_of_its_arrays():
    assert pod_hosts.pair_bytes(pretrain.get_config()) == 224 * 224 * 3 + 416 * 128 * 2


@pytest.mark.parametrize("topology", ["v5e", "h100:1x1", "v5e:4x4x", "xv5e:4x4"])
def test_unknown_topologies(topology):
    with pytest.raises(UserError, match="must be such as v5e:4x4 or 2xv5e:16x16"):
        pod_hosts.chips(topology)


def test_a_page_without_the_table():
    example = pod_hosts.Example(1e-3, 500e3, 250e3)
    with pytest.raises(UserError, match="has no table of"):
        pod_hosts.table("# Nothing", example, pretrain.get_config(), 1e6)


def test_the_page_of_results_has_the_table_of_today():
    text, config = RESULTS.read_text(), pretrain.get_config()
    defaults = pod_hosts.Example(0.63e-3, 582e3, pod_hosts.pair_bytes(config))
    lines = pod_hosts.table(text, defaults, config, 400e6)
    assert "\n".join(lines) in text
