"""Tasks as Gymnasium environments: Gymnasium's own checks, single against vectorised environments, and pictures."""

import copy
import inspect
import math
import pickle

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, strategies as st
from misuse import says

from awmkit import AbstractTask, NoProgress, unroll
from awmkit.gym import collect, GymnasiumTask, TaskEnv, TaskVectorEnv
from awmkit.gym._register import register_all
from awmkit.plot import STYLE
from awmkit.tasks import (
    CancerTreatment,
    CreditAssignment,
    Discretised,
    DrivenDoublePendulum,
    LinearQuadratic,
    MYRIAD,
    PassiveDoublePendulum,
)

IDS = sorted(id for id in gymnasium.registry if id.startswith("awmkit/"))
# MJX takes long to compile, so its environments are checked by slow tests.
MJX = [id for id in IDS if "MJX" in id]


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


def test_every_task_with_defaults_and_every_myriad_problem_is_registered_under_its_class_name():
    families = [AbstractTask, *AbstractTask.__subclasses__()]
    tasks = [cls for family in families for cls in family.__subclasses__() if cls.__module__.startswith("awmkit.tasks")]
    tasks = [cls for cls in tasks if not cls.__name__.startswith("Abstract")]
    needs = lambda cls: [p for p in inspect.signature(cls).parameters.values() if p.default is p.empty]
    assert {cls.__name__ for cls in tasks if needs(cls)} == {"Discretised", "PartlyObserved"}
    names = {cls.__name__ for cls in [*tasks, *MYRIAD] if not needs(cls)} | {"MJXPendulum", "MJXCartPole", "MJXDoublePendulum"}
    assert {f"awmkit/{name}-v0" for name in names} == set(IDS)


def assert_checked_and_drawn(id):
    env = gymnasium.make(id, render_mode="rgb_array")
    check_env(env.unwrapped, skip_render_check=True)
    env.reset(seed=0)
    frames = [env.render()]
    for _ in range(2):
        env.step(env.action_space.sample())
        frames.append(env.render())
    assert all(frame.shape == (256, 256, 3) and frame.dtype == np.uint8 for frame in frames)
    assert all((frame != after).any() for frame, after in zip(frames, frames[1:], strict=False))
    drawn, copied, loaded = env, copy.deepcopy(env), pickle.loads(pickle.dumps(env))
    assert (drawn.render() == copied.render()).all() and gymnasium.make(loaded.spec).spec == env.spec
    assert env.spec.to_json()


@pytest.mark.parametrize("id", sorted(set(IDS) - set(MJX)))
def test_gymnasiums_checker_accepts_every_environment_and_it_can_be_drawn_copied_and_pickled(id):
    assert_checked_and_drawn(id)


def test_gymnasiums_checker_accepts_an_environment_without_time():
    check_env(gymnasium.make("awmkit/DrivenDoublePendulum-v0", time_aware=False).unwrapped)


@pytest.mark.parametrize("id", ["awmkit/PassiveDoublePendulum-v0", "awmkit/Bioreactor-v0"])
def test_a_picture_does_not_depend_on_the_style_of_the_users_own_figures(id):
    pictures = []
    for style in ({}, STYLE):
        with matplotlib.rc_context(style):
            env = gymnasium.make(id, render_mode="rgb_array")
            env.reset(seed=0)
            pictures.append(env.render())
    assert (pictures[0] == pictures[1]).all()


@pytest.mark.slow
@pytest.mark.parametrize("id", MJX)
def test_gymnasiums_checker_accepts_the_mjx_environments_and_they_can_be_drawn_copied_and_pickled(id):
    assert_checked_and_drawn(id)


def assert_equal_over(steps, task, time_aware=True, copies=3):
    assert_equal_environments(
        steps,
        TaskVectorEnv(task, copies, time_aware=time_aware),
        SyncVectorEnv([lambda: TaskEnv(task, time_aware=time_aware)] * copies),
        task.horizon,
    )


