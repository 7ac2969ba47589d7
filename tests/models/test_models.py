"""World models and reward models: parallel passes agree with cached steps, training predicts, normalisers are not trained."""

import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, strategies as st
from systems import DYNAMICS, HORIZON, start

from awmkit import (
    AbstractDynamics,
    AbstractTrainable,
    AWM,
    fit,
    Gaussian,
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
from awmkit._reward import with_next_state
from awmkit.learning._minibatch import episodes_at_a_time, loss_and_gradient
from awmkit.learning._train_state import _model_error
from awmkit.models import AbstractWorldModel
from awmkit.models.backbones import _transformer
from awmkit.tasks import LinearQuadratic, spiral

MODELS = [name for name in DYNAMICS if isinstance(DYNAMICS[name](), AbstractWorldModel) and "from" not in name]
ADAM = optax.adam(1e-3)  # One optimiser, so that fits of one model share a compiled update.


@functools.cache
def _episodes(count: int = 32, scale=(1.0, 1.0, 1.0)):
    system = LinearQuadratic(
        jnp.array([[0.9, 0.3, 0.0], [-0.3, 0.9, 0.1], [0.0, 0.0, 0.8]]), jnp.array([[1.0, 0.0], [0.0, 0.5], [0.3, 0.3]])
    )
    states = jax.random.normal(jax.random.key(0), (count, 3))
    actions = jax.random.uniform(jax.random.key(1), (count, HORIZON, 2), minval=-1.0)
    episodes = jax.vmap(lambda s, a: unroll(system, a, s, HORIZON))(states, actions)
    return eqx.tree_at(lambda e: e.states, episodes, episodes.states * jnp.asarray(scale))


def _stepped(model, state, actions):
    """Return s_1 ... s_H by `init` and `step` only, the scan that a parallel pass replaces."""
    return AbstractDynamics.rollout_segment(model, model.init(state, len(actions)), state, actions, 0)[1]


def _forced(model, states, actions):
    """Return the predictions of `step` from the true states."""

    def step(carry, x):
        return model.step(carry, *x)

    inputs = states[:-1], actions, jnp.arange(len(actions))
    return jax.lax.scan(step, model.init(states[0], len(actions)), inputs)[1]


@functools.cache
def _predictions(name):
    """Return pairs of predictions that must agree, for one model, by one compiled program."""
    model = DYNAMICS[name]().normalised(_episodes())
    episode = jax.tree.map(lambda x: x[0], _episodes())

    @jax.jit
    def run(state, actions, states):
        def value(state, actions, rollout):
            predicted = rollout(state, actions)
            return jnp.sum(jnp.sin(3 * predicted)), predicted

        grad = jax.grad(value, (0, 1), has_aux=True)
        rollouts = [grad(state, actions, f) for f in (model.open_loop, lambda s, a: _stepped(model, s, a))]
        predicted = model.teacher_forced(states, episode.actions)
        mean = predicted.mean if isinstance(predicted, Gaussian) else predicted
        return rollouts, [mean, _forced(model, states, episode.actions)]

    return run(start(model), jax.random.normal(jax.random.key(1), (HORIZON, 2)), episode.states)


@pytest.mark.parametrize("name", MODELS)
def test_open_loop_predictions_and_gradients_are_those_of_cached_steps(name):
    parallel, stepped = _predictions(name)[0]
    for one, other in zip(*map(jax.tree.leaves, (parallel, stepped)), strict=True):
        assert jnp.allclose(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_teacher_forced_predictions_are_steps_from_the_true_states(name):
    assert jnp.allclose(*_predictions(name)[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("horizon", [64, 65, 200])  # 1, 2 and 4 groups of rows.
def test_attention_in_groups_of_rows_agrees_with_cached_steps(horizon):
    model = AWM(3, 2, Transformer(12, 1, 3, key=jax.random.key(0)), key=jax.random.key(1))
    actions = jax.random.normal(jax.random.key(2), (horizon, 2))
    both = jax.jit(lambda s, a: (model.open_loop(s, a), _stepped(model, s, a)))
    assert jnp.allclose(*both(jnp.ones(3), actions), atol=1e-12)


@pytest.mark.parametrize("kind", [AWM, HWM])
def test_a_sequence_model_without_a_backbone_has_the_transformer_of_the_paper(kind):
    model = kind(3, 2, key=jax.random.key(0))
    net = model.backbone
    assert isinstance(net, Transformer) and net.horizon is None
    assert (len(net.blocks), net.blocks[0].attention.heads, net.width) == (2, 3, 48)
    assert model.resizable and net.resizable


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_resizable_if_its_carry_depends_on_the_horizon_and_resizing_extends_it(name):
    model = DYNAMICS[name]()
    short, long = (jax.eval_shape(lambda s, n=n: model.init(s, n), start(model)) for n in (HORIZON, 2 * HORIZON))
    assert model.resizable == (short != long and isinstance(model, AWM | HWM))
    if model.resizable:
        assert jax.eval_shape(lambda carry: model.resize_carry(carry, 2 * HORIZON), short) == long


_teacher_forced = eqx.filter_jit(
    lambda model, states, actions: jax.vmap(model.normalised(Trajectory(states, actions)).teacher_forced)(states, actions)
)


@given(scale=st.tuples(*[st.floats(1e-4, 1e4)] * 3), shift=st.floats(-1e3, 1e3))
def test_a_normalised_model_does_not_depend_on_the_units_of_the_data(scale, shift):
    """Predicted changes in units of the data are the same numbers, even where one entry is 800 and another 0.04."""
    episodes = _episodes()
    model = Markov(3, 2, width=8, key=jax.random.key(0))
    scale = jnp.asarray(scale)
    plain = _teacher_forced(model, episodes.states, episodes.actions)
    scaled = _teacher_forced(model, episodes.states * scale + shift, episodes.actions)
    assert jnp.allclose((scaled - shift) / scale, plain, atol=1e-6)


def test_a_normaliser_has_an_inverse_and_leaves_constant_entries_finite():
    data = jnp.stack([jnp.arange(9.0), jnp.full(9, 0.1)], axis=1)
    normaliser = Normaliser(2).fitted(data)
    normal = normaliser(data)
    assert jnp.allclose(normal.mean(0), 0) and jnp.allclose(normal.std(0), jnp.array([1.0, 0.0]), atol=1e-9)
    assert jnp.allclose(normaliser.inverse(normal), data) and (Normaliser(2)(data) == data).all()


@pytest.mark.parametrize("steps", [{}, {"per_step": True}, {"per_step": True, "per_step_scale": True}])
def test_statistics_are_those_of_the_rows_in_the_mask_and_steps_with_few_rows_share_theirs(steps):
    data = 5 + jax.random.normal(jax.random.key(0), (40, 6, 2)) * jnp.arange(1.0, 7)[:, None]
    normaliser, length = Normaliser(2, **steps), jnp.where(jnp.arange(40) < 30, 3, 6).at[:5].set(4)
    length = length.at[30:34].set(3)  # All 40 reach step 2, 11 reach step 3, and 6 the last two.
    mask = jnp.arange(6) < length[:, None]
    found = normaliser.fitted(data, mask)
    poisoned = normaliser.fitted(jnp.where(mask[..., None], data, jnp.nan), mask)
    assert eqx.tree_equal(found, poisoned)
    everything = normaliser.fitted(data, jnp.ones((40, 6), bool))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12), everything, normaliser.fitted(data))
    if not steps:
        rows = data[mask]
        np.testing.assert_allclose(found.shift, rows.mean(axis=0))
        np.testing.assert_allclose(found.scale, rows.std(axis=0))
        return
    means = [data[length > t, t].mean(axis=0) for t in range(4)]
    rest = data[length > 4][:, 4:].reshape(-1, 2)
    np.testing.assert_allclose(found.shift, jnp.stack([*means, rest.mean(axis=0), rest.mean(axis=0)]))
    if "per_step_scale" in steps:
        np.testing.assert_allclose(found.scale[4], rest.std(axis=0))
        np.testing.assert_allclose(found.scale[1], data[:, 1].std(axis=0))
    few = normaliser.fitted(data[29:31], mask[29:31])  # One episode of 3 steps and one of 3; then one of 3 and one of 6.
    assert eqx.tree_equal(few.shift[3:], jnp.broadcast_to(few.shift[2], (3, 2)))
    few = normaliser.fitted(data[33:35], mask[33:35])
    np.testing.assert_allclose(few.shift[3:], jnp.broadcast_to(data[34, 3:].mean(axis=0), (3, 2)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.bfloat16])
def test_statistics_are_right_for_data_of_any_size(dtype):
    info, steps = jnp.finfo(dtype), {"per_step": True, "per_step_scale": True}
    entries = jax.random.normal(jax.random.key(0), (40, 3, 2)) * jnp.array([1.0, 0.3]) + jnp.array([0.0, 2.0])
    data = jnp.concatenate([entries, jnp.full((40, 3, 1), 0.1), entries[:, :, :1]], axis=2).astype(dtype)
    largest = math.floor(math.log2(float(info.max))) - 4
    fit = jax.jit(lambda x: [Normaliser(4, **options).fitted(x) for options in ({}, steps)])
    at_one = fit(data)
    for power in (-largest + 24, -largest // 2, -largest // 6, largest // 6, largest // 2, largest):
        # The last entry keeps its size, so that one entry is huge and another tiny.
        unit = jnp.array([2.0**power] * 3 + [1.0]).astype(dtype)
        for found, expected in zip(fit(data * unit), at_one, strict=True):
            np.testing.assert_array_equal(found.shift, expected.shift * unit)
            np.testing.assert_array_equal(found.scale, jnp.where(jnp.arange(4) == 2, 1, expected.scale * unit))
            np.testing.assert_array_equal(found.overall, jnp.where(jnp.arange(4) == 2, 1, expected.overall * unit))
    subnormal = fit(data * float(info.tiny) / 8)[0]
    assert jnp.isfinite(subnormal.shift).all() and (subnormal.scale >= info.tiny).all()


def test_the_error_of_a_model_does_not_depend_on_the_size_of_its_data():
    @jax.jit
    def measure(unit):
        episodes = eqx.tree_at(lambda e: e.states, _episodes(), _episodes().states * unit)
        episodes = jax.tree.map(lambda x: x.astype(jnp.float32), episodes)
        model = Markov(3, 2, width=4, per_step=True, key=jax.random.key(0))
        model = jax.tree.map(lambda x: x.astype(jnp.float32) if eqx.is_inexact_array(x) else x, model).normalised(episodes)
        return _model_error(model, episodes, None), jax.vmap(model.loss)(episodes)

    for unit in (1e-20, 1e20):
        for found, expected in zip(measure(unit), measure(1.0), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_with_per_step_a_model_predicts_about_the_mean_trajectory_and_later_about_its_end():
    episodes = _episodes(scale=(800.0, 0.04, 1.0))
    # The first steps hardly vary, but errors are in units of all steps.
    grows = jnp.linspace(0, 1e3, HORIZON + 1)[:, None]
    states = episodes.states * jnp.where(grows > 200, grows, 1e-3) + grows
    model = AWM(3, 2, LSTM(4, key=jax.random.key(0)), predict_changes=False, per_step=True, key=jax.random.key(1))
    model = model.normalised(Trajectory(states, episodes.actions))
    targets, steps = model.output_norm, jnp.minimum(jnp.arange(HORIZON + 3), HORIZON - 1)
    normal = jax.vmap(targets.at(jnp.arange(HORIZON)))(states[:, 1:])
    assert jnp.allclose(normal.mean(axis=0), 0)
    assert jnp.allclose(normal.std(axis=0)[-1], 1) and (normal.std(axis=0)[0] < 1e-3).all()
    plan = jax.random.normal(jax.random.key(1), (HORIZON + 3, 2))
    both = jax.jit(lambda s, a: (model.open_loop(s, a), _stepped(model, s, a)))
    parallel, stepped = both(states[0, 0], plan)
    assert jnp.allclose(parallel, stepped, rtol=1e-10)
    # Untrained outputs are small, so predictions stay close to the mean.
    assert (abs(parallel - states[:, 1:].mean(axis=0)[steps]) < 2 * targets.scale[steps]).all()
    spread = (states[:, 1:] - states[:, 1:].mean(axis=0)).std(axis=(0, 1))
    assert jnp.allclose(targets.overall, spread, rtol=1e-3)
    one_step_wrong = parallel.at[0].add(targets.overall)[:HORIZON]
    loss = jax.jit(lambda episode: model.loss(episode))(
        Trajectory(jnp.concatenate([states[0, :1], one_step_wrong]), plan[:HORIZON])
    )
    assert jnp.allclose(loss, 0.5 / HORIZON)


@pytest.fixture
def optax_promotes():
    """Allow the implicit promotions of dtypes that optax makes."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def _fit(model, episodes):
    options = {"updates": 400, "batch_size": 32, "optimiser": ADAM, "progress": NoProgress()}
    return fit(model, episodes, key=jax.random.key(2), **options)


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
def test_fit_learns_a_system_with_different_units_and_does_not_change_the_normalisers(model):
    episodes = _episodes(256, scale=(800.0, 0.04, 1.0))
    model = model.normalised(episodes)
    result = _fit(model, episodes)
    assert result.held_out.shape == (HORIZON,) and result.held_out.mean() < 0.05
    assert result.losses[-10:].mean() < 0.2 * result.losses[:10].mean()
    for name in ("input_norm", "output_norm"):
        assert eqx.tree_equal(getattr(result.model, name), getattr(model, name))
    if isinstance(model, Markov):  # The second fit is compiled already, so its chunks have other lengths.
        assert (_fit(model, episodes).losses == result.losses).all(), "the length of chunks must not change the batches"


def _quick_fit(model, episodes, **options):
    options = {"updates": 3, "batch_size": 8, "optimiser": ADAM, "progress": NoProgress(), "holdout": 0.0, **options}
    return fit(model, episodes, key=jax.random.key(2), **options)


@pytest.mark.usefixtures("optax_promotes")
def test_fit_sets_statistics_that_are_not_set_from_the_training_episodes_and_keeps_the_others():
    model, episodes = Markov(3, 2, width=4, key=jax.random.key(0)), _episodes(16, scale=(800.0, 0.04, 1.0))
    assert not model.input_norm.is_set and not model.output_norm.is_set
    unset, normalised = (_quick_fit(m, episodes) for m in (model, model.normalised(episodes)))
    for one, other in zip(*map(jax.tree.leaves, (unset.model, normalised.model)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)
    partly = eqx.tree_at(lambda m: m.input_norm, model, unset.model.input_norm)
    again = _quick_fit(partly, jax.tree.map(lambda x: x / 800, episodes)).model
    assert eqx.tree_equal(again.input_norm, partly.input_norm)
    np.testing.assert_allclose(again.output_norm.scale, unset.model.output_norm.scale / 800, rtol=1e-9)
    outlier = _episodes(32)
    outlier = eqx.tree_at(lambda e: e.states, outlier, outlier.states.at[5].set(1e6))
    assert _quick_fit(model, outlier, holdout=0.5).model.input_norm.scale.max() < 1e3  # With this key, episode 5 is held out.


@pytest.mark.usefixtures("optax_promotes")
def test_fit_computes_episodes_in_the_widest_of_the_dtypes():
    model, episodes = Markov(3, 2, width=4, key=jax.random.key(0)), _episodes(16)
    single = jax.tree.map(lambda x: x.astype(jnp.float32), episodes)
    double = jax.tree.map(lambda x: x.astype(jnp.float64), single)
    mixed = eqx.tree_at(lambda e: e.actions, double, single.actions)
    losses = [_quick_fit(model, x).losses for x in (double, single, mixed)]
    assert (losses[0] == losses[1]).all() and (losses[0] == losses[2]).all() and losses[0].dtype == jnp.float64
    narrow = jax.tree.map(lambda x: x.astype(jnp.float32) if eqx.is_inexact_array(x) else x, model)
    fitted = _quick_fit(narrow, single, optimiser=optax.sgd(np.float64(1e-3))).model  # NumPy's float64 widens every update.
    assert fitted.network.enter.weight.dtype == jnp.float32


@pytest.mark.usefixtures("optax_promotes")
@pytest.mark.parametrize("optimiser", [optax.polyak_sgd(), optax.contrib.reduce_on_plateau()], ids=["Polyak", "plateau"])
def test_optimisers_that_need_the_loss_get_it(optimiser):
    losses = _quick_fit(Markov(3, 2, width=4, key=jax.random.key(0)), _episodes(16), optimiser=optimiser).losses
    assert jnp.isfinite(losses).all()


class Points(AbstractTrainable):
    """A point in the complex plane that is fitted to 1 + 2i."""

    point: jax.Array
    state_size: int = eqx.field(static=True, default=3)
    action_size: int = eqx.field(static=True, default=2)

    def loss(self, episode):
        return jnp.abs(self.point - (1 + 2j)) ** 2

    def target(self, episodes):
        return episodes.actions

    def prediction(self, episode):
        return episode.actions


@pytest.mark.usefixtures("optax_promotes")
def test_complex_weights_descend():
    result = _quick_fit(Points(jnp.asarray(0j)), _episodes(16), optimiser=optax.sgd(0.1), updates=60)
    np.testing.assert_allclose(result.model.point, 1 + 2j, atol=1e-4)


def test_fit_warns_of_actions_outside_of_the_policies_range(optax_promotes):
    episodes = eqx.tree_at(lambda e: e.actions, _episodes(16), 3 * _episodes(16).actions)
    with pytest.warns(UserWarning, match=r"actions of up to 2\.9\d* in magnitude.*2 \* \(actions - low\) / \(high - low\) - 1"):
        _quick_fit(Markov(3, 2, width=4, key=jax.random.key(0)), episodes)


@pytest.mark.parametrize("name", MODELS)
def test_losses_and_predictions_broadcast_nothing_implicitly(name):
    def all_of(episodes):
        model = DYNAMICS[name]().normalised(episodes)
        plan = lambda episode: jax.grad(lambda a: jnp.sum(model.open_loop(episode.states[0], a)))(episode.actions)
        return jax.vmap(lambda episode: (model.loss(episode), model.prediction(episode), plan(episode)))(episodes)

    episodes = _episodes()
    with jax.numpy_rank_promotion("raise"):
        loss, prediction, gradient = jax.eval_shape(all_of, episodes)
    assert (loss.shape, prediction.shape, gradient.shape) == ((32,), (32, HORIZON, 3), (32, HORIZON, 2))


@functools.cache
def _loss_and_gradient(microbatch_size, at_a_time):
    weights, rest = eqx.partition(DYNAMICS["AWM GRU"](), eqx.is_inexact_array)
    loss = lambda weights, episode: eqx.combine(weights, rest).loss(episode)
    return jax.jit(lambda batch: loss_and_gradient(loss, weights, batch, microbatch_size, at_a_time))


@given(sizes=st.sampled_from([(1, None), (4, None), (12, 12), (None, 5), (6, 4)]), seed=st.integers(0, 9))
def test_microbatches_give_the_loss_and_gradient_of_the_whole_batch(sizes, seed):
    batch = jax.tree.map(lambda x: jax.random.permutation(jax.random.key(seed), x), _episodes(12))
    in_parts, whole = (_loss_and_gradient(*n)(batch) for n in (sizes, (None, None)))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12), in_parts, whole)


@pytest.mark.parametrize("make", [AWM, HWM])
def test_an_update_takes_each_group_as_a_whole_on_a_cpu_and_all_episodes_at_once_elsewhere(make, monkeypatch):
    monkeypatch.setattr(_transformer, "TOKENS", 4 * HORIZON)
    model = make(3, 2, Transformer(12, 1, 3, key=jax.random.key(0)), key=jax.random.key(1))
    few = episodes_at_a_time([model, Markov(3, 2, width=4, key=jax.random.key(2))], HORIZON)
    weights, rest = eqx.partition(model, eqx.is_inexact_array)
    loss = lambda weights, episode: eqx.combine(weights, rest).loss(episode)
    update = jax.jit(lambda weights, batch: loss_and_gradient(loss, weights, batch, None, few)).trace(weights, _episodes(12))
    loops = [update.lower(lowering_platforms=(name,)).as_text().count("stablehlo.while") for name in ("cpu", "cuda")]
    assert few == 4 and loops == [1, 0]


@pytest.mark.usefixtures("optax_promotes")
def test_a_reward_model_learns_the_rewards_of_transitions_and_can_be_passed_as_a_reward():
    episodes = _episodes(256, scale=(800.0, 0.04, 1.0))
    pay = lambda s, a, t, next_state: (next_state[0] - s[0]) / 80 + 3 * a[0] ** 2
    inputs = lambda episode: (episode.states[:-1], episode.actions, jnp.arange(HORIZON), episode.states[1:])
    score = lambda fn, episode: jax.vmap(with_next_state(fn))(*inputs(episode))
    rewards = jax.vmap(lambda episode: score(pay, episode))(episodes)
    episodes = Trajectory(episodes.states, episodes.actions, rewards)
    result = _fit(RewardModel(3, 2, width=32, key=jax.random.key(0)).normalised(episodes), episodes)
    assert result.held_out.shape == (HORIZON,) and result.held_out.mean() < 0.05
    values = [score(fn, episodes[0]) for fn in (result.model, pay)]
    np.testing.assert_allclose(*values, atol=0.5 * float(jnp.std(rewards)))


def test_normalisers_are_not_trainable_and_have_no_gradient():
    model = Markov(3, 2, width=8, key=jax.random.key(0))
    weights = eqx.filter(model, trainable(model))
    assert weights.input_norm.shift is None and weights.output_norm.scale is None and weights.network.enter.weight is not None
    grads = eqx.filter_jit(eqx.filter_grad(lambda m, e: m.loss(e)))(model, jax.tree.map(lambda x: x[0], _episodes()))
    for statistics in (grads.input_norm, grads.output_norm):
        assert (statistics.shift == 0).all() and (statistics.scale == 0).all()
    assert (grads.network.enter.weight != 0).any()


def test_fit_shows_its_progress_and_loss(capsys, optax_promotes):
    fit(Markov(3, 2, width=4, key=jax.random.key(0)), _episodes(), key=jax.random.key(0), updates=3)
    assert "fit Markov" in (line := capsys.readouterr().err) and "3/3" in line and "loss" in line


def test_an_awm_from_a_dynamics_is_that_dynamics():
    system, actions = spiral(1.1, 0.4), jnp.asarray(np.random.default_rng(0).normal(size=(8, 1)))
    awm = AWM.from_dynamics(system)
    assert isinstance(awm, AWM) and not awm.reads_state
    states = system.open_loop(jnp.ones(2), actions)
    assert (awm.open_loop(jnp.ones(2), actions) == states).all()
    # It ignores the units of the data, because a dynamics has its own.
    assert (awm.normalised(Trajectory(800 * states[None], actions[None])).open_loop(jnp.ones(2), actions) == states).all()
