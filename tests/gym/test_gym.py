"""Gymnasium, both ways: its own checks, one copy against many, and episodes against a loop written by hand."""

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import FlattenObservation, TransformAction
from misuse import says

from awmkit import AWM, BPO, fit, LSTM, MLPPolicy, NoProgress, RewardModel, unroll, unroll_grad
from awmkit.gym import collect, GymnasiumTask, TaskEnv, TaskVectorEnv
from awmkit.tasks import (
    CancerTreatment,
    CreditAssignment,
    Discretised,
    DrivenDoublePendulum,
    LinearQuadratic,
    MYRIAD,
    PassiveDoublePendulum,
)

KEY = jax.random.key(0)
# MJX takes long to compile; those three are checked among the slow tests.
CLOSED_FORM = sorted(id for id in gymnasium.registry if id.startswith("awmkit/") and "MJX" not in id)
MJX = sorted(id for id in gymnasium.registry if id.startswith("awmkit/MJX"))


class Carried(LinearQuadratic):
    """A task whose carry matters, whose reward reads the next state, and which is random."""

    def init(self, state, horizon):
        return jnp.zeros(2) + horizon

    def step(self, carry, state, action, t, *, key=None):
        _, state = super().step(None, state, action, t, key=key)
        return carry + 1, 0.9 * state + 0.01 * carry

    def reward(self, state, action, t, next_state=None):
        return jnp.sum(next_state - state) + 0.1 * jnp.asarray(t, state.dtype)


def carried(horizon, noise=0.3):
    return Carried(0.1 * jnp.eye(2), jnp.ones((2, 1)), noise=noise, horizon=horizon)


def test_every_task_is_registered():
    names = {"DoublePendulum", "PassiveDoublePendulum", "OneBounce", "CreditAssignment", *(p.__name__ for p in MYRIAD)}
    assert {f"awmkit/{name}-v0" for name in names} == set(CLOSED_FORM) and len(CLOSED_FORM) == 16
    assert MJX == [f"awmkit/MJX{name}-v0" for name in ("CartPole", "DoublePendulum", "Pendulum")]


@pytest.mark.parametrize("id", CLOSED_FORM)
def test_gymnasiums_checker_finds_nothing(id):
    check_env(gymnasium.make(id).unwrapped)


def test_gymnasiums_checker_finds_nothing_where_the_time_is_unseen():
    check_env(gymnasium.make("awmkit/DoublePendulum-v0", time_aware=False).unwrapped)


@pytest.mark.slow
@pytest.mark.parametrize("id", MJX)
def test_gymnasiums_checker_finds_nothing_in_mjx(id):
    check_env(gymnasium.make(id).unwrapped)


def assert_equal_over(steps, task, time_aware=True, copies=3):
    envs = TaskVectorEnv(task, copies, time_aware=time_aware)
    reference = SyncVectorEnv([lambda: TaskEnv(task, time_aware=time_aware)] * copies)
    assert envs.observation_space == reference.observation_space and envs.action_space == reference.action_space
    assert envs.metadata["autoreset_mode"] is reference.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    generator, ends = np.random.default_rng(0), 0
    (mine, _), (theirs, _) = envs.reset(seed=7), reference.reset(seed=7)
    np.testing.assert_allclose(mine, theirs, rtol=1e-6)
    for step in range(steps):
        actions = generator.uniform(-1, 1, envs.action_space.shape).astype(np.float32)
        mine, theirs = envs.step(actions), reference.step(actions)
        for a, b in zip(mine[:4], theirs[:4], strict=True):
            assert a.dtype == b.dtype and a.shape == b.shape
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9, err_msg=f"step {step}")
        assert mine[4] == theirs[4] == {}
        ends += mine[2].sum() + mine[3].sum()
        if step % 100 == 30:  # One copy out of step with the others, and one with a seed of its own.
            options = lambda: {"reset_mask": np.arange(copies) == 1}
            np.testing.assert_allclose(envs.reset(options=options())[0], reference.reset(options=options())[0], rtol=1e-6)
        if step == 333:
            seeds = [None, 5, None]
            np.testing.assert_allclose(envs.reset(seed=seeds)[0], reference.reset(seed=seeds)[0], rtol=1e-6)
    assert ends > steps // (task.horizon + 1)


