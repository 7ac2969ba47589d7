"""The double pendulum, a chaotic simulator, with a passive and a driven task."""

import abc
import math
from dataclasses import KW_ONLY
from typing import ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Scalar

from .._checks import check_shapes
from .._dynamics import AbstractDynamics, AbstractTask
from .._norms import scale_of
from ._ode import as_parameter, in_dtype, ode_step, Parameter, parameter


class AbstractCoordinates(eqx.Module):
    """A representation of (th1, w1, th2, w2) as a state: angles in radians, angular velocities in radians per second."""

    size: eqx.AbstractClassVar[int]

    @abc.abstractmethod
    def encode(self, angles: Float[Array, " 4"]) -> Float[Array, " S"]:
        """Return the state, shape (S,), for (th1, w1, th2, w2)."""

    @abc.abstractmethod
    def decode(self, state: Float[Array, " S"]) -> Float[Array, " 4"]:
        """Return (th1, w1, th2, w2) for a state."""

    @abc.abstractmethod
    def heights(self, state: Float[Array, " S"]) -> Float[Array, " 2"]:
        """Return -cos th1 and -cos th2, the heights of the rods' ends above their joints, from -1 (down) to 1 (up)."""


class Angles(AbstractCoordinates):
    """The state is (th1, w1, th2, w2), in radians and radians per second. Angles are not wrapped to [-pi, pi]."""

    size: ClassVar[int] = 4

    def encode(self, angles):
        check_shapes("Angles.encode", angles=(angles, (4,)))
        return angles

    def decode(self, state):
        check_shapes("Angles.decode", state=(state, (self.size,)))
        return state

    def heights(self, state):
        check_shapes("Angles.heights", state=(state, (self.size,)))
        return -jnp.cos(state[::2])


class Circles(AbstractCoordinates):
    """The state is (sin th1, cos th1, sin th2, cos th2, w1 / 10, w2 / 10). Continuous and of size 1, so models learn it well."""

    size: ClassVar[int] = 6

    def encode(self, angles):
        check_shapes("Circles.encode", angles=(angles, (4,)))
        (th1, w1, th2, w2) = angles
        return jnp.stack([jnp.sin(th1), jnp.cos(th1), jnp.sin(th2), jnp.cos(th2), w1 / 10, w2 / 10])

    def decode(self, state):
        check_shapes("Circles.decode", state=(state, (self.size,)))
        sin1, cos1, sin2, cos2, w1, w2 = state
        return jnp.stack([_angle(sin1, cos1), 10 * w1, _angle(sin2, cos2), 10 * w2])

    def heights(self, state):
        check_shapes("Circles.heights", state=(state, (self.size,)))
        return -state[1:4:2]


def _angle(sin, cos):
    """arctan2 with a finite derivative, also at the origin, which is no angle but which a model may predict."""
    origin = (sin == 0) & (cos == 0)
    scale = jnp.where(origin, 1, scale_of(jnp.stack([sin, cos]))[0])
    return jnp.arctan2(sin / scale, jnp.where(origin, 1, cos / scale))


def _pair(parameters) -> tuple[Parameter, Parameter]:
    first, second = map(as_parameter, parameters)
    return first, second


