"""What is counted in a compiled program, by hand, and a whole compilation where JAX can do it."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from benchmarks.training import hlo_text, launch

pytestmark = pytest.mark.release

TEXT = """HloModule step

%fused_slice (stack: f32[11,4,4], index: s32[]) -> f32[4,4] {
  %stack = f32[11,4,4]{2,1,0} parameter(0)
  %index = s32[] parameter(1)
  %slice = f32[1,4,4]{2,1,0} dynamic-slice(%stack, %index, %index, %index)
  ROOT %layer = f32[4,4]{1,0} bitcast(%slice)
}

%fused_update (stack.1: f32[11,8,4], row: f32[8,4], index.1: s32[]) -> f32[11,8,4] {
  %stack.1 = f32[11,8,4]{2,1,0} parameter(0)
  %row = f32[8,4]{1,0} parameter(1)
  %index.1 = s32[] parameter(2)
  %one = f32[1,8,4]{2,1,0} bitcast(%row)
  ROOT %updated = f32[11,8,4]{2,1,0} dynamic-update-slice(%stack.1, %one, %index.1)
}

%fused_compare (i: s32[]) -> pred[] {
  %i = s32[] parameter(0)
  %limit = s32[] constant(11)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%body (state: (s32[], f32[8,4], f32[11,4,4], f32[11,8,4])) -> (s32[], f32[8,4]) {
  %state = (s32[], f32[8,4]{1,0}, f32[11,4,4]{2,1,0}, f32[11,8,4]{2,1,0}) parameter(0)
  %step = s32[] get-tuple-element(%state), index=0
  %x = f32[8,4]{1,0} get-tuple-element(%state), index=1
  %weights = f32[11,4,4]{2,1,0} get-tuple-element(%state), index=2
  %kept = f32[11,8,4]{2,1,0} get-tuple-element(%state), index=3
  %weight = f32[4,4]{1,0} fusion(%weights, %step), kind=kLoop, calls=%fused_slice
  %product = (f32[8,4]{1,0}, s8[16]{0}) custom-call(%x, %weight), custom_call_target="__cublas$gemm"
  %y = f32[8,4]{1,0} get-tuple-element(%product), index=0
  %more = f32[11,8,4]{2,1,0} fusion(%kept, %y, %step), kind=kLoop, calls=%fused_update
  ROOT %all = (s32[], f32[8,4]{1,0}) tuple(%step, %y)
}

%condition (state.1: (s32[], f32[8,4])) -> pred[] {
  %state.1 = (s32[], f32[8,4]{1,0}) parameter(0)
  ROOT %go = pred[] fusion(%state.1), kind=kLoop, calls=%fused_compare
}

ENTRY %main (x.1: f32[8,4]) -> bf16[4,8] {
  %x.1 = f32[8,4]{1,0} parameter(0)
  %loop = (s32[], f32[8,4]{1,0}) while(%x.1), condition=%condition, body=%body
  %out = f32[8,4]{1,0} get-tuple-element(%loop), index=1
  ROOT %turned = f32[4,8]{1,0:T(8,128)} transpose(%out), dimensions={1,0}, metadata={op_name="turn"}
}
"""


def test_traffic_by_hand():
    found = hlo_text.traffic(TEXT)
    layer, rows = 4 * 4 * 4, 8 * 4 * 4
    # Reading a layer's weights takes the layer, not the stack; writing to a stack, the row.
    slices = 11 * (2 * layer + 2 * rows)
    assert found["slices of stacks"] == (slices, 22)
    assert found["__cublas$gemm"] == (11 * (2 * rows + layer + 16), 11)
    assert found["copies"] == (2 * rows, 1)
    assert hlo_text.largest_arrays(TEXT, 2) == [
        (11 * rows, "f32[11,8,4]", "fusion"),
        (rows, "f32[8,4]", "custom-call"),
    ]


def roofline(*flags):
    keep = {k: v for k, v in os.environ.items() if k not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    small = ["model.depth=1", "model.width=16", "model.image_size=32", "batch_size=8"]
    command = [
        sys.executable,
        "-m",
        "benchmarks.training.roofline",
        "--config=configs/demo.py",
        *flags,
    ]
    command += [f"--config.{flag}" for flag in (*small, "model.remat=none")]
    return subprocess.run(command, capture_output=True, text=True, cwd=launch.ROOT, env=keep)


def test_this_cpu(tmp_path):
    done = roofline("--device=cpu", f"--output={tmp_path / 'counts.json'}")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads((tmp_path / "counts.json").read_text())
    assert 0 < found["at_best"] <= found["one_by_one"] and found["batch"] == 8
    assert found["bytes"] == pytest.approx(sum(k["bytes"] for k in found["kinds"].values()))
    # Three times a forward pass, and attention's logits once more.
    from benchmarks.training import flops, train_step
    from configs import demo

    overrides = {"model.width": 16, "model.depth": 1, "model.image_size": 32}
    plain = 3 * 8 * flops.model_flops(train_step.chosen(demo.get_config(), overrides))
    assert 1 < found["flops"] / plain < 1.3
    assert "TFLOP in matrices" in done.stdout and "| kind | times | GB |" in done.stdout


CUDA = "jax_cuda12_plugin"


@pytest.mark.skipif(importlib.util.find_spec(CUDA) is not None, reason=f"{CUDA} is installed")
def test_without_jaxs_plugin_for_gpus():
    done = roofline("--device=h100")
    assert done.returncode == 2 and "pip install 'jax[cuda12]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(importlib.util.find_spec(CUDA) is None, reason="needs jax[cuda12] to compile")
def test_a_small_model_compiles_for_an_h100(tmp_path):
    done = roofline("--device=h100", f"--output={tmp_path / 'counts.json'}")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads((tmp_path / "counts.json").read_text())
    assert found["device"]["name"] == "NVIDIA H100 80GB HBM3"
    kernels = " ".join(found["kinds"])
    # Odd numbers of tokens in encoders and joint block, an even one in the decoder.
    assert "__cudnn$fmhaSoftmaxBackward" in kernels and "gemm" in kernels + "matmul"
