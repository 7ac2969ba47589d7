"""Collecting episodes from Gymnasium environments, and Gymnasium environments as tasks."""

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete
from gymnasium.wrappers import FlattenObservation, ReshapeObservation, TimeLimit, TransformAction
from hypothesis import given, strategies as st
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
    """Adds the action to a number. The episode ends after `ends` steps; step 2 returns NaN or infinity for `breaks`.

    `returns` replaces entries, by index, of what `step` returns; -1 replaces all of it, and -2 all that `reset` returns.
    """

    def __init__(self, ends=None, breaks=None, actions=None, observations=None, truncates=False, returns=None):
        self.ends, self.breaks, self.truncates, self.returns = ends, breaks, truncates, returns or {}
        self.action_space = Box(np.array([-1.0], np.float32), np.array([3.0], np.float32)) if actions is None else actions
        self.observation_space = Box(-np.inf, np.inf, (1,), np.float64) if observations is None else observations

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.x = 0, self.np_random.normal(size=1)
        return self.returns.get(-2, (self.x, {}))

    def step(self, action):
        self.x, self.t = self.x + action, self.t + 1
        broken = lambda what: self.breaks == what and self.t == 3
        observation = self.x * np.nan if broken("observation") else self.x
        ended = self.t == self.ends
        usual = observation, np.inf if broken("reward") else float(self.x[0]), ended, ended and self.truncates, {}
        return self.returns.get(-1, tuple(self.returns.get(i, value) for i, value in enumerate(usual)))


def test_an_early_end_gives_a_shorter_episode_and_says_whether_it_terminated():
    plan = np.linspace(-1, 1, 6)[:, None]
    env = Sandbox(ends=4)
    episode = collect(env, plan, 3, horizon=6)
    np.testing.assert_allclose(episode.states[:, :, 0] - episode.states[:, :1, 0], [np.cumsum([0, -1, -0.2, 0.6, 1.4])] * 3)
    np.testing.assert_allclose(episode.rewards, episode.states[:, 1:, 0])
    assert (episode.actions == plan[:4]).all() and env.t == 4  # No step after the end.
    assert (episode.length == 4).all() and episode.terminated.all()
    truncated = collect(TimeLimit(Sandbox(), 4), plan, 1, horizon=6)
    assert truncated.horizon == 4 and truncated.length is None and truncated.terminated is None
    both = collect(Sandbox(ends=4, truncates=True), plan, 3, horizon=6)  # A limit at a true end changes nothing.
    assert both.terminated.all()
    last = collect(Sandbox(ends=6), plan, 1, horizon=6)
    assert last.horizon == 6 and last.terminated.all()
    assert collect(Sandbox(), plan, 1, horizon=6).terminated is None


@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=6), ended=st.integers(0, 63), steps=st.integers(1, 30))
def test_episodes_of_any_lengths_are_padded_to_the_longest_and_steps_count_as_they_happen(lengths, ended, steps):
    ends = [bool(ended >> i & 1) for i in range(len(lengths))]
    play = lambda *args, **options: collect(Scripted(lengths, ends), PLAN, *args, horizon=5, progress=NoProgress(), **options)
    episodes = play(len(lengths), key=KEY)
    assert episodes.horizon == max(lengths) and np.sum(episodes.mask, axis=1).tolist() == lengths
    assert np.broadcast_to(False if episodes.terminated is None else episodes.terminated, len(ends)).tolist() == ends
    assert (episodes.length is None) == (min(lengths) == max(lengths) and not any(ends))
    assert np.asarray(episodes.rewards).sum(1).tolist() == lengths
    steps = min(steps, sum(lengths))
    enough = play(steps=steps, key=KEY)
    assert len(enough) == 1 + np.searchsorted(np.cumsum(lengths), steps)
    size = enough.horizon
    np.testing.assert_array_equal(enough.states, np.asarray(episodes.states)[: len(enough), : size + 1])


class Scripted(gymnasium.Env):
    """Episodes of the given lengths, some of which terminate and the others are truncated. Every step is worth 1."""

    observation_space, action_space = Box(-np.inf, np.inf, (1,), np.float64), Box(-1.0, 1.0, (1,))

    def __init__(self, lengths, ended):
        self.ends = iter(zip(lengths, ended, strict=True))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.end = 0, next(self.ends)
        return self.np_random.normal(size=1), {}

    def step(self, action):
        self.t += 1
        length, ended = self.end
        return self.np_random.normal(size=1), 1.0, self.t == length and ended, self.t == length and not ended, {}