def assert_equal_environments(steps, envs, reference, horizon):
    copies = envs.num_envs
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
        if step % 100 == 30:  # Reset one copy alone, then give one copy its own seed.
            options = lambda: {"reset_mask": np.arange(copies) == 1}
            np.testing.assert_allclose(envs.reset(options=options())[0], reference.reset(options=options())[0], rtol=1e-6)
        if step == 333:
            seeds = [None, 5, None]
            np.testing.assert_allclose(envs.reset(seed=seeds)[0], reference.reset(seed=seeds)[0], rtol=1e-6)
    assert ends > steps // (horizon + 1)


@pytest.mark.parametrize("time_aware", [True, False], ids=["time", "no time"])
def test_a_vector_environment_equals_gymnasiums_loop_over_copies_for_a_random_task(time_aware):
    assert_equal_over(400, carried(12), time_aware)


@pytest.mark.parametrize(
    "task",
    [DrivenDoublePendulum(40), CreditAssignment(20), Discretised(CancerTreatment(), 30, noise=0.1, distractors=2)],
    ids=lambda task: type(task).__name__,
)
def test_a_vector_environment_equals_gymnasiums_loop_over_copies(task):
    assert_equal_over(400, task)


@pytest.mark.parametrize("options", [{"max_episode_steps": 6}, {"max_episode_steps": 8, "time_aware": False}])
def test_a_vector_environment_with_a_time_limit_equals_gymnasiums_loop_over_limited_copies(options):
    make = lambda mode: gymnasium.make_vec("awmkit/OneBounce-v0", 3, vectorization_mode=mode, horizon=8, **options)
    assert_equal_environments(60, make("vector_entry_point"), make("sync"), options["max_episode_steps"])
    unlimited = gymnasium.make_vec("awmkit/OneBounce-v0", 1, horizon=8, max_episode_steps=-1)
    assert unlimited.max_episode_steps is None


@pytest.mark.parametrize("time_aware", [True, False], ids=["time", "no time"])
def test_every_one_of_100_episodes_ends_as_declared(time_aware):
    env = gymnasium.make("awmkit/CreditAssignment-v0", horizon=25, time_aware=time_aware)
    env.action_space.seed(0)
    observation, _ = env.reset(seed=0)
    lengths, length = [], 0
    for _ in range(2_500):
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
    assert lengths == [25] * 100


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


def test_a_seed_determines_all_episodes_and_a_reset_without_one_starts_a_different_episode():
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
    assert first._step.program is second._step.program is not third._step.program


def test_make_passes_its_arguments_to_the_task():
    env = gymnasium.make("awmkit/CancerTreatment-v0", horizon=200, time_aware=False, problem=CancerTreatment(r=0.5))
    assert env.unwrapped.task.horizon == 200 and env.unwrapped.task.problem.r == 0.5 and env.observation_space.shape == (1,)
    envs = gymnasium.make_vec("awmkit/CancerTreatment-v0", num_envs=5, horizon=7, noise=0.1)
    assert isinstance(envs, TaskVectorEnv) and envs.num_envs == 5 and envs.task.horizon == 7
    assert envs.reset(seed=0)[0].shape == (5, 2)
    assert gymnasium.make_vec("awmkit/OneBounce-v0", num_envs=2, vectorization_mode="sync").reset()[0].shape == (2, 5)


