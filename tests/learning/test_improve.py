"""`improve`, `evaluate` and `train`: policies learn in models, from data alone, and where episodes end early."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from misuse import says
from reach import make, MODEL_UPDATES, Reach, run

from awmkit import (
    BPO,
    Critic,
    evaluate,
    fit,
    FullHorizon,
    improve,
    Markov,
    MLPPolicy,
    NoProgress,
    Paths,
    prediction_error,
    Replay,
    ShortHorizon,
    TerminationModel,
    Trajectory,
    unroll,
    Warmup,
)
from awmkit._progress import AbstractMeter, AbstractProgress
from awmkit.learning.ascents._imagined import imagine

KEY = jax.random.key(0)
PLAIN = {"entropy": 0.0, "optimiser": optax.adam(0.05), "batch_size": 4, "clip": 1.0}


class Ledge(Reach):
    """`Reach` with a reward of 1 per step, which ends where the first entry of the state is above 1."""

    def reward(self, state, action, t):
        return jnp.ones((), state.dtype)

    def terminates(self, state, action, t, next_state):
        return next_state[0] > 1


@pytest.fixture(autouse=True)
def optax_promotes():
    """optax mixes dtypes, which the tests forbid."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def policy_of(key):
    return MLPPolicy(2, 2, width=8, depth=1, key=key)


def test_improve_reaches_the_best_return_of_a_simulator_and_several_seeds_equal_one():
    task, starts, keys = Reach(), jnp.zeros((3, 2)), jax.random.split(KEY)
    options = {"reward": task.reward, "horizon": 6, "updates": 60, "ascent": FullHorizon(**PLAIN), "progress": NoProgress()}
    both = improve(task, eqx.filter_vmap(policy_of)(keys), starts, key=keys, **options)
    assert both.updates.predicted_return.shape == (2, 60) and both.best().updates.predicted_return.ndim == 1
    one = improve(task, policy_of(keys[1]), starts, key=keys[1], **options)
    np.testing.assert_allclose(both[1].updates.predicted_return, one.updates.predicted_return, rtol=1e-6)
    assert one.updates.predicted_return[-1] > -0.55 > one.updates.predicted_return[0]  # The best is -1/2.
    for result, seed, message in ((both, 2, "no seed 2"), (one, 0, "one seed")):
        with pytest.raises(IndexError, match=message):
            result[seed]
    returns = evaluate(task, one.policy, episodes=3)
    np.testing.assert_allclose(returns.mean, one.updates.predicted_return[-1], atol=0.05)
    assert returns.lengths.tolist() == [6] * 3 and "3 episodes" in str(returns)


class _Interrupting(AbstractMeter, AbstractProgress):
    def start(self, label, total):
        return self

    def update(self, done, note="", *, phase=None):
        if done >= 2:
            raise KeyboardInterrupt


def test_an_interrupt_keeps_the_policy_so_far():
    task = Reach()
    with pytest.raises(KeyboardInterrupt, match="of 50 updates") as caught:
        options = {"reward": task.reward, "horizon": 6, "updates": 50, "ascent": FullHorizon(**PLAIN)}
        improve(task, policy_of(KEY), jnp.zeros((1, 2)), key=KEY, progress=_Interrupting(), **options)
    result = caught.value.result
    assert 2 <= result.updates.predicted_return.size < 50 and jnp.isfinite(result.updates.predicted_return).all()


def test_a_constant_reward_has_a_gradient_through_a_smooth_end():
    """The best policy never steps over the ledge. A hard rule has no gradient, which is a warning."""
    task = Ledge()
    policy = eqx.tree_at(lambda p: p.network.layers[-1].bias, policy_of(KEY), jnp.array([2.0, 0.0]))
    smooth = lambda state, action, t, next_state: jax.nn.sigmoid(8 * (next_state[0] - 1))
    options = {"reward": task.reward, "horizon": 6, "updates": 60, "progress": NoProgress(), "key": KEY}
    options |= {"ascent": FullHorizon(paths=Paths(), **PLAIN)}
    before = evaluate(task, policy, episodes=1)
    after = evaluate(task, improve(task, policy, jnp.zeros((1, 2)), termination=smooth, **options).policy, episodes=1)
    assert before.lengths[0] < 3 and before.terminated[0] and after.lengths[0] == 6 and not after.terminated[0]
    assert before.returns[0] == before.lengths[0]


