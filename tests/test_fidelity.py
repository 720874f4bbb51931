"""Our model computes what the authors' code computed (golden files), stage by stage."""

import functools
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cavmae_sync_jax.checkpoints.pretrained import load
from cavmae_sync_jax.models import cavmae_sync, masking
from cavmae_sync_jax.models import patches as patching
from cavmae_sync_jax.torch_compat import key_mapping, torch_io
from cavmae_sync_jax.training import losses, optim

GOLDEN = pathlib.Path(__file__).parent / "golden"
SHORT = {"audio": "a", "visual": "v"}
TINY = {
    "image_size": 64,
    "image_patch": 16,
    "audio_rows": 96,
    "audio_bins": 128,
    "audio_patch": 16,
    "width": 48,
    "depth": 11,
    "heads": 4,
    "joint_depth": 1,
    "mlp_ratio": 4.0,
    "decoder_width": 32,
    "decoder_depth": 2,
    "decoder_heads": 4,
    "registers": 8,
    "global_token": True,
    "registers_in_joint": False,
    "learned_positions": False,
    "audio_mean": 0.0,
    "audio_std": 1.0,
    "dtype": "float32",
    "residual_dtype": "auto",
    "unroll": False,
    "remat": "none",
}
LOSS = {
    "temperature": 0.05,
    "contrast_direction": "visual_to_audio",
    "contrast_groups": 1,
    "reconstruction_weight": 1.0,
}
CASES = {
    "sync": ({}, 0.1),
    "cavmae_baseline": ({"registers": 0, "global_token": False}, 0.01),
}


class Case:
    """A golden file, its weights in our tree, its inputs as patches and kept indices."""

    def __init__(self, name, overrides, file, folder):
        self.golden = dict(np.load(GOLDEN / f"{name}.npz", allow_pickle=False))
        settings, contrast_weight = CASES[name]
        self.loss = {**LOSS, "contrast_weight": contrast_weight}
        state = {k.removeprefix("state/"): v for k, v in self.golden.items() if k[:6] == "state/"}
        self.state = state
        if file:
            converted = convert_by_command(state, folder / file, folder / "converted")
            self.model, self.params = converted.module, converted.params
        else:
            self.model = cavmae_sync.from_config({**TINY, **settings, **overrides})
            learned = {k: v for k, v in state.items() if not key_mapping.POSITIONS.fullmatch(k)}
            self.params = key_mapping.take_params(learned)
        pictures = {
            "audio": patching.fbank_as_picture(jnp.asarray(self.golden["in/fbank"])),
            "visual": jnp.asarray(self.golden["in/image"]).transpose(0, 2, 3, 1),
        }
        self.patches = {m: patching.patchify(p, 16) for m, p in pictures.items()}
        self.keep, self.masked = {}, {}
        for m, grid in self.model.grids.items():
            kept = masking.kept_patches(grid.patches, 0.75)
            noise = jnp.asarray(self.golden[f"in/noise_{SHORT[m]}"])
            self.keep[m], self.masked[m] = masking.keep_smallest(noise, kept)
        self.visible, self.hidden = (
            {m: patching.gather(self.patches[m], chosen[m]) for m in SHORT}
            for chosen in (self.keep, self.masked)
        )
        self.value_and_grad = jax.jit(jax.value_and_grad(self.objective, has_aux=True))

    def apply(self, *args, method=None):
        return jax.jit(functools.partial(self.model.apply, method=method))(
            {"params": self.params}, *args
        )

    def objective(self, params):
        outputs = self.model.apply({"params": params}, self.visible, self.keep, self.masked)
        embeddings = {m: e.global_token for m, e in outputs.embeddings.items()}
        reconstructed = losses.reconstruction(outputs.predictions, self.hidden)
        contrasted = losses.contrast(self.loss, embeddings)
        loss, parts = losses.total(self.loss, contrasted, reconstructed)
        return loss, (parts, outputs)


def convert_by_command(state, source, destination):
    """Writes a real file of PyTorch weights and brings it in as a user does."""
    torch_io.write(str(source), {f"module.{name}": state[name] for name in state})
    command = [sys.executable, "-m", "cavmae_sync_jax.convert", str(source), str(destination)]
    heads = ["--config.model.heads=4", "--config.model.decoder_heads=4"]
    subprocess.run([*command, *heads], check=True)
    return load(destination)


# What is set, and as which file the weights come, if not straight into the tree.
SETTINGS = {
    "scanned": ({}, None),
    "unrolled": ({"unroll": True}, None),
    "rematerialised": ({"remat": "full"}, None),
    "from_pth": ({}, "file.pth"),
    "from_safetensors": ({}, "file.safetensors"),
}
RUNS = [(c, s) for c in CASES for s in ("scanned", "unrolled", "from_pth")]
RUNS += [("sync", "rematerialised"), ("sync", "from_safetensors")]


@pytest.fixture(params=RUNS, ids="-".join, scope="module")
def case(request, tmp_path_factory):
    name, setting = request.param
    return Case(name, *SETTINGS[setting], tmp_path_factory.mktemp("case"))


