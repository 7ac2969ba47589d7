"""MuJoCo models as differentiable tasks, by MJX (`pip install "awmkit[mjx]"`)."""

import contextlib as _contextlib
import io as _io

try:
    # mujoco.mjx prints a line for each missing package of its Warp backend, which awmkit does not use.
    with _contextlib.redirect_stdout(_io.StringIO()):
        import mujoco.mjx as _mjx  # noqa: F401
except ImportError as error:
    raise ImportError(f'awmkit.mjx needs MuJoCo and MJX of one version ({error}); run pip install "awmkit[mjx]".') from error

from ._swing_up import cartpole as cartpole, double_pendulum as double_pendulum, pendulum as pendulum
from ._task import MJXTask as MJXTask

__all__ = ["cartpole", "double_pendulum", "MJXTask", "pendulum"]
