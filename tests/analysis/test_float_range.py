"""Analyses of derivatives whose squares overflow or vanish. Powers of two scale floats exactly, so results must scale exactly."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, strategies as st
from jaxtyping import Array, Float

from awmkit.analysis import ActionJacobian, fidelity, gradient_growth, HopSpectrum, Landscape, true_gradient
from awmkit.analysis._fidelity import _agreement, _spread
from awmkit.analysis._true_gradient import _signal
from awmkit.tasks import LinearQuadratic, spiral

KEY = jax.random.key(0)
powers = st.sampled_from([-100, -80, -40, 40, 75, 90])  # A float32 squared overflows from 2^64 on and vanishes below 2^-75.
PARTS = np.asarray(jax.random.normal(KEY, (5, 4, 3, 2)), np.float32)


@jax.jit
def measure(x):
    """Norms of derivatives, which scale with them, and shares, which do not."""
    hops = HopSpectrum(x, 1)
    values = x[0, :, :, 0]
    scaled = (
        ActionJacobian(x).norms,
        ActionJacobian(x).by_lag,
        hops.norms,
        Landscape(jnp.arange(4, dtype=x.dtype) * 2.0**-100, x[:, 0, 0, 0]).lipschitz,
    )
    shares = hops.weights, hops.mean_hops, hops.effective_hops, hops.beyond(1), Landscape(values, values).total_variation
    return scaled, shares


@given(power=powers)
def test_norms_of_derivatives_scale_with_them_and_shares_do_not(power):
    (scaled, shares), (expected, same) = measure(PARTS * np.float32(2.0**power)), measure(PARTS)
    for found, at_one in zip((*scaled, *shares), (*(x * 2.0**power for x in expected), *same), strict=True):
        np.testing.assert_array_equal(found, at_one)


def test_the_norm_by_lag_has_a_gradient_where_blocks_are_zero():
    blocks = jnp.zeros((5, 4, 3, 2)).at[2, 0].set(1.0)
    grads = jax.jit(jax.grad(lambda x: jnp.sum(ActionJacobian(x).by_lag)))(blocks)
    np.testing.assert_allclose(grads[2, 0], 1 / np.sqrt(3 * 6), rtol=1e-12)  # Three pairs have lag 2.
    assert jnp.sum(grads != 0) == 6


def test_growth_is_measured_from_the_smallest_to_the_largest_float():
    # Powers of two, which are exact in every precision of matrix products.
    task = LinearQuadratic(2.0**20 * jnp.eye(2, dtype=jnp.float32), jnp.full((2, 1), 2.0**-120, jnp.float32))
    growth = gradient_growth(task, jnp.zeros((2, 2), jnp.float32), jnp.zeros((2, 13, 1), jnp.float32), horizons=range(1, 14))
    np.testing.assert_allclose(growth.norms[:, 0], 2**0.5 * 2.0 ** (20 * np.arange(13.0) - 120), rtol=1e-5)
    assert growth.law is not None and growth.law.law == "exponential" and abs(growth.law.rate - np.log(2.0**20)) < 1e-5


class Scaled(eqx.Module):
    """Minus the squared distance, times `scale`."""

    scale: Float[Array, ""]

    def __call__(self, state, action, t):
        return -self.scale * jnp.sum(state**2)


def test_true_gradients_and_fidelity_scale_with_the_reward():
    system = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), spiral(1.05, 0.4))
    starts, plan = (jax.random.normal(KEY, shape, jnp.float32) for shape in ((3, 2), (4, 1)))

    def find(power, batch_size=4):
        options = {"horizons": (2, 4), "key": KEY, "pairs": 8, "batch_size": batch_size}
        return true_gradient(system, plan, starts, reward=Scaled(jnp.float32(2.0**power)), **options)

    truth, found = find(0), fidelity(system, find(0), resamples=20)
    one_by_one = find(0, batch_size=1)
    for name in ("smoothed", "standard_error", "standard_error_of_mean"):
        np.testing.assert_allclose(getattr(one_by_one, name), getattr(truth, name), rtol=1e-4, atol=1e-5)
    for power in (-90, 90):
        other_truth = find(power)
        other = fidelity(system, other_truth, resamples=20)
        for name in ("exact", "smoothed", "standard_error", "standard_error_of_mean"):
            np.testing.assert_array_equal(getattr(other_truth, name), getattr(truth, name) * 2.0**power)
        for a, b in ((other.exact, found.exact), (other.smoothed, found.smoothed), (other.esnr, found.esnr)):
            assert eqx.tree_equal(a, b, typematch=True)
        np.testing.assert_array_equal(other.variance.value, found.variance.value * 4.0**power)


@given(power=st.sampled_from([-900, -600, 500, 600, 900]), other=st.sampled_from([-600, 0, 500]))
def test_agreement_in_direction_does_not_depend_on_the_size_of_either_gradient(power, other):
    grads, reference = np.random.default_rng(0).normal(size=(2, 2, 3, 4))
    weights = np.array([[1, 1, 1], [3, 0, 0], [1, 2, 0]]) / 3
    found, expected = _agreement(weights, grads * 2.0**power, reference * 2.0**other), _agreement(weights, grads, reference)
    for name in ("cosine", "cosine_of_each"):
        assert eqx.tree_equal(getattr(found, name), getattr(expected, name))
    if abs(power - other) < 1000:
        np.testing.assert_array_equal(found.norm_ratio.value, expected.norm_ratio.value * 2.0 ** (power - other))
    scaled = _agreement(weights, grads * 2.0**power, reference * 2.0**power)
    assert eqx.tree_equal(scaled.bias, expected.bias)
    assert eqx.tree_equal(_spread(weights, grads * 2.0**power)[1], _spread(weights, grads)[1])
    np.testing.assert_array_equal(_signal(grads * 2.0**power, 0.1 * reference * 2.0**power), _signal(grads, 0.1 * reference))


def test_each_start_counts_equally_in_direction_however_much_their_gradients_differ():
    grads = np.ones((1, 3, 4)) * 10.0 ** np.array([-200, 0, 200])[:, None]
    assert np.isclose(_agreement(np.full((2, 3), 1 / 3), grads, grads[:, ::-1]).cosine_of_each.value, 1)


def test_a_variance_far_below_the_mean_is_exact_and_never_negative():
    grads = 1e9 + np.array([[[0.0], [1.0], [2.0]]])
    weights = np.array([[1, 1, 1], [3, 0, 0], [0, 3, 0]]) / 3
    variance, esnr = _spread(weights, grads)
    assert np.isclose(variance.value, 1) and (variance.low >= 0).all() and (esnr.low > 0).all()
