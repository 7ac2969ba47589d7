"""`ode_step` against diffrax's own steps and against solutions in closed form."""

import functools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st

from awmkit.tasks import ode_step


class ThreeEighths(diffrax.AbstractERK):
    """A solver of a user's own: Kutta's 3/8 rule, whose last stage counts, and which ends at no stage."""

    interpolation_cls = diffrax.LocalLinearInterpolation
    tableau = diffrax.ButcherTableau(
        c=np.array([1 / 3, 2 / 3, 1.0]),
        a_lower=(np.array([1 / 3]), np.array([-1 / 3, 1.0]), np.array([1.0, -1.0, 1.0])),
        b_sol=np.array([1 / 8, 3 / 8, 3 / 8, 1 / 8]),
        b_error=np.array([-1 / 8, 1 / 8, 1 / 8, -1 / 8]),
    )

    def order(self, terms):
        return 4


class Doubled(diffrax.Heun):
    """A solver that does more in its step than its tableau says."""

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        y, *others = super().step(terms, t0, t1, y0, args, solver_state, made_jump)
        return jax.tree.map(lambda y: 2 * y, y), *others


EXPLICIT = [s() for s in diffrax.AbstractERK.__subclasses__() if s.__module__.startswith("diffrax")]
SOLVERS = [diffrax.Euler(), *EXPLICIT, ThreeEighths(), Doubled(), diffrax.ReversibleHeun(), diffrax.LeapfrogMidpoint()]
QUICK = "Tsit5", "ThreeEighths", "Doubled"
by_name = lambda solver: type(solver).__name__


def field(t, x, args):
    rate, push = args
    return jnp.stack([jnp.sin(x[1]) * rate + push[0] * t, -x[0] * x[1] - jnp.cos(3 * t) * push[1]])


@functools.cache
def programs(solver):
    """Return a function that integrates by `ode_step`, by `ode_step` on a tuple of scalars, and by steps of the solver itself."""

    def ours(x, args, dt):
        return ode_step(field, x, args, solver=solver, dt=dt, substeps=3)

    def scalars(x, args, dt):
        apart = lambda t, x, args: tuple(field(t, jnp.stack(x), args))
        return jnp.stack(ode_step(apart, tuple(x), args, solver=solver, dt=dt, substeps=3))

    def theirs(x, args, dt):
        term, h = diffrax.ODETerm(field), dt / 3
        y, state = x, solver.init(term, 0 * h, h, x, args)
        for i in range(3):
            y, _, _, state, _ = solver.step(term, i * h, (i + 1) * h, y, args, state, made_jump=False)
        return y

    return jax.jit(lambda *given: [f(*given) for f in (ours, scalars, theirs)])


@pytest.mark.parametrize(
    "solver", [pytest.param(s, marks=[pytest.mark.slow] * (by_name(s) not in QUICK), id=by_name(s)) for s in SOLVERS]
)
@given(
    st.lists(st.floats(-2, 2, width=32), min_size=5, max_size=5), st.floats(0.01, 0.3), st.sampled_from(["float32", "float64"])
)
def test_a_step_equals_that_of_diffrax_to_rounding(solver, numbers, dt, dtype):
    x, push, rate, dt = (jnp.asarray(v, dtype) for v in (numbers[:2], numbers[2:4], numbers[4], dt))
    ours, scalars, theirs = programs(solver)(x, (rate, push), dt)
    assert ours.dtype == scalars.dtype == dtype
    tolerance = 16 * jnp.finfo(dtype).eps * (1 + jnp.max(jnp.abs(theirs)))
    assert jnp.max(jnp.abs(ours - theirs)) < tolerance and jnp.max(jnp.abs(scalars - theirs)) < tolerance


@pytest.mark.parametrize("solver", [diffrax.ImplicitEuler, diffrax.Kvaerno3])
def test_an_implicit_solver_equals_diffeqsolve_and_is_nan_where_it_does_not_converge(solver):
    tight = solver(root_finder=diffrax.VeryChord(rtol=1e-9, atol=1e-9))
    linear, cubic = (lambda t, x, rate: rate * (jnp.cos(t) - x)), (lambda t, x, rate: -rate * x**3)
    end = lambda x: ode_step(linear, x, 50.0, solver=tight, dt=0.5, substeps=20)
    start = jnp.array(2.0)
    theirs = diffrax.diffeqsolve(diffrax.ODETerm(linear), tight, 0, 0.5, 0.5 / 20, start, 50.0)
    np.testing.assert_allclose(end(start), theirs.ys[0], rtol=1e-7)
    change = (end(start + 1) - end(start - 1)) / 2
    np.testing.assert_allclose([jax.grad(end)(start), jax.jacfwd(end)(start)], change, rtol=1e-3)
    assert jnp.isnan(ode_step(cubic, start, 50.0, solver=tight, dt=0.5, substeps=4))
    with pytest.raises(ValueError, match=r"needs tolerances.*root_finder=diffrax.VeryChord\(rtol="):
        ode_step(linear, start, 50.0, solver=solver(), dt=0.5)
