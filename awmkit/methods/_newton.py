"""Run all steps at once, for a dynamics with a small state. The trajectory is found by Newton's method."""

import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun
from jax.interpreters.partial_eval import dce_jaxpr
from jaxtyping import Array, Float, Int, PyTree, Scalar

from .._checks import check_counts, check_shapes, describe
from .._paths import Paths
from .._policies import memory_of
from ._fixed_point import rounding
from ._method import AbstractMethod, stepper, Sweeps

# MuJoCo's inverted pendulum, falling into its stop for 100 steps, takes 24.6 sweeps on average of six sequences of controls and
# blocks of 20, 25, 50 and 100 steps. With 1,000 it takes 33, with 10 it takes 24.1, but a spiral that expands takes 16 instead of 10.
REACH = 100
EXPONENTS = tuple(10 ** (k / 10) for k in range(-30, 11))  # Messages are fixed before the program runs.


class Newton(AbstractMethod):
    """Run all steps at once, for any dynamics with a small state: a simulator, a Markov model, a recurrent world model.

    The trajectory is the solution of H equations, x_{t+1} = f_t(x_t), where x_t is the policy's memory, the carry and the state,
    D numbers, and f_t one step of the closed loop. Newton's method linearises all steps at the trajectory that it has, and solves the linear recurrence

        x_{t+1} = f_t(y_t) + J_t (x_t - y_t),    J_t = df_t/dx_t at y_t

    by an associative scan. Each such sweep makes at least one more step exact, so H sweeps are always enough. Systems that forget
    small perturbations need about 5, whatever H is. The gradient is one more linear recurrence,
    lambda_t = dr_t/dx_t + J_t^T lambda_{t+1}; forward mode and higher orders solve recurrences with the same J_t. Sources:
    Danieli et al. (2023), *DeepPCR*; Lim et al. (2024), *Parallelizing non-linear sequential models over the sequence length*;
    Gonzalez et al. (2024), *Towards scalable and stable parallelization of nonlinear RNNs*.

    **When to choose it.** On an accelerator, where `Sequential` spends its time on launching H small kernels, if D is small (a sweep
    computes D + 1 derivatives and stores D^2 numbers per step) and the system is not chaotic: the number of sweeps grows with the
    largest Lyapunov exponent times H, which `awmkit.analysis.lyapunov` measures. A processor with few cores gains nothing, because
    the arithmetic of a sweep is D + 1 times that of a rollout. `method=None` does not choose it.
    A gradient at H = 1,000, batch size 256, compiled for an H100, launches 415 kernels for a fitted Markov model instead of
    85,015, and 248 for the cancer problem instead of 39,019, with the six sweeps that each takes. MuJoCo's cart-pole launches 1,382 a
    sweep and 2,292 around them instead of 801,021, and its Hopper (Euler, 20 iterations) 15,486 and 30,752 instead of 13,598,025. On an
    H200 the cancer problem took 2.7 ms instead of 44.5. All starts of a batch take as many sweeps as the slowest.

    **Where a sweep leaves the plausible.** A new value that is not finite, or larger than 100 times the largest value of its
    entry in the steps that have settled, is replaced by the plain value f_t(y_t), and that, if it is no better, by the last settled
    value. Contacts need this: a guess that is deep in a stop is thrown out of it, to values that grow from sweep to sweep.

    Entries of a carry or a memory without a derivative, such as the warm start of MuJoCo's solver, settle to half of the digits.
    Those that are not floating point, such as a counter or a key, may change if they do not depend on
    the state or on any other floating-point entry.

    **Arguments**

    - `block`: number of steps in a sweep, which begins at the first step that has not settled; all by default. Fewer need less
      memory.
    - `tolerance`: a step has settled if all steps before it have and no entry changes by more than this fraction of the largest
      value of the entry. By default 8 units in the last place. It has also settled if the sweep began with rounding errors
      only: x_{t+1} differed from f_t(x_t) by at most 64 units in the last place, or 2 of the factors of matrix products if these
      are rounded further (to TF32, bfloat16). The change, in which the recurrence adds up such errors, must then be at most
      the square root of the machine precision (3e-4 in float32) or 8 units of the factors, and more than half of the one
      before. With rounded factors, a change whose square is at most a sixteenth of their unit may also be smaller than that.
      `Trajectory.residual` is the last change.
    - `max_sweeps`: the largest number of sweeps; a run that needs more raises an error. By default H, after which the result is
      exact.
    - `start`: states s_0 ... s_H, shape (H+1, S), from which the sweeps start; s_0 at all steps by default. The `states` of
      the same policy before its last update, from the same s_0, need fewer sweeps.

    ```python
    value, grads = unroll_grad(task, policy, s_0, 1000, reward=task.reward, paths=BPO, method=Newton())
    ```

    **Raises:** `ValueError` if `tolerance` is below 0, or a count is not a whole number of at least 1. A run raises `ValueError` if
    `start` has another shape, or an entry of the carry that is not floating point depends on one that is.
    """

    block: int | None = eqx.field(static=True, default=None)
    tolerance: float | None = None
    max_sweeps: int | None = eqx.field(static=True, default=None)
    start: Float[Array, "T S"] | None = None

    def __check_init__(self):
        if self.tolerance is not None and not self.tolerance >= 0:
            raise ValueError(f"tolerance must be at least 0, got tolerance={self.tolerance}; 1e-6 is typical.")
        check_counts("Newton", block=self.block, max_sweeps=self.max_sweeps)

    def run(self, dynamics, policy, state, horizon, *, key, paths, t=0, carry=None):
        carry = dynamics.init(state, horizon) if carry is None else carry
        name, start = type(dynamics).__name__, ((memory_of(policy), carry), state)
        loop = lambda paths: _Loop.of(*stepper(dynamics, policy, horizon, key=key, paths=paths, t=t), start, name)
        traced, plain = loop(paths), _detached(loop(Paths()))
        x, n, sweeps, exponent = _trajectory(traced, plain=plain, guess=self._guess(plain.first, state, horizon), method=self)
        if self.max_sweeps is not None and self.max_sweeps < horizon:  # After H sweeps the result is exact.
            row = jnp.sum(exponent > jnp.asarray(EXPONENTS, exponent.dtype))
            x = eqx.branched_error_if(x, n < horizon, row, _messages(self.max_sweeps))
        states = x[:, x.shape[1] - state.size :].astype(state.dtype)
        return states, policy if isinstance(policy, Array) else traced.actions(x), sweeps

    def _guess(self, first, state, horizon: int) -> Float[Array, "H D"]:
        guess = jnp.broadcast_to(first, (horizon, first.size))
        if self.start is None:
            return guess
        shape = horizon + 1, state.size
        check_shapes("Newton", "pass the states of a trajectory of this horizon", start=(self.start, shape))
        return guess.at[:, first.size - state.size :].set(lax.stop_gradient(self.start[1:]).astype(first.dtype))


