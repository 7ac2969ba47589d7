"""SAC and PPO: the functional environment behaves as its task, seeds are independent, and a simple task is learned."""

import functools
import warnings

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest
from hypothesis import given, strategies as st
from misuse import says

from awmkit import AbstractTask, GaussianPolicy, load, Normaliser, save, unroll
from awmkit.gym import GymnasiumTask

with warnings.catch_warnings():  # Distrax imports TensorFlow Probability, which reads a deprecated name of JAX.
    warnings.simplefilter("ignore", DeprecationWarning)
    import rejax

    from awmkit.baselines import FunctionalEnv, ppo, sac
    from awmkit.baselines._learn import to_gaussian_policy
    from awmkit.baselines._schedule import make_schedule, Schedule

KEYS = jax.random.split(jax.random.key(0), 2)


class Aim(AbstractTask):
    """The action is added to the state, and 1/2 is the best action at every step. The reward reads the next state."""

    horizon: int = 5
    state_size: int = 2
    action_size: int = 2

    def init(self, state, horizon):
        return jnp.zeros((), int)  # Counts steps.

    def step(self, carry, state, action, t, *, key=None):
        return carry + 1, state + action

    def reward(self, state, action, t, next_state=None):
        return -jnp.sum((next_state - state - 0.5) ** 2) - jnp.asarray(t, state.dtype) / 10

    def reset(self, key):
        return jax.random.normal(key, (2,))


SHIFT = jnp.arange(5.0)
INPUTS = Normaliser(2).fitted(jax.random.normal(KEYS[0], (9, 2)))
ENV = FunctionalEnv(Aim(), INPUTS, SHIFT, jnp.asarray(2.0), jnp.tanh, 1.0)
SMALL = {"steps": 1_005, "warmup": 201, "evaluate_every": 200, "evaluations": 3, "width": 16}


@jax.jit
def play(actions):
    """Play actions (T, A): observations before, rewards, dones and observations after each step, and the last episode."""

    def step(loop, x):
        (observation, state), (action, key) = loop, x
        after, state, reward, done, _ = ENV.step(key, state, action)
        return (after, state), (observation, reward, done, after)

    (_, state), rows = jax.lax.scan(step, ENV.reset(KEYS[0]), (actions, jax.random.split(KEYS[1], len(actions))))
    return *rows, state


@given(actions=st.lists(st.floats(-1, 1), min_size=7, max_size=7))
def test_a_step_equals_the_tasks_step_and_step_h_starts_the_next_episode(actions):
    actions = jnp.array(actions)[:, None] * jnp.array([1.0, -0.3])
    observations, rewards, dones, after, last = play(actions)
    episode = unroll(ENV.task, jnp.tanh(actions[:5]), ENV.task.reset(KEYS[0]), 5, reward=ENV.task.reward)
    seen = jax.vmap(ENV.observe)(episode.states, jnp.arange(6))
    np.testing.assert_allclose(observations[:5], seen[:5])
    np.testing.assert_allclose(seen[:, 2], np.arange(6) / 2.5 - 1)
    np.testing.assert_allclose(INPUTS.inverse(seen[:, :2]), episode.states)
    np.testing.assert_allclose(rewards[:5], (episode.rewards - SHIFT) * 2)
    assert dones.tolist() == [False] * 4 + [True] + [False] * 2
    assert after[4, 2] == -1 and abs(after[4] - seen[0]).max() > 1e-3
    np.testing.assert_array_equal(observations[5], after[4])
    assert last.t == 2 and last.carry == 2


def test_stored_warm_up_episodes_equal_the_environments_transitions():
    actions = jax.random.uniform(KEYS[1], (5, 2))
    observations, rewards, dones, after, _ = play(jnp.arctanh(actions))
    episode = unroll(ENV.task, actions, ENV.task.reset(KEYS[0]), 5, reward=ENV.task.reward)
    stored = ENV.transitions(jtu.tree_map(lambda x: x[None], episode))
    for given_, kept in [(observations, stored.obs), (actions, stored.action), (rewards, stored.reward), (dones, stored.done)]:
        np.testing.assert_allclose(given_, kept)
    np.testing.assert_allclose(after[:4], stored.next_obs[:4])


