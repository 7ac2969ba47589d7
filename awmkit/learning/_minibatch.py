"""The loss of a batch of episodes and its gradient, all episodes at once or a few after another.

Apart because `fit` and `train` descend it alike.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax import lax
from jaxtyping import Scalar

from .._checks import check_counts
from .._trajectory import Trajectory

W = TypeVar("W")


def check_microbatch_size(who: str, microbatch_size: int | None, batch_size: int) -> None:
    """Raise for groups of episodes that do not make up a batch."""
    check_counts(who, microbatch_size=microbatch_size)
    if microbatch_size is not None and batch_size % microbatch_size:
        raise ValueError(
            f"{who} got microbatch_size={microbatch_size} and batch_size={batch_size}; give a divisor of batch_size, or None."
        )


def loss_and_gradient(
    loss: Callable[[W, Trajectory], Scalar], weights: W, batch: Trajectory, microbatch_size: int | None
) -> tuple[Scalar, W]:
    """The mean of `loss(weights, episode)` over the batch, and its gradient.

    Memory is that of `microbatch_size` episodes: where the activations of a whole batch fall out of the processor's cache, the sum of
    the gradients of smaller groups is faster.
    """
    mean = jax.value_and_grad(lambda weights, group: jnp.mean(jax.vmap(lambda x: loss(weights, x))(group)))
    count = batch.actions.shape[0]
    if microbatch_size is None or microbatch_size == count:
        return mean(weights, batch)
    groups = count // microbatch_size
    # Neighbours in a batch are in different groups, so that devices that share the batch share each group of it.
    apart = jtu.tree_map(lambda x: jnp.moveaxis(x.reshape(microbatch_size, groups, *x.shape[1:]), 1, 0), batch)
    add = lambda total, group: (jtu.tree_map(jnp.add, total, mean(weights, group)), None)
    like = jax.eval_shape(mean, weights, jtu.tree_map(lambda x: x[0], apart))
    total, _ = lax.scan(add, jtu.tree_map(lambda x: jnp.zeros(x.shape, x.dtype), like), apart)
    return jtu.tree_map(lambda x: x / groups, total)