def _detached(tree: PyTree) -> PyTree:
    return jtu.tree_map(lambda x: lax.stop_gradient(x) if eqx.is_inexact_array(x) else x, tree)


def _messages(limit: int) -> list[str]:
    """Return the error for a system that is not chaotic, and for each of `EXPONENTS`."""
    begin = f"Newton sweeps had not settled after max_sweeps={limit}"
    chaotic = (
        f"{begin}: trajectories that start close together separate by a factor of about exp({{:.2g}}) per step, so the system is "
        "chaotic or unstable and needs many sweeps; use method=Sequential(), or raise max_sweeps."
    )
    stable = f"{begin}; raise max_sweeps or the tolerance, or use method=Sequential()."
    return [stable, *(chaotic.format(exponent) for exponent in EXPONENTS)]


class _Loop(eqx.Module):
    """The step of a closed loop as a function of a vector x_t, with everything that it reads.

    The vector has all floating-point leaves of (carry, state) that change from step to step. The state comes last.
    """

    first: Float[Array, " D"]
    fixed: list  # Leaves that no step changes.
    counters: list  # Leaves that are not floating point, before each step.
    inputs: list  # What `stepper` scans over.
    constants: list
    program: Jaxpr = eqx.field(static=True)
    leaves: tuple = eqx.field(static=True)  # The kind, shape and dtype of each leaf.
    columns: tuple = eqx.field(static=True)  # Entries with respect to which the step has a derivative.
    hints: tuple = eqx.field(static=True)  # Whether an entry has none, neither as an input nor as an output.

    @staticmethod
    def of(step, inputs, loop, name: str) -> "_Loop":
        """Trace a step of `stepper`. `name` is that of the dynamics, for an error."""
        closed = jax.make_jaxpr(step)(loop, jtu.tree_map(lambda x: x[0], inputs))
        inputs, leaves = jtu.tree_leaves(inputs), jtu.tree_leaves(loop)
        program, last = closed.jaxpr, len(leaves) - 1

        def kind(i, x):
            if i < last and program.outvars[i] is program.invars[i]:
                return "fixed"
            return "moving" if jnp.issubdtype(x.dtype, jnp.floating) else "counter"

        kinds = [kind(i, x) for i, x in enumerate(leaves)]
        of_kind = lambda kind: [x for x, k in zip(leaves, kinds, strict=True) if k == kind]
        with jax.numpy_dtype_promotion("standard"):
            dtype = jnp.result_type(*(x.dtype for x in of_kind("moving")))
        first = jnp.concatenate([x.astype(dtype).ravel() for x in of_kind("moving")])
        described = tuple((k, x.shape, x.dtype) for k, x in zip(kinds, leaves, strict=True))
        constants, everywhere = (inputs, closed.consts, program, described), tuple(range(first.size))
        made = _Loop(first, of_kind("fixed"), of_kind("counter"), *constants, everywhere, (False,) * first.size)
        if len(of_kind("moving")) > 1:
            made = made._with_known_zeros()
        if not made.counters:
            return made
        wanted = [i <= last and kinds[i] == "counter" for i in range(len(program.outvars))]
        _, read = dce_jaxpr(program, wanted)
        if any(k == "moving" and r for k, r in zip(kinds, read, strict=False)):
            dtypes = ", ".join(describe(x) for x in made.counters)
            raise ValueError(
                f"Newton cannot linearise {name}: its carry, or the memory of the policy, has entries that are not floating point "
                f"({dtypes}) and depend on ones that are; use method=Sequential()."
            )

        def count(counters, inputs):
            out = made.run(made.first, counters, inputs)
            return [y for y, k in zip(out, kinds, strict=False) if k == "counter"], counters

        return eqx.tree_at(lambda loop: loop.counters, made, lax.scan(count, made.counters, inputs)[1])

    def _with_known_zeros(self) -> "_Loop":
        """Find the leaves without a derivative, such as the warm start of a solver."""
        where = [i for i, (kind, _, _) in enumerate(self.leaves) if kind == "moving"]
        leaves, inputs = self.unravel(self.first, self.counters), [x[0] for x in self.inputs]

        def after(parts):
            places = dict(zip(where, parts, strict=True))
            out = self.call([places.get(i, x) for i, x in enumerate(leaves)], inputs)
            return [out[i] for i in where]

        parts = [leaves[i] for i in where]
        program = jax.make_jaxpr(lambda moved: jax.jvp(after, (parts,), (moved,))[1])(parts).jaxpr
        reads = lambda wanted: dce_jaxpr(program, wanted)[1]
        read = reads([True] * len(parts))
        row = lambda i: any(reads([j == i for j in range(len(parts))]))
        hint = [not read[i] and not row(i) for i in range(len(parts))]
        spread = lambda flags: [flag for flag, x in zip(flags, parts, strict=True) for _ in range(x.size)]
        columns = tuple(i for i, flag in enumerate(spread(read)) if flag)
        return dataclasses.replace(self, columns=columns, hints=tuple(spread(hint)))

    def run(self, x, counters, inputs) -> list[Array]:
        """Return what the step returns: the leaves of (carry, state) after it, the state and the action."""
        return self.call(self.unravel(x, counters), inputs)

    def call(self, leaves, inputs) -> list[Array]:
        return jaxpr_as_fun(ClosedJaxpr(self.program, self.constants))(*leaves, *inputs)

    def unravel(self, x, counters) -> list[Array]:
        """Return the leaves of (carry, state)."""
        fixed, counters, arguments = list(self.fixed), list(counters), []
        for kind, shape, dtype in self.leaves:
            if kind == "moving":
                arguments.append(x[: math.prod(shape)].reshape(shape).astype(dtype))
                x = x[math.prod(shape) :]
            else:
                arguments.append((fixed if kind == "fixed" else counters).pop(0))
        return arguments

    def __call__(self, x, counters, inputs) -> Float[Array, " D"]:
        """Return x_{t+1}."""
        after = zip(self.run(x, counters, inputs), self.leaves, strict=False)
        return jnp.concatenate([y.astype(x.dtype).ravel() for y, (kind, _, _) in after if kind == "moving"])

    def before(self, x: Float[Array, "H D"]) -> Float[Array, "H D"]:
        """Return x_0 ... x_{H-1}."""
        return jnp.concatenate([self.first[None], x[:-1]])

    def after(self, x: Float[Array, "H D"]) -> Float[Array, "H D"]:
        """Return f_0(x_0) ... f_{H-1}(x_{H-1})."""
        return jax.vmap(self)(self.before(x), self.counters, self.inputs)

    def actions(self, x: Float[Array, "H D"]) -> Float[Array, "H A"]:
        """Return a_0 ... a_{H-1}."""
        return jax.vmap(lambda *step: self.run(*step)[-1])(self.before(x), self.counters, self.inputs)

    def linearised(self, x, counters, inputs) -> tuple[Float[Array, "B D"], Float[Array, "B D D"]]:
        """Return f_t(x_t) and its Jacobian for several steps."""

        size = self.first.size
        basis = jnp.eye(size, dtype=x.dtype)[jnp.asarray(self.columns, int)]

        def one(x, counters, inputs):
            step = lambda x: self(x, counters, inputs)
            if not self.columns:
                return step(x), jnp.zeros((size, size), x.dtype)
            after, found = jax.vmap(lambda moved: jax.jvp(step, (x,), (moved,)), out_axes=(None, 1))(basis)
            if len(self.columns) == size:
                return after, found
            return after, jnp.zeros((size, size), x.dtype).at[:, jnp.asarray(self.columns)].set(found)

        return jax.vmap(one)(x, counters, inputs)