@pytest.mark.parametrize("learner", [rejax.SAC, rejax.PPO])
def test_the_returned_policy_has_the_density_of_rejaxs_actor(learner):
    learner, state, t = (
        learner.create(env=ENV, env_params=None, agent_kwargs={"activation": "swish"}),
        jnp.array([0.3, -0.2]),
        3,
    )

    @jax.jit
    def draw():
        params = jtu.tree_map(lambda x: 1.5 * x + 0.01, learner.init_state(KEYS[0]).actor_ts.params)
        seen = ENV.observe(state, t)[None]
        return params, *learner.actor.apply(params, seen, KEYS[1], method="action_log_prob")

    with jax.numpy_dtype_promotion("standard"):
        params, drawn, log_prob = draw()
    action, squashed = drawn[0], 0.0
    if isinstance(learner, rejax.PPO):  # The environment squashes.
        action = jnp.tanh(action)
        squashed = jnp.sum(jnp.log1p(-(action**2)))
    np.testing.assert_allclose(
        to_gaussian_policy(params["params"], ENV).log_prob(state, action, t), log_prob[0] - squashed, rtol=1e-5
    )


@functools.cache
def runs(learn):
    """Two seeds as one program, and the second seed by itself."""
    options = SMALL | ({"batch": 32, "learning_rate": 3e-3} if learn is sac else {"envs": 4, "epochs": 20, "steps": 1_843})
    return jax.vmap(lambda key: learn(Aim(), key=key, **options))(KEYS), learn(Aim(), key=KEYS[1], **options)


@pytest.mark.parametrize("learn", [sac, ppo])
def test_two_seeds_as_one_program_equal_two_runs(learn):
    both, second = runs(learn)
    # Rounding errors grow as learning goes on.
    np.testing.assert_allclose(both.returns[1, :2], second.returns[:2], rtol=1e-4)
    assert both.policy.log_std.shape == (2, 2) and abs(both.returns[0] - both.returns[1]).min() > 1e-3


@pytest.mark.parametrize("learn", [sac, ppo])
def test_the_best_action_is_learned_and_the_returned_policy_is_the_evaluated_one_and_can_be_saved(learn, tmp_path):
    _, run = runs(learn)
    assert isinstance(run.policy, GaussianPolicy)
    save(tmp_path / "policy", run.policy)
    assert eqx.tree_equal(load(tmp_path / "policy"), run.policy)
    starts = jax.vmap(Aim().reset)(jax.random.split(jax.random.key(5), 8))
    play = lambda state: unroll(Aim(), run.policy, state, 5, reward=Aim().reward)
    episodes = jax.vmap(play)(starts)
    best = -0.1 * 10
    assert best - 0.1 < run.returns[-1] <= best and run.returns[0] < best - 1
    np.testing.assert_allclose(episodes.returns().mean(), run.returns[-1], atol=0.1)
    assert abs(episodes.actions - 0.5).mean() < 0.15


@pytest.mark.parametrize("learn", [sac, ppo])
def test_the_warm_up_uses_the_given_actions(learn):
    shapes = []

    def actions(key, shape):
        shapes.append(shape)
        return jnp.zeros(shape)

    jax.eval_shape(lambda key: learn(Aim(), key=key, actions=actions, **SMALL | {"steps": 1_843}), KEYS[0])
    assert shapes == [(5, 2)]


def test_steps_include_the_warm_up_and_end_at_the_given_number():
    assert runs(sac)[1].steps.tolist() == [205, 405, 605, 805, 1_005]  # The warm-up takes 205.
    assert runs(ppo)[1].steps.tolist() == [225 + 200 * n for n in range(9)]  # An iteration takes 20.
    schedule = make_schedule("sac", 5, steps=843, warmup=201, evaluate_every=200, steps_per_iteration=1)
    assert schedule == Schedule(warmup_episodes=41, steps_per_iteration=1, first=38, interval=200, intervals=3)


