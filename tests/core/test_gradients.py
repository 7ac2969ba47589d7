"""Compare `unroll_grad` with finite differences for every dynamics, policy and method, and for random gains."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, strategies as st
from jax import lax
from jax.flatten_util import ravel_pytree
from systems import DYNAMICS, HORIZON, POLICIES, reward, start

from awmkit import Newton, Parallel, Paths, Picard, Sequential, unroll, unroll_grad
from awmkit._dynamics import step_keys
from awmkit._normaliser import trainable
from awmkit._policies import act, memory_of
from awmkit.methods._method import split_key

GAIN = st.sampled_from([0.0, 1.0]) | st.floats(-0.5, 1.5)


def surrogate(dynamics, policy, state, key, gains, base):
    """Return the return of a system whose ordinary derivative is the one that `Paths(*gains)` defines.

    An edge with gain g passes on x0 + g (x - x0), where x0 is the value on the base trajectory.
    """
    mixed = lambda gain, x, x0: jax.tree.map(lambda x, x0: x0 + gain * (x - x0), x, x0)
    policy_keys, dynamics_key = split_key(key, HORIZON)

    def step(loop, x):
        memory, carry, state, total = loop
        t, s0, a0, m0, action, policy_key, dynamics_key = x
        if callable(policy):
            memory, action = act(policy, mixed(gains[3], memory, m0), mixed(gains[0], state, s0), t, policy_key)
        total = total + 0.9 ** jnp.asarray(t, float) * reward(state, action, t)
        fed_back, acted = mixed(gains[1], state, s0), mixed(gains[2], action, a0)
        carry, state = dynamics.step(carry, fed_back, acted, t, key=dynamics_key)
        return (memory, carry, state, total), None

    planned = None if callable(policy) else policy
    steps = (jnp.arange(HORIZON), *base, planned, policy_keys, step_keys(dynamics_key, HORIZON))
    return lax.scan(step, (memory_of(policy), dynamics.init(state, HORIZON), state, jnp.zeros(())), steps)[0][3]


@eqx.filter_jit
def compare(dynamics, policy, seed, gains):
    """Return the surrogate's value and its finite difference along a random direction; for each method its value, its derivative
    along that direction and the distance of its gradient from that of `Sequential`; and the norm of the latter."""
    state_key, key, direction_key = jax.random.split(jax.random.key(seed), 3)
    state = start(dynamics) + 0.1 * jax.random.normal(state_key, (dynamics.state_size,))
    paths = Paths(*gains)
    methods = [Sequential(), Newton(), *([] if dynamics.reads_state else [Parallel(sampling=Picard())])]
    results = [
        unroll_grad(dynamics, policy, state, HORIZON, reward=reward, key=key, paths=paths, discount=0.9, method=m)
        for m in methods
    ]
    weights, rest = eqx.partition(policy, trainable(policy))  # without normalisers, which are constants
    flat, unravel = ravel_pytree(weights)
    direction = jax.random.normal(direction_key, flat.shape)
    direction = direction / jnp.linalg.norm(direction)
    trajectory = unroll(dynamics, policy, state, HORIZON, key=key)
    steps = trajectory.states[:-1], jnp.arange(HORIZON), split_key(key, HORIZON)[0]
    remember = lambda memory, x: (act(policy, memory, *x)[0], memory)
    memories = None if eqx.is_array(policy) else lax.scan(remember, memory_of(policy), steps)[1]
    base = trajectory.states[:-1], trajectory.actions, memories
    value = lambda h: surrogate(dynamics, eqx.combine(unravel(flat + h * direction), rest), state, key, gains, base)
    h = 1e-5
    plain, above, below = jax.vmap(value)(jnp.array([0, h, -h]))
    grads = [ravel_pytree(eqx.filter(g, trainable(policy)))[0] for _, g in results]
    return (
        plain,
        (above - below) / (2 * h),
        [(v, g @ direction, jnp.linalg.norm(g - grads[0])) for (v, _), g in zip(results, grads, strict=True)],
        jnp.linalg.norm(grads[0]),
    )


# Every dynamics with the Gaussian policy, the other policies with one model of each class, and the memory with an actions model,
# which every method supports.
SLOW = ("AWM transformer, rotary time", "AWM linear state space", "HWM LSTM, Gaussian", "AWM from the pendulum")
CASES = [pytest.param(name, "Gaussian, with time", marks=[pytest.mark.slow] * (name in SLOW)) for name in DYNAMICS]
CASES += [(name, policy) for name in ("Markov", "HWM GRU", "AWM GRU") for policy in ("actions", "MLP")] + [("AWM GRU", "GRU")]


@pytest.mark.parametrize(("name", "policy_name"), CASES)
def test_the_gradient_equals_finite_differences_for_any_gains(name, policy_name):
    dynamics = DYNAMICS[name]()
    policy = POLICIES[policy_name](dynamics.state_size, dynamics.action_size)

    @given(seed=st.integers(0, 2**31 - 1), gains=st.tuples(GAIN, GAIN, GAIN, GAIN))
    def check(seed, gains):
        plain, differences, results, norm = compare(dynamics, policy, jnp.asarray(seed), jnp.asarray(gains))
        assert norm > 1e-3, "this system's gradient must not vanish"
        for value, slope, error in results:
            assert jnp.allclose(value, plain, rtol=1e-12) and error <= 1e-10 * norm
            assert abs(slope - differences) <= 1e-7 * (norm + abs(plain))

    check()


@pytest.mark.parametrize("name", ["spiral, expanding", "HWM GRU", "AWM transformer, learned time"])
def test_a_gain_known_at_compile_time_equals_a_traced_one(name):
    dynamics = DYNAMICS[name]()
    policy = POLICIES["MLP"](dynamics.state_size, dynamics.action_size)
    traced = eqx.filter_jit(
        lambda gains: unroll_grad(dynamics, policy, start(dynamics), HORIZON, reward=reward, paths=Paths(*gains))
    )
    for gains in [(0.0, 1.0, 1.0), (1.0, 0.0, 1.0), (1.0, 1.0, 0.0), (1.0, 1.0, 1.0)]:
        known = unroll_grad(dynamics, policy, start(dynamics), HORIZON, reward=reward, paths=Paths(*gains))
        for x, y in zip(jax.tree.leaves(known), jax.tree.leaves(traced(jnp.asarray(gains))), strict=True):
            assert jnp.allclose(x, y, rtol=1e-10, atol=1e-12)
