"""`check=True` of `unroll_grad`: at which step and edge a gradient stops being finite, and why it is exactly zero.

A probe, an array of zeros, is added to each value that crosses an edge. The gradient with respect to the probe is the gradient
that flows along the edge, so one more backward pass sees all edges at all steps.
"""

import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Float, Int, PyTree, Scalar

from ._dynamics import AbstractDynamics
from ._paths import EDGES, is_cut
from ._policies import AbstractWrapper, act, memory_of
from ._termination import run, scored
from ._unroll_checks import ALLOWED_ACTION
from .methods import Sequential


class _Probes(eqx.Module):
    """One array of zeros per edge, in the order in which reverse mode reaches the edges of a step.

    `memory_to_policy` is a tree with one array per floating-point array of the policy's memory, `None` without one.
    """

    state_to_reward: Float[Array, "H S"]
    action_to_reward: Float[Array, "H A"]
    state_to_model: Float[Array, "H S"]
    action_to_model: Float[Array, "H A"]
    state_to_policy: Float[Array, "H S"]
    memory_to_policy: PyTree[Float[Array, "H ..."]]


class _ProbedDynamics(AbstractDynamics):
    """A dynamics with probes added to its inputs."""

    dynamics: AbstractDynamics
    probes: _Probes
    first: Int[Array, ""] | int
    state_size: int = eqx.field(static=True)
    action_size: int = eqx.field(static=True)

    def init(self, state, horizon):
        return self.dynamics.init(state, horizon)

    def step(self, carry, state, action, t, *, key=None):
        state = state + self.probes.state_to_model[t - self.first]
        return self.dynamics.step(carry, state, action + self.probes.action_to_model[t - self.first], t, key=key)


class _ProbedPolicy(AbstractWrapper):
    """A policy with probes added to its inputs."""

    policy: Any
    probes: _Probes
    first: Int[Array, ""] | int

    def step(self, memory, state, t, *, key=None):
        memory = eqx.apply_updates(memory, jtu.tree_map(lambda x: x[t - self.first], self.probes.memory_to_policy))
        return act(self.policy, memory, state + self.probes.state_to_policy[t - self.first], t, key)


# Why a gradient is exactly zero, by the first edge on the way back from the return that passes nothing.
ZERO = (
    "the reward's derivative is zero at every step, on the edges state_to_reward and action_to_reward, so the reward is flat on "
    "this trajectory (a step function, or clipped), or the policy is exactly optimal",
    "the reward's derivative is not, but no step passes any of it on to an action, on the edge action_to_model; the dynamics "
    "ignores the actions, clips the states that they change, or paths= cuts the edge",
    "the derivative in the actions is not, but the policy passes none of it on to its parameters; it is saturated, as by states "
    "of large size, so normalise its input: eqx.tree_at(lambda p: p.input_norm, policy, policy.input_norm.fitted(states))",
)


def diagnose(result, dynamics, policy, state, horizon, **given):
    """Return `result`, the value and gradient of an unroll.

    Raise an error that names where they stop being finite. Warn of a gradient that is exactly zero, and of actions outside
    [-1, 1] if the dynamics is not meant for these.
    """
    with jax.check_tracer_leaks(False):  # Equinox's runtime errors raise an IndexError under it.
        result, cause, largest = _diagnose(result, dynamics, policy, state, horizon, **given)
    jax.debug.callback(_warn, cause, largest if dynamics.bounded_actions else 0.0)
    return result


def _warn(cause, largest) -> None:
    if cause < len(ZERO):
        warnings.warn(f"The gradient is exactly zero: {ZERO[int(cause)]}.", stacklevel=2)
    if largest > ALLOWED_ACTION:
        warnings.warn(
            f"The policy returned an action of {largest:.3g}, outside [-1, 1], which this dynamics clamps or was not made for; end "
            "the policy with jnp.tanh.",
            stacklevel=2,
        )


