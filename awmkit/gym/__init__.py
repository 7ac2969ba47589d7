"""Gymnasium, both ways: tasks as environments, and episodes of any environment to learn from.

Apart from `awmkit` because importing it loads Gymnasium and registers every task there as `awmkit/...-v0`.
"""

import functools
from collections.abc import Callable

import gymnasium

from .. import tasks
from .._dynamics import AbstractTask
from ._collect import collect as collect, GymnasiumTask as GymnasiumTask
from ._task_env import TaskEnv as TaskEnv, TaskVectorEnv as TaskVectorEnv


def _register(name: str, make_task: Callable[..., AbstractTask]) -> None:
    """Keyword arguments of `gymnasium.make` and `make_vec` reach the task, but for those of the environment itself."""

    def entry_point(*, time_aware: bool = True, render_mode: str | None = None, **options) -> TaskEnv:
        return TaskEnv(make_task(**options), time_aware=time_aware, render_mode=render_mode)

    def vector_entry_point(num_envs: int, *, time_aware: bool = True, render_mode: str | None = None, **options):
        return TaskVectorEnv(make_task(**options), num_envs, time_aware=time_aware, render_mode=render_mode)

    gymnasium.register(f"awmkit/{name}-v0", entry_point, vector_entry_point=vector_entry_point)


def _mjx():
    from .. import mjx  # Loads MuJoCo, which nothing else here needs.

    return mjx


_register("DoublePendulum", tasks.DrivenDoublePendulum)
_register("PassiveDoublePendulum", tasks.PassiveDoublePendulum)
_register("OneBounce", tasks.OneBounce)
_register("CreditAssignment", tasks.CreditAssignment)
for _problem in tasks.MYRIAD:
    _register(_problem.__name__, functools.partial(tasks.Discretised, problem=_problem()))  # pyright: ignore[reportCallIssue]
_register("MJXPendulum", lambda **options: _mjx().pendulum(**options))
_register("MJXCartPole", lambda **options: _mjx().cartpole(**options))
_register("MJXDoublePendulum", lambda **options: _mjx().double_pendulum(**options))
