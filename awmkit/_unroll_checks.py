"""Checks of the arguments of `unroll` and `unroll_grad`.

An analysis calls `check_arguments` once, at its public entry, and then `unchecked_unroll` of `awmkit._unroll` inside its own
`jit`. The checks run before compilation or while tracing, so they cost a compiled program nothing.
"""

import math
import operator
import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.core import Tracer
from jax.extend.core import Var
from jaxtyping import Array, Float, PyTree

from ._checks import check_call, check_counts, check_key, describe, kind
from ._dynamics import AbstractDynamics, as_arrays
from ._paths import EDGES, Paths
from ._policies import act, memory_of
from ._reward import check_reward, with_next_state
from ._termination import evaluate, is_hard
from .methods import AbstractMethod, Parallel, Policy

ALLOWED_ACTION = 1 + 1e-5  # [-1, 1], and what rounding adds to it.


def check_arguments(dynamics, policy, state, horizon, *, key, paths, method) -> tuple[Float[Array, " S"], Policy]:
    """Raise for whatever can be seen without tracing. Return state and policy, converted to arrays if they are array-like."""
    check_dynamics(dynamics)
    state = _as_float(state, "The state", (dynamics.state_size,), "vmap over a batch of states with jax.vmap")
    check_counts("The unroll", horizon=horizon)
    if operator.index(horizon) >= 2**31:
        raise ValueError(f"The unroll got horizon={horizon}; give less than 2^31 steps.")
    if eqx.is_array_like(policy) or isinstance(policy, list | tuple):
        shape = (horizon, dynamics.action_size)
        policy = _as_float(policy, "The policy, an array of actions,", shape, "one row for each step")
        if dynamics.bounded_actions and not isinstance(policy, Tracer) and np.max(np.abs(policy)) > ALLOWED_ACTION:
            warnings.warn(
                f"The largest action is {np.max(np.abs(policy)):.3g}, but {type(dynamics).__name__} maps actions in [-1, 1] to the "
                "bounds of its controls; divide the actions by their largest value, or clip them.",
                stacklevel=3,
            )
    else:
        fix = "write it so, as lambda state, t, *, key=None: ..., or pass an array of actions (H, A)"
        check_call("policy", "policy(state, t, *, key)", fix, policy, state, 0, key=key)
    if key is not None:
        check_key("The unroll", key)
    if not isinstance(paths, Paths):
        raise ValueError(f"The paths are a {type(paths).__name__}; pass awmkit.Paths(...), such as awmkit.BPO.")
    for edge in EDGES:
        if np.ndim(gain := getattr(paths, edge)):
            raise ValueError(
                f"The gain of {edge} must be one finite real number in an unroll, got {describe(gain)}; train and improve take several, "
                "as a sweep."
            )
    if method is not None and not isinstance(method, AbstractMethod):
        raise ValueError(f"The method is {describe(method)}; pass Sequential(), Parallel(), Newton() or None for the default.")
    if isinstance(method, Parallel) and dynamics.reads_state:
        raise ValueError(
            f"Parallel needs a dynamics that does not read its predicted states, got {type(dynamics).__name__}; use "
            "method=Sequential(), or an actions world model (AWM)."
        )
    return state, policy


def check_dynamics(dynamics) -> None:
    """Raise if this is no dynamics."""
    if not isinstance(dynamics, AbstractDynamics):
        raise ValueError(f"The dynamics is {kind(dynamics)}; pass an instance of awmkit.AbstractDynamics.")


def check_start(dynamics, method, state, horizon, t, carry) -> tuple[int | Array, PyTree]:
    """Raise if an unroll cannot begin at step `t` with this carry. Return `t`, as a Python int unless it is traced, and the
    carry with space for the steps of the unroll."""
    name = type(dynamics).__name__
    if not jnp.issubdtype(jnp.result_type(t), jnp.integer) or jnp.shape(t) != () or isinstance(t, bool):
        raise ValueError(f"t must be a whole number, the index of the first step, got {describe(t)}.")
    if isinstance(t, Tracer):
        if isinstance(method, Parallel):
            raise ValueError("Parallel needs t as a Python int, got a traced value; use method=Sequential().")
    else:
        t = operator.index(t)
        if t < 0:
            raise ValueError(f"t must be at least 0, the index of the first step, got {t}.")
    # A resizable carry has one entry for each step since t = 0. Any other may begin at any step, as an empty memory.
    if carry is None and (dynamics.resizable or not dynamics.reads_state) and not (isinstance(t, int) and t == 0):
        reads = "all steps" if dynamics.reads_state else "the first state and all actions"
        raise ValueError(
            f"{name} predicts from {reads} since t = 0, so an unroll from t={describe(t)} on needs the carry of the steps before it; "
            "pass the carry= that its step or rollout_segment returned."
        )
    if carry is None:
        return t, None
    carry = as_arrays(carry, state)
    initial = eqx.filter_eval_shape(lambda s: dynamics.init(s, horizon), state)
    if jtu.tree_structure(carry) != jtu.tree_structure(initial):
        raise ValueError(
            f"carry must have the structure that {name}.init returns, {jtu.tree_structure(initial)}, got "
            f"{jtu.tree_structure(carry)}; pass what its init, step or rollout_segment returned."
        )
    return t, carry if isinstance(t, Tracer) else dynamics.resize_carry(carry, t + horizon)