@pytest.fixture(scope="module")
def evaluated(case):
    return case.value_and_grad(case.params)


def check_close(actual, expected, rtol=1e-4):
    """Relative to the array's largest value: single elements may be near zero."""
    expected = np.asarray(expected)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=rtol * max(scale, 1e-8))


@pytest.mark.release
def test_every_weight_has_a_place(case):
    shapes = jax.eval_shape(case.model.init_params, jax.random.key(0))
    assert jax.tree.map(jnp.shape, case.params) == jax.tree.map(lambda s: s.shape, shapes)
    back = key_mapping.state_dict(case.params)
    left = {name for name in case.state if name not in back}
    assert all(
        key_mapping.UNUSED_NORMS.fullmatch(name) or key_mapping.POSITIONS.fullmatch(name)
        for name in left
    ), left
    assert all(np.array_equal(case.state[name], value) for name, value in back.items())


def test_positions_are_the_references(case):
    for name, dim in (("pos_embed", 48), ("decoder_pos_embed", 32)):
        for m, grid in case.model.grids.items():
            expected = case.state[f"{name}_{SHORT[m]}"][0]
            # The last bits of NumPy's powers, sines and cosines depend on the processor.
            ours = patching.sincos_positions(grid, dim)
            np.testing.assert_allclose(ours, expected, rtol=0, atol=5e-7)


def test_forward_stages(case, evaluated):
    (_, (_, outputs)), _ = evaluated
    golden = case.golden
    check_close(outputs.latent, golden["enc/latent"])
    for m, short in SHORT.items():
        masked = masking.is_masked(case.keep[m], case.patches[m].shape[1])
        np.testing.assert_array_equal(masked, golden[f"enc/mask_{short}"])
        order = np.argsort(golden[f"enc/ids_restore_{short}"], axis=1)
        np.testing.assert_array_equal(case.keep[m], order[:, : case.keep[m].shape[1]])
        check_close(outputs.embeddings[m].patch_tokens, golden[f"enc/tokens_{short}"])
        if f"enc/global_{short}" in golden:
            check_close(outputs.embeddings[m].global_token, golden[f"enc/global_{short}"])
        expected = jnp.asarray(golden[f"dec/pred_{short}"])
        check_close(outputs.predictions[m], patching.gather(expected, case.masked[m]))


@pytest.mark.release
def test_predictions_of_every_patch(case):
    outputs = case.apply(case.visible, case.keep)
    for m, short in SHORT.items():
        check_close(outputs.predictions[m], case.golden[f"dec/pred_{short}"])


def test_losses(case, evaluated):
    (loss, (parts, outputs)), _ = evaluated
    golden = case.golden
    check_close(loss, golden["loss/total"])
    check_close(parts["reconstruction_audio"], golden["loss/mae_a"])
    check_close(parts["reconstruction_visual"], golden["loss/mae_v"])
    check_close(parts["contrast"], golden["loss/nce"])
    check_close(parts["nce_accuracy"], golden["loss/nce_acc"])
    pair = [outputs.embeddings[m].global_token for m in SHORT]
    both, accuracy = losses.info_nce(*pair, 0.05, "both")
    check_close(both, golden["loss/nce_bidirectional"])
    check_close(accuracy, golden["loss/nce_bidirectional_acc"])


def test_gradients(case, evaluated):
    _, grads = evaluated
    ours = key_mapping.state_dict(grads)
    stored = {k.removeprefix("grad/"): v for k, v in case.golden.items() if k[:5] == "grad/"}
    norms = {
        k.removeprefix("grad_norm/"): v for k, v in case.golden.items() if k[:9] == "grad_norm"
    }
    assert len(stored) >= 9 and set(norms) <= set(ours)
    for name, expected in stored.items():
        check_close(ours[name], expected)
    for name, expected in norms.items():
        np.testing.assert_allclose(np.linalg.norm(ours[name]), expected, rtol=1e-4, err_msg=name)


@pytest.mark.release
def test_unmasked_features(case):
    for m, short in SHORT.items():

        def embed(model, patches, m=m):
            return model.join(m, model.encode(m, patches))

        embedding = case.apply(case.patches[m], method=embed)
        check_close(embedding.patch_tokens, case.golden[f"feat/tokens_{short}"])
        if f"feat/global_{short}" in case.golden:
            check_close(embedding.global_token, case.golden[f"feat/global_{short}"])
        else:
            check_close(embedding.global_token, case.golden[f"feat/tokens_{short}"].mean(axis=1))


@pytest.mark.release
def test_five_optimiser_steps(case):
    optimizer = optim.adam(1e-3, 0.95, 0.999, 5e-4)

    @jax.jit
    def apply(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params, state, history = case.params, optimizer.init(case.params), []
    for _ in range(5):
        (loss, _), grads = case.value_and_grad(params)
        params, state = apply(params, state, grads)
        history.append(loss)
    check_close(jnp.stack(history), case.golden["train/losses"])
