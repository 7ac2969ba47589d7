"""Bounds, densities, entropy and reparameterisation of the policies."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, strategies as st

from awmkit import GaussianPolicy, MLPPolicy


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


def test_samples_are_reparameterised_and_the_mode_is_tanh_of_the_mean():
    policy = GaussianPolicy(3, 2, key=jax.random.key(0))
    state, key = jnp.ones(3), jax.random.key(1)
    slope = jax.jacrev(lambda s: policy(s, 0, key=key))(state)
    shifted = [policy(state + 1e-6 * d, 0, key=key) for d in (jnp.eye(3)[0], -jnp.eye(3)[0])]
    assert jnp.allclose(slope[:, 0], (shifted[0] - shifted[1]) / 2e-6, rtol=1e-6) and jnp.max(jnp.abs(slope)) > 1e-3
    assert (policy.mode(state, 0) == jnp.tanh(policy.gaussian(state, 0)[0])).all()
