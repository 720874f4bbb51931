"""The fine-tuned model: CAV-MAE's values in all five modes, and what each mode uses."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from ml_collections import ConfigDict

from cavmae_sync_jax.models import classifier
from cavmae_sync_jax.models import patches as patching
from cavmae_sync_jax.torch_compat import key_mapping
from cavmae_sync_jax.training import optim
from cavmae_sync_jax.utils.errors import UserError

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
MODES = {
    "both": "multimodal",
    "audio": "audioonly",
    "visual": "videoonly",
    "audio_alone": "missingaudioonly",
    "visual_alone": "missingvideoonly",
}
CAV_MAE = {
    "image_size": 64,
    "image_patch": 16,
    "audio_patch": 16,
    "width": 48,
    "depth": 11,
    "heads": 4,
    "registers": 0,
    "global_token": False,
    "audio_mean": 0.0,
    "audio_std": 1.0,
    "remat": "none",
}


def build(classes=3, tokens="patches", **overrides):
    model = {f"model__{key}": value for key, value in overrides.items()}
    names = tuple(str(number) for number in range(classes))
    section = {"names": names, "tokens": tokens, "stream": "both", "loss": "bce"}
    return classifier.from_config(
        ConfigDict({"model": tiny.config(**model).model, "classifier": section})
    )


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(GOLDEN / "finetune.npz", allow_pickle=False))


@pytest.fixture(scope="module")
def reference(golden):
    """The golden file's model, its parameters and its inputs as patches."""
    module = build(classes=7, **CAV_MAE)
    state = {k[6:]: v for k, v in golden.items() if k[:6] == "state/"}
    state = {k: v for k, v in state.items() if not key_mapping.POSITIONS.fullmatch(k)}
    params = key_mapping.take_params(state)
    assert all(key_mapping.UNUSED_NORMS.fullmatch(name) for name in state)
    pictures = {
        "audio": patching.fbank_as_picture(jnp.asarray(golden["in/fbank"])),
        "visual": jnp.asarray(golden["in/image"]).transpose(0, 2, 3, 1),
    }
    return module, params, {m: patching.patchify(p, 16) for m, p in pictures.items()}


def close(actual, expected):
    expected = np.asarray(expected)
    tolerance = 1e-4 * np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def value_and_grad(reference, golden):
    module, _, patches = reference
    labels = jnp.asarray(golden["in/labels"])

    def objective(params):
        logits = module.apply({"params": params}, patches, ("both",), method="classify")["both"]
        return optax.sigmoid_binary_cross_entropy(logits, labels).mean()

    return jax.jit(jax.value_and_grad(objective))


def test_every_weight_of_the_references_has_a_place(reference):
    module, params, _ = reference
    shapes = jax.eval_shape(module.init_params, jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda s: s.shape, shapes)


def test_logits_of_all_modes_are_the_references(reference, golden):
    module, params, patches = reference
    classify = jax.jit(
        lambda p: module.apply({"params": p}, patches, tuple(MODES), method="classify")
    )
    logits = classify(params)
    for mode, name in MODES.items():
        close(logits[mode], golden[f"logits/{name}"])


def test_gradients_are_the_references(reference, golden, value_and_grad):
    ours = key_mapping.state_dict(value_and_grad(reference[1])[1])
    stored = {k[5:]: v for k, v in golden.items() if k[:5] == "grad/"}
    assert len(stored) == 3
    for name, expected in stored.items():
        close(ours[name], expected)


def test_five_steps_are_the_references(reference, golden, value_and_grad):
    module, params, _ = reference
    factors = module.rate_factors("both", 100.0)
    optimizer = optim.adam(1e-4, 0.95, 0.999, 5e-7, factors)

    @jax.jit
    def apply(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    before, state, losses = params, optimizer.init(params), []
    for _ in range(5):
        loss, grads = value_and_grad(params)
        params, state = apply(params, state, grads)
        losses.append(loss)
    close(jnp.stack(losses), golden["train/losses"])
    # Norms that this mode does not use, also stay out of the reach of the L2 term.
    for name in ("audio", "visual"):
        np.testing.assert_array_equal(
            params[f"norms_{name}"]["scale"], before[f"norms_{name}"]["scale"]
        )


@pytest.mark.release
@pytest.mark.parametrize("tokens", classifier.TOKENS)
@pytest.mark.parametrize("stream", classifier.STREAMS)
def test_what_is_trained_is_what_gets_a_gradient(tokens, stream):
    module = build(tokens=tokens)
    params = jax.jit(module.init_params)(jax.random.key(0))
    rng = np.random.default_rng(0)
    raw = {
        m: jnp.asarray(rng.normal(size=(2, *module.raw_shape(m))), jnp.float32)
        for m in ("audio", "visual")
    }

    def objective(params):
        logits = module.apply({"params": params}, raw, (stream,), method="of_raw")[stream]
        return (logits**2).sum()

    grads = jax.jit(jax.grad(objective))(params)
    moved = jax.tree.map(lambda leaf: bool(np.abs(leaf).max() > 0), grads)
    assert moved == module.trained(stream)
    factors = jax.tree.leaves(module.rate_factors(stream, 10.0))
    assert set(factors) == {0.0, 1.0, 10.0} and factors.count(10.0) == 4
    assert [factor > 0 for factor in factors] == jax.tree.leaves(moved)


def test_the_head_sees_global_tokens_if_asked():
    module = build(tokens="global")
    params = jax.jit(module.init_params)(jax.random.key(0))
    raw = {m: jnp.ones((2, *module.raw_shape(m))) for m in ("audio", "visual")}
    modes = ("both", "audio", "audio_alone", "visual")
    logits = module.apply({"params": params}, raw, modes, method="of_raw")
    np.testing.assert_array_equal(logits["audio"], logits["audio_alone"])
    own = [module.apply({"params": params}, m, raw[m], method="embed") for m in raw]
    mean = sum(each.global_token for each in own) / 2
    head = classifier.Head(3).apply({"params": params["head"]}, mean)
    np.testing.assert_allclose(logits["both"], head, atol=1e-5)


def test_settings_that_do_not_fit_are_told():
    with pytest.raises(UserError, match=r"classifier.tokens='cls' must be one of patches, global"):
        build(tokens="cls")
    with pytest.raises(UserError, match="needs a global token"):
        build(tokens="global", global_token=False)