@pytest.mark.parametrize("time_aware", [True, False], ids=["time", "no time"])
def test_many_copies_equal_gymnasiums_loop_over_one_for_a_random_task(time_aware):
    assert_equal_over(1000, carried(12), time_aware)


@pytest.mark.parametrize(
    "task",
    [DrivenDoublePendulum(40), CreditAssignment(20), Discretised(CancerTreatment(), 30, noise=0.1, distractors=2)],
    ids=lambda task: type(task).__name__,
)
def test_many_copies_equal_gymnasiums_loop_over_one(task):
    assert_equal_over(1000, task)


@pytest.mark.parametrize("time_aware", [True, False], ids=["time", "no time"])
def test_a_loop_of_10_000_steps_ends_its_episodes_as_declared(time_aware):
    env = gymnasium.make("awmkit/CreditAssignment-v0", horizon=25, time_aware=time_aware)
    env.action_space.seed(0)
    observation, _ = env.reset(seed=0)
    lengths, length = [], 0
    for _ in range(10_000):
        observation, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        length += 1
        assert observation in env.observation_space and np.isfinite(reward)
        if time_aware:
            assert observation[-1] == length and not truncated
        else:
            assert not terminated
        if terminated or truncated:
            observation, _ = env.reset()
            lengths.append(length)
            length = 0
    assert lengths == [25] * 400


@pytest.mark.parametrize("task", [DrivenDoublePendulum(30), carried(30, noise=0.0)], ids=lambda task: type(task).__name__)
def test_an_episode_is_the_unroll_of_its_actions(task):
    env, actions = TaskEnv(task), np.random.default_rng(0).uniform(-1, 1, (30, task.action_size))
    start = np.linspace(-0.2, 0.3, task.state_size)
    observation, _ = env.reset(options={"state": start})
    steps = [env.step(action) for action in actions]
    trajectory = unroll(task, jnp.asarray(actions), jnp.asarray(start), 30, reward=task.reward)
    observations = np.stack([observation] + [step[0] for step in steps])
    np.testing.assert_allclose(observations[:, :-1], trajectory.states, rtol=1e-6)
    np.testing.assert_array_equal(observations[:, -1], np.arange(31))
    np.testing.assert_allclose([step[1] for step in steps], trajectory.rewards, rtol=1e-12)


def test_seeds_determine_everything_and_resets_without_one_go_on():
    def play(env, seed):
        rows = []
        for n in range(3):
            rows.append(env.reset(seed=seed if n == 0 else None)[0])
            rows += [env.step(np.zeros(1))[0] for _ in range(5)]
        return np.stack(rows)

    env = TaskEnv(CreditAssignment(20))
    first, again, other = play(env, 3), play(TaskEnv(CreditAssignment(20)), 3), play(env, 4)
    np.testing.assert_array_equal(first, again)
    assert (first[:, 1] != other[:, 1]).all() and len(set(first[:, 1])) == len(first)
    unseeded = [play(TaskEnv(CreditAssignment(20)), None)[0, 1] for _ in range(2)]
    assert unseeded[0] != unseeded[1]
    envs = TaskVectorEnv(CreditAssignment(20), 4)
    assert len(set(envs.reset()[0][:, 1])) == 4
    assert (envs.reset(options={"state": np.array([0.5, -1.0])})[0] == [0.5, -1.0, 0]).all()


def test_equal_tasks_share_one_program():
    first, second, third = (TaskEnv(PassiveDoublePendulum(h)) for h in (10, 10, 11))
    assert first._step.func is second._step.func is not third._step.func


