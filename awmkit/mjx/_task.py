"""MuJoCo models as tasks, stepped and differentiated by MJX."""
# MuJoCo's compiled classes come without stubs.
# pyright: reportAttributeAccessIssue=false

import os
from collections.abc import Callable
from importlib.resources import files
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import mujoco
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray, ScalarLike
from mujoco import mjtCone, mjtDisableBit, mjtIntegrator, mjtSolver, mjx

from .._bounds import scale_to_bounds
from .._checks import check_counts, check_shapes, describe
from .._dynamics import AbstractTask
from .._reward import check_reward, Reward, with_next_state
from .._termination import check_termination
from .._types import Termination
from ..tasks._healthy import Healthy
from ._differences import warn_of_approximations
from ._forward_mode import by_forward_mode
from ._gymnasium_bodies import BODIES
from ._model import check_model, put_model, read_model, set_options
from ._step import forward, step


class MJXTask(AbstractTask):
    """A MuJoCo model (MJCF) as a task, stepped and differentiated by MJX.

    The state is (qpos, qvel, act) as one vector; each step computes everything else from it again. The carry is the warm start of
    the constraint solver, which has no gradient. Actions in [-1, 1] are scaled to each actuator's `ctrlrange`; MuJoCo clamps what
    lies outside, without gradient. MJX computes in JAX's default precision: set `jax_enable_x64` for float64.

    ```python
    task = MJXTask("arm.xml", reward=lambda state, action, t: -state[0] ** 2, horizon=100, frame_skip=5)
    value, grads = unroll_grad(task, policy, task.reset(key), 100, reward=task.reward)
    ```

    **Derivatives** are those of the physics that the model asks for: contacts, joint limits, equalities and dry friction, any
    number of solver iterations, pyramidal and elliptic cones, every integrator. Forward mode computes the Jacobian of a step, whose
    constraint solver is differentiated by the implicit function theorem. Reverse mode stores this Jacobian, of shape (S, S + A),
    and multiplies by its transpose. Every mode and order works (`jax.grad`, `jax.jvp`, `jax.hessian`), and each computes the whole
    Jacobian once. At a kink, such as the moment of first contact, the derivative is that of one side.

    **MuJoCo's own quantities.** `measure` appends what it reads from the `mjx.Data` of a state to the state vector, so that
    rewards, policies and world models can read it:

    ```python
    tip = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_SITE, "tip")
    task = MJXTask(
        model,
        reward=lambda state, action, t: -jnp.sum((state[-3:] - target) ** 2),
        measure=lambda data: data.site_xpos[tip],
        horizon=100,
    )
    ```

    The data are those of MuJoCo's `mj_forward`. Positions, velocities and their sensors belong to the state alone. Accelerations,
    forces, and sensors of them (touch, force, accelerometer) belong to the state and the controls of the step that led to it;
    after `reset` the controls are 0. What `measure` does not read is not computed. `complete` appends the same quantities to a
    vector (qpos, qvel, act). A step reads only (qpos, qvel, act) of its state.

    **What MJX leaves out.** MJX drops some features of a model without an error. The compiled model is checked field by field, and
    a feature that would move it differently is refused by name. Where MJX finds contacts by another algorithm than MuJoCo
    (those of boxes, meshes, cylinders or ellipsoids with anything but a plane), a warning says so.

    **Parameters of the physics.** Gradients with respect to them go through `task.model`, for example
    `eqx.tree_at(lambda t: t.model.body_mass, task, masses)`. The Jacobian has a column for each parameter that is differentiated,
    so differentiate only those that you need. What MuJoCo's compiler has derived from a parameter, such as `dof_invweight0` from
    the masses, does not change with it.

    **Arguments**

    - `model`: a `mujoco.MjModel`, MJCF as a string, or the path of an XML file. It is not modified.
    - `reward`: `reward(state, action, t) -> scalar`, or `reward(state, action, t, next_state) -> scalar`.
    - `horizon`: the largest number of steps of an episode, H.
    - `terminates`: `terminates(state, action, t, next_state)`, whether a step ends the episode, as for `awmkit.unroll`. By default
      episodes never end early.
    - `frame_skip`: the number of MuJoCo's time steps in one step, under a constant action.
    - `reset`: `reset(key) -> (qpos, qvel, act)`, shape (nq + nv + na,). By default every episode starts at rest in MuJoCo's `qpos0`.
    - `measure`: `measure(data) -> quantities`, shape (M,), from the `mjx.Data` of a state. The state has nq + nv + na + M entries.
    - `integrator`: a `mujoco.mjtIntegrator`: Euler, implicitfast or RK4.
    - `solver`: a `mujoco.mjtSolver`: Newton or CG. MJX has no PGS.
    - `iterations`: the largest number of iterations of the constraint solver.
    - `cone`: a `mujoco.mjtCone`: pyramidal or elliptic friction.
    - `rods`: `rods(state) -> joints (n+1, 2)`, the hinge and the ends of a planar chain of rods, in metres, for drawing.

    `integrator`, `solver`, `iterations` and `cone` change a copy of the model. By default they are the model's own.

    **Raises:** `ValueError` if the model cannot be read, if MJX does not support it or moves it differently from MuJoCo, if an
    actuator has no control range, if `measure` or `reset` returns something of another shape, or if a count is below 1.
    """

    model: mjx.Model
    rods: Callable[..., Array] | None
    dt: float = eqx.field(static=True)
    frame_skip: int = eqx.field(static=True)
    horizon: int = eqx.field(static=True)
    state_size: int = eqx.field(static=True)
    action_size: int = eqx.field(static=True)
    bounded_actions: ClassVar[bool] = True
    _reward: Reward
    _terminates: Termination | None
    _reset: Callable[..., Array] | None
    _measure: Callable[[mjx.Data], Array] | None

    def __init__(
        self,
        model: mujoco.MjModel | str | os.PathLike,
        reward: Reward,
        *,
        horizon: int,
        terminates: Termination | None = None,
        frame_skip: int = 1,
        reset: Callable[[PRNGKeyArray], Float[Array, " N"]] | None = None,
        measure: Callable[[mjx.Data], Float[Array, " M"]] | None = None,
        integrator: mjtIntegrator | None = None,
        solver: mjtSolver | None = None,
        iterations: int | None = None,
        cone: mjtCone | None = None,
        rods: Callable[[Float[Array, " S"]], Float[Array, "n 2"]] | None = None,
    ):
        check_counts("MJXTask", horizon=horizon, frame_skip=frame_skip, iterations=iterations)
        check_reward(reward)
        if terminates is not None:
            check_termination(terminates)
        model = read_model(model)
        set_options(model, integrator=integrator, solver=solver, iterations=iterations, cone=cone)
        check_model(model)
        self.model = put_model(model)
        warn_of_approximations(model)
        self.dt = model.opt.timestep * frame_skip
        self.frame_skip, self.horizon = frame_skip, horizon
        self._reward, self._terminates, self._reset, self._measure, self.rods = reward, terminates, reset, measure, rods
        self.action_size = model.nu
        self.state_size = model.nq + model.nv + model.na + self._measured_size()

    @classmethod
    def from_gymnasium(
        cls,
        id: str,
        *,
        horizon: int = 100,
        terminate_when_unhealthy: bool = True,
        healthy_width: ScalarLike | None = None,
        integrator: mjtIntegrator | None = None,
        solver: mjtSolver | None = None,
        iterations: int | None = None,
        cone: mjtCone | None = None,
    ) -> "MJXTask":
        """Make one of Gymnasium's own MuJoCo environments: its MJCF, frame skip, initial states, reward and ends.

        The state is (qpos, qvel) instead of Gymnasium's observation. With the model's own settings, states equal Gymnasium's to
        1e-9, and so do rewards; rewards that read positions do so to 1e-5, because Gymnasium takes these from the last stage of
        RK4. An episode ends where Gymnasium ends it (see `awmkit.gym.healthy` for the ranges), or after `horizon` steps. The reward
        for being healthy is a step function, and so is a hard end, so neither has a gradient, and it is the whole reward of
        InvertedPendulum. With `healthy_width` an episode ends with a probability, and the gradient of the survival says how to stay
        healthy.

        All models but HalfCheetah ask for RK4. Euler is several times faster, and moved positions by up to 0.07, and by 4 in a fall
        of the double pendulum.

        **Arguments**

        - `id`: "InvertedPendulum-v5", "InvertedDoublePendulum-v5", "Reacher-v5", "Swimmer-v5", "Hopper-v5", "HalfCheetah-v5" or
          "Walker2d-v5".
        - `terminate_when_unhealthy`: whether an episode ends where the body leaves its healthy range. If `False`, it lasts
          `horizon` steps, and only the reward for being healthy stops there.
        - `healthy_width`: the width of the bounds of the healthy range in metres and radians, as for `awmkit.gym.healthy`. `None`,
          the default, for ends that are certain.
        - `horizon`, `integrator`, `solver`, `iterations`, `cone`: as for `awmkit.mjx.MJXTask`.

        **Raises:** `ValueError` if `id` is none of these, if `healthy_width` is not positive or has no effect, and wherever `MJXTask`
        raises it. `ImportError` if Gymnasium, which
        brings the MJCF files, is not installed.
        """
        if id not in BODIES:
            raise ValueError(f"id must be one of {', '.join(BODIES)}, got {id!r}; for another body pass its MJCF to MJXTask.")
        body = BODIES[id]
        terminates = body.terminates if terminate_when_unhealthy else None
        if healthy_width is not None and terminates is None:
            raise ValueError(
                f"{id} does not end early here, so healthy_width={describe(healthy_width)} has no effect; leave it out."
            )
        if terminates is not None:
            terminates = Healthy(terminates.margins, terminates.closed, healthy_width)  # pyright: ignore[reportArgumentType]
        try:
            assets = files("gymnasium") / "envs" / "mujoco" / "assets"
        except ImportError as error:
            raise ImportError(f'from_gymnasium needs Gymnasium ({error}); run pip install "awmkit[mjx]".') from error
        model = read_model(str(assets / body.file))
        return cls(
            model,
            body.reward(model.opt.timestep * body.frame_skip),
            horizon=horizon,
            terminates=terminates,
            frame_skip=body.frame_skip,
            reset=body.reset(tuple(model.qpos0.tolist())),
            integrator=integrator,
            solver=solver,
            iterations=iterations,
            cone=cone,
        )

    @property
    def terminates(self) -> Termination | None:
        """The rule by which episodes end, or `None`."""
        return self._terminates

    def reward(self, state, action, t, next_state=None):
        return with_next_state(self._reward)(state, action, t, next_state)

    def reset(self, key):
        if self._reset is not None:
            return self.complete(self._reset(key))
        return self.complete(jnp.zeros(self._physical_size).at[: self.model.nq].set(self.model.qpos0))

    def complete(self, state: Float[Array, " N"]) -> Float[Array, " S"]:
        """Append what `measure` reads, under controls of 0, to (qpos, qvel, act). Without `measure` it returns its argument.

        **Arguments:** `state`: (qpos, qvel, act), shape (nq + nv + na,).

        **Raises:** `ValueError` if `state` has another shape.
        """
        check_shapes("MJXTask.complete", state=(state, (self._physical_size,)))
        if self._measure is None:
            return state
        ctrl, warm = jnp.zeros(self.action_size), jnp.zeros(self.model.nv)
        return by_forward_mode(_complete, *self._physics(), state.astype(float), ctrl, warm)[0].astype(state.dtype)

    def init(self, state, horizon):
        del state, horizon
        return jnp.zeros(self.model.nv)

    def step(self, carry, state, action, t, *, key=None):
        del t, key
        inputs = state[: self._physical_size].astype(float), action.astype(float), lax.stop_gradient(carry)
        after, warm = by_forward_mode(_advance, *self._physics(), *inputs, self.frame_skip)
        return lax.stop_gradient(warm), after.astype(state.dtype)

    @property
    def _physical_size(self) -> int:
        """The number of entries of (qpos, qvel, act)."""
        return self.model.nq + self.model.nv + self.model.na

    def _physics(self) -> tuple[mjx.Model, Callable[[mjx.Data], Array] | None]:
        """The model and `measure`, in JAX's default precision."""
        return jax.tree.map(lambda x: x.astype(float) if eqx.is_inexact_array(x) else x, (self.model, self._measure))

    def _measured_size(self) -> int:
        measure = self._measure
        if measure is None:
            return 0
        if not callable(measure):
            raise ValueError(f"measure must be a function of the mjx.Data of a state, got {describe(measure)}.")
        with jax.numpy_dtype_promotion("standard"):  # MJX promotes implicitly.
            found = eqx.filter_eval_shape(lambda model: measure(mjx.make_data(model)), self.model)
        if getattr(found, "ndim", None) != 1 or not jnp.issubdtype(found.dtype, jnp.floating):
            raise ValueError(
                f"measure returned {describe(found)}; it must return one vector of floating-point numbers, so join what it reads "
                "with jnp.concatenate or jnp.ravel."
            )
        return found.size


