"""Reconstruction: undoing the normalisation, errors on given masks, and what `run` writes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from cavmae_sync_jax import train
from cavmae_sync_jax.checkpoints.pretrained import load
from cavmae_sync_jax.data import loader
from cavmae_sync_jax.distributed import sharding
from cavmae_sync_jax.evals import reconstruction
from cavmae_sync_jax.evals.reconstruction import MaskedErrors, Masks
from cavmae_sync_jax.inference import features
from cavmae_sync_jax.models import cavmae_sync, masking
from cavmae_sync_jax.training import losses
from cavmae_sync_jax.utils.errors import UserError

MODULE = cavmae_sync.from_config(tiny.config().model)
MODALITIES = ("audio", "visual")


def raw(batch):
    rng = np.random.default_rng(0)
    return {
        "audio": jnp.asarray(rng.normal(-5, 4, (batch, 96, 128)), jnp.float32),
        "visual": jnp.asarray(rng.integers(0, 256, (batch, 32, 32, 3)), jnp.uint8),
    }


def test_a_perfect_prediction_gives_the_picture_itself():
    for modality, given in raw(2).items():
        true = MODULE.patchify(modality, given)
        perfect = losses.normalise_patches(true)
        restored = reconstruction.restore(perfect, true, jnp.ones(true.shape[:2], bool))
        shown = reconstruction.picture(MODULE, modality, restored)
        expected = given.swapaxes(1, 2) if modality == "audio" else given / 255
        np.testing.assert_allclose(shown, expected, atol=1e-5)


def test_kept_patches_are_pasted_and_a_prediction_of_zero_is_the_mean():
    true = jnp.arange(24.0).reshape(1, 4, 6) ** 2
    masked = jnp.array([[True, False, True, False]])
    restored = reconstruction.restore(jnp.zeros_like(true), true, masked)
    np.testing.assert_array_equal(restored[0, 1::2], true[0, 1::2])
    np.testing.assert_allclose(restored[0, 0], np.full(6, 55 / 6), rtol=1e-6)
    ones = reconstruction.restore(jnp.ones_like(true), true, masked)
    spread = np.std(np.arange(6) ** 2, ddof=1)
    np.testing.assert_allclose(ones[0, 0] - restored[0, 0], np.full(6, spread), rtol=1e-5)


def test_masks_are_those_of_the_training_unless_told():
    config = tiny.config(mask__ratios=(0.6, 0.9), mask__audio_structure="time")
    assert Masks.of(config) == Masks(0.6, "time")
    assert Masks.of(config, 0.25) == Masks(0.25, "time")
    with config.unlocked():
        del config.mask
    assert Masks.of(config) == Masks(0.75, "unstructured")


def test_masks_are_fixed_and_of_the_right_size():
    draw = jax.jit(lambda: [Masks(r, s).draw(MODULE, 3) for r, s in settings])
    settings = [(0.75, "unstructured"), (0.75, "unstructured"), (0.5, "time")]
    keep, again, in_time = jax.device_get(draw())
    assert keep["audio"].shape == (3, 12) and keep["visual"].shape == (3, 1)
    assert len({tuple(sorted(row)) for row in keep["audio"].tolist()}) == 3
    np.testing.assert_array_equal(keep["audio"], again["audio"])
    assert len(set((in_time["audio"][0] % 6).tolist())) == 3  # whole columns of 8 x 6 patches


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.5, float("nan"), 0.9])
def test_a_ratio_that_keeps_or_masks_nothing_is_refused(ratio):
    with pytest.raises(UserError, match=f"--mask_ratio={ratio} must keep and mask"):
        Masks(ratio, "unstructured").check(MODULE)  # 0.9 keeps none of 4 patches


def test_each_ratio_has_a_name_of_its_own():
    names = {MaskedErrors(Masks(ratio, "time")).__name__ for ratio in (0.5, 0.75)}
    assert names == {"masked_errors_0.5_time", "masked_errors_0.75_time"}
    assert hash(MaskedErrors(Masks(0.5, "time"))) == hash(MaskedErrors(Masks(0.5, "time")))


@pytest.fixture(scope="module")
def trained(dataset_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained")
    train.train_and_evaluate(tiny.config(dataset_dir, epochs=2.0), workdir)
    return load(workdir)


@pytest.mark.release
def test_run_writes_what_it_promises(trained, dataset_dir, tmp_path, capsys):
    records = loader.Records(dataset_dir, "eval")
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    result = reconstruction.run(trained, records, tmp_path, mesh=mesh)
    assert json.loads((tmp_path / "reconstruction.json").read_text()) == result
    assert (tmp_path / "reconstruction.png").read_bytes().startswith(b"\x89PNG")
    assert result["mask"] == {"ratio": 0.5, "audio_structure": "unstructured", "seed": 0}
    assert result["clips"] == 5 and result["frames"] == 4
    printed = capsys.readouterr().out
    assert "50 % masked" in printed and "untrained model" in printed

    # The same by hand: the loss of all frames at once, each under its own masks.
    pair_spec = loader.PairSpec.of(trained.config)
    pairs = [pair for index in range(5) for pair in records.pairs(index, pair_spec, range(4))]
    given = {m: np.stack([pair[m] for pair in pairs]) for m in MODALITIES}

    @jax.jit
    def by_hand(given):
        true = {m: MODULE.patchify(m, given[m]) for m in MODALITIES}
        keep = Masks(0.5, "unstructured").draw(MODULE, 4)
        keep = {m: jnp.concatenate([rows] * 5) for m, rows in keep.items()}
        visible = {m: MODULE.patchify(m, given[m], keep[m]) for m in MODALITIES}
        predictions = MODULE.apply({"params": trained.params}, visible, keep).predictions
        masked = {m: masking.is_masked(keep[m], MODULE.grids[m].patches) for m in MODALITIES}
        zeros = jax.tree.map(jnp.zeros_like, predictions)
        return [
            {m: losses.reconstruction_loss(guess[m], true[m], masked[m]) for m in MODALITIES}
            for guess in (predictions, zeros)
        ]

    errors, zero_errors = by_hand(given)
    baselines = result["baselines"]
    for modality in MODALITIES:
        error = result["errors"][modality]
        assert error == pytest.approx(float(errors[modality]), rel=1e-4)
        zero = baselines["prediction of zero (the patch's mean)"][modality]
        assert zero == pytest.approx(float(zero_errors[modality]), rel=1e-4)
        assert baselines["untrained model"][modality] > error


def test_errors_depend_on_the_ratio_but_not_on_the_devices(
    trained, dataset_dir, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(features, "CLIPS_PER_DEVICE", 1)
    records = loader.Records(dataset_dir, "eval")
    one, eight = (sharding.make_mesh(devices=jax.devices()[:n]) for n in (1, 8))
    results = [
        reconstruction.run(trained, records, mesh=mesh, mask_ratio=0.75, cache=cache)
        for mesh, cache in ((one, None), (eight, tmp_path))
    ]
    assert results[0]["errors"] == pytest.approx(results[1]["errors"], rel=1e-4)
    assert len(list(tmp_path.glob("masked_errors_0.75_unstructured-*"))) == 2
    assert results[0]["mask"]["ratio"] == 0.75
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError, match=r"--mask_ratio=1\.5"):
        reconstruction.run(trained, records, mask_ratio=1.5)