# Not `lax.custom_root`: it would differentiate with respect to all constants, and give J_t only as the rounded difference of a
# vector and v - J_t v.
@eqx.filter_custom_jvp
def _trajectory(loop: _Loop, *, plain: _Loop, guess: Float[Array, "H D"], method: Newton):
    """Return x_1 ... x_H, the number of settled steps, the sweeps, and the exponent. `plain` has no gains and no gradient."""
    del loop
    return _settle(method, plain, guess)


@_trajectory.def_jvp
def _trajectory_jvp(primals, tangents, **options):
    (loop,), (direction,) = primals, tangents
    x, *rest = _trajectory(loop, **options)
    jacobians = loop.linearised(loop.before(x), loop.counters, loop.inputs)[1]
    moved, still = eqx.partition(loop, jtu.tree_map(lambda d: d is not None, direction, is_leaf=lambda d: d is None))
    pushed = jax.jvp(lambda moved: eqx.combine(moved, still).after(x), (moved,), (direction,))[1]
    return (x, *rest), (_recur(jacobians, pushed), *jtu.tree_map(lambda _: None, rest))


def _recur(A: Float[Array, "H D D"], b: Float[Array, "H D"]) -> Float[Array, "H D"]:
    """Return x_1 ... x_H where x_{t+1} = A_t x_t + b_t, from x_0 = 0. It is linear in b in every mode of differentiation."""
    zero = jnp.zeros_like(b[:1])
    residual = lambda x: x - _product(A, jnp.concatenate([zero, x[:-1]]))
    reverse = jnp.concatenate([jnp.zeros_like(A[:1]), A[:0:-1].swapaxes(1, 2)])  # A_H ends no step.
    forwards = lambda _, b: _finite(A, b)
    backwards = lambda _, g: _finite(reverse, g[::-1])[::-1]
    return lax.custom_linear_solve(residual, b, forwards, transpose_solve=backwards)


