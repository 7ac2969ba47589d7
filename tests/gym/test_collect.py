"""Collecting episodes from Gymnasium environments, and Gymnasium environments as tasks."""

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete
from gymnasium.wrappers import FlattenObservation, TransformAction
from misuse import says

from awmkit import AWM, BPO, fit, LSTM, MLPPolicy, NoProgress, RewardModel, unroll, unroll_grad
from awmkit.gym import collect, GymnasiumTask, TaskEnv, TaskVectorEnv
from awmkit.tasks import CreditAssignment, DrivenDoublePendulum

KEY = jax.random.key(0)


def policy_of(env, **options):
    return MLPPolicy(env.observation_space.shape[0], env.action_space.shape[0], width=4, key=KEY, **options)


def test_collected_episodes_equal_those_of_a_hand_written_loop():
    env, other = gymnasium.make("Pendulum-v1"), gymnasium.make("Pendulum-v1")
    policy = policy_of(env, horizon=200)
    act = eqx.filter_jit(policy)
    episodes = collect(env, policy, 2, key=KEY)
    assert episodes.states.shape == (2, 201, 3) and episodes.actions.shape == (2, 200, 1) and episodes.rewards.shape == (2, 200)
    for n in range(2):
        observation, _ = other.reset(seed=env.np_random_seed if n == 0 else None)
        for t in range(200):
            np.testing.assert_array_equal(episodes.states[n, t], observation)
            action = act(jnp.asarray(observation, float), jnp.asarray(t))
            np.testing.assert_allclose(episodes.actions[n, t], action, rtol=1e-6)
            observation, reward, *_ = other.step(np.asarray(2 * episodes.actions[n, t], np.float32))
            np.testing.assert_array_equal(episodes.rewards[n, t], reward)
        np.testing.assert_array_equal(episodes.states[n, 200], observation)


def test_a_key_determines_the_episodes_and_every_step_has_its_own_noise():
    noise = lambda state, t, *, key: jax.random.uniform(key, (1,), minval=-1.0)
    play = lambda key: collect(gymnasium.make("Pendulum-v1"), noise, 2, horizon=20, key=key)
    first, again, other = play(KEY), play(KEY), play(jax.random.key(1))
    assert (first.states == again.states).all() and (first.actions == again.actions).all()
    assert len(np.unique(first.actions)) == 40 and (first.states[:, 0] != other.states[:, 0]).any()


def test_episodes_collected_from_a_task_equal_its_unroll():
    task = CreditAssignment(20, scale=0.0)
    actions = np.linspace(-1, 1, 20)[:, None]
    episodes = collect(TaskEnv(task, time_aware=False), actions, 1)
    trajectory = unroll(task, jnp.asarray(actions), jnp.zeros(2), 20, reward=task.reward, key=KEY)
    np.testing.assert_allclose(episodes.states[0], trajectory.states, rtol=1e-6)
    np.testing.assert_allclose(episodes.rewards[0], trajectory.rewards, rtol=1e-6)


class Sandbox(gymnasium.Env):
    """Adds the action to a number. The episode ends after `ends` steps; step 2 returns NaN or infinity for `breaks`."""

    def __init__(self, ends=None, breaks=None, actions=None, observations=None):
        self.ends, self.breaks, self.truncates = ends, breaks, False
        self.action_space = Box(np.array([-1.0], np.float32), np.array([3.0], np.float32)) if actions is None else actions
        self.observation_space = Box(-np.inf, np.inf, (1,), np.float64) if observations is None else observations

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.x = 0, self.np_random.normal(size=1)
        return self.x, {}

    def step(self, action):
        self.x, self.t = self.x + action, self.t + 1
        broken = lambda what: self.breaks == what and self.t == 3
        observation = self.x * np.nan if broken("observation") else self.x
        ended = self.t == self.ends
        return observation, np.inf if broken("reward") else float(self.x[0]), ended, self.truncates, {}


def test_absorb_repeats_the_last_state_after_an_early_end():
    plan = np.linspace(-1, 1, 6)[:, None]
    episode = collect(Sandbox(ends=4), plan, 3, horizon=6, absorb=True)
    np.testing.assert_allclose(episode.states[:, :5, 0] - episode.states[:, :1, 0], [np.cumsum([0, -1, -0.2, 0.6, 1.4])] * 3)
    assert (episode.states[:, 4:] == episode.states[:, 4:5]).all()
    np.testing.assert_allclose(episode.rewards[:, :4], episode.states[:, 1:5, 0])
    assert (episode.rewards[:, 4:] == 0).all() and (episode.actions == plan).all()
    assert collect(Sandbox(ends=6), plan, 1, horizon=6).states.shape == (1, 7, 1)  # Ending at the last step is not early.


def test_a_gymnasium_task_has_the_sizes_reward_and_initial_states_of_its_environment():
    forward = lambda s, a, t, next_state: next_state[0] - s[0]
    task = GymnasiumTask(gymnasium.make("Pendulum-v1"), reward=forward)
    assert (task.state_size, task.action_size, task.horizon) == (3, 1, 200)
    assert task.reward(jnp.zeros(3), jnp.zeros(1), 0, jnp.ones(3)) == 1
    assert task.bounds == ((-1.0, -1.0, -8.0), (1.0, 1.0, 8.0))
    assert (task.reset(KEY) == task.reset(KEY)).all() and (task.reset(KEY) != task.reset(jax.random.key(1))).any()
    episodes = task.collect(policy_of(task.env), 2, key=KEY)
    assert episodes.states.shape == (2, 201, 3)
    short = GymnasiumTask(TaskEnv(DrivenDoublePendulum(7), time_aware=False), horizon=5)
    assert short.horizon == 5 and GymnasiumTask(short.env).horizon == 7


