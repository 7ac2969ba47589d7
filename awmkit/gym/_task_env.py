"""Tasks as Gymnasium environments: one copy at a time, or many in one compiled call.

Apart from the tasks because it brings Gymnasium with it, and keeps between calls what an unroll keeps in its loop.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from jax import lax
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray, PyTree

from .._checks import check_counts, kind
from .._dynamics import AbstractTask
from .._reward import with_next_state
from ._render import draw


class TaskEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """A task as a Gymnasium environment: an episode is `task.horizon` steps.

    ```python
    env = gymnasium.make("awmkit/DoublePendulum-v0")
    env = TaskEnv(DrivenDoublePendulum(200), render_mode="rgb_array")
    ```

    **Arguments**

    - `task`: any task whose dynamics JAX can trace.
    - `time_aware`: whether t, from 0 to H, is appended to the state. Then the end is part of the problem and `terminated`;
      else it is a limit that the agent cannot see and `truncated`. Pardo et al. (2018), *Time Limits in Reinforcement
      Learning*.
    - `render_mode`: `"rgb_array"`, for tasks with a method `rods`, or `None`.

    Actions are those of the task, in [-1, 1]; what lies beyond is not clipped but reaches the task as it does in
    `awmkit.unroll` (wrap the environment in `gymnasium.wrappers.ClipAction` to clip). `reset(seed=...)` determines the
    episodes that follow, and `reset(options={"state": s_0})` sets the state. Observations and rewards are those of the task,
    in float32 and as a Python float.

    **Raises:** `ValueError` for an unknown render mode, an action of the wrong shape or not finite, and a step before the
    first reset or after the end.
    """

    def __init__(self, task: AbstractTask, *, time_aware: bool = True, render_mode: str | None = None):
        _check_task(task)
        self.task = task
        self.time_aware = time_aware
        self.metadata = _metadata(task, render_mode)
        self.render_mode = render_mode
        self.observation_space = _observation_space(task, time_aware)
        self.action_space = Box(-1.0, 1.0, (task.action_size,), np.float32)
        self._start, self._step = compiled(_start_one, task), compiled(_step_one, task)
        self._episode: Episode | None = None
        self._t = 0

    @property
    def state(self) -> np.ndarray:
        """s_t, shape (S,), in the task's own precision."""
        return np.array(_running(self._episode).state)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is None and self._episode is not None:
            key = self._episode.key
        else:
            key = jax.random.key(self.np_random.integers(2**31) if seed is None else seed)
        state = _given_state(options, (self.task.state_size,))
        self._episode, observation = self._start(key, state)
        self._t = 0
        return self._visible(observation), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        episode = _running(self._episode)
        if self._t == self.task.horizon:
            raise ValueError(f"The episode ended after its {self._t} steps; call reset() before the next step.")
        action = _checked(action, (self.task.action_size,))
        self._episode, observation, reward = self._step(episode, action)
        self._t += 1
        ended = self._t == self.task.horizon
        return self._visible(observation), float(reward), ended and self.time_aware, ended and not self.time_aware, {}

    def render(self) -> np.ndarray | None:
        return None if self.render_mode is None else _picture(self.task, self.state)

    def _visible(self, observation: Array) -> np.ndarray:
        return np.array(np.asarray(observation)[: None if self.time_aware else -1])


def _check_task(task) -> None:
    if not isinstance(task, AbstractTask) or task.on_host:
        raise ValueError(f"The task is {kind(task)}; pass an awmkit.AbstractTask that JAX can trace, such as OneBounce().")


class TaskVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """Many copies of a task, all stepped in one compiled call.

    ```python
    envs = gymnasium.make_vec("awmkit/DoublePendulum-v0", num_envs=1024)
    ```

    Step for step what `gymnasium.vector.SyncVectorEnv` makes of as many `awmkit.gym.TaskEnv`, and much faster: states and
    keys stay on the device. A copy that has ended starts anew at the next step, whose action it ignores and whose reward is 0
    (`metadata["autoreset_mode"]` is `AutoresetMode.NEXT_STEP`).

    **Arguments:** `num_envs`: N, how many copies; the others as for `TaskEnv`.

    `reset(seed=s)` gives copy i the seed s + i, a list one to each (`None` continues the copy's own), and
    `options={"reset_mask": mask}` resets only some; `options={"state": s_0}` sets states, of shape (S,) or (N, S).

    **Raises:** `ValueError` as `TaskEnv` does, for N < 1, and for seeds or a mask of the wrong shape.
    """

    def __init__(self, task: AbstractTask, num_envs: int, *, time_aware: bool = True, render_mode: str | None = None):
        _check_task(task)
        check_counts("TaskVectorEnv", num_envs=num_envs)
        self.task = task
        self.num_envs = num_envs
        self.time_aware = time_aware
        self.metadata = {**_metadata(task, render_mode), "autoreset_mode": AutoresetMode.NEXT_STEP}
        self.render_mode = render_mode
        self.single_observation_space = _observation_space(task, time_aware)
        self.single_action_space = Box(-1.0, 1.0, (task.action_size,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._start, self._step = compiled(_start_all, task), compiled(_step_all, task)
        self._copies: Episode | None = None

    @property
    def state(self) -> np.ndarray:
        """s_t of each copy, shape (N, S), in the task's own precision."""
        return np.array(_running(self._copies).state)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        n = self.num_envs
        super().reset(seed=seed if isinstance(seed, int) else None)
        seeds = [seed] * n if seed is None else [seed + i for i in range(n)] if isinstance(seed, int) else list(seed)
        if len(seeds) != n:
            raise ValueError(f"There are {len(seeds)} seeds for {n} copies; give one for each, or one integer for all.")
        mask = _reset_mask(options, n, self._copies is None)
        states = _given_state(options, (n, self.task.state_size))
        if self._copies is None:  # Copies without a seed of their own continue from seeds that are drawn here.
            drawn = self.np_random.integers(2**31, size=n)
            seeds = [int(d) if s is None else s for s, d in zip(seeds, drawn, strict=True)]
        given, seeds = np.array([s is not None for s in seeds]), np.array([s or 0 for s in seeds])
        self._copies, observations = self._start(self._copies, seeds=seeds, given=given, mask=mask, states=states)
        return self._visible(observations), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        copies = _running(self._copies)
        actions = _checked(actions, (self.num_envs, self.task.action_size))
        self._copies, observations, rewards, ended = self._step(copies, actions)
        terminated, truncated = np.array(ended), np.zeros(self.num_envs, bool)
        if not self.time_aware:
            terminated, truncated = truncated, terminated
        return self._visible(observations), np.array(rewards, np.float64), terminated, truncated, {}

    def render(self) -> tuple[np.ndarray, ...] | None:
        return None if self.render_mode is None else tuple(_picture(self.task, state) for state in self.state)

    def _visible(self, observations: Array) -> np.ndarray:
        return np.array(np.asarray(observations)[:, : None if self.time_aware else -1])


class Episode(NamedTuple):
    """One running episode: `noise` is for its steps, `key` for the episodes after it."""

    carry: PyTree
    state: Float[Array, " S"]
    t: Int[Array, ""]
    noise: Key[Array, ""]
    key: Key[Array, ""]


def _begin(task: AbstractTask, key: PRNGKeyArray, state: Array | None = None) -> Episode:
    key, start, noise = jax.random.split(key, 3)
    drawn = task.reset(start)
    state = drawn if state is None else state.astype(drawn.dtype)
    return Episode(task.init(state, task.horizon), state, jnp.asarray(0, jnp.int32), noise, key)


def _move(task: AbstractTask, episode: Episode, action: Array) -> tuple[Episode, Array]:
    """The episode after one step, and the reward. A task without noise never evaluates the key."""
    carry, state, t, noise, key = episode
    action = action.astype(state.dtype)
    carry, after = task.step(carry, state, action, t, key=jax.random.fold_in(noise, t))
    reward = with_next_state(task.reward)(state, action, t, after)
    return Episode(carry, after, t + 1, noise, key), reward


def _observe(episode: Episode) -> Float[Array, " O"]:
    """The state and t."""
    return jnp.append(episode.state.astype(jnp.float32), episode.t.astype(jnp.float32))


def _start_one(task, key, state):
    episode = _begin(task, key, state)
    return episode, _observe(episode)


def _step_one(task, episode, action):
    episode, reward = _move(task, episode, action)
    return episode, _observe(episode), reward


def _start_all(task, copies, *, seeds, given, mask, states):
    keys = jax.vmap(jax.random.key)(seeds)
    if copies is not None:
        keys = jnp.where(given, keys, copies.key)
    fresh = jax.vmap(lambda key, state: _begin(task, key, state))(keys, states)
    copies = fresh if copies is None else _where(mask, fresh, copies)
    return copies, jax.vmap(_observe)(copies)


def _step_all(task, copies, actions):
    ended = copies.t == task.horizon
    moved, rewards = jax.vmap(lambda copy, action: _move(task, copy, action))(copies, actions)
    anew = lambda: _where(ended, jax.vmap(lambda key: _begin(task, key))(copies.key), moved)
    copies = lax.cond(jnp.any(ended), anew, lambda: moved)
    return copies, jax.vmap(_observe)(copies), jnp.where(ended, 0, rewards), copies.t == task.horizon


def _where(chosen, yes, no):
    """Of each copy, `yes` where it is chosen."""
    return jax.vmap(lambda one, *trees: jtu.tree_map(lambda y, n: jnp.where(one, y, n), *trees))(chosen, yes, no)


def compiled(function: Callable, module: PyTree) -> Callable:
    """`function` with `module` as its first argument, compiled once for all modules that differ in their arrays only.

    As `eqx.filter_jit`, which would look the whole module over at every step: that takes longer than many a step does.
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


def _metadata(task: Any, render_mode: str | None) -> dict[str, Any]:
    drawn = getattr(task, "rods", None) is not None
    if render_mode is not None and not (drawn and render_mode == "rgb_array"):
        can = 'render_mode="rgb_array"' if drawn else "render_mode=None, since it offers no rods(state)"
        raise ValueError(f"{type(task).__name__} cannot be drawn with render_mode={render_mode!r}; use {can}.")
    if not drawn:
        return {"render_modes": []}
    return {"render_modes": ["rgb_array"], "render_fps": round(1 / task.dt)}


def _picture(task: Any, state: np.ndarray) -> np.ndarray:
    return draw(np.asarray(task.rods(jnp.asarray(state)), float))


def _observation_space(task: AbstractTask, time_aware: bool) -> Box:
    largest = np.finfo(np.float32).max
    low, high = (np.clip(np.asarray(bound, float), -largest, largest).astype(np.float32) for bound in task.bounds)
    low = np.where(low == high, np.nextafter(low, -largest), low)  # Gymnasium warns of an entry that cannot vary.
    if time_aware:
        low, high = np.append(low, np.float32(0)), np.append(high, np.float32(task.horizon))
    return Box(low, high, dtype=np.float32)


def _running(episode: Episode | None) -> Episode:
    if episode is None:
        raise ValueError("No episode is running; call reset() before the first step.")
    return episode


def _checked(action, shape: tuple[int, ...]) -> np.ndarray:
    action = np.asarray(action)
    if action.shape != shape:
        raise ValueError(f"The action has shape {action.shape}; this environment needs {shape}.")
    if not np.isfinite(action).all():
        raise ValueError(f"The action is not finite at index {np.argwhere(~np.isfinite(action))[0].tolist()}; mend the policy.")
    return action


def _given_state(options: dict[str, Any] | None, shape: tuple[int, ...]) -> np.ndarray | None:
    if not options or "state" not in options:
        return None
    state = np.asarray(options["state"], float)
    if state.shape not in (shape, shape[-1:]) or not np.isfinite(state).all():
        raise ValueError(f"options['state'] has shape {state.shape}; give finite numbers of shape {shape}.")
    return np.broadcast_to(state, shape)


def _reset_mask(options: dict[str, Any] | None, n: int, first: bool) -> np.ndarray:
    if not options or "reset_mask" not in options:
        return np.ones(n, bool)
    mask = np.asarray(options["reset_mask"])
    if mask.shape != (n,) or mask.dtype != bool or not mask.any():
        raise ValueError(f"options['reset_mask'] is {mask.dtype}{list(mask.shape)}; give {n} booleans, not all of them False.")
    if first:
        raise ValueError("options['reset_mask'] resets some of the copies that run, and none does; call reset() without it.")
    return mask
