"""Three pendulums to swing up: the pendulum, the cart-pole and the double pendulum."""
# MuJoCo's compiled classes come without stubs.
# pyright: reportAttributeAccessIssue=false

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Scalar
from mujoco import mjtIntegrator

from .._checks import check_counts
from ._gymnasium_bodies import Uniform
from ._model import read_model
from ._task import MJXTask


def pendulum(
    horizon: int = 100, *, torque: float = 3.0, frame_skip: int = 10, integrator: mjtIntegrator = mjtIntegrator.mjINT_EULER
) -> MJXTask:
    """Swing up a mass of 1 kg on a massless rod of 1 m. The motor is too weak to lift it in one swing.

    The state is the angle from hanging and its speed. A step takes 0.05 s. The reward is
    r_t = (height - 0.001 w^2 - 0.01 |a|^2) / H, where the height of the tip is -1 hanging and 1 upright. Episodes start within
    0.1 of hanging at rest.

    **Arguments**

    - `horizon`: the number of steps of an episode, H.
    - `torque`: the torque of an action of 1, in N m. Holding the rod level takes 9.8 N m.
    - `frame_skip`: the number of MuJoCo's time steps in a step of 0.05 s.
    - `integrator`: as for `awmkit.mjx.MJXTask`.

    **Raises:** `ValueError` if `horizon` or `frame_skip` is below 1.
    """
    return _swing_up(_rod(), (1.0,), (torque,), horizon=horizon, frame_skip=frame_skip, integrator=integrator)


def cartpole(
    horizon: int = 100, *, force: float = 5.0, frame_skip: int = 10, integrator: mjtIntegrator = mjtIntegrator.mjINT_EULER
) -> MJXTask:
    """Swing up a mass of 0.2 kg on a massless rod of 0.5 m by moving the cart of 1 kg that it hangs from.

    The state is the cart's position x, the angle from hanging, and their speeds. The rail has no ends. Steps, reward and initial
    states are those of `awmkit.mjx.pendulum`, and the reward has another cost, 0.05 x^2, that keeps the cart near the middle.

    **Arguments**

    - `horizon`: the number of steps of an episode, H.
    - `force`: the force of an action of 1, in N.
    - `frame_skip`: the number of MuJoCo's time steps in a step of 0.05 s.
    - `integrator`: as for `awmkit.mjx.MJXTask`.

    **Raises:** `ValueError` if `horizon` or `frame_skip` is below 1.
    """
    cart = f'<body><joint name="0" type="slide" axis="1 0 0"/>{_POINT.format(length=0, mass=1)}{_rod("1", 0.5, 0.2)}</body>'
    return _swing_up(cart, (0.5,), (force,), horizon=horizon, frame_skip=frame_skip, integrator=integrator)


def double_pendulum(
    horizon: int = 100, *, torque: float = 5.0, frame_skip: int = 10, integrator: mjtIntegrator = mjtIntegrator.mjINT_EULER
) -> MJXTask:
    """`awmkit.tasks.DrivenDoublePendulum` in MuJoCo, with the same masses, lengths, motors, steps and reward.

    The state is (th1, th2 - th1, w1, w2 - w1), because MuJoCo measures the second angle from the first rod. Episodes start within
    0.1 of hanging at rest. Over 50 driven steps, the default of ten Euler steps per step stays within 0.05 (rad, rad/s) of the
    solution of the ODE, and four RK4 steps per step stay within 1e-5.

    **Arguments**

    - `horizon`: the number of steps of an episode, H.
    - `torque`: the torque of an action of 1 at either joint, in N m.
    - `frame_skip`: the number of MuJoCo's time steps in a step of 0.05 s.
    - `integrator`: as for `awmkit.mjx.MJXTask`.

    **Raises:** `ValueError` if `horizon` or `frame_skip` is below 1.
    """
    rods = _rod("0", inner=_rod("1", below=1.0))
    return _swing_up(rods, (1.0, 1.0), (torque, torque), horizon=horizon, frame_skip=frame_skip, integrator=integrator)


_POINT = '<inertial pos="0 0 -{length}" mass="{mass}" diaginertia="1e-9 1e-9 1e-9"/>'  # MuJoCo refuses zero inertia.
_WORLD = """<mujoco>
  <option timestep="{timestep}" gravity="0 0 -9.8"/>
  <worldbody>{bodies}</worldbody>
  <actuator>{motors}</actuator>
</mujoco>"""
_MOTOR = '<motor joint="{joint}" gear="{gear}" ctrlrange="-1 1"/>'


def _rod(name: str = "0", length: float = 1.0, mass: float = 1.0, *, below: float = 0.0, inner: str = "") -> str:
    """A massless rod with a point mass at its end, hinged `below` metres under its parent's hinge. Angles are positive towards x."""
    point = _POINT.format(length=length, mass=mass)
    return f'<body pos="0 0 -{below}"><joint name="{name}" type="hinge" axis="0 -1 0"/>{point}{inner}</body>'


def _swing_up(bodies: str, lengths: tuple[float, ...], gears: tuple[float, ...], *, horizon, frame_skip, integrator) -> MJXTask:
    """The task of swinging up a chain of rods; each of `gears` is the strength of a motor on one joint, in order."""
    check_counts("MJXTask", horizon=horizon, frame_skip=frame_skip)
    motors = "".join(_MOTOR.format(joint=joint, gear=gear) for joint, gear in enumerate(gears))
    model = read_model(_WORLD.format(timestep=0.05 / frame_skip, bodies=bodies, motors=motors))
    rods = _Rods(lengths)
    return MJXTask(
        model,
        _SwingUpReward(rods, horizon),
        horizon=horizon,
        frame_skip=frame_skip,
        reset=Uniform((0.0,) * model.nq, model.nv, spread=0.1),
        integrator=integrator,
        rods=rods,
    )


class _Rods(eqx.Module):
    """The hinge and the ends of a chain of rods, (x, z) in metres. A cart's position comes before the angles if there is one."""

    lengths: tuple[float, ...]

    def __call__(self, state: Float[Array, " S"]) -> Float[Array, "n 2"]:
        cart, angles = jnp.split(state[: state.size // 2], [state.size // 2 - len(self.lengths)])
        angles = jnp.cumsum(angles)
        rods = jnp.asarray(self.lengths, state.dtype)[:, None] * jnp.stack([jnp.sin(angles), -jnp.cos(angles)], axis=1)
        hinge = jnp.stack([jnp.sum(cart), jnp.zeros_like(state[0])])
        return hinge + jnp.concatenate([jnp.zeros_like(rods[:1]), jnp.cumsum(rods, axis=0)])


class _SwingUpReward(eqx.Module):
    """The tip's height relative to the chain's length, minus the costs of speeds, actions and the hinge's distance from 0."""

    rods: _Rods
    horizon: int

    def __call__(self, state: Float[Array, " S"], action: Float[Array, " A"], t) -> Scalar:
        joints = self.rods(state)
        height = joints[-1, 1] / sum(self.rods.lengths)
        speeds = jnp.cumsum(state[-len(self.rods.lengths) :])
        costs = 0.001 * jnp.sum(speeds**2) + 0.01 * jnp.sum(action**2) + 0.05 * joints[0, 0] ** 2
        return (height - costs) / self.horizon
