"""BPO: the gradient that it ascends is the paper's, nothing happens unseen, seeds are independent, and policies are learned."""

import math
from fractions import Fraction

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
import pytest
from hypothesis import given, strategies as st
from jax.flatten_util import ravel_pytree
from misuse import says
from reach import ASCENT, FITTING, make, Reach, run
from systems import reward

from awmkit import (
    AWM,
    Critic,
    FullHorizon,
    GaussianPolicy,
    HWM,
    LSTM,
    Markov,
    MLPPolicy,
    ModelUpdates,
    NoProgress,
    Replay,
    RewardModel,
    ShortHorizon,
    TargetEntropy,
    train,
    Trajectory,
    unroll,
    Warmup,
)
from awmkit._reward import with_next_state
from awmkit.gym import GymnasiumTask, TaskEnv
from awmkit.learning._train_state import Noisy, pink_noise, RunConfig
from awmkit.tasks import LinearQuadratic

KEY = jax.random.key(0)
HORIZON, DISCOUNT = 5, 0.9
INFINITE = {"optimiser": optax.sgd(1.0), "clip": math.inf, "entropy": 0.0, "unit": 1.0, "discount": DISCOUNT}


@pytest.fixture(autouse=True)
def optax_promotes():
    """optax mixes dtypes, which only tests forbid."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def simulator(key):
    A, B = (0.5 * jax.random.normal(k, shape) for k, shape in zip(jax.random.split(key), [(3, 3), (3, 2)], strict=True))
    return LinearQuadratic(A, B)


def learned_reward(key):
    return RewardModel(3, 2, width=8, depth=1, horizon=HORIZON, key=key)


GRADIENTS = {
    "AWM": (lambda key: AWM(3, 2, LSTM(8, key=key), key=key), lambda key: reward),
    "HWM": (lambda key: HWM(3, 2, LSTM(8, key=key), key=key), lambda key: reward),
    "simulator": (simulator, lambda key: reward),
    "Markov, and a learned reward": (lambda key: Markov(3, 2, width=8, depth=1, horizon=HORIZON, key=key), learned_reward),
}


def weights_of(policy):
    """As one vector, and the way back."""
    weights, rest = eqx.partition(policy, eqx.is_inexact_array)
    flat, unravel = ravel_pytree(weights)
    return flat, lambda flat: eqx.combine(unravel(flat), rest)


def ascended(ascent, dynamics, policy, episode, *, reward, key, steps=0):
    """By how much one update moves a policy's weights, from a replay of nothing but `episode`; and what else it returns."""
    replay = Replay.empty(1, episode).add(jtu.tree_map(lambda x: x[None], episode))
    init_key, key = jax.random.split(key)
    options = {"dynamics": dynamics, "reward": reward, "replay": replay, "unit": jnp.ones(())}
    memory = ascent.init(policy, init_key)
    memory, after, seen = ascent.update(memory, policy, **options, steps=jnp.asarray(steps), key=key)
    return weights_of(after)[0] - weights_of(policy)[0], memory, seen


def pieces(dynamics, policy, state, reward):
    """At each step of the closed loop: dpi (H, A, P), ds_{t+1}/da_k (H, S, H, A), and dr by s_t, a_t and s_{t+1}."""
    flat, rebuild = weights_of(policy)
    loop, steps = unroll(dynamics, policy, state, HORIZON), jnp.arange(HORIZON)
    dpi = jax.vmap(lambda s, t: jax.jacobian(lambda w: rebuild(w)(s, t))(flat))(loop.states[:-1], steps)
    response = jax.jacobian(lambda a: dynamics.open_loop(state, a))(loop.actions)
    pay = lambda s, a, n, t: with_next_state(reward)(s, a, t, n)
    return dpi, response, jax.vmap(jax.grad(pay, (0, 1, 2)))(loop.states[:-1], loop.actions, loop.states[1:], steps)