@eqx.filter_jit
def _diagnose(result, dynamics, policy, state, horizon, *, reward, rule, key, paths, discount, t, carry):
    """Return `result`, the index in `ZERO` of why its gradient is zero (or its length), and the largest action."""
    forward, backward, cause, largest = _follow(dynamics, policy, state, horizon, reward, rule, key, paths, discount, t, carry)
    flags = jnp.concatenate([forward.ravel(), jnp.stack([*backward.values()], axis=1)[::-1].ravel(), jnp.ones(1, bool)])
    at = lambda i: f"t={t + i}" if isinstance(t, int) else f"{i} after t"
    messages = [
        f"The unroll is not finite: at step {at(i)}, {what}; the gradient cannot be either."
        for i in range(horizon)
        for what in ("the policy's action a_t", "the reward r_t", "the next state s_{t+1}")
    ]
    messages += [
        f"The gradient is not finite: going back from the return, first at step {at(i)} on the edge {edge}."
        for i in reversed(range(horizon))
        for edge in backward
    ]
    messages += ["The gradient is finite on every edge but not in the policy's own parameters."]
    arrays, rest = eqx.partition(result, eqx.is_inexact_array)
    moves = jnp.any(jnp.stack([jnp.any(x != 0) for x in jtu.tree_leaves(arrays[1])]))
    cause = jnp.where(moves, len(ZERO), cause)
    broken = ~jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jtu.tree_leaves(arrays)]))
    return eqx.combine(eqx.branched_error_if(arrays, broken, jnp.argmax(flags), messages), rest), cause, largest


def _follow(
    dynamics, policy, state, horizon, reward, rule, key, paths, discount, first, carry
) -> tuple[Bool[Array, "H 3"], dict[str, Bool[Array, " H"]], Int[Array, ""], Scalar]:
    """Return where values (action, reward, next state) and gradients (by edge) are not finite, for each step.

    Also the index in `ZERO` of the first edge on which all gradients are zero, and the largest action.
    """

    def value(probes):
        (states, actions, _), ended = run(
            Sequential(),
            _ProbedDynamics(dynamics, probes, first, dynamics.state_size, dynamics.action_size),
            policy if isinstance(policy, Array) else _ProbedPolicy(policy, probes, first),
            state,
            horizon,
            rule=rule,
            key=key,
            paths=paths,
            t=first,
            carry=carry,
        )
        states = jnp.concatenate([state[None], states])
        seen = states[:-1] + probes.state_to_reward, actions + probes.action_to_reward, states[1:] + probes.state_to_reward
        episode = scored(states, actions, first, reward=reward, rule=rule, ended=ended, seen=seen)
        assert episode.rewards is not None
        return episode.returns(discount), (episode.actions, episode.rewards[:, None], episode.states[1:])

    of_state, of_action = (jnp.zeros((horizon, size), state.dtype) for size in (dynamics.state_size, dynamics.action_size))
    remembered = eqx.filter(memory_of(policy), eqx.is_inexact_array)
    of_memory = jtu.tree_map(lambda x: jnp.zeros((horizon, *x.shape), x.dtype), remembered)
    flows, values = jax.grad(value, has_aux=True)(_Probes(of_state, of_action, of_state, of_action, of_state, of_memory))
    is_none = lambda x: x is None
    for edge in EDGES:  # The gradient into a cut edge goes nowhere, so it may be anything.
        if is_cut(getattr(paths, edge)):
            zeros = jtu.tree_map(jnp.zeros_like, getattr(flows, edge))
            flows = eqx.tree_at(lambda f, edge=edge: getattr(f, edge), flows, zeros, is_leaf=is_none)
    passed = jnp.where(jnp.asarray(paths.action_to_model) == 0, 0, flows.action_to_model)
    paid = jnp.any(flows.state_to_reward != 0) | jnp.any(flows.action_to_reward != 0)
    acted = jnp.any(flows.action_to_reward != 0) | jnp.any(passed != 0)
    cause = jnp.where(acted, 2, jnp.where(paid, 1, 0))
    broken = lambda x: jnp.any(~jnp.isfinite(x.reshape(horizon, -1)), axis=1)
    anywhere = lambda arrays: jnp.any(jnp.stack([broken(x) for x in arrays]), axis=0)
    arrays = {edge: jtu.tree_leaves(getattr(flows, edge)) for edge in _Probes.__dataclass_fields__}
    backward = {edge: anywhere(found) for edge, found in arrays.items() if found}  # A policy may have no memory.
    return jnp.stack([broken(x) for x in values], axis=1), backward, cause, jnp.max(jnp.abs(values[0]))
