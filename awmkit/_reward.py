"""Rewards: the score of one step, from the state and the action or from the whole transition."""

import equinox as eqx
import jax.numpy as jnp

from ._checks import check_call, parameters_of
from ._types import Reward


class _FourArguments(eqx.Module):
    """A reward as a function of four arguments, whether or not it reads the next state."""

    reward: Reward
    reads_next_state: bool = eqx.field(static=True)

    def __call__(self, state, action, t, next_state):
        options = {"next_state": next_state} if self.reads_next_state else {}
        value = self.reward(state, action, t, **options)
        return jnp.asarray(value, state.dtype) if isinstance(value, float) else value


def with_next_state(reward: Reward) -> Reward:
    """Return `reward` as a function of four arguments, `(state, action, t, next_state) -> scalar`.

    A reward with a parameter named `next_state` is given it by name; any other is called as `reward(state, action, t)`. The
    signature is inspected here, once. A callable without a signature counts as one without that parameter.

    **Arguments:** `reward`: a function, module, bound method, partial or compiled function.

    **Returns:** a module that holds `reward`, so that it crosses `eqx.filter_jit` without compiling again.
    """
    return _FourArguments(reward, "next_state" in parameters_of(reward))


def check_reward(reward: Reward) -> None:
    """Raise if `reward` cannot be called as `with_next_state` calls it."""
    fix = "write it as lambda state, action, t: ..., with a fourth parameter named next_state if it reads the next state"
    parameters = parameters_of(reward)
    if "next_state" in parameters:
        check_call("reward", "reward(state, action, t, next_state=...)", fix, reward, *range(3), next_state=3)
        return
    required = [p.name for p in parameters.values() if p.default is p.empty]
    if len(required) == 4:
        fix = f"name its fourth parameter next_state, instead of {required[3]}, to be called with the next state too"
    check_call("reward", "reward(state, action, t)", fix, reward, *range(3))