class Linear(gymnasium.Env):
    """Linear dynamics. If `reuses`, it fills the same arrays at every step, as fast simulators do, and scribbles on its action."""

    def __init__(self, seed, size, dtype, reuses):
        self.A, self.B = np.random.default_rng(seed).normal(size=(2, size, size)) / size
        self.reuses, self.buffers = reuses, (np.zeros(size, dtype), np.zeros((), dtype), np.zeros((), bool), {"x": np.zeros(3)})
        self.observation_space, self.action_space = Box(-np.inf, np.inf, (size,), dtype), Box(-1.0, 2.0, (size,), dtype)

    def given(self, *values):
        if not self.reuses:
            return tuple(np.array(x, b.dtype) for x, b in zip(values, self.buffers, strict=False))
        for buffer, value in zip(self.buffers, values, strict=False):
            buffer[...] = value
        return self.buffers[: len(values)]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.normal(size=len(self.A))
        return *self.given(self.x), {}

    def step(self, action):
        self.x = self.A @ self.x + self.B @ action
        observation, reward, ended = self.given(self.x, self.x.sum(), False)
        if self.reuses:
            action[:] = np.nan
        return observation, reward, ended, ended, self.buffers[3]


@given(
    seed=st.integers(0, 99), size=st.integers(1, 20), dtype=st.sampled_from([np.float32, np.float64]), plays=st.integers(1, 3)
)
def test_an_environment_that_fills_its_arrays_again_gives_the_same_episodes_as_one_that_makes_new_ones(
    seed, size, dtype, plays
):
    plan = np.random.default_rng(seed).uniform(-1, 1, (4, size))
    kept = plan.copy()
    made, filled = (collect(Linear(seed, size, dtype, reuses), plan, plays, key=KEY, horizon=4) for reuses in (False, True))
    for new, old in zip(jax.tree.leaves(made), jax.tree.leaves(filled), strict=True):
        np.testing.assert_array_equal(new, old)
    assert (plan == kept).all() and len(np.unique(filled.states[0], axis=0)) == 5
    task = GymnasiumTask(Linear(seed, size, dtype, True), horizon=4)
    first = task.reset(KEY)
    before, _ = np.array(first), task.reset(jax.random.key(1))
    np.testing.assert_array_equal(first, before)


@st.composite
def boxes(draw):
    """A Box of one entry, with the bounds of any size, equal, or with one decimal as people write them."""
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    decimals = st.integers(-50, 50).map(lambda n: n / 10)
    largest = float(np.finfo(dtype).max)
    number = decimals | st.floats(-largest, largest, width=np.finfo(dtype).bits)
    low, high = sorted((draw(number), draw(number)))
    return Box(np.array([low], dtype), np.array([high], dtype), dtype=dtype)


class Recorder(gymnasium.Env):
    """Keeps the actions that it is given."""

    observation_space = Box(-1.0, 1.0, (1,))

    def __init__(self, box):
        self.action_space, self.received = box, []

    def reset(self, *, seed=None, options=None):
        return np.zeros(1), {}

    def step(self, action):
        self.received.append(action)
        return np.zeros(1), 0.0, False, False, {}


def received(box, plan):
    env = Recorder(box)
    collect(env, plan, 1, horizon=len(plan), progress=NoProgress())
    return np.stack(env.received)


@given(box=boxes(), action=st.floats(-1, 1))
def test_actions_are_mapped_into_their_box_and_1_and_minus_1_to_its_bounds(box, action):
    lowest, highest, inside, almost = received(box, np.array([[-1.0], [1.0], [action], [np.nextafter(1.0, 0)]]))
    assert lowest == box.low and highest == box.high and inside.dtype == box.dtype
    assert box.low <= inside <= box.high and box.low <= almost <= box.high
    low, high = (float(x[0]) / 2 for x in (box.low, box.high))
    expected = 2 * (low + (action + 1) / 2 * (high - low))
    unit = 4 * np.finfo(box.dtype).eps * max(-low, high, low, -high)
    assert abs(float(inside[0]) - expected) <= unit + np.finfo(box.dtype).smallest_normal


