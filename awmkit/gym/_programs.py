"""The compiled programs that environments and collection run: start an episode, make a step, call a policy."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray, PyTree, Scalar

from .._dynamics import AbstractTask
from .._fingerprint import structure as description
from .._policies import act
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
    keys: Key[Array, " N"],
    seeded: Bool[Array, " N"],
    mask: Bool[Array, " N"],
    states: Float[Array, "N S"] | None,
) -> Copy:
    """Start new episodes of the copies in `mask`, from `keys` where `seeded` and else from the copies' own keys."""
    if copies is not None:
        keys = jnp.where(seeded, keys, copies.next_key)
    started = jax.vmap(lambda key, state: start(task, key, state))(keys, states)
    return started if copies is None else _select(mask, started, copies)


def step_all(
    task: AbstractTask, copies: Copy, actions: Float[Array, "N A"], limit: Int[Array, ""]
) -> tuple[Copy, Float[Array, " N"]]:
    """Make one step of each copy. A copy whose episode had ended, or had made `limit` steps, starts its next one, with reward 0."""
    ended = (copies.episode.t >= limit) | copies.episode.ended
    moved, rewards = jax.vmap(lambda copy, action: step(task, copy, action))(copies, actions)
    restart = lambda: _select(ended, jax.vmap(lambda key: start(task, key))(copies.next_key), moved)
    return lax.cond(jnp.any(ended), restart, lambda: moved), jnp.where(ended, 0, rewards)


def call_policy(policy, memory, state, t, key):
    return act(policy, memory, state, t, None if key is None else jax.random.fold_in(key, t))


def seeded_keys(seeds: Sequence[int]) -> Key[Array, " N"]:
    """Return one key for each seed, a whole number of any size. Small ones give `jax.random.key(seed)`."""
    bits = 63 if jnp.result_type(int) == jnp.int64 else 32  # JAX refuses or drops the higher bits of a seed.
    keys = jax.vmap(jax.random.key)(np.array([seed % 2**bits for seed in seeds], np.int64 if bits == 63 else np.uint32))
    high = [seed >> bits for seed in seeds]
    while any(high):
        folded = jax.vmap(jax.random.fold_in)(keys, np.array([word % 2**32 for word in high], np.uint32))
        keys = jnp.where(np.array([word > 0 for word in high]), folded, keys)
        high = [word >> 32 for word in high]
    return keys


class compiled:
    """`function` with `module` as its first argument, compiled once for all modules that differ in their arrays only.

    `eqx.filter_jit` would flatten the module again at every call, which takes longer than many an environment's step. It can be
    copied and pickled, unlike a compiled function.
    """

    def __init__(self, function: Callable, module: PyTree):
        self._made_of = function, module
        leaves, structure = jtu.tree_flatten(module)
        is_array = lambda x: eqx.is_array(x) or isinstance(x, np.ndarray)
        settings = tuple(None if is_array(x) else x for x in leaves)
        # 0.0 equals -0.0 and True equals 1, but a program of one is not that of the other.
        described = repr(settings), *description(module)[0].items()
        self.program = _program(function, structure, settings, described)
        self._arrays = [jnp.array(x) for x in leaves if is_array(x)]

    def __call__(self, *args, **kwargs):
        return self.program(self._arrays, *args, **kwargs)

    def __reduce__(self):
        return compiled, self._made_of


@functools.lru_cache(maxsize=256)
def _program(function, structure, settings, described):
    def run(arrays, *args, **kwargs):
        arrays = iter(arrays)
        leaves = [next(arrays) if x is None else x for x in settings]
        return function(jtu.tree_unflatten(structure, leaves), *args, **kwargs)

    return jax.jit(run)


def _select(chosen, yes, no):
    """For each copy, `yes` where it is chosen and `no` elsewhere."""
    return jax.vmap(lambda one, yes, no: jtu.tree_map(lambda y, n: jnp.where(one, y, n), yes, no))(chosen, yes, no)
