"""MuJoCo models as tasks whose gradients are MJX's, and three pendulums to swing up.

Apart from the other tasks because it imports MuJoCo and its JAX half, which nothing else needs: `import awmkit.mjx`.
"""
# MuJoCo's compiled classes come without stubs.
# pyright: reportAttributeAccessIssue=false

import copy
import os
from collections.abc import Callable
from importlib.resources import files

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray, Scalar

from .._dynamics import AbstractTask
from .._reward import check_reward, Reward, with_next_state
from ._gymnasium_bodies import BODIES, Uniform

try:
    import mujoco
    from mujoco import mjtIntegrator, mjx
except ImportError as error:
    raise ImportError(f"awmkit.mjx needs MuJoCo and MJX ({error}); pip install mujoco mujoco-mjx, of one version.") from error

_INTEGRATORS = (mjtIntegrator.mjINT_EULER, mjtIntegrator.mjINT_RK4, mjtIntegrator.mjINT_IMPLICITFAST)


class MJXTask(AbstractTask):
    """A MuJoCo model (MJCF) as a task, stepped and differentiated by MJX.

    The state is (qpos, qvel, act), flat, and all that MuJoCo derives from it is rebuilt in each step; the carry is the
    constraint solver's warm start. An action in [-1, 1] is mapped linearly onto each actuator's `ctrlrange`; beyond it MuJoCo
    clamps, without gradient. Physics is computed in JAX's default precision: switch on `jax_enable_x64` for float64.

    Reverse mode cannot pass the `lax.while_loop` in which MJX iterates its constraint solver
    (github.com/google-deepmind/mujoco/issues/2259). A model without constraint rows (contacts, joint limits, equalities,
    dry friction) never enters it; any other needs `iterations=1`, which MJX writes without a loop, or `forward_only=True`.
    The gradient is then the exact derivative of what one iteration computes, not of the converged solution.

    ```python
    task = MJXTask("arm.xml", reward=lambda state, action, t: -state[0] ** 2, horizon=100, frame_skip=5)
    value, grads = unroll_grad(task, policy, task.reset(key), 100, reward=task.reward)
    ```

    Gradients with respect to the physics go through `task.model`, say `eqx.tree_at(lambda t: t.model.body_mass, task, masses)`;
    what MuJoCo's compiler has derived from the parameter (such as `dof_invweight0` from masses) does not follow.

    **Arguments**

    - `model`: a `mujoco.MjModel`, MJCF as a string, or the path of an XML file. It is not changed.
    - `reward`: `reward(state, action, t) -> scalar`, or `reward(state, action, t, next_state)`.
    - `horizon`: H, steps an episode. There is no early termination.
    - `frame_skip`: how many of MuJoCo's time steps make one step, under a constant action.
    - `reset`: `reset(key) -> state`, shape (nq + nv + na,); by default always MuJoCo's own `qpos0`, at rest.
    - `integrator`, `iterations`: in place of the model's own: a `mujoco.mjtIntegrator` (Euler, implicitfast or RK4, which takes
      three times as long to compile), and how many iterations the constraint solver may take.
    - `forward_only`: accept a model for values and forward mode alone; its reverse mode raises JAX's own error.
    - `rods`: `rods(state) -> (n+1, 2)`, the hinge and the ends of a planar chain of rods in metres, for drawing.

    **Raises:** `ValueError` for a model that cannot be read, that MJX does not support, that has actuators without limits, or
    that cannot be differentiated as asked; and for arguments out of range.
    """

    model: mjx.Model
    rods: Callable[..., Array] | None
    dt: float = eqx.field(static=True)
    frame_skip: int = eqx.field(static=True)
    horizon: int = eqx.field(static=True)
    state_size: int = eqx.field(static=True)
    action_size: int = eqx.field(static=True)
    _reward: Reward
    _reset: Callable[..., Array] | None

    def __init__(
        self,
        model: mujoco.MjModel | str | os.PathLike,
        reward: Reward,
        *,
        horizon: int,
        frame_skip: int = 1,
        reset: Callable[[PRNGKeyArray], Float[Array, " S"]] | None = None,
        integrator: mjtIntegrator | None = None,
        iterations: int | None = None,
        forward_only: bool = False,
        rods: Callable[[Float[Array, " S"]], Float[Array, "n 2"]] | None = None,
    ):
        _check_counts(horizon=horizon, frame_skip=frame_skip, iterations=iterations)
        check_reward(reward)
        model = copy.copy(model) if isinstance(model, mujoco.MjModel) else _read(model)
        model.opt.integrator = model.opt.integrator if integrator is None else integrator
        model.opt.iterations = model.opt.iterations if iterations is None else iterations
        _check_model(model)
        self.model = _put(model)
        if not forward_only:
            _check_reverse(model, self.model)
        self.dt = model.opt.timestep * frame_skip
        self.frame_skip, self.horizon = frame_skip, horizon
        self.state_size, self.action_size = model.nq + model.nv + model.na, model.nu
        self._reward, self._reset, self.rods = reward, reset, rods

    @classmethod
    def from_gymnasium(
        cls,
        id: str,
        *,
        horizon: int = 100,
        integrator: mjtIntegrator | None = None,
        iterations: int | None = None,
        forward_only: bool = False,
    ) -> "MJXTask":
        """One of Gymnasium's own MuJoCo environments: its MJCF, frame skip, distribution of initial states and reward.

        The state is (qpos, qvel) rather than Gymnasium's observation, and the reward a JAX function of the whole transition. With the
        model's own settings both equal Gymnasium's to 1e-9; rewards that read places do so to 1e-5, since Gymnasium takes
        them from the last stage of RK4. An episode always lasts `horizon` steps: where Gymnasium ends it, here only the reward
        for being healthy stops, a step function without gradient (the whole reward of InvertedPendulum).

        All six have constraint rows and ask for 100 solver iterations, so that one must choose: `iterations=1` for gradients,
        `forward_only=True` for Gymnasium's own physics. All but HalfCheetah ask for RK4; Euler compiles several times faster.
        Over 50 steps of random actions one iteration moved positions (m, rad) by 0.11 (HalfCheetah), 0.04 (InvertedPendulum,
        at its stop), 0.005 (Hopper), and not where no row was active; Euler by 0.07 at most, but 4 in a double pendulum's fall.

        **Arguments**

        - `id`: "InvertedPendulum-v5", "InvertedDoublePendulum-v5", "Reacher-v5", "Swimmer-v5", "Hopper-v5", "HalfCheetah-v5".
        - the rest as for `awmkit.mjx.MJXTask`.

        **Raises:** `ValueError` as the class does, and for another `id`.
        """
        if id not in BODIES:
            raise ValueError(
                f"There is no Gymnasium body {id!r} here; use one of {', '.join(BODIES)}, or MJXTask with its MJCF."
            )
        body = BODIES[id]
        model = _read(str(files("gymnasium") / "envs" / "mujoco" / "assets" / body.file))
        return cls(
            model,
            body.reward(model.opt.timestep * body.frame_skip),
            horizon=horizon,
            frame_skip=body.frame_skip,
            reset=body.reset(tuple(model.qpos0.tolist())),
            integrator=integrator,
            iterations=iterations,
            forward_only=forward_only,
        )

    def reward(self, state, action, t, next_state=None):
        return with_next_state(self._reward)(state, action, t, next_state)

    def reset(self, key):
        if self._reset is not None:
            return self._reset(key)
        return jnp.zeros(self.state_size).at[: self.model.nq].set(self.model.qpos0)

    def init(self, state, horizon):
        del state, horizon
        return jnp.zeros(self.model.nv)

    def step(self, carry, state, action, t, *, key=None):
        del t, key
        with jax.numpy_dtype_promotion("standard"):  # MJX promotes implicitly.
            warm, after = self._advance(carry, state.astype(float), action.astype(float))
        return warm, after.astype(state.dtype)

    def _advance(self, warm: Array, state: Array, action: Array) -> tuple[Array, Array]:
        """`frame_skip` of MuJoCo's steps. The data is rebuilt in each, since a loop over `mjx.Data` changes dtypes in x64."""
        model = jax.tree.map(lambda x: x.astype(float) if eqx.is_inexact_array(x) else x, self.model)
        low, high = model.actuator_ctrlrange.T
        data = mjx.make_data(model).replace(ctrl=low + (action + 1) / 2 * (high - low))
        ends = (model.nq, model.nq + model.nv)

        def substep(loop, _):
            warm, state = loop
            qpos, qvel, act = jnp.split(state, ends)
            after = mjx.step(model, data.replace(qpos=qpos, qvel=qvel, act=act, qacc_warmstart=warm))
            return (after.qacc_warmstart, jnp.concatenate([after.qpos, after.qvel, after.act])), None

        # Reverse mode then keeps states only: a hundredth of the memory, and no slower.
        substep = jax.checkpoint(substep, prevent_cse=False)
        return lax.scan(substep, (warm, state), length=self.frame_skip)[0]


