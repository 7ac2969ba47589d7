"""Many copies of a task as one vectorised Gymnasium environment."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from .._checks import check_counts, describe
from .._dynamics import AbstractTask
from ._programs import compiled, Copy, start_all, step_all
from ._spaces import observation_space
from ._task_env import check_action, check_task, rendering, running, state_option


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

    **Raises:** `ValueError` if `num_envs` is below 1, if the seeds or the mask have the wrong shape, and wherever `TaskEnv` raises
    it.
    """

    def __init__(self, task: AbstractTask, num_envs: int, *, time_aware: bool = True, render_mode: str | None = None):
        check_task(task)
        check_counts("TaskVectorEnv", num_envs=num_envs)
        self.task = task
        self.num_envs = num_envs
        self.time_aware = time_aware
        metadata, self.picture = rendering(task, render_mode)
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
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        n = self.num_envs
        super().reset(seed=seed if isinstance(seed, int) else None)
        seeds = [seed] * n if seed is None else [seed + i for i in range(n)] if isinstance(seed, int) else list(seed)
        if len(seeds) != n:
            raise ValueError(f"seed must be one integer or a list of {n}, one for each copy; got a list of {len(seeds)}.")
        mask = self._reset_mask(options)
        states = state_option(options, (n, self.task.state_size))
        if self._copies is None:  # There are no keys to continue with yet, so draw the seeds that were not given.
            drawn = self.np_random.integers(2**31, size=n)
            seeds = [int(d) if s is None else s for s, d in zip(seeds, drawn, strict=True)]
        seeded, seeds = np.array([s is not None for s in seeds]), np.array([s or 0 for s in seeds])
        self._copies = self._start(self._copies, seeds=seeds, seeded=seeded, mask=mask, states=states)
        return self._observations(), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        actions = check_action(actions, (self.num_envs, self.task.action_size))
        copies, rewards = self._step(running(self._copies), actions)
        self._copies = copies
        terminated, truncated = np.asarray(copies.episode.t) == self.task.horizon, np.zeros(self.num_envs, bool)
        if not self.time_aware:
            terminated, truncated = truncated, terminated
        return self._observations(), np.array(rewards, np.float64), terminated, truncated, {}

    def render(self) -> tuple[np.ndarray, ...] | None:
        return None if self.picture is None else tuple(map(self.picture, self.state))

    def _observations(self) -> np.ndarray:
        states, times = self.state.astype(np.float32), np.asarray(running(self._copies).episode.t, np.float32)
        return np.append(states, times[:, None], axis=1) if self.time_aware else states

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
