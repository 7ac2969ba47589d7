"""Types of what a user passes: policies, rewards, termination rules, and numbers that may vary."""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, ArrayLike, Real


@runtime_checkable
class PolicyFunction(Protocol):
    """A policy, called as `policy(state, t, *, key)`. Any function or module with this signature will do.

    - `state`: s_t, shape (S,).
    - `t`: index of the step, an integer.
    - `key`: for a stochastic policy; `None` asks for its mode.

    It returns the action a_t in [-1, 1], shape (A,).
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


@runtime_checkable
class Reward(Protocol):
    """A reward, called as `reward(state, action, t)`. Any function or module with this signature will do.

    - `state`: s_t, shape (S,), the state before the step.
    - `action`: a_t, shape (A,).
    - `t`: index of the step, an integer.
    - `next_state`: s_{t+1}, shape (S,), only if the function has a parameter of this name.

    It returns r_t, a floating-point scalar.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


@runtime_checkable
class Termination(Protocol):
    """A termination rule, called as `terminates(state, action, t, next_state)`; see `awmkit.AbstractTask.terminates`.

    It returns whether step t ends the episode, as a bool or as a probability.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


Policy = PolicyFunction | Array

Number = int | float | Real[ArrayLike, "..."]
"""A setting that may vary: a number, or in a sweep an array of shape (N,), one number for each of N settings."""