def test_misuse_of_improve_is_one_sentence():
    task, starts = Reach(), jnp.zeros((3, 2))
    options = {"reward": task.reward, "key": KEY, "horizon": 6, "ascent": FullHorizon(**PLAIN)}
    says(lambda: improve(task, policy_of(KEY), starts, **{**options, "horizon": None}), "no horizon; pass horizon=")
    says(lambda: improve(task, policy_of(KEY), starts[0], **options), r"starts of shape \(N, 2\)")
    says(lambda: improve("task", policy_of(KEY), starts, **options), "model is a str.* pass a fitted world model")
    says(
        lambda: improve(task, policy_of(KEY), starts, **{**options, "ascent": "adam"}),
        "ascent is a str; pass an awmkit.FullHorizon",
    )
    says(
        lambda: improve(task, policy_of(KEY), starts, **{**options, "ascent": FullHorizon()}),
        "method entropy, which MLPPolicy lacks",
    )
    says(lambda: evaluate("task", policy_of(KEY)), "task is a str; pass an awmkit.AbstractTask, or a Gymnasium environment")


def ledge_run(**options):
    """A run on a task whose episodes end early, with learned models of its steps, its reward and its end."""
    made = make(KEY)
    ascent = ShortHorizon(Critic(2, width=8, depth=1, key=KEY), length=2, discount=0.9, steps_per_update=2.0, **PLAIN)
    settings = dataclasses.replace(MODEL_UPDATES, window=2, recency=1.0)
    defaults = {"termination": TerminationModel(2, 2, width=8, depth=1, key=KEY), "policy": made["policy"], "steps": 60}
    defaults |= {"ascent": ascent, "model_updates": settings, "warmup": Warmup(20), "capacity": None, "evaluate_every": 20}
    return run(KEY, Ledge(), **{**defaults, **options})


def test_steps_are_counted_as_they_happen_and_a_run_goes_on_from_where_it_stopped(tmp_path):
    result = ledge_run()
    replay, steps = result.state.replay, np.asarray(result.metrics.steps)
    episodes = replay.episodes
    assert replay.added == steps[-1] == np.sum(episodes.length) >= 60 and 60 <= steps[-1] < 60 + 12
    assert bool(episodes.terminated.any()) and (np.asarray(episodes.length) < 6).any()
    for episode in episodes:
        over = np.asarray(episode.states)[1:, 0] > 1
        assert not over[:-1].any() and over[-1] == episode.terminated and (episode.terminated or len(over) == 6)
    ledge_run(steps=40, checkpoint=tmp_path / "run")
    longer = ledge_run(checkpoint=tmp_path / "run")
    arrays = lambda result: jax.tree.leaves(eqx.filter((result.policy, result.model, result.state.replay), eqx.is_array))
    assert all(np.array_equal(a, b) for a, b in zip(arrays(longer), arrays(result), strict=True))


def test_a_warm_up_needs_the_steps_that_happen_and_not_those_of_whole_episodes():
    """Whole episodes would have 24 steps; the episodes of this warm-up have 20."""
    says(lambda: ledge_run(steps=20), "steps=20, but the warm-up alone takes 20 steps")
    assert ledge_run(steps=21).metrics.steps[-1] >= 21


