"""Unrolls of episodes that end early: hard rules, which stop rewards and gradients, and smooth ones, which weigh them."""

import functools
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st

from awmkit import AbstractTask, AWM, LSTM, MLPPolicy, Newton, Parallel, Sequential, unroll, unroll_grad
from awmkit.tasks import spiral

KEY = jax.random.key(0)
SYSTEM = spiral(1.2, 0.7)
POLICY = MLPPolicy(2, SYSTEM.action_size, width=4, key=KEY)
START = jnp.array([0.3, 0.2])


def far(state, action, t, next_state):
    return jnp.sum(next_state**2) > 1


def likely_far(state, action, t, next_state):
    return jax.nn.sigmoid(2 * (jnp.sum(next_state**2) - 1) + 0.3 * jnp.sum(action))


def quadratic(state, action, t, next_state):
    return jnp.sum(next_state**2) * (1 + 0.1 * jnp.asarray(t, state.dtype)) + jnp.sum(jnp.sin(action))


class Falling(AbstractTask):
    """Falls from a height. The episode ends below 0, from where the next state and the reward are NaN."""

    horizon: int = eqx.field(static=True, default=9)
    state_size: int = eqx.field(static=True, default=1)
    action_size: int = eqx.field(static=True, default=1)

    def step(self, carry, state, action, t, *, key=None):
        return carry, jnp.sqrt(state) * state - 0.1 + 0.01 * action

    def reward(self, state, action, t, next_state=None):
        return jnp.sqrt(state[0]) + action[0] * state[0]

    def reset(self, key):
        return jnp.ones(1)

    def terminates(self, state, action, t, next_state):
        return next_state[0] < 0


class Endless(Falling):
    terminates = None


FALLING, HEIGHT = MLPPolicy(1, 1, width=4, key=KEY), jnp.array([0.9])


def assert_close(tree, other, rtol):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol), tree, other)


METHODS = {
    "Sequential": Sequential(),
    "nested": Sequential("nested"),
    "Newton": Newton(),
    "Newton from a start": Newton(start=jnp.full((10, 1), 0.8)),
}


@pytest.mark.parametrize("name", METHODS)
def test_nothing_after_a_hard_end_reaches_values_or_gradients_not_even_nan(name):
    task, method = Falling(), METHODS[name]
    episode = unroll(task, FALLING, HEIGHT, 9, reward=task.reward, method=method)
    n = int(episode.length)
    assert 1 < n < 7 and episode.terminated
    endless = unroll(Endless(), FALLING, HEIGHT, 9, reward=task.reward)
    assert np.isnan(endless.states[-1]).all() and np.isnan(endless.rewards[n])
    np.testing.assert_allclose(episode.states[: n + 1], endless.states[: n + 1], rtol=1e-12)
    np.testing.assert_allclose(episode.rewards[:n], endless.rewards[:n], rtol=1e-12)
    assert (episode.states[n:] == episode.states[n]).all()
    assert (episode.rewards[n:] == 0).all() and (episode.actions[n:] == 0).all()
    value, grads = unroll_grad(task, FALLING, HEIGHT, 9, reward=task.reward, method=method, discount=0.9)
    shorter, expected = unroll_grad(Endless(), FALLING, HEIGHT, n, reward=task.reward, discount=0.9)
    assert_close((value, grads), (shorter, expected), 1e-10)
    assert sum(float(jnp.abs(g).sum()) for g in jax.tree.leaves(grads)) > 0.1


def test_actions_after_a_hard_end_have_a_gradient_of_exactly_zero():
    plan = jnp.linspace(-0.5, 0.5, 9)[:, None]
    task = Falling()
    length = int(unroll(task, plan, HEIGHT, 9).length)
    for method in Sequential(), Newton():
        value, gradient = unroll_grad(task, plan, HEIGHT, 9, reward=task.reward, method=method, check=True)
        assert np.isfinite(value) and (gradient[:length] != 0).all() and (gradient[length:] == 0).all()
    forward = jax.jacfwd(lambda plan: unroll(task, plan, HEIGHT, 9, reward=task.reward).returns())(plan)
    np.testing.assert_allclose(forward, gradient, rtol=1e-10)


class Remembering(Falling):
    """`Falling` whose state is in its carry, as that of a simulator may be."""

    def init(self, state, horizon):
        return state, jnp.asarray(0)

    def step(self, carry, state, action, t, *, key=None):
        after = jnp.sqrt(carry[0]) * carry[0] - 0.1 + 0.01 * action
        return (after, carry[1] + 1), after


