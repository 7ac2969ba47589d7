"""One step of a dynamics as a function that can be differentiated, and the scan over steps that analyses share."""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray, PyTree

from .._dynamics import AbstractDynamics, step_keys
from ..methods._method import split_key

Steps = tuple[Int[Array, " H"], Float[Array, "H A"], Key[Array, " H"] | None]


def steps_of(actions: Float[Array, "H A"], key: PRNGKeyArray | None) -> Steps:
    """The inputs of a scan over steps: t, a_t, and the key that `unroll` would give the dynamics."""
    horizon = actions.shape[0]
    return jnp.arange(horizon), actions, step_keys(split_key(key, horizon)[1], horizon)


def step_map(dynamics: AbstractDynamics, carry: PyTree, x: tuple) -> Callable:
    """One step as a function to differentiate: (varying, s_t, a_t) -> ((varying, s_{t+1}), rest of the carry).

    `varying` is `eqx.filter(carry, eqx.is_inexact_array)`, because only floating-point leaves of a carry have derivatives.
    """
    t, _, key = x
    fixed = eqx.filter(carry, eqx.is_inexact_array, inverse=True)

    def move(varying, state, action):
        carry, state = dynamics.step(eqx.combine(varying, fixed), state, action, t, key=key)
        varying, rest = eqx.partition(carry, eqx.is_inexact_array)
        return (varying, state), rest

    return move


def primal(dynamics: AbstractDynamics, state: Float[Array, " S"], actions: Float[Array, "H A"], key: PRNGKeyArray | None):
    """The carry and the state before each step, stacked along a leading axis of length H."""

    def step(loop, x):
        (carry, state), (t, action, key) = loop, x
        return dynamics.step(carry, state, action, t, key=key), loop

    return lax.scan(step, (dynamics.init(state, actions.shape[0]), state), steps_of(actions, key))[1]
