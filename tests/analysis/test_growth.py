"""Growth laws are recognised; gradients grow as fast as theory says."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st
from systems import DYNAMICS, reward

from awmkit import AbstractDynamics, AWM, RNN, Transformer, unroll_grad
from awmkit.analysis import action_jacobian, fit_growth, gradient_growth, lyapunov, true_gradient
from awmkit.tasks import Henon, LinearQuadratic, spiral

HORIZONS = np.array([4, 8, 16, 32, 64, 128, 256, 512])
LONG = 64


def starts(dynamics, count=3, horizon=LONG):
    keys = jax.random.split(jax.random.key(0))
    states = 0.5 * jax.random.normal(keys[0], (count, dynamics.state_size))
    return states, 0.5 * jax.random.normal(keys[1], (count, horizon, dynamics.action_size))


@given(rate=st.floats(0.02, 1), degree=st.floats(0, 4), seed=st.integers(0, 2**31 - 1))
def test_exponential_and_polynomial_growth_are_recognised_under_noise(rate, degree, seed):
    noise = np.exp(0.3 * np.random.default_rng(seed).normal(size=8))
    exponential, polynomial = (
        fit_growth(HORIZONS, np.exp(rate * HORIZONS) * noise),
        fit_growth(HORIZONS, HORIZONS**degree * noise),
    )
    assert exponential.law == "exponential" and abs(exponential.rate - rate) < 0.01
    assert polynomial.law != "exponential" and abs(polynomial.degree - degree) < 0.5


# For the horizons h = 1, 2, 4, 8 and x = log2(h) = 0, 1, 2, 3, the sums of squares about the means are (x, x) = 5, (h, h) = 28.75
# and (x, h) = 11.5. So a line in h leaves 5 - 11.5^2 / 28.75 = 0.4 of x, and a line in x leaves 28.75 - 11.5^2 / 5 = 2.3 of h.
# (-2, 5, -4, 1) is orthogonal to constants, h and x. The quantile is that of 97.5 % of Student's t with 2 degrees of freedom.
FOUR, T_QUANTILE = np.array([1, 2, 4, 8]), 0.95 * math.sqrt(2 / (1 - 0.95**2))


@pytest.mark.parametrize("decisive", [2.0, 5.0])
def test_a_law_is_undecided_up_to_the_margin_on_both_sides(decisive):
    for margin, law in ((1.001, "exponential"), (0.999, "undecided"), (-0.999, "undecided"), (-1.001, "polynomial")):
        # log norm = x + slope h leaves 0.4 for the exponential and 2.3 slope^2 for the polynomial.
        slope = math.sqrt(math.exp(margin * decisive / 4) * 0.4 / 2.3)
        found = fit_growth(FOUR, np.exp(np.log2(FOUR) + slope * FOUR), decisive=decisive)
        assert found.law == law and math.isclose(found.margin, margin * decisive, rel_tol=1e-9)


def test_intervals_of_rate_and_degree_have_their_widths_and_a_rate_that_may_be_0_is_polynomial():
    for size in (0.999, 1.001):
        slope = size * T_QUANTILE * math.sqrt(1 / 2 / 28.75)
        found = fit_growth(FOUR, np.exp(slope * FOUR + np.array([-2, 5, -4, 1]) / math.sqrt(46)))
        assert found.margin > 2 and found.law == ("polynomial" if size < 1 else "exponential")
        np.testing.assert_allclose([found.rate, *found.rate_interval], slope + slope / size * np.array([0, -1, 1]), atol=1e-12)
        width = T_QUANTILE * math.sqrt((1 + 2.3 * slope**2) / 2 / 5)
        expected = (2.3 * slope + width * np.array([0, -1, 1])) / math.log(2)
        np.testing.assert_allclose([found.degree, *found.degree_interval], expected, rtol=1e-12)


def test_the_law_is_right_for_95_percent_of_curves_and_intervals_contain_the_truth():
    rng, count = np.random.default_rng(0), 1000
    noise = np.exp(0.3 * rng.normal(size=(2, count, 8)))
    rates, degrees = rng.uniform(0.02, 1, count), rng.uniform(0, 4, count)
    exponential = [fit_growth(HORIZONS, np.exp(r * HORIZONS) * e) for r, e in zip(rates, noise[0], strict=True)]
    polynomial = [fit_growth(HORIZONS, HORIZONS**d * e) for d, e in zip(degrees, noise[1], strict=True)]
    right = sum(g.law == "exponential" for g in exponential), sum(g.law == "polynomial" for g in polynomial)
    assert min(right) >= 0.95 * count  # "undecided" counts as wrong.
    holds = lambda interval, x: interval[0] <= x <= interval[1]
    covered = [holds(g.rate_interval, r) for g, r in zip(exponential, rates, strict=True)]
    covered += [holds(g.degree_interval, d) for g, d in zip(polynomial, degrees, strict=True)]
    assert 0.93 < np.mean(covered) < 0.97


def test_a_law_prints_as_a_formula_and_is_undecided_if_the_data_are_too_few():
    assert fit_growth([10, 11, 12, 13], np.exp(0.1 * np.arange(4) + np.array([0.02, -0.03, 0.03, -0.02]))).law == "undecided"
    assert str(fit_growth(HORIZONS, HORIZONS**2.0)) == "H^2"
    assert str(fit_growth(HORIZONS, np.exp(0.05 * HORIZONS))) == "exp(0.05 H)"
    vanishing = fit_growth(HORIZONS[:6], np.exp(-0.3 * HORIZONS[:6]))
    assert vanishing.law == "exponential" and np.isclose(vanishing.rate, -0.3)


@given(rate=st.floats(0.8, 1.3).filter(lambda r: abs(r - 1) > 0.05), angle=st.floats(-3, 3))
def test_the_effect_of_an_action_grows_with_the_rate_of_a_spiral(rate, angle):
    system = spiral(rate, angle)
    found = gradient_growth(system, *starts(system))
    assert np.allclose(found.norms, rate ** (found.horizons[:, None] - 1.0))
    assert found.law.law == "exponential" and np.isclose(found.law.rate, math.log(rate))


def test_the_effect_of_a_push_on_a_free_mass_grows_linearly():
    mass = LinearQuadratic(jnp.array([[1.0, 0.1], [0.0, 1.0]]), jnp.array([[0.0], [1.0]]))
    found = gradient_growth(mass, *starts(mass, horizon=512), horizons=[64, 128, 256, 512])
    assert found.law.law == "polynomial" and abs(found.law.degree - 1) < 0.02


@pytest.mark.parametrize("name", ["linear, with noise", "HWM GRU", "AWM transformer, rotary time"])
def test_one_pass_gives_the_gradients_of_all_horizons(name):
    dynamics, key = DYNAMICS[name](), jax.random.key(5)
    states, actions = starts(dynamics, horizon=8)
    found = gradient_growth(
        dynamics, states, actions, reward=reward, horizons=[1, 3, 6, 8], discount=0.9, key=key, batch_size=2
    )
    for i, h in ((1, 3), (3, 8)):
        # The keys of the steps depend on the horizon, so a stochastic system can be compared at the longest horizon only.
        if name == "linear, with noise" and h < 8:
            continue
        for n, k in enumerate(jax.random.split(key, 3)):
            _, grads = unroll_grad(dynamics, actions[n, :h], states[n], h, reward=reward, discount=0.9, key=k)
            assert np.isclose(found.norms[i, n], jnp.linalg.norm(grads), rtol=1e-10)


@pytest.mark.parametrize("reads", ["state", "next_state"])
def test_states_that_overflow_later_change_no_gradient_before_and_one_diverging_start_no_median(reads):
    here, following = (
        (lambda state, action, t: -jnp.sum(state**2)),
        (lambda state, action, t, next_state: -jnp.sum(next_state**2)),
    )
    reward = here if reads == "state" else following
    states, actions = jnp.array([[0.1, 0.0], [0.2, 0.1], [0.0, 0.1], [5.0, 0.0]]), jnp.zeros((4, 60, 1))
    found = gradient_growth(Henon(), states, actions, reward=reward, horizons=[2, 4, 6, 40, 60])  # The last start diverges.
    short = gradient_growth(Henon(), states, actions[:, :6], reward=reward, horizons=[2, 3, 4, 6])
    np.testing.assert_allclose(found.norms[:3], short.norms[[0, 2, 3]], rtol=1e-12)
    assert (
        not np.isfinite(found.norms[3:, 3]).any() and np.isfinite(found.norms[:, :3]).all() and np.isfinite(found.median).all()
    )


class Bursting(AbstractDynamics):
    """x' = e^x - 1 + a / 10, whose derivative is infinite where the next state is."""

    state_size: int = eqx.field(static=True, default=1)
    action_size: int = eqx.field(static=True, default=1)

    def step(self, carry, state, action, t, *, key=None):
        return carry, jnp.expm1(state) + 0.1 * action


