"""Growth laws told apart, Lyapunov exponents of systems that have known ones."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, strategies as st

from awmkit import AWM, RNN
from awmkit.analysis import fit_growth, lyapunov
from awmkit.tasks import DoublePendulum, LinearQuadratic, spiral

HORIZONS = np.array([4, 8, 16, 32, 64, 128, 256, 512])


@given(rate=st.floats(0.02, 1), degree=st.floats(0, 4), seed=st.integers(0, 2**31 - 1))
def test_growth_of_either_law_is_recognised_under_noise(rate, degree, seed):
    noise = np.exp(0.3 * np.random.default_rng(seed).normal(size=8))
    exponential, polynomial = (
        fit_growth(HORIZONS, np.exp(rate * HORIZONS) * noise),
        fit_growth(HORIZONS, HORIZONS**degree * noise),
    )
    assert exponential.law == "exponential" and abs(exponential.rate - rate) < 0.01
    assert polynomial.law != "exponential" and abs(polynomial.degree - degree) < 0.5


def test_growth_says_when_it_cannot_decide_and_reads_as_a_formula():
    assert fit_growth([10, 11, 12, 13], np.exp(0.1 * np.arange(4) + np.array([0.02, -0.03, 0.03, -0.02]))).law == "undecided"
    assert str(fit_growth(HORIZONS, HORIZONS**2.0)) == "H^2"
    assert str(fit_growth(HORIZONS, np.exp(0.05 * HORIZONS))) == "exp(0.05 H)"


@given(rate=st.floats(0.5, 1.5), angle=st.floats(-3, 3))
def test_exponents_of_a_spiral_are_the_logarithm_of_its_rate(rate, angle):
    exponents = lyapunov(spiral(rate, angle), jnp.ones(2), jnp.zeros((50, 1)), count=2).exponents
    assert jnp.allclose(exponents, jnp.log(rate), atol=1e-9)


def test_exponents_of_a_linear_map_are_its_log_rates_in_order_and_converge():
    system = LinearQuadratic(jnp.array([[0.5, 1.0, 0.0], [0.0, 1.2, 0.3], [0.0, 0.0, 0.9]]), jnp.ones((3, 1)))
    result = lyapunov(system, jnp.ones(3), jnp.zeros((2000, 1)), count=3)
    assert jnp.allclose(result.exponents, jnp.log(jnp.array([1.2, 0.9, 0.5])), atol=2e-3)
    assert jnp.abs(result.running[-1] - result.running[-200]).max() < 1e-3


def test_exponents_of_a_hamiltonian_system_come_in_pairs_and_those_of_a_model_need_no_state():
    pendulum = DoublePendulum(dt=0.02)
    exponents = lyapunov(pendulum, jnp.array([2.0, 0.0, 2.5, 0.0]), jnp.zeros((3000, 2)), count=4).exponents / 0.02
    assert exponents[0] > 0.5 and abs(exponents[0] + exponents[3]) < 0.2 and abs(exponents[1] + exponents[2]) < 0.2
    awm = AWM(3, 2, RNN(8, key=jax.random.key(0)), key=jax.random.key(1))
    assert lyapunov(awm, jnp.ones(3), jnp.zeros((200, 2)), count=2).exponents[0] < 0.1
