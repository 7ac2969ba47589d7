"""One step of an optax optimiser, and the check that it can train a module."""

import contextlib
from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import optax
from jaxtyping import PyTree, Scalar

from .._normaliser import trainable
from ._optimiser import AnyOptimiser, Optimiser

W = TypeVar("W", bound=PyTree)


def descend(
    optimiser: AnyOptimiser,
    state: PyTree,
    weights: W,
    gradient: W,
    *,
    loss: Callable[[W], Scalar] | None,
    value: Scalar | None = None,
) -> tuple[PyTree, W]:
    """One step of gradient descent. Returns the optimiser's new state and the new weights.

    An optimiser that cannot make a step from the gradient alone is given the loss too: `loss(weights)`, to search along a line,
    and `value`, its value at `weights`, which is computed if it is not given.
    """
    # The gradient of a real loss in complex weights is the conjugate of the direction of ascent in JAX.
    gradient = jtu.tree_map(jnp.conj, gradient)
    optimiser = optimiser.built if isinstance(optimiser, Optimiser) else optimiser
    try:
        updates, state = optimiser.update(gradient, state, weights)
    except TypeError as error:
        if not isinstance(optimiser, optax.GradientTransformationExtraArgs):
            raise
        if loss is None:
            raise ValueError(
                f"The optimiser cannot make a step from the gradient alone ({error}); pass objective= to policy_step, or use an "
                "optimiser such as optax.adam."
            ) from error
        # Only here, because an unused value would still be traced and compiled in every update.
        extra: dict[str, Any] = {"value": loss(weights) if value is None else value, "grad": gradient, "value_fn": loss}
        updates, state = optimiser.update(gradient, state, weights, **extra)
    # An update in a wider dtype, as from a learning rate in float64, does not change the dtype of the weights.
    return state, jtu.tree_map(lambda w, u: w + u.astype(w.dtype), weights, updates)


def check_trains(optimiser: AnyOptimiser, module: PyTree) -> None:
    """Raise if `optimiser` cannot train `module`: its step fails, or changes the shape of a weight or of its own state.

    Nothing is run, so the arrays of `module` may be given by their shapes. Of a sweep, one setting is checked.
    """
    weights = eqx.filter_eval_shape(lambda module: eqx.filter(module, trainable(module)), module)
    if not jtu.tree_leaves(weights):
        return
    loss = lambda weights: jnp.sum(jnp.stack([jnp.sum(jnp.real(w)) for w in jtu.tree_leaves(weights)]))
    if isinstance(optimiser, Optimiser):
        optimiser = jtu.tree_map(lambda x: jax.ShapeDtypeStruct((), x.dtype, weak_type=x.weak_type), optimiser)
    step = lambda optimiser, state, weights: descend(optimiser, state, weights, weights, loss=loss)
    try:
        before = eqx.filter_eval_shape(lambda optimiser, weights: (optimiser.init(weights), weights), optimiser, weights)
        after = eqx.filter_eval_shape(step, optimiser, *before)
    except Exception as error:
        raise ValueError(
            f"The optimiser cannot train {type(module).__name__} ({_first_line(error)}); pass an optax "
            "optimiser whose hyper-parameters are numbers or schedules, and that needs no more than the gradient and the loss."
        ) from error
    shapes = lambda tree: [(x.shape, x.dtype) for x in jtu.tree_leaves(tree)]
    with contextlib.suppress(Exception):  # Several learning rates could have the shape of a row of every weight.
        one = eqx.filter_eval_shape(lambda o, weight: step(o, o.init(weight), weight)[1], optimiser, jnp.zeros(()))
        after = after if one.shape == () else one
    if jtu.tree_structure(before) != jtu.tree_structure(after) or shapes(before) != shapes(after):
        raise ValueError(
            f"One step of the optimiser changes the shapes or dtypes of the weights of {type(module).__name__} or of its own state; "
            "pass an optimiser with one learning rate, and weights of one dtype."
        )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
