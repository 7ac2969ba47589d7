"""What a user may have got wrong, said in one sentence each: what was given, what is needed, how to fix it.

Apart from the unroll so that the loop reads as its equations do. Nothing here costs time in a compiled program.
"""

import operator

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from ._dynamics import AbstractDynamics
from ._methods import AbstractMethod, Parallel, Policy
from ._paths import Paths
from ._reward import of_transition


def check_arguments(dynamics, policy, state, horizon, *, key, paths, method) -> tuple[Float[Array, " S"], Policy]:
    """Raise for what can be seen without tracing; return state and policy, as arrays where they are array-like."""
    if not isinstance(dynamics, AbstractDynamics):
        raise ValueError(f"The dynamics is a {type(dynamics).__name__}; pass an instance of awmkit.AbstractDynamics.")
    state = _as_float(state, "The state", (dynamics.state_size,), "vmap over a batch of states with jax.vmap")
    _check_horizon(horizon)
    if eqx.is_array_like(policy) or isinstance(policy, list | tuple):
        shape = (horizon, dynamics.action_size)
        policy = _as_float(policy, "The policy, an array of actions,", shape, "one row for each step")
    elif not callable(policy):
        raise ValueError(
            f"The policy is a {type(policy).__name__}; pass a callable policy(state, t, *, key) or an array of actions (H, A)."
        )
    if key is not None and not (eqx.is_array(key) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape == ()):
        raise ValueError(f"The key is {_describe(key)}; pass one key made by jax.random.key(seed), or vmap over several.")
    if not isinstance(paths, Paths):
        raise ValueError(f"The paths are a {type(paths).__name__}; pass awmkit.Paths(...), such as awmkit.BPO.")
    if method is not None and not isinstance(method, AbstractMethod):
        raise ValueError(f"The method is {method!r}; pass Sequential(), Parallel() or None for the fastest.")
    if isinstance(method, Parallel) and dynamics.reads_state:
        raise ValueError(
            f"Parallel cannot run {type(dynamics).__name__}, whose step reads the state that the previous step predicted, so "
            "that no pass over the actions alone exists; use method=Sequential(), or an actions world model (AWM)."
        )
    return state, policy


def check_differentiable(policy) -> None:
    """Raise for a policy whose gradient would be empty."""
    if not any(map(eqx.is_inexact_array, jtu.tree_leaves(policy))):
        raise ValueError(
            f"The policy, a {type(policy).__name__}, holds no floating-point array to differentiate; make it an eqx.Module "
            "whose fields are its parameters, or pass an array of actions."
        )


def check_functions(dynamics, policy, state, horizon, *, reward, key) -> None:
    """Raise for functions that return the wrong thing. Traces each of them once, abstractly."""
    if isinstance(policy, Array):
        action = jax.ShapeDtypeStruct(policy.shape[1:], policy.dtype)
    else:
        action = eqx.filter_eval_shape(lambda s, t, k: policy(s, t, key=k), state, jnp.asarray(0), key)
        if getattr(action, "shape", None) != (dynamics.action_size,) or not jnp.issubdtype(action.dtype, jnp.floating):
            raise ValueError(
                f"The policy returned {_describe(action)}; the dynamics needs a floating-point action of shape "
                f"({dynamics.action_size},), so give the policy action_size={dynamics.action_size}."
            )
    _check_step(dynamics, action, state, horizon, key)
    if reward is None:
        return
    value = eqx.filter_eval_shape(of_transition(reward), state, action, jnp.asarray(0), state)
    if getattr(value, "shape", None) != () or not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(
            f"The reward returned {_describe(value)}; it must be one floating-point number, so reduce it, say with jnp.sum."
        )


def _check_step(dynamics, action, state, horizon, key) -> None:
    carry = eqx.filter_eval_shape(lambda s: dynamics.init(s, horizon), state)
    step = lambda c, s, a, t, k: dynamics.step(c, s, a, t, key=k)
    after, next_state = eqx.filter_eval_shape(step, carry, state, action, jnp.asarray(0), key)
    name = type(dynamics).__name__
    if getattr(next_state, "shape", None) != state.shape or next_state.dtype != state.dtype:
        raise ValueError(
            f"{name}.step returned the state as {_describe(next_state)} for a state given as {_describe(state)}; they must be "
            "the same, so mend the step, or cast the state or the model to one dtype."
        )
    describe = lambda tree: jtu.tree_map(_describe, tree)
    if describe(carry) != describe(after):
        raise ValueError(
            f"{name}.step returned the carry as {describe(after)} for a carry given as {describe(carry)}; they must be the "
            "same, so make init return what step does."
        )


def _check_horizon(horizon) -> None:
    try:
        whole = operator.index(horizon)
    except TypeError:
        raise ValueError(f"The horizon is {_describe(horizon)}; pass a Python int, since it sets the shapes.") from None
    if isinstance(horizon, bool) or whole < 1:
        raise ValueError(f"The horizon is {horizon}; an unroll needs at least 1 step.")


def _as_float(x, what: str, shape: tuple[int, ...], hint: str) -> Array:
    x = x if eqx.is_array(x) else np.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{what} has dtype {x.dtype}; gradients need floating point, so pass it .astype(float).")
    if x.shape != shape:
        raise ValueError(f"{what} has shape {x.shape}; this dynamics needs {shape}: {hint}.")
    if not isinstance(x, Tracer) and not np.isfinite(x).all():
        where = np.argwhere(~np.isfinite(np.asarray(x)))[0].tolist()
        raise ValueError(f"{what} is not finite at index {where}; remove the NaN or infinity before the unroll.")
    return jnp.asarray(x)


def _describe(x) -> str:
    return f"{x.dtype}{list(x.shape)}" if hasattr(x, "shape") and hasattr(x, "dtype") else repr(x)
