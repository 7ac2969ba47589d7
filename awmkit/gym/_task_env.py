"""A task as a Gymnasium environment."""

import copy
import operator
from typing import Any, SupportsIndex, TypeVar

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from .._checks import kind
from .._dynamics import AbstractTask
from ._film import Film
from ._programs import compiled, Copy, seeded_keys, start, step
from ._spaces import observation_space, real_numbers

T = TypeVar("T")


class TaskEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """A task as a Gymnasium environment. Episodes last `task.horizon` steps, unless `task.terminates` ends them earlier.

    ```python
    env = gymnasium.make("awmkit/DrivenDoublePendulum-v0")
    env = TaskEnv(DrivenDoublePendulum(200), render_mode="rgb_array")
    ```

    Actions are in [-1, 1]. An action outside this range is not clipped: the task receives it as it would in `awmkit.unroll`.
    Wrap the environment in `gymnasium.wrappers.ClipAction` to clip. Observations are float32.

    `reset(seed=...)` determines all episodes that follow. `reset(options={"state": s_0})` sets the initial state.

    **Arguments**

    - `task`: any task that JAX can trace.
    - `time_aware`: whether t, from 0 to H, is appended to the observation. If `True`, the default, the end of an episode is part
      of the problem and is reported as `terminated`. If `False`, it is a time limit that the agent cannot see, reported as
      `truncated`. See Pardo et al. (2018), *Time Limits in Reinforcement Learning*. An end by `task.terminates` is always
      `terminated`; if it returns a probability, the end is drawn.
    - `render_mode`: `"rgb_array"`, or `None`. Pictures show the rods of a task that has a method `rods(state)`, and else states
      and actions against the step. Any other mode draws nothing, with Gymnasium's warning.

    **Raises:** `ValueError` if an action is not finite or has the wrong shape, and if `step` is called before the first `reset` or
    after the end of an episode. `ImportError` if `render` has to draw and matplotlib is not installed.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}

    def __init__(self, task: AbstractTask, *, time_aware: bool = True, render_mode: str | None = None):
        check_task(task)
        self.task = task
        self.time_aware = time_aware
        self.metadata, self._film = rendering(task, render_mode)
        self.render_mode = render_mode
        self.observation_space = observation_space(task, time_aware)
        self.action_space = Box(-1.0, 1.0, (task.action_size,), np.float32)
        self._start, self._step = compiled(start, task), compiled(step, task)
        self._copy: Copy | None = None
        self._t = 0

    def __fingerprint__(self):
        return self.task, self.time_aware

    @property
    def state(self) -> np.ndarray:
        """s_t, shape (S,), in the task's own precision."""
        return np.array(running(self._copy).episode.state)

    def reset(
        self, *, seed: SupportsIndex | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        seed = whole_seed(seed)
        super().reset(seed=seed)
        if seed is None and self._copy is not None:
            key = self._copy.next_key
        else:
            key = seeded_keys([int(self.np_random.integers(2**31)) if seed is None else seed])[0]
        self._copy = self._start(key, state_option(options, (self.task.state_size,)))
        self._t = 0
        if self._film is not None:
            self._film.restart(self.state[None])
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        running(self._copy)
        if self._t == self.task.horizon or running(self._copy).episode.ended:
            raise ValueError(f"The episode ended after {self._t} steps; call reset() before the next step.")
        action = check_action(action, (self.task.action_size,))
        self._copy, reward = self._step(self._copy, action)
        self._t += 1
        if self._film is not None:
            self._film.append(self.state[None], action[None])
        ended, last = bool(running(self._copy).episode.ended), self._t == self.task.horizon
        return self._observation(), float(reward), ended or (last and self.time_aware), last and not self.time_aware, {}

    def render(self) -> np.ndarray | None:
        if self._film is None:
            return no_picture(self.render_mode)
        running(self._copy)
        return self._film.picture(0, self._t)

    def _observation(self) -> np.ndarray:
        state = self.state.astype(np.float32)
        return np.append(state, np.float32(self._t)) if self.time_aware else state


def check_task(task: Any) -> None:
    if not isinstance(task, AbstractTask) or task.on_host:
        raise ValueError(f"task must be an awmkit.AbstractTask that JAX can trace, such as OneBounce(); got {kind(task)}.")


def check_action(action: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return a copy of the action; raise unless it holds finite real numbers of this shape."""
    action = real_numbers(action, shape, what="The action", fix="check the policy")
    if not np.isfinite(action).all():
        index = np.argwhere(~np.isfinite(action))[0].tolist()
        raise ValueError(f"The action must be finite, got {action[tuple(index)]} at index {index}; check the policy.")
    return action


def whole_seed(seed: Any) -> int | None:
    """The seed as a Python int, as which NumPy's integers count too; raise unless it is a whole number of at least 0."""
    if seed is None:
        return None
    try:
        whole = operator.index(seed)
    except TypeError:
        whole = -1
    if whole < 0:
        raise ValueError(f"seed must be a whole number of at least 0, or None, got {seed!r}.")
    return whole


def running(episodes: T | None) -> T:
    if episodes is None:
        raise ValueError("No episode is running; call reset() before the first step.")
    return episodes


def state_option(options: dict[str, Any] | None, shape: tuple[int, ...]) -> np.ndarray | None:
    """The initial state in `options`, broadcast to `shape`."""
    if not options or "state" not in options:
        return None
    state = real_numbers(options["state"], shape, shape[-1:], what="options['state']", fix="give a state of the task").astype(
        float
    )
    if not np.isfinite(state).all():
        raise ValueError(f"options['state'] must be finite, got {state}.")
    return np.broadcast_to(state, shape)


def rendering(task: AbstractTask, render_mode: str | None) -> tuple[dict[str, Any], Film | None]:
    """The environment's metadata, and what takes its pictures if `render_mode` asks for them."""
    dt = getattr(task, "dt", None) if getattr(task, "rods", None) is not None else None
    metadata = copy.deepcopy(TaskEnv.metadata)  # Or a user who changes it would change that of all environments.
    if dt is not None:
        metadata["render_fps"] = max(1, round(1 / dt))
    return metadata, Film(task) if render_mode == "rgb_array" else None


def no_picture(render_mode: str | None) -> None:
    """Warn as Gymnasium's environments do when they are asked for a picture in a mode that has none."""
    gymnasium.logger.warn(
        f'render() returns None in render_mode={render_mode!r}; make the environment with render_mode="rgb_array".'
    )
