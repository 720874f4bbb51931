"""What the benchmark reads from compiled programs, and, where libtpu is, a whole compilation."""

import importlib.util
import os
import subprocess
import sys

import pytest

from benchmarks.training import launch

pytestmark = pytest.mark.release

TEXT = """HloModule step

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%body (state: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %start = (bf16[2,4]{1,0}, bf16[8,4]{1,0}, u32[], u32[]) all-gather-start(%x), replica_groups=[4,4]<=[16], dimensions={0}
  %done = bf16[8,4]{1,0} all-gather-done(%start)
}

%condition (state: (s32[], bf16[8,4])) -> pred[] {
  %limit = s32[] constant(11)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%all-reduce-scatter.1 (x: f32[64]) -> f32[16] {
  %reduced = f32[64]{0} all-reduce(%x), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
}

ENTRY %main (x: bf16[8,4]) -> bf16[8,4] {
  %sent = (f32[25]{0}, u32[], token[]) send(%z, %after), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_megascale_reduce_operation="SUM",_xla_megascale_transfer_type="ALL_REDUCE"}
  %more = (f32[10]{0}, u32[], token[]) send(%z, %after), channel_id=3, is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_GATHER"}
  %loop = (s32[], bf16[8,4]) while(%init), condition=%condition, body=%body
  %fused = f32[16]{0} fusion(%y), kind=kCustom, calls=%all-reduce-scatter.1
  %gradients = (f32[100]{0}, f32[50]{0}) all-reduce(%a, %b), replica_groups=mesh['x'=4,'y'=4], device_ids=([16]) {'x','y'}, to_apply=%add
}
"""  # noqa: E501


def test_collectives_by_hand():
    # The benchmark sets JAX's platform for its own process only.
    code = (
        "import sys; from benchmarks.training import tpu_aot as t; "
        "chip = t.Chip(1.0, 1.0, 100.0, 16, 10.0); "
        "print(t.collectives(sys.stdin.read(), t.Topology(3, '', chip, (4, 4))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=TEXT, capture_output=True, text=True, cwd=launch.ROOT
    )
    assert done.returncode == 0, done.stderr
    names = {"Collectives": lambda count, bytes, seconds: (count, bytes, seconds)}
    found = eval(done.stdout, names)
    # Eleven gathers of 8 × 4 bfloat16; 4 × 4 does not close, so rings go one way.
    assert found["all-gather"] == (11, 11 * 64.0, pytest.approx(11 * 64 * 3 / 4 / 100))
    assert found["reduce-scatter"] == (1, 256.0, pytest.approx(256 * 3 / 4 / 100))
    assert found["all-reduce"] == (1, 600.0, pytest.approx(2 * 600 * 15 / 16 / 100))
    # Three slices: a sum passes two thirds twice, and what is gathered goes to both others.
    assert found["between slices"] == (2, 140.0, pytest.approx((2 * 100 * 2 / 3 + 2 * 40) / 10))


def test_topologies_of_one_and_of_several_slices():
    code = (
        "from benchmarks.training import tpu_aot as t; from configs import pretrain; "
        "found = [t.Topology.of(name) for name in ('v5p:2x2x1', '2xv5e:16x16')]; "
        "print([(x.slices, x.name, x.chip is t.CHIPS[x.name[:3]], x.shape, x.chips) "
        "for x in found]); "
        "rows = [list(t.table(pretrain.get_config(), x)) for x in found]; "
        "print([[(r.batch_size, r.mesh.data, r.mesh.fsdp, r.microbatches) for r in x] "
        "for x in rows])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=launch.ROOT
    )
    assert done.returncode == 0, done.stderr
    names, rows = (eval(line) for line in done.stdout.splitlines())
    assert names == [
        (1, "v5p:2x2x1", True, (2, 2, 1), 4),
        (2, "v5e:16x16", True, (16, 16), 512),
    ]
    one, two = rows
    assert one[:3] == [(512, -1, 1, 1), (512, -1, 1, 1), (512, 1, -1, 1)]
    assert one[4:] == [(4096, -1, 1, 16), (4096, 1, -1, 16)]
    # Parameters never cross slices.
    assert two == [(4096, -1, 1, 1)] * 2 + [(4096, 2, -1, 1)] * 2


def test_an_unknown_topology():
    command = [sys.executable, "-m", "benchmarks.training.tpu_aot", "--config=configs/demo.py"]
    command += ["--topology=v1:2x2"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=launch.ROOT)
    assert done.returncode == 2 and "--topology=v1:2x2: must be such as v5e:4x4" in done.stderr


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ,
    reason="needs libtpu",
)
@pytest.mark.parametrize(
    ("topology", "mesh"), [("v5e:4x4", (16, 1)), ("v5e:4x4", (1, 16)), ("2xv5e:4x4", (2, 16))]
)
def test_a_small_model_compiles_for_a_pod(topology, mesh):
    flags = ["data.num_frames=4", "model.width=128", "batch_size=64", "model.remat=full"]
    flags += [f"mesh.data={mesh[0]}", f"mesh.fsdp={mesh[1]}"]
    command = [sys.executable, "-m", "benchmarks.training.tpu_aot", "--config=configs/demo.py"]
    command += [f"--topology={topology}", *(f"--config.{flag}" for flag in flags)]
    environment = {k: v for k, v in os.environ.items() if k not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    done = subprocess.run(command, capture_output=True, text=True, cwd=launch.ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    *_, row = done.stdout.splitlines()
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[0] == topology and 0 <= float(cells[5]) < 1 and float(cells[6]) >= 0
    assert ("between slices" in cells[7]) == (topology[0] == "2")
    assert "all-reduce" in cells[7] and float(cells[8]) >= 0 and cells[9].endswith("%")
