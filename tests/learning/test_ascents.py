"""Ascents follow the gradients that they document: the paper's formula, the critic's value, the entropy target, the clip."""

import math
import re
import textwrap

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
import pytest
from hypothesis import given, strategies as st
from jax.flatten_util import ravel_pytree
from reach import Reach
from systems import reward

from awmkit import (
    AbstractAscent,
    AWM,
    Critic,
    Ensemble,
    FullHorizon,
    GaussianPolicy,
    HWM,
    Markov,
    MLPPolicy,
    Normaliser,
    Paths,
    Replay,
    RewardModel,
    RNN,
    ShortHorizon,
    TargetEntropy,
    Trajectory,
    unroll,
)
from awmkit._reward import with_next_state
from awmkit.learning.ascents import AscentState, init_ascent_state, policy_step
from awmkit.learning.ascents._imagined import imagine
from awmkit.tasks import LinearQuadratic

KEY = jax.random.key(0)
HORIZON, DISCOUNT = 5, 0.9
# With these settings an update adds the gradient to the weights.
PLAIN = {"optimiser": optax.sgd(1.0), "clip": math.inf, "entropy": 0.0, "return_scale": 1.0, "discount": DISCOUNT}


@pytest.fixture(autouse=True)
def optax_promotes():
    """optax mixes dtypes, which the tests forbid."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def simulator(key):
    A, B = (0.5 * jax.random.normal(k, shape) for k, shape in zip(jax.random.split(key), [(3, 3), (3, 2)], strict=True))
    return LinearQuadratic(A, B)


def learned_reward(key):
    return RewardModel(3, 2, width=8, depth=1, horizon=HORIZON, key=key)


GRADIENTS = {
    "AWM": (lambda key: AWM(3, 2, RNN(8, key=key), key=key), lambda key: reward),
    "HWM": (lambda key: HWM(3, 2, RNN(8, key=key), key=key), lambda key: reward),
    "simulator": (simulator, lambda key: reward),
    "Markov, and a learned reward": (lambda key: Markov(3, 2, width=8, depth=1, horizon=HORIZON, key=key), learned_reward),
}


def weights_of(policy):
    """The weights as one vector, and a function that makes a policy of such a vector."""
    weights, rest = eqx.partition(policy, eqx.is_inexact_array)
    flat, unravel = ravel_pytree(weights)
    return flat, lambda flat: eqx.combine(unravel(flat), rest)


def batch_of(episode: Trajectory) -> Trajectory:
    return jtu.tree_map(lambda x: x[None], episode)


def filled(episode: Trajectory) -> Replay:
    """A replay buffer with one episode."""
    return Replay.empty(episode.horizon, episode).add(batch_of(episode))


def update_once(ascent, dynamics, policy, episode, *, reward, key, steps=0):
    """The change of a policy's weights by one update, the ascent's new state and the `UpdateInfo`."""
    replay = filled(episode)
    init_key, key = jax.random.split(key)
    options = {
        "dynamics": dynamics,
        "reward": reward,
        "termination": None,
        "replay": replay,
        "steps": jnp.asarray(steps),
        "key": key,
    }
    state = ascent.init(policy, batch_of(episode), key=init_key)
    state, after, info = ascent.update(state, policy, **options)
    return weights_of(after)[0] - weights_of(policy)[0], state, info


def derivatives(dynamics, policy, state, reward):
    """At each step of the closed loop: dpi (H, A, P), ds_{t+1}/da_k (H, S, H, A), and the gradients of r_t by s_t, a_t, s_{t+1}."""
    flat, rebuild = weights_of(policy)
    loop, steps = unroll(dynamics, policy, state, HORIZON), jnp.arange(HORIZON)
    dpi = jax.vmap(lambda s, t: jax.jacobian(lambda w: rebuild(w)(s, t))(flat))(loop.states[:-1], steps)
    response = jax.jacobian(lambda a: dynamics.open_loop(state, a))(loop.actions)
    score = lambda s, a, n, t: with_next_state(reward)(s, a, t, n)
    return dpi, response, jax.vmap(jax.grad(score, (0, 1, 2)))(loop.states[:-1], loop.actions, loop.states[1:], steps)


def papers_gradient(dpi, response, slopes):
    """sum_t [ dr_t/da_t dpi(s_t) + dr_t/ds_t sum_{k<t} ds_t/da_k dpi(s_k) ], plus the same with dr_t/ds_{t+1}."""
    dpi, response, slopes = jtu.tree_map(np.asarray, (dpi, response, slopes))
    moved = [sum((response[t - 1, :, k] @ dpi[k] for k in range(t)), np.zeros((3, dpi.shape[2]))) for t in range(HORIZON + 1)]
    total = 0.0
    for t, (by_state, by_action, by_next) in enumerate(zip(*slopes, strict=True)):
        total += DISCOUNT**t * (by_action @ dpi[t] + by_state @ moved[t] + by_next @ moved[t + 1])
    return total


@pytest.mark.parametrize("name", GRADIENTS)
def test_the_full_horizon_gradient_is_the_papers_formula(name):
    make_dynamics, make_reward = GRADIENTS[name]
    ascent = FullHorizon(batch_size=2, **PLAIN)

    @jax.jit
    def both(seed):
        model_key, reward_key, policy_key, state_key, key = jax.random.split(jax.random.key(seed), 5)
        dynamics, reward = make_dynamics(model_key), make_reward(reward_key)
        policy = MLPPolicy(3, 2, width=4, depth=1, horizon=HORIZON, key=policy_key)
        states = jax.random.normal(state_key, (HORIZON + 1, 3))  # Only the first may matter.
        episode = Trajectory(states, jnp.zeros((HORIZON, 2)), jnp.zeros(HORIZON))
        step, _, info = update_once(ascent, dynamics, policy, episode, reward=reward, key=key)
        return step, info.gradient_norm, derivatives(dynamics, policy, states[0], reward)

    @given(seed=st.integers(0, 2**31 - 1))
    def check(seed):
        step, norm, parts = both(seed)
        naive = papers_gradient(*parts)
        np.testing.assert_allclose(step, naive, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(norm, np.linalg.norm(naive), rtol=1e-8)
        assert norm > 1e-3

    check()


@pytest.mark.parametrize("kind", ["Markov", pytest.param("AWM", marks=pytest.mark.slow)])
def test_the_short_horizon_gradient_is_that_of_its_rewards_and_of_the_target_critics_value_at_the_end(kind):
    horizon, length = 4, 3  # So an unroll from step 0 ends before the horizon, and one from a later step at it.
    critic = Critic(3, horizon, width=4, depth=1, key=jax.random.key(8))
    # Statistics that are set, so that the one episode below does not replace them.
    critic = eqx.tree_at(lambda c: c.input_norm, critic, Normaliser(3).fitted(jax.random.normal(jax.random.key(9), (9, 3))))
    ascent = ShortHorizon(critic, length=length, batch_size=1, critic_optimiser=optax.sgd(0.1), polyak=0.75, **PLAIN)

    def naive(dynamics, policy, states, first):
        def value(policy):
            state, total = states[first], 0.0
            carry, begin = dynamics.init(state, length), 0 if kind == "Markov" else first
            for t in range(first, min(first + length, horizon)):
                action = policy(state, t)
                total += DISCOUNT ** (t - first) * reward(state, action, t)
                carry, state = dynamics.step(carry, state, action, t - begin)
            return total + (DISCOUNT**length * critic(state, t + 1) if first + length < horizon else 0.0)

        descend = jax.grad(lambda w: (weights_of(critic)[1](w)(states[first], first) - value(policy)) ** 2)
        step = -0.1 * descend(weights_of(critic)[0])
        return jnp.concatenate([weights_of(eqx.filter_grad(value)(policy))[0], step, 0.25 * step])

    @jax.jit
    def both(seed):
        model_key, policy_key, state_key, key = jax.random.split(jax.random.key(seed), 4)
        dynamics = {
            "Markov": lambda key: Markov(3, 2, width=8, depth=1, horizon=horizon, key=key),
            "AWM": lambda key: AWM(3, 2, RNN(4, key=key), key=key),
        }[kind](model_key)
        policy = MLPPolicy(3, 2, width=4, depth=1, horizon=horizon, key=policy_key)
        states = jax.random.normal(state_key, (horizon + 1, 3))
        episode = Trajectory(states, jnp.zeros((horizon, 2)), jnp.zeros(horizon))
        step, state, _ = update_once(ascent, dynamics, policy, episode, reward=reward, key=key)
        moved = [weights_of(c)[0] - weights_of(critic)[0] for c in (state.critic, state.target_critic)]
        return jnp.concatenate([step, *moved]), jnp.stack([naive(dynamics, policy, states, t) for t in range(horizon)])

    starts = set()
    for seed in range(12):
        moved, candidates = both(seed)
        first = int(jnp.argmin(jnp.max(jnp.abs(candidates - moved), axis=1)))
        np.testing.assert_allclose(moved, candidates[first], rtol=1e-8, atol=1e-10)
        starts.add(first)
    assert starts == set(range(horizon))


@given(seed=st.integers(0, 2**31 - 1), t=st.integers(1, 9))
def test_a_model_that_begins_anywhere_has_the_return_of_an_unroll_from_there_and_its_gradient(seed, t):
    imagined, by_hand, slopes, differences = _from_there(seed, t)
    np.testing.assert_allclose(imagined, by_hand, rtol=1e-12)
    np.testing.assert_allclose(slopes, differences, rtol=1e-6, atol=1e-8)
    assert abs(slopes).min() > 1e-6


@jax.jit
def _from_there(seed, t):
    """For an AWM, an HWM and an ensemble of AWMs: the return from step t, one made by hand, its slope and a difference."""
    model_key, weight_key, state_key, direction_key = jax.random.split(jax.random.key(seed), 4)
    states = jax.random.normal(state_key, (6, HORIZON + 1, 3))
    awm = AWM(3, 2, RNN(4, key=model_key), per_step=True, key=model_key)
    awm = awm.normalised(Trajectory(states, jnp.zeros((6, HORIZON, 2))))
    hwm = HWM(3, 2, RNN(4, key=model_key), key=model_key)
    weight, direction = (jax.random.normal(key, (2, 3)) for key in (weight_key, direction_key))
    make_policy = lambda weight: lambda s, t, *, key=None: jnp.tanh(weight @ s + 0.1 * jnp.asarray(t, s.dtype))
    options = {"reward": reward, "termination": None, "paths": Paths(), "method": None, "discount": DISCOUNT, "key": None}
    found = []
    for dynamics in (awm, hwm, Ensemble([awm, awm])):

        def value(weight, dynamics=dynamics):
            return imagine(dynamics, make_policy(weight), states[0, 0], HORIZON, t=t, **options).discounted_return

        carry, state, total = dynamics.init(states[0, 0], HORIZON), states[0, 0], 0.0
        for i in range(HORIZON):
            action = make_policy(weight)(state, t + i)
            total += DISCOUNT**i * reward(state, action, t + i)
            carry, state = dynamics.step(carry, state, action, i)
        before, after = (value(weight + step * direction) for step in (-1e-5, 1e-5))
        slope = jnp.sum(jax.grad(value)(weight) * direction)
        found.append(jnp.stack([value(weight), total, slope, (after - before) / 2e-5]))
    return jnp.stack(found, axis=1)


STILL = Trajectory(jnp.zeros((7, 2)), jnp.zeros((6, 2)), jnp.zeros(6))  # An episode of Reach; only its start matters.


def test_the_gradient_is_clipped_by_its_norm_and_both_norms_are_reported():
    policy = MLPPolicy(2, 2, width=4, depth=1, key=KEY)

    @jax.jit
    def update(key):
        ascents = [FullHorizon(batch_size=1, **{**PLAIN, "clip": clip}) for clip in (1e-3, math.inf)]
        return [update_once(x, Reach(), policy, STILL, reward=Reach().reward, key=key)[::2] for x in ascents]

    for (step, info), clip in zip(update(KEY), (1e-3, math.inf), strict=True):
        assert info.gradient_norm > 0.1 and info.skipped == 0
        np.testing.assert_allclose(info.clipped_norm, min(clip, info.gradient_norm), rtol=1e-10)
        np.testing.assert_allclose(np.linalg.norm(step), info.clipped_norm, rtol=1e-10)


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1.0, 1e21, 1e38])
def test_a_finite_gradient_of_any_size_moves_the_policy_by_the_clipped_norm(size):
    policy = jtu.tree_map(lambda x: x.astype(jnp.float32), {"weight": jnp.zeros(3), "bias": jnp.zeros(1)})
    gradient = {"weight": jnp.array([2, 0, -1], jnp.float32) * size, "bias": jnp.array([2], jnp.float32) * size}
    for clip in (0.5, 1e-9):
        ascent = FullHorizon(optimiser=optax.sgd(1.0), clip=clip, entropy=0.0, return_scale=1.0)
        state = AscentState(ascent.optimiser.init(policy), jnp.float32(0), jnp.float32(1))
        _, after, info = policy_step(ascent, state, policy, gradient, predicted_return=jnp.float32(0), steps=0)
        moved, expected = min(3 * size, clip), np.array([2, 0, -1, 2]) / 3
        np.testing.assert_allclose(np.append(after["weight"], after["bias"]) / moved, expected, rtol=1e-6)
        np.testing.assert_allclose([info.gradient_norm, info.clipped_norm], [3 * size, moved], rtol=1e-6)
        assert info.skipped == 0


def test_an_update_is_skipped_if_the_gradient_or_the_step_along_it_is_not_finite():
    policy = jnp.zeros(3, jnp.float32)
    adam, steep, nan, inf = optax.adam(1.0), optax.sgd(1e30), math.nan, math.inf
    # Adam squares the gradient; an infinite second moment would freeze the first weight for ever.
    cases = ((adam, 1, 0), (adam, nan, 1), (adam, inf, 1), (adam, 1e21, 1), (steep, 1, 0), (steep, 1e10, 1))
    for optimiser, slope, skipped in cases:
        ascent = FullHorizon(optimiser=optimiser, clip=inf, entropy=0.0, return_scale=1.0)
        state = AscentState(optimiser.init(policy), jnp.float32(0), jnp.float32(1))
        gradient = jnp.array([slope, 0, 2], jnp.float32)
        state_after, after, info = policy_step(ascent, state, policy, gradient, predicted_return=jnp.float32(0), steps=0)
        assert info.skipped == skipped and eqx.tree_equal((state_after, after), (state, policy)) == bool(skipped)


def test_the_weight_of_a_target_entropy_starts_and_changes_as_documented():
    entropy, policy = TargetEntropy(-1.0, rate=0.5, initial_weight=0.25), jnp.zeros(2)
    ascent = FullHorizon(entropy=entropy, return_scale=1.0)
    before = init_ascent_state(ascent, policy, jtu.tree_map(lambda x: x[None], STILL))
    options = {"predicted_return": jnp.zeros(()), "entropy": jnp.asarray(-3.0), "action_size": 2, "steps": 0}
    after, _, _ = policy_step(ascent, before, policy, jnp.ones(2), **options)
    weights = [state.entropy_weight(entropy, 0) for state in (before, after)]
    np.testing.assert_allclose(weights, [0.25, 0.25 * math.exp(0.5 * (-1.0 + 3.0 / 2))])


@given(st.lists(st.floats(allow_nan=False, width=32), max_size=5), st.sampled_from((1e-3, 0.1, 10.0)))
def test_after_entropies_of_any_size_the_weight_is_finite_and_finds_back(entropies, rate):
    entropy, policy = TargetEntropy(-1.0, rate=rate, initial_weight=0.25), jnp.zeros(2, jnp.float32)
    ascent, ratios = FullHorizon(entropy=entropy, return_scale=1.0), []
    state = init_ascent_state(ascent, policy, jtu.tree_map(lambda x: x[None], STILL))
    state = eqx.tree_at(lambda s: s.log_weight, state, state.log_weight.astype(jnp.float32))
    for x in (*entropies, -1 + 14 / rate, -1 - 14 / rate):  # The last two change the weight by e^14, which is more than 1e6.
        options = {"predicted_return": jnp.zeros(()), "entropy": jnp.float32(x), "steps": 0}
        state, _, info = policy_step(ascent, state, policy, jnp.ones(2, jnp.float32), **options)
        ratios.append(state.entropy_weight(entropy, 0) / 0.25)
        assert not info.skipped and 0.99e-6 < ratios[-1] < 1.01e6
    assert ratios[-2] < 1 < ratios[-1]


def test_one_reward_that_is_not_finite_leaves_the_policy_and_the_critic_as_they_were():
    policy, critic = MLPPolicy(2, 2, width=4, depth=1, key=KEY), Critic(2, 6, width=4, depth=1, key=KEY)
    ascent = ShortHorizon(critic, batch_size=1, **{**PLAIN, "optimiser": optax.adam(1e-3)})

    @jax.jit
    def update(factor):
        reward = lambda state, action, t: factor * Reach().reward(state, action, t)
        step, state, info = update_once(ascent, Reach(), policy, STILL, reward=reward, key=KEY)
        return step, weights_of(state.critic)[0] - weights_of(critic)[0], info.skipped

    for factor, skipped in ((1.0, 0), (math.inf, 1), (math.nan, 1)):
        policy_step, critic_step, reported = update(factor)
        assert reported == skipped and (policy_step == 0).all() == (critic_step == 0).all() == bool(skipped)


def test_the_entropy_per_entry_of_an_action_reaches_its_target_whatever_the_discount():
    policy = GaussianPolicy(2, 2, width=4, depth=1, key=KEY)
    entropy = TargetEntropy(optax.linear_schedule(0.0, -1.0, 400))
    ascent = FullHorizon(batch_size=16, optimiser=optax.adam(0.03), return_scale=1.0, discount=0.5, entropy=entropy)
    task = Reach()

    @jax.jit
    def learn(key):
        replay = filled(STILL)
        options = {"dynamics": task, "reward": task.reward, "termination": None, "replay": replay}
        carry, rest = eqx.partition((ascent.init(policy, batch_of(STILL), key=key), policy), eqx.is_array)

        def update(carry, i):
            state, policy = eqx.combine(carry, rest)
            state, policy, info = ascent.update(state, policy, **options, steps=i, key=jax.random.fold_in(key, i))
            return eqx.filter((state, policy), eqx.is_array), info.entropy

        carry, reported = jax.lax.scan(update, carry, jnp.arange(600))
        learned, keys = eqx.combine(carry, rest)[1], jax.random.split(key, (500, 6))
        episodes = jax.vmap(lambda key: unroll(task, learned, jnp.zeros(2), 6, key=key[0]))(keys)
        entropy = lambda state, t, key: learned.entropy(state, t, key=key)
        return reported, jax.vmap(jax.vmap(entropy))(episodes.states[:, :-1], jnp.tile(jnp.arange(6), (500, 1)), keys).mean()

    reported, entropy = learn(KEY)
    assert reported[0] > -0.5 and abs(entropy - 2 * -1.0) < 0.2  # The action has two entries.
    assert abs(entropy - np.mean(reported[-100:])) < 0.2


def test_the_example_of_an_own_ascent_follows_the_gradient_of_the_next_reward():
    code = textwrap.dedent(re.findall(r"```python\n(.*?)```", AbstractAscent.__doc__, re.S)[0])
    names = {}
    exec(code[: code.index("train(")], names)
    ascent = names["Greedy"](batch_size=3, **PLAIN)
    policy = MLPPolicy(2, 2, width=4, depth=1, key=KEY)
    reads_next_state = lambda state, action, t, next_state: -jnp.sum((next_state - 0.5) ** 2)

    @jax.jit
    def both(key):
        step, _, info = update_once(ascent, Reach(), policy, STILL, reward=reads_next_state, key=key)
        start = jnp.zeros(2)
        value = lambda flat: reads_next_state(start, None, 0, weights_of(policy)[1](flat)(start, 0))
        return step, jax.grad(value)(weights_of(policy)[0]), info

    step, gradient, info = both(KEY)
    np.testing.assert_allclose(step, gradient, rtol=1e-10)
    assert info.gradient_norm > 0.1 and info.predicted_return < 0