def _advance(model: mjx.Model, measure, state: Array, action: Array, warm: Array, frame_skip: int) -> tuple[Array, Array]:
    """Make `frame_skip` of MuJoCo's steps. Return the new state with what `measure` reads, and the new warm start."""
    low, high = model.actuator_ctrlrange.T
    ctrl = scale_to_bounds(action, low, high)
    if not model.opt.disableflags & mjtDisableBit.mjDSBL_CLAMPCTRL:
        # MJX clamps by itself, but not where implicitfast differentiates the force.
        ctrl = jnp.where(ctrl > high, high, jnp.where(ctrl < low, low, ctrl))

    def substep(loop, _):
        state, warm = loop
        with jax.numpy_dtype_promotion("standard"):  # MJX promotes implicitly.
            after = step(model, _data(model, state, ctrl, warm))
        return (jnp.concatenate([after.qpos, after.qvel, after.act]), lax.stop_gradient(after.qacc_warmstart)), None

    state, warm = lax.scan(substep, (state, warm), length=frame_skip)[0]
    return _complete(model, measure, state, ctrl, warm)[0], warm


def _complete(model: mjx.Model, measure, state: Array, ctrl: Array, warm: Array) -> tuple[Array, None]:
    """Append what `measure` reads to (qpos, qvel, act)."""
    if measure is None:
        return state, None
    with jax.numpy_dtype_promotion("standard"):  # MJX promotes implicitly.
        return jnp.concatenate([state, measure(forward(model, _data(model, state, ctrl, warm)))]), None


def _data(model: mjx.Model, state: Array, ctrl: Array, warm: Array) -> mjx.Data:
    """New data for a state, because a loop over `mjx.Data` changes dtypes in x64."""
    qpos, qvel, act = jnp.split(state, (model.nq, model.nq + model.nv))
    return mjx.make_data(model).replace(qpos=qpos, qvel=qvel, act=act, ctrl=ctrl, qacc_warmstart=warm)