def test_the_picture_of_a_pendulum_shows_its_state():
    env = gymnasium.make("awmkit/DrivenDoublePendulum-v0", render_mode="rgb_array")
    assert env.metadata["render_fps"] == 20
    env.reset(options={"state": np.zeros(4)})
    hanging = env.render()
    assert hanging.shape == (256, 256, 3) and hanging.dtype == np.uint8
    assert hanging[155, 128].sum() < 400 < hanging[155, 140].sum()  # On the first rod, and beside it.
    dark = (hanging.astype(int).sum(axis=-1) < 600).nonzero()
    assert dark[0].mean() > 150 and abs(dark[1].mean() - 127.5) < 0.5  # Straight down from the middle.
    env.reset(options={"state": np.array([np.pi / 2, 0, np.pi / 2, 0])})
    across = env.render()
    dark = (across.astype(int).sum(axis=-1) < 600).nonzero()
    assert dark[1].mean() > 150 and abs(dark[0].mean() - 127.5) < 0.5  # To the right.
    envs = gymnasium.make_vec("awmkit/PassiveDoublePendulum-v0", num_envs=2, render_mode="rgb_array")
    envs.reset(options={"state": np.array([[0.0] * 4, [np.pi / 2, 0, np.pi / 2, 0]])})
    np.testing.assert_array_equal(envs.render(), [hanging, across])
    env.reset(options={"state": np.zeros(4)})
    env.unwrapped._film.append(np.full((1, 4), np.nan), np.zeros((1, 2)))
    assert env.unwrapped._film.picture(0, 1).shape == (256, 256, 3)  # A diverged state leaves the picture empty.


def test_the_picture_of_any_other_task_shows_the_running_episode_of_each_copy():
    task = LinearQuadratic()
    one = TaskEnv(task, render_mode="rgb_array")
    envs = TaskVectorEnv(task, 2, render_mode="rgb_array", max_episode_steps=3)
    starts = np.array([[0.0, 0.3], [0.0, -0.4]])
    envs.reset(options={"state": starts})
    actions = np.array([[[0.5], [-1.0]], [[0.1], [0.2]], [[-0.9], [0.7]]])
    for a in actions[:2]:
        envs.step(a)
    for i, picture in enumerate(envs.render()):
        one.reset(options={"state": starts[i]})
        for a in actions[:2]:
            one.step(a[i])
        np.testing.assert_array_equal(picture, one.render())
    before = envs.render()
    envs.reset(options={"reset_mask": np.array([False, True]), "state": starts})
    kept, restarted = envs.render()
    np.testing.assert_array_equal(kept, before[0])
    one.reset(options={"state": starts[1]})
    np.testing.assert_array_equal(restarted, one.render())
    envs.step(actions[2])
    envs.step(actions[2])  # The first copy starts its next episode.
    one.reset(options={"state": envs.state[0]})
    np.testing.assert_array_equal(envs.render()[0], one.render())


def test_a_render_mode_that_cannot_draw_warns_as_gymnasiums_do():
    with pytest.warns(UserWarning, match="HumanRendering wrapper is being applied"):
        env = gymnasium.make("awmkit/OneBounce-v0", render_mode="human")
    assert isinstance(env, gymnasium.wrappers.HumanRendering)
    with pytest.warns(UserWarning, match="'ascii' that is not in the possible render_modes"):
        env = gymnasium.make("awmkit/OneBounce-v0", render_mode="ascii")
    env.reset(seed=0)
    for silent in (env.unwrapped, TaskVectorEnv(PENDULUM.task, 2)):
        with pytest.warns(UserWarning, match='make the environment with render_mode="rgb_array"'):
            assert silent.render() is None
    env = gymnasium.make("awmkit/OneBounce-v0", render_mode="rgb_array_list")
    env.reset(seed=0)
    env.step(np.zeros(1, np.float32))
    assert len(env.render()) == 2


def test_registering_again_changes_nothing():
    spec = gymnasium.registry[IDS[0]]
    register_all()  # A warning of Gymnasium would fail the test.
    assert gymnasium.registry[IDS[0]] is spec


def test_the_metadata_of_one_environment_is_its_own():
    one, other = TaskEnv(SHORT), TaskEnv(SHORT)
    one.metadata["render_fps"], first = 7, other.metadata["render_fps"]
    one.metadata["render_modes"].append("none")
    assert first == TaskEnv(SHORT).metadata["render_fps"] != 7 and TaskEnv.metadata["render_modes"] == ["rgb_array"]


SHORT = LinearQuadratic(horizon=8)


