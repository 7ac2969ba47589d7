"""The interface of a method, and the steps and passes from which methods are built."""

import abc
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray, PyTree, ScalarLike

from .._dynamics import AbstractDynamics, step_keys
from .._paths import Paths
from .._policies import act, memory_of
from .._types import Policy


class Sweeps(NamedTuple):
    """The sweeps of a method that takes all steps at once, repeatedly, until the values settle.

    - `count`: number of sweeps.
    - `residual`: the largest change of a value in the last sweep, divided by the largest value. It estimates the error that
      is left; in the last of H sweeps of `Picard` there is none.
    """

    count: Int[Array, ""]
    residual: Float[Array, ""]


Rollout = tuple[Float[Array, "H S"], Float[Array, "H A"], Sweeps | None]


class AbstractMethod(eqx.Module):
    """A way to run the closed loop of a policy and a dynamics, which also determines how its gradient is computed.

    `unroll` and `unroll_grad` check their arguments, call `run` and differentiate through it. Subclass this class to compute
    the same loop in another way: for example in lower precision, or with another checkpointing schedule.

    **What must hold**

    - Values and gradients are those of `Sequential`, to rounding, for every `Paths`.
    - `run` can be traced, and differentiated in reverse mode.
    - With the same key, the same random numbers are drawn: use `split_key` of this module.

    ```python
    class PythonLoop(AbstractMethod):
        def run(self, dynamics, policy, state, horizon, *, key, paths, t=0, carry=None):
            carry = dynamics.init(state, horizon) if carry is None else carry
            memory, states, actions = policy.init(), [], []
            for i in range(horizon):
                memory, action = policy.step(paths.recall(memory), paths.to_policy(state), t + i)
                carry, state = dynamics.step(carry, paths.feed_back(state), paths.to_model(action), t + i)
                states.append(state)
                actions.append(action)
            return jnp.stack(states), jnp.stack(actions), None
    ```
    """

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
        t: ScalarLike = 0,
        carry: PyTree = None,
    ) -> Rollout:
        """Run `horizon` steps, from step `t` on.

        **Arguments:** as those of `awmkit.unroll`, checked. `carry`: the dynamics' carry before step `t`; `None` to begin with
        `dynamics.init(state, horizon)`.

        **Returns:** the H states after the first, shape (H, S); the actions, shape (H, A); and the `Sweeps`, or `None` if the method
        has none.
        """

    def episodes_at_a_time(self, dynamics: AbstractDynamics, horizon: int) -> int | None:
        """Return how many episodes of a batch are differentiated at a time on a CPU, or `None`, the default, for all."""
        del dynamics, horizon
        return None


def stepper(dynamics, policy, horizon, *, key, paths, t: ScalarLike = 0) -> tuple[Callable, PyTree]:
    """Return one step of the loop, as a function for `lax.scan`, and what to scan over.

    What it carries on is `((memory, carry), state)`: the policy's memory, the dynamics' carry and the state.
    """
    policy_keys, dynamics_key = split_key(key, horizon)

    def step(loop, x):
        (memory, carry), state = loop
        t, action, policy_key, dynamics_key = x
        if not isinstance(policy, Array):
            memory, action = act(policy, paths.recall(memory), paths.to_policy(state), t, policy_key)
        carry, state = dynamics.step(carry, paths.feed_back(state), paths.to_model(action), t, key=dynamics_key)
        return ((memory, carry), state), (state, action)

    planned = policy if isinstance(policy, Array) else None
    return step, (t + jnp.arange(horizon), planned, policy_keys, step_keys(dynamics_key, horizon))


def passes(
    dynamics, policy, state, horizon, *, key, paths, t: int = 0, carry: PyTree = None
) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """Return the two parallel passes: from all states to all actions, and from all actions to all states.

    The first maps s_{t+1} ... s_{t+H}, shape (H, S), to the actions of the steps t to t+H-1, shape (H, A); the second is its
    counterpart.
    """
    policy_keys, dynamics_key = split_key(key, horizon)
    start, memory = dynamics.init(state, horizon) if carry is None else carry, memory_of(policy)

    def respond(states):
        return act_on(policy, memory, state, states, t, policy_keys, paths)[1]

    def predict(actions):
        return dynamics.rollout_segment(start, state, paths.to_model(actions), t, keys=step_keys(dynamics_key, horizon))[1]

    return respond, predict


def act_on(policy, memory, state, states, t: int, keys, paths: Paths = Paths()) -> tuple[PyTree, Float[Array, "B A"]]:
    """Return the memory and the actions of a policy on `state`, the state at step t, and on all of `states`, which follow it,
    except the last.

    All at once, or by a scan if the policy has a memory: that of one step is what the one before leaves.
    """
    states = paths.to_policy(jnp.concatenate([state[None], states[:-1]]))
    steps = (states, t + jnp.arange(states.shape[0]), keys)
    if memory is None:
        return None, jax.vmap(lambda s, t, k: policy(s, t, key=k))(*steps)
    return lax.scan(lambda memory, x: act(policy, paths.recall(memory), *x), memory, steps)


def split_key(key: PRNGKeyArray | None, horizon: int) -> tuple[Key[Array, " H"] | None, PRNGKeyArray | None]:
    """Return the policy's keys, one per step, and the dynamics' key. Every method draws its random numbers from these."""
    if key is None:
        return None, None
    policy_key, dynamics_key = jax.random.split(key)
    return step_keys(policy_key, horizon), dynamics_key
