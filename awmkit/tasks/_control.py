"""Optimal control problems in continuous time, and their discretisation as tasks."""

import abc
import functools
import math
from collections.abc import Callable
from typing import ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Scalar, ScalarLike

from .._bounds import scale_to_bounds
from .._checks import check_counts, check_shapes, kind
from .._dynamics import AbstractTask
from .._trajectory import Trajectory
from ._ode import in_dtype, is_off, ode_step, Parameter, strength

Bounds = tuple[tuple[float, float], ...]


def _checked(method: Callable) -> Callable:
    """Return a method of x, or of x, u and t, that first checks their shapes."""

    @functools.wraps(method)
    def checked(self, x, *others, **named):
        given = {"x": x, **dict(zip(("u", "t"), others, strict=False)), **named}
        shapes = {"x": (len(self.x0),), "u": (len(self.u_bounds),), "t": ()}
        who = f"{type(self).__name__}.{method.__name__}"
        check_shapes(who, **{name: (given[name], shape) for name, shape in shapes.items() if name in given})
        return method(self, x, *others, **named)

    return checked


class AbstractControlProblem(eqx.Module):
    """An optimal control problem: minimise the integral of g(x, u, t) over [0, T] plus phi(x(T)), subject to x' = f(x, u, t).

    Subclass it to state your own problem, and make a task of it with `Discretised`. Parameters of the equations are fields with
    defaults, so each can be changed, traced and differentiated. A parameter to differentiate must be an array, as `drag` below.

    **Fields** a subclass defines

    - `x0`: initial state, a tuple of n numbers.
    - `T`: duration, in the problem's unit of time.
    - `x_bounds`: (lower, upper) for each of the n entries of the state; states are clipped to them. Use `-math.inf` and `math.inf`
      where there is no bound.
    - `u_bounds`: (lower, upper) for each of the m entries of the control. They must be finite, because actions in [-1, 1] are mapped
      onto them.

    **What must hold**

    - `field`, `cost` and `final_cost` are JAX functions, differentiable inside the bounds.

    ```python
    class Rocket(AbstractControlProblem):
        drag: jax.Array = eqx.field(default=0.1, converter=jnp.asarray)
        x0: tuple[float, ...] = (0.0, 0.0)
        T: float = 10.0
        x_bounds: tuple[tuple[float, float], ...] = ((0.0, math.inf), (-math.inf, math.inf))
        u_bounds: tuple[tuple[float, float], ...] = ((0.0, 20.0),)

        def field(self, x, u, t):
            return jnp.stack([x[1], u[0] - 9.8 - self.drag * x[1]])

        def cost(self, x, u, t):
            return 0.01 * u[0] ** 2

        def final_cost(self, x):
            return (x[0] - 100.0) ** 2

    task = Discretised(Rocket(drag=0.2), horizon=100)
    ```
    """

    x0: eqx.AbstractVar[tuple[float, ...]]
    T: eqx.AbstractVar[Parameter]
    x_bounds: eqx.AbstractVar[Bounds]
    u_bounds: eqx.AbstractVar[Bounds]

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        for name in ("field", "cost", "final_cost"):
            if name in cls.__dict__:
                setattr(cls, name, _checked(cls.__dict__[name]))

    @abc.abstractmethod
    def field(self, x: Float[Array, " n"], u: Float[Array, " m"], t: ScalarLike) -> Float[Array, " n"]:
        """Return x' = f(x, u, t), shape (n,)."""

    @abc.abstractmethod
    def cost(self, x: Float[Array, " n"], u: Float[Array, " m"], t: ScalarLike) -> Scalar:
        """Return the running cost g(x, u, t), a scalar per unit of time."""

    @_checked
    def final_cost(self, x: Float[Array, " n"]) -> Scalar:
        """Return the final cost phi(x), a scalar; 0 by default."""
        return jnp.zeros((), x.dtype)


