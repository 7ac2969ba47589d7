"""One running episode of a task: how it starts, and one step of it."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree, Scalar

from .._checks import describe
from .._dynamics import AbstractTask
from .._reward import with_next_state


class Episode(NamedTuple):
    """The dynamics' carry, the state s_t and the step's index t."""

    carry: PyTree
    state: Float[Array, " S"]
    t: Int[Array, ""]


def start_episode(task: AbstractTask, key: PRNGKeyArray, state: Float[Array, " S"] | None = None) -> Episode:
    """Start in `state`, or in a state that `task.reset(key)` draws."""
    drawn = task.reset(key)
    if drawn.shape != (task.state_size,):
        raise ValueError(f"{type(task).__name__}.reset returned {describe(drawn)}; it must be one state, ({task.state_size},).")
    state = drawn if state is None else state.astype(drawn.dtype)
    return Episode(task.init(state, task.horizon), state, jnp.asarray(0, jnp.int32))


def step_episode(task: AbstractTask, episode: Episode, action: Float[Array, " A"], key: PRNGKeyArray) -> tuple[Episode, Scalar]:
    """Return the episode after one step, and the step's reward."""
    carry, state, t = episode
    action = action.astype(state.dtype)
    carry, next_state = task.step(carry, state, action, t, key=key)
    if next_state.shape != state.shape or next_state.dtype != state.dtype:
        raise ValueError(
            f"{type(task).__name__}.step returned the state as {describe(next_state)} for a state given as {describe(state)}; "
            "they must be the same, so fix the step."
        )
    reward = jnp.asarray(with_next_state(task.reward)(state, action, t, next_state))
    if reward.shape != ():
        raise ValueError(
            f"{type(task).__name__}.reward returned {describe(reward)}; it must be one number, so reduce it with jnp.sum."
        )
    return Episode(carry, next_state, t + 1), reward
