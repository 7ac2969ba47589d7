"""Many copies of a task as one vectorised Gymnasium environment."""

import math
from collections.abc import Sequence
from typing import Any, cast, SupportsIndex

import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from .._checks import check_counts, describe
from .._dynamics import AbstractTask
from ._programs import compiled, Copy, seeded_keys, start_all, step_all
from ._spaces import observation_space
from ._task_env import check_action, check_task, no_picture, rendering, running, state_option, whole_seed


class TaskVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """Many copies of a task, all stepped in one compiled call.

    ```python
    envs = gymnasium.make_vec("awmkit/DrivenDoublePendulum-v0", num_envs=1024)
    ```

    It returns what a `gymnasium.vector.SyncVectorEnv` of `awmkit.gym.TaskEnv` returns, and is much faster because states and keys
    stay on the device. After the last step of an episode, the next call of `step` ignores the copy's action, starts its next
    episode and returns reward 0 (`metadata["autoreset_mode"]` is `AutoresetMode.NEXT_STEP`).

    `reset(seed=s)` gives copy i the seed s + i. `reset(seed=[...])` gives each copy its own seed; a copy with `None` continues
    with its own random numbers. `options={"reset_mask": mask}` resets only some copies, and `options={"state": s_0}` sets the
    initial states, shape (S,) or (N, S).

    **Arguments**

    - `task`: any task that JAX can trace.
    - `num_envs`: the number of copies, N.
    - `time_aware`, `render_mode`: as for `awmkit.gym.TaskEnv`.
    - `max_episode_steps`: a time limit, after which an episode is reported as `truncated` as by `gymnasium.wrappers.TimeLimit`. By
      default there is none, and -1 means none, too. Episodes have at most `task.horizon` steps in any case.

    **Raises:** `ValueError` if `num_envs` or `max_episode_steps` is below 1, if the seeds or the mask have the wrong shape, and
    wherever `TaskEnv` raises it.
    """

    def __init__(
        self,
        task: AbstractTask,
        num_envs: int,
        *,
        time_aware: bool = True,
        render_mode: str | None = None,
        max_episode_steps: int | None = None,
    ):
        check_task(task)
        max_episode_steps = None if max_episode_steps == -1 else max_episode_steps
        check_counts("TaskVectorEnv", num_envs=num_envs, max_episode_steps=max_episode_steps)
        self.task = task
        self.num_envs = num_envs
        self.time_aware = time_aware
        self.max_episode_steps = max_episode_steps
        metadata, self._film = rendering(task, render_mode)
        self.metadata = {**metadata, "autoreset_mode": AutoresetMode.NEXT_STEP}
        self.render_mode = render_mode
        self.single_observation_space = observation_space(task, time_aware)
        self.single_action_space = Box(-1.0, 1.0, (task.action_size,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._start, self._step = compiled(start_all, task), compiled(step_all, task)
        self._copies: Copy | None = None

    @property
    def state(self) -> np.ndarray:
        """s_t of each copy, shape (N, S), in the task's own precision."""
        return np.array(running(self._copies).episode.state)

    def reset(
        self,
        *,
        seed: SupportsIndex | Sequence[SupportsIndex | None] | np.ndarray | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[np.ndarray, dict[str, Any]]:
        n = self.num_envs
        super().reset(seed=None if np.ndim(cast(Any, seed)) else whole_seed(seed))
        seeds = self._seeds(seed)
        mask = self._reset_mask(options)
        states = state_option(options, (n, self.task.state_size))
        if self._copies is None:  # There are no keys to continue with yet, so draw the seeds that were not given.
            drawn = self.np_random.integers(2**31, size=n)
            seeds = [int(d) if s is None else s for s, d in zip(seeds, drawn, strict=True)]
        keys, seeded = seeded_keys([s or 0 for s in seeds]), np.array([s is not None for s in seeds])
        self._copies = self._start(self._copies, keys=keys, seeded=seeded, mask=mask, states=states)
        if self._film is not None:
            self._film.restart(self.state)
        return self._observations(), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        actions = check_action(actions, (self.num_envs, self.task.action_size))
        horizon, limit = self.task.horizon, self.max_episode_steps or math.inf
        copies, rewards = self._step(running(self._copies), actions, np.int32(min(horizon, limit)))
        self._copies = copies
        if self._film is not None:
            self._film.append(self.state, actions)
        t = np.asarray(copies.episode.t)
        ended = np.asarray(copies.episode.ended)
        terminated, truncated = (
            ended | ((t == horizon) & self.time_aware),
            (t >= limit) | ((t == horizon) & (not self.time_aware)),
        )
        return self._observations(), np.array(rewards, np.float64), terminated, truncated, {}

    def render(self) -> tuple[np.ndarray, ...] | None:
        if self._film is None:
            return no_picture(self.render_mode)
        copies = running(self._copies)
        return tuple(self._film.picture(i, int(t)) for i, t in enumerate(copies.episode.t))

    def _observations(self) -> np.ndarray:
        states, times = self.state.astype(np.float32), np.asarray(running(self._copies).episode.t, np.float32)
        return np.append(states, times[:, None], axis=1) if self.time_aware else states

    def _seeds(self, seed: Any) -> list[int | None]:
        """The seed of each copy; `None` for a copy that continues with its own random numbers."""
        n = self.num_envs
        if np.ndim(seed) == 0:
            first = whole_seed(seed)
            return [None if first is None else first + i for i in range(n)]
        if len(seed) != n:
            raise ValueError(f"seed must be one integer or a list of {n}, one for each copy; got a list of {len(seed)}.")
        return list(map(whole_seed, seed))

    def _reset_mask(self, options: dict[str, Any] | None) -> np.ndarray:
        if not options or "reset_mask" not in options:
            return np.ones(self.num_envs, bool)
        mask = np.asarray(options["reset_mask"])
        if mask.shape != (self.num_envs,) or mask.dtype != bool or not mask.any():
            given = f"{describe(mask)}, {np.count_nonzero(mask)} of them nonzero"
            raise ValueError(f"options['reset_mask'] must be {self.num_envs} booleans, at least one of them True; got {given}.")
        if self._copies is None:
            raise ValueError("options['reset_mask'] needs running episodes; call reset() without it first.")
        return mask