def check_differentiable(policy) -> None:
    """Raise if the policy has nothing to differentiate."""
    if not any(map(eqx.is_inexact_array, jtu.tree_leaves(policy))):
        raise ValueError(
            f"The policy, a {type(policy).__name__}, has no floating-point array to differentiate; make it an eqx.Module "
            "whose fields are its parameters, or pass an array of actions."
        )


def warn_of_constants(dynamics, policy, state, *, reward, key, rule=None) -> None:
    """Warn if the reward, or the policy's action, is a constant to the gradient. Traces both once, abstractly."""
    warn_of_constant_reward(reward, state, jax.ShapeDtypeStruct((dynamics.action_size,), state.dtype), rule)
    if isinstance(policy, Array):
        return
    weights, rest = eqx.partition(policy, eqx.is_inexact_array)

    def answer(t, weights):
        """Return the action, and what the policy remembers, by which later actions may depend on the weights."""
        policy = eqx.combine(weights, rest)
        memory, action = act(policy, memory_of(policy), state, t, key)
        remembered = (x.astype(action.dtype).ravel() for x in jtu.tree_leaves(memory) if eqx.is_inexact_array(x))
        return jnp.concatenate([action, *remembered])

    if _is_constant(answer, weights):
        warnings.warn(
            "The policy's action is a constant to the gradient: it has no derivative in the policy's parameters, so the gradient "
            "of the return is zero; it is a sign, an argmax, rounded or detached, so pass a smooth policy.",
            stacklevel=2,
        )


def warn_of_constant_reward(reward, state, action, rule=None) -> None:
    """Warn if the reward is a constant to the gradient, and the probability of the end too. They are traced once, abstractly."""
    constant = lambda function: _is_constant(lambda t, s, a, n: function(s, a, t, n), state, action, state)
    if constant(with_next_state(reward)) and (rule is None or is_hard(rule, state, action) or constant(evaluate(rule))):
        warnings.warn(
            "The reward is a constant to the gradient: it has no derivative in the state, the action or the next state, so the "
            "gradient of the return is zero; it is 0 or 1, rounded, cast to int or detached, so pass a smooth reward.",
            stacklevel=2,
        )


def _is_constant(function: Callable[..., Array], *inputs: PyTree) -> bool:
    """Return whether `function(t, *inputs)` has a derivative of zero in all inputs, whatever their values."""
    t = jax.ShapeDtypeStruct((), jnp.asarray(0).dtype)

    def pull(cotangent, t, *inputs):
        return jax.vjp(lambda *inputs: function(t, *inputs), *inputs)[1](cotangent)

    jaxpr = jax.make_jaxpr(pull)(eqx.filter_eval_shape(function, t, *inputs), t, *inputs).jaxpr
    reached = {jaxpr.invars[0]}  # The cotangent: a gradient that does not depend on it is zero.
    for equation in jaxpr.eqns:
        if any(x in reached for x in equation.invars if isinstance(x, Var)):
            reached.update(equation.outvars)
    return not any(x in reached for x in jaxpr.outvars if isinstance(x, Var))


def check_functions(dynamics, policy, state, horizon, *, reward, key, carry=None, rule=None) -> None:
    """Raise if the policy, the dynamics, the reward or the termination rule returns the wrong thing.

    Traces each of them once, abstractly.
    """
    if isinstance(policy, Array):
        action = jax.ShapeDtypeStruct(policy.shape[1:], policy.dtype)
    else:
        action = _explained("policy", lambda policy, key: _check_policy(dynamics, policy, state, key), policy, key)
    _explained("dynamics", lambda dynamics, key: _check_step(dynamics, action, state, horizon, key, carry), dynamics, key)
    if rule is not None:
        is_hard(rule, state, action)
    if reward is None:
        return
    check_reward(reward)
    value = eqx.filter_eval_shape(with_next_state(reward), state, action, jnp.asarray(0), state)
    if getattr(value, "shape", None) != () or not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(
            f"The reward returned {describe(value)}; it must be one floating-point number, so reduce it with "
            "jnp.sum, or make a JAX number of it with jnp.asarray(value, float)."
        )