@pytest.mark.parametrize("method", [Sequential(), Newton()])
def test_what_a_dynamics_remembers_after_a_hard_end_reaches_no_gradient(method):
    plan = jnp.linspace(-0.5, 0.5, 9)[:, None]
    given = [unroll_grad(task, plan, HEIGHT, 9, reward=task.reward, method=method) for task in (Falling(), Remembering())]
    assert_close(*given, 1e-10)
    assert np.isfinite(given[1][1]).all()


def test_a_probability_that_reaches_1_ends_an_episode_like_a_hard_rule():
    fall, plan = Endless(), jnp.linspace(-0.5, 0.5, 9)[:, None]
    surely = lambda state, action, t, next_state: jax.nn.sigmoid(-1e4 * next_state[0])
    play = lambda rule: unroll_grad(fall, plan, HEIGHT, 9, reward=fall.reward, termination=rule)
    hard = play(lambda state, action, t, next_state: next_state[0] < 0)
    assert_close(play(surely), hard, 1e-9)
    # Undefined where the episode has ended.
    undefined = lambda state, action, t, next_state: jnp.clip(1 - 1e4 * next_state[0] * jnp.sqrt(state[0]), 0, 1)
    assert_close(play(undefined), hard, 1e-9)


class Marked(Endless):
    """A task whose methods have the forms that the errors suggest: static, and without the next state."""

    @staticmethod
    def reward(state, action, t):
        return state[0]

    def terminates(self, state, action, t):
        return t == 3


def test_a_reward_may_be_static_and_a_rule_need_not_read_the_next_state():
    episode = unroll(Marked(), jnp.zeros((9, 1)), HEIGHT, 9, reward=Marked().reward)
    assert episode.length == 4 and episode.terminated and episode.rewards[0] == HEIGHT[0]


def test_a_rule_is_given_the_step_and_the_last_step_is_rewarded():
    rule = lambda state, action, t: t == 13
    play = lambda **options: unroll(SYSTEM, POLICY, START, 6, reward=quadratic, termination=rule, **options)
    episode, whole = play(t=10), play()
    assert episode.length == 4 and episode.rewards[3] != 0 and episode.rewards[4] == 0
    assert whole.length == 6 and not whole.terminated and (whole.rewards != 0).all()
    assert (whole.states == unroll(SYSTEM, POLICY, START, 6).states).all()


def test_a_world_model_that_takes_all_steps_at_once_ends_like_any_other():
    model = AWM(2, 1, LSTM(4, key=KEY), key=KEY)
    policy = MLPPolicy(2, 1, width=4, key=KEY)
    whole = unroll(model, policy, START, 6, reward=quadratic)
    bound = jnp.sort(whole.states[1:, 0])[-2]
    above = lambda state, action, t, next_state: next_state[0] >= bound
    for method in Parallel(), Sequential():
        episode = unroll(model, policy, START, 6, reward=quadratic, termination=above, method=method)
        n = int(episode.length)
        assert 1 <= n < 6 and episode.terminated
        np.testing.assert_allclose(episode.rewards, jnp.where(jnp.arange(6) < n, whole.rewards, 0), rtol=1e-10)
        value, grads = unroll_grad(model, policy, START, 6, reward=quadratic, termination=above, method=method)
        assert_close((value, grads), unroll_grad(model, policy, START, n, reward=quadratic), 1e-9)


def test_a_smooth_rule_weighs_each_reward_by_the_probability_of_having_survived():
    episode = unroll(SYSTEM, POLICY, START, 6, reward=quadratic, termination=likely_far)
    plain = unroll(SYSTEM, POLICY, START, 6, reward=quadratic)
    inputs = plain.states[:-1], plain.actions, jnp.arange(6), plain.states[1:]
    ends = jax.vmap(likely_far)(*inputs)
    survival = [np.prod(1 - ends[:t]) for t in range(6)]
    np.testing.assert_allclose(episode.survival, survival, rtol=1e-12)
    assert (episode.states == plain.states).all() and (episode.rewards == plain.rewards).all() and episode.length is None
    np.testing.assert_allclose(episode.returns(0.9), sum(0.9**t * survival[t] * plain.rewards[t] for t in range(6)), rtol=1e-12)
    certain = unroll(SYSTEM, POLICY, START, 6, reward=quadratic, termination=lambda s, a, t: jnp.where(t == 2, 1.0, 0.0))
    np.testing.assert_array_equal(certain.survival, [1, 1, 1, 0, 0, 0])


