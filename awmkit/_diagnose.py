"""`check=True` of `unroll_grad`: at which step and edge a gradient stops being finite.

A probe, an array of zeros, is added to each value that crosses an edge. The gradient with respect to the probe is the gradient
that flows along the edge, so one more backward pass sees all edges at all steps.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Bool, Float, Int

from ._dynamics import AbstractDynamics
from ._paths import EDGES, is_cut
from ._reward import with_next_state
from ._trajectory import Trajectory
from .methods import Sequential


class _Probes(eqx.Module):
    """One array of zeros per edge, in the order in which reverse mode reaches the edges of a step."""

    state_to_reward: Float[Array, "H S"]
    action_to_reward: Float[Array, "H A"]
    state_to_model: Float[Array, "H S"]
    action_to_model: Float[Array, "H A"]
    state_to_policy: Float[Array, "H S"]


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


@eqx.filter_jit
def raise_if_nonfinite(result, dynamics, policy, state, horizon, *, reward, key, paths, discount, t, carry):
    """Return `result`, the value and gradient of an unroll, or raise an error that names where they stop being finite."""
    forward, backward = _follow(dynamics, policy, state, horizon, reward, key, paths, discount, t, carry)
    flags = jnp.concatenate([forward.ravel(), backward[::-1].ravel(), jnp.ones(1, bool)])
    at = lambda i: f"t={t + i}" if isinstance(t, int) else f"{i} after t"
    messages = [
        f"The unroll is not finite: at step {at(i)}, {what}; the gradient cannot be either."
        for i in range(horizon)
        for what in ("the policy's action a_t", "the reward r_t", "the next state s_{t+1}")
    ]
    messages += [
        f"The gradient is not finite: going back from the return, first at step {at(i)} on the edge {edge}."
        for i in reversed(range(horizon))
        for edge in _Probes.__dataclass_fields__
    ]
    messages += ["The gradient is finite on every edge but not in the policy's own parameters."]
    arrays, rest = eqx.partition(result, eqx.is_inexact_array)
    broken = ~jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jtu.tree_leaves(arrays)]))
    return eqx.combine(eqx.branched_error_if(arrays, broken, jnp.argmax(flags), messages), rest)


def _follow(
    dynamics, policy, state, horizon, reward, key, paths, discount, first, carry
) -> tuple[Bool[Array, "H 3"], Bool[Array, "H 5"]]:
    """Return where values (action, reward, next state) and gradients (one per edge) are not finite, for each step."""

    def value(probes):
        probed = lambda s, t, *, key: policy(s + probes.state_to_policy[t - first], t, key=key)
        states, actions, _ = Sequential().run(
            _ProbedDynamics(dynamics, probes, first, dynamics.state_size, dynamics.action_size),
            policy if isinstance(policy, Array) else probed,
            state,
            horizon,
            key=key,
            paths=paths,
            t=first,
            carry=carry,
        )
        before, after = (x + probes.state_to_reward for x in (jnp.concatenate([state[None], states[:-1]]), states))
        probed_actions = actions + probes.action_to_reward
        rewards = jax.vmap(with_next_state(reward))(before, probed_actions, first + jnp.arange(horizon), after)
        value = Trajectory(jnp.concatenate([state[None], states]), actions, rewards).returns(discount)
        return value, (actions, rewards[:, None], states)

    of_state, of_action = jnp.zeros((horizon, dynamics.state_size)), jnp.zeros((horizon, dynamics.action_size))
    zeros = _Probes(of_state, of_action, of_state, of_action, of_state)
    flows, values = jax.grad(value, has_aux=True)(jtu.tree_map(lambda x: x.astype(state.dtype), zeros))
    for edge in EDGES:  # The gradient into a cut edge goes nowhere, so it may be anything.
        if is_cut(getattr(paths, edge)):
            flows = eqx.tree_at(lambda f, edge=edge: getattr(f, edge), flows, replace_fn=jnp.zeros_like)
    broken = lambda arrays: jnp.stack([jnp.any(~jnp.isfinite(x), axis=1) for x in arrays], axis=1)
    return broken(values), broken(jtu.tree_leaves(flows))
