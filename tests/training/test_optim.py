import jax
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


def test_halving_counts_epochs_from_the_first_step_also_after_a_warm_up():
    rate = optim.schedule("halving", 2.0, 30, 2.5, 0.2, floor=0.1, halvings=(4, 3))
    values = [float(rate(step)) for step in (0, 3, 6, 9, 10, 17, 18, 24, 25)]
    # Epochs 4, 7 and 10 end after 10 steps, 17.5, which is rounded to the even 18, and 25.
    assert values == pytest.approx([0, 1, 2, 2, 1, 1, 0.5, 0.5, 0.25])


def test_the_paper_halves_after_ten_epochs_and_then_every_five():
    assert optim.HALVINGS == (10, 5)
    rate = optim.schedule("halving", 1.0, 20, 1.0, 0.0, floor=0.1)
    assert [float(rate(step)) for step in (9, 10, 14, 15, 19)] == [1, 0.5, 0.5, 0.25, 0.25]


def test_a_schedule_may_have_no_warm_up_or_nothing_else():
    falling = optim.schedule("cosine", 2.0, 10, 1.0, warmup_share=0.0, floor=0.5)
    assert [float(falling(step)) for step in (0, 5, 10, 11)] == pytest.approx([2, 1.5, 1, 1])
    rising = optim.schedule("cosine", 2.0, 10, 1.0, warmup_share=1.0, floor=0.5)
    assert [float(rising(step)) for step in (0, 5, 9, 10)] == pytest.approx([0, 1, 1.8, 2])


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


def test_factors_multiply_the_learning_rate_and_zero_freezes():
    factors = {"head": 10.0, "body": 1.0, "frozen": 0.0}
    optimizer = optim.adam(0.1, 0.9, 0.99, 1e-2, factors)
    params = {name: jnp.array([2.0, -2.0]) for name in factors}
    state = optimizer.init(params)
    grads = {name: jnp.array([0.0, 1.0]) for name in factors}
    # The L2 term alone gives the first weight a whole step, as without factors.
    for _ in range(2):
        updates, state = optimizer.update(grads, state, params)
        np.testing.assert_allclose(updates["body"], [-0.1, -0.1], rtol=1e-5)
        np.testing.assert_allclose(updates["head"], [-1, -1], rtol=1e-5)
        np.testing.assert_array_equal(updates["frozen"], [0, 0])
    plain = optim.adam(0.1, 0.9, 0.99, 1e-2)
    expected, _ = plain.update(grads["body"], plain.init(params["body"]), params["body"])
    np.testing.assert_allclose(updates["body"], expected, rtol=1e-5)


def test_factors_leave_adam_as_it_is():
    factors = {"w": 1.0}
    for gradients in ([1e-8, -3e-8], [1.0, -2.0]):
        found = []
        for optimizer in (optim.adam(1.0, 0.9, 0.7, 0.0, factors), optim.adam(1.0, 0.9, 0.7, 0.0)):
            params = {"w": jnp.zeros(2)}
            state = optimizer.init(params)
            for scale in (1.0, -0.5):
                grads = {"w": scale * jnp.array(gradients)}
                updates, state = optimizer.update(grads, state, params)
            found.append(updates["w"])
        np.testing.assert_allclose(*found, rtol=1e-6)


def test_l2_reaches_weights_of_any_shape_and_name():
    # PyTorch's optimiser knows no exception, so biases and norms are decayed, too.
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2), "norm": {"scale": jnp.ones(())}}
    optimizer = optim.adam(0.1, 0.9, 0.99, 1e-3)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    jax.tree.map(lambda x: np.testing.assert_allclose(x, -0.1, rtol=1e-3), updates)


def test_weights_are_averaged_over_the_moments_that_count():
    mean, count = {"w": jnp.full(2, 7.0)}, jnp.int32(0)  # what was there before counts for nothing
    for number in range(6):
        values = {"w": jnp.full(2, float(number))}
        mean, count = optim.running_mean(mean, count, values, jnp.bool_(number in (2, 3, 5)))
        if number == 1:
            np.testing.assert_array_equal(mean["w"], 7)
    np.testing.assert_allclose(mean["w"], 10 / 3, rtol=1e-6)
    assert int(count) == 3


@pytest.mark.parametrize("before", [7.0, np.nan], ids=["other weights", "nothing"])
def test_an_average_of_equal_weights_has_their_bits(before):
    weights = np.float32([0.1, -3e-9, 2 / 3])
    mean, count = jnp.full(3, before, jnp.float32), jnp.int32(0)
    for take in (False, True, True, False, True):
        mean, count = optim.running_mean(mean, count, jnp.asarray(weights), jnp.bool_(take))
    np.testing.assert_array_equal(mean, weights)
