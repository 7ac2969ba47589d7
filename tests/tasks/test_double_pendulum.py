"""The double pendulum: its physics, its integration, its derivatives, and the two tasks on it."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st

from awmkit import unroll, unroll_grad
from awmkit.tasks import Angles, Circles, DoublePendulum, DrivenDoublePendulum, PassiveDoublePendulum

ANGLES = st.tuples(*[st.floats(-3, 3)] * 4)


@jax.jit
def euler_lagrange(y, tau):
    """Return the accelerations that solve d/dt dL/dw = dL/dth + Q, and the vector field."""
    pendulum = DoublePendulum(masses=(1.3, 0.7), lengths=(0.9, 1.2))

    def lagrangian(th, w):
        potential = pendulum.energy(jnp.stack([th[0], 0.0 * w[0], th[1], 0.0 * w[1]]))
        return pendulum.energy(jnp.stack([th[0], w[0], th[1], w[1]])) - 2 * potential

    th, w = y[::2], y[1::2]
    mass = jax.hessian(lagrangian, 1)(th, w)
    force = jax.grad(lagrangian, 0)(th, w) + jnp.stack([tau[0] - tau[1], tau[1]])
    force = force - jax.jacobian(jax.grad(lagrangian, 1), 0)(th, w) @ w
    return jnp.linalg.solve(mass, force), pendulum.field(y, tau)


@given(angles=ANGLES, tau=st.tuples(*[st.floats(-5, 5)] * 2))
def test_the_vector_field_solves_the_euler_lagrange_equations(angles, tau):
    accelerations, field = euler_lagrange(jnp.asarray(angles), jnp.asarray(tau))
    assert jnp.allclose(field[::2], jnp.asarray(angles)[1::2])
    assert jnp.allclose(field[1::2], accelerations, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    "solver, order", [(diffrax.Euler(), 1), (diffrax.Heun(), 2), (diffrax.Bosh3(), 3), (diffrax.Tsit5(), 5)]
)
def test_the_energy_error_decreases_at_the_order_of_the_solver(solver, order):
    @jax.jit  # The step and the number of steps are traced, so all step sizes share one program.
    def drift(dt, steps):
        pendulum, start = DoublePendulum(solver=solver, dt=dt, substeps=1), jnp.array([2.0, 0.0, 1.0, 0.0])
        end = jax.lax.fori_loop(0, steps, lambda _, y: pendulum.flow(y, jnp.zeros(2)), start)
        return jnp.abs(pendulum.energy(end) - pendulum.energy(start))

    substeps, dt = np.array([1, 2, 4, 8]), 0.05 if order == 5 else 0.02
    slope = np.polyfit(np.log(1 / substeps), np.log([drift(dt / n, 20 * n) for n in substeps]), 1)[0]
    assert order - 0.4 < slope < order + 1.6  # The energy may be more accurate than the state, by at most one order.


def test_the_default_solver_conserves_energy_over_200_steps():
    pendulum = DoublePendulum()
    states = unroll(pendulum, jnp.zeros((200, 2)), jnp.array([1.9, 0.0, 1.9, 0.0]), 200).states
    energies = jax.vmap(pendulum.energy)(states)
    assert jnp.max(jnp.abs(energies - energies[0])) < 0.02  # J, of a range of 58.8


def test_a_step_has_the_value_and_derivatives_of_diffeqsolve():
    pendulum, tau, h = DoublePendulum(substeps=3), jnp.array([1.0, -2.0]), 0.05

    def reference(y):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, tau: pendulum.field(y, tau)),
            diffrax.Tsit5(),
            0.0,
            h,
            h / 3,
            y,
            tau,
            stepsize_controller=diffrax.ConstantStepSize(),
            adjoint=diffrax.RecursiveCheckpointAdjoint(),
        ).ys[-1]

    flow = lambda y: pendulum.flow(y, tau)
    ours = jax.jit(lambda y: (flow(y), jax.jacrev(flow)(y), jax.jacfwd(flow)(y)))
    theirs = jax.jit(lambda y: (reference(y), jax.jacrev(reference)(y)))
    y = jnp.array([2.0, 0.5, -1.0, 1.5])
    (value, reverse, forward), (expected, jacobian) = ours(y), theirs(y)
    assert jnp.allclose(value, expected, rtol=1e-12)
    assert jnp.allclose(reverse, jacobian, rtol=1e-10) and jnp.allclose(forward, jacobian, rtol=1e-10)


@jax.jit
def _move_in_both(y):
    in_circles, in_angles, torques = DoublePendulum(Circles()), DoublePendulum(Angles()), jnp.array([0.3, -0.4])
    moved = in_circles.step(None, Circles().encode(y), torques, 0)[1]
    expected = Circles().encode(in_angles.step(None, y, torques, 0)[1])
    return moved, expected, Circles().heights(moved), Angles().heights(Circles().decode(moved))


@given(angles=ANGLES)
def test_both_coordinates_describe_the_same_motion(angles):
    moved, expected, *heights = _move_in_both(jnp.asarray(angles))
    assert jnp.allclose(moved, expected, atol=1e-12) and jnp.allclose(*heights)


@pytest.mark.parametrize("coordinates", [Angles(), Circles()], ids=["angles", "circles"])
def test_the_passive_goal_is_reached_from_its_release_and_later_actions_have_no_effect(coordinates):
    task = PassiveDoublePendulum(30, pendulum=DoublePendulum(coordinates))
    start = task.reset(jax.random.key(0))
    at_goal = jnp.zeros((30, 1)).at[0].set(0.6)
    value, grads = unroll_grad(task, at_goal, start, 30, reward=task.reward)
    assert jnp.allclose(value, 0, atol=1e-18) and jnp.max(jnp.abs(grads)) < 1e-8
    away, grads = unroll_grad(task, at_goal.at[0].set(0.5), start, 30, reward=task.reward)
    assert away < -1e-3 and abs(grads[0, 0]) > 1e-3 and (grads[1:] == 0).all()
    noisy = unroll(task, at_goal.at[1:].set(0.7), start, 30, reward=task.reward)
    assert jnp.allclose(noisy.rewards, 0, atol=1e-18) and (noisy.rewards[:-1] == 0).all()


def test_the_driven_task_starts_near_rest_rewards_height_and_depends_on_every_torque():
    task = DrivenDoublePendulum(20)
    states = jax.vmap(task.reset)(jax.random.split(jax.random.key(0), 50))
    assert jnp.max(jnp.abs(states)) <= 0.1 and jnp.std(states) > 0.03
    up, down = (task.reward(jnp.array([th, 0.0, th, 0.0]), jnp.zeros(2), 0) * 20 for th in (jnp.pi, 0.0))
    assert np.isclose(up, 1) and np.isclose(down, -1)
    _, grads = unroll_grad(task, jnp.zeros((20, 2)), states[0], 20, reward=task.reward)
    assert (jnp.abs(grads[:-1]) > 1e-8).all()  # The last action only has a cost, whose derivative at zero is zero.


def test_the_default_substeps_of_the_driven_task_resolve_the_fastest_motion():
    def pump(state, t, *, key=None):
        _, w1, _, w2 = state
        return jnp.where(jnp.stack([w1, w2 - w1]) >= 0, 1.0, -1.0)

    tasks = DrivenDoublePendulum(100), DrivenDoublePendulum(100, pendulum=DoublePendulum(substeps=32))
    states = [unroll(task, pump, jnp.array([0.05, 0.02, -0.03, 0.01]), 100).states for task in tasks]
    energies = [jax.vmap(task.pendulum.energy)(x) for task, x in zip(tasks, states, strict=True)]
    assert jnp.max(jnp.abs(states[1][:, 1::2])) > 30, "the motors must have pumped"
    np.testing.assert_allclose(*energies, rtol=1e-3, atol=1e-3)
