"""The double pendulum: a chaotic simulator, and the passive and driven tasks on it.

Apart from the other tasks because it brings coordinates of its own: angles, or points on circles.
"""

import abc
import math
from typing import ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Scalar

from .._dynamics import AbstractDynamics, AbstractTask
from ._ode import ode_step


class AbstractCoordinates(eqx.Module):
    """How (th1, w1, th2, w2) is written as a state."""

    size: eqx.AbstractClassVar[int]

    @abc.abstractmethod
    def encode(self, angles: Float[Array, " 4"]) -> Float[Array, " S"]:
        """The state at (th1, w1, th2, w2), radians and radians per second."""

    @abc.abstractmethod
    def decode(self, state: Float[Array, " S"]) -> Float[Array, " 4"]:
        """(th1, w1, th2, w2) at a state."""

    @abc.abstractmethod
    def heights(self, state: Float[Array, " S"]) -> Float[Array, " 2"]:
        """-cos th1 and -cos th2: how high each rod points, from -1 to 1."""


class Angles(AbstractCoordinates):
    """The state is (th1, w1, th2, w2). Distances jump by 2 pi where a rod goes over the top."""

    size: ClassVar[int] = 4

    def encode(self, angles):
        return angles

    def decode(self, state):
        return state

    def heights(self, state):
        return -jnp.cos(state[::2])


class Circles(AbstractCoordinates):
    """The state is (sin th1, cos th1, sin th2, cos th2, w1 / 10, w2 / 10): what a model learns well, and free of jumps."""

    size: ClassVar[int] = 6

    def encode(self, angles):
        (th1, w1, th2, w2) = angles
        return jnp.stack([jnp.sin(th1), jnp.cos(th1), jnp.sin(th2), jnp.cos(th2), w1 / 10, w2 / 10])

    def decode(self, state):
        sin1, cos1, sin2, cos2, w1, w2 = state
        return jnp.stack([jnp.arctan2(sin1, cos1), 10 * w1, jnp.arctan2(sin2, cos2), 10 * w2])

    def heights(self, state):
        return -state[1:4:2]


