import jax.numpy as jnp
import numpy as np
import pytest

from cavmae_sync_jax.training import optim


def test_cosine_by_hand():
    rate = optim.schedule("cosine", 2.0, 100, 10.0, warmup_share=0.1, floor=0.1)
    values = [float(rate(step)) for step in (0, 5, 10, 55, 100)]
    assert values == pytest.approx([0, 1, 2, (2 + 0.2) / 2, 0.2], rel=1e-5)


def test_halving_by_hand():
    rate = optim.schedule("halving", 1.0, 250, 10.0, warmup_share=0.0, floor=0.1)
    values = [float(rate(step)) for step in (0, 99, 101, 149, 151, 201)]
    assert values == [1, 1, 0.5, 0.5, 0.25, 0.125]


def test_unknown_schedule():
    with pytest.raises(ValueError, match="linear"):
        optim.schedule("linear", 1.0, 10, 1.0, 0.0, 0.1)


def test_l2_is_coupled():
    # Adam's first step is lr · sign(gradient + l2 · weight): where the loss has no gradient, the
    # L2 term alone moves the weight by a whole step. Decoupled decay would move it by lr · l2 · w.
    optimizer = optim.adam(0.1, 0.95, 0.999, 1e-3)
    params = jnp.array([3.0, -2.0])
    updates, _ = optimizer.update(jnp.array([0.0, 1.0]), optimizer.init(params), params)
    np.testing.assert_allclose(updates, [-0.1, -0.1], rtol=1e-3)


def test_a_tiny_gradient_moves_the_weights_by_half_a_step():
    # Bias-corrected, the first step is gradient / (|gradient| + eps), and eps is PyTorch's 1e-8.
    optimizer = optim.adam(1.0, 0.95, 0.999, 0.0)
    params = jnp.zeros(2)
    updates, _ = optimizer.update(jnp.array([1e-8, -3e-8]), optimizer.init(params), params)
    np.testing.assert_allclose(updates, [-0.5, 0.75], rtol=1e-3)


def test_two_steps_of_adam_by_hand():
    optimizer = optim.adam(0.1, 0.9, 0.99, 0.0)
    params = jnp.zeros(1)
    _, state = optimizer.update(jnp.array([1.0]), optimizer.init(params), params)
    updates, _ = optimizer.update(jnp.array([-2.0]), state, params)
    mean = (0.9 * 0.1 * 1 + 0.1 * -2) / (1 - 0.9**2)
    square = (0.99 * 0.01 * 1 + 0.01 * 4) / (1 - 0.99**2)
    np.testing.assert_allclose(updates, [-0.1 * mean / square**0.5], rtol=1e-5)