class DoublePendulum(AbstractDynamics):
    """Two point masses on massless, frictionless rods, with a motor at each joint. Angles are from the downward vertical.

        M(th) th'' = f(th, w) + (tau1 - tau2, tau2)          (Goldstein, *Classical Mechanics*, ch. 1, ex. 22)

    This is the dynamics inside `PassiveDoublePendulum` and `DrivenDoublePendulum`; use it alone where no reward is needed.

    - State: (th1, w1, th2, w2) or another representation; see `coordinates`.
    - Action: the torques (tau1, tau2), in units of `torque`.

    **Arguments**

    - `coordinates`: `Angles()`, or `Circles()` for sines and cosines.
    - `torque`: the torque of an action of 1 at either joint, in N m.
    - `dt`: seconds per step.
    - `substeps`: solver steps per step. Increase it for fast motion.
    - `solver`: a diffrax solver, `diffrax.Tsit5()` by default.
    - `masses`, `lengths`: of the two masses and rods, in kg and m.
    - `gravity`: in m/s^2.
    """

    coordinates: AbstractCoordinates = Angles()
    _: KW_ONLY
    torque: Parameter = parameter(5.0)
    dt: Parameter = parameter(0.05)
    masses: tuple[Parameter, Parameter] = eqx.field(default=(1.0, 1.0), converter=_pair)
    lengths: tuple[Parameter, Parameter] = eqx.field(default=(1.0, 1.0), converter=_pair)
    gravity: Parameter = parameter(9.8)
    solver: diffrax.AbstractSolver = diffrax.Tsit5()
    substeps: int = eqx.field(static=True, default=2)
    state_size: int = eqx.field(static=True, init=False)
    action_size: int = eqx.field(static=True, default=2, init=False)

    def __post_init__(self):
        self.state_size = self.coordinates.size

    def step(self, carry, state, action, t, *, key=None):
        del t, key
        angles = self.flow(self.coordinates.decode(state), in_dtype(self.torque, action.dtype) * action)
        return carry, self.coordinates.encode(angles)

    def flow(self, angles: Float[Array, " 4"], torques: Float[Array, " 2"]) -> Float[Array, " 4"]:
        """Return (th1, w1, th2, w2) after `dt` under constant torques, in N m."""
        check_shapes("DoublePendulum.flow", angles=(angles, (4,)), torques=(torques, (2,)))
        field = _scalar_field(*in_dtype((self.masses, self.lengths, self.gravity), angles.dtype))
        # Nothing is stacked between the stages of a tuple of scalars, so XLA compiles a substep into a few kernels.
        moved = ode_step(field, tuple(angles), tuple(torques), solver=self.solver, dt=self.dt, substeps=self.substeps)
        return jnp.stack(moved)

    def field(self, angles: Float[Array, " 4"], torques: Float[Array, " 2"]) -> Float[Array, " 4"]:
        """Return the time derivatives (w1, w1', w2, w2') under torques in N m."""
        check_shapes("DoublePendulum.field", angles=(angles, (4,)), torques=(torques, (2,)))
        field = _scalar_field(*in_dtype((self.masses, self.lengths, self.gravity), angles.dtype))
        return jnp.stack(field(0.0, tuple(angles), tuple(torques)))

    def rods(self, state: Float[Array, " S"]) -> Float[Array, "3 2"]:
        """Return the positions (horizontal, vertical) of the pivot and both masses, in m, for drawings."""
        th1, _, th2, _ = self.coordinates.decode(state)
        ends = jnp.stack([jnp.zeros(2, state.dtype)] + [jnp.stack([jnp.sin(th), -jnp.cos(th)]) for th in (th1, th2)])
        return jnp.cumsum(jnp.array([0.0, *self.lengths], state.dtype)[:, None] * ends, axis=0)

    def energy(self, state: Float[Array, " S"]) -> Scalar:
        """Return kinetic plus potential energy in J, which is constant without torque. Potential energy is 0 at the pivot."""
        th1, w1, th2, w2 = self.coordinates.decode(state)
        (m1, m2), (l1, l2), g = in_dtype((self.masses, self.lengths, self.gravity), th1.dtype)
        kinetic = 0.5 * (m1 + m2) * (l1 * w1) ** 2 + 0.5 * m2 * (l2 * w2) ** 2
        kinetic += m2 * l1 * l2 * w1 * w2 * jnp.cos(th1 - th2)
        return kinetic - (m1 + m2) * g * l1 * jnp.cos(th1) - m2 * g * l2 * jnp.cos(th2)


def _scalar_field(masses, lengths, gravity):
    """Return the vector field on tuples of scalars, a function of t, (th1, w1, th2, w2) and (tau1, tau2), in N m."""
    (m1, m2), (l1, l2), g = masses, lengths, gravity
    coupling, weight1, weight2 = m2 * l1 * l2, (m1 + m2) * g * l1, m2 * g * l2
    inertia1, inertia2, least = (m1 + m2) * l1**2, m2 * l2**2, m1 * m2 * (l1 * l2) ** 2

    def field(t, angles, torques):
        del t
        (th1, w1, th2, w2), (tau1, tau2) = angles, torques
        sin1, cos1, sin2, cos2 = jnp.sin(th1), jnp.cos(th1), jnp.sin(th2), jnp.cos(th2)
        # The coupling times the sine and cosine of th1 - th2.
        s, c = coupling * (sin1 * cos2 - cos1 * sin2), coupling * (cos1 * cos2 + sin1 * sin2)
        f1 = tau1 - tau2 - s * w2**2 - weight1 * sin1
        f2 = tau2 + s * w1**2 - weight2 * sin2
        # The determinant is inertia1 * inertia2 - c^2, written without cancellation.
        inverse = 1 / (least + s**2)
        return w1, (inertia2 * f1 - c * f2) * inverse, w2, (inertia1 * f2 - c * f1) * inverse

    return field


