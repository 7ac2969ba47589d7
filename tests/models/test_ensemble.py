"""Ensembles: several models fitted as one program, the dynamics made of them, their disagreement, and pessimism."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
import pytest
import reach
from compilations import compilations
from misuse import says
from padding import episodes

from awmkit import (
    AbstractDynamics,
    AWM,
    Critic,
    Ensemble,
    fit,
    FullHorizon,
    GRU,
    improve,
    Markov,
    MLPPolicy,
    NoProgress,
    Parallel,
    PessimisticReward,
    Picard,
    Sequential,
    ShortHorizon,
    Trajectory,
    unroll,
)
from awmkit.learning.ascents._imagined import over_members

KEYS = jax.random.split(jax.random.key(0), 3)
MODELS = eqx.filter_vmap(lambda key: Markov(2, 1, width=4, depth=1, key=key))(KEYS)
AWMS = eqx.filter_vmap(lambda key: AWM(2, 1, GRU(4, key=key), key=key))(KEYS)
POLICY = eqx.tree_at(lambda p: p.input_norm.shift, MLPPolicy(2, 1, width=4, key=jax.random.key(1)), jnp.full(2, 0.1))
STATE = jnp.array([0.4, -0.3])
PLAN = 0.5 * jax.random.normal(jax.random.key(2), (7, 1))


@pytest.fixture(autouse=True)
def optax_promotes():
    with jax.numpy_dtype_promotion("standard"):
        yield


class Spring(AbstractDynamics):
    """A spring with a stiffness to find."""

    stiffness: jax.Array
    state_size: int = eqx.field(static=True, default=2)
    action_size: int = eqx.field(static=True, default=1)

    def step(self, carry, state, action, t, *, key=None):
        x, v = state
        return carry, jnp.stack([x + 0.1 * v, v + 0.1 * (action[0] - self.stiffness * x)])


def member(models, i):
    return jtu.tree_map(lambda x: x[i] if eqx.is_array(x) else x, models)


def close(tree, other):
    arrays = (jtu.tree_leaves(eqx.filter(x, eqx.is_array)) for x in (tree, other))
    return all(np.allclose(x, y, rtol=1e-9, atol=1e-11) for x, y in zip(*arrays, strict=True))


@pytest.mark.parametrize(
    ("models", "options"),
    [(MODELS, {"window": 3, "bootstrap": True}), (Spring(jnp.array([1.0, 2.0, 3.0])), {"holdout": 0.3})],
    ids=["models on bootstrapped windows", "simulators"],
)
def test_models_fitted_as_one_program_equal_separate_fits(models, options):
    options |= {"updates": 3, "batch_size": 4, "progress": NoProgress()}
    together = fit(models, episodes(), key=KEYS, **options)
    apart = [fit(member(models, i), episodes(), key=KEYS[i], **options) for i in range(3)]
    assert together.losses.shape == (3, 3) and type(together.model) is type(models)
    for i, one in enumerate(apart):
        assert close(eqx.tree_at(lambda r: r.seconds, together[i], 0), eqx.tree_at(lambda r: r.seconds, one, 0))
    with compilations() as compiled:
        fit(member(models, 0), episodes(), key=KEYS[0], **options)
    assert not compiled
    assert float(together.best().held_out.mean()) == min(float(together[i].held_out.mean()) for i in range(3))
    assert not np.allclose(together.losses[0], together.losses[1]) and "medians of 3 members" in str(together)
    with pytest.raises(IndexError, match="3 seeds, which has no seed 3"):
        together[3]


@pytest.mark.parametrize(("models", "method"), [(MODELS, Sequential()), (AWMS, Parallel(sampling=Picard(), block=3))])
def test_an_episode_is_that_of_one_member_and_every_member_is_drawn(models, method):
    @eqx.filter_jit
    def distance(models, keys):
        run = lambda dynamics, key: unroll(dynamics, POLICY, STATE, 7, key=key, method=method).states
        alone = eqx.filter_vmap(lambda model: run(model, None))(models)
        found = jax.vmap(lambda key: run(Ensemble(models, "episode"), key))(keys)
        return jnp.max(jnp.abs(found[:, None] - alone[None]), axis=(2, 3))

    found = np.asarray(distance(models, jax.random.split(jax.random.key(3), 12)))
    assert (found.min(axis=1) < 1e-12).all() and set(found.argmin(axis=1)) == {0, 1, 2}


def test_a_step_is_that_of_a_member_drawn_again_and_without_a_key_it_is_the_mean():
    of_each = lambda model, states: jax.vmap(lambda s, a: model.step(None, s, a, 0)[1])(states, PLAN)

    @eqx.filter_jit
    def run(models, key):
        states = unroll(Ensemble(models, "step"), PLAN, STATE, 7, key=key).states
        each = eqx.filter_vmap(lambda model: of_each(model, states[:-1]))(models)
        step = lambda ensemble, key: ensemble.step(ensemble.init(STATE, 1), STATE, PLAN[0], 0, key=key)[1]
        means = [step(Ensemble(models, *x), k) for x, k in ((("mean",), key), (("episode",), None), (("step",), None))]
        return jnp.max(jnp.abs(each - states[None, 1:]), axis=2), jnp.mean(each[:, 0], axis=0), means

    distance, mean, means = jtu.tree_map(np.asarray, run(MODELS, jax.random.key(4)))
    assert (distance.min(axis=0) < 1e-12).all() and len(set(distance.argmin(axis=0))) > 1
    assert all(np.allclose(x, mean, rtol=1e-12) for x in means) and Ensemble(MODELS).size == 3


def test_disagreement_is_the_deviation_over_members_in_units_of_the_data_and_its_gradient_is_0_where_they_agree():
    states = jnp.cumsum(0.1 * jax.random.normal(jax.random.key(5), (8, 2)), axis=0)

    @eqx.filter_jit
    def run(models):
        each = eqx.filter_vmap(lambda model: model.teacher_forced(states, PLAN))(models)
        springs = Spring(jnp.array([1.0, 3.0]))  # They predict speeds that differ by 0.2 x, and the same positions.
        same = Ensemble([member(AWMS, 0)] * 2)
        of_same = jax.value_and_grad(lambda plan: jnp.sum(same.disagreement(states, plan)))(PLAN)
        of_springs = Ensemble(springs).disagreement(states, PLAN)
        return Ensemble(models).disagreement(states, PLAN), jnp.std(each, axis=0), of_springs, of_same

    found, deviation, of_springs, of_same = run(eqx.tree_at(lambda m: m.output_norm.scale, MODELS, jnp.full((3, 2), 0.1)))
    np.testing.assert_allclose(found, jnp.mean(deviation / 0.1, axis=1))
    np.testing.assert_allclose(of_springs, 0.05 * jnp.abs(states[:-1, 0]))
    assert of_same[0] == 0 and (of_same[1] == 0).all()


def reward(state, action, t):
    return -jnp.sum((state - 0.1 * t) ** 2) - action[0] ** 2


def test_pessimism_weights_the_gradients_of_the_members():
    returns = lambda plan: lambda dynamics: (unroll(dynamics, plan, STATE, 7, reward=reward).returns(), jnp.zeros(()))

    @eqx.filter_jit
    def run(models, plan):
        slope = lambda models: jax.value_and_grad(lambda plan: over_members(0.5, Ensemble(models), returns(plan))[0])(plan)
        each = eqx.filter_vmap(lambda model: jax.value_and_grad(lambda plan: returns(plan)(model)[0])(plan))(models)
        return each, slope(models), slope(jtu.tree_map(lambda x: jnp.stack([x[0]] * 3) if eqx.is_array(x) else x, models))

    (values, slopes), (value, slope), (_, of_same) = run(MODELS, PLAN)
    weights = 1 - 0.5 * (values - values.mean()) / values.std()
    np.testing.assert_allclose(value, values.mean() - 0.5 * values.std(), rtol=1e-12)
    np.testing.assert_allclose(slope, jnp.mean(weights[:, None, None] * slopes, axis=0), rtol=1e-9)
    np.testing.assert_allclose(of_same, slopes[0], rtol=1e-9)  # And no NaN.


@pytest.mark.parametrize("ascent", [FullHorizon, lambda **x: ShortHorizon(CRITIC, length=7, **x)], ids=["full", "short"])
def test_a_pessimistic_ascent_reports_the_mean_return_minus_the_weighted_spread(ascent):
    made = ascent(pessimism=0.5, entropy=0.0, batch_size=2, optimiser=optax.adam(0.1), return_scale=1.0)
    starts = jnp.stack([STATE, STATE])
    found = improve(
        Ensemble(MODELS), POLICY, starts, reward=reward, key=KEYS[0], horizon=7, updates=1, ascent=made, progress=NoProgress()
    )
    each = jnp.stack([unroll(member(MODELS, i), POLICY, STATE, 7, reward=reward).returns() for i in range(3)])
    np.testing.assert_allclose(found.updates.predicted_return, [each.mean() - 0.5 * each.std()], rtol=1e-6)
    assert found.updates.gradient_norm[0] > 1e-3


CRITIC = Critic(2, 7, width=4, depth=1, key=jax.random.key(6))  # It has a horizon, so that nothing counts after 7 steps.


def test_a_pessimistic_reward_costs_the_disagreement_of_its_step_and_adds_an_edge_to_state_and_action():
    @eqx.filter_jit
    def run(ensemble, s, a):
        pessimistic = PessimisticReward(reward, ensemble, 2.0)
        expected = lambda s, a: reward(s, a, 3) - 2 * ensemble.disagreement(jnp.stack([s, s]), a[None])[0]
        scores = (lambda s, a: pessimistic(s, a, 3, s)), expected, lambda s, a: reward(s, a, 3)
        total = lambda reward: unroll(ensemble, PLAN, STATE, 7, reward=reward).returns()
        return [jax.value_and_grad(score, (0, 1))(s, a) for score in scores], total(pessimistic) < total(reward)

    (found, expected, plain), less = run(Ensemble(MODELS), STATE, PLAN[0])
    jtu.tree_map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9), found, expected)
    assert less and all(jnp.abs(x - y).min() > 1e-3 for x, y in zip(found[1], plain[1], strict=True))


@pytest.mark.slow  # `train` compiles for ten seconds.
def test_train_fits_all_members_of_each_of_several_seeds():
    make = lambda key: Ensemble(eqx.filter_vmap(lambda k: Markov(2, 2, width=4, depth=1, key=k))(jax.random.split(key)))
    keys = jax.random.split(jax.random.key(7))
    before = eqx.filter_vmap(make)(keys)
    result = reach.run(keys, model=before, steps=24, reward=None)
    after = result.model.models
    changed = jnp.abs(after.network.enter.weight - before.models.network.enter.weight).max(axis=(2, 3))
    assert changed.shape == (2, 2) and (changed > 1e-4).all() and (after.input_norm.scale != 1).any()
    assert not close(member(result[0].model.models, 0), member(result[0].model.models, 1))
    assert (result.metrics.model_error[:, -1] > 0).all() and (result.metrics.model_loss[:, -1] > 0).all()


def test_python_floats_that_differ_become_arrays_and_an_ensemble_of_simulators_has_no_loss():
    ensemble = Ensemble([Spring(1.0), Spring(3.0)])  # pyright: ignore[reportArgumentType]
    np.testing.assert_allclose(ensemble.models.stiffness, [1.0, 3.0])
    says(lambda: ensemble.loss(Trajectory(jnp.ones((8, 2)), PLAN)), "Ensemble of Spring has no loss.*fit simulators by")
