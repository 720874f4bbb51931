"""The step that the benchmark compares with in PyTorch is ours; what it counts and prints."""

import json
import sys

import jax
import numpy as np
import pytest
import tiny

torch = pytest.importorskip("torch")

from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.training import flops, torch_baseline, train_step
from benchmarks.training.torch_baseline import Trainer
from cavmae_sync_jax.training import train_step as stepping
from cavmae_sync_jax.utils.errors import UserError
from configs import pretrain

pytestmark = pytest.mark.release

VARIANTS = {
    "everything": {
        "model__registers_in_joint": True,
        "model__learned_positions": True,
        "loss__contrast_direction": "visual_to_audio",
        "loss__contrast_groups": 2,
    },
    "patches only": {"model__registers": 0, "model__global_token": False},
}
# One compilation for two tests.
STEADY = {"l2": 0.01, "learning_rate_floor": 1.0}


def both_sides(config):
    """Our side, PyTorch's with its weights, and the batch on both."""
    ours = train_step.Ours(config)
    batch = train_step.random_batch(ours.module, config.batch_size)
    trainer = Trainer(config, "float32", torch_baseline.prepare("cpu"))
    torch_baseline.load_params(trainer.model, ours.state.params)
    return ours, trainer, ours.put(batch), trainer.put(batch)


@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_and_gradients_are_ours(variant):
    config = tiny.config(**VARIANTS[variant])
    ours, trainer, batch, raw = both_sides(config)

    @jax.jit
    def gradients(params):
        step, ratio = ours.state.step, config.mask.ratios[0]
        return stepping.loss_and_grads(ours.module, config, params, batch, step, ratio)

    scalars, grads = gradients(ours.state.params)
    orders = trainer.put(ours.masks(batch))
    loss = trainer.gradients("eager", raw, orders).item()
    assert loss == pytest.approx(float(scalars["loss"]), rel=1e-5)
    theirs = {name: p.grad.numpy() for name, p in trainer.model.named_parameters()}
    expected = torch_baseline.named(grads)
    assert theirs.keys() == expected.keys()
    for name, grad in theirs.items():
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(grad, expected[name], rtol=0, atol=1e-3 * scale + 1e-7)
    norm = np.sqrt(sum((g**2).sum() for g in expected.values()))
    assert trainer.gradient_norm() == pytest.approx(norm, rel=1e-3)


def test_five_steps_agree():
    config = tiny.config(**STEADY)
    ours, trainer, batch, raw = both_sides(config)
    program, losses = ours.compile("scan", config), []
    for _ in range(5):
        orders = trainer.put(ours.masks(batch))
        losses.append(
            (trainer.step("eager", raw, orders).item(), ours.step(program, batch)["loss"])
        )
    theirs, expected = np.array(losses, np.float32).T
    np.testing.assert_allclose(theirs, expected, rtol=1e-4)
    assert abs(expected[4] - expected[0]) > 0.01
    # Not all: what has no gradient but rounding, such as a key's bias, Adam moves at random.
    expected, theirs = torch_baseline.named(ours.state.params), trainer.model.state_dict()
    for name in ("encoders_audio.modality", "joint.0.mlp.hidden.weight", "decoder.mask_token"):
        np.testing.assert_allclose(theirs[name], expected[name], atol=2e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_flops_are_those_that_pytorch_counts(variant):
    config = tiny.config(**VARIANTS[variant])
    ours, trainer, batch, raw = both_sides(config)
    orders = trainer.put(ours.masks(batch))
    plain = sdpa_kernel(SDPBackend.MATH)  # fused attention is not counted on a CPU
    with FlopCounterMode(display=False) as counter, torch.no_grad(), plain:
        trainer.model(raw, orders)
    size, groups = config.batch_size, config.loss.contrast_groups
    contrast = 2 * size**2 // groups * config.model.width
    assert counter.get_total_flops() - contrast == size * flops.model_flops(config)


def test_flops_of_the_recipe():
    assert flops.model_flops(pretrain.get_config()) == pytest.approx(44.4e9, rel=0.01)


def test_a_row_by_hand():
    ours = train_step.Row(8, "scan", [2.0, 4.0, 1.0], 3 * 2**29, 12.34)
    peer = train_step.Row(8, "PyTorch eager", [1.0, 1.0, 2.0], None, None)
    cells = train_step.cells(ours, 1e9, 8e9, [peer])
    assert cells[:4] == ["8", "scan", "4.000 (2.000–8.000)", "50%"]
    assert cells[4:] == ["1.50", "12.3", "0.50 (0.25–2.00)"]
    assert train_step.cells(peer, 1e9, 8e9, [peer])[4:] == ["–", "–", "–"]


def test_the_program(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(flops.PRODUCT, "cpu", 64)
    files = tmp_path / "rows.json", tmp_path / "traces"
    train_step.run(tiny.config(**STEADY), [8], ["scan"], ["eager"], 2, 1, *files)
    stored = json.loads(files[0].read_text())["rows"]
    assert [row["name"] for row in stored] == ["scan", "PyTorch eager"]
    assert all(len(row["seconds"]) == 2 and row["matrix_rate"] > 0 for row in stored)
    assert list((files[1] / "8" / "scan").rglob("*.xplane.pb"))
    machine, setting, _, titles, _, *rows = capsys.readouterr().out.splitlines()
    assert "torch" in machine and setting.startswith("float32, ")
    assert titles.endswith("| × PyTorch eager |")
    assert [row.split(" | ")[1] for row in rows] == ["scan", "PyTorch eager"]
    share, gib = rows[0].split(" | ")[3:5]
    assert float(share.rstrip("%")) > 0 and 0 <= float(gib) < 1


def test_sides_that_differ_are_not_timed():
    train_step.agree("scan and eager", "float32", (1.0, 2.0), (1.0005, 2.0))
    with pytest.raises(UserError, match="scan and eager: the gradients' norm is 2 and PyTorch"):
        train_step.agree("scan and eager", "float32", (1.0, 2.0), (1.0, 2.01))


def test_without_pytorch(monkeypatch):
    monkeypatch.delitem(sys.modules, "benchmarks.training.torch_baseline")
    monkeypatch.delattr("benchmarks.training.torch_baseline")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"torch is missing: pip install '\.\[convert\]'"):
        train_step._torch_baseline(tiny.config())
    with pytest.raises(UserError, match="the peers don't augment audio"):
        train_step._torch_baseline(tiny.config(data__augment_audio=True))
