"""Minibatch gradient descent on whole episodes, shared by `fit` and `train`."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import optax
from jax import lax
from jaxtyping import PyTree, Scalar

from .._checks import check_counts
from .._trajectory import Trajectory
from ._optimise import descend

W = TypeVar("W")


def check_microbatch_size(name: str, microbatch_size: int | None, batch_size: int) -> None:
    """Raise if `microbatch_size` does not divide `batch_size`."""
    check_counts(name, microbatch_size=microbatch_size)
    if microbatch_size is not None and batch_size % microbatch_size:
        raise ValueError(
            f"{name} got microbatch_size={microbatch_size} and batch_size={batch_size}; give a divisor of batch_size, or None."
        )


def loss_and_gradient(
    loss: Callable[[W, Trajectory], Scalar], weights: W, batch: Trajectory, microbatch_size: int | None
) -> tuple[Scalar, W]:
    """The mean of `loss(weights, episode)` over the episodes of a batch, and its gradient with respect to `weights`.

    Gradients are accumulated over groups of `microbatch_size` episodes, so that memory does not grow with the batch. Small
    groups are faster too where the activations of the whole batch do not fit in the CPU cache.
    """
    mean = jax.value_and_grad(lambda weights, group: jnp.mean(jax.vmap(lambda x: loss(weights, x))(group)))
    count = batch.actions.shape[0]
    if microbatch_size is None or microbatch_size == count:
        return mean(weights, batch)
    groups = count // microbatch_size
    # Neighbours go to different groups: devices that share the batch then share every group evenly.
    grouped = jtu.tree_map(lambda x: jnp.moveaxis(x.reshape(microbatch_size, groups, *x.shape[1:]), 1, 0), batch)
    add = lambda total, group: (jtu.tree_map(jnp.add, total, mean(weights, group)), None)
    shapes = jax.eval_shape(mean, weights, jtu.tree_map(lambda x: x[0], grouped))
    total, _ = lax.scan(add, jtu.tree_map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), grouped)
    return jtu.tree_map(lambda x: x / groups, total)


def minibatch_step(
    loss: Callable[[PyTree, Trajectory], Scalar],
    weights: PyTree,
    batch: Trajectory,
    optimiser: optax.GradientTransformation,
    optimiser_state: PyTree,
    microbatch_size: int | None,
) -> tuple[PyTree, PyTree, Scalar]:
    """One optimiser step. Returns the new weights, the optimiser's new state and the loss before the step."""
    value, gradient = loss_and_gradient(loss, weights, batch, microbatch_size)
    mean = lambda weights: loss_and_gradient(loss, weights, batch, microbatch_size)[0]
    optimiser_state, weights = descend(optimiser, optimiser_state, weights, gradient, loss=mean, value=value)
    return weights, optimiser_state, value
