"""A ball that bounces off a wall, the smallest system with a discontinuous derivative."""

import math
from dataclasses import KW_ONLY

import equinox as eqx
import jax.numpy as jnp
from jax.core import Tracer

from .._dynamics import AbstractTask
from ._ode import in_dtype, Parameter, parameter


class OneBounce(AbstractTask):
    """Throw a ball at a wall so that it comes to rest at a goal. Only the first action has an effect (Ma et al., 2024).

        x' = v,    v' = -friction v          (explicit Euler steps)

    The first action sets v = 10 (a_0 - 2) m/s, towards the wall. If a step would take the ball through the wall, its position is
    mirrored at the wall and its speed changes sign.

    - State: (x, v, wall, goal), in m, m/s, m and m. The last two are constant.
    - Action: one entry, used at the first step only.
    - Reward: -(x - goal)^2 at the last step, t = H-1, and 0 before.
    - Start: at rest at `start`.

    The Jacobian of a step that bounces, in (x, v), is the Jacobian of a free step times the saltation matrix -I of this wall:
    [[-1, -dt], [0, -(1 - friction dt)]] (Leine & Nijmeijer, *Dynamics and Bifurcations of Non-Smooth Mechanical Systems*, 2004).

    **Arguments**

    - `horizon`: number of steps H, at least 2.
    - `goal`, `start`, `wall`: positions in m.
    - `friction`: friction coefficient, per second.
    - `dt`: seconds per step.

    **Raises:** `ValueError` if `horizon` is below 2, or if `start` is behind the wall.
    """

    horizon: int = eqx.field(static=True, default=100)
    _: KW_ONLY
    goal: Parameter = parameter(0.5)
    start: Parameter = parameter(0.0)
    wall: Parameter = parameter(-1.0)
    friction: Parameter = parameter(10.0)
    dt: Parameter = parameter(0.01)
    state_size: int = eqx.field(static=True, default=4, init=False)
    action_size: int = eqx.field(static=True, default=1, init=False)

    def __check_init__(self):
        if self.horizon < 2:
            raise ValueError(
                f"OneBounce needs a horizon of at least 2 steps, one to throw and one to score, got {self.horizon}."
            )
        if not any(isinstance(x, Tracer) for x in (self.start, self.wall)) and self.start < self.wall:
            raise ValueError(
                f"start must not be behind the wall at {self.wall}, got {self.start}; pass a start of at least {self.wall}."
            )

    @property
    def bounds(self):
        return (self.wall, -math.inf, self.wall, self.goal), (math.inf, math.inf, self.wall, self.goal)

    def step(self, carry, state, action, t, *, key=None):
        del key
        (x, v, wall, goal), (dt, friction) = state, in_dtype((self.dt, self.friction), state.dtype)
        v = jnp.where(jnp.asarray(t) == 0, 10 * (action[0] - 2), v)
        x, v = x + dt * v, v - dt * friction * v
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
