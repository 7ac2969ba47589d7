"""Pictures of running episodes, by matplotlib: the rods of a pendulum, or else states and actions against time."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from .._dynamics import AbstractTask

try:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
except ImportError as error:
    raise ImportError(f'render_mode="rgb_array" needs matplotlib ({error}); run pip install "awmkit[plot]".') from error

from ..plot import style

SIZE = 256  # pixels of either side
BACKGROUND, ROD, JOINT, HINGE = "#fafaf7", "#3d5a80", "#ee6c4d", "#293241"
PANELS = 5  # More entries of a state than this share one panel.


def renderer(task: AbstractTask) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """A function from an episode's states (t+1, S) and actions (t, A) to its picture: uint8, shape (256, 256, 3)."""
    return _SeriesRenderer(task) if getattr(task, "rods", None) is None else _RodRenderer(task)


class _RodRenderer:
    """Draw the rods of a task that has a method `rods(state) -> joints (n+1, 2)`, in metres, with the hinge first.

    The origin is in the middle. The picture is wide enough for the stretched chain about the origin, and wider where the chain
    has moved away.
    """

    def __init__(self, task: AbstractTask):
        self._task: Any = task
        # One point is one pixel.
        figure = Figure(figsize=(SIZE / 72, SIZE / 72), dpi=72, facecolor=BACKGROUND, layout="none")  # pyright: ignore[reportArgumentType]
        self._canvas = FigureCanvasAgg(figure)
        self._axes = figure.add_axes((0, 0, 1, 1), frameon=False, xticks=[], yticks=[])
        (self._rods,) = self._axes.plot([], [], color=ROD, lw=0.025 * SIZE, solid_capstyle="round", snap=False)
        dots = {"ls": "", "marker": "o", "mew": 0, "snap": False}
        (self._joints,) = self._axes.plot([], [], color=JOINT, ms=0.06 * SIZE, **dots)
        (self._hinge,) = self._axes.plot([], [], color=HINGE, ms=0.04 * SIZE, **dots)

    def __call__(self, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        del actions
        joints = np.asarray(self._task.rods(jnp.asarray(states[-1], float)), float)
        reach = np.linalg.norm(np.diff(joints, axis=0), axis=1).sum()
        half = max(1.2 * reach, 1.1 * np.abs(joints).max())  # metres from the middle to an edge
        half = half if np.isfinite(half) else 1.0  # Where the state has diverged, nothing is drawn.
        self._axes.set(xlim=(-half, half), ylim=(-half, half))
        self._rods.set_data(*joints.T)
        self._joints.set_data(*joints[1:].T)
        self._hinge.set_data(*joints[:1].T)
        self._canvas.draw()
        return np.array(self._canvas.buffer_rgba())[..., :3].copy()


class _SeriesRenderer:
    """Draw the states and actions of an episode until now against the step, one panel above the other.

    Frames and labels are drawn again only where a curve has left its panel, so that most pictures take a few milliseconds.
    """

    def __init__(self, task: AbstractTask):
        own = task.state_size <= PANELS
        names = [f"s[{i}]" for i in range(task.state_size)] if own else ["s"]
        with style():
            figure = Figure(figsize=(SIZE / 72, SIZE / 72), dpi=72, facecolor=BACKGROUND, layout="none")  # pyright: ignore[reportArgumentType]
            self._canvas = FigureCanvasAgg(figure)
            axes = figure.subplots(len(names) + 1, sharex=True)
            figure.subplots_adjust(left=0.22, right=0.97, top=0.97, bottom=0.13, hspace=0.25)
            sizes = [1] * task.state_size if own else [task.state_size]
            self._lines = [
                panel.plot(np.zeros((1, size)), animated=True, lw=1) for panel, size in zip(axes, sizes, strict=False)
            ]
            self._lines.append(axes[-1].plot(np.zeros((1, task.action_size)), animated=True, lw=1, drawstyle="steps-post"))
            for panel, name in zip(axes, [*names, "a"], strict=True):
                panel.set(xlim=(0, task.horizon), facecolor=BACKGROUND)
                panel.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
                panel.tick_params(labelsize=7)
            axes[-1].set_xlabel("step", fontsize=8)
            axes[-1].xaxis.set_major_locator(MaxNLocator(4, integer=True))
        self._axes, self._limits, self._background = axes, None, None

    def __call__(self, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        actions = np.concatenate([actions, actions[-1:]])  # The last action lasts until now.
        groups = [*np.split(states, len(self._axes) - 1, axis=1)] if len(self._axes) > 2 else [states]
        limits = [_limits(group) for group in groups] + [_limits(actions, -1.0, 1.0)]
        if limits != self._limits:
            for panel, limit in zip(self._axes, limits, strict=True):
                panel.set_ylim(*limit)
                panel.set_yticks(limit)
            self._canvas.draw()
            self._limits, self._background = limits, self._canvas.copy_from_bbox(self._canvas.figure.bbox)
        self._canvas.restore_region(self._background)
        for panel, lines, values in zip(self._axes, self._lines, [*groups, actions], strict=True):
            for line, column in zip(lines, values.T, strict=True):
                line.set_data(np.arange(len(column)), column)
                panel.draw_artist(line)
        return np.array(self._canvas.buffer_rgba())[..., :3].copy()


def _limits(values: np.ndarray, *always: float) -> tuple[float, float]:
    """Round numbers below and above all finite `values` and the numbers in `always`."""
    shown = np.concatenate([values[np.isfinite(values)], always])
    low, high = (shown.min(), shown.max()) if shown.size else (0.0, 1.0)
    if not high - low > 1e-6 * max(abs(low), abs(high)):  # A constant, or one with rounding errors.
        low, high = low - 0.5 * max(abs(low), 1e-6), high + 0.5 * max(abs(high), 1e-6)
    ticks = MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(low, high)
    return float(ticks[0]), float(ticks[-1])