def test_fitted_models_of_states_and_rewards_give_the_gradient_of_an_environment():
    task = GymnasiumTask(gymnasium.make("Pendulum-v1"), horizon=20)
    policy, keys = policy_of(task.env), jax.random.split(KEY, 4)
    episodes = task.collect(policy, 4, key=KEY)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes, which only tests forbid.
        learn = lambda model: fit(model, episodes, key=KEY, updates=3, holdout=0.0, progress=NoProgress()).model
        reward = learn(RewardModel(3, 1, width=8, key=keys[0]).normalised(episodes))
        world = learn(AWM(3, 1, LSTM(8, key=keys[1]), key=keys[2]).normalised(episodes.states))
    start = task.reset(keys[3])
    value, gradient = unroll_grad(world, policy, start, 20, reward=reward, paths=BPO, check=True)
    assert value.shape == () and sum(jnp.abs(g).sum() for g in jax.tree.leaves(gradient)) > 0


BIG = Box(-np.inf, np.inf, (1,))
PLAN = np.zeros((5, 1))


def gathered(policy=PLAN, episodes=1, *, horizon=5, **options):
    return collect(Sandbox(**options), policy, episodes, horizon=horizon)


MISUSES = {
    "no environment": (lambda: GymnasiumTask("Pendulum-v1"), r"must be one gymnasium.Env, got a str.*gymnasium.make\(id\)"),
    "many environments": (
        lambda: GymnasiumTask(TaskVectorEnv(DrivenDoublePendulum(5), 2)),
        "must be one gymnasium.Env, got a TaskVectorEnv",
    ),
    "discrete actions": (
        lambda: GymnasiumTask(gymnasium.make("CartPole-v1")),
        "action space must be a Box.*got a Discrete.*continuous actions",
    ),
    "infinite actions": (lambda: gathered(actions=BIG), "bounds of the action space must be finite.*TransformAction"),
    "a dictionary": (
        lambda: gathered(observations=Dict(x=BIG)),
        r"observation space must be a Box.*got a Dict; flatten.*FlattenObservation\(env\)",
    ),
    "a number of states": (lambda: gathered(observations=Discrete(3)), r"got a Discrete; flatten.*FlattenObservation\(env\)"),
    "images": (
        lambda: gathered(observations=Box(0, 255, (8, 8, 3), np.uint8)),
        r"of uint8 of shape \(8, 8, 3\); encode images",
    ),
    "half an episode": (lambda: gathered(episodes=1.5), "episodes=1.5"),
    "a class for a policy": (lambda: gathered(MLPPolicy), "policy is the class MLPPolicy; make an instance"),
    "a policy that ignores t": (lambda: gathered(lambda s: s[:1]), r"cannot be called as policy\(state, t, \*, key\)"),
    "a legacy key": (
        lambda: collect(Sandbox(), PLAN, 1, horizon=5, key=jax.random.PRNGKey(0)),
        r"collect got the key uint32\[2\]",
    ),
    "no horizon": (lambda: GymnasiumTask(Sandbox()), "has no time limit; pass horizon="),
    "horizon 0": (lambda: gathered(horizon=0), "horizon=0.*at least 1"),
    "no episodes": (lambda: gathered(episodes=0), "episodes=0"),
    "an early end": (
        lambda: gathered(ends=3),
        "ended at step 2, but all episodes must have 5 steps; pass absorb=True.*terminate_when_unhealthy",
    ),
    "observations of NaN": (lambda: gathered(breaks="observation"), "observation after step 2 is nan"),
    "rewards of infinity": (lambda: gathered(breaks="reward"), "reward of step 2 is inf"),
    "actions of NaN": (lambda: gathered(PLAN * np.nan), "action of step 0 is nan"),
    "a plan of the wrong shape": (lambda: gathered(PLAN[:4]), r"must have shape \(5, 1\).*got \(4, 1\)"),
    "a policy of the wrong size": (
        lambda: gathered(lambda s, t, key: jnp.zeros(2)),
        r"must return an action of shape \(1,\), got \(2,\)",
    ),
    "an unknown reward": (
        lambda: GymnasiumTask(Sandbox(), horizon=5).reward(jnp.zeros(1), jnp.zeros(1), 0),
        r"GymnasiumTask\(env, reward=...\).*fit",
    ),
    "an unroll of an environment": (
        lambda: unroll(GymnasiumTask(Sandbox(), horizon=5), jnp.zeros((5, 1)), jnp.zeros(1), 5),
        "fit a world model to task.collect",
    ),
    "a traced reset": (lambda: jax.jit(GymnasiumTask(Sandbox(), horizon=5).reset)(KEY), "outside of jit and vmap"),
}


@pytest.mark.parametrize("name", MISUSES)
def test_misuse_raises_one_clear_sentence(name):
    says(*MISUSES[name])


def test_the_fixes_that_the_errors_suggest_work():
    flat = FlattenObservation(Sandbox(observations=Dict(x=Box(-1.0, 1.0, (2,)), y=Box(-1.0, 1.0, (1,)))))
    assert GymnasiumTask(flat, horizon=5).state_size == 3
    bounded = TransformAction(Sandbox(actions=BIG), lambda a: a, Box(-2.0, 2.0, (1,)))
    np.testing.assert_allclose(np.diff(collect(bounded, PLAN + 0.5, 1, horizon=5).states[0, :, 0]), 1)