class DoublePendulum(AbstractDynamics):
    """Two point masses on massless, frictionless rods; angles from the downward vertical; a motor at each joint.

    Lagrange's equations, M(th) th'' = f(th, w) + (tau1 - tau2, tau2), with the determinant of M written without
    cancellation, m2 l1^2 l2^2 (m1 + m2 sin^2(th1 - th2)). Goldstein, *Classical Mechanics*, ch. 1, ex. 22.

    **Arguments**

    - `coordinates`: `Angles()` or `Circles()`.
    - `torque`: what an action of 1 means at either joint, in N m.
    - `dt`, `substeps`, `solver`: seconds a step; in how many equal steps of which diffrax solver.
    - `masses`, `lengths`, `gravity`: kg, m, m/s^2.
    """

    coordinates: AbstractCoordinates
    torque: float
    dt: float
    masses: tuple[float, float]
    lengths: tuple[float, float]
    gravity: float
    solver: diffrax.AbstractSolver
    substeps: int = eqx.field(static=True)
    state_size: int = eqx.field(static=True)
    action_size: int = eqx.field(static=True)

    def __init__(
        self,
        coordinates: AbstractCoordinates = Angles(),
        *,
        torque: float = 5.0,
        dt: float = 0.05,
        substeps: int = 2,
        solver: diffrax.AbstractSolver | None = None,
        masses: tuple[float, float] = (1.0, 1.0),
        lengths: tuple[float, float] = (1.0, 1.0),
        gravity: float = 9.8,
    ):
        self.coordinates = coordinates
        self.torque = torque
        self.dt = dt
        self.substeps = substeps
        self.solver = diffrax.Tsit5() if solver is None else solver
        self.masses, self.lengths, self.gravity = masses, lengths, gravity
        self.state_size = coordinates.size
        self.action_size = 2

    def init(self, state, horizon):
        del state, horizon

    def step(self, carry, state, action, t, *, key=None):
        del t, key
        angles = self.flow(self.coordinates.decode(state), self.torque * action)
        return carry, self.coordinates.encode(angles)

    def flow(self, angles: Float[Array, " 4"], torques: Float[Array, " 2"]) -> Float[Array, " 4"]:
        """(th1, w1, th2, w2) one `dt` later, under constant torques in N m."""
        return ode_step(
            lambda t, y, tau: self.field(y, tau), angles, torques, solver=self.solver, dt=self.dt, substeps=self.substeps
        )

    def field(self, angles: Float[Array, " 4"], torques: Float[Array, " 2"]) -> Float[Array, " 4"]:
        """(w1, w1', w2, w2'), radians per second and per second squared."""
        (th1, w1, th2, w2), (tau1, tau2) = angles, torques
        (m1, m2), (l1, l2), g = self.masses, self.lengths, self.gravity
        sin, cos = jnp.sin(th1 - th2), jnp.cos(th1 - th2)
        f1 = -m2 * l1 * l2 * w2**2 * sin - (m1 + m2) * g * l1 * jnp.sin(th1) + tau1 - tau2
        f2 = m2 * l1 * l2 * w1**2 * sin - m2 * g * l2 * jnp.sin(th2) + tau2
        a, b, d = (m1 + m2) * l1**2, m2 * l1 * l2 * cos, m2 * l2**2
        determinant = m2 * l1**2 * l2**2 * (m1 + m2 * sin**2)
        return jnp.stack([w1, (d * f1 - b * f2) / determinant, w2, (a * f2 - b * f1) / determinant])

    def rods(self, state: Float[Array, " S"]) -> Float[Array, "3 2"]:
        """Where the hinge and both masses are, (horizontal, vertical) in m: what a drawing needs."""
        th1, _, th2, _ = self.coordinates.decode(state)
        ends = jnp.stack([jnp.zeros(2, state.dtype)] + [jnp.stack([jnp.sin(th), -jnp.cos(th)]) for th in (th1, th2)])
        return jnp.cumsum(jnp.array([0.0, *self.lengths], state.dtype)[:, None] * ends, axis=0)

    def energy(self, state: Float[Array, " S"]) -> Scalar:
        """Kinetic and potential energy in J, zero of the latter at the hinge. Constant without torque."""
        th1, w1, th2, w2 = self.coordinates.decode(state)
        (m1, m2), (l1, l2), g = self.masses, self.lengths, self.gravity
        kinetic = 0.5 * (m1 + m2) * (l1 * w1) ** 2 + 0.5 * m2 * (l2 * w2) ** 2
        kinetic += m2 * l1 * l2 * w1 * w2 * jnp.cos(th1 - th2)
        return kinetic - (m1 + m2) * g * l1 * jnp.cos(th1) - m2 * g * l2 * jnp.cos(th2)