def test_offline_learning_takes_no_step_and_improves_the_policy_in_the_model_of_the_data():
    task = Reach()
    actions = jax.random.uniform(KEY, (64, 6, 2), minval=-1.0)
    data = jax.jit(jax.vmap(lambda plan: unroll(task, plan, jnp.zeros(2), 6, reward=task.reward)))(actions)
    ascent = FullHorizon(initial_updates=150, paths=Paths(), **PLAIN)
    settings = dataclasses.replace(MODEL_UPDATES, initial_updates=300, batch_size=32)
    options = {"episodes": data, "steps": 0, "reward": None, "ascent": ascent, "model_updates": settings, "capacity": None}
    result = run(KEY, task, policy=policy_of(KEY), model=Markov(2, 2, width=16, depth=1, key=KEY), **options)
    assert (
        result.metrics.steps.tolist() == [0] and result.metrics.episodes.tolist() == [0] and result.state.replay.added == 64 * 6
    )
    assert result.metrics.true_return[0] > -0.8 > jnp.max(data.returns())  # The data's best and the best, -1/2, lie apart.
    says(lambda: run(KEY, task, **{**options, "capacity": 100}), "episodes of 384 steps in all and capacity=100")
    says(lambda: run(KEY, task, **{**options, "episodes": dataclasses.replace(data, rewards=None)}), "episodes without rewards")


def test_of_episodes_longer_than_the_horizon_only_the_first_steps_are_read():
    made, task = make(KEY), Reach()
    plans = jax.random.uniform(KEY, (4, 12, 2), minval=-1.0)
    long = jax.vmap(lambda plan: unroll(task, plan, jnp.zeros(2), 12, reward=task.reward))(plans)
    long = dataclasses.replace(
        long, length=jnp.array([12, 12, 9, 2]), terminated=jnp.array([False, True, False, True])
    ).filled()
    short = Trajectory.from_episodes(
        [(e.states[:5], e.actions[:4], e.rewards[:4], bool(e.terminated) and len(e.actions) <= 4) for e in long]
    )
    ascent = ShortHorizon(
        Critic(2, 4, width=8, depth=1, key=KEY), length=2, batch_size=8, optimiser=optax.adam(1e-2), entropy=0.1
    )
    options = {"reward": task.reward, "key": KEY, "horizon": 4, "updates": 3, "ascent": ascent, "progress": NoProgress()}
    read, expected = (improve(task, made["policy"], data, **options).updates for data in (long, short))
    assert np.isfinite(read.entropy).all() and (read.entropy != 0).all() and not read.skipped.any()
    np.testing.assert_array_equal(read.predicted_return, expected.predicted_return)


class Fading(Reach):
    """`Reach` where each step is the last one with a probability of 1/2."""

    def terminates(self, state, action, t, next_state):
        return jnp.full((), 0.5, state.dtype)


def test_an_end_with_a_probability_is_drawn_where_episodes_are_collected():
    found = evaluate(Fading(), policy_of(KEY), episodes=2_000, key=KEY)
    shares = np.bincount(found.lengths, minlength=7)[1:] / 2_000
    np.testing.assert_allclose(shares, [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 32], atol=0.04)
    assert found.terminated[found.lengths < 6].all() and 0.2 < found.terminated[found.lengths == 6].mean() < 0.8
    result = run(KEY, Fading(), steps=60, capacity=None, termination=TerminationModel(2, 2, width=8, depth=1, key=KEY))
    episodes = result.state.replay.episodes
    assert episodes.terminated.mean() > 0.7 and episodes.length.mean() < 3


def test_data_shorter_than_one_episode_of_the_task_are_enough():
    data = Trajectory(jnp.zeros((2, 3, 2)), jnp.zeros((2, 2, 2)), jnp.zeros((2, 2)), jnp.full(2, 2), jnp.ones(2, bool))
    options = {"episodes": data, "steps": 0, "reward": None, "model": Fading(), "capacity": None}
    result = run(KEY, Fading(), policy=policy_of(KEY), ascent=FullHorizon(initial_updates=1, paths=Paths(), **PLAIN), **options)
    assert result.state.replay.added == 4 and np.isfinite(result.metrics.true_return[0])


def test_windows_of_longer_episodes_are_refused_where_whole_ones_are_needed():
    windows = Trajectory(jnp.zeros((2, 7, 2)), jnp.zeros((2, 6, 2)), jnp.zeros((2, 6)), t=jnp.array([0, 5]))
    options = {"reward": Reach().reward, "key": KEY, "ascent": FullHorizon(**PLAIN)}
    message = "whole episodes.*number 1 is a window that begins at step 5"
    says(lambda: improve(Reach(), policy_of(KEY), windows, **options), message)
    says(lambda: run(KEY, Reach(), episodes=windows), message)
    says(lambda: Replay.empty(100, jax.tree.map(lambda x: x[0], windows)).add(windows), message)


