"""A task as a Gymnasium environment."""

from collections.abc import Callable
from typing import Any, TypeVar

import gymnasium
import jax
import numpy as np
from gymnasium.spaces import Box

from .._checks import kind
from .._dynamics import AbstractTask
from ._programs import compiled, Copy, start, step
from ._spaces import observation_space

T = TypeVar("T")


class TaskEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """A task as a Gymnasium environment whose episodes last `task.horizon` steps.

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
      `truncated`. See Pardo et al. (2018), *Time Limits in Reinforcement Learning*.
    - `render_mode`: `"rgb_array"` for a task that has a method `rods`, or `None`.

    **Raises:** `ValueError` if the render mode is unknown or not offered by the task, if an action is not finite or has the wrong
    shape, and if `step` is called before the first `reset` or after the end of an episode. `ImportError` if `render_mode` is
    given and matplotlib is not installed.
    """

    def __init__(self, task: AbstractTask, *, time_aware: bool = True, render_mode: str | None = None):
        check_task(task)
        self.task = task
        self.time_aware = time_aware
        self.metadata, self.picture = rendering(task, render_mode)
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

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is None and self._copy is not None:
            key = self._copy.next_key
        else:
            key = jax.random.key(self.np_random.integers(2**31) if seed is None else seed)
        self._copy = self._start(key, state_option(options, (self.task.state_size,)))
        self._t = 0
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        copy = running(self._copy)
        if self._t == self.task.horizon:
            raise ValueError(f"The episode ended after {self._t} steps; call reset() before the next step.")
        self._copy, reward = self._step(copy, check_action(action, (self.task.action_size,)))
        self._t += 1
        ended = self._t == self.task.horizon
        return self._observation(), float(reward), ended and self.time_aware, ended and not self.time_aware, {}

    def render(self) -> np.ndarray | None:
        return None if self.picture is None else self.picture(self.state)

    def _observation(self) -> np.ndarray:
        state = self.state.astype(np.float32)
        return np.append(state, np.float32(self._t)) if self.time_aware else state


def check_task(task: Any) -> None:
    if not isinstance(task, AbstractTask) or task.on_host:
        raise ValueError(f"task must be an awmkit.AbstractTask that JAX can trace, such as OneBounce(); got {kind(task)}.")


def check_action(action: Any, shape: tuple[int, ...]) -> np.ndarray:
    action = np.asarray(action)
    if action.shape != shape:
        raise ValueError(f"The action must have shape {shape}, got {action.shape}.")
    if not np.isfinite(action).all():
        index = np.argwhere(~np.isfinite(action))[0].tolist()
        raise ValueError(f"The action must be finite, got {action[tuple(index)]} at index {index}; check the policy.")
    return action


def running(copy: T | None) -> T:
    if copy is None:
        raise ValueError("No episode is running; call reset() before the first step.")
    return copy


def state_option(options: dict[str, Any] | None, shape: tuple[int, ...]) -> np.ndarray | None:
    """The initial state in `options`, broadcast to `shape`."""
    if not options or "state" not in options:
        return None
    state = np.asarray(options["state"], float)
    if state.shape not in (shape, shape[-1:]) or not np.isfinite(state).all():
        raise ValueError(f"options['state'] must hold finite numbers of shape {shape}, got {state} of shape {state.shape}.")
    return np.broadcast_to(state, shape)


def rendering(task: Any, render_mode: str | None) -> tuple[dict[str, Any], Callable[[np.ndarray], np.ndarray] | None]:
    """The environment's metadata, and a function from a state to its picture if there is a render mode."""
    drawable = getattr(task, "rods", None) is not None
    metadata = {"render_modes": ["rgb_array"], "render_fps": round(1 / task.dt)} if drawable else {"render_modes": []}
    if render_mode is None:
        return metadata, None
    if render_mode not in metadata["render_modes"]:
        fix = 'render_mode="rgb_array"' if drawable else "render_mode=None, because it has no method rods(state)"
        raise ValueError(f"{type(task).__name__} cannot be drawn with render_mode={render_mode!r}; use {fix}.")
    from ._render import RodRenderer  # Loads matplotlib, which only rendering needs.

    return metadata, RodRenderer(task)
