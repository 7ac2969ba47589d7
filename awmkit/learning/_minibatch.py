"""Minibatch gradient descent on whole episodes, shared by `fit` and `train`."""

from collections.abc import Callable, Iterable
from typing import TypeVar

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax import lax
from jaxtyping import PyTree, Scalar

from .._checks import check_counts
from .._dynamics import AbstractDynamics
from .._trajectory import Trajectory
from ..models._trainable import AbstractTrainable
from ._optimise import descend
from ._optimiser import AnyOptimiser

W = TypeVar("W")


def check_microbatch_size(name: str, microbatch_size: int | None, batch_size: int) -> None:
    """Raise if `microbatch_size` does not divide `batch_size`."""
    check_counts(name, microbatch_size=microbatch_size)
    if microbatch_size is not None and batch_size % microbatch_size:
        raise ValueError(
            f"{name} got microbatch_size={microbatch_size} and batch_size={batch_size}; give a divisor of batch_size, or None."
        )


def episodes_at_a_time(models: Iterable[AbstractTrainable], horizon: int) -> int | None:
    """How many episodes are differentiated at a time on a CPU: the fewest that a model asks for, or `None` for all."""
    sizes = (model.episodes_at_a_time(horizon) for model in models if isinstance(model, AbstractDynamics))
    return min((size for size in sizes if size is not None), default=None)


def loss_and_gradient(
    loss: Callable[[W, Trajectory], Scalar],
    weights: W,
    batch: Trajectory,
    microbatch_size: int | None,
    at_a_time: int | None = None,
) -> tuple[Scalar, W]:
    """The mean of `loss(weights, episode)` over the episodes of a batch, and its gradient with respect to `weights`.

    Where episodes have a `length`, each is weighted by it, because its loss is a mean over its steps: every step counts once.

    Gradients are accumulated over groups of `microbatch_size` episodes, so that memory does not grow with the batch. A CPU takes
    smaller groups, of at most `at_a_time` episodes, whose activations fit in its cache.
    """

    def mean_of(weights, group):
        losses = jax.vmap(lambda x: loss(weights, x))(group)
        if batch.length is not None:  # Divided by the mean of the batch, so that the mean of groups is the mean of the batch.
            losses = losses * group.length.astype(losses.dtype) / jnp.mean(batch.length.astype(losses.dtype))
        return jnp.mean(losses)

    mean = jax.value_and_grad(mean_of)
    count = batch.actions.shape[0]
    bound = microbatch_size or count
    few = max(n for n in range(1, min(bound, at_a_time or bound) + 1) if bound % n == 0)
    in_groups = lambda size: lambda weights, batch: _mean_of_groups(mean, weights, batch, size)
    if few == bound:
        return in_groups(bound)(weights, batch)
    return lax.platform_dependent(weights, batch, cpu=in_groups(few), default=in_groups(bound))


def _mean_of_groups(mean: Callable[[W, Trajectory], tuple[Scalar, W]], weights: W, batch: Trajectory, size: int):
    """The mean of `mean(weights, group)` over groups of `size` episodes, one group after the other."""
    groups = batch.actions.shape[0] // size
    if groups == 1:
        return mean(weights, batch)
    # Neighbours go to different groups: devices that share the batch then share every group evenly.
    grouped = jtu.tree_map(lambda x: jnp.moveaxis(x.reshape(size, groups, *x.shape[1:]), 1, 0), batch)
    add = lambda total, group: (jtu.tree_map(jnp.add, total, mean(weights, group)), None)
    shapes = jax.eval_shape(mean, weights, jtu.tree_map(lambda x: x[0], grouped))
    total, _ = lax.scan(add, jtu.tree_map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), grouped)
    return jtu.tree_map(lambda x: x / groups, total)


def minibatch_step(
    loss: Callable[[PyTree, Trajectory], Scalar],
    weights: PyTree,
    batch: Trajectory,
    optimiser: AnyOptimiser,
    optimiser_state: PyTree,
    microbatch_size: int | None,
    at_a_time: int | None,
) -> tuple[PyTree, PyTree, Scalar]:
    """One optimiser step. Returns the new weights, the optimiser's new state and the loss before the step."""
    of_batch = lambda weights: loss_and_gradient(loss, weights, batch, microbatch_size, at_a_time)
    value, gradient = of_batch(weights)
    optimiser_state, weights = descend(
        optimiser, optimiser_state, weights, gradient, loss=lambda weights: of_batch(weights)[0], value=value
    )
    return weights, optimiser_state, value
