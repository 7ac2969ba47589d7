"""`train` learns, reports everything it does, keeps seeds independent, and explains wrong arguments."""

import dataclasses
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
from misuse import says
from reach import ASCENT, host_task, make, MODEL_UPDATES, Reach, run

from awmkit import (
    AWM,
    Critic,
    FullHorizon,
    GaussianPolicy,
    LSTM,
    Markov,
    MLPPolicy,
    ModelUpdates,
    NoProgress,
    Normaliser,
    ShortHorizon,
    TargetEntropy,
    train,
    Trajectory,
    Transformer,
    Warmup,
)
from awmkit._progress import AbstractMeter, AbstractProgress
from awmkit.gym import GymnasiumTask
from awmkit.learning._exploration import ExploringPolicy, pink_noise
from awmkit.learning._model_checks import normalise_by
from awmkit.learning._train_state import _epoch, first_state_shapes, RunConfig, updates_between

KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def optax_promotes():
    """optax mixes dtypes, which the tests forbid."""
    with jax.numpy_dtype_promotion("standard"):
        yield


class Breaking(eqx.Module):
    """A schedule of the entropy weight that is NaN after some step."""

    steps: int

    def __call__(self, steps):
        return jnp.where(steps < self.steps, 0.01, jnp.nan)


def test_a_simulators_gradient_learns_and_updates_that_are_not_finite_are_skipped_and_counted():
    ascent = FullHorizon(steps_per_update=0.5, batch_size=4, optimiser=optax.adam(0.02), clip=1.0, entropy=Breaking(60))
    learn = lambda steps: run(KEY, reward=None, model=Reach(), ascent=ascent, steps=steps)
    before = learn(60)
    with pytest.warns(UserWarning, match=r"All 24 policy updates of the epoch up to step \d+ were skipped in 1 of 1 runs"):
        after = learn(96)
    metrics, info = after.metrics, after.metrics.policy_update
    assert metrics.steps.tolist() == [24, 36, 48, 60, 72, 84, 96]
    assert info.skipped.tolist() == [0, 0, 0, 0, 24, 24, 24]  # The fifth epoch begins after step 60.
    unchanged = [eqx.filter((x.policy, x.state.ascent_state), eqx.is_array) for x in (before, after)]
    assert all(bool((a == b).all()) for a, b in zip(*map(jax.tree.leaves, unchanged), strict=True))
    assert after.state.ascent_state.optimiser[0].count == 4 * 24
    assert metrics.true_return[3] > -0.6 and metrics.collected_return[0] < -1.0  # The best return is -1/2.
    assert info.gradient_norm[0] > info.clipped_norm[0] > 0 and (info.clipped_norm <= 1).all()
    assert info.gradient_norm[-1] == 0 and metrics.model_error is None and metrics.model_loss is None


def test_statistics_are_those_of_the_warm_up():
    result = run(KEY, steps=24)  # Two episodes of random actions, and two of the policy.
    warmup = jtu.tree_map(lambda x: np.asarray(x)[:2], result.state.replay.episodes)
    np.testing.assert_allclose(result.policy.input_norm.shift, warmup.states.mean((0, 1)), rtol=1e-9)
    np.testing.assert_allclose(result.model.input_norm.scale, warmup.states.std((0, 1)), rtol=1e-9)
    np.testing.assert_allclose(result.reward.output_norm.shift, warmup.rewards.mean(keepdims=True)[0], rtol=1e-9)
    np.testing.assert_allclose(result.state.ascent_state.policy.return_scale, warmup.rewards.sum(1).std(), rtol=1e-9)


@pytest.mark.slow
def test_an_awm_learns_with_a_critic_from_windows_and_its_statistics_of_each_step_are_those_of_windows():
    model = AWM(2, 2, LSTM(4, key=KEY), per_step=True, key=KEY)
    result = run(KEY, steps=24, model=model, model_updates=dataclasses.replace(MODEL_UPDATES, window=3, from_start=0.5))
    warmup = jtu.tree_map(lambda x: x[:2], result.state.replay.episodes)
    expected = normalise_by(model, warmup, 3, 0.5).output_norm
    np.testing.assert_allclose(result.model.output_norm.shift, expected.shift, rtol=1e-9)
    assert not np.allclose(expected.shift, normalise_by(model, warmup, 3).output_norm.shift)
    assert result.metrics.policy_update.gradient_norm[-1] > 0 and result.metrics.model_error[-1] < 10