def pendulum(
    horizon: int = 100, *, torque: float = 3.0, frame_skip: int = 10, integrator: mjtIntegrator = mjtIntegrator.mjINT_EULER
) -> MJXTask:
    """Swing up 1 kg on a massless rod of 1 m; the motor holds a third of its weight, so that it takes several swings.

    State (angle from hanging, speed). A step of 0.05 s is `frame_skip` steps of MuJoCo. r(s_t, a_t) = the tip's height, from -1
    hanging to 1 upright, minus 0.001 w^2 and 0.01 |a|^2; averaged over the episode. Starts within 0.1 of the hanging rest.

    **Arguments:** `horizon`: H. `torque`: what an action of 1 means, in N m. `frame_skip`, `integrator`: as for `MJXTask`.
    """
    return _swing_up(_rod(), (1.0,), (torque,), horizon=horizon, frame_skip=frame_skip, integrator=integrator)


def cartpole(
    horizon: int = 100, *, force: float = 5.0, frame_skip: int = 10, integrator: mjtIntegrator = mjtIntegrator.mjINT_EULER
) -> MJXTask:
    """Swing up 0.2 kg on a massless rod of 0.5 m by moving the cart of 1 kg that it hangs from, on an endless rail.

    State (position, angle from hanging, and their speeds). Steps, reward and start are those of `pendulum`, and 0.05 x^2
    keeps the cart near the middle.

    **Arguments:** `horizon`: H. `force`: what an action of 1 means, in N. `frame_skip`, `integrator`: as for `MJXTask`.
    """
    cart = f'<body><joint name="0" type="slide" axis="1 0 0"/>{_POINT.format(length=0, mass=1)}{_rod("1", 0.5, 0.2)}</body>'
    return _swing_up(cart, (0.5,), (force,), horizon=horizon, frame_skip=frame_skip, integrator=integrator)


