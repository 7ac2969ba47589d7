"""Policies with a memory: every method against a plain loop, ends, entropies, hops, what a memory must be, and where it is refused."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jaxtyping import Array
from systems import reward

from awmkit import (
    AbstractMethod,
    AbstractPolicy,
    AbstractTask,
    AWM,
    BPO,
    GRUPolicy,
    Newton,
    Normaliser,
    Parallel,
    Paths,
    Picard,
    RNN,
    Sequential,
    unroll,
    unroll_grad,
)
from awmkit._dynamics import step_keys
from awmkit.learning.ascents._imagined import imagine
from awmkit.methods._method import split_key
from awmkit.tasks import Discretised, HIVTreatment, PartlyObserved, spiral

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
        scale = lambda x, g: lax.stop_gradient(x) + jnp.asarray(g, x.dtype) * (x - lax.stop_gradient(x))
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

    given = jnp.asarray(0), jnp.array([0.6, 1.0, 0.9, 1.2])
    for x, y in zip(*(jax.tree.leaves(run(*given, m)) for m in (PlainLoop(), METHODS[name])), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-9)  # A part of the memory is single precision.


class Leaving(AbstractTask):
    """An episode ends once the state exceeds 1. Beyond, everything is NaN."""

    horizon: int = eqx.field(static=True, default=6)
    state_size: int = eqx.field(static=True, default=1)
    action_size: int = eqx.field(static=True, default=1)

    def step(self, carry, state, action, t, *, key=None):
        return carry, jnp.sqrt(1.2 - state) * 0 + state + 0.3 + 0.1 * action

    def reward(self, state, action, t):
        return state[0] * action[0]

    def reset(self, key):
        return jnp.zeros(1)

    def terminates(self, state, action, t, next_state):
        return next_state[0] > 1


@pytest.mark.parametrize("method", [Sequential(), pytest.param(Newton(), marks=pytest.mark.slow)], ids=["Sequential", "Newton"])
def test_after_an_end_a_memory_reaches_no_value_and_no_gradient(method):
    policy = GRUPolicy(1, 1, width=3, key=KEY)
    value, grads = unroll_grad(Leaving(), policy, jnp.zeros(1), 6, reward=Leaving().reward, method=method)
    length = int(unroll(Leaving(), policy, jnp.zeros(1), 6, method=method).length)
    whole = Leaving(horizon=length)
    never = lambda state, action, t, next_state: jnp.asarray(False)
    expected = unroll_grad(whole, policy, jnp.zeros(1), length, reward=whole.reward, termination=never)
    assert 2 < length < 6
    for x, y in zip(jax.tree.leaves((value, grads)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12)


def test_the_entropy_of_an_imagined_episode_uses_the_memories_of_that_episode():
    policy, keys = GRUPolicy(3, 2, width=3, key=KEY), jax.random.split(KEY)
    options = {"paths": BPO, "method": None, "discount": 0.9, "key": keys[0], "entropy_key": keys[1]}
    found = imagine(MODEL, policy, STATE, 4, reward=reward, termination=None, **options)
    episode, memory, total = unroll(MODEL, policy, STATE, 4, key=keys[0]), policy.init(), 0.0
    policy_keys, entropy_keys = split_key(keys[0], 4)[0], jax.random.split(keys[1], 4)
    for t in range(4):
        total += 0.9**t * policy.entropy(memory, episode.states[t], t, key=entropy_keys[t])
        memory, action = policy.step(memory, episode.states[t], t, key=policy_keys[t])
        np.testing.assert_allclose(action, episode.actions[t], rtol=1e-12)
    np.testing.assert_allclose(found.discounted_entropy, total, rtol=1e-12)


def test_check_names_the_edge_of_a_memory_whose_gradient_is_not_finite():
    class Rooted(AbstractPolicy):
        input_norm: Normaliser
        weight: Array

        def init(self):
            return jnp.ones(1)

        def step(self, memory, state, t, *, key=None):
            root = jnp.sqrt(jnp.where(t == 2, memory - lax.stop_gradient(memory), memory))  # Infinite slope at step 2.
            return self.weight * memory, 0.1 * root * self.weight + state[:1] * 0

    policy = Rooted(Normaliser(2), jnp.array([0.5]))
    with pytest.raises(eqx.EquinoxRuntimeError, match="step t=2 on the edge memory_to_policy"):
        unroll_grad(spiral(0.9, 0.3), policy, jnp.ones(2), 4, reward=reward, check=True)


def test_a_task_seen_in_part_is_the_task():
    whole = Discretised(HIVTreatment(), 50)
    part = PartlyObserved(whole, observed=(0,))
    actions = jnp.linspace(-1, 1, 50)[:, None]
    run = lambda task: unroll(task, actions, task.reset(KEY), 50, reward=task.reward)
    np.testing.assert_array_equal(run(part).states[:, 0], run(whole).states[:, 0])
    np.testing.assert_array_equal(run(part).rewards, run(whole).rewards)