def test_a_fitted_model_policy_reward_and_critic_keep_their_statistics_and_the_rest_is_set():
    """Two seeds: everything of the first is set before, and nothing of the second."""
    is_norm = lambda x: isinstance(x, Normaliser)
    first = jnp.array([True, False])[:, None]
    statistics = lambda n: (jnp.where(first, 0.3, n.shift), jnp.where(first, 2.0, n.scale))
    fit_first = lambda x: eqx.tree_at(lambda n: (n.shift, n.scale), x, statistics(x)) if is_norm(x) else x
    fitted = jtu.tree_map(fit_first, make(jax.random.split(KEY)), is_leaf=is_norm)
    critic = eqx.tree_at(lambda c: c.input_norm.shift, ASCENT.critic, jnp.full(2, 0.7))
    ascent = dataclasses.replace(ASCENT, critic=critic)
    result = run(jax.random.split(KEY), steps=24, ascent=ascent, **fitted)
    stored = [jtu.tree_map(lambda x, i=i: x[i], result.state.replay).episodes for i in range(2)]
    warmup = np.stack([np.asarray(episodes.states)[:2] for episodes in stored])
    for name, before in fitted.items():
        norms = [list(filter(is_norm, jtu.tree_leaves(tree, is_leaf=is_norm))) for tree in (before, getattr(result, name))]
        for old, new in zip(*norms, strict=True):
            assert (new.shift[0] == old.shift[0]).all() and (new.scale[0] == old.scale[0]).all()
            assert not np.allclose(new.shift[1], old.shift[1]) and new.is_set
    np.testing.assert_allclose(result.policy.input_norm.shift[1], warmup[1].mean((0, 1)), rtol=1e-9)
    for critic_after in (result.state.ascent_state.critic, result.state.ascent_state.target_critic):
        assert (critic_after.input_norm.shift == 0.7).all() and (critic_after.input_norm.scale == 1).all()


def test_a_gradient_of_exactly_zero_is_a_warning_that_names_the_reasons():
    ascent = FullHorizon(steps_per_update=6.0, batch_size=2, entropy=0.0)
    learn = lambda **options: run(KEY, model=Reach(), ascent=ascent, steps=24, **options)
    with pytest.warns(UserWarning, match="reward is a constant to the gradient.*smooth"):
        with pytest.warns(UserWarning, match=r"All 2 policy updates .* had a gradient of exactly 0 in 1 of 1 runs.*saturated"):
            learn(reward=lambda state, action, t: jnp.where(state[0] > 0.5, 1.0, 0.0))


@given(steps_per_update=st.sampled_from(["0.9", "1.1", "0.1", "2.5", "3", "16", "37"]), environments=st.integers(1, 3))
def test_the_number_of_updates_depends_on_environment_steps_only(steps_per_update, environments):
    spi = 6 * environments
    updates = jax.jit(jax.vmap(lambda i: updates_between(i * spi, (i + 1) * spi, float(steps_per_update))))(jnp.arange(40))
    due = [math.floor(Fraction(i * 6 * environments) / Fraction(steps_per_update)) for i in range(1, 41)]
    assert np.cumsum(updates).tolist() == due


def test_an_iteration_makes_no_model_updates_if_its_new_episodes_are_predicted_to_within_the_tolerance():
    errors = run(KEY).metrics.model_error
    tolerance = float(np.sqrt(errors[0] * errors[1:].min()))
    good = int(np.argmax(errors <= tolerance))
    result = run(KEY, model_updates=dataclasses.replace(MODEL_UPDATES, tolerance=tolerance))
    np.testing.assert_allclose(result.metrics.model_error[: good + 1], errors[: good + 1], rtol=1e-9)
    assert good > 0 and (result.metrics.model_loss[:good] > 0).all() and result.metrics.model_loss[good] == 0