def _explained(what: str, check: Callable, module: PyTree, key) -> Any:
    """Return `check(module, key)`. If it fails, say so in one sentence where a key, or one module of a stack, would pass."""

    def passes(module, key) -> bool:
        try:
            check(module, key)
        except Exception:
            return False
        return True

    try:
        return check(module, key)
    except Exception as error:
        if key is None and not isinstance(error, ValueError) and passes(module, jax.random.key(0)):
            raise ValueError(
                f"The {what}, {kind(module)}, draws random numbers, but no key was given; pass key=jax.random.key(seed)."
            ) from None
        lengths = {jnp.shape(x)[:1] for x in jtu.tree_leaves(eqx.filter(module, eqx.is_array))}
        first = lambda: jtu.tree_map(lambda x: x[0] if eqx.is_array(x) else x, module)
        if len(lengths) == 1 and lengths != {()} and passes(first(), key):
            raise ValueError(
                f"The {what} is a stack of {lengths.pop()[0]}, {kind(module)} with a leading axis on every array; pass one of "
                "them, or run each by eqx.filter_vmap."
            ) from None
        raise


def _check_policy(dynamics, policy, state, key) -> jax.ShapeDtypeStruct:
    """Return the shape and dtype of the policy's action. Raise if they do not fit the dynamics."""
    action = eqx.filter_eval_shape(lambda s, t, k: act(policy, memory_of(policy), s, t, k)[1], state, jnp.asarray(0), key)
    if getattr(action, "shape", None) != (dynamics.action_size,) or not jnp.issubdtype(action.dtype, jnp.floating):
        raise ValueError(
            f"The policy returned {describe(action)}; the dynamics needs a floating-point action of shape "
            f"({dynamics.action_size},), so give the policy action_size={dynamics.action_size}."
        )
    return action


def check_discount(discount) -> None:
    """Raise if the discount is not one real number."""
    if not isinstance(discount, int | float | np.number | np.ndarray | Array) or jnp.shape(discount) != ():
        raise ValueError(f"The discount is {describe(discount)}; give one real number, such as 0.99.")
    if isinstance(discount, int | float) and not math.isfinite(discount):
        raise ValueError(f"The discount is {discount}; give a finite number, such as 0.99.")


def _check_step(dynamics, action, state, horizon, key, carry) -> None:
    """Raise unless `step` returns a state and a carry of the given shapes and dtypes. It is traced once."""
    initial = eqx.filter_eval_shape(lambda s: dynamics.init(s, horizon), state)
    carry = initial if carry is None else carry
    step = lambda c, s, a, t, k: dynamics.step(c, s, a, t, key=k)
    after, next_state = eqx.filter_eval_shape(step, carry, state, action, jnp.asarray(0), key)
    name = type(dynamics).__name__
    if getattr(next_state, "shape", None) != state.shape or next_state.dtype != state.dtype:
        raise ValueError(
            f"{name}.step returned the state as {describe(next_state)} for a state given as {describe(state)}; they must be "
            "the same, so fix the step, or cast the state or the model to one dtype."
        )
    described = lambda tree: jtu.tree_map(describe, tree)
    if described(carry) != described(after):
        raise ValueError(
            f"{name}.step returned the carry as {described(after)} for a carry given as {described(carry)}; they must be the "
            "same, so make init return what step does."
        )


def _as_float(x, what: str, shape: tuple[int, ...], hint: str) -> Array:
    """Return `x` as an array; raise unless it is finite, floating point and of this shape."""
    if not eqx.is_array(x):
        try:
            x = np.asarray(x)
        except ValueError:
            raise ValueError(f"{what} has rows of different lengths; this dynamics needs an array of shape {shape}.") from None
        if x.dtype.kind not in "bifcu":
            raise ValueError(f"{what} holds no numbers, but {x.dtype}; this dynamics needs an array of shape {shape}.")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{what} has dtype {x.dtype}; gradients need floating point, so pass it .astype(float).")
    if x.shape != shape:
        raise ValueError(f"{what} has shape {x.shape}; this dynamics needs {shape}: {hint}.")
    if not isinstance(x, Tracer) and not np.isfinite(x).all():
        where = np.argwhere(~np.isfinite(np.asarray(x)))[0].tolist()
        raise ValueError(f"{what} is not finite at index {where}; remove the NaN or infinity before the unroll.")
    return jnp.asarray(x, x.dtype)  # A given dtype is not weak, so a step cannot change it.
