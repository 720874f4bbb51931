import re

import jax
import pytest

from cavmae_sync_jax.distributed import hardware, multihost


def test_the_devices_are_named():
    assert hardware.description() == "8 × cpu"


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("proc/driver/nvidia/gpus/0000:01:00.0/information", r"an NVIDIA GPU, .*\[cuda\]"),
        ("dev/accel0", r"a TPU, .*\[tpu\]"),
    ],
)
def test_an_accelerator_that_jax_does_not_see_is_named(file, message, tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    assert hardware.idle_accelerator(tmp_path) is None
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.touch()
    assert re.search(message, hardware.idle_accelerator(tmp_path))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert hardware.idle_accelerator(tmp_path) is None


@pytest.mark.parametrize(
    ("visible", "tasks", "devices"),
    [
        ("0", "8(x2)", [0]),  # srun --gpus-per-task=1: a task sees its own
        ("0,1,2,3", "1(x4)", [0, 1, 2, 3]),  # a task per host
        ("0,1,2,3", "4(x2)", None),  # JAX chooses the right one
        ("0,1", "4", [0, 1]),  # --gpus-per-task=2
        (None, "8", None),
        ("0,1", None, None),
    ],
)
def test_a_task_of_slurm_uses_its_own_gpus(visible, tasks, devices, monkeypatch):
    given = {"CUDA_VISIBLE_DEVICES": visible, "SLURM_STEP_TASKS_PER_NODE": tasks}
    assert hardware.slurm_devices({k: v for k, v in given.items() if v}) == devices
    asked = {}
    for name, value in given.items():
        monkeypatch.delenv(name, raising=False)
        if value:
            monkeypatch.setenv(name, value)
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: False)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **given: asked.update(given))
    multihost.initialize()
    assert asked["local_device_ids"] == devices