def test_make_passes_its_arguments_on():
    env = gymnasium.make("awmkit/CancerTreatment-v0", horizon=200, time_aware=False, problem=CancerTreatment(r=0.5))
    assert env.unwrapped.task.horizon == 200 and env.unwrapped.task.problem.r == 0.5 and env.observation_space.shape == (1,)
    envs = gymnasium.make_vec("awmkit/CancerTreatment-v0", num_envs=5, horizon=7, noise=0.1)
    assert isinstance(envs, TaskVectorEnv) and envs.num_envs == 5 and envs.task.horizon == 7
    assert envs.reset(seed=0)[0].shape == (5, 2)
    assert gymnasium.make_vec("awmkit/OneBounce-v0", num_envs=2, vectorization_mode="sync").reset()[0].shape == (2, 5)


def test_pendulums_are_drawn_and_the_picture_shows_the_state():
    env = gymnasium.make("awmkit/DoublePendulum-v0", render_mode="rgb_array")
    assert env.metadata["render_fps"] == 20
    env.reset(options={"state": np.zeros(4)})
    hanging = env.render()
    assert hanging.shape == (256, 256, 3) and hanging.dtype == np.uint8
    assert hanging[155, 128].sum() < 400 < hanging[155, 140].sum()  # The first rod, and beside it.
    dark = (hanging.astype(int).sum(axis=-1) < 600).nonzero()
    assert dark[0].mean() > 150 and abs(dark[1].mean() - 127.5) < 0.5  # Below the middle, straight down.
    env.reset(options={"state": np.array([np.pi / 2, 0, np.pi / 2, 0])})
    across = env.render()
    dark = (across.astype(int).sum(axis=-1) < 600).nonzero()
    assert dark[1].mean() > 150 and abs(dark[0].mean() - 127.5) < 0.5  # To the right.
    envs = gymnasium.make_vec("awmkit/PassiveDoublePendulum-v0", num_envs=2, render_mode="rgb_array")
    envs.reset(options={"state": np.array([[0.0] * 4, [np.pi / 2, 0, np.pi / 2, 0]])})
    np.testing.assert_array_equal(envs.render(), [hanging, across])
    assert gymnasium.make("awmkit/OneBounce-v0").unwrapped.metadata["render_modes"] == []


def policy_of(env, **options):
    return MLPPolicy(env.observation_space.shape[0], env.action_space.shape[0], width=4, key=KEY, **options)


def test_collected_episodes_are_those_of_a_loop_written_by_hand():
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


def test_a_key_determines_the_episodes_and_noise_differs_at_each_step():
    noise = lambda state, t, *, key: jax.random.uniform(key, (1,), minval=-1.0)
    play = lambda key: collect(gymnasium.make("Pendulum-v1"), noise, 2, horizon=20, key=key)
    first, again, other = play(KEY), play(KEY), play(jax.random.key(1))
    assert (first.states == again.states).all() and (first.actions == again.actions).all()
    assert len(np.unique(first.actions)) == 40 and (first.states[:, 0] != other.states[:, 0]).any()


def test_our_own_environment_collects_the_unroll():
    task = CreditAssignment(20, scale=0.0)
    actions = np.linspace(-1, 1, 20)[:, None]
    episodes = collect(TaskEnv(task, time_aware=False), actions, 1)
    trajectory = unroll(task, jnp.asarray(actions), jnp.zeros(2), 20, reward=task.reward, key=KEY)
    np.testing.assert_allclose(episodes.states[0], trajectory.states, rtol=1e-6)
    np.testing.assert_allclose(episodes.rewards[0], trajectory.rewards, rtol=1e-6)


class Sandbox(gymnasium.Env):
    """Adds the action to a number; ends at `ends`, and breaks what `breaks` says at step 2."""

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