def test_two_seeds_in_one_program_equal_two_runs_and_each_learns_with_a_learned_reward():
    keys = jax.random.split(KEY)
    together, *apart = (run(key, steps=396) for key in (keys, *keys))
    one, *others = (eqx.filter((run.state, run.metrics), eqx.is_inexact_array) for run in (together, *apart))
    for both, each in zip(jax.tree.leaves(one), zip(*map(jax.tree.leaves, others), strict=True), strict=True):
        np.testing.assert_allclose(both, np.stack(each), rtol=1e-8, atol=1e-8)
    assert not np.allclose(*together.metrics.true_return)
    for result in apart:  # 384 steps after the warm-up's 12: a model update every 0.7 steps, a policy update every 0.9.
        state, metrics = result.state, result.metrics
        assert state.optimiser_state[0].count == 548 and state.ascent_state.policy.optimiser[0].count == 426
        assert state.replay.episodes_added == 66 and state.replay.whole == 8
        assert metrics.true_return[-1] > -0.8 and metrics.collected_return[0] < -2.0  # The best return is -1/2.
        assert metrics.model_error[-1] < 0.1 * metrics.model_error[0]


def test_one_of_several_seeds_has_a_simulator_of_its_own():
    together = run(jax.random.split(KEY), model=Reach(limit=5.0), steps=24)
    assert together[0].model.limit == together.best().state.model.limit == 5.0


def test_a_policy_and_a_reward_are_learned_from_a_gymnasium_environment():
    result = run(KEY, host_task(), steps=396)
    assert result.metrics.true_return[-1] > -0.8 and result.metrics.collected_return[0] < -2.0  # The best return is -1/2.


def test_exploration_noise_is_added_to_the_actions_and_the_sum_is_clipped():
    noise = jnp.array([[0.1, 0.05], [-0.2, 0.3]])
    policy = ExploringPolicy(lambda state, t, *, key=None: jnp.array([0.0, 0.9]), noise)
    actions = jax.jit(jax.vmap(lambda t: policy(jnp.zeros(2), t)))(jnp.arange(2))
    np.testing.assert_allclose(actions, [[0.1, 0.95], [-0.2, 1.0]])


@pytest.mark.parametrize("steps", [2, 7, 100])
def test_pink_noise_has_unit_variance_and_a_spectrum_of_one_over_the_frequency(steps):
    draw = jax.jit(lambda key: jax.vmap(lambda key: pink_noise(key, (steps, 2)))(jax.random.split(key, 4000)))
    noise = np.asarray(draw(KEY))
    assert noise.shape == (4000, steps, 2) and abs(noise.mean()) < 0.05
    np.testing.assert_allclose(noise.std(axis=0), 1, atol=0.05)
    np.testing.assert_allclose((noise[..., 0] * noise[..., 1]).mean(), 0, atol=0.08)
    if steps == 100:
        power = np.mean(np.abs(np.fft.rfft(noise, axis=1)) ** 2, axis=(0, 2))[3:40]
        slope = np.polyfit(np.log(np.arange(3, 40)), np.log(power), 1)[0]
        assert abs(slope + 1) < 0.15  # White noise has slope 0.


class _Recorder(AbstractMeter, AbstractProgress):
    """A progress meter that records the phases, and what was done when each was first shown."""

    phases: dict[str, int] = eqx.field(static=True, default_factory=dict)

    def start(self, label, total):
        return self

    def update(self, done, note="", *, phase=None):
        self.phases.setdefault(phase, int(done))


@pytest.mark.parametrize("ascent", [ASCENT, FullHorizon()], ids=["ShortHorizon", "FullHorizon"])
def test_a_run_broadcasts_nothing_implicitly(ascent):
    config = RunConfig(Reach(), Warmup(12), MODEL_UPDATES, ascent, None, None, None, 2, 1, 0.1, 48, None)
    with jax.numpy_rank_promotion("raise"):
        made = make(KEY)
        learned = {"model": made["model"], "reward": made["reward"], "termination": None}
        state = first_state_shapes(config, learned, made["policy"], KEY)
        after, metrics, _ = eqx.filter_eval_shape(_epoch, config, state, 0, 2, 0, KEY)
    assert jax.tree.structure(after) == jax.tree.structure(state) and metrics.true_return.shape == ()


def test_progress_shows_the_phases_from_the_beginning():
    compiled, host = _Recorder(), _Recorder()
    run(KEY, steps=36, progress=compiled)
    assert compiled.phases == {"warm-up": 0, "compiling": 12, "collecting, fitting, improving": 24}
    run(KEY, host_task(), steps=24, progress=host)
    phases = ["warm-up", "compiling", "collecting", "fitting, improving", "evaluating", "collecting, fitting, improving"]
    assert list(host.phases) == phases and host.phases["collecting"] == 12