@functools.partial(jax.jit, static_argnums=3)
def survived(flat, start, discount, method=None):
    plan = flat.reshape(6, -1)
    return unroll(
        SYSTEM, plan, start, 6, reward=lambda s, a, t: 1 + 0 * jnp.sum(s), termination=likely_far, method=method
    ).returns(discount)


@given(seed=st.integers(0, 99), discount=st.floats(0.5, 1))
def test_the_gradient_of_the_survival_weighted_return_equals_finite_differences(seed, discount):
    keys = jax.random.split(jax.random.key(seed), 3)
    flat = 0.4 * jax.random.normal(keys[0], (6 * SYSTEM.action_size,))
    start, direction = 0.4 * jax.random.normal(keys[1], (2,)), jax.random.normal(keys[2], flat.shape)
    along = [survived(flat + h * direction, start, discount) for h in (1e-5, -1e-5)]
    difference = (along[0] - along[1]) / 2e-5
    value, gradient = gradient_of_survival(flat, start, discount)
    np.testing.assert_allclose(jnp.vdot(gradient, direction), difference, rtol=1e-6, atol=1e-9)
    assert abs(float(difference)) > 1e-6  # A reward of 1 has a gradient only by survival.
    assert_close((value, gradient), gradient_of_survival(flat, start, discount, Newton()), 1e-9)


@functools.partial(jax.jit, static_argnums=3)
def gradient_of_survival(flat, start, discount, method=None):
    return jax.value_and_grad(survived)(flat, start, discount, method)


@pytest.mark.parametrize(("dtype", "hard"), [(jnp.float32, True), (jnp.float64, False)])
def test_ends_keep_the_dtype_and_compose_with_jit_and_vmap(dtype, hard):
    cast = lambda tree: jax.tree.map(lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x, tree)
    system, policy, starts = cast(SYSTEM), cast(POLICY), jnp.array([[0.3, 0.2], [0.05, 0.0], [0.9, 0.3]], dtype)
    rule = far if hard else likely_far
    play = lambda s: unroll(system, policy, s, 9, reward=quadratic, termination=rule)
    learn = lambda s: unroll_grad(system, policy, s, 9, reward=quadratic, termination=rule)
    episodes, (values, grads) = eqx.filter_jit(lambda s: (jax.vmap(play)(s), jax.vmap(learn)(s)))(starts)
    rows = [(play(s), *learn(s)) for s in starts]
    assert_close(
        (episodes, values, grads), jax.tree.map(lambda *x: jnp.stack(x), *rows), 1e-4 if dtype == jnp.float32 else 1e-9
    )
    assert episodes.rewards.dtype == episodes.states.dtype == values.dtype == dtype
    np.testing.assert_allclose(values, episodes.returns(), rtol=1e-5)
    if hard:
        assert len(set(episodes.length.tolist())) == 3 and episodes.terminated.tolist() == [True, False, True]
    else:
        assert episodes.survival.dtype == dtype and episodes.survival.shape == (3, 9)


def test_a_constant_reward_is_reported_unless_a_smooth_rule_makes_its_return_depend_on_the_policy():
    alive = lambda state, action, t: jnp.ones((), state.dtype)
    learn = lambda rule: unroll_grad(SYSTEM, POLICY, START, 6, reward=alive, termination=rule, check=True)[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        grads = learn(likely_far)
    assert sum(float(jnp.abs(g).sum()) for g in jax.tree.leaves(grads)) > 0.1
    for rule in far, lambda state, action, t: jnp.full((), 0.1):
        with pytest.warns(UserWarning, match="reward is a constant to the gradient"):
            grads = unroll_grad(SYSTEM, POLICY, START, 6, reward=alive, termination=rule)[1]
        assert all((g == 0).all() for g in jax.tree.leaves(grads))


def test_check_names_the_step_of_an_episode_that_is_not_finite_before_its_end():
    task = Falling()
    with pytest.raises(RuntimeError, match="at step t=[0-9], the reward"):
        unroll_grad(task, FALLING, HEIGHT, 9, reward=task.reward, termination=lambda s, a, t: t == 8, check=True)
    value, _ = unroll_grad(task, FALLING, HEIGHT, 9, reward=task.reward, check=True)
    assert np.isfinite(value)