def test_a_step_that_overflows_reaches_no_gradient_before_it():
    states, actions, reward = (
        jnp.array([[1.3], [1.2]]),
        jnp.zeros((2, 12, 1)),
        lambda state, action, t, next_state: jnp.sum(next_state),
    )
    found = gradient_growth(Bursting(), states, actions, reward=reward, horizons=[1, 2, 3, 12])
    exact = gradient_growth(Bursting(), states, actions[:, :4], reward=reward, horizons=[1, 2, 3, 4])
    np.testing.assert_allclose(found.norms[:3], exact.norms[:3], rtol=1e-12)
    assert np.isfinite(found.norms[:3]).all() and np.isnan(found.norms[3]).all()
    reference = true_gradient(
        Bursting(), actions[0], states, reward=reward, horizons=[1, 2], key=jax.random.key(0), sigma=1e-3, pairs=16
    )
    assert np.isfinite(reference.exact).all()
    forward, reverse = (action_jacobian(Bursting(), states[0], actions[0], mode=m).blocks for m in ("forward", "reverse"))
    finite = np.isfinite(forward).all((1, 2, 3))
    assert finite[:4].all() and not finite[-1]
    np.testing.assert_allclose(reverse[finite], forward[finite], rtol=1e-12)
    assert np.isnan(reverse[~finite]).all()


