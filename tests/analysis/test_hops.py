"""The whole derivative and its parts: sums are exact, and spectra are where theory puts them."""

import math
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, strategies as st
from jax.flatten_util import ravel_pytree
from mixed import Mixed
from systems import DYNAMICS, HORIZON, POLICIES, reward, start

from awmkit import BPO, unroll, unroll_grad
from awmkit.analysis import action_jacobian, hop_spectrum, policy_hop_spectrum

transition = lambda state, action, t, next_state: reward(state, action, t) + state @ next_state


@eqx.filter_jit
def analyse(dynamics, policy, seed, hops):
    """Everything about one dynamics at one random start, compiled once for each number of hops."""
    state_key, action_key, key = jax.random.split(jax.random.key(seed), 3)
    state = start(dynamics) + 0.1 * jax.random.normal(state_key, (dynamics.state_size,))
    actions = 0.5 * jax.random.normal(action_key, (HORIZON, dynamics.action_size))
    gradient = partial(unroll_grad, dynamics, state=state, horizon=HORIZON, reward=transition, key=key, discount=0.9)
    flat = lambda value_and_grads: ravel_pytree(value_and_grads[1])[0]
    options = {"reward": transition, "discount": 0.9, "hops": hops, "key": key}
    spectrum = hop_spectrum(dynamics, state, actions, hops=hops, key=key)
    states, steps = unroll(dynamics, actions, state, HORIZON, key=key).states, jnp.arange(HORIZON)
    by_state, by_action, by_next = jax.vmap(jax.grad(transition, (0, 1, 3)))(states[:-1], actions, steps, states[1:])
    weights = 0.9 ** steps.astype(float)[:, None]
    by_states = jnp.pad(weights * by_state, ((0, 1), (0, 0))) + jnp.pad(weights * by_next, ((1, 0), (0, 0)))
    through_states = jnp.einsum("ts,ntksa->nka", by_states, spectrum.parts)
    return {
        "jacobian": action_jacobian(dynamics, state, actions, key=key),
        "reverse": action_jacobian(dynamics, state, actions, key=key, mode="reverse"),
        "states": spectrum,
        "return": hop_spectrum(dynamics, state, actions, **options),
        "policy": policy_hop_spectrum(dynamics, policy, state, HORIZON, **options),
        "return by states": through_states.at[0].add(weights * by_action),
        "return whole": gradient(policy=actions)[1],
        "policy whole": flat(gradient(policy=policy)),
        "policy BPO": flat(gradient(policy=policy, paths=BPO)),
    }


def close(x, y):
    return jnp.abs(x - y).max() <= 1e-10 * jnp.abs(y).max()


def check_identities(dynamics, found):
    blocks = found["jacobian"].blocks
    assert close(found["reverse"].blocks, blocks) and close(found["states"].whole, blocks)
    assert close(found["return"].whole[:, 0], found["return whole"])
    assert close(found["return"].parts[:, :, 0], found["return by states"])
    assert close(found["policy"].whole[0], found["policy whole"]) and close(found["policy"].parts[0, 0], found["policy BPO"])
    t, k = jnp.indices(blocks.shape[:2])
    assert (found["jacobian"].norms[k >= t] == 0).all() and (found["states"].norms[:, k >= t] == 0).all()
    if not dynamics.reads_state:
        assert (found["states"].parts[1:] == 0).all() and (found["return"].parts[1:] == 0).all()


@pytest.mark.parametrize("name", DYNAMICS)
def test_parts_sum_to_the_whole_for_every_dynamics(name):
    dynamics = DYNAMICS[name]()
    policy = POLICIES["Gaussian, with time"](dynamics.state_size, dynamics.action_size)
    markovian = dynamics.reads_state and "HWM" not in name and "hidden" not in name

    @given(seed=st.integers(0, 2**31 - 1))
    def check(seed):
        found = analyse(dynamics, policy, jnp.asarray(seed), 2)
        check_identities(dynamics, found)
        parts = found["states"].norms
        t, k = jnp.indices(parts.shape[1:])
        if markovian:  # One spike at t-k-1 hops, or in the last part where that is more than N.
            for n in range(parts.shape[0]):
                assert (parts[n, (k < t) & (jnp.minimum(t - k - 1, 3) != n)] == 0).all()
        if "HWM" in name:
            assert (parts[:, -1, 0] > 0).all()

    check()


POSITIVE = st.floats(0.05, 1.0)


@given(feedback=POSITIVE, memory=POSITIVE, hops=st.sampled_from([0, 2, HORIZON]))
def test_the_spectrum_of_a_users_own_dynamics_is_binomial(feedback, memory, hops):
    found = analyse(Mixed(feedback, memory), POLICIES["MLP"](1, 1), jnp.asarray(0), hops)
    check_identities(Mixed(feedback, memory), found)
    spectrum, lag = found["states"], HORIZON - 1
    terms = [math.comb(lag, n) * feedback**n * memory ** (lag - n) for n in range(lag + 1)]
    expected = jnp.array(terms[: hops + 1] + [0.0] * max(0, hops - lag) + [sum(terms[hops + 1 :])])
    assert jnp.allclose(spectrum.parts[:, HORIZON, 0, 0, 0], expected, rtol=1e-12, atol=1e-15)
    if hops >= lag:
        assert (found["policy"].parts[-1] == 0).all() and (found["policy"].parts[lag] != 0).any()
        share = feedback / (feedback + memory)
        assert jnp.isclose(spectrum.mean_hops[HORIZON, 0], lag * share)
        assert jnp.isclose(spectrum.beyond(2)[HORIZON, 0], sum(terms[3:]) / sum(terms))
        entropy = -sum(p * math.log(p) for p in (x / sum(terms) for x in terms))
        assert jnp.isclose(spectrum.effective_hops[HORIZON, 0], math.exp(entropy))
    coarse = analyse(Mixed(feedback, memory), POLICIES["MLP"](1, 1), jnp.asarray(0), 1)["states"]
    if hops >= 1:  # How much lies beyond one hop does not depend on how far hops were told apart.
        assert jnp.allclose(coarse.beyond(1), spectrum.beyond(1))


def test_norms_by_lag_are_those_of_powers_and_all_of_it_composes_with_vmap_and_grad():
    mixed, actions = Mixed(0.5, 0.7), jnp.zeros((HORIZON, 1))
    assert jnp.allclose(action_jacobian(mixed, jnp.ones(1), actions).by_lag, 1.2 ** jnp.arange(HORIZON, dtype=float))
    states = jnp.ones((3, 1))
    batched = jax.vmap(lambda s: hop_spectrum(mixed, s, actions, hops=2))(states)
    assert batched.parts.shape == (3, 4, HORIZON + 1, HORIZON, 1, 1)
    last = lambda feedback: hop_spectrum(Mixed(feedback, 0.7), states[0], actions, hops=2).whole[-1, 0, 0, 0]
    assert jnp.isclose(jax.grad(last)(0.5), (HORIZON - 1) * 1.2 ** (HORIZON - 2))


def test_batches_of_passes_that_do_not_divide_the_whole_change_nothing():
    mixed, actions = Mixed(0.5, 0.7), jnp.ones((HORIZON, 1))
    whole, split = (hop_spectrum(mixed, jnp.ones(1), actions, batch_size=b).parts for b in (99, 4))
    assert jnp.allclose(whole, split, rtol=1e-14)
    forward, reverse = (action_jacobian(mixed, jnp.ones(1), actions, batch_size=5, mode=m) for m in ("forward", "reverse"))
    assert close(forward.blocks, reverse.blocks)
