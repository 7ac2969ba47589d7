"""Pictures of pendulums, by matplotlib."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from .._dynamics import AbstractTask

try:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError(f'render_mode="rgb_array" needs matplotlib ({error}); run pip install "awmkit[plot]".') from error

SIZE = 256  # pixels of either side
BACKGROUND, ROD, JOINT, HINGE = "#fafaf7", "#3d5a80", "#ee6c4d", "#293241"


class RodRenderer:
    """Draw the rods of a task that has a method `rods(state) -> joints (n+1, 2)`, in metres, with the hinge first.

    The origin is in the middle. The picture is wide enough for the stretched chain about the origin, and wider where the chain
    has moved away.
    """

    def __init__(self, task: AbstractTask):
        self._task: Any = task
        figure = Figure(figsize=(SIZE / 72, SIZE / 72), dpi=72, facecolor=BACKGROUND)  # One point is one pixel.
        self._canvas = FigureCanvasAgg(figure)
        self._axes = figure.add_axes((0, 0, 1, 1), frameon=False, xticks=[], yticks=[])
        (self._rods,) = self._axes.plot([], [], color=ROD, lw=0.025 * SIZE, solid_capstyle="round", snap=False)
        dots = {"ls": "", "marker": "o", "mew": 0, "snap": False}
        (self._joints,) = self._axes.plot([], [], color=JOINT, ms=0.06 * SIZE, **dots)
        (self._hinge,) = self._axes.plot([], [], color=HINGE, ms=0.04 * SIZE, **dots)

    def __call__(self, state: np.ndarray) -> np.ndarray:
        """The picture at `state`, shape (S,): uint8, shape (256, 256, 3)."""
        joints = np.asarray(self._task.rods(jnp.asarray(state)), float)
        reach = np.linalg.norm(np.diff(joints, axis=0), axis=1).sum()
        half = max(1.2 * reach, 1.1 * np.abs(joints).max())  # metres from the middle to an edge
        self._axes.set(xlim=(-half, half), ylim=(-half, half))
        self._rods.set_data(*joints.T)
        self._joints.set_data(*joints[1:].T)
        self._hinge.set_data(*joints[:1].T)
        self._canvas.draw()
        return np.array(self._canvas.buffer_rgba())[..., :3].copy()
