"""One bounce: a ball with friction and a wall, the smallest system whose derivative jumps.

Apart from the other tasks because its flow is not smooth: reflection is exact within a fixed step, and so is its derivative.
"""

import math

import equinox as eqx
import jax.numpy as jnp

from .._dynamics import AbstractTask


class OneBounce(AbstractTask):
    """Throw a ball at a wall so that it comes to rest at a goal; only the first action acts.

    The state is (x, v, wall, goal), in m and m/s. The first action sets v = 10 (a_0 - 2), towards the wall; then explicit steps
    of x' = v, v' = -friction v; a ball that would pass the wall is mirrored at it, and its speed changes sign. The only reward
    is at the last step: -(x_{H-1} - goal)^2.

    The Jacobian of a step that bounces is that of a free step times the saltation matrix of this wall, -1 on the diagonal:
    [[-1, -dt], [0, -(1 - friction dt)]]. (Leine & Nijmeijer, *Dynamics and Bifurcations of Non-Smooth Mechanical Systems*.)

    **Arguments:** `horizon`: H. `goal`, `start`, `wall`: positions in m. `friction`: per second. `dt`: seconds a step.

    **Raises:** `ValueError` for a horizon below 2, or a ball that starts behind the wall.
    """

    goal: float
    start: float
    wall: float
    friction: float
    dt: float
    horizon: int = eqx.field(static=True)
    state_size: int = eqx.field(static=True)
    action_size: int = eqx.field(static=True)

    def __init__(
        self,
        horizon: int = 100,
        *,
        goal: float = 0.5,
        start: float = 0.0,
        wall: float = -1.0,
        friction: float = 10.0,
        dt: float = 0.01,
    ):
        if horizon < 2:
            raise ValueError(f"The horizon is {horizon}; a throw and a reward for where it ends need at least 2 steps.")
        if start < wall:
            raise ValueError(f"The ball starts at {start}, behind the wall at {wall}; give a start of at least the wall's.")
        self.goal, self.start, self.wall = goal, start, wall
        self.friction = friction
        self.dt = dt
        self.horizon = horizon
        self.state_size = 4
        self.action_size = 1

    @property
    def bounds(self):
        return (self.wall, -math.inf, self.wall, self.goal), (math.inf, math.inf, self.wall, self.goal)

    def init(self, state, horizon):
        del state, horizon

    def step(self, carry, state, action, t, *, key=None):
        del key
        x, v, wall, goal = state
        v = jnp.where(jnp.asarray(t) == 0, 10 * (action[0] - 2), v)
        x, v = x + self.dt * v, v - self.dt * self.friction * v
        passed = x < wall
        x, v = jnp.where(passed, 2 * wall - x, x), jnp.where(passed, -v, v)
        return carry, jnp.stack([x, v, wall, goal])

    def reward(self, state, action, t):
        del action
        x, _, _, goal = state
        return jnp.where(jnp.asarray(t) == self.horizon - 1, -((x - goal) ** 2), 0)

    def reset(self, key):
        del key
        return jnp.array([self.start, 0.0, self.wall, self.goal])