def double_pendulum(
    horizon: int = 100, *, torque: float = 5.0, frame_skip: int = 10, integrator: mjtIntegrator = mjtIntegrator.mjINT_EULER
) -> MJXTask:
    """`awmkit.tasks.DrivenDoublePendulum` in MuJoCo: the same masses, lengths, motors, steps and reward.

    State (th1, th2 - th1, w1, w2 - w1): MuJoCo's second angle is relative to the first rod. Starts within 0.1 of the hanging
    rest. Over 50 driven steps from there ten Euler steps of 5 ms, the default, stay within 0.05 (rad, rad/s) of the ODE, and
    four RK4 steps within 1e-5.

    **Arguments:** `horizon`: H. `torque`: what an action of 1 means at either joint, in N m. `frame_skip`, `integrator`: as for
    `MJXTask`.
    """
    rods = _rod("0", inner=_rod("1", below=1.0))
    return _swing_up(rods, (1.0, 1.0), (torque, torque), horizon=horizon, frame_skip=frame_skip, integrator=integrator)


_POINT = '<inertial pos="0 0 -{length}" mass="{mass}" diaginertia="1e-9 1e-9 1e-9"/>'  # MuJoCo refuses no inertia at all.
_WORLD = """<mujoco>
  <option timestep="{timestep}" gravity="0 0 -9.8"/>
  <worldbody>{bodies}</worldbody>
  <actuator>{motors}</actuator>
</mujoco>"""
_MOTOR = '<motor joint="{joint}" gear="{gear}" ctrlrange="-1 1"/>'


def _rod(name: str = "0", length: float = 1.0, mass: float = 1.0, *, below: float = 0.0, inner: str = "") -> str:
    """A massless rod with a point mass at its end, hinged `below` metres under its parent's hinge; positive towards x."""
    point = _POINT.format(length=length, mass=mass)
    return f'<body pos="0 0 -{below}"><joint name="{name}" type="hinge" axis="0 -1 0"/>{point}{inner}</body>'


