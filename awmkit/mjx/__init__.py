"""MuJoCo models as differentiable tasks, by MJX (`pip install "awmkit[mjx]"`)."""

import contextlib as _contextlib
import io as _io

try:
    # mujoco.mjx prints a line for each missing package of its Warp backend, which awmkit does not use.
    with _contextlib.redirect_stdout(_io.StringIO()):
        import mujoco.mjx
except ImportError as error:
    raise ImportError(f'awmkit.mjx needs MuJoCo and MJX of one version ({error}); run pip install "awmkit[mjx]".') from error
else:
    del mujoco  # Imported only to see that it is installed.

from ._swing_up import cartpole, double_pendulum, pendulum
from ._task import MJXTask

__all__ = ["cartpole", "double_pendulum", "MJXTask", "pendulum"]