def rows(env, steps, options, spoil):
    """The observations of a few steps under fixed actions. With `spoil`, the caller writes into all that it gave and got."""
    kept, returned = [], []
    for t in range(steps + 1):
        action = np.full(env.action_space.shape, np.sin(t))
        returned.append(env.reset(seed=3, options=options)[0] if t == 0 else env.step(action)[0])
        kept.append(np.array(returned[-1]))
        for array in (action, env.state, *returned, *options.values()) if spoil else ():
            array[...] = 7.0
    for array, copied in zip(returned, kept, strict=True):  # No later step has changed what was returned.
        assert spoil or (array == copied).all()
    return np.stack(kept)


@pytest.mark.parametrize("make", [TaskEnv, lambda task: TaskVectorEnv(task, 2)], ids=["one", "many"])
@pytest.mark.parametrize("options", [dict, lambda: {"state": np.full(2, 0.25)}], ids=["drawn", "given"])
def test_neither_the_environment_nor_its_user_can_change_the_others_arrays(make, options):
    clean, spoilt = (rows(make(SHORT), 7, options(), spoil) for spoil in (False, True))
    np.testing.assert_array_equal(clean, spoilt)


class Drift(LinearQuadratic):
    """A task of a user, who keeps parameters in a NumPy array."""

    pull: np.ndarray

    def __init__(self, pull):
        super().__init__(jnp.eye(2), jnp.ones((2, 1)), horizon=5)
        self.pull = pull

    def step(self, carry, state, action, t, *, key=None):
        return carry, state + jnp.asarray(self.pull, state.dtype)


def test_a_task_with_numpy_arrays_runs_and_the_environment_keeps_its_own_copy():
    pull = np.ones(2)
    env = TaskEnv(Drift(pull), time_aware=False)
    start = env.reset(seed=0)[0]
    pull[:] = 5
    np.testing.assert_allclose(env.step(np.zeros(1))[0], start + 1, rtol=1e-6)


@pytest.mark.parametrize("rendered", [None, "rgb_array"])
@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))], ids=["copy", "pickle"])
def test_a_copy_of_an_environment_goes_on_as_the_environment_does(rendered, many, duplicate):
    env = TaskVectorEnv(SHORT, 2, render_mode=rendered) if many else TaskEnv(SHORT, render_mode=rendered)
    new = duplicate(env)
    np.testing.assert_array_equal(env.reset(seed=1)[0], new.reset(seed=1)[0])
    action = np.full(env.action_space.shape, 0.3)
    env.step(action)
    new = duplicate(env)
    for _ in range(3):
        mine, its = env.step(action), new.step(action)
        np.testing.assert_array_equal(mine[0], its[0])
        np.testing.assert_array_equal(mine[1], its[1])
    if rendered and not many:
        np.testing.assert_array_equal(env.render(), new.render())
    np.testing.assert_array_equal(env.reset()[0], new.reset()[0])


@given(seed=st.integers(2**31, 2**130), jump=st.sampled_from([2**32, 2**63, 2**64, 2**96]))
def test_seeds_of_any_size_are_accepted_and_differ(seed, jump):
    env, envs = TaskEnv(SHORT), TaskVectorEnv(SHORT, 2)
    first = env.reset(seed=seed)[0]
    np.testing.assert_array_equal(first, TaskEnv(SHORT).reset(seed=seed)[0])
    assert (first != env.reset(seed=seed + jump)[0]).any()
    both = envs.reset(seed=seed)[0]
    np.testing.assert_allclose(both, [first, env.reset(seed=seed + 1)[0]], rtol=1e-6)
    np.testing.assert_array_equal(both, envs.reset(seed=[seed, seed + 1])[0])


def test_seeds_of_numpy_count_and_small_seeds_give_the_key_of_jax():
    env, envs = TaskEnv(SHORT), TaskVectorEnv(SHORT, 2)
    np.testing.assert_array_equal(env.reset(seed=np.int64(3))[0], env.reset(seed=3)[0])
    np.testing.assert_array_equal(envs.reset(seed=np.int64(3))[0], envs.reset(seed=np.arange(3, 5))[0])
    for seed in (0, 2**31, 2**40 + 7, 2**63 - 1):
        env.reset(seed=seed)
        np.testing.assert_allclose(env.state, SHORT.reset(jax.random.split(jax.random.key(seed), 3)[1]))