class AbstractPendulumTask(AbstractTask):
    """A task with a `DoublePendulum` inside."""

    pendulum: eqx.AbstractVar[DoublePendulum]

    @property
    def dt(self) -> Parameter:
        """Seconds per step."""
        return self.pendulum.dt

    def rods(self, state: Float[Array, " S"]) -> Float[Array, "3 2"]:
        """Return the positions of the pivot and both masses, in m; see `DoublePendulum.rods`."""
        return self.pendulum.rods(state)


class PassiveDoublePendulum(AbstractPendulumTask):
    """Release the pendulum so that it reaches a goal state at the end (Ma et al., 2024). Only the first action has an effect.

    The first action sets th1 = pi a_0. The goal is the state s_{H-1} that the release at the angles `release` leads to, so the
    optimal first action is release[0] / pi, with a return of 0.

    - State: the state of `pendulum`, by default (th1, w1, th2, w2) in radians and radians per second.
    - Action: one entry, used at the first step only.
    - Reward: minus the mean square difference of the state and the goal at the last step, t = H-1, and 0 before.
    - Start: at rest, with th1 = 0 and th2 = release[1].

    **Arguments**

    - `horizon`: number of steps H, at least 2. The goal depends on it.
    - `release`: (th1, th2) from which the goal is reached, in radians.
    - `pendulum`: the simulator; its motors are off. The reward uses its coordinates: with `Angles()` the distance jumps by 2 pi
      when a rod goes over the top, with `Circles()` it is continuous.

    **Raises:** `ValueError` if `horizon` is below 2.
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
            raise ValueError(
                f"PassiveDoublePendulum needs a horizon of at least 2 steps, one to release and one to score, got {horizon}."
            )
        self.pendulum = pendulum
        self.horizon = horizon
        self.state_size = pendulum.state_size
        self.action_size = 1
        at_rest = lambda th1: pendulum.coordinates.encode(jnp.array([th1, 0.0, release[1], 0.0]))
        self.start = at_rest(0.0)
        self.goal = _drift(pendulum, at_rest(release[0]), jnp.asarray(horizon - 1))

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
    """Return the state after `steps` without torque. The number is traced, so tasks of all horizons share one program."""
    off = jnp.zeros(2, state.dtype)
    return lax.fori_loop(0, steps, lambda t, state: pendulum.step(None, state, off, t)[1], state)


class DrivenDoublePendulum(AbstractPendulumTask):
    """Swing both rods up and hold them there, with a motor at each joint.

    - State: the state of `pendulum`, by default (th1, w1, th2, w2) in radians and radians per second.
    - Action: (tau1, tau2), the torques at the joints in units of 5 N m.
    - Reward: (h - 0.001 (w1^2 + w2^2) - 0.01 |a|^2) / H, where h is the height of the tip, from -1 hanging to 1 upright.
    - Start: near the hanging rest, with angles and angular velocities uniform in [-spread, spread].

    **Arguments**

    - `horizon`: number of steps H.
    - `spread`: spread of the start, in radians and radians per second.
    - `pendulum`: the simulator. Keep at least the default 8 substeps: motors that always push in the direction of motion reach
      40 rad/s within 100 steps, where 8 substeps keep the energy to a relative error of 1e-3 and 2 substeps diverge.
    """

    horizon: int = eqx.field(static=True, default=100)
    _: KW_ONLY
    pendulum: DoublePendulum = DoublePendulum(substeps=8)
    spread: Parameter = parameter(0.1)
    state_size: int = eqx.field(static=True, init=False)
    action_size: int = eqx.field(static=True, default=2, init=False)

    def __post_init__(self):
        self.state_size = self.pendulum.state_size

    def step(self, carry, state, action, t, *, key=None):
        return self.pendulum.step(carry, state, action, t, key=key)

    def reward(self, state, action, t):
        del t
        lengths = jnp.asarray(self.pendulum.lengths, state.dtype)
        height = lengths @ self.pendulum.coordinates.heights(state) / jnp.sum(lengths)
        _, w1, _, w2 = self.pendulum.coordinates.decode(state)
        return (height - 0.001 * (w1**2 + w2**2) - 0.01 * jnp.sum(action**2)) / self.horizon

    def reset(self, key):
        angles = jax.random.uniform(key, (4,), minval=-self.spread, maxval=self.spread)
        return self.pendulum.coordinates.encode(angles)
