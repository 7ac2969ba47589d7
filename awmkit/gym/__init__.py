"""Tasks as Gymnasium environments, and Gymnasium environments as tasks (`pip install "awmkit[gym]"`).

Importing this package registers every task with Gymnasium under its class name, such as `awmkit/DrivenDoublePendulum-v0`.
"""

try:
    import gymnasium
except ImportError as error:
    raise ImportError(f'awmkit.gym needs Gymnasium ({error}); run pip install "awmkit[gym]".') from error
else:
    del gymnasium  # Imported only to see that it is installed.

from ._collect import collect
from ._gymnasium_task import GymnasiumTask
from ._healthy import healthy
from ._register import register_all as _register_all
from ._task_env import TaskEnv
from ._vector_env import TaskVectorEnv

__all__ = ["collect", "GymnasiumTask", "healthy", "TaskEnv", "TaskVectorEnv"]

_register_all()
