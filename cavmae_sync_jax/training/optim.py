"""The optimiser of the paper's recipe (section 6.3): Adam with coupled L2, per-step schedules."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int

SCHEDULES = ("cosine", "halving")
HALVINGS = (10, 5)  # of CAV-MAE's pre-training, see `schedule`


def schedule(
    kind: str,
    peak: float,
    steps: int,
    steps_per_epoch: float,
    warmup_share: float,
    floor: float,
    halvings: tuple[int, int] = HALVINGS,
) -> optax.Schedule:
    """The learning rate of each step.

    Args:
      kind: "cosine" falls from `peak` to `floor * peak`; "halving" is CAV-MAE's, see
        `halvings`.
      peak: the learning rate after the warm-up.
      steps: length of the training.
      steps_per_epoch: for "halving" only.
      warmup_share: share of the steps in which it rises linearly from zero.
      floor: for "cosine" only.
      halvings: the epoch after which the rate is halved first, and the epochs from one halving to
        the next; for "halving" only.

    Raises:
      ValueError: if `kind` is unknown.
    """
    warmup = int(warmup_share * steps)
    if kind == "cosine":
        after = optax.cosine_decay_schedule(peak, max(1, steps - warmup), floor)
    elif kind == "halving":
        epochs = range(halvings[0], 1 + int(steps / steps_per_epoch), halvings[1])
        factors = {round(epoch * steps_per_epoch) - warmup: 0.5 for epoch in epochs}
        after = optax.piecewise_constant_schedule(peak, factors)
    else:
        raise ValueError(f"unknown schedule {kind!r}: use one of {SCHEDULES}")
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0, peak, warmup), after], [warmup])


def adam(
    learning_rate: optax.ScalarOrSchedule,
    b1: float,
    b2: float,
    l2: float,
    factors: Any | None = None,
) -> optax.GradientTransformation:
    """Adam as PyTorch's `Adam(weight_decay=l2)`: the L2 term is added to the gradient, of all.

    Args:
      learning_rate: of each step.
      b1: decay of the gradients' mean.
      b2: decay of their squares' mean.
      l2: factor of the L2 term.
      factors: a tree like the parameters: what multiplies the learning rate of each. One of 0 stays
        as it is, also without an L2 term. None is 1 for all.
    """
    if factors is None:
        return optax.chain(
            optax.add_decayed_weights(l2),
            optax.scale_by_adam(b1, b2, eps=1e-8),
            optax.scale_by_learning_rate(learning_rate),
        )
    multiply = optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, factors))
    return optax.chain(
        optax.add_decayed_weights(l2, mask=jax.tree.map(bool, factors)),
        optax.scale_by_adam(b1, b2, eps=1e-8),
        multiply,
        optax.scale_by_learning_rate(learning_rate),
    )


def running_mean(
    mean: Any, count: Int[Array, ""], values: Any, take: Bool[Array, ""]
) -> tuple[Any, Int[Array, ""]]:
    """The mean of the parameters of several moments (weight averaging), one moment at a time.

    Args:
      mean: of the `count` moments so far; anything, if there are none.
      count: how many.
      values: the parameters now.
      take: whether now is one of the moments.

    Returns:
      The new mean and count.
    """
    count = count + take
    first, share = take & (count == 1), jnp.where(take, 1 / jnp.maximum(count, 1), 0)

    def moved(mean: Array, value: Array) -> Array:
        # The first moment as it is: what was there before would leave its rounding in it.
        return jnp.where(first, value, mean + share * (value - mean))

    return jax.tree.map(moved, mean, values), count
