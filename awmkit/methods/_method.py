"""The interface of a method, and the two ways to run a policy in a dynamics that methods are built from."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray, PyTree

from .._dynamics import AbstractDynamics, step_keys
from .._paths import Paths

Policy = Callable[..., Any] | Array
Rollout = tuple[Float[Array, "H S"], Float[Array, "H A"], Int[Array, ""] | None]


class AbstractMethod(eqx.Module):
    """A way to run, and so to differentiate, the loop of a policy and a dynamics."""

    @abc.abstractmethod
    def run(
        self,
        dynamics: AbstractDynamics,
        policy: Policy,
        state: Float[Array, " S"],
        horizon: int,
        *,
        key: PRNGKeyArray | None,
        paths: Paths,
    ) -> Rollout:
        """s_1 ... s_H (H, S), a_0 ... a_{H-1} (H, A) and, where there were any, the number of Picard sweeps."""


def stepper(dynamics, policy, horizon, *, key, paths) -> tuple[Callable, PyTree]:
    """One step of the loop, for a scan, and what it scans over."""
    policy_keys, dynamics_key = split_key(key, horizon)

    def step(loop, x):
        carry, state = loop
        t, planned, policy_key, dynamics_key = x
        action = planned if isinstance(policy, Array) else policy(paths.to_policy(state), t, key=policy_key)
        carry, state = dynamics.step(carry, paths.feed_back(state), paths.to_model(action), t, key=dynamics_key)
        return (carry, state), (state, action)

    planned = policy if isinstance(policy, Array) else None
    return step, (jnp.arange(horizon), planned, policy_keys, step_keys(dynamics_key, horizon))


def passes(dynamics, policy, state, horizon, *, key, paths) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """The two parallel passes: actions for all states (H, S) -> (H, A), and states for all actions (H, A) -> (H, S)."""
    policy_keys, dynamics_key = split_key(key, horizon)

    def act(states):
        return act_on(policy, state, states, 0, policy_keys, paths)

    def predict(actions):
        return dynamics.open_loop(state, paths.to_model(actions), key=dynamics_key)

    return act, predict


def act_on(policy, state, states, t: int, keys, paths: Paths = Paths()) -> Float[Array, "B A"]:
    """a_t, a_{t+1} ... on s_t and the states after it, of which the last comes after the last action."""
    states = paths.to_policy(jnp.concatenate([state[None], states[:-1]]))
    return jax.vmap(lambda s, t, k: policy(s, t, key=k))(states, t + jnp.arange(states.shape[0]), keys)


def split_key(key: PRNGKeyArray | None, horizon: int) -> tuple[Key[Array, " H"] | None, PRNGKeyArray | None]:
    """The policy's keys, one a step, and the key of the dynamics: the same for every method."""
    if key is None:
        return None, None
    policy_key, dynamics_key = jax.random.split(key)
    return step_keys(policy_key, horizon), dynamics_key
