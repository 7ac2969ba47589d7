"""Fidelity against gradients known in closed form, and landscapes of known shape."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st
from jaxtyping import Array, Float

from awmkit import AbstractDynamics, BPO, MLPPolicy, Paths
from awmkit.analysis import fidelity, Landscape, landscape, true_gradient
from awmkit.analysis._fidelity import _interval
from awmkit.tasks import spiral

KEY = jax.random.key(0)
SYSTEM = spiral(1.05, 0.4)
STARTS = jax.random.normal(jax.random.key(1), (12, 2))
PLAN = 0.3 * jax.random.normal(jax.random.key(2), (10, 1))


def distance(state, action, t):
    return -jnp.sum(state**2)


class Folded(AbstractDynamics):
    """s_1 = sin(w a_0), s_2 = s_1, and so on: a landscape whose number of folds grows with w."""

    w: Float[Array, ""] = eqx.field(converter=lambda x: jnp.asarray(x, float))  # Arrays share one compiled program.
    state_size: int = 1
    action_size: int = 1

    def init(self, state, horizon):
        return None

    def step(self, carry, state, action, t, *, key=None):
        return carry, jnp.where(t == 0, jnp.sin(self.w * action), state)


@pytest.fixture(scope="module")
def truth():
    return true_gradient(SYSTEM, PLAN, STARTS, reward=distance, horizons=(4, 10), key=KEY, pairs=2000, batch_size=100)


def test_the_smoothed_gradient_of_a_quadratic_is_the_exact_one_within_its_standard_error(truth):
    assert (truth.exact[0, :, 3:] == 0).all() and (
        truth.exact[1, :, :9] != 0
    ).all()  # J_4 does not depend on a_3, which acts after s_3.
    each = (truth.smoothed - truth.exact) / truth.standard_error
    z = (truth.smoothed - truth.exact).mean(axis=1) / truth.standard_error_of_mean
    assert 0.8 < np.std(each) < 1.2 and np.abs(each).max() < 5
    assert 0.5 < np.std(z) < 1.6 and np.abs(z).max() < 4
    found = fidelity(SYSTEM, truth).smoothed
    for cosine, ceiling in ((found.cosine, truth.ceiling), (found.cosine_of_each, truth.ceiling_of_each)):
        assert (ceiling > 0.9).all() and np.abs(cosine.value - ceiling).max() < 0.05


@given(w=st.floats(0.5, 12), sigma=st.floats(0.05, 0.4))
def test_smoothing_flattens_folds_finer_than_sigma(w, sigma):
    actions, starts = jnp.full((2, 1), 0.1), jnp.zeros((2, 1))
    reward = lambda s, a, t: s[0]
    found = true_gradient(
        Folded(w), actions, starts, reward=reward, horizons=(2,), key=KEY, sigma=sigma, pairs=4000, batch_size=500
    )
    slope = w * np.cos(0.1 * w)
    assert np.allclose(found.exact[0, :, 0], slope)
    error = np.abs(found.smoothed[0, :, 0].mean() - slope * np.exp(-((w * sigma) ** 2) / 2))
    assert error < 4.5 * found.standard_error_of_mean[0, 0] + 1e-12


@given(gain=st.floats(0.1, 2), sign=st.sampled_from([-1.0, 1.0]))
def test_a_scaled_true_gradient_has_the_scale_as_its_norm_ratio(truth, gain, sign):
    found = fidelity(SYSTEM, truth, paths=Paths(action_to_model=jnp.asarray(sign * gain))).exact
    for part, expected in (
        (found.cosine, sign),
        (found.cosine_of_each, sign),
        (found.norm_ratio, gain),
        (found.bias, abs(1 - sign * gain)),
    ):
        for figure in (part.value, part.low, part.high):
            assert np.allclose(figure, expected, atol=1e-6)


def test_variance_and_signal_to_noise_ratio_are_taken_over_starts(truth):
    found = fidelity(SYSTEM, truth)
    variance = truth.exact.var(axis=1, ddof=1).sum(axis=-1)
    assert np.allclose(found.variance.value, variance)
    assert np.allclose(found.esnr.value, (truth.exact.mean(axis=1) ** 2).sum(axis=-1) / variance)
    assert (found.esnr.low < found.esnr.value).all() and (found.esnr.value < found.esnr.high).all()
    assert (found.finite == 1).all()


def test_an_interval_runs_from_the_2_5_to_the_97_5_percent_quantile_of_the_resamples():
    found = _interval(np.append(7.0, np.random.default_rng(0).permutation(1001))[:, None])
    np.testing.assert_allclose([found.value, found.low, found.high], [[7], [25], [975]])
    with np.errstate(invalid="ignore"):
        assert np.isinf(_interval(np.array([[1.0], [1.0], [np.inf], [np.inf]])).high).all()


def test_a_95_percent_interval_contains_the_truth_in_about_95_percent_of_cases():
    rng, hits = np.random.default_rng(0), []
    from awmkit.analysis._fidelity import _agreement

    for _ in range(200):
        grads, reference = rng.normal(size=(2, 1, 40, 5)) + np.array([1.0, 1.0, 0.0, 0.0, 0.0])
        reference = reference * 0 + np.array([2.0, 0.0, 0.0, 0.0, 0.0])
        draws = rng.multinomial(40, np.full(40, 1 / 40), size=300) / 40
        cosine = _agreement(np.concatenate([np.full((1, 40), 1 / 40), draws]), grads, reference).cosine
        hits.append(cosine.low[0] <= np.sqrt(0.5) <= cosine.high[0])
    assert 0.85 < np.mean(hits) < 0.99


def test_fidelity_on_the_true_system_measures_what_bpo_leaves_out():
    policy = MLPPolicy(2, 1, width=4, key=jax.random.key(3))
    reference = true_gradient(SYSTEM, policy, STARTS, reward=distance, horizons=(10,), key=KEY, pairs=16)
    closed, open_ = fidelity(SYSTEM, reference).exact, fidelity(SYSTEM, reference, paths=BPO).exact
    assert np.isclose(closed.bias.value, 0, atol=1e-6) and np.isclose(closed.cosine.value, 1)
    assert open_.bias.value > 0.01 and open_.cosine.value < 1


def test_gradients_that_are_not_finite_are_counted_and_an_infinite_true_gradient_raises():
    class Broken(AbstractDynamics):
        state_size: int = 2
        action_size: int = 1

        def init(self, state, horizon):
            return None

        def step(self, carry, state, action, t, *, key=None):
            return carry, state * jnp.where(state[0] > 0, 1.0, jnp.inf) + action

    reference = true_gradient(SYSTEM, PLAN, STARTS, reward=distance, horizons=(10,), key=KEY, pairs=16)
    found = fidelity(Broken(), reference)
    assert 0 < found.finite[0] < 1 and np.isnan(found.exact.cosine.value).all()
    with pytest.raises(ValueError, match="gradient is not finite at horizon 10"):
        true_gradient(Broken(), PLAN, STARTS, reward=distance, horizons=(10,), key=KEY, pairs=16)


def cut(w, **options):
    """The return sin(w x) against the first action x, shifted so that no maximum lies midway between two points."""
    plan, direction = jnp.full((2, 1), 1e-4 / 3), jnp.zeros((2, 1)).at[0].set(1.0)
    options = {"reward": lambda s, a, t: s[0], "directions": [direction], "key": KEY, **options}
    return landscape(Folded(w), plan, jnp.zeros(1), 2, **options)


@given(folds=st.integers(1, 12))
def test_maxima_variation_and_curvature_of_a_sine_are_known(folds):
    found = cut(folds * jnp.pi, points=2001)
    assert int(found.local_maxima) == folds
    assert jnp.isclose(found.total_variation, 2 * folds, rtol=1e-3)
    assert jnp.isclose(found.lipschitz, (folds * jnp.pi) ** 2, rtol=1e-2)


def test_the_curvature_of_a_large_smooth_return_is_not_that_of_its_rounding():
    x = jnp.linspace(-1, 1, 401, dtype=jnp.float32)
    rough = jnp.float32(3000) + x**2 / 2 + 5e-4 * jax.random.normal(KEY, x.shape, jnp.float32)  # Errors of a few units.
    assert 0.9 < Landscape(x, rough.astype(jnp.float32)).lipschitz < 1.0


def test_a_square_landscape_of_two_actions_is_a_sum_of_two_lines():
    reward = lambda s, a, t: jnp.where(t == 0, jnp.cos(3 * jnp.pi * a[0]), jnp.cos(2 * jnp.pi * a[0]))
    options = {"reward": reward, "directions": list(jnp.eye(2)[..., None]), "key": KEY, "points": 61}
    found = landscape(Folded(1.0), jnp.zeros((2, 1)), jnp.zeros(1), 2, **options)
    x, values = found.coordinates, found.values
    assert jnp.allclose(values, jnp.cos(3 * jnp.pi * x)[:, None] + jnp.cos(2 * jnp.pi * x), atol=1e-12)
    assert int(found.local_maxima) == 3  # inner maxima of the first at -2/3, 0, 2/3; of the second at 0
    assert jnp.isclose(found.lipschitz, (3 * jnp.pi) ** 2, rtol=0.05)
    assert jnp.isclose(found.total_variation, (6 + 4) * 2 / 2 / 4, rtol=0.05)


def test_random_directions_of_a_network_are_filter_normalised():
    from awmkit.analysis._landscape import _random_direction

    policy = MLPPolicy(3, 2, width=8, key=jax.random.key(4))
    direction = _random_direction(policy, KEY)
    for layer, moved in zip(policy.network.layers, direction.network.layers, strict=True):
        assert jnp.allclose(jnp.linalg.norm(layer.weight, axis=1), jnp.linalg.norm(moved.weight, axis=1))
        assert jnp.isclose(jnp.linalg.norm(layer.bias), jnp.linalg.norm(moved.bias)) and not jnp.allclose(
            layer.bias, moved.bias
        )
    assert not jax.tree.leaves(direction.input_norm)  # Statistics are not parameters.


def test_landscapes_compose_with_vmap_and_a_diverging_one_is_infinitely_rough():
    run = lambda s: landscape(SYSTEM, MLPPolicy(2, 1, width=4, key=KEY), s, 10, reward=distance, key=KEY, points=21)
    together, each = jax.vmap(run)(STARTS[:3]), [run(state) for state in STARTS[:3]]
    for measure in (lambda x: x.total_variation, lambda x: x.local_maxima, lambda x: x.lipschitz):
        np.testing.assert_allclose(measure(together), jnp.stack([measure(one) for one in each]), rtol=1e-8)
    runaway = spiral(1e200, 0.1)
    found = landscape(runaway, PLAN, STARTS[0], 10, reward=distance, key=KEY, points=21)
    assert jnp.isinf(found.total_variation) and jnp.isinf(found.lipschitz)