TASK = Reach()
MADE = make(KEY)
PENDULUM = GymnasiumTask(gymnasium.make("Pendulum-v1"), horizon=5)


def _train(task=TASK, key=KEY, **options):
    return train(task, key=key, **{**MADE, "progress": NoProgress(), "steps": 24, "warmup": Warmup(6), **options})


def _shapes(make):
    """What `make` returns, with shapes in place of arrays: enough for arguments that are refused, and nothing is compiled."""
    return eqx.filter_eval_shape(make)


def _per_step_awm():
    return _shapes(lambda: AWM(2, 2, LSTM(8, key=KEY), per_step=True, key=KEY))


def _stack(count):
    """`make` of several keys, by copies."""
    return jtu.tree_map(lambda x: jnp.stack([x] * count) if eqx.is_array(x) else x, MADE)


class Entropic(eqx.Module):
    """A policy whose entropy is an array."""

    inner: object

    def __call__(self, state, t, *, key=None):
        return self.inner @ state

    def entropy(self, state, t, *, key):
        return state if isinstance(self.inner, eqx.Module) else state[0]


class Single(Reach):
    """`Reach` in float32."""

    def reset(self, key):
        return jnp.zeros(2, jnp.float32)

    def step(self, carry, state, action, t, *, key=None):
        return carry, (state / 2 + action).astype(jnp.float32)

    def reward(self, state, action, t):
        return -jnp.sum(state**2)


MARKOV = _shapes(lambda: Markov(3, 1, key=KEY))