def test_seeds_that_differ_in_their_higher_bits_differ_in_single_precision():
    with jax.enable_x64(False):  # Here JAX drops all but 32 bits of a seed.
        starts = [TaskEnv(SHORT).reset(seed=seed)[0] for seed in (7, 2**32 + 7, 2**40 + 7, 2**64 + 7)]
    assert len(np.unique(starts, axis=0)) == 4


PENDULUM = TaskEnv(DrivenDoublePendulum(5))
PENDULUMS = TaskVectorEnv(DrivenDoublePendulum(5), 2)


def stepped(env, action, steps=1, reset=True):
    if reset:
        env.reset(seed=0)
    for _ in range(steps):
        env.step(np.asarray(action))


class Returns(LinearQuadratic):
    """A task of a user that may return the wrong shapes."""

    start: jax.Array
    after: jax.Array
    score: jax.Array

    def __init__(self, start=jnp.ones(2), after=jnp.ones(2), reward=jnp.ones(())):
        super().__init__(horizon=5)
        self.start, self.after, self.score = start, after, reward

    @property
    def bounds(self):
        return (-1.0,) * self.start.size, (1.0,) * self.start.size

    def reset(self, key):
        return self.start

    def step(self, carry, state, action, t, *, key=None):
        return carry, self.after

    def reward(self, state, action, t):
        return self.score


MISUSES = {
    "a step before the reset": (
        lambda: stepped(TaskEnv(PENDULUM.task), [0.0, 0], reset=False),
        r"call reset\(\) before the first",
    ),
    "a step after the end": (lambda: stepped(PENDULUM, [0.0, 0], 6), r"ended after 5 steps; call reset\(\)"),
    "an action of NaN": (lambda: stepped(PENDULUM, [0.0, np.nan]), r"must be finite, got nan at index \[1\]"),
    "an action of the wrong shape": (
        lambda: stepped(PENDULUM, [0.0]),
        r"must be real numbers of shape \(2,\), got float64\[1\]",
    ),
    "one action for many": (lambda: stepped(PENDULUMS, [0.0, 0]), r"must be real numbers of shape \(2, 2\), got float64\[2\]"),
    "NaN for one of many": (lambda: stepped(PENDULUMS, [[0.0, 0], [np.inf, 0]]), r"must be finite, got inf at index \[1, 0\]"),
    "many, never reset": (
        lambda: stepped(TaskVectorEnv(PENDULUM.task, 2), np.zeros((2, 2)), reset=False),
        r"call reset\(\) before the first",
    ),
    "no copies": (lambda: TaskVectorEnv(PENDULUM.task, 0), "num_envs=0"),
    "too few seeds": (lambda: PENDULUMS.reset(seed=[1]), "a list of 2, one for each copy; got a list of 1"),
    "a mask of integers": (
        lambda: PENDULUMS.reset(options={"reset_mask": np.array([1, 0])}),
        r"must be 2 booleans.*got int64\[2\]",
    ),
    "a mask before the first reset": (
        lambda: TaskVectorEnv(PENDULUM.task, 2).reset(options={"reset_mask": np.array([True, False])}),
        r"call reset\(\) without it",
    ),
    "a state of the wrong size": (
        lambda: PENDULUM.reset(options={"state": np.zeros(3)}),
        r"must be real numbers of shape \(4,\), got float64\[3\]; give a state",
    ),
    "a state of text": (
        lambda: PENDULUM.reset(options={"state": "up"}),
        r"real numbers of shape \(4,\), got 'up'; give a state",
    ),
    "a state of NaN": (
        lambda: PENDULUM.reset(options={"state": np.full(4, np.nan)}),
        r"must be finite, got \[nan nan nan nan\]",
    ),
    "an action of text": (
        lambda: stepped(PENDULUM, ["0", "0"]),
        r"must be real numbers of shape \(2,\), got <U1\[2\]; check the policy",
    ),
    "a ragged action": (
        lambda: PENDULUMS.step([[0.0, 0.0], [0.0]]),
        r"must be real numbers of shape \(2, 2\), got a list",
    ),
    "a negative seed": (lambda: PENDULUM.reset(seed=-1), "seed must be a whole number of at least 0, or None, got -1"),
    "half a seed": (lambda: PENDULUMS.reset(seed=[1, 0.5]), "seed must be a whole number of at least 0, or None, got 0.5"),
    "a limit of nothing": (lambda: TaskVectorEnv(PENDULUM.task, 2, max_episode_steps=0), "max_episode_steps=0"),
    "a reward of one entry": (
        lambda: TaskVectorEnv(Returns(reward=jnp.ones(1)), 2).reset() and stepped(TaskEnv(Returns(reward=jnp.ones(1))), [0.0]),
        r"Returns.reward returned float64\[1\]; it must be one number",
    ),
    "a state of another shape": (
        lambda: stepped(TaskEnv(Returns(after=jnp.ones(1))), [0.0]),
        r"Returns.step returned the state as float64\[1\] for a state given as float64\[2\]",
    ),
    "bounds of another shape": (
        lambda: TaskEnv(Returns(start=jnp.ones(3))),
        r"A bound of Returns.bounds must be real numbers of shape \(2,\), got a tuple; give one number for each entry",
    ),
    "a start of another shape": (
        lambda: TaskEnv(Returns(start=jnp.ones((1, 2)))).reset(),
        r"Returns.reset returned float64\[1, 2\]; it must be one state",
    ),
    "an environment of an environment": (
        lambda: TaskEnv(gymnasium.make("Pendulum-v1").unwrapped),
        "must be an awmkit.AbstractTask that JAX can trace.*got a Pendulum",
    ),
    "an environment of what JAX cannot trace": (
        lambda: TaskEnv(GymnasiumTask(gymnasium.make("Pendulum-v1"))),
        "that JAX can trace.*got a GymnasiumTask",
    ),
    "half a copy": (lambda: TaskVectorEnv(PENDULUM.task, 2.5), "num_envs=2.5"),
}


