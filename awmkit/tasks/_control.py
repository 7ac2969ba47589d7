"""Optimal control problems in continuous time, and the one discretisation that makes tasks of them.

Apart from the problems themselves, which are equations and numbers only.
"""

import abc
import math

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Scalar, ScalarLike

from .._checks import check_counts, kind
from .._dynamics import AbstractTask
from .._trajectory import Trajectory
from ._ode import ode_step

Bounds = tuple[tuple[float, float], ...]
Parameter = float | Float[Array, ""]


class AbstractControlProblem(eqx.Module):
    """x' = f(x, u, t); minimise the integral of g(x, u, t) over [0, T], plus phi(x(T)).

    **Fields** a subclass provides, with whatever parameters its equations have; all can be changed

    - `x0`: the initial state. `T`: the duration.
    - `x_bounds`, `u_bounds`: (least, greatest) of each entry of the state and of the control; infinite where there is none.
    """

    x0: eqx.AbstractVar[tuple[float, ...]]
    T: eqx.AbstractVar[float]
    x_bounds: eqx.AbstractVar[Bounds]
    u_bounds: eqx.AbstractVar[Bounds]

    @abc.abstractmethod
    def field(self, x: Float[Array, " n"], u: Float[Array, " m"], t: ScalarLike) -> Float[Array, " n"]:
        """f(x, u, t) = x'."""

    @abc.abstractmethod
    def cost(self, x: Float[Array, " n"], u: Float[Array, " m"], t: ScalarLike) -> Scalar:
        """g(x, u, t), the running cost."""

    def final_cost(self, x: Float[Array, " n"]) -> Scalar:
        """phi(x), none by default."""
        return jnp.zeros((), x.dtype)


class ControlReport(eqx.Module):
    """What `Discretised.report` says of one episode, or of a batch of them.

    - `value`: the return. `clipped`: in how many of the steps an entry of the state was clipped, which silences its gradient.
    - `clipped_entries`: the same for each entry of the state. `horizon`: of how many steps.
    """

    value: Float[Array, "*batch"]
    clipped: Int[Array, "*batch"]
    clipped_entries: Int[Array, "*batch n"]
    horizon: int = eqx.field(static=True)

    def __str__(self) -> str:
        share = float(jnp.mean(self.clipped)) / self.horizon
        silenced = f", the gradient silenced at {share:.1%} of the steps" if share else ""
        entries = jnp.mean(self.clipped_entries.reshape(-1, self.clipped_entries.shape[-1]), axis=0).tolist()
        each = ", ".join(f"{n:g}" for n in entries)
        return (
            f"return {float(jnp.median(self.value)):.6g}, {float(jnp.mean(self.clipped)):g} of {self.horizon} steps clipped "
            f"(by entry: {each}){silenced}"
        )


