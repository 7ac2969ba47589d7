"""The states and actions of running episodes, from which pictures are drawn."""

from collections import deque

import numpy as np

from .._dynamics import AbstractTask


class Film:
    """The running episodes of N copies of a task, and their pictures."""

    def __init__(self, task: AbstractTask):
        self._task = task
        # A copy at step t owns the last t + 1 states and the last t actions.
        self._states, self._actions = deque(maxlen=task.horizon + 1), deque(maxlen=task.horizon)
        self._draw = None

    def __getstate__(self):  # Without the renderer, which cannot be copied.
        return {**self.__dict__, "_draw": None}

    def restart(self, states: np.ndarray) -> None:
        """Take the states (N, S) after a reset, which has changed them in some or all copies."""
        if self._states:
            self._states.pop()
        self._states.append(states)

    def append(self, states: np.ndarray, actions: np.ndarray) -> None:
        """Take the states (N, S) after a step, and the actions (N, A) of the step."""
        self._states.append(states)
        self._actions.append(actions)

    def picture(self, copy: int, t: int) -> np.ndarray:
        """The picture of one copy at step t: uint8, shape (256, 256, 3)."""
        states = [states[copy] for states in list(self._states)[-t - 1 :]]
        actions = [actions[copy] for actions in list(self._actions)[len(self._actions) - t :]]
        if self._draw is None:  # Loads matplotlib, which many who ask for a render mode never need.
            from ._render import renderer

            self._draw = renderer(self._task)
        return self._draw(np.array(states, float), np.array(actions, float).reshape(t, self._task.action_size))