def test_actions_keep_all_bounds_of_one_decimal():
    bounds = (np.arange(-30, 30) / 10).astype(np.float32)
    for low in bounds:
        box = Box(np.full(60, low), np.maximum(bounds, low))
        lowest, highest, almost = received(box, np.array([-1.0, 1.0, 1 - 1e-9])[:, None] * np.ones(60))
        assert (lowest == box.low).all() and (highest == box.high).all() and almost in box


def test_the_horizon_is_the_tightest_limit_of_the_environment():
    env = TaskEnv(DrivenDoublePendulum(7), time_aware=False)
    assert GymnasiumTask(gymnasium.make("awmkit/OneBounce-v0", max_episode_steps=5)).horizon == 5
    assert GymnasiumTask(env).horizon == 7
    assert GymnasiumTask(TimeLimit(gymnasium.make("Pendulum-v1"), 1_000)).horizon == 200  # The inner limit is tighter.


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
        world = learn(AWM(3, 1, LSTM(8, key=keys[1]), key=keys[2]).normalised(episodes))
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
        "action space must be a Box.*got a Discrete; .*continuous actions.*TransformAction",
    ),
    "infinite actions": (lambda: gathered(actions=BIG), "bounds of the action space must be finite.*TransformAction"),
    "a dictionary": (
        lambda: gathered(observations=Dict(x=BIG)),
        r"observation space must be a Box.*got a Dict; flatten.*FlattenObservation\(env\)",
    ),
    "a number of states": (lambda: gathered(observations=Discrete(3)), r"got a Discrete; flatten.*FlattenObservation\(env\)"),
    "images": (
        lambda: gathered(observations=Box(0, 255, (8, 8, 3), np.uint8)),
        r"of uint8 of shape \(8, 8, 3\); encode the observations as vectors with .*TransformObservation.$",
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
    "episodes and steps": (
        lambda: collect(Sandbox(), PLAN, 1, steps=5, horizon=5),
        "collect got episodes=1 and steps=5; give the number of one of them",
    ),
    "neither episodes nor steps": (lambda: gathered(episodes=None), "episodes=None and steps=None; give the number of one"),
    "no steps": (lambda: collect(Sandbox(), PLAN, steps=0, horizon=5), "steps=0.*at least 1"),
    "a reward as an array": (
        lambda: gathered(returns={1: np.ones(1)}),
        r"reward of step 0 must be one real number, got float64\[1\]; fix",
    ),
    "no reward": (lambda: gathered(returns={1: None}), "reward of step 0 must be one real number, got None; fix"),
    "a reward as text": (lambda: gathered(returns={1: "1"}), "reward of step 0 must be one real number, got '1'; fix"),
    "a complex reward": (lambda: gathered(returns={1: 1j}), "must be one real number, got 1j; fix"),
    "an observation of another shape": (
        lambda: gathered(returns={0: np.zeros(2)}),
        r"observation after step 0 must be real numbers of shape \(1,\), got float64\[2\]; fix the environment or its space",
    ),
    "an observation of two dimensions": (
        lambda: gathered(returns={0: np.zeros((1, 1))}),
        r"of shape \(1,\), got float64\[1, 1\]",
    ),
    "an observation as text": (
        lambda: gathered(returns={0: np.array(["1"])}),
        r"real numbers of shape \(1,\), got <U1\[1\]",
    ),
    "rows of different lengths": (lambda: gathered(returns={0: [[1.0], [1.0, 2.0]]}), r"of shape \(1,\).*got a list"),
    "a dictionary in a box": (lambda: gathered(returns={0: {"x": 1.0}}), r"of shape \(1,\).*got a dict; fix"),
    "an end as an array": (
        lambda: gathered(returns={2: np.zeros(1, bool)}),
        r"terminated of step 0 must be True or False, got bool\[1\]; fix env.step",
    ),
    "no end": (lambda: gathered(returns={3: None}), "truncated of step 0 must be True or False, got None"),
    "the old reset": (
        lambda: gathered(returns={-2: np.zeros(2)}),
        r"env.reset must return \(observation, info\), got float64\[2\]; .*shimmy",
    ),
    "a reset of another shape": (
        lambda: GymnasiumTask(Sandbox(returns={-2: (np.zeros(2), {})}), horizon=5).reset(KEY),
        r"observation of the reset must be real numbers of shape \(1,\), got float64\[2\]",
    ),
    "the old step": (
        lambda: gathered(returns={-1: (np.zeros(1), 0.0, False, {})}),
        r"env.step must return \(observation, reward, terminated, truncated, info\), got a tuple of 4; .*shimmy",
    ),
    "actions beyond 1": (lambda: gathered(PLAN + 1.5), r"must return actions in \[-1, 1\].* got \[1.5\] at step 0; .*jnp.clip"),
    "whole numbers for actions": (
        lambda: gathered(actions=Box(0, 3, (1,), np.int64)),
        r"floating-point numbers.*got a Box of int64 of shape \(1,\); round numbers to them: .*numpy.rint",
    ),
    "a matrix of actions": (
        lambda: gathered(actions=Box(-1.0, 1.0, (2, 2))),
        r"got a Box of float32 of shape \(2, 2\); reshape them: ",
    ),
    "a scalar observation": (
        lambda: gathered(observations=Box(-1.0, 1.0, ())),
        r"of shape \(\); make it a vector of one entry with gymnasium.wrappers.ReshapeObservation\(env, \(1,\)\).$",
    ),
    "a matrix of observations": (lambda: gathered(observations=Box(-1.0, 1.0, (2, 2))), r"shape \(2, 2\); flatten the obs"),
    "observations of NaN": (lambda: gathered(breaks="observation"), "observation after step 2 is nan"),
    "rewards of infinity": (lambda: gathered(breaks="reward"), "reward of step 2 is inf"),
    "actions of NaN": (lambda: gathered(PLAN * np.nan), "action of step 0 is nan"),
    "a plan of the wrong shape": (lambda: gathered(PLAN[:4]), r"must be real numbers of shape \(5, 1\), got float64\[4, 1\]"),
    "a plan of text": (lambda: gathered(PLAN.astype(str)), r"must be real numbers of shape \(5, 1\), got <U32\[5, 1\]"),
    "a ragged plan": (lambda: gathered([[0.0], [0.0, 0.0]]), r"must be real numbers of shape \(5, 1\), got a list"),
    "a complex plan": (lambda: gathered(PLAN + 0j), r"must be real numbers of shape \(5, 1\), got complex128\[5, 1\]"),
    "a policy with random numbers of NumPy": (
        lambda: gathered(lambda s, t, *, key=None: np.random.default_rng().uniform(-1, 1, 1)),
        "other numbers each time that JAX traces it.*Draw random numbers from its argument key",
    ),
    "a policy of the wrong size": (
        lambda: gathered(lambda s, t, key: jnp.zeros(2)),
        r"must return an action of shape \(1,\), got \(2,\)",
    ),
    "an unknown reward": (
        lambda: GymnasiumTask(Sandbox(), horizon=5).reward(jnp.zeros(1), jnp.zeros(1), 0),
        r"no reward function; pass reward=RewardModel.*to train.*GymnasiumTask\(env, reward=...\)",
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
    whole = TransformAction(
        Sandbox(actions=Box(0, 3, (1,), np.int64)), lambda a: np.rint(a).astype(np.int64), Box(0.0, 3.0, (1,))
    )
    np.testing.assert_allclose(np.diff(collect(whole, PLAN + 0.5, 1, horizon=5).states[0, :, 0]), 2)
    square = TransformAction(Sandbox(actions=Box(-1.0, 1.0, (1, 1))), lambda a: a.reshape((1, 1))[0], Box(-1.0, 1.0, (1,)))
    np.testing.assert_allclose(np.diff(collect(square, PLAN + 0.5, 1, horizon=5).states[0, :, 0]), 0.5)
    chosen = TransformAction(Sandbox(actions=Discrete(2)), lambda a: int(a[0] > 0), Box(-1.0, 1.0, (1,)))
    np.testing.assert_allclose(np.diff(collect(chosen, PLAN + 0.5, 1, horizon=5).states[0, :, 0]), 1)
    scalar = Sandbox(observations=Box(-np.inf, np.inf, (), np.float64), returns={-2: (np.zeros(()), {}), 0: np.ones(())})
    assert collect(ReshapeObservation(scalar, (1,)), PLAN, 1, horizon=5).states.shape == (1, 6, 1)
    ones = jnp.ones(1, jnp.bfloat16)  # Arrays of JAX are numbers too, in any precision.
    episode = gathered(returns={-2: (ones, {}), 0: ones, 1: ones[0], 2: jnp.array(False), 3: np.bool_(False)})
    assert (episode.states == 1).all() and episode.states.dtype == episode.rewards.dtype == float