@pytest.mark.parametrize("name", MISUSES)
def test_misuse_raises_one_clear_sentence(name):
    says(*MISUSES[name])


class Signed(AbstractTask):
    """s_{t+1} = s_t + the signs of two numbers."""

    leaf: float
    static: float = eqx.field(static=True)
    horizon: int = eqx.field(static=True, default=1)
    state_size: int = eqx.field(static=True, default=1)
    action_size: int = eqx.field(static=True, default=1)

    def init(self, state, horizon):
        return None

    def step(self, carry, state, action, t, *, key=None):
        return carry, state + math.copysign(1.0, self.leaf) + math.copysign(2.0, self.static)

    def reward(self, state, action, t):
        return jnp.sum(state)

    def reset(self, key):
        return jnp.zeros(1)


def test_tasks_whose_numbers_are_equal_but_not_the_same_do_not_share_a_program():
    for leaf, static, total in ((0.0, 0.0, 3.0), (-0.0, 0.0, 1.0), (0.0, -0.0, -1.0)):
        env = TaskEnv(Signed(leaf, static))
        env.reset(seed=0)
        assert env.step(np.zeros(1))[0][0] == total


class Drifting(AbstractTask):
    """Moves by the action. The episode ends beyond 1; every step is worth 1."""

    horizon: int = eqx.field(static=True, default=8)
    state_size: int = eqx.field(static=True, default=1)
    action_size: int = eqx.field(static=True, default=1)

    def step(self, carry, state, action, t, *, key=None):
        return carry, state + action

    def reward(self, state, action, t):
        return 1 + 0 * state[0]

    def reset(self, key):
        return 0.1 * jax.random.uniform(key, (1,))

    def terminates(self, state, action, t, next_state):
        return next_state[0] > 1


class Risky(Drifting):
    def terminates(self, state, action, t, next_state):
        return jnp.where(next_state[0] > 1, 1.0, 0.0)


