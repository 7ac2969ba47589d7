"""Derivatives by all actions and their split by hops: the parts sum to the whole and are where theory says."""

import math
import operator
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st
from jax import lax
from jax.flatten_util import ravel_pytree
from mixed import Mixed
from systems import DYNAMICS, HORIZON, POLICIES, reward, rows, start

import awmkit.plot
from awmkit import Anchored, Paths, unroll, unroll_grad
from awmkit.analysis import action_jacobian, hop_spectrum, policy_hop_spectrum

transition = lambda state, action, t, next_state: reward(state, action, t) + state @ next_state


@eqx.filter_jit
def analyse(dynamics, policy, seed, hops):
    """Everything about one dynamics at one random start, as one compiled program."""
    state_key, action_key, key = jax.random.split(jax.random.key(seed), 3)
    state = start(dynamics) + 0.1 * jax.random.normal(state_key, (dynamics.state_size,))
    actions = 0.5 * jax.random.normal(action_key, (HORIZON, dynamics.action_size))
    gradient = partial(unroll_grad, dynamics, state=state, horizon=HORIZON, reward=transition, key=key, discount=0.9)
    options = {"reward": transition, "discount": 0.9, "hops": hops, "key": key}
    spectrum = hop_spectrum(dynamics, state, actions, hops=hops, key=key)
    states, steps = unroll(dynamics, actions, state, HORIZON, key=key).states, jnp.arange(HORIZON)
    by_state, by_action, by_next = jax.vmap(jax.grad(transition, (0, 1, 3)))(states[:-1], actions, steps, states[1:])
    weights = 0.9 ** steps.astype(float)[:, None]
    by_states = jnp.pad(weights * by_state, ((0, 1), (0, 0))) + jnp.pad(weights * by_next, ((1, 0), (0, 0)))
    through_states = jnp.einsum("ts,ntksa->nka", by_states, spectrum.parts)
    # One program for both gains of the policy edge: 0 (BPO) and 1 (the full gradient).
    policy_gradient = lambda gain: ravel_pytree(gradient(policy=policy, paths=Paths(state_to_policy=gain))[1])[0]
    bpo, full = lax.map(policy_gradient, jnp.array([0.0, 1.0]))
    return {
        "jacobian": action_jacobian(dynamics, state, actions, key=key, mode="forward"),
        "reverse": action_jacobian(dynamics, state, actions, key=key, mode="reverse"),
        "states": spectrum,
        "return": hop_spectrum(dynamics, state, actions, **options),
        "policy": policy_hop_spectrum(dynamics, policy, state, HORIZON, **options),
        "return by states": through_states.at[0].add(weights * by_action),
        "return whole": gradient(policy=actions)[1],
        "policy whole": full,
        "policy BPO": bpo,
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


SLOW = (
    "bears, with noise",
    "double pendulum, driven",
    "double pendulum, passive",
    "Lorenz",
    "Markov, states",
    "HWM transformer",
    "HWM transformer, anchored",
    "AWM transformer, learned time",
    "AWM transformer, rotary time",
    "AWM linear state space",
    "AWM from the pendulum",
    "ensemble of AWM, by step",
)


@pytest.mark.parametrize("name", rows(slow=SLOW))
def test_parts_sum_to_the_whole_for_every_dynamics(name):
    dynamics = DYNAMICS[name]()
    policy = POLICIES["Gaussian, with time"](dynamics.state_size, dynamics.action_size)
    markovian = dynamics.reads_state and "HWM" not in name and "hidden" not in name
    every = dynamics.every if isinstance(dynamics, Anchored) else 1

    @given(seed=st.integers(0, 2**31 - 1))
    def check(seed):
        found = analyse(dynamics, policy, jnp.asarray(seed), 2)
        check_identities(dynamics, found)
        parts = found["states"].norms
        t, k = jnp.indices(parts.shape[1:])
        if (
            markovian
        ):  # All in one part, with a hop at each anchor between k and t, or in the last part if those are more than 2.
            hops = (t - 1) // every - k // every
            for n in range(parts.shape[0]):
                assert (parts[n, (k < t) & (jnp.minimum(hops, 3) != n)] == 0).all()
                assert (parts[n, (k < t) & (jnp.minimum(hops, 3) == n)] > 0).any() or every > 1 and n > 1
        if "HWM" in name and every == 1:
            assert (parts[:, -1, 0] > 0).all()

    check()


POSITIVE = st.floats(0.05, 1.0)


@given(feedback=POSITIVE, memory=POSITIVE)
def test_the_spectrum_of_a_users_own_dynamics_is_binomial(feedback, memory):
    mixed, lag = Mixed(feedback, memory), HORIZON - 1
    found = analyse(mixed, POLICIES["MLP"](1, 1), jnp.asarray(0), HORIZON)
    check_identities(mixed, found)
    spectrum = found["states"]
    terms = [math.comb(lag, n) * feedback**n * memory ** (lag - n) for n in range(lag + 1)]
    assert jnp.allclose(spectrum.parts[:, HORIZON, 0, 0, 0], jnp.array([*terms, 0.0, 0.0]), rtol=1e-12, atol=1e-15)
    assert (found["policy"].parts[-1] == 0).all() and (found["policy"].parts[lag] != 0).any()
    share = feedback / (feedback + memory)
    assert jnp.isclose(spectrum.mean_hops[HORIZON, 0], lag * share)
    assert jnp.isclose(spectrum.beyond(2)[HORIZON, 0], sum(terms[3:]) / sum(terms))
    entropy = -sum(p * math.log(p) for p in (x / sum(terms) for x in terms))
    assert jnp.isclose(spectrum.effective_hops[HORIZON, 0], math.exp(entropy))


@given(feedback=POSITIVE, memory=POSITIVE)
def test_a_smaller_largest_number_of_hops_only_sums_the_last_parts(feedback, memory):
    mixed, policy, state, actions = Mixed(feedback, memory), POLICIES["MLP"](1, 1), jnp.ones(1), jnp.ones((HORIZON, 1))
    spectra = {
        "states": lambda hops: hop_spectrum(mixed, state, actions, hops=hops),
        "return": lambda hops: hop_spectrum(mixed, state, actions, reward=transition, hops=hops),
        "policy": lambda hops: policy_hop_spectrum(mixed, policy, state, HORIZON, reward=transition, hops=hops),
    }
    for name, spectrum in spectra.items():
        fine = spectrum(HORIZON)
        for hops in (0, 2) if name == "states" else (0,):
            coarse = spectrum(hops)
            assert jnp.allclose(coarse.parts[:-1], fine.parts[: hops + 1], rtol=1e-12)
            assert jnp.allclose(coarse.parts[-1], fine.parts[hops + 1 :].sum(axis=0), rtol=1e-12)
            assert jnp.allclose(coarse.beyond(hops), fine.beyond(hops), rtol=1e-12)


def test_norms_by_lag_are_powers_and_analyses_compose_with_vmap_and_grad():
    mixed, actions = Mixed(0.5, 0.7), jnp.zeros((HORIZON, 1))
    assert jnp.allclose(action_jacobian(mixed, jnp.ones(1), actions).by_lag, 1.2 ** jnp.arange(HORIZON, dtype=float))
    states = jnp.ones((3, 1))
    batched = jax.vmap(lambda s: hop_spectrum(mixed, s, actions, hops=2))(states)
    assert batched.parts.shape == (3, 4, HORIZON + 1, HORIZON, 1, 1)
    last = lambda feedback: hop_spectrum(Mixed(feedback, 0.7), states[0], actions, hops=2).whole[-1, 0, 0, 0]
    assert jnp.isclose(jax.grad(last)(0.5), (HORIZON - 1) * 1.2 ** (HORIZON - 2))


def test_results_of_several_starts_are_those_of_each():
    policy, actions = POLICIES["MLP"](1, 1), jnp.linspace(-1, 1, HORIZON)[:, None]
    spectra = {
        "states": lambda state: hop_spectrum(Mixed(0.5, 0.7), state, actions, hops=3),
        "return": lambda state: hop_spectrum(Mixed(0.5, 0.7), state, actions, reward=transition, hops=3),
        "policy": lambda state: policy_hop_spectrum(Mixed(0.5, 0.7), policy, state, HORIZON, reward=transition, hops=3),
    }
    for spectrum in spectra.values():
        states = jnp.array([[0.3], [1.0]])
        together, each = jax.vmap(spectrum)(states), [spectrum(state) for state in states]
        for measure in (
            *(operator.attrgetter(n) for n in ("whole", "norms", "weights", "mean_hops", "effective_hops")),
            BEYOND,
        ):
            np.testing.assert_allclose(measure(together), jnp.stack([measure(one) for one in each]), rtol=1e-10, atol=1e-14)
        shown = awmkit.plot.hops(together).lines[0].get_ydata()
        norms = np.sqrt(sum(np.asarray(one.norms).reshape(5, -1) ** 2 for one in each).sum(axis=1))
        np.testing.assert_allclose(shown, norms / norms.sum(), rtol=1e-6)


BEYOND = operator.methodcaller("beyond", 1)


def test_a_batch_size_that_does_not_divide_the_number_of_passes_changes_nothing():
    mixed, actions = Mixed(0.5, 0.7), jnp.ones((HORIZON, 1))
    whole, split = (hop_spectrum(mixed, jnp.ones(1), actions, batch_size=b).parts for b in (99, 4))
    assert jnp.allclose(whole, split, rtol=1e-14)
    forward, reverse = (action_jacobian(mixed, jnp.ones(1), actions, batch_size=5, mode=m) for m in ("forward", "reverse"))
    assert close(forward.blocks, reverse.blocks)
