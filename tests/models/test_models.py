"""World models: the parallel pass is the cached one, predictions are what is trained, statistics are no weights."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st
from systems import DYNAMICS, HORIZON, start

from awmkit import (
    AbstractDynamics,
    AWM,
    fit,
    HWM,
    LinearStateSpace,
    LSTM,
    Markov,
    NoProgress,
    Normaliser,
    RewardModel,
    Trajectory,
    Transformer,
    unroll,
)
from awmkit._normaliser import trainable
from awmkit._reward import score
from awmkit.learning._minibatch import loss_and_gradient
from awmkit.models import AbstractWorldModel
from awmkit.tasks import LinearQuadratic, spiral

MODELS = [name for name in DYNAMICS if isinstance(DYNAMICS[name](), AbstractWorldModel) and "from" not in name]


def _episodes(count: int = 32, horizon: int = HORIZON, scale=(1.0, 1.0, 1.0)):
    system = LinearQuadratic(
        jnp.array([[0.9, 0.3, 0.0], [-0.3, 0.9, 0.1], [0.0, 0.0, 0.8]]), jnp.array([[1.0, 0.0], [0.0, 0.5], [0.3, 0.3]])
    )
    states, actions = (
        jax.random.normal(jax.random.key(0), (count, 3)),
        jax.random.normal(jax.random.key(1), (count, horizon, 2)),
    )
    episodes = jax.vmap(lambda s, a: unroll(system, a, s, horizon))(states, actions)
    return eqx.tree_at(lambda e: e.states, episodes, episodes.states * jnp.asarray(scale))


def _stepped(model, state, actions):
    """s_1 ... s_H by `init` and `step` alone: the scan that a model with a parallel pass overrides."""
    return AbstractDynamics.rollout_segment(model, model.init(state, len(actions)), state, actions, 0)[1]


@pytest.mark.parametrize("name", MODELS)
def test_open_loop_is_init_and_step_in_values_and_gradients(name):
    model = DYNAMICS[name]().normalised(_episodes().states)
    state, actions = start(model), jax.random.normal(jax.random.key(1), (HORIZON, 2))
    both = [model.open_loop, lambda s, a: _stepped(model, s, a)]
    values = [f(state, actions) for f in both]
    grads = [jax.grad(lambda s, a, f=f: jnp.sum(jnp.sin(3 * f(s, a))), (0, 1))(state, actions) for f in both]
    for one, other in zip(*map(jax.tree.leaves, (values[:1] + [grads[0]], values[1:] + [grads[1]])), strict=True):
        assert jnp.allclose(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_teacher_forced_predictions_are_steps_from_the_truth(name):
    model = DYNAMICS[name]().normalised(_episodes().states)
    states, actions = _episodes(2).states[0], _episodes(2).actions[0]
    carry, expected = model.init(states[0], HORIZON), []
    for t in range(HORIZON):
        carry, state = model.step(carry, states[t], actions[t], t)
        expected.append(state)
    assert jnp.allclose(model.teacher_forced(states, actions), jnp.stack(expected), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("horizon", [63, 64, 65, 200])
def test_attention_by_groups_of_rows_is_the_cached_one_at_every_length(horizon):
    model = AWM(3, 2, Transformer(12, 1, 3, key=jax.random.key(0)), key=jax.random.key(1))
    actions = jax.random.normal(jax.random.key(2), (horizon, 2))
    assert jnp.allclose(model.open_loop(jnp.ones(3), actions), _stepped(model, jnp.ones(3), actions), atol=1e-12)


@given(scale=st.tuples(*[st.floats(1e-4, 1e4)] * 3), shift=st.floats(-1e3, 1e3))
def test_a_normalised_model_does_not_care_about_units(scale, shift):
    # Predictions of changes in the units of the data are the same numbers, whatever the units: 800 beside 0.04.
    episodes = _episodes()
    model = Markov(3, 2, width=8, key=jax.random.key(0))
    scale = jnp.asarray(scale)
    states = episodes.states * scale + shift
    plain = jax.vmap(model.normalised(episodes.states).teacher_forced)(episodes.states, episodes.actions)
    scaled = jax.vmap(model.normalised(states).teacher_forced)(states, episodes.actions)
    assert jnp.allclose((scaled - shift) / scale, plain, atol=1e-6)


def test_a_normaliser_leaves_constant_entries_finite_and_inverts():
    data = jnp.stack([jnp.arange(9.0), jnp.full(9, 0.1)], axis=1)
    normaliser = Normaliser(2).fitted(data)
    normal = normaliser(data)
    assert jnp.allclose(normal.mean(0), 0) and jnp.allclose(normal.std(0), jnp.array([1.0, 0.0]), atol=1e-9)
    assert jnp.allclose(normaliser.inverse(normal), data) and (Normaliser(2)(data) == data).all()


def test_by_step_a_model_predicts_about_the_mean_trajectory_and_beyond_it_about_its_end():
    episodes = _episodes(scale=(800.0, 0.04, 1.0))
    # The first step hardly varies; errors are in units of all steps nevertheless.
    grows = jnp.linspace(0, 1e3, HORIZON + 1)[:, None]
    states = episodes.states * jnp.where(grows > 200, grows, 1e-3) + grows
    model = AWM(3, 2, LSTM(4, key=jax.random.key(0)), predict_changes=False, per_step=True, key=jax.random.key(1))
    model = model.normalised(states)
    targets, steps = model.output_norm, jnp.minimum(jnp.arange(HORIZON + 3), HORIZON - 1)
    normal = jax.vmap(targets.at(jnp.arange(HORIZON)))(states[:, 1:])
    assert jnp.allclose(normal.mean(axis=0), 0)
    assert jnp.allclose(normal.std(axis=0)[-1], 1) and (normal.std(axis=0)[0] < 1e-3).all()
    plan = jax.random.normal(jax.random.key(1), (HORIZON + 3, 2))
    together, one_by_one = model.open_loop(states[0, 0], plan), _stepped(model, states[0, 0], plan)
    assert jnp.allclose(together, one_by_one, rtol=1e-10)
    # Untrained outputs are small, so predictions stay close to the mean.
    assert (abs(together - states[:, 1:].mean(axis=0)[steps]) < 2 * targets.scale[steps]).all()
    spread = (states[:, 1:] - states[:, 1:].mean(axis=0)).std(axis=(0, 1))
    assert jnp.allclose(targets.overall, spread, rtol=1e-3)
    missed = together.at[0].add(targets.overall)[:HORIZON]
    loss = model.loss(Trajectory(jnp.concatenate([states[0, :1], missed]), plan[:HORIZON]))
    assert jnp.allclose(loss, 0.5 / HORIZON)


@pytest.fixture
def optax_promotes():
    """optax mixes dtypes, which only tests forbid."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.usefixtures("optax_promotes")
