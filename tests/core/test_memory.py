"""Policies with a memory: every method against a plain loop, ends, entropies, hops, what a memory must be, and where it is refused."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st
from jax import lax
from jaxtyping import Array
from systems import reward

from awmkit import (
    AbstractMethod,
    AbstractPolicy,
    AWM,
    BPO,
    Newton,
    Normaliser,
    Parallel,
    Paths,
    Picard,
    RNN,
    Sequential,
    unroll,
)
from awmkit._dynamics import step_keys
from awmkit.methods._method import split_key

KEY, HORIZON = jax.random.key(0), 5
MODEL = AWM(3, 2, RNN(3, key=KEY), key=KEY)
STATE = jnp.array([0.5, -0.3, 0.2])


class Remembers(AbstractPolicy):
    """A memory of every kind: trained initial values, single precision, a counter and a key."""

    input_norm: Normaliser
    first: Array
    weights: Array

    def init(self):
        return {"mean": self.first, "short": jnp.zeros(2, jnp.float32), "count": 0, "key": jax.random.key(5)}

    def step(self, memory, state, t, *, key=None):
        next_key, own_key = jax.random.split(memory["key"])
        noise = 0.1 * jax.random.normal(own_key, (3,)) + (0 if key is None else 0.1 * jax.random.normal(key, (3,)))
        mean = 0.7 * memory["mean"] + jnp.tanh(self.weights @ state) + noise
        action = jnp.tanh(mean[:2] + memory["short"].astype(float) + jnp.sin(memory["count"].astype(float)))
        short = 0.1 * action.astype(jnp.float32)
        return {"mean": mean, "short": short, "count": memory["count"] + 1, "key": next_key}, action


POLICY = Remembers(Normaliser(3), jnp.array([0.1, -0.2, 0.3]), 0.8 * jax.random.normal(KEY, (3, 3)))


class PlainLoop(AbstractMethod):
    """The loop as one would write it."""

    def run(self, dynamics, policy, state, horizon, *, key, paths, t=0, carry=None):
        policy_keys, dynamics_key = split_key(key, horizon)
        dynamics_keys = step_keys(dynamics_key, horizon)
        of = lambda keys, i: None if keys is None else keys[i]
        scale = lambda x, g: lax.stop_gradient(x) + g * (x - lax.stop_gradient(x))
        recall = lambda x: scale(x, paths.memory_to_policy) if eqx.is_inexact_array(x) else jnp.asarray(x)
        carry, memory, states, actions = dynamics.init(state, horizon), policy.init(), [], []
        for i in range(horizon):
            memory, action = policy.step(
                jax.tree.map(recall, memory), scale(state, paths.state_to_policy), jnp.asarray(t + i), key=of(policy_keys, i)
            )
            given = scale(state, paths.state_to_model), scale(action, paths.action_to_model)
            carry, state = dynamics.step(carry, *given, t + i, key=of(dynamics_keys, i))
            states.append(state)
            actions.append(action)
        return jnp.stack(states), jnp.stack(actions), None


METHODS = {
    "Sequential": Sequential(),
    "Newton in blocks": Newton(block=4),
    "Parallel in turns": Parallel(),
    "Picard": Parallel(sampling=Picard()),
    "Picard in blocks": Parallel(sampling=Picard(), block=3),
    "Picard without patience": Parallel(sampling=Picard(), patience=1),
}


QUICK = ("Picard in blocks", "any gains"), ("Parallel in turns", "BPO")
CASES = [
    pytest.param(name, paths, marks=[pytest.mark.slow] * ((name, paths) not in QUICK))
    for name in METHODS
    for paths in ("BPO", "any gains")
]


@pytest.mark.parametrize(("name", "paths"), CASES)
def test_every_method_passes_a_memory_on_as_a_plain_loop_does(name, paths):
    @eqx.filter_jit
    def run(seed, gains, method):
        state_key, key = jax.random.split(jax.random.key(seed))
        state = jax.random.normal(state_key, (3,))
        given = {"reward": reward, "key": key, "paths": BPO if paths == "BPO" else Paths(*gains), "method": method}
        value = lambda p, s: (lambda x: (x.returns(), (x.states, x.actions)))(unroll(MODEL, p, s, HORIZON, **given))
        return eqx.filter_value_and_grad(lambda x: value(*x), has_aux=True)((POLICY, state))

    @given(
        seed=st.integers(0, 2**31 - 1),
        gains=st.sampled_from([(1.0, 1.0, 1.0, 1.0), (0.6, 1.0, 0.9, 1.2), (0.7, 1.0, 1.0, 0.0)]),
    )
    def check(seed, gains):
        seed, gains = jnp.asarray(seed), jnp.asarray(gains)
        for x, y in zip(*(jax.tree.leaves(run(seed, gains, m)) for m in (PlainLoop(), METHODS[name])), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-9)  # A part of the memory is single precision.

    check()
