"""The derivative of one step, and the arguments that every analysis along given actions shares.

Apart from the analyses so that each of them reads as its own idea.
"""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray, PyTree

from .._dynamics import AbstractDynamics, step_keys
from .._paths import Paths
from .._unroll_checks import check_arguments
from ..methods._method import split_key

Steps = tuple[Int[Array, " H"], Float[Array, "H A"], Key[Array, " H"] | None]


def check_plan(dynamics, state, actions, *, key) -> tuple[Float[Array, " S"], Float[Array, "H A"]]:
    """s_0 and a_0 ... a_{H-1} as arrays, or an error as `unroll` raises it."""
    if jnp.ndim(actions) != 2:
        raise ValueError(f"The actions have shape {jnp.shape(actions)}; pass an array (H, A), one row for each step.")
    state, actions = check_arguments(dynamics, actions, state, len(actions), key=key, paths=Paths(), method=None)
    assert isinstance(actions, Array)
    return state, actions


def steps_of(actions: Float[Array, "H A"], key: PRNGKeyArray | None) -> Steps:
    """What a scan over steps reads: t, a_t, and the key that the unroll would give the dynamics."""
    horizon = actions.shape[0]
    return jnp.arange(horizon), actions, step_keys(split_key(key, horizon)[1], horizon)


def step_map(dynamics: AbstractDynamics, carry: PyTree, x: tuple) -> Callable:
    """One step as a function to be differentiated: (varying, s_t, a_t) -> (varying, s_{t+1}), the rest of the carry.

    Only floating-point leaves of a carry have derivatives: `varying` is `eqx.filter(carry, eqx.is_inexact_array)`.
    """
    t, _, key = x
    fixed = eqx.filter(carry, eqx.is_inexact_array, inverse=True)

    def move(varying, state, action):
        carry, state = dynamics.step(eqx.combine(varying, fixed), state, action, t, key=key)
        varying, rest = eqx.partition(carry, eqx.is_inexact_array)
        return (varying, state), rest

    return move


def primal(dynamics: AbstractDynamics, state: Float[Array, " S"], actions: Float[Array, "H A"], key: PRNGKeyArray | None):
    """The carry and the state before each step, stacked along a first axis of H."""

    def step(loop, x):
        (carry, state), (t, action, key) = loop, x
        return dynamics.step(carry, state, action, t, key=key), loop

    return lax.scan(step, (dynamics.init(state, actions.shape[0]), state), steps_of(actions, key))[1]


def check_batch(dynamics, states, actions, *, key) -> tuple[Float[Array, "N S"], Float[Array, "N H A"]]:
    """N starts and what is done from each, as arrays, or an error."""
    if jnp.ndim(states) != 2 or jnp.ndim(actions) != 3 or len(states) != len(actions) or len(states) == 0:
        raise ValueError(
            f"The states have shape {jnp.shape(states)} and the actions {jnp.shape(actions)}; pass N starts (N, S) and what is "
            "done from each, (N, H, A)."
        )
    check_plan(dynamics, states[0], actions[0], key=key)
    for name, array in (("states", states), ("actions", actions)):
        if not isinstance(array, Tracer) and not np.isfinite(array).all():
            where = np.argwhere(~np.isfinite(np.asarray(array)))[0].tolist()
            raise ValueError(f"The {name} are not finite at index {where}; leave out such starts.")
    return jnp.asarray(states), jnp.asarray(actions)