class Discretised(AbstractTask):
    """A control problem as a task of N steps of dt = T/N.

    Actions in [-1, 1] become controls, u = lo + (a+1)/2 (hi-lo); policies keep to that range, nothing clips them. Then

    - x_{k+1} = clip(x_k + dt f(x_k, u_k, k dt), x_lo, x_hi), explicit Euler, or a step of any other solver;
    - r_k = -g(x_k, u_k, k dt) dt, and at the last step also -phi(x_{N-1}): x_N is never scored.

    Clipping silences gradients: `report` counts it. States are in the problem's own units; normalising them is the model's
    affair, and time is an argument of policies and rewards, not an entry of the state.

    **Arguments**

    - `problem`: the equations. `horizon`: N.
    - `solver`, `substeps`: any diffrax solver, and how many of its steps make one of ours.
    - `distractors`: entries appended to the state that mean nothing, normal and drawn anew at each step.
    - `noise`: of the process, standard deviation per square root of unit time, of all entries or of each. With `distractors` or
      `noise`, `unroll` needs a key.

    ```python
    task = Discretised(CancerTreatment(r=0.4), horizon=100, noise=0.01)
    ```

    **Raises:** `ValueError` for what is no problem, a horizon below 1, a negative number of distractors or noise, or sizes
    that do not agree.
    """

    problem: AbstractControlProblem
    solver: diffrax.AbstractSolver
    noise: tuple[float, ...]
    substeps: int = eqx.field(static=True)
    distractors: int = eqx.field(static=True)
    horizon: int = eqx.field(static=True)
    state_size: int = eqx.field(static=True)
    action_size: int = eqx.field(static=True)

    def __init__(
        self,
        problem: AbstractControlProblem,
        horizon: int = 100,
        *,
        solver: diffrax.AbstractSolver = diffrax.Euler(),
        substeps: int = 1,
        distractors: int = 0,
        noise: float | tuple[float, ...] = 0.0,
    ):
        if not isinstance(problem, AbstractControlProblem):
            example = problem.__name__ if isinstance(problem, type) else "CancerTreatment"
            raise ValueError(f"The problem is {kind(problem)}; pass an AbstractControlProblem, such as {example}().")
        check_counts("Discretised", horizon=horizon, substeps=substeps)
        check_counts("Discretised", least=0, distractors=distractors)
        size = len(problem.x0)
        self.problem = problem
        self.solver = solver
        self.noise = noise if isinstance(noise, tuple) else (noise,) * size
        self.substeps = substeps
        self.distractors = distractors
        self.horizon = horizon
        self.state_size = size + distractors
        self.action_size = len(problem.u_bounds)
        if not min(self.noise) >= 0:
            raise ValueError(f"Discretised got noise={noise}; give standard deviations of at least 0.")
        if len(problem.x_bounds) != size or len(self.noise) != size:
            given = f"{size} entries of x0, {len(problem.x_bounds)} of x_bounds and {len(self.noise)} of noise"
            raise ValueError(f"Discretised got {given}; give each as many as the state of {type(problem).__name__} has.")

    @property
    def dt(self) -> float:
        """T / N, in the problem's unit of time."""
        return self.problem.T / self.horizon

    @property
    def bounds(self):
        low, high = zip(*self.problem.x_bounds, strict=True)
        unbounded = (math.inf,) * self.distractors
        return low + tuple(-x for x in unbounded), high + unbounded

    def init(self, state, horizon):
        del state, horizon

    def step(self, carry, state, action, t, *, key=None):
        x = self._unclipped(state, action, t)
        if not self.distractors and not any(self.noise):
            return carry, self._clip(x)
        if key is None:
            given = f"distractors={self.distractors}, noise={self.noise}"
            raise ValueError(f"This task is random, {given}; give the unroll a key=jax.random.key(seed).")
        noise_key, distractor_key = jax.random.split(key)
        noise = jnp.asarray(self.noise, x.dtype) * math.sqrt(self.dt) * jax.random.normal(noise_key, x.shape, x.dtype)
        distractors = jax.random.normal(distractor_key, (self.distractors,), x.dtype)
        return carry, jnp.concatenate([self._clip(x + noise), distractors])

    def control(self, action: Float[Array, " m"]) -> Float[Array, " m"]:
        """The control u, in its own units, that an action in [-1, 1] means."""
        low, high = jnp.asarray(self.problem.u_bounds, action.dtype).T
        return low + (action + 1) / 2 * (high - low)

    def reward(self, state, action, t):
        x, u, t = state[: len(self.problem.x0)], self.control(action), jnp.asarray(t)
        running = -self.problem.cost(x, u, t.astype(state.dtype) * self.dt) * self.dt
        return running + jnp.where(t == self.horizon - 1, -self.problem.final_cost(x), 0)

    def reset(self, key):
        return jnp.concatenate([jnp.asarray(self.problem.x0, float), jax.random.normal(key, (self.distractors,))])

    def clipped(self, trajectory: Trajectory) -> Bool[Array, "H n"]:
        """Whether each entry of x_1 ... x_N was clipped, and with it the gradient, shape (N, n). For one episode."""
        low, high = jnp.asarray(self.problem.x_bounds).T
        states, actions = trajectory.states, trajectory.actions
        unclipped = jax.vmap(self._unclipped)(states[:-1], actions, jnp.arange(actions.shape[0]))
        x = states[1:, : low.size]
        return ((x <= low) | (x >= high)) & (x != unclipped)

    def report(self, trajectory: Trajectory) -> ControlReport:
        """The return and the clipped steps of an episode, or under `jax.vmap` of many."""
        clipped = self.clipped(trajectory)
        return ControlReport(trajectory.returns(), clipped.any(axis=1).sum(), clipped.sum(axis=0), self.horizon)

    def _unclipped(self, state, action, t):
        x, u, start = state[: len(self.problem.x0)], self.control(action), jnp.asarray(t).astype(state.dtype) * self.dt
        field = lambda elapsed, x, u: self.problem.field(x, u, start + elapsed)
        return ode_step(field, x, u, solver=self.solver, dt=self.dt, substeps=self.substeps)

    def _clip(self, x):
        low, high = jnp.asarray(self.problem.x_bounds, x.dtype).T
        return jnp.where(x < low, low, jnp.where(x > high, high, x))  # At a bound, not beyond it, the gradient passes.