class PassiveDoublePendulum(AbstractTask):
    """Release the pendulum so that it ends in a goal state: the paper's task, in which only the first action acts.

    The first action sets th1 = pi a_0, at rest and with th2 as the goal's own release has it; the later ones do nothing. The
    only reward is at the last step, t = H-1: minus the mean square distance of s_{H-1} to the goal, which the release
    `release` reaches exactly.

    **Arguments**

    - `horizon`: H; the goal depends on it.
    - `release`: the goal's (th1, th2) at t = 0, in radians.
    - `pendulum`: the simulator, and with it the coordinates in which distance is measured. Its motors stay off.
    """

    pendulum: DoublePendulum
    goal: Float[Array, " S"]
    start: Float[Array, " S"]
    horizon: int = eqx.field(static=True)
    state_size: int = eqx.field(static=True)
    action_size: int = eqx.field(static=True)

    def __init__(
        self,
        horizon: int = 100,
        release: tuple[float, float] = (0.6 * math.pi, 0.5 * math.pi),
        *,
        pendulum: DoublePendulum = DoublePendulum(),
    ):
        if horizon < 2:
            raise ValueError(f"The horizon is {horizon}; a release and a reward for where it leads need at least 2 steps.")
        self.pendulum = pendulum
        self.horizon = horizon
        self.state_size = pendulum.state_size
        self.action_size = 1
        at_rest = lambda th1: pendulum.coordinates.encode(jnp.array([th1, 0.0, release[1], 0.0]))
        self.start = at_rest(0.0)
        self.goal = _drift(pendulum, at_rest(release[0]), jnp.asarray(horizon - 1))

    @property
    def dt(self) -> float:
        """Seconds a step."""
        return self.pendulum.dt

    def rods(self, state: Float[Array, " S"]) -> Float[Array, "3 2"]:
        """As `awmkit.tasks.DoublePendulum` has them."""
        return self.pendulum.rods(state)

    def init(self, state, horizon):
        return self.pendulum.init(state, horizon)

    def step(self, carry, state, action, t, *, key=None):
        th1, w1, th2, w2 = self.pendulum.coordinates.decode(state)
        th1 = jnp.where(jnp.asarray(t) == 0, math.pi * action[0], th1)
        released = self.pendulum.coordinates.encode(jnp.stack([th1, w1, th2, w2]))
        return self.pendulum.step(carry, released, jnp.zeros(2, state.dtype), t, key=key)

    def reward(self, state, action, t):
        del action
        return jnp.where(jnp.asarray(t) == self.horizon - 1, -jnp.mean((state - self.goal) ** 2), 0)

    def reset(self, key):
        del key
        return self.start


@eqx.filter_jit
def _drift(pendulum: DoublePendulum, state: Array, steps: Int[Array, ""]) -> Array:
    """The state after `steps` without torque; the number is traced, so that tasks of all horizons share one program."""
    off = jnp.zeros(2, state.dtype)
    return lax.fori_loop(0, steps, lambda t, state: pendulum.step(None, state, off, t)[1], state)


class DrivenDoublePendulum(AbstractTask):
    """Swing both rods up with a motor at each joint.

    r(s_t, a_t) = the tip's height, from -1 hanging to 1 upright, minus 0.01 |w|^2 / 10 and 0.01 |a|^2; averaged over the
    episode. Starts near the hanging rest, angles and speeds uniform within `spread`.

    **Arguments**

    - `horizon`: H.
    - `spread`: radians, and radians per second.
    - `pendulum`: the simulator. Motors that push the way the joints turn reach 40 rad/s in 100 steps of 0.05 s, which 8
      substeps follow to 1e-3 of the energy, and at which 2 diverge.
    """

    pendulum: DoublePendulum
    spread: float
    horizon: int = eqx.field(static=True)
    state_size: int = eqx.field(static=True)
    action_size: int = eqx.field(static=True)

    def __init__(self, horizon: int = 100, *, spread: float = 0.1, pendulum: DoublePendulum = DoublePendulum(substeps=8)):
        self.pendulum = pendulum
        self.spread = spread
        self.horizon = horizon
        self.state_size = pendulum.state_size
        self.action_size = 2

    @property
    def dt(self) -> float:
        """Seconds a step."""
        return self.pendulum.dt

    def rods(self, state: Float[Array, " S"]) -> Float[Array, "3 2"]:
        """As `awmkit.tasks.DoublePendulum` has them."""
        return self.pendulum.rods(state)

    def init(self, state, horizon):
        return self.pendulum.init(state, horizon)

    def step(self, carry, state, action, t, *, key=None):
        return self.pendulum.step(carry, state, action, t, key=key)

    def reward(self, state, action, t):
        del t
        lengths = jnp.asarray(self.pendulum.lengths)
        height = lengths @ self.pendulum.coordinates.heights(state) / jnp.sum(lengths)
        _, w1, _, w2 = self.pendulum.coordinates.decode(state)
        return (height - 0.001 * (w1**2 + w2**2) - 0.01 * jnp.sum(action**2)) / self.horizon

    def reset(self, key):
        angles = jax.random.uniform(key, (4,), minval=-self.spread, maxval=self.spread)
        return self.pendulum.coordinates.encode(angles)