def test_steps_after_the_end_of_the_problem_count_neither_for_the_return_nor_for_the_entropy():
    task, policy, state = Reach(), make(KEY)["policy"], jnp.ones(2)
    options = {"reward": task.reward, "termination": None, "key": KEY, "entropy_key": KEY, "t": 4, "until": 6}
    found = imagine(task, policy, state, 3, paths=BPO, method=None, discount=0.5, **options)
    episode, keys = unroll(task, policy, state, 3, reward=task.reward, key=KEY, t=4), jax.random.split(KEY, 3)
    entropies = [policy.entropy(episode.states[i], 4 + i, key=keys[i]) for i in range(2)]
    np.testing.assert_allclose(found.discounted_return, episode.rewards[0] + 0.5 * episode.rewards[1], rtol=1e-6)
    np.testing.assert_allclose(found.discounted_entropy, entropies[0] + 0.5 * entropies[1], rtol=1e-6)
    np.testing.assert_allclose(found.entropy, np.mean(entropies), rtol=1e-6)


def test_a_fitted_model_predicts_no_worse_after_it_was_trained_further():
    task, keys = Reach(), jax.random.split(KEY, 4)
    actions = jax.random.uniform(keys[0], (96, 6, 2), minval=-1.0)
    episodes = jax.jit(jax.vmap(lambda plan: unroll(task, plan, jnp.zeros(2), 6, reward=task.reward)))(actions)
    model = fit(
        Markov(2, 2, width=16, depth=1, key=keys[1]), episodes[:64], key=keys[2], updates=400, progress=NoProgress()
    ).model
    result = run(KEY, task, model=model, reward=None, capacity=None)
    before, after = (prediction_error(m, episodes[64:]) for m in (model, result.model))
    assert np.mean(after.relative) <= np.mean(before.relative) < 0.2
    assert (result.model.input_norm.shift == model.input_norm.shift).all()


def test_an_uneven_buffer_returns_what_was_added_and_every_step_begins_a_window():
    lengths = np.random.default_rng(0).integers(1, 6, 30)

    def episode(number):
        steps = 100.0 * number + np.arange(lengths[number] + 1.0)
        return {"states": steps[:, None], "actions": steps[:-1, None], "rewards": steps[:-1], "terminated": number % 2 == 0}

    replay = Replay.empty(23, jax.tree.map(lambda x: x[0], Trajectory.from_episodes([episode(0)]).padded(5)))
    for number in range(0, 30, 2):
        replay = replay.add(Trajectory.from_episodes([episode(number), episode(number + 1)]).padded(5))
    ends = np.cumsum(lengths)
    whole = np.flatnonzero(ends - lengths >= ends[-1] - 23)
    assert [int(e.states[0, 0]) // 100 for e in replay.episodes] == whole.tolist()
    drawn = replay.sample(KEY, 400, window=3)
    begun = replay.sample(KEY, 40, window=3, from_start=0.75)
    assert (begun.t[:30] == 0).all() and (begun.t[30:] > 0).any()
    assert set((begun.states[:30, 0, 0] // 100).astype(int).tolist()) == set(whole.tolist())
    seen = set()
    for window in [*drawn, *begun]:
        number, t = divmod(int(window.states[0, 0]), 100)
        steps = min(3, lengths[number] - t)
        assert window.t == t and window.rewards.tolist() == [100 * number + t + i for i in range(steps)]
        assert window.states[:, 0].tolist() == [100 * number + t + i for i in range(steps + 1)]
        assert window.terminated == (number % 2 == 0 and t + steps == lengths[number])
        seen.add((number, t))
    assert len(seen) == 23
    states, t = replay.visited(KEY, 50)
    assert {(int(s) // 100, int(n)) for s, n in zip(states[:, 0], t, strict=True)} <= seen
