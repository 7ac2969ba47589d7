"""Rewards: the score of one step, from the state and the action or from the whole transition."""

from inspect import Parameter
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, ScalarLike

from ._checks import check_call, parameters_of
from ._types import Reward as Reward


class _FourArguments(eqx.Module):
    """A reward as a function of four arguments, whether or not it reads the next state."""

    reward: Reward
    passed: Literal["fourth", "by name", "not"] = eqx.field(static=True)

    def __call__(self, state, action, t, next_state):
        if self.passed == "fourth":
            return self.reward(state, action, t, next_state)
        if self.passed == "by name":
            return self.reward(state, action, t, next_state=next_state)
        return self.reward(state, action, t)


def with_next_state(reward: Reward) -> Reward:
    """Return `reward` as a function of four arguments, `(state, action, t, next_state) -> scalar`.

    A reward with a parameter named `next_state` is called with it; any other is called as `reward(state, action, t)`. The
    signature is inspected here, once. A callable without a signature counts as one without that parameter.

    **Arguments:** `reward`: a function, module, bound method, partial or compiled function.

    **Returns:** a module that holds `reward`, so that it crosses `eqx.filter_jit` without compiling again.
    """
    return _FourArguments(reward, _passed(reward))


def check_reward(reward: Reward) -> None:
    """Raise if `reward` can be called neither as `reward(state, action, t)` nor as `reward(state, action, t, next_state)`."""
    fix = "write it as lambda state, action, t: ..., with a fourth parameter named next_state if it reads the next state"
    passed = _passed(reward)
    if passed == "fourth":
        check_call("reward", "reward(state, action, t, next_state)", fix, reward, *range(4))
    elif passed == "by name":
        check_call("reward", "reward(state, action, t, next_state=...)", fix, reward, *range(3), next_state=3)
    else:
        required = [p.name for p in parameters_of(reward).values() if p.default is p.empty]
        if len(required) == 4:
            fix = f"name its fourth parameter next_state, instead of {required[3]}, to be called with the next state too"
        check_call("reward", "reward(state, action, t)", fix, reward, *range(3))


def score(reward: Reward, states: Float[Array, "T S"], actions: Float[Array, "H A"], t: ScalarLike = 0) -> Float[Array, " H"]:
    """Return the rewards of H steps from step `t` on, for their states, shape (H+1, S), and actions, shape (H, A)."""
    return jax.vmap(with_next_state(reward))(states[:-1], actions, t + jnp.arange(actions.shape[0]), states[1:])


def _passed(reward: Reward) -> Literal["fourth", "by name", "not"]:
    """How the next state is passed to `reward`."""
    parameters = parameters_of(reward)
    if "next_state" not in parameters:
        return "not"
    positional = parameters["next_state"].kind != Parameter.KEYWORD_ONLY
    return "fourth" if positional and list(parameters).index("next_state") == 3 else "by name"