MISUSES = {
    "Gymnasium": (
        lambda: sac(GymnasiumTask(gymnasium.make("Pendulum-v1")), key=KEYS[0]),
        "needs a task that JAX can trace, got a GymnasiumTask",
    ),
    "no task": (lambda: ppo("Pendulum-v1", key=KEYS[0]), "needs a task, got a str; pass an instance of awmkit.AbstractTask"),
    "nothing but warm-up": (
        lambda: sac(Aim(), key=KEYS[0], steps=1_000),
        "needs at least 1001 steps, 1000 for the warm-up and 1 for one iteration, got steps=1000",
    ),
    "less than an iteration": (
        lambda: ppo(Aim(), key=KEYS[0], steps=1_049),
        "needs at least 1050 steps.*got steps=1049; raise steps",
    ),
    "a batch of nothing": (lambda: sac(Aim(), key=KEYS[0], warmup=1), "batch must be at most 10.*got 128"),
    "no updates": (lambda: sac(Aim(), key=KEYS[0], updates=0), "updates=0; .*whole number"),
    "two discounts": (lambda: sac(Aim(), key=KEYS[0], gamma=jnp.ones(2)), r"sac got gamma=float64\[2\]; give one real number"),
    "no learning rate": (
        lambda: ppo(Aim(), key=KEYS[0], learning_rate=None),
        "ppo got learning_rate=None; give one real number",
    ),
    "a scale for each step": (lambda: ppo(Aim(), key=KEYS[0], reward_scale=np.ones(5)), r"ppo got reward_scale=float64\[5\]"),
    "two keys": (lambda: sac(Aim(), key=KEYS), r"sac got the key key<fry>\[2\]; give one key"),
    "a shift of fewer steps": (
        lambda: FunctionalEnv(Aim(), INPUTS, SHIFT[:3], jnp.asarray(2.0), jnp.tanh, 1.0),
        r"FunctionalEnv needs reward_shift of shape \(5,\), .* got float64\[3\].*; give one number for each step",
    ),
    "half an environment": (lambda: ppo(Aim(), key=KEYS[0], envs=0.5), "envs=0.5"),
}


@pytest.mark.parametrize("name", MISUSES)
def test_misuse_raises_one_clear_sentence(name):
    says(*MISUSES[name])


def test_a_task_that_may_end_early_is_terminal_there_and_padding_is_no_transition():
    class Drifting(AbstractTask):
        horizon: int = eqx.field(static=True, default=6)
        state_size: int = eqx.field(static=True, default=1)
        action_size: int = eqx.field(static=True, default=1)

        def step(self, carry, state, action, t, *, key=None):
            return carry, state + action

        def reward(self, state, action, t):
            return 1 + 0 * state[0]

        def reset(self, key):
            return jnp.zeros(1)

        def terminates(self, state, action, t, next_state):
            return next_state[0] > 0.9

    task = Drifting()
    run = lambda a: unroll(task, jnp.full((6, 1), a), jnp.zeros(1), 6, reward=task.reward)
    episodes = jax.vmap(run)(jnp.array([0.5, 0.0]))
    env = FunctionalEnv.from_warmup(task, episodes, 1.0, squash=lambda a: a, limit=1.0)
    rows = env.transitions(episodes)
    assert rows.done.tolist() == [False, True] * 3 + [False] * 5 + [True] and (rows.reward == 1).all()
    assert (rows.obs[2] == rows.obs[0]).all() and (rows.action[:6] == 0.5).all()
    _, state = env.reset(jax.random.key(0))
    dones = []
    for _ in range(4):
        _, state, _, done, _ = env.step(jax.random.key(0), state, jnp.array([0.5]))
        dones.append(bool(done))
    assert dones == [False, True, False, True]