def _finite(A: Float[Array, "T D D"], b: Float[Array, "T D"]) -> Float[Array, "T D"]:
    """Return what `_scan` does, step by step where its products overflow."""
    x = _scan(A, b)[1]
    step = lambda t, x: x.at[t].set(_product(A[t], jnp.where(t == 0, 0, x[t - 1])) + b[t])
    # Not `cond`, which runs both branches in a batch.
    return lax.fori_loop(0, jnp.where(jnp.all(jnp.isfinite(x)), 0, len(b)), step, x)


def _scan(A: Float[Array, "T D D"], b: Float[Array, "T D"]) -> tuple[Float[Array, "T D D"], Float[Array, "T D"]]:
    """Return the products A_t ... A_1, and x_t = A_t x_{t-1} + b_t from x_0 = 0, by an associative scan."""

    def combine(before, after):
        (A, b), (C, d) = before, after
        return jnp.matmul(C, A, precision="highest"), _product(C, b) + d

    return lax.associative_scan(combine, (A, b))


def _product(A: Float[Array, "*T D D"], x: Float[Array, "*T D"]) -> Float[Array, "*T D"]:
    return jnp.sum(A * x[..., None, :], axis=-1)  # Not `einsum`, which is TF32 on a GPU.


class _Progress(eqx.Module):
    """Where the sweeps stand."""

    x: Float[Array, "H D"]
    settled: Int[Array, ""]  # Number of steps that have settled.
    reached: Int[Array, ""]  # Number of steps that some sweep has included.
    sweeps: Int[Array, ""]
    residual: Scalar  # Largest change of a value that settled in the last sweep.
    change: Float[Array, " H"]  # Of each step in its last sweep, relative to its size.
    size: Float[Array, " D"]  # Largest settled value of each entry.
    direction: Float[Array, " D"]  # A tangent vector at the last settled step,
    growth: Scalar  # and the logarithm of what it has grown by.