@pytest.mark.parametrize("task", [Drifting(), Risky()], ids=["hard", "a probability"])
@pytest.mark.parametrize("time_aware", [True, False])
def test_an_environment_terminates_where_its_task_does_and_not_at_a_time_limit(task, time_aware):
    env, envs = TaskEnv(task, time_aware=time_aware), TaskVectorEnv(task, 2, time_aware=time_aware)
    env.reset(seed=0)
    flags = [env.step(np.array([0.5]))[2:4] for _ in range(2)]
    assert flags == [(False, False), (True, False)]
    with pytest.raises(ValueError, match="The episode ended after 2 steps; call reset"):
        env.step(np.array([0.5]))
    env.reset()
    assert [env.step(np.array([0.0]))[2:4] for _ in range(8)][-1] == (time_aware, not time_aware)
    envs.reset(seed=0)
    steps = [envs.step(np.array([[0.5], [0.0]])) for _ in range(4)]
    assert [s[2].tolist() for s in steps] == [[False, False], [True, False], [False, False], [False, False]]
    assert not any(s[3].any() for s in steps) and steps[2][1].tolist() == [0, 1]  # The copy starts its next episode.
    assert steps[3][0][0, 0] == pytest.approx(steps[2][0][0, 0] + 0.5)
    check_env(TaskEnv(task, time_aware=time_aware), skip_render_check=True)


class Noisy(Drifting):
    """Moves by noise. The lower the next state, the less likely the episode goes on."""

    def step(self, carry, state, action, t, *, key=None):
        return carry, state + action + jax.random.normal(jax.random.split(key)[1], (1,))

    def terminates(self, state, action, t, next_state):
        return jax.nn.sigmoid(2 * next_state[0] - 1)


def test_ends_are_drawn_with_the_probability_of_surviving_an_unroll_and_not_with_the_noise_of_the_step():
    task, n = Noisy(), 4_000
    envs = TaskVectorEnv(task, n, time_aware=False)
    envs.reset(seed=0, options={"state": np.zeros(1)})
    alive, shares = np.ones(n, bool), []
    for _ in range(3):
        shares.append(alive.mean())
        alive &= ~envs.step(np.zeros((n, 1)))[2]
    run = lambda key: unroll(task, jnp.zeros((3, 1)), jnp.zeros(1), 3, key=key).survival
    survival = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), n)).mean(axis=0)
    np.testing.assert_allclose(shares, survival, atol=0.03)
    assert shares[0] == 1 and shares[2] < 0.6


@given(plan=st.lists(st.floats(-1, 1), min_size=8, max_size=8))
def test_flags_and_rewards_of_an_environment_are_those_of_an_unroll(plan):
    task, plan = Drifting(), np.array(plan)[:, None]
    env = TaskEnv(task, time_aware=False)
    env.reset(seed=0)
    trajectory = unroll(task, jnp.asarray(plan), jnp.asarray(env.state), 8, reward=task.reward)
    steps = [env.step(action)[1:4] for action in plan[: int(trajectory.length)]]
    np.testing.assert_allclose([step[0] for step in steps], trajectory.rewards[: len(steps)])
    assert not any(terminated or truncated for _, terminated, truncated in steps[:-1])
    _, terminated, truncated = steps[-1]
    assert terminated == trajectory.terminated and (terminated or truncated)


def test_a_task_that_ends_early_gives_the_same_episodes_by_an_unroll_and_by_its_environment():
    task, plan = Drifting(), np.full((8, 1), 0.3)
    env = TaskEnv(task, time_aware=False)
    episode = collect(env, plan, 1, key=jax.random.key(0), progress=NoProgress())[0]
    trajectory = unroll(task, jnp.asarray(plan), jnp.asarray(episode.states[0]), 8, reward=task.reward)
    assert episode.horizon == trajectory.length == 4 and episode.terminated and trajectory.terminated
    np.testing.assert_allclose(episode.states, trajectory.states[:5], rtol=1e-6)