@pytest.mark.parametrize(
    "model",
    [
        Markov(3, 2, width=32, key=jax.random.key(0)),
        HWM(3, 2, LSTM(32, key=jax.random.key(1)), key=jax.random.key(0)),
        AWM(3, 2, LSTM(32, key=jax.random.key(1)), key=jax.random.key(0)),
        AWM(3, 2, LinearStateSpace(24, 1, 24, key=jax.random.key(1)), key=jax.random.key(0)),
        AWM(3, 2, Transformer(24, 1, 2, horizon=HORIZON, key=jax.random.key(1)), key=jax.random.key(0), predict_changes=False),
    ],
    ids=["Markov", "HWM", "AWM LSTM", "AWM state space", "AWM transformer"],
)
def test_fit_learns_a_system_of_mixed_units_and_moves_no_statistics(model):
    episodes = _episodes(256, scale=(800.0, 0.04, 1.0))
    model = model.normalised(episodes.states)
    result = fit(model, episodes, key=jax.random.key(2), updates=400, batch_size=32, progress=NoProgress())
    assert result.held_out.shape == (HORIZON,) and result.held_out.mean() < 0.05
    assert result.losses[-10:].mean() < 0.2 * result.losses[:10].mean()
    assert (result.model.output_norm.scale == model.output_norm.scale).all() and (
        result.model.input_norm.shift == model.input_norm.shift
    ).all()
    repeated = fit(model, episodes, key=jax.random.key(2), updates=400, batch_size=32, progress=NoProgress())
    assert (repeated.losses == result.losses).all(), "chunks of another length must not change the batches"