MISUSES = {
    "a name for a task": (lambda: _train("Pendulum-v1"), "task is a str; pass an awmkit.AbstractTask"),
    "an environment for a task": (lambda: _train(PENDULUM.env), "GymnasiumTask"),
    "a function for a model": (lambda: _train(model=lambda s, a: s), "model is a function.*pass a world model"),
    "an environment for a model": (lambda: _train(PENDULUM, model=PENDULUM), "model is a GymnasiumTask.*no gradient"),
    "a model of other sizes": (
        lambda: _train(PENDULUM),
        "state_size=2 and action_size=2, the task 3 and 1; build the model with task.state_size",
    ),
    "a legacy key": (lambda: _train(key=jax.random.PRNGKey(0)), "must be one jax.random.key"),
    "a table of keys": (lambda: _train(key=jax.random.split(KEY, (2, 2))), "must be one jax.random.key"),
    "several seeds on the host": (
        lambda: _train(PENDULUM, jax.random.split(KEY), model=MARKOV),
        "call train once for each key",
    ),
    "no steps": (lambda: _train(steps=0), "steps=0.*at least 1"),
    "no environments": (lambda: _train(environments=0), "environments=0.*at least 1"),
    "an epoch of no steps": (lambda: _train(evaluate_every=0), "evaluate_every=0.*at least 1"),
    "negative noise": (lambda: _train(noise=-1.0), "a standard deviation of at least 0, got -1.0"),
    "no evaluations": (lambda: _train(evaluations=0), "evaluations=0.*at least 1"),
    "infinite noise": (lambda: _train(noise=math.inf), "a standard deviation of at least 0, got inf"),
    "nothing but a warm-up": (lambda: _train(warmup=Warmup(24)), "steps=24, but the warm-up alone takes 24 steps"),
    "the entropy of an MLP": (
        lambda: _train(policy=_shapes(lambda: MLPPolicy(2, 2, key=KEY))),
        r"method entropy, which MLPPolicy lacks.*FullHorizon\(entropy=0\)",
    ),
    "a short horizon in an AWM with statistics of each step": (
        lambda: _train(model=_per_step_awm(), ascent=ASCENT),
        r"ShortHorizon begins imagined episodes at any step.*those of whole episodes; pass ModelUpdates\(window=3\)",
    ),
    "windows shorter than the imagined episodes": (
        lambda: _train(model=_per_step_awm(), ascent=FullHorizon(length=3), model_updates=ModelUpdates(window=2)),
        "FullHorizon begins.*those of 2 steps",
    ),
    "a time embedding shorter than the windows": (
        lambda: _train(
            model=_shapes(lambda: AWM(2, 2, Transformer(12, 1, 3, horizon=2, key=KEY), key=KEY)),
            model_updates=ModelUpdates(window=3),
            ascent=ASCENT,
        ),
        "horizon must be at most 2, for which this Transformer.*got 3",
    ),
    "a replay buffer of no episodes": (lambda: _train(capacity=0), "capacity=0; give a whole number of at least 6"),
    "a replay buffer smaller than the warm-up": (
        lambda: _train(capacity=6, warmup=Warmup(12)),
        "room for 6 steps and got 12 at once",
    ),
    "an unknown reward": (
        lambda: _train(PENDULUM, model=MARKOV, policy=_shapes(lambda: GaussianPolicy(3, 1, key=KEY)), reward=None),
        r"This GymnasiumTask has no reward function; pass reward=RewardModel\(",
    ),
    "an empty warm-up": (lambda: Warmup(0), "Warmup got steps=0; give a whole number of at least 1"),
    "no steps per model update": (lambda: ModelUpdates(steps_per_update=0.0), "positive.*got steps_per_update=0.0"),
    "model updates on no episodes": (lambda: ModelUpdates(batch_size=0), "batch_size=0"),
    "a microbatch that is no divisor": (
        lambda: ModelUpdates(batch_size=12, microbatch_size=5),
        "microbatch_size=5 and batch_size=12; give a divisor",
    ),
    "a negative number of initial updates": (lambda: ModelUpdates(initial_updates=-1), "initial_updates=-1"),
    "a share of windows above 1": (
        lambda: ModelUpdates(window=3, from_start=1.5),
        r"from_start=1.5; pass the share .* in \[0, 1\]",
    ),
    "a share of no windows": (lambda: ModelUpdates(from_start=0.5), "from_start=0.5 and no window; .* so pass a window"),
    "a recency of 0": (lambda: ModelUpdates(recency=0.0), r"a recency in \(0, 1\], got .*recency=0.0"),
    "a recency above 1": (lambda: ModelUpdates(recency=1.5), "recency=1.5"),
    "a negative tolerance": (
        lambda: ModelUpdates(tolerance=-0.1),
        "tolerance must be one finite number of at least 0, got -0.1",
    ),
    "no steps per policy update": (lambda: FullHorizon(steps_per_update=0.0), "steps_per_update=0.0"),
    "policy updates from no starts": (lambda: FullHorizon(batch_size=0), "batch_size=0"),
    "a negative clip": (lambda: ShortHorizon(ASCENT.critic, clip=-1.0), "clip=-1.0"),
    "several critics": (
        lambda: ShortHorizon(_shapes(lambda: eqx.filter_vmap(lambda key: Critic(2, 3, key=key))(jax.random.split(KEY)))),
        "several critics.*pass one",
    ),
    "three policies for two keys": (
        lambda: _train(key=jax.random.split(KEY), **{**_stack(2), "policy": _stack(3)["policy"]}),
        "2 keys and a policy for each of 3 keys",
    ),
    "three models for one key": (lambda: _train(**_stack(3)), "one key but several of the model.*pass an array of keys"),
    "no keys": (lambda: _train(key=jax.random.split(KEY, 0)), "must be one jax.random.key"),
    "a key that is traced": (lambda: jax.jit(lambda key: _train(key=key).metrics)(KEY), "train runs its epochs from Python"),
    "a critic that returns an array": (
        lambda: _train(ascent=ShortHorizon(lambda state, t: state[:1])),
        r"critic returned float64\[1\]; it must return one",
    ),
    "a critic without t": (lambda: ShortHorizon(lambda state: state[0]), r"cannot be called as critic\(state, t\)"),
    "an entropy for each entry of an action": (
        lambda: _train(policy=Entropic(MADE["policy"])),
        r"entropy returned float64\[2\]; it must return one number",
    ),
    "MultiSteps for the model": (
        lambda: ModelUpdates(optimiser=optax.MultiSteps(optax.adam(1e-3), 2)),
        r"MultiSteps; pass what its method gradient_transformation",
    ),
    "a name for the critic's optimiser": (lambda: ShortHorizon(ASCENT.critic, critic_optimiser="adam"), "optimiser is a str"),
    "several learning rates": (
        lambda: _train(ascent=FullHorizon(optimiser=optax.adam(jnp.array([1e-3, 1e-2])))),
        "optimiser cannot train GaussianPolicy.*numbers or schedules",
    ),
    "learning rates of the shape of every weight": (
        lambda: _train(policy=Entropic(jnp.ones((2, 2))), ascent=FullHorizon(entropy=0, optimiser=optax.sgd(jnp.ones(2)))),
        "one learning rate",
    ),
    "a task of float32 for a model of float64": (
        lambda: _train(task=Single(), reward=None),
        "states are float32 and the weights of the model float64; use one dtype",
    ),
    "statistics of fewer steps": (
        lambda: _train(
            model=Markov(2, 2, per_step=True, key=KEY).normalised(Trajectory(jnp.ones((2, 4, 2)), jnp.ones((2, 3, 2))))
        ),
        "statistics are those of each of 4 steps, but it predicts 6 steps at a time",
    ),
    "a return scale of 0": (lambda: FullHorizon(return_scale=0.0), "a positive return_scale"),
    "a negative discount": (lambda: FullHorizon(discount=-0.9), "discount of at least 0"),
    "an initial weight of 0": (lambda: TargetEntropy(-1.0, initial_weight=0.0), "positive rate and initial_weight"),
    "a number for a warm-up": (lambda: _train(warmup=6), r"warmup=6; pass an awmkit.Warmup\(...\)"),
    "a number for model updates": (lambda: _train(model_updates=2.0), r"model_updates=2.0; pass an awmkit.ModelUpdates"),
    "a name for an ascent": (lambda: _train(ascent="whole"), "ascent='whole'; pass an awmkit.FullHorizon"),
    "a name for a policy": (lambda: _train(policy="gaussian"), "policy is a str; give a function or a module"),
    "a class for a policy": (lambda: _train(policy=GaussianPolicy), "policy is the class GaussianPolicy; make an instance"),
    "half a step": (lambda: _train(steps=24.5), "steps=24.5; give a whole number"),
    "one callback": (lambda: _train(callbacks=print), r"callbacks are.*pass a list of functions"),
    "a number of devices": (lambda: _train(mesh=8), r"mesh is a int; pass a jax.sharding.Mesh"),
    "several keys for one model": (
        lambda: _train(key=jax.random.split(KEY)),
        "2 keys but one model; build one for each key",
    ),
    "a checkpoint in a folder that does not exist": (
        lambda: _train(checkpoint="/no/such/folder/run"),
        "folder that does not exist",
    ),
    "a folder for a checkpoint": (lambda: _train(checkpoint="/"), "/ is a folder; pass the path of a file"),
    "a reward without t": (lambda: _train(reward=lambda s, a: s[0]), r"cannot be called as reward\(state, action, t\)"),
    "a name for an optimiser": (lambda: FullHorizon(optimiser="adam"), "optimiser is a str; pass one of optax"),
    "a name for the model's optimiser": (lambda: ModelUpdates(optimiser="adam"), "optimiser is a str; pass one of optax"),
    "a name for the entropy": (lambda: FullHorizon(entropy="auto"), "entropy='auto'; pass a number.*TargetEntropy"),
    "half a start": (lambda: FullHorizon(batch_size=1.5), "batch_size=1.5; give a whole number"),
    "a name for the warm-up's actions": (lambda: Warmup(6, actions="uniform"), r"called as actions\(key, shape\)"),
    "a length of 0": (lambda: ShortHorizon(ASCENT.critic, length=0), "length=0"),
    "a length beyond the horizon": (lambda: _train(ascent=ShortHorizon(ASCENT.critic, length=7)), "length=7.*6"),
}


@pytest.mark.parametrize("name", MISUSES)
def test_misuse_raises_one_clear_sentence(name):
    says(*MISUSES[name])


def test_a_model_that_diverges_says_what_to_do():
    broken = jtu.tree_map(lambda x: x * jnp.nan if eqx.is_inexact_array(x) else x, make(KEY)["model"])
    with pytest.raises(RuntimeError, match="lower its learning rate"):
        run(KEY, model=broken)


def test_a_task_whose_returns_are_not_finite_is_blamed_and_not_the_model():
    with pytest.raises(RuntimeError, match="task's collected returns were nan up to step .*; fix the task"):
        run(KEY, task=Reach(limit=0.5))