class ControlReport(eqx.Module):
    """Returns and clipping of one episode or of a batch of episodes, from `Discretised.report`. Print it for a summary.

    - `value`: the return.
    - `clipped`: number of steps at which an entry of the state was clipped to its bounds. Clipping sets its gradient to 0.
    - `clipped_entries`: the same for each entry of the state, shape (..., n).
    - `horizon`: number of steps of an episode.
    """

    value: Float[Array, "*batch"]
    clipped: Int[Array, "*batch"]
    clipped_entries: Int[Array, "*batch n"]
    horizon: int = eqx.field(static=True)

    def __str__(self) -> str:
        share = float(jnp.mean(self.clipped)) / self.horizon
        lost = f", no gradient at {share:.1%} of the steps" if share else ""
        entries = jnp.mean(self.clipped_entries.reshape(-1, self.clipped_entries.shape[-1]), axis=0).tolist()
        each = ", ".join(f"{n:g}" for n in entries)
        return (
            f"return {float(jnp.median(self.value)):.6g}, {float(jnp.mean(self.clipped)):g} of {self.horizon} steps clipped "
            f"(by entry: {each}){lost}"
        )


class Discretised(AbstractTask):
    """A control problem as a task of N steps of length dt = T / N.

        x_{k+1} = clip(x_k + dt f(x_k, u_k, k dt), x_lower, x_upper)          (explicit Euler, or another solver)
        r_k = -g(x_k, u_k, k dt) dt,    at k = N-1 also -phi(x_{N-1})

    x_N is never scored, as in the experiments of Ma et al. (2024).

    - State: x in the problem's units, then the distractors.
    - Action: the control, mapped linearly from [-1, 1] to its bounds. Actions outside [-1, 1] are not clipped; an unroll of an array of
      them warns.
    - Start: `problem.x0`.

    Clipping a state sets its gradient to 0; `report` counts where this happens.

    ```python
    task = Discretised(CancerTreatment(r=0.4), horizon=100, noise=0.01)
    ```

    **Arguments**

    - `problem`: an `AbstractControlProblem`.
    - `horizon`: number of steps N.
    - `solver`: a diffrax solver, `diffrax.Euler()` by default.
    - `substeps`: solver steps per step.
    - `distractors`: number of entries to append to the state that carry no information, new standard normal draws at each step.
    - `noise`: standard deviation of the process noise per square root of unit time, one number for all entries of x or a tuple
      with one for each. With `distractors` or `noise`, `unroll` needs a key.

    **Raises:** `ValueError` if `problem` is not an `AbstractControlProblem`, `horizon` or `substeps` is below 1, `distractors` or
    `noise` is negative, or the sizes of `x0`, `x_bounds` and `noise` differ.
    """

    problem: AbstractControlProblem
    solver: diffrax.AbstractSolver
    noise: tuple[Parameter, ...]
    substeps: int = eqx.field(static=True)
    distractors: int = eqx.field(static=True)
    horizon: int = eqx.field(static=True)
    state_size: int = eqx.field(static=True)
    action_size: int = eqx.field(static=True)
    bounded_actions: ClassVar[bool] = True

    def __init__(
        self,
        problem: AbstractControlProblem,
        horizon: int = 100,
        *,
        solver: diffrax.AbstractSolver = diffrax.Euler(),
        substeps: int = 1,
        distractors: int = 0,
        noise: Parameter | tuple[Parameter, ...] = 0.0,
    ):
        if not isinstance(problem, AbstractControlProblem):
            example = problem.__name__ if isinstance(problem, type) else "CancerTreatment"
            raise ValueError(f"problem must be an AbstractControlProblem, got {kind(problem)}; pass one such as {example}().")
        check_counts("Discretised", horizon=horizon, substeps=substeps)
        check_counts("Discretised", least=0, distractors=distractors)
        size = len(problem.x0)
        self.problem = problem
        self.solver = solver
        self.noise = tuple(map(strength, noise if isinstance(noise, tuple) else (noise,) * size))
        self.substeps = substeps
        self.distractors = distractors
        self.horizon = horizon
        self.state_size = size + distractors
        self.action_size = len(problem.u_bounds)
        if not all(isinstance(x, Tracer) or x >= 0 for x in self.noise):
            raise ValueError(f"noise must be at least 0, got {noise}; pass standard deviations.")
        if len(problem.x_bounds) != size or len(self.noise) != size:
            raise ValueError(
                f"x_bounds and noise must have one entry for each of the {size} entries of x0 of {type(problem).__name__}, got "
                f"{len(problem.x_bounds)} and {len(self.noise)}."
            )

    @property
    def dt(self) -> Parameter:
        """Duration of a step, T / N, in the problem's unit of time."""
        return self.problem.T / self.horizon

    @property
    def bounds(self):
        low, high = zip(*self.problem.x_bounds, strict=True)
        unbounded = (math.inf,) * self.distractors
        return low + tuple(-x for x in unbounded), high + unbounded

    def step(self, carry, state, action, t, *, key=None):
        x = self._unclipped(state, action, t)
        if not self.distractors and all(map(is_off, self.noise)):
            return carry, self._clip(x)
        if key is None:
            raise ValueError(
                f"Discretised with distractors={self.distractors} or noise needs a key; pass key=jax.random.key(seed)."
            )
        noise_key, distractor_key = jax.random.split(key)
        noise = (
            jnp.asarray(self.noise, x.dtype)
            * jnp.sqrt(jnp.asarray(self.dt, x.dtype))
            * jax.random.normal(noise_key, x.shape, x.dtype)
        )
        distractors = jax.random.normal(distractor_key, (self.distractors,), x.dtype)
        return carry, jnp.concatenate([self._clip(x + noise), distractors])

    def control(self, action: Float[Array, " m"]) -> Float[Array, " m"]:
        """Return the control u, in the problem's units, for an action in [-1, 1]."""
        check_shapes("Discretised.control", action=(action, (self.action_size,)))
        low, high = jnp.asarray(self.problem.u_bounds, action.dtype).T
        return scale_to_bounds(action, low, high)

    def reward(self, state, action, t):
        x, u, t = state[: len(self.problem.x0)], self.control(action), jnp.asarray(t)
        problem, dt = in_dtype((self.problem, self.dt), state.dtype)
        running = -problem.cost(x, u, t.astype(state.dtype) * dt) * dt
        return running + jnp.where(t == self.horizon - 1, -problem.final_cost(x), 0)

    def reset(self, key):
        return jnp.concatenate([jnp.asarray(self.problem.x0, float), jax.random.normal(key, (self.distractors,))])

    def clipped(self, trajectory: Trajectory) -> Bool[Array, "H n"]:
        """Return whether each entry of x_1 ... x_N of one episode was clipped, which sets its gradient to 0. Shape (N, n)."""
        low, high = jnp.asarray(self.problem.x_bounds).T
        states, actions = trajectory.states, trajectory.actions
        check_shapes(
            "Discretised.clipped",
            "pass the Trajectory of one episode, and use jax.vmap for a batch",
            states=(states, ("H+1", self.state_size)),
            actions=(actions, ("H", self.action_size)),
        )
        filled = trajectory.filled()
        states = filled.states
        unclipped = jax.vmap(self._unclipped)(states[:-1], filled.actions, filled.steps)
        x = states[1:, : low.size]
        clipped = ((x <= low) | (x >= high)) & (x != unclipped)
        return clipped if filled.length is None else clipped & filled.mask[:, None]

    def report(self, trajectory: Trajectory) -> ControlReport:
        """Return the return and the number of clipped steps of one episode. Use `jax.vmap` for a batch."""
        if trajectory.rewards is not None:
            check_shapes("Discretised.report", rewards=(trajectory.rewards, ("H",)), actions=(trajectory.actions, ("H", "A")))
        clipped = self.clipped(trajectory)
        return ControlReport(trajectory.returns(), clipped.any(axis=1).sum(), clipped.sum(axis=0), self.horizon)

    def _unclipped(self, state, action, t):
        problem, dt = in_dtype((self.problem, self.dt), state.dtype)
        x, u, start = state[: len(problem.x0)], self.control(action), jnp.asarray(t).astype(state.dtype) * dt
        field = lambda elapsed, x, u: problem.field(x, u, start + elapsed)
        return ode_step(field, x, u, solver=self.solver, dt=dt, substeps=self.substeps)

    def _clip(self, x):
        low, high = jnp.asarray(self.problem.x_bounds, x.dtype).T
        return jnp.where(x < low, low, jnp.where(x > high, high, x))  # Unlike jnp.clip, passes the gradient at a bound.