@given(microbatch_size=st.sampled_from([1, 2, 3, 4, 6, 12]), seed=st.integers(0, 9))
def test_a_few_episodes_after_another_have_the_loss_and_gradient_of_all_at_once(microbatch_size, seed):
    weights, rest = eqx.partition(DYNAMICS["AWM GRU"](), eqx.is_inexact_array)
    loss = lambda weights, episode: eqx.combine(weights, rest).loss(episode)
    batch = jax.tree.map(lambda x: jax.random.permutation(jax.random.key(seed), x), _episodes(12))
    few, all_at_once = (
        jax.jit(partial(loss_and_gradient, loss, microbatch_size=n))(weights, batch) for n in (microbatch_size, None)
    )
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12), few, all_at_once)


@pytest.mark.usefixtures("optax_promotes")
def test_a_reward_model_learns_what_transitions_pay_and_goes_where_a_reward_goes():
    episodes = _episodes(256, scale=(800.0, 0.04, 1.0))
    pay = lambda s, a, t, next_state: (next_state[0] - s[0]) / 80 + 3 * a[0] ** 2
    rewards = jax.vmap(lambda states, actions: score(pay, states, actions))(episodes.states, episodes.actions)
    episodes = Trajectory(episodes.states, episodes.actions, rewards)
    model = RewardModel(3, 2, width=32, key=jax.random.key(0)).normalised(episodes)
    result = fit(model, episodes, key=jax.random.key(2), updates=400, batch_size=32, progress=NoProgress())
    assert result.held_out.shape == (HORIZON,) and result.held_out.mean() < 0.05
    values = [score(fn, episodes.states[0], episodes.actions[0]) for fn in (result.model, pay)]
    np.testing.assert_allclose(*values, atol=0.5 * float(jnp.std(rewards)))


def test_statistics_are_not_trainable():
    model = Markov(3, 2, key=jax.random.key(0))
    weights = eqx.filter(model, trainable(model))
    assert weights.input_norm.shift is None and weights.output_norm.scale is None and weights.network.enter.weight is not None
    # Nor do they have a gradient, for those who do not ask what is trainable.
    grads = eqx.filter_grad(lambda m: m.loss(jax.tree.map(lambda x: x[0], _episodes())))(model)
    for statistics in (grads.input_norm, grads.output_norm):
        assert (statistics.shift == 0).all() and (statistics.scale == 0).all()
    assert (grads.network.enter.weight != 0).any()


def test_fit_shows_progress_with_time_left(capsys, optax_promotes):
    fit(
        Markov(3, 2, width=4, key=jax.random.key(0)),
        Trajectory(_episodes().states, _episodes().actions),
        key=jax.random.key(0),
        updates=3,
    )
    assert "fit Markov" in (line := capsys.readouterr().err) and "3/3" in line and "loss" in line


def test_an_awm_from_a_dynamics_is_that_dynamics():
    system = spiral(1.1, 0.4)
    actions = np.random.default_rng(0).normal(size=(8, 1))
    awm = AWM.from_dynamics(system)
    assert isinstance(awm, AWM) and not awm.reads_state
    lived = system.open_loop(jnp.ones(2), jnp.asarray(actions))
    assert (awm.open_loop(jnp.ones(2), jnp.asarray(actions)) == lived).all()
    # Whatever it is fitted to: its states have units already.
    assert (awm.normalised(800 * lived[None]).open_loop(jnp.ones(2), jnp.asarray(actions)) == lived).all()