def _swing_up(bodies: str, lengths: tuple[float, ...], gears: tuple[float, ...], *, horizon, frame_skip, integrator) -> MJXTask:
    _check_counts(horizon=horizon, frame_skip=frame_skip)
    motors = "".join(_MOTOR.format(joint=joint, gear=gear) for joint, gear in enumerate(gears))
    model = _read(_WORLD.format(timestep=0.05 / frame_skip, bodies=bodies, motors=motors))
    rods = _Rods(lengths)
    return MJXTask(
        model,
        _SwingUp(rods, horizon),
        horizon=horizon,
        frame_skip=frame_skip,
        reset=Uniform((0.0,) * model.nq, model.nv, spread=0.1),
        integrator=integrator,
        rods=rods,
    )


class _Rods(eqx.Module):
    """The hinge and the ends of a chain of rods, (x, z) in metres; before the angles, if anything, comes a cart's position."""

    lengths: tuple[float, ...]

    def __call__(self, state: Float[Array, " S"]) -> Float[Array, "n 2"]:
        cart, angles = jnp.split(state[: state.size // 2], [state.size // 2 - len(self.lengths)])
        angles = jnp.cumsum(angles)
        rods = jnp.asarray(self.lengths, state.dtype)[:, None] * jnp.stack([jnp.sin(angles), -jnp.cos(angles)], axis=1)
        hinge = jnp.stack([jnp.sum(cart), jnp.zeros_like(state[0])])
        return hinge + jnp.concatenate([jnp.zeros_like(rods[:1]), jnp.cumsum(rods, axis=0)])


class _SwingUp(eqx.Module):
    """The tip's height over the hinge, relative; speeds, actions and distance from the middle cost; averaged over H."""

    rods: _Rods
    horizon: int

    def __call__(self, state: Float[Array, " S"], action: Float[Array, " A"], t) -> Scalar:
        joints = self.rods(state)
        height = joints[-1, 1] / sum(self.rods.lengths)
        speeds = jnp.cumsum(state[-len(self.rods.lengths) :])
        costs = 0.001 * jnp.sum(speeds**2) + 0.01 * jnp.sum(action**2) + 0.05 * joints[0, 0] ** 2
        return (height - costs) / self.horizon


def _read(model: str | os.PathLike) -> mujoco.MjModel:
    try:
        if isinstance(model, str) and model.lstrip().startswith("<"):
            return mujoco.MjModel.from_xml_string(model)
        return mujoco.MjModel.from_xml_path(os.fspath(model))
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(
            f"MuJoCo cannot read the model ({reason}); pass a mujoco.MjModel, MJCF as a string, or the path of an XML file."
        ) from error


def _check_counts(**counts: int | None) -> None:
    for name, count in counts.items():
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
            raise ValueError(f"{name} is {count!r}; pass a Python int of at least 1.")


def _check_model(model: mujoco.MjModel) -> None:
    integrator = mjtIntegrator(model.opt.integrator)
    if integrator not in _INTEGRATORS:
        raise ValueError(
            f"The integrator is {integrator.name}, which MJX does not have; "
            "pass integrator=mujoco.mjtIntegrator.mjINT_EULER, mjINT_IMPLICITFAST or mjINT_RK4."
        )
    if model.nu == 0:
        raise ValueError("The model has no actuators; add an <actuator> to its MJCF.")
    if model.nhistory:
        raise ValueError(
            "The model has delayed actuators or sensors, whose history MJX ignores; remove the delays from its MJCF."
        )
    free = [model.actuator(i).name or str(i) for i in range(model.nu) if not model.actuator_ctrllimited[i]]
    if free:
        raise ValueError(
            f"No control range is given for actuator {', '.join(free)}; actions in [-1, 1] are mapped onto it, "
            'so write ctrllimited="true" ctrlrange="low high" in the MJCF.'
        )


def _put(model: mujoco.MjModel) -> mjx.Model:
    try:
        return mjx.put_model(model)
    except NotImplementedError as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"MJX does not support the model ({reason}); remove this feature from its MJCF.") from error


def _check_reverse(model: mujoco.MjModel, placed: mjx.Model) -> None:
    # The number of rows is static in MJX, but kept with what its JAX implementation alone has.
    rows = mjx.make_data(placed)._impl.nefc
    if rows and model.opt.iterations > 1:
        raise ValueError(
            f"The model has {rows} constraint rows (contacts, joint limits, equalities, dry friction) and "
            f"{model.opt.iterations} solver iterations, and reverse mode cannot pass MJX's lax.while_loop over them "
            "(github.com/google-deepmind/mujoco/issues/2259): pass iterations=1, or forward_only=True for values and jvp."
        )