def test_an_episode_that_ends_early_is_held_where_asked():
    plan = np.linspace(-1, 1, 6)[:, None]
    episode = collect(Sandbox(ends=4), plan, 3, horizon=6, absorb=True)
    np.testing.assert_allclose(episode.states[:, :5, 0] - episode.states[:, :1, 0], [np.cumsum([0, -1, -0.2, 0.6, 1.4])] * 3)
    assert (episode.states[:, 4:] == episode.states[:, 4:5]).all()
    np.testing.assert_allclose(episode.rewards[:, :4], episode.states[:, 1:5, 0])
    assert (episode.rewards[:, 4:] == 0).all() and (episode.actions == plan).all()
    assert collect(Sandbox(ends=6), plan, 1, horizon=6).states.shape == (1, 7, 1)  # To end with the last step is in time.


def test_a_task_made_of_an_environment_has_its_sizes_reward_and_starts():
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


def test_a_gradient_can_be_had_of_an_environment_by_models_of_its_states_and_rewards():
    task = GymnasiumTask(gymnasium.make("Pendulum-v1"), horizon=20)
    policy, keys = policy_of(task.env), jax.random.split(KEY, 4)
    episodes = task.collect(policy, 4, key=KEY)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes, which only tests forbid.
        learn = lambda model: fit(model, episodes, key=KEY, updates=3, progress=NoProgress()).model
        reward = learn(RewardModel(3, 1, width=8, key=keys[0]).normalised(episodes))
        world = learn(AWM(3, 1, LSTM(8, key=keys[1]), key=keys[2]).normalised(episodes.states))
    start = task.reset(keys[3])
    value, gradient = unroll_grad(world, policy, start, 20, reward=reward, paths=BPO, check=True)
    assert value.shape == () and sum(jnp.abs(g).sum() for g in jax.tree.leaves(gradient)) > 0


PENDULUM = TaskEnv(DrivenDoublePendulum(5))
PENDULUMS = TaskVectorEnv(DrivenDoublePendulum(5), 2)
BIG = Box(-np.inf, np.inf, (1,))
PLAN = np.zeros((5, 1))


def stepped(env, action, steps=1, reset=True):
    if reset:
        env.reset(seed=0)
    for _ in range(steps):
        env.step(np.asarray(action))


def gathered(policy=PLAN, episodes=1, *, horizon=5, **options):
    return collect(Sandbox(**options), policy, episodes, horizon=horizon)


