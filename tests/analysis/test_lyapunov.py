"""Lyapunov exponents of systems with known exponents, and of a model fitted to one of them."""

import jax
import jax.numpy as jnp
import optax
from hypothesis import given, strategies as st
from mixed import Mixed

from awmkit import AWM, fit, Markov, NoProgress, RNN, unroll
from awmkit.analysis import lyapunov
from awmkit.tasks import DoublePendulum, Henon, LinearQuadratic, Lorenz, spiral


@given(rate=st.floats(0.5, 1.5), angle=st.floats(-3, 3))
def test_exponents_of_a_spiral_are_the_logarithm_of_its_rate(rate, angle):
    exponents = lyapunov(spiral(rate, angle), jnp.ones(2), jnp.zeros((50, 1)), count=2).exponents
    assert jnp.allclose(exponents, jnp.log(rate), atol=1e-9)


def test_exponents_of_a_rotation_are_zero():
    exponents = lyapunov(spiral(1.0, 0.3), jnp.ones(2), jnp.zeros((1000, 1)), count=2).exponents
    assert jnp.abs(exponents).max() < 1e-6


def test_exponents_of_a_linear_map_are_the_logarithms_of_its_eigenvalues_and_converge():
    system = LinearQuadratic(jnp.array([[0.5, 1.0, 0.0], [0.0, 1.2, 0.3], [0.0, 0.0, 0.9]]), jnp.ones((3, 1)))
    result = lyapunov(system, jnp.ones(3), jnp.zeros((2000, 1)), count=3)
    assert jnp.allclose(result.exponents, jnp.log(jnp.array([1.2, 0.9, 0.5])), atol=2e-3)
    assert jnp.abs(result.running[-1] - result.running[-200]).max() < 1e-3
    settled = lyapunov(system, jnp.ones(3), jnp.zeros((2000, 1)), count=3, discard=500)
    assert jnp.allclose(settled.exponents, jnp.log(jnp.array([1.2, 0.9, 0.5])), atol=1e-12)
    assert settled.running.shape == (1500, 3)


def test_exponents_of_lorenz_and_henon_agree_with_the_literature():
    lorenz, henon, free = Lorenz(), Henon(), jnp.zeros((20_000, 1))
    starts = jax.vmap(lorenz.reset)(jax.random.split(jax.random.key(0), 8))
    on_attractor = jax.vmap(lambda s: unroll(lorenz, free[:2000], s, 2000).states[-1])(starts)
    each = jax.vmap(lambda s: lyapunov(lorenz, s, free, count=3).exponents)(on_attractor) / lorenz.dt
    assert abs(each[:, 0].mean() / 0.9056 - 1) < 0.02
    assert jnp.allclose(each.sum(axis=1), -(10 + 1 + 8 / 3), atol=1e-4)  # Volumes shrink at the same rate everywhere.
    starts = jax.vmap(henon.reset)(jax.random.split(jax.random.key(0), 8))
    each = jax.vmap(lambda s: lyapunov(henon, s, free[:10_000], count=2).exponents)(starts)
    assert abs(each[:, 0].mean() / 0.4192 - 1) < 0.01
    assert jnp.allclose(each.sum(axis=1), jnp.log(0.3))


def test_exponents_of_a_hamiltonian_system_come_in_pairs():
    pendulum = DoublePendulum(dt=0.02)
    exponents = lyapunov(pendulum, jnp.array([2.0, 0.0, 2.5, 0.0]), jnp.zeros((3000, 2)), count=4).exponents / 0.02
    assert exponents[0] > 0.5 and abs(exponents[0] + exponents[3]) < 0.2 and abs(exponents[1] + exponents[2]) < 0.2


def test_exponents_include_the_carry():
    each = lyapunov(Mixed(0.5, 0.7), jnp.ones(1), jnp.zeros((300, 1)), count=2).exponents
    assert jnp.isclose(each[0], jnp.log(1.2), atol=1e-2) and each[1] < -0.1
    awm = AWM(3, 2, RNN(8, key=jax.random.key(0)), key=jax.random.key(1))
    assert lyapunov(awm, jnp.ones(3), jnp.zeros((200, 2)), count=2).exponents[0] < 0.1


def test_an_accurate_model_has_the_exponents_of_the_system_it_was_fitted_to():
    henon = Henon()
    keys = jax.random.split(jax.random.key(0), 4)
    settle = lambda s: unroll(henon, jnp.zeros((100, 1)), s, 100).states[-1]
    starts = jax.vmap(settle)(jax.vmap(henon.reset)(jax.random.split(keys[0], 128)))
    actions = jax.random.uniform(keys[1], (128, 30, 1), minval=-1.0)
    with jax.numpy_dtype_promotion("standard"):
        episodes = jax.vmap(lambda s, a: unroll(henon, a, s, 30))(starts, actions)
        model = Markov(2, 1, width=32, depth=1, key=keys[2]).normalised(episodes)
        optimiser = optax.adam(optax.cosine_decay_schedule(1e-2, 1500))
        options = {"updates": 1500, "batch_size": 16, "optimiser": optimiser, "progress": NoProgress()}
        model = fit(model, episodes, key=keys[3], **options).model
    # Without noise even an accurate model may settle on one of the many periodic orbits close to the attractor.
    noise = jax.random.uniform(keys[1], (1500, 1), minval=-1.0)
    mean = lambda d: jax.vmap(lambda s: lyapunov(d, s, noise).exponents[0])(episodes.states[:8, -1]).mean()
    assert abs(mean(model) / mean(henon) - 1) < 0.1
