"""Bounds, densities, entropy and reparameterisation of the policies."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, strategies as st

from awmkit import GaussianPolicy, MLPPolicy
from awmkit._policies import features


@given(seed=st.integers(0, 2**31 - 1), size=st.floats(0, 1e3))
def test_actions_are_finite_and_bounded_for_large_states(seed, size):
    state = size * jax.random.normal(jax.random.key(seed), (3,))
    for policy in (MLPPolicy(3, 2, key=jax.random.key(0)), GaussianPolicy(3, 2, key=jax.random.key(0))):
        action = policy(state, 0, key=jax.random.key(1))
        assert action.shape == (2,) and (jnp.abs(action) <= 1).all()


def test_a_policy_depends_on_time_only_if_it_has_a_horizon():
    state = jnp.ones(3)
    timed, timeless = (MLPPolicy(3, 2, horizon=h, key=jax.random.key(0)) for h in (10, None))
    assert (timed(state, 0) != timed(state, 9)).all() and (timeless(state, 0) == timeless(state, 9)).all()


def test_the_time_inputs_of_a_policy_run_from_their_first_to_their_last_value():
    inputs = jnp.stack([features(jnp.ones(1), t, 4) for t in range(6)])
    expected = [np.arange(6) / 4, np.log(np.maximum(4 - np.arange(6), 1)) / np.log(4)]
    np.testing.assert_allclose(inputs, np.stack([np.ones(6), *(2 * np.array(expected) - 1)], axis=1), atol=1e-12)


def test_the_gaussian_density_integrates_to_one_and_matches_its_entropy():
    policy = GaussianPolicy(3, 1, std=0.7, key=jax.random.key(0))
    state = jnp.ones(3)
    u = jnp.linspace(-8, 8, 20001)  # a = tanh(u), da = (1 - a^2) du, which gives a fine grid near the bounds
    a = jnp.tanh(u)[1:-1]
    log_prob = jax.vmap(lambda a: policy.log_prob(state, a[None], 0))(a)
    weights = (1 - a**2) * (u[1] - u[0])
    assert np.isclose(jnp.sum(jnp.exp(log_prob) * weights), 1, atol=1e-6)
    exact = -jnp.sum(jnp.exp(log_prob) * log_prob * weights)
    samples = jax.vmap(lambda k: policy.entropy(state, 0, key=k))(jax.random.split(jax.random.key(1), 20000))
    assert abs(samples.mean() - exact) < 4 * samples.std() / jnp.sqrt(samples.size)


def gaussian(log_std, dtype=jnp.float32):
    """A policy whose standard deviation does not depend on the state."""
    policy = GaussianPolicy(3, 2, width=4, depth=1, key=jax.random.key(0))
    policy = jax.tree.map(lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x, policy)
    head = policy.network.layers[-1]
    head = eqx.tree_at(lambda layer: (layer.weight, layer.bias), head, (head.weight.at[2:].set(0), head.bias.at[2:].set(0)))
    return eqx.tree_at(lambda p: (p.network.layers[-1], p.log_std), policy, (head, jnp.full(2, log_std, dtype)))


def test_the_entropy_and_its_derivative_are_right_for_any_standard_deviation():
    state, key = jnp.ones(3, jnp.float32), jax.random.key(1)
    measure = jax.jit(jax.value_and_grad(lambda log_std: gaussian(log_std).entropy(state, 0, key=key)))
    noise = np.asarray(jax.random.normal(key, (2,), jnp.float32), float)
    mean = np.asarray(gaussian(0.0).gaussian(state, 0)[0], float)
    for log_std in (-100.0, -45.0, -16.0, -5.0, 0.0, 5.0, 20.0):
        u = mean + np.exp(log_std) * noise
        log_slope = 2 * (np.log(2) - abs(u) - np.log1p(np.exp(-2 * abs(u))))  # of tanh
        value, slope = measure(log_std)
        np.testing.assert_allclose(value, np.sum(0.5 * noise**2 + log_std + 0.5 * np.log(2 * np.pi) + log_slope), rtol=1e-5)
        np.testing.assert_allclose(slope, np.sum(1 - 2 * np.tanh(u) * np.exp(log_std) * noise), rtol=1e-5)


def test_the_density_is_0_at_the_bounds_and_beyond_and_nan_only_for_nan():
    state, policy = jnp.ones(3), gaussian(-0.5, jnp.float64)
    log_prob = jax.jit(lambda action: policy.log_prob(state, action, 0))
    for action in ([1.0, 0.3], [-1.0, 1.0], [0.3, 1.5], [-jnp.inf, 0.0]):
        assert log_prob(jnp.array(action)) == -jnp.inf
    for log_std in (-800.0, 800.0):
        assert gaussian(log_std, jnp.float64).log_prob(state, jnp.array([1.0, 0.3]), 0) == -jnp.inf
    assert jnp.isnan(log_prob(jnp.array([jnp.nan, 1.0]))) and log_prob(jnp.array([1 - 1e-12, 0.3])) > -400
    slope = jax.grad(lambda log_std: gaussian(log_std, jnp.float64).log_prob(state, jnp.array([1.0, 0.3]), 0))(-0.5)
    assert slope == jnp.inf


def test_samples_are_reparameterised_and_the_mode_is_tanh_of_the_mean():
    policy = GaussianPolicy(3, 2, key=jax.random.key(0))
    state, key = jnp.ones(3), jax.random.key(1)
    slope = jax.jacrev(lambda s: policy(s, 0, key=key))(state)
    shifted = [policy(state + 1e-6 * d, 0, key=key) for d in (jnp.eye(3)[0], -jnp.eye(3)[0])]
    assert jnp.allclose(slope[:, 0], (shifted[0] - shifted[1]) / 2e-6, rtol=1e-6) and jnp.max(jnp.abs(slope)) > 1e-3
    assert (policy.mode(state, 0) == jnp.tanh(policy.gaussian(state, 0)[0])).all()