def test_several_dynamics_are_pooled_and_a_zero_gradient_is_reported():
    pair = spiral(1.1, 0.3), spiral(1.2, 0.3)
    assert gradient_growth(pair, *starts(pair[0])).norms.shape[1] == 6

    class Deaf(AbstractDynamics):
        state_size: int = 2
        action_size: int = 1

        def init(self, state, horizon):
            return None

        def step(self, carry, state, action, t, *, key=None):
            return carry, 1.1 * state

    found = gradient_growth(Deaf(), *starts(Deaf()), reward=lambda s, a, t: jnp.sum(s))
    assert found.law is None and "0 or not finite at H = 4" in str(found)


# Statements of theory. A bound on the growth between neighbouring horizons bounds the slope of any line through them.


def linear_cell(U):
    """An AWM with a linear recurrent cell: h_{t+1} = U h_t + B a_t, s_t = h_t."""
    return AWM.from_dynamics(LinearQuadratic(U, jnp.eye(U.shape[0])[:, :1]))


@given(seed=st.integers(0, 2**31 - 1), scale=st.floats(0.7, 1.4))
def test_the_rate_of_a_linear_cell_lies_between_the_logarithms_of_its_extreme_singular_values(seed, scale):
    U = scale * jax.random.orthogonal(jax.random.key(seed), 4)
    scaled = gradient_growth(linear_cell(U), *starts(linear_cell(U)))
    assert np.allclose(np.diff(np.log(scaled.norms[:, 0])), np.diff(scaled.horizons) * math.log(scale))
    U = U + 0.2 * jax.random.normal(jax.random.key(seed + 1), (4, 4))
    general = gradient_growth(linear_cell(U), *starts(linear_cell(U)))
    singular = jnp.linalg.svd(U, compute_uv=False)
    assert np.log(singular[-1]) - 1e-9 <= general.law.rate <= np.log(singular[0]) + 1e-9


@given(seed=st.integers(0, 2**31 - 1), scale=st.floats(0.8, 1.6))
def test_the_rate_of_an_rnn_is_at_most_the_logarithm_of_its_largest_singular_value(seed, scale):
    """Measured on the hidden state; the head changes the norm by a bounded factor."""
    rnn = RNN(8, key=jax.random.key(seed))
    rnn = eqx.tree_at(lambda r: r.recurrent, rnn, scale * rnn.recurrent)
    awm = AWM(8, 2, rnn, predict_changes=False, key=jax.random.key(1))
    awm = eqx.tree_at(lambda m: m.head, awm, eqx.nn.Identity())
    found = gradient_growth(awm, *starts(awm), horizons=[2, 4, 8, 16, 24])
    assert (np.diff(np.log(found.norms), axis=0) <= np.diff(found.horizons)[:, None] * math.log(scale) + 1e-9).all()
    assert found.law.rate <= math.log(scale) + 1e-9


def test_self_attention_grows_at_most_like_a_cubic():
    awm = AWM(3, 2, Transformer(12, 2, 3, key=jax.random.key(0)), key=jax.random.key(1))
    for of_return in (None, reward):
        law = gradient_growth(awm, *starts(awm, 4, 128), reward=of_return, horizons=[4, 8, 16, 32, 64, 128]).law
        assert law.law != "exponential" and law.degree_interval[1] < 3


def test_gradients_of_a_chaotic_map_grow_at_its_lyapunov_exponent():
    system, (states, actions) = Henon(), starts(Henon(), 64, 200)
    # Small starts and no actions: random actions can push a trajectory out of the attractor's basin, to infinity.
    states, actions = 0.1 * states, jnp.zeros_like(actions)
    found = gradient_growth(system, states, actions, horizons=[10, 20, 40, 60, 80, 120, 160, 200])
    exponents = jax.vmap(lambda s, a: lyapunov(system, s, a).exponents[0])(states, actions)
    assert found.law.law == "exponential" and abs(found.law.rate - exponents.mean()) < 0.1 * exponents.mean()