def _settle(method: Newton, loop: _Loop, guess: Float[Array, "H D"]) -> tuple[Array, Array, Sweeps, Array]:
    horizon, size = guess.shape
    window = min(method.block or horizon, horizon)
    limit = min(method.max_sweeps or horizon, horizon)
    dtype, eps = guess.dtype, float(jnp.finfo(guess.dtype).eps)
    tolerance, small, of_step = rounding(loop.program, dtype)
    # Newton's error after a change is about its square. Where products are rounded, that may be below their rounding errors.
    enough = jnp.where((tolerance > 8 * eps) & (method.tolerance is None), jnp.sqrt(tolerance), 0)
    tolerance = tolerance if method.tolerance is None else method.tolerance
    small = jnp.maximum(small, math.sqrt(eps))  # Newton's error after such a change is its square, so the last digit.
    index, steps = jnp.arange(window), (loop.counters, loop.inputs)
    most = lambda x: jnp.max(jnp.abs(x), axis=0)

    def sweep(now: _Progress) -> _Progress:
        begin = jnp.minimum(now.settled, horizon - window)
        cut = lambda x: x if window == horizon else lax.dynamic_slice_in_dim(x, begin, window)
        put = lambda x, part: part if window == horizon else lax.dynamic_update_slice_in_dim(x, part, begin, 0)
        known, leads = (index < now.settled - begin)[:, None], (index == now.settled - begin)[:, None]
        at = lambda n: jnp.where(n == 0, loop.first, now.x[n - 1])
        y, last = cut(now.x), at(now.settled)
        # A step that is new begins from the last settled value, and every step does if that is not finite.
        fresh = (index >= now.reached - begin)[:, None] & (method.start is None) | ~jnp.all(jnp.isfinite(last))
        y = jnp.where(fresh & ~known, last, y)

        before = jnp.concatenate([at(begin)[None], y[:-1]])
        plain, jacobians = loop.linearised(before, *jtu.tree_map(cut, steps))
        jacobians = jnp.where(known[..., None], jnp.eye(size, dtype=dtype), jacobians)
        products, moves = _scan(jacobians, jnp.where(known, 0, plain - y))
        lead = plain[now.settled - begin]
        scale = jnp.maximum(now.size, jnp.where(jnp.isfinite(lead), jnp.abs(lead), 0))
        bound = REACH * jnp.maximum(scale, 1e-3 * jnp.max(scale))
        plausible = lambda x: jnp.all(jnp.abs(x) <= bound, axis=1, keepdims=True)
        followed = plausible(y + moves)
        reset = ~followed & ~plausible(plain) & jnp.all(jnp.isfinite(last))
        x = jnp.where(followed, y + moves, jnp.where(reset, last, plain))
        x = jnp.where(leads, plain, jnp.where(known, y, x))

        unit = jnp.maximum(now.size, jnp.abs(x))
        # Rounding errors of large entries reach those near 0.
        unit = jnp.maximum(unit, math.sqrt(eps) * jnp.max(unit, axis=1, keepdims=True))

        def distance(x):
            same = (x == y) | jnp.isnan(x) & jnp.isnan(y)
            moved = jnp.where(same, 0, jnp.abs(x - y) / unit)
            return jnp.max(jnp.where(jnp.asarray(loop.hints) & (moved <= math.sqrt(eps)), 0, moved), axis=1)

        change = jnp.where(reset[:, 0], jnp.inf, distance(x))
        falls = (change <= cut(now.change) / 2) & (change > enough)
        stalled = (change <= small) & ~falls & (distance(plain) <= of_step)
        quiet = known[:, 0] | (change <= tolerance) | stalled
        # The first value that changes is exact, because nothing before it did, unless it had to be reset.
        same_until = jnp.where(jnp.all(quiet), window, jnp.argmin(quiet))
        exact = (leads | ~reset)[jnp.argmin(quiet), 0].astype(int)
        count = jnp.minimum(same_until + exact, window)

        direction = _product(products[count - 1], now.direction)
        norm = jnp.linalg.norm(direction)
        sound = (norm > 0) & jnp.isfinite(norm)
        return _Progress(
            put(now.x, x),
            begin + count,
            begin + window,
            now.sweeps + 1,
            jnp.max(jnp.where(known[:, 0] | (index >= same_until), 0, change)),
            put(now.change, change),
            jnp.maximum(now.size, most(jnp.where((index[:, None] < count) & jnp.isfinite(x), x, 0))),
            jnp.where(sound, direction / norm, now.direction),
            now.growth + jnp.where(sound, jnp.log(norm), 0),
        )

    zero = jnp.zeros((), int)
    infinite, direction = jnp.full(horizon, jnp.inf, dtype), jnp.full(size, size**-0.5, dtype)
    start = _Progress(guess, zero, zero, zero, infinite[0], infinite, most(guess), direction, jnp.zeros((), dtype))
    end = lax.while_loop(lambda now: (now.settled < horizon) & (now.sweeps < limit), sweep, start)
    # A few steps say little: a matrix may enlarge a vector once and then no more.
    exponent = jnp.where(end.growth > math.log(10), end.growth / jnp.maximum(end.settled, 1).astype(dtype), 0)
    return end.x, end.settled, Sweeps(end.sweeps, end.residual), exponent
