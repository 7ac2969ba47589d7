"""`prediction_error` with a key: the coverage of the intervals of sampled predictions."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from awmkit import prediction_error, Trajectory, unroll
from awmkit.learning._prediction_error import _covered, _interval_of_share
from awmkit.tasks import LinearQuadratic

KEY = jax.random.key(0)
TASK = LinearQuadratic(jnp.array([[0.9, 0.3], [-0.3, 0.9]]), jnp.array([[0.0], [0.5]]), noise=0.2)


def with_noise(noise: float) -> LinearQuadratic:
    return eqx.tree_at(lambda task: task.noise, TASK, noise)


def of_unequal_length(count: int = 400) -> Trajectory:
    """Episodes of the task of 1 to 12 steps, padded with NaN."""
    keys = jax.random.split(jax.random.key(1), count + 2)
    starts, actions = jax.random.normal(keys[-1], (count, 2)), jax.random.uniform(keys[-2], (count, 12, 1), minval=-1.0)
    states = jax.jit(jax.vmap(lambda s, a, k: unroll(TASK, a, s, 12, key=k).states))(starts, actions, keys[:count])
    length = 1 + jnp.arange(count) % 12
    return Trajectory(jnp.where((jnp.arange(13) > length[:, None])[..., None], jnp.nan, states), actions, length=length)


@pytest.fixture(autouse=True)
def optax_promotes():
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.parametrize("window", [None, 4])
def test_the_true_simulator_is_calibrated_at_every_step_and_one_with_less_noise_is_not(window):
    data = of_unequal_length()
    true = prediction_error(TASK, data, window=window, key=KEY, samples=30)
    steps = true.rmse.shape[0]
    assert true.coverage is not None and true.coverage_low is not None and true.coverage_high is not None
    assert true.coverage.shape == (steps, 2) == (window or 12, 2) and true.level == 0.9
    inside = (true.coverage_low <= 0.9) & (0.9 <= true.coverage_high)
    assert inside.mean() > 0.85 and abs(true.coverage.mean() - 0.9) < 0.01
    less = prediction_error(with_noise(0.1), data, window=window, key=KEY, samples=30)
    assert less.coverage_high is not None and (less.coverage_high < 0.85).all()
    assert "coverage of 90% intervals = " in repr(true) and "coverage" in str(true).splitlines()[0]
    spread = np.sqrt([0.04 * sum(0.9**k for k in range(i + 1)) for i in range(steps)])  # The matrix has norm 0.9**0.5.
    assert window or (abs(true.rmse[:6] / spread[:6, None] - 1) < 0.12).all()  # The error of the mean is the noise.


def test_without_a_key_an_error_has_no_coverage_and_with_one_it_is_the_same_error():
    exact, data = with_noise(0.0), of_unequal_length(24)
    plain, sampled = prediction_error(exact, data), prediction_error(exact, data, key=KEY, samples=19)
    assert plain.coverage is None and "coverage" not in str(plain) + repr(plain)
    assert sampled.coverage is not None and (sampled.coverage < 1e-9).all()  # Intervals without width.
    np.testing.assert_allclose(plain.rmse, sampled.rmse, rtol=1e-12)  # Of the mean of the samples.


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_a_uniform_rank_is_covered_with_the_level_for_any_number_of_samples(level):
    for samples in (1, 2, 7, 19, 100):
        ranks = np.arange(samples + 1)
        assert np.isclose(_covered(ranks, 0 * ranks, samples, level).mean(), level, rtol=1e-12)
        assert np.isclose(_covered(np.zeros(1), np.full(1, samples), samples, level), level)  # All samples equal the entry.
    np.testing.assert_allclose(_covered(np.arange(20), np.zeros(20), 19, 0.9), [0, *[1] * 18, 0], atol=1e-12)


def test_intervals_of_a_coverage_contain_the_true_share_in_19_of_20_samples():
    rng = np.random.default_rng(0)
    happened = rng.integers(1, 6, (40, 2000, 1)).astype(float)  # Windows at this step in each of 40 episodes.
    share = rng.beta(9, 1, size=happened.shape)  # The windows of one episode are covered with one probability.
    value, low, high = _interval_of_share(rng.binomial(happened.astype(int), share).astype(float), happened)
    assert 0.92 < np.mean((low <= 0.9) & (0.9 <= high)) < 0.98 and (low >= 0).all() and (high <= 1).all()
    value, low, high = _interval_of_share(np.ones((1, 3, 2)), np.ones((1, 3, 1)))
    assert (value == 1).all() and (low == 0).all() and (high == 1).all()
    value, low, high = _interval_of_share(np.ones((20, 3, 2)), np.ones((20, 3, 1)))
    assert (0.8 < low).all() and (low < 0.9).all() and (high == 1).all()