MISUSES = {
    "a step before the reset": (
        lambda: stepped(TaskEnv(PENDULUM.task), [0.0, 0], reset=False),
        r"call reset\(\) before the first",
    ),
    "a step after the end": (lambda: stepped(PENDULUM, [0.0, 0], 6), r"ended after its 5 steps; call reset\(\)"),
    "an action of NaN": (lambda: stepped(PENDULUM, [0.0, np.nan]), r"not finite at index \[1\]"),
    "an action of the wrong shape": (lambda: stepped(PENDULUM, [0.0]), r"shape \(1,\).*needs \(2,\)"),
    "one action for many": (lambda: stepped(PENDULUMS, [0.0, 0]), r"shape \(2,\).*needs \(2, 2\)"),
    "NaN for one of many": (lambda: stepped(PENDULUMS, [[0.0, 0], [np.inf, 0]]), r"not finite at index \[1, 0\]"),
    "many, never reset": (
        lambda: stepped(TaskVectorEnv(PENDULUM.task, 2), np.zeros((2, 2)), reset=False),
        r"call reset\(\) before the first",
    ),
    "no copies": (lambda: TaskVectorEnv(PENDULUM.task, 0), "num_envs=0; give a whole number of at least 1"),
    "too few seeds": (lambda: PENDULUMS.reset(seed=[1]), "1 seeds for 2 copies"),
    "a mask of integers": (lambda: PENDULUMS.reset(options={"reset_mask": np.array([1, 0])}), "give 2 booleans"),
    "a mask before the first reset": (
        lambda: TaskVectorEnv(PENDULUM.task, 2).reset(options={"reset_mask": np.array([True, False])}),
        r"call reset\(\) without it",
    ),
    "a state of the wrong size": (lambda: PENDULUM.reset(options={"state": np.zeros(3)}), r"shape \(3,\).*shape \(4,\)"),
    "a human's view": (lambda: TaskEnv(PENDULUM.task, render_mode="human"), 'use render_mode="rgb_array"'),
    "a picture of a number": (lambda: TaskEnv(CreditAssignment(), render_mode="rgb_array"), r"offers no rods\(state\)"),
    "no environment": (lambda: GymnasiumTask("Pendulum-v1"), r"is a str.*gymnasium.make\(id\)"),
    "many environments": (lambda: GymnasiumTask(PENDULUMS), "is a TaskVectorEnv; pass one gymnasium.Env"),
    "discrete actions": (lambda: GymnasiumTask(gymnasium.make("CartPole-v1")), "actions are a Discrete.*continuous actions"),
    "infinite actions": (lambda: gathered(actions=BIG), "infinite bounds.*TransformAction"),
    "a dictionary": (lambda: gathered(observations=Dict(x=BIG)), r"a Dict and.*FlattenObservation\(env\)"),
    "a number of states": (lambda: gathered(observations=Discrete(3)), r"a Discrete and.*FlattenObservation\(env\)"),
    "images": (lambda: gathered(observations=Box(0, 255, (8, 8, 3), np.uint8)), r"shape \(8, 8, 3\).*encode images"),
    "an environment of an environment": (lambda: TaskEnv(Sandbox()), "task is a Sandbox; pass an awmkit.AbstractTask"),
    "an environment of what JAX cannot trace": (lambda: TaskEnv(GymnasiumTask(Sandbox(), horizon=5)), "that JAX can trace"),
    "half a copy": (lambda: TaskVectorEnv(PENDULUM.task, 2.5), "num_envs=2.5; give a whole number"),
    "half an episode": (lambda: gathered(episodes=1.5), "episodes=1.5; give a whole number"),
    "a class for a policy": (lambda: gathered(MLPPolicy), "policy is the class MLPPolicy; make an instance"),
    "a policy that ignores t": (lambda: gathered(lambda s: s[:1]), r"cannot be called as policy\(state, t, \*, key\)"),
    "a legacy key": (
        lambda: collect(Sandbox(), PLAN, 1, horizon=5, key=jax.random.PRNGKey(0)),
        r"collect got the key uint32\[2\]",
    ),
    "no horizon": (lambda: GymnasiumTask(Sandbox()), "no time limit of its own; pass horizon="),
    "horizon 0": (lambda: gathered(horizon=0), "horizon is 0.*at least 1"),
    "no episodes": (lambda: gathered(episodes=0), "episodes=0; give a whole number of at least 1"),
    "an early end": (lambda: gathered(ends=3), "ended by step 2, before its 5 steps.*absorb=True.*terminate_when_unhealthy"),
    "observations of NaN": (lambda: gathered(breaks="observation"), "observation after step 2 holds nan"),
    "rewards of infinity": (lambda: gathered(breaks="reward"), "reward of step 2 holds inf"),
    "actions of NaN": (lambda: gathered(PLAN * np.nan), "action of step 0 holds nan"),
    "a plan of the wrong shape": (lambda: gathered(PLAN[:4]), r"shape \(4, 1\).*needs \(5, 1\)"),
    "a policy of the wrong size": (lambda: gathered(lambda s, t, key: jnp.zeros(2)), r"shape \(2,\).*needs \(1,\)"),
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
def test_misuse_is_one_clear_sentence(name):
    says(*MISUSES[name])


def test_the_fixes_that_the_errors_name_work():
    flat = FlattenObservation(Sandbox(observations=Dict(x=Box(-1.0, 1.0, (2,)), y=Box(-1.0, 1.0, (1,)))))
    assert GymnasiumTask(flat, horizon=5).state_size == 3
    bounded = TransformAction(Sandbox(actions=BIG), lambda a: a, Box(-2.0, 2.0, (1,)))
    np.testing.assert_allclose(np.diff(collect(bounded, PLAN + 0.5, 1, horizon=5).states[0, :, 0]), 1)
