"""Tasks as Gymnasium environments, and Gymnasium environments as tasks (`pip install "awmkit[gym]"`).

Importing this package registers every task with Gymnasium under its class name, such as `awmkit/DrivenDoublePendulum-v0`.
"""

try:
    import gymnasium as _gymnasium  # noqa: F401
except ImportError as error:
    raise ImportError(f'awmkit.gym needs Gymnasium ({error}); run pip install "awmkit[gym]".') from error

from ._collect import collect as collect
from ._gymnasium_task import GymnasiumTask as GymnasiumTask
from ._register import register_all as _register_all
from ._task_env import TaskEnv as TaskEnv
from ._vector_env import TaskVectorEnv as TaskVectorEnv

__all__ = ["collect", "GymnasiumTask", "TaskEnv", "TaskVectorEnv"]

_register_all()
