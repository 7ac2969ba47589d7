"""MuJoCo models as tasks whose gradients are those of MJX (`pip install "awmkit[mjx]"`)."""

from ._task import cartpole as cartpole, double_pendulum as double_pendulum, MJXTask as MJXTask, pendulum as pendulum
