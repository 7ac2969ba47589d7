"""Collect episodes of a task: compiled and in parallel if JAX can trace the task, otherwise one at a time on the host.

This is the only file of the training loop that treats the two kinds of task differently.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from .._dynamics import AbstractTask
from .._termination import evaluate, is_hard, rule_of
from .._trajectory import Trajectory
from .._types import Termination
from .._unroll import unroll
from ._loop import fori_loop, while_loop

T = TypeVar("T", bound=PyTree)


def collect(task: AbstractTask, policy, episodes: int, key: PRNGKeyArray) -> Trajectory:
    """Collect episodes of one policy, or of one array of actions (H, A). Where the task ends with a probability, its end is drawn."""
    if task.on_host:
        collected = task.collect(policy, episodes, key=key)  # pyright: ignore[reportAttributeAccessIssue]
        return collected.padded(task.horizon)  # One shape, or every length would compile again.
    rule = lambda s, k: _drawn_rule(task, s, k)
    episode = lambda s, k: unroll(task, policy, s, task.horizon, reward=task.reward, termination=rule(s, k), key=k)
    reset_keys, unroll_keys = (jax.random.split(k, episodes) for k in jax.random.split(key))
    return jax.vmap(episode)(jax.vmap(task.reset)(reset_keys), unroll_keys)


class _Drawn(eqx.Module):
    """A rule that draws whether the episode ends, from one that returns the probability."""

    rule: Termination
    key: PRNGKeyArray

    def __call__(self, state, action, t, next_state):
        probability = evaluate(self.rule)(state, action, t, next_state)
        return jax.random.uniform(jax.random.fold_in(self.key, t), dtype=probability.dtype) < probability


def _drawn_rule(task: AbstractTask, state, key: PRNGKeyArray) -> Termination | None:
    """Return the rule by which an episode ends, or `None` if it is the task's own."""
    rule = rule_of(task)
    if rule is None or is_hard(rule, state, jax.ShapeDtypeStruct((task.action_size,), state.dtype)):
        return None
    return _Drawn(rule, jax.random.fold_in(key, 2**31 - 1))  # `unroll` does not derive this key from the episode's.


def collect_each(
    task: AbstractTask, policy: Callable[[Array], Any], noise: Float[Array, "N H A"], key: PRNGKeyArray
) -> Trajectory:
    """Collect one episode of `policy(row)` for each row of `noise`."""
    episode = lambda row, k: collect(task, policy(row), 1, k)
    keys = jax.random.split(key, len(noise))
    if task.on_host:
        episodes = [episode(row, k) for row, k in zip(noise, keys, strict=True)]
        return Trajectory.concatenate(episodes)
    return jax.vmap(lambda row, k: jtu.tree_map(lambda x: x[0], episode(row, k)))(noise, keys)


def empty_episodes(task: AbstractTask, episodes: int) -> Trajectory:
    """Episodes of zeros with the shapes and dtypes that `collect` returns."""
    H, S, A = task.horizon, task.state_size, task.action_size
    if task.on_host:
        arrays = jnp.zeros((episodes, H + 1, S)), jnp.zeros((episodes, H, A)), jnp.zeros((episodes, H))
        return Trajectory(*arrays, jnp.full(episodes, H), jnp.zeros(episodes, bool))
    shapes = eqx.filter_eval_shape(collect, task, jnp.zeros((H, A)), episodes, jax.random.key(0))
    return jtu.tree_map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


def is_uneven(task: AbstractTask) -> bool:
    """Return whether episodes of the task may be shorter than its horizon."""
    return task.on_host or rule_of(task) is not None


def call_compiled(task: AbstractTask, fn: Callable[..., T], *args: Any, **host_only: Any) -> T:
    """Call `fn(*args)` as one compiled program, or `fn(*args, **host_only)` if it collects episodes on the host."""
    return fn(*args, **host_only) if task.on_host else eqx.filter_jit(fn)(*args)


def iterate(task: AbstractTask, start, stop, body: Callable[[Array, T], T], carry: T) -> T:
    """`fori_loop`, or a Python loop if `body` collects episodes on the host."""
    if not task.on_host:
        return fori_loop(start, stop, body, carry)
    for i in range(int(start), int(stop)):
        carry = body(jnp.asarray(i), carry)
    return carry


def iterate_while(task: AbstractTask, goes_on: Callable[[T], Array], body: Callable[[T], T], carry: T) -> T:
    """`while_loop`, or a Python loop if `body` collects episodes on the host."""
    if not task.on_host:
        return while_loop(goes_on, body, carry)
    while goes_on(carry):
        carry = body(carry)
    return carry


def collecting_mesh(task: AbstractTask, mesh: Mesh | None) -> Mesh | None:
    """The devices that collect episodes: those of `mesh`, or `None` if the task runs on the host."""
    return None if task.on_host else mesh
