"""The names under which Gymnasium finds awmkit's tasks."""

import functools
from collections.abc import Callable

import gymnasium

from .. import tasks
from .._dynamics import AbstractTask
from ._task_env import TaskEnv
from ._vector_env import TaskVectorEnv

TASKS: dict[str, Callable[..., AbstractTask]] = {
    task.__name__: task
    for task in (
        tasks.CreditAssignment,
        tasks.DrivenDoublePendulum,
        tasks.Henon,
        tasks.LinearQuadratic,
        tasks.Lorenz,
        tasks.OneBounce,
        tasks.PassiveDoublePendulum,
    )
}
TASKS |= {problem.__name__: functools.partial(tasks.Discretised, problem=problem()) for problem in tasks.MYRIAD}  # pyright: ignore[reportCallIssue]
TASKS |= {
    "MJXPendulum": lambda **options: _mjx().pendulum(**options),
    "MJXCartPole": lambda **options: _mjx().cartpole(**options),
    "MJXDoublePendulum": lambda **options: _mjx().double_pendulum(**options),
}


def register_all() -> None:
    """Register every task that has default arguments as `awmkit/<class name>-v0`.

    Keyword arguments of `gymnasium.make` and `gymnasium.make_vec` go to the task, except those of `TaskEnv` and `TaskVectorEnv`.
    """
    for name in TASKS:
        if (id := f"awmkit/{name}-v0") not in gymnasium.registry:
            # Entry points as text, so that a specification can be pickled, and written as JSON.
            gymnasium.register(id, f"{__name__}:make", vector_entry_point=f"{__name__}:make_vec", kwargs={"name": name})


def make(*, name: str, time_aware: bool = True, render_mode: str | None = None, **options) -> TaskEnv:
    return TaskEnv(TASKS[name](**options), time_aware=time_aware, render_mode=render_mode)


make.metadata = TaskEnv.metadata  # pyright: ignore[reportFunctionMemberAccess]  # Gymnasium reads the render modes from it.


def make_vec(
    *,
    name: str,
    num_envs: int,
    time_aware: bool = True,
    render_mode: str | None = None,
    max_episode_steps: int | None = None,
    **options,
) -> TaskVectorEnv:
    task = TASKS[name](**options)
    limits = {"time_aware": time_aware, "render_mode": render_mode, "max_episode_steps": max_episode_steps}
    return TaskVectorEnv(task, num_envs, **limits)


def _mjx():
    from .. import mjx  # Loads MuJoCo, which the other environments do not need.

    return mjx
