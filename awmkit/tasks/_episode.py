"""One running episode of a task: how it starts, and one step of it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, Scalar

from .._checks import describe
from .._dynamics import AbstractTask
from .._reward import with_next_state
from .._termination import evaluate, is_hard, rule_of


class Episode(NamedTuple):
    """The dynamics' carry, the state s_t, the step's index t, and whether the task's termination rule ended the episode."""

    carry: PyTree
    state: Float[Array, " S"]
    t: Int[Array, ""]
    ended: Bool[Array, ""]


def start_episode(task: AbstractTask, key: PRNGKeyArray, state: Float[Array, " S"] | None = None) -> Episode:
    """Start in `state`, or in a state that `task.reset(key)` draws."""
    drawn = task.reset(key)
    if drawn.shape != (task.state_size,):
        raise ValueError(f"{type(task).__name__}.reset returned {describe(drawn)}; it must be one state, ({task.state_size},).")
    state = drawn if state is None else state.astype(drawn.dtype)
    return Episode(task.init(state, task.horizon), state, jnp.asarray(0, jnp.int32), jnp.asarray(False))


def step_episode(task: AbstractTask, episode: Episode, action: Float[Array, " A"], key: PRNGKeyArray) -> tuple[Episode, Scalar]:
    """Return the episode after one step, and the step's reward. Where the rule returns a probability, the end is drawn."""
    carry, state, t, _ = episode
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
    ended = jnp.asarray(False)
    if (rule := rule_of(task)) is not None:
        ended = evaluate(rule)(state, action, t, next_state)
        if not is_hard(rule, state, action):
            # The keys that a step splits off from its own are those of small numbers.
            ended = jax.random.bernoulli(jax.random.fold_in(key, 2**32 - 1), ended)
    return Episode(carry, next_state, t + 1, ended), reward
