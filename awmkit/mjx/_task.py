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
from jaxtyping import Array, Float, PRNGKeyArray
from mujoco import mjtCone, mjtDisableBit, mjtIntegrator, mjtSolver, mjx

from .._bounds import scale_to_bounds
from .._checks import check_counts
from .._dynamics import AbstractTask
from .._reward import check_reward, Reward, with_next_state
from ._differences import warn_of_approximations
from ._gymnasium_bodies import BODIES
from ._model import angular_velocities, check_model, check_reverse_mode, put_model, read_model, set_options, values_only


class MJXTask(AbstractTask):
    """A MuJoCo model (MJCF) as a task, stepped and differentiated by MJX.

    The state is (qpos, qvel, act) as one vector; each step computes everything else from it again. The carry is the warm start of
    the constraint solver. Actions in [-1, 1] are scaled to each actuator's `ctrlrange`; MuJoCo clamps what lies outside, without
    gradient. MJX computes in JAX's default precision: set `jax_enable_x64` for float64.

    ```python
    task = MJXTask("arm.xml", reward=lambda state, action, t: -state[0] ** 2, horizon=100, frame_skip=5)
    value, grads = unroll_grad(task, policy, task.reset(key), 100, reward=task.reward)
    ```

    **Contacts and other constraints.** MJX solves constraints (contacts, joint limits, equalities, dry friction) in a
    `lax.while_loop`, which reverse mode cannot pass (github.com/google-deepmind/mujoco/issues/2259). A model without constraint
    rows never enters it and has exact gradients. Any other model needs `forward_only=True`: values and forward mode (`jax.jvp`,
    `jax.jacfwd`) are those of MuJoCo's physics, and reverse mode raises JAX's own error.

    Reverse mode can pass `iterations=1`, because MJX writes one solver iteration without a loop. **This is wrong physics wherever
    a constraint acts**: the solver stops before it has converged, and the gradient is the exact derivative of a wrong step.
    `from_gymnasium` says how wrong.

    Elliptic friction cones need `forward_only=True`. With several iterations, forward mode gives NaN where a closed contact does
    not slide; with one, any derivative raises an error. Pass `cone=mujoco.mjtCone.mjCONE_PYRAMIDAL` for derivatives; it changes
    the friction a little.

    **What MJX leaves out.** MJX drops some features of a model without an error. The compiled model is checked field by field, and
    a feature that would move it differently is refused by name. Where MJX has a constraint but not MuJoCo's algorithm for it
    (contacts without a plane of boxes, meshes, cylinders or ellipsoids; connect and weld equalities), a warning says so.

    **Parameters of the physics.** Gradients with respect to them go through `task.model`, for example
    `eqx.tree_at(lambda t: t.model.body_mass, task, masses)`. What MuJoCo's compiler has derived from a parameter, such as
    `dof_invweight0` from the masses, does not change with it.

    **Arguments**

    - `model`: a `mujoco.MjModel`, MJCF as a string, or the path of an XML file. It is not modified.
    - `reward`: `reward(state, action, t) -> scalar`, or `reward(state, action, t, next_state) -> scalar`.
    - `horizon`: the number of steps of an episode, H. Episodes never end early.
    - `frame_skip`: the number of MuJoCo's time steps in one step, under a constant action.
    - `reset`: `reset(key) -> state`, shape (nq + nv + na,). By default every episode starts at rest in MuJoCo's `qpos0`.
    - `integrator`: a `mujoco.mjtIntegrator`: Euler, implicitfast or RK4, which takes three times as long to compile.
    - `solver`: a `mujoco.mjtSolver`: Newton or CG. MJX has no PGS.
    - `iterations`: the largest number of iterations of the constraint solver.
    - `cone`: a `mujoco.mjtCone`: pyramidal or elliptic friction.
    - `forward_only`: whether to accept a model that reverse mode cannot differentiate.
    - `rods`: `rods(state) -> joints (n+1, 2)`, the hinge and the ends of a planar chain of rods, in metres, for drawing.

    `integrator`, `solver`, `iterations` and `cone` change a copy of the model. By default they are the model's own.

    **Raises:** `ValueError` if the model cannot be read, if MJX does not support it or moves it differently from MuJoCo, if an
    actuator has no control range, if reverse mode cannot differentiate its constraints, or if a count is below 1.
    """

    model: mjx.Model
    rods: Callable[..., Array] | None
    dt: float = eqx.field(static=True)
    frame_skip: int = eqx.field(static=True)
    horizon: int = eqx.field(static=True)
    state_size: int = eqx.field(static=True)
    action_size: int = eqx.field(static=True)
    _values_only: bool = eqx.field(static=True)
    bounded_actions: ClassVar[bool] = True
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
        solver: mjtSolver | None = None,
        iterations: int | None = None,
        cone: mjtCone | None = None,
        forward_only: bool = False,
        rods: Callable[[Float[Array, " S"]], Float[Array, "n 2"]] | None = None,
    ):
        check_counts("MJXTask", horizon=horizon, frame_skip=frame_skip, iterations=iterations)
        check_reward(reward)
        model = read_model(model)
        set_options(model, integrator=integrator, solver=solver, iterations=iterations, cone=cone)
        check_model(model)
        self.model, rows = put_model(model)
        if not forward_only:
            check_reverse_mode(model, rows)
        warn_of_approximations(model)
        # More iterations run in a loop that stops reverse mode.
        self._values_only = rows > 0 and model.opt.iterations == 1 and model.opt.cone == mjtCone.mjCONE_ELLIPTIC
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
        solver: mjtSolver | None = None,
        iterations: int | None = None,
        cone: mjtCone | None = None,
        forward_only: bool = False,
    ) -> "MJXTask":
        """Make one of Gymnasium's own MuJoCo environments: its MJCF, frame skip, initial states and reward.

        The state is (qpos, qvel) instead of Gymnasium's observation. With the model's own settings, states equal Gymnasium's to
        1e-9, and so do rewards; rewards that read positions do so to 1e-5, because Gymnasium takes these from the last stage of
        RK4. An episode always lasts `horizon` steps. Where Gymnasium ends it, only the reward for being healthy stops here. This
        reward is a step function without gradient, and it is the whole reward of InvertedPendulum.

        All six models have constraint rows and ask for 100 solver iterations, so they need `forward_only=True`. `iterations=1`,
        which reverse mode can pass, is wrong physics wherever a foot, a joint limit or a stop pushes. In 500 steps of random actions
        from Gymnasium's states, one step with one iteration was wrong by up to

        - 0.8 (m, rad) and 14 (m/s, rad/s) in HalfCheetah, where 55% of the steps were wrong;
        - 0.004 and 0.8 in Hopper (31%), 0.013 and 0.5 in InvertedPendulum (10%), 0.13 and 7.5 in InvertedDoublePendulum (8%);
        - 0.024 and 2.2 in Reacher (3%), 0.005 and 0.13 in Swimmer (1%).

        All models but HalfCheetah ask for RK4. Euler compiles several times faster, and moved positions by up to 0.07, and by 4 in
        a fall of the double pendulum.

        **Arguments**

        - `id`: "InvertedPendulum-v5", "InvertedDoublePendulum-v5", "Reacher-v5", "Swimmer-v5", "Hopper-v5" or "HalfCheetah-v5".
        - `horizon`, `integrator`, `solver`, `iterations`, `cone`, `forward_only`: as for `awmkit.mjx.MJXTask`.

        **Raises:** `ValueError` if `id` is none of these, and wherever `MJXTask` raises it. `ImportError` if Gymnasium, which
        brings the MJCF files, is not installed.
        """
        if id not in BODIES:
            raise ValueError(f"id must be one of {', '.join(BODIES)}, got {id!r}; for another body pass its MJCF to MJXTask.")
        body = BODIES[id]
        try:
            assets = files("gymnasium") / "envs" / "mujoco" / "assets"
        except ImportError as error:
            raise ImportError(f'from_gymnasium needs Gymnasium ({error}); run pip install "awmkit[mjx]".') from error
        model = read_model(str(assets / body.file))
        return cls(
            model,
            body.reward(model.opt.timestep * body.frame_skip),
            horizon=horizon,
            frame_skip=body.frame_skip,
            reset=body.reset(tuple(model.qpos0.tolist())),
            integrator=integrator,
            solver=solver,
            iterations=iterations,
            cone=cone,
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
        if self._values_only:
            state, action = values_only((state, action))
        with jax.numpy_dtype_promotion("standard"):  # MJX promotes implicitly.
            warm, after = self._advance(carry, state.astype(float), action.astype(float))
        return warm, after.astype(state.dtype)

    def _advance(self, warm: Array, state: Array, action: Array) -> tuple[Array, Array]:
        """Make `frame_skip` of MuJoCo's steps. Each rebuilds its data, because a loop over `mjx.Data` changes dtypes in x64."""
        model = jax.tree.map(lambda x: x.astype(float) if eqx.is_inexact_array(x) else x, self.model)
        low, high = model.actuator_ctrlrange.T
        ctrl = scale_to_bounds(action, low, high)
        if not model.opt.disableflags & mjtDisableBit.mjDSBL_CLAMPCTRL:
            # MJX clamps by itself, but not where implicitfast differentiates the force.
            ctrl = jnp.where(ctrl > high, high, jnp.where(ctrl < low, low, ctrl))
        data = mjx.make_data(model).replace(ctrl=ctrl)
        ends = (model.nq, model.nq + model.nv)
        spins = angular_velocities(model)

        def substep(loop, _):
            warm, state = loop
            qpos, qvel, act = jnp.split(state, ends)
            # In MJX the derivative of a quaternion in an angular velocity of less than 1e-8 is 0.
            still = jnp.all(jnp.abs(qvel[spins]) < 1e-7, axis=1, keepdims=True)
            spin = jnp.zeros_like(qvel).at[spins].set(jnp.where(still, 1e-7, 0.0)) if spins.size else 0.0
            after = mjx.step(model, data.replace(qpos=qpos, qvel=qvel + spin, act=act, qacc_warmstart=warm))
            return (after.qacc_warmstart, jnp.concatenate([after.qpos, after.qvel - spin, after.act])), None

        # With this, reverse mode stores the states only: a hundredth of the memory, and no slower.
        substep = jax.checkpoint(substep, prevent_cse=False)
        return lax.scan(substep, (warm, state), length=self.frame_skip)[0]
