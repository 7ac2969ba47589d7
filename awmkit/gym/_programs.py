"""The compiled programs that environments and collection run: start an episode, make a step, call a policy."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray, PyTree, Scalar

from .._dynamics import AbstractTask
from ..tasks._episode import Episode, start_episode, step_episode


class Copy(NamedTuple):
    """A copy of the environment: its running episode, the key of its steps, and the key of the episodes that follow."""

    episode: Episode
    step_key: Key[Array, ""]
    next_key: Key[Array, ""]


def start(task: AbstractTask, key: PRNGKeyArray, state: Float[Array, " S"] | None = None) -> Copy:
    next_key, reset_key, step_key = jax.random.split(key, 3)
    return Copy(start_episode(task, reset_key, state), step_key, next_key)


def step(task: AbstractTask, copy: Copy, action: Float[Array, " A"]) -> tuple[Copy, Scalar]:
    episode, reward = step_episode(task, copy.episode, action, jax.random.fold_in(copy.step_key, copy.episode.t))
    return copy._replace(episode=episode), reward


def start_all(
    task: AbstractTask,
    copies: Copy | None,
    *,
    seeds: Int[Array, " N"],
    seeded: Bool[Array, " N"],
    mask: Bool[Array, " N"],
    states: Float[Array, "N S"] | None,
) -> Copy:
    """Start new episodes of the copies in `mask`, from `seeds` where `seeded` and else from the copies' own keys."""
    keys = jax.vmap(jax.random.key)(seeds)
    if copies is not None:
        keys = jnp.where(seeded, keys, copies.next_key)
    started = jax.vmap(lambda key, state: start(task, key, state))(keys, states)
    return started if copies is None else _select(mask, started, copies)


def step_all(task: AbstractTask, copies: Copy, actions: Float[Array, "N A"]) -> tuple[Copy, Float[Array, " N"]]:
    """Make one step of each copy; a copy whose episode had ended starts the next one instead, with reward 0."""
    ended = copies.episode.t == task.horizon
    moved, rewards = jax.vmap(lambda copy, action: step(task, copy, action))(copies, actions)
    restart = lambda: _select(ended, jax.vmap(lambda key: start(task, key))(copies.next_key), moved)
    return lax.cond(jnp.any(ended), restart, lambda: moved), jnp.where(ended, 0, rewards)


def call_policy(policy, state, t, key):
    return policy(state, t, key=None if key is None else jax.random.fold_in(key, t))


def compiled(function: Callable, module: PyTree) -> Callable:
    """Return `function` with `module` as its first argument, compiled once for all modules that differ in their arrays only.

    `eqx.filter_jit` would flatten the module again at every call, which takes longer than many an environment's step.
    """
    leaves, structure = jtu.tree_flatten(module)
    settings = tuple(None if eqx.is_array(x) else x for x in leaves)
    return functools.partial(_program(function, structure, settings), [x for x in leaves if eqx.is_array(x)])


@functools.lru_cache(maxsize=256)
def _program(function, structure, settings):
    def run(arrays, *args, **kwargs):
        arrays = iter(arrays)
        leaves = [next(arrays) if x is None else x for x in settings]
        return function(jtu.tree_unflatten(structure, leaves), *args, **kwargs)

    return jax.jit(run)


def _select(chosen, yes, no):
    """For each copy, `yes` where it is chosen and `no` elsewhere."""
    return jax.vmap(lambda one, yes, no: jtu.tree_map(lambda y, n: jnp.where(one, y, n), yes, no))(chosen, yes, no)