def papers_gradient(dpi, response, slopes):
    """sum_t [ dr_t/da_t dpi(s_t) + dr_t/ds_t sum_{k<t} ds_t/da_k dpi(s_k) ], and its like for a reward that reads s_{t+1}."""
    dpi, response, slopes = jtu.tree_map(np.asarray, (dpi, response, slopes))
    moved = [sum((response[t - 1, :, k] @ dpi[k] for k in range(t)), np.zeros((3, dpi.shape[2]))) for t in range(HORIZON + 1)]
    total = 0.0
    for t, (by_state, by_action, by_next) in enumerate(zip(*slopes, strict=True)):
        total += DISCOUNT**t * (by_action @ dpi[t] + by_state @ moved[t] + by_next @ moved[t + 1])
    return total


@pytest.mark.parametrize("name", GRADIENTS)
def test_the_gradient_of_a_whole_episode_is_the_papers_formula(name):
    make_dynamics, make_reward = GRADIENTS[name]
    ascent = FullHorizon(batch_size=2, **INFINITE)

    @jax.jit
    def both(seed):
        model_key, reward_key, policy_key, state_key, key = jax.random.split(jax.random.key(seed), 5)
        dynamics, pay = make_dynamics(model_key), make_reward(reward_key)
        policy = MLPPolicy(3, 2, width=4, depth=1, horizon=HORIZON, key=policy_key)
        states = jax.random.normal(state_key, (HORIZON + 1, 3))  # Of which only the first may matter.
        episode = Trajectory(states, jnp.zeros((HORIZON, 2)), jnp.zeros(HORIZON))
        step, _, seen = ascended(ascent, dynamics, policy, episode, reward=pay, key=key)
        return step, seen.gradient_norm, pieces(dynamics, policy, states[0], pay)

    @given(seed=st.integers(0, 2**31 - 1))
    def check(seed):
        step, norm, parts = both(seed)
        naive = papers_gradient(*parts)
        np.testing.assert_allclose(step, naive, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(norm, np.linalg.norm(naive), rtol=1e-8)
        assert norm > 1e-3

    check()


def test_a_short_unroll_ascends_its_rewards_and_the_critics_value_of_its_end():
    horizon, length = 4, 3  # So that an unroll begins at step 0, or at step 1 and reaches the end.
    critic = Critic(3, horizon, width=4, depth=1, key=jax.random.key(8))
    ascent = ShortHorizon(critic, length=length, batch_size=1, critic_optimiser=optax.sgd(0.1), polyak=0.75, **INFINITE)

    def naive(dynamics, policy, states, first):
        def value(policy):
            state, total = states[first], 0.0
            for t in range(first, first + length):
                action = policy(state, t)
                total += DISCOUNT ** (t - first) * reward(state, action, t)
                state = dynamics.step(None, state, action, t)[1]
            return total + (DISCOUNT**length * critic(state, t + 1) if t + 1 < horizon else 0.0)

        descend = jax.grad(lambda w: (weights_of(critic)[1](w)(states[first], first) - value(policy)) ** 2)
        step = -0.1 * descend(weights_of(critic)[0])
        return jnp.concatenate([weights_of(eqx.filter_grad(value)(policy))[0], step, 0.25 * step])

    @jax.jit
    def both(seed):
        model_key, policy_key, state_key, key = jax.random.split(jax.random.key(seed), 4)
        dynamics = Markov(3, 2, width=8, depth=1, horizon=horizon, key=model_key)
        policy = MLPPolicy(3, 2, width=4, depth=1, horizon=horizon, key=policy_key)
        states = jax.random.normal(state_key, (horizon + 1, 3))
        episode = Trajectory(states, jnp.zeros((horizon, 2)), jnp.zeros(horizon))
        step, (_, after, target, _), _ = ascended(ascent, dynamics, policy, episode, reward=reward, key=key)
        moved = [weights_of(c)[0] - weights_of(critic)[0] for c in (after, target)]
        return jnp.concatenate([step, *moved]), jnp.stack([naive(dynamics, policy, states, t) for t in (0, 1)])

    begun = set()
    for seed in range(8):
        moved, candidates = both(seed)
        first = int(jnp.argmin(jnp.max(jnp.abs(candidates - moved), axis=1)))
        np.testing.assert_allclose(moved, candidates[first], rtol=1e-8, atol=1e-10)
        begun.add(first)
    assert begun == {0, 1}


STILL = Trajectory(jnp.zeros((7, 2)), jnp.zeros((6, 2)), jnp.zeros(6))  # An episode of Reach, of which only the start counts.


@pytest.mark.parametrize("clip", [1e-3, math.inf])
def test_the_gradient_is_clipped_by_its_norm_and_both_norms_are_told(clip):
    ascent, task = FullHorizon(batch_size=1, **{**INFINITE, "clip": clip}), Reach()
    policy = MLPPolicy(2, 2, width=4, depth=1, key=KEY)
    update = jax.jit(lambda key: ascended(ascent, task, policy, STILL, reward=task.reward, key=key)[::2])
    step, seen = update(KEY)
    assert seen.gradient_norm > 0.1 and seen.skipped == 0
    np.testing.assert_allclose(seen.clipped_norm, min(clip, seen.gradient_norm), rtol=1e-10)
    np.testing.assert_allclose(jnp.linalg.norm(step), seen.clipped_norm, rtol=1e-10)


def test_an_entropy_target_is_reached_for_each_entry_of_an_action_whatever_the_discount():
    policy = GaussianPolicy(2, 2, width=4, depth=1, key=KEY)
    entropy = TargetEntropy(optax.linear_schedule(0.0, -1.0, 400))
    ascent = FullHorizon(batch_size=16, optimiser=optax.adam(0.03), return_scale=1.0, discount=0.5, entropy=entropy)
    replay = Replay.empty(1, STILL).add(jtu.tree_map(lambda x: x[None], STILL))
    options = {"dynamics": Reach(), "reward": Reach().reward, "replay": replay, "unit": jnp.ones(())}
    carry, rest = eqx.partition((ascent.init(policy, KEY), policy), eqx.is_array)

    def update(carry, i):
        memory, policy = eqx.combine(carry, rest)
        memory, policy, seen = ascent.update(memory, policy, **options, steps=i, key=jax.random.fold_in(KEY, i))
        return eqx.filter((memory, policy), eqx.is_array), seen.entropy

    carry, seen = jax.lax.scan(update, carry, jnp.arange(600))
    policy, keys = eqx.combine(carry, rest)[1], jax.random.split(KEY, (500, 6))
    episodes = jax.vmap(lambda key: unroll(Reach(), policy, jnp.zeros(2), 6, key=key[0]))(keys)
    one = lambda state, t, key: policy.entropy(state, t, key=key)
    entropy = jax.vmap(jax.vmap(one))(episodes.states[:, :-1], jnp.tile(jnp.arange(6), (500, 1)), keys).mean()
    assert seen[0] > -0.5 and abs(entropy - 2 * -1.0) < 0.2  # Of both entries.
    assert abs(entropy - seen[-100:].mean()) < 0.2


class Breaking(eqx.Module):
    """An entropy bonus that is not a number from some step on."""

    steps: int

    def __call__(self, steps):
        return jnp.where(steps < self.steps, 0.01, jnp.nan)


def test_a_simulators_gradient_learns_and_where_it_breaks_nothing_is_touched_and_all_is_counted():
    ascent = FullHorizon(steps_per_update=0.5, batch_size=4, optimiser=optax.adam(0.02), clip=1.0, entropy=Breaking(60))
    learn = lambda steps: run(KEY, reward=None, model=Reach(), ascent=ascent, steps=steps)
    before = learn(60)
    with pytest.warns(UserWarning, match=r"None of the 24 policy updates up to step \d+ had a finite.*1 of 1 runs; damp"):
        after = learn(96)
    metrics, climb = after.metrics, after.metrics.policy_update
    assert metrics.steps.tolist() == [24, 36, 48, 60, 72, 84, 96]
    assert climb.skipped.tolist() == [0, 0, 0, 0, 24, 24, 24]  # The fifth epoch begins after step 60.
    kept = [eqx.filter((x.policy, x.learner.ascent_memory), eqx.is_array) for x in (before, after)]
    assert all(bool((a == b).all()) for a, b in zip(*map(jax.tree.leaves, kept), strict=True))
    assert after.learner.ascent_memory.optimiser[0].count == 4 * 24
    assert metrics.true_return[3] > -0.6 and metrics.acted_return[0] < -1.0  # -1/2 is the best.
    assert climb.gradient_norm[0] > climb.clipped_norm[0] > 0 and (climb.clipped_norm <= 1).all()
    assert climb.gradient_norm[-1] == 0 and metrics.model_error is None and metrics.model_loss is None


def test_statistics_are_those_of_the_warm_up():
    result = run(KEY, steps=24)  # Two episodes of random actions, and two of the policy.
    warm = jtu.tree_map(lambda x: x[:2], result.learner.replay.episodes)
    np.testing.assert_allclose(result.policy.input_norm.shift, warm.states.mean((0, 1)), rtol=1e-9)
    np.testing.assert_allclose(result.model.input_norm.scale, warm.states.std((0, 1)), rtol=1e-9)
    np.testing.assert_allclose(result.reward.output_norm.shift, warm.rewards.mean(keepdims=True)[0], rtol=1e-9)
    np.testing.assert_allclose(result.learner.return_scale, warm.returns().std(), rtol=1e-9)


@given(every=st.sampled_from(["0.9", "1.1", "0.1", "2.5", "3", "16", "37"]), environments=st.integers(1, 3))
def test_updates_fall_due_by_environment_steps_whoever_makes_them(every, environments):
    loop = RunConfig(Reach(), FITTING, ASCENT, environments, 1)
    due = [int(loop.due_between(jnp.asarray(i), jnp.asarray(i + 1), float(every))) for i in range(40)]
    sums = [math.floor(Fraction(i * 6 * environments) / Fraction(every)) for i in range(1, 41)]
    assert np.cumsum(due).tolist() == sums


def test_one_program_of_two_seeds_is_two_runs_and_each_learns_with_a_learned_reward():
    keys = jax.random.split(KEY)
    together, *apart = (run(key, steps=396) for key in (keys, *keys))
    one, *others = (eqx.filter((run.learner, run.metrics), eqx.is_inexact_array) for run in (together, *apart))
    for both, each in zip(jax.tree.leaves(one), zip(*map(jax.tree.leaves, others), strict=True), strict=True):
        np.testing.assert_allclose(both, jnp.stack(each), rtol=1e-8, atol=1e-8)
    assert not jnp.allclose(*together.metrics.true_return)
    for result in apart:  # 384 steps after the warm-up's 12: an update of the model for every 0.7, of the policy for every 0.9.
        assert result.learner.fit_memory[0].count == 548 and result.learner.ascent_memory[0].optimiser[0].count == 426
        assert result.learner.replay.added == 66 and result.learner.replay.size == 8
        assert result.metrics.true_return[-1] > -0.8 and result.metrics.acted_return[0] < -2.0  # -1/2 is the best.
        assert result.metrics.model_error[-1] < 0.1 * result.metrics.model_error[0]


def test_a_policy_is_learned_on_the_host_where_the_reward_is_too():
    result = run(KEY, GymnasiumTask(TaskEnv(Reach(), time_aware=False)), steps=396)
    assert result.metrics.true_return[-1] > -0.8 and result.metrics.acted_return[0] < -2.0  # -1/2 is the best.


def test_noise_is_added_to_what_a_policy_does_and_clipped():
    added = jnp.array([[0.1, 0.05], [-0.2, 0.3]])
    policy = Noisy(lambda state, t, *, key=None: jnp.array([0.0, 0.9]), added)
    np.testing.assert_allclose(jax.vmap(lambda t: policy(jnp.zeros(2), t))(jnp.arange(2)), [[0.1, 0.95], [-0.2, 1.0]])


@pytest.mark.parametrize("steps", [2, 7, 100])
def test_pink_noise_is_of_unit_variance_and_its_power_falls_with_the_frequency(steps):
    noise = jax.vmap(lambda key: pink_noise(key, (steps, 2)))(jax.random.split(KEY, 4000))
    assert noise.shape == (4000, steps, 2) and abs(noise.mean()) < 0.05
    np.testing.assert_allclose(noise.std(axis=0), 1, atol=0.05)
    np.testing.assert_allclose((noise[..., 0] * noise[..., 1]).mean(), 0, atol=0.08)
    if steps == 100:
        power = jnp.mean(jnp.abs(jnp.fft.rfft(noise, axis=1)) ** 2, axis=(0, 2))[3:40]
        slope = np.polyfit(np.log(np.arange(3, 40)), np.log(power), 1)[0]
        assert abs(slope + 1) < 0.15  # White noise has 0.


TASK = Reach()
MADE = make(KEY)
PENDULUM = GymnasiumTask(gymnasium.make("Pendulum-v1"), horizon=5)


def _bpo(task=TASK, key=KEY, **options):
    return train(task, key=key, **{**MADE, "progress": NoProgress(), "steps": 24, "warmup": Warmup(6), **options})


MISUSES = {
    "no task": (lambda: _bpo("Pendulum-v1"), "task is a str; pass an awmkit.AbstractTask"),
    "an environment for a task": (lambda: _bpo(PENDULUM.env), "GymnasiumTask"),
    "no model": (lambda: _bpo(model=lambda s, a: s), "model is a function.*pass a world model"),
    "an environment for a model": (lambda: _bpo(PENDULUM, model=PENDULUM), "model is a GymnasiumTask.*no gradient"),
    "a model of other sizes": (lambda: _bpo(PENDULUM), "2 states and 2 actions and the task 3 and 1"),
    "a legacy key": (lambda: _bpo(key=jax.random.PRNGKey(0)), "must be one jax.random.key"),
    "a table of keys": (lambda: _bpo(key=jax.random.split(KEY, (2, 2))), "must be one jax.random.key"),
    "several seeds on the host": (
        lambda: _bpo(PENDULUM, jax.random.split(KEY), model=Markov(3, 1, key=KEY)),
        "call train once for each key",
    ),
    "no steps": (lambda: _bpo(steps=0), "steps=0.*at least 1"),
    "no environments": (lambda: _bpo(environments=0), "environments=0.*at least 1"),
    "no epochs": (lambda: _bpo(evaluate_every=0), "evaluate_every=0.*at least 1"),
    "negative noise": (lambda: _bpo(noise=-1.0), "noise=-1.0; give a standard deviation of at least 0"),
    "no evaluations": (lambda: _bpo(evaluations=0), "evaluations=0.*at least 1"),
    "nothing but a warm-up": (lambda: _bpo(warmup=Warmup(24)), "steps=24, and the warm-up takes 24"),
    "the entropy of an MLP": (lambda: _bpo(policy=MLPPolicy(2, 2, key=KEY)), r"no entropy.*FullHorizon\(entropy=0\)"),
    "a short unroll of an AWM": (
        lambda: _bpo(model=AWM(2, 2, LSTM(8, key=KEY), key=KEY), ascent=ASCENT),
        "ShortHorizon begins in the middle.*AWM",
    ),
    "no room": (lambda: _bpo(capacity=0), "capacity=0; give a whole number of at least 1"),
    "no room for the warm-up": (lambda: _bpo(capacity=1, warmup=Warmup(12)), "room for 1 episodes and got 2 at once"),
    "an unknown reward": (
        lambda: _bpo(PENDULUM, model=Markov(3, 1, key=KEY), policy=GaussianPolicy(3, 1, key=KEY), reward=None),
        "given no reward function",
    ),
    "an empty warm-up": (lambda: Warmup(0), "Warmup got steps=0; give a whole number of at least 1"),
    "no fits": (lambda: ModelUpdates(steps_per_update=0.0), "steps_per_update=0.0"),
    "fits to nothing": (lambda: ModelUpdates(batch_size=0), "batch_size=0"),
    "uneven groups of a fit": (
        lambda: ModelUpdates(batch_size=12, microbatch_size=5),
        "microbatch_size=5 and batch_size=12; give a divisor",
    ),
    "fewer than no fits": (lambda: ModelUpdates(initial_updates=-1), "initial_updates=-1"),
    "no recency": (lambda: ModelUpdates(recency=0.0), r"recency=0.0.*a number in \(0, 1\]"),
    "too much recency": (lambda: ModelUpdates(recency=1.5), "recency=1.5"),
    "no ascents": (lambda: FullHorizon(steps_per_update=0.0), "steps_per_update=0.0"),
    "ascents from nowhere": (lambda: FullHorizon(batch_size=0), "batch_size=0"),
    "a clip that turns around": (lambda: ShortHorizon(ASCENT.critic, clip=-1.0), "clip=-1.0"),
    "several critics": (
        lambda: ShortHorizon(eqx.filter_vmap(lambda key: Critic(2, 3, key=key))(jax.random.split(KEY))),
        "several critics.*give one",
    ),
    "a number for a warm-up": (lambda: _bpo(warmup=6), r"warmup=6; pass an awmkit.Warmup\(...\)"),
    "a number for the fitting": (lambda: _bpo(model_updates=2.0), r"model_updates=2.0; pass an awmkit.ModelUpdates"),
    "a name for the ascent": (lambda: _bpo(ascent="whole"), "ascent='whole'; pass an awmkit.FullHorizon"),
    "a name for a policy": (lambda: _bpo(policy="gaussian"), "policy is a str; give a function or a module"),
    "a class for a policy": (lambda: _bpo(policy=GaussianPolicy), "policy is the class GaussianPolicy; make an instance"),
    "half a step": (lambda: _bpo(steps=24.5), "steps=24.5; give a whole number"),
    "one callback": (lambda: _bpo(callbacks=print), r"callbacks are.*pass a list of functions"),
    "a number of devices": (lambda: _bpo(mesh=8), r"mesh is a int; pass one of devices, such as jax.make_mesh"),
    "several keys for one model": (
        lambda: _bpo(key=jax.random.split(KEY)),
        "2 keys and one model; build several",
    ),
    "a checkpoint in a lost folder": (lambda: _bpo(checkpoint="/no/such/folder/run"), "folder that does not exist"),
    "a checkpoint for a folder": (lambda: _bpo(checkpoint="/"), "/ is a folder; give the path of a file"),
    "a reward without t": (lambda: _bpo(reward=lambda s, a: s[0]), r"cannot be called as reward\(state, action, t\)"),
    "a name for an optimiser": (lambda: FullHorizon(optimiser="adam"), "optimiser is a str; pass one of optax"),
    "a name for the model's optimiser": (lambda: ModelUpdates(optimiser="adam"), "optimiser is a str; pass one of optax"),
    "a name for the entropy": (
        lambda: FullHorizon(entropy="auto"),
        "entropy='auto'; give a weight, or TargetEntropy",
    ),
    "half a start": (lambda: FullHorizon(batch_size=1.5), "batch_size=1.5; give a whole number"),
    "a name for the warm-up's actions": (lambda: Warmup(6, actions="uniform"), r"called as actions\(key, shape\)"),
    "an unroll of no step": (lambda: ShortHorizon(ASCENT.critic, length=0), "length=0"),
    "an unroll beyond the end": (lambda: _bpo(ascent=ShortHorizon(ASCENT.critic, length=7)), "length=7.*6"),
}


@pytest.mark.parametrize("name", MISUSES)
def test_misuse_is_one_clear_sentence(name):
    says(*MISUSES[name])


def test_a_model_that_diverges_says_what_to_do():
    broken = jtu.tree_map(lambda x: x * jnp.nan if eqx.is_inexact_array(x) else x, make(KEY)["model"])
    with pytest.raises(RuntimeError, match="lower its learning rate"):
        run(KEY, model=broken)


def test_a_task_that_leaves_the_numbers_is_named_and_not_the_model():
    class Bursting(Reach):
        def step(self, carry, state, action, t, *, key=None):
            return carry, jnp.where(jnp.max(jnp.abs(action)) > 0.99, jnp.nan, state / 2 + action)

    with pytest.raises(RuntimeError, match="task's acted returns were nan up to step .*; mend the task"):
        run(KEY, task=Bursting(), noise=1.0)
