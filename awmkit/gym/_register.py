"""The names under which Gymnasium finds awmkit's tasks."""

import functools
from collections.abc import Callable

import gymnasium

from .. import tasks
from .._dynamics import AbstractTask
from ._task_env import TaskEnv
from ._vector_env import TaskVectorEnv


def register_all() -> None:
    """Register every task that has default arguments as `awmkit/<class name>-v0`.

    Keyword arguments of `gymnasium.make` and `gymnasium.make_vec` go to the task, except those of `TaskEnv`.
    """
    for task in (
        tasks.CreditAssignment,
        tasks.DrivenDoublePendulum,
        tasks.Henon,
        tasks.LinearQuadratic,
        tasks.Lorenz,
        tasks.OneBounce,
        tasks.PassiveDoublePendulum,
    ):
        _register(task.__name__, task)
    for problem in tasks.MYRIAD:
        _register(problem.__name__, functools.partial(tasks.Discretised, problem=problem()))  # pyright: ignore[reportCallIssue]
    _register("MJXPendulum", lambda **options: _mjx().pendulum(**options))
    _register("MJXCartPole", lambda **options: _mjx().cartpole(**options))
    _register("MJXDoublePendulum", lambda **options: _mjx().double_pendulum(**options))


def _register(name: str, make_task: Callable[..., AbstractTask]) -> None:
    """Register the environment and its vectorised form, whose options go to `make_task`."""

    def entry_point(*, time_aware: bool = True, render_mode: str | None = None, **options) -> TaskEnv:
        return TaskEnv(make_task(**options), time_aware=time_aware, render_mode=render_mode)

    def vector_entry_point(
        num_envs: int, *, time_aware: bool = True, render_mode: str | None = None, **options
    ) -> TaskVectorEnv:
        return TaskVectorEnv(make_task(**options), num_envs, time_aware=time_aware, render_mode=render_mode)

    gymnasium.register(f"awmkit/{name}-v0", entry_point, vector_entry_point=vector_entry_point)


def _mjx():
    from .. import mjx  # Loads MuJoCo, which the other environments do not need.

    return mjx
