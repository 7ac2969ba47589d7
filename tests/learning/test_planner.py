"""`Planner`: plans are optimal where the optimum is known, from every kind of model, by gradient and by sampling."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from misuse import says

from awmkit import (
    AbstractSearch,
    AWM,
    BPO,
    CEM,
    evaluate,
    GradientSearch,
    Newton,
    Paths,
    Planner,
    RewardModel,
    unroll,
    unroll_grad,
)
from awmkit.gym import collect, TaskEnv
from awmkit.tasks import LinearQuadratic

KEY = jax.random.key(0)
HORIZON = 5
TASK = LinearQuadratic(jnp.array([[1.0, 0.3], [0.0, 1.0]]), jnp.array([[0.0], [0.3]]), horizon=HORIZON)
START = jnp.array([0.5, -0.3])


class NewtonStep(AbstractSearch):
    """Exact where the return is quadratic in the actions."""

    def optimise(self, value, plan, *, key):
        flat = lambda x: value(x.reshape(plan.shape))
        # Of the least norm, because actions after the end of an episode have no effect.
        step = jnp.linalg.lstsq(jax.hessian(flat)(plan.ravel()), jax.grad(flat)(plan.ravel()))[0]
        return plan - step.reshape(plan.shape)


EXACT = NewtonStep()


@pytest.fixture(autouse=True)
def optax_promotes():
    with jax.numpy_dtype_promotion("standard"):
        yield


def reward(state, action, t):
    """Depends on the step, so that a planner that gets it wrong plans something else."""
    return (1 + jnp.asarray(t, state.dtype)) * TASK.reward(state, action, t)


PLANNER = Planner(TASK, reward, HORIZON, search=EXACT, until=HORIZON)


@eqx.filter_jit
def best_actions(state, t=0):
    """The optimal actions of the steps that are left, from the linear equations that they solve."""
    value = lambda actions: unroll(TASK, actions[:, None], state, HORIZON - t, reward=reward, t=t).returns()
    still = jnp.zeros(HORIZON - t)
    return -jnp.linalg.solve(jax.hessian(value)(still), jax.grad(value)(still))


def test_planning_again_at_every_step_follows_the_optimal_plan_to_the_end_of_the_episode():
    episode = unroll(TASK, PLANNER, START, HORIZON, reward=reward)
    np.testing.assert_allclose(episode.actions[:, 0], best_actions(START), atol=1e-6)


def test_a_window_of_an_awm_that_begins_at_any_step_gives_the_plan_of_the_simulator():
    awm = eqx.tree_at(lambda p: p.model, PLANNER, AWM.from_dynamics(TASK))
    np.testing.assert_allclose(awm(START, 2), best_actions(START, 2)[:1], atol=1e-6)
    np.testing.assert_allclose(PLANNER(START, 2), best_actions(START, 2)[:1], atol=1e-6)


def test_the_value_of_the_last_state_stands_for_the_steps_that_follow():
    value = lambda state, t: unroll(TASK, best_actions(state, 3)[:, None], state, 2, reward=reward, t=3).returns()
    planner = Planner(TASK, reward, 1, search=EXACT, terminal_value=lambda s, t: jnp.where(t == 3, value(s, t), jnp.nan))
    np.testing.assert_allclose(planner(START, 2), best_actions(START, 2)[:1], atol=1e-6)
    ended = dataclasses.replace(planner, until=3)
    np.testing.assert_allclose(ended(START, 2), 0, atol=1e-8)  # An action of the last step costs, and has no effect.


def test_a_decision_is_compiled_once_and_many_at_once_are_those_one_by_one():
    traces = []

    def counted(state, action, t):
        traces.append(t)
        return TASK.reward(state, action, t)

    planner = Planner(TASK, counted, 3, search=GradientSearch(iterations=2, starts=2))
    memory, states = planner.init(), np.random.default_rng(0).normal(size=(3, 2))
    one_by_one = []
    for t, state in enumerate(jnp.asarray(states)):
        plan, action = planner.step(memory, state, t)
        one_by_one.append(plan)
        assert action.shape == (1,)
        if t == 0:
            count = len(traces)
    assert len(traces) == count
    at_once, _ = jax.vmap(planner.step, in_axes=(None, 0, 0))(memory, states, jnp.arange(3))
    np.testing.assert_allclose(at_once, jnp.stack(one_by_one), atol=1e-9)


class Keep(AbstractSearch):
    def optimise(self, value, plan, *, key):
        return plan


def test_a_search_starts_from_the_last_plan_shifted_by_one_step():
    plan, action = Planner(TASK, reward, 3, search=Keep()).step(jnp.array([[0.1], [0.2], [0.3]]), START, 0)
    np.testing.assert_array_equal(plan, [[0.2], [0.3], [0.3]])
    assert action == 0.2


@pytest.mark.parametrize("search", [GradientSearch(iterations=40), CEM(iterations=10)])
def test_a_search_leaves_a_bound_and_never_returns_a_plan_that_is_not_finite(search):
    bound, key = jnp.ones((3, 2)), jax.random.key(1)
    optimise = lambda value: search.optimise(value, bound, key=key)
    assert jnp.mean(jnp.abs(optimise(lambda plan: -jnp.sum((plan + 1) ** 2)) + 1)) < 0.1
    broken = lambda plan: jnp.where(plan[0, 0] < 0.5, jnp.nan, -jnp.sum(plan**2))
    assert optimise(broken)[0, 0] >= 0.5
    assert (optimise(lambda plan: jnp.nan * jnp.sum(plan)) == bound).all()


def test_a_planner_has_no_derivative_and_says_so():
    for paths in (Paths(), BPO):
        says(lambda paths=paths: unroll_grad(TASK, PLANNER, START, 2, reward=reward, paths=paths), "which has no derivative")
    says(lambda: unroll(TASK, PLANNER, START, 2, method=Newton()), "which has no derivative")
    says(lambda: jax.jacfwd(lambda state: PLANNER(state, 0))(START), "which has no derivative")
    final = lambda state, policy: jnp.sum(unroll(TASK, policy, state, HORIZON, paths=BPO).states[-1])
    plan = unroll(TASK, PLANNER, START, HORIZON).actions
    np.testing.assert_allclose(jax.grad(final)(START, PLANNER), jax.grad(final)(START, plan), atol=1e-9)


def test_all_plans_of_a_decision_are_compared_in_the_same_futures():
    noisy = LinearQuadratic(TASK.A, TASK.B, noise=0.5, horizon=HORIZON)
    planner = Planner(noisy, reward, HORIZON, search=EXACT, samples=3, until=HORIZON)
    first, other = (planner(START, 0, key=k) for k in jax.random.split(KEY, 2))
    assert abs(first - other) > 1e-4  # The best plan for these futures is exact, and is not that for others.
    assert planner(START, 0) == planner(START, 0)
    says(lambda: Planner(noisy, reward, 2)(START, 0), r"LinearQuadratic, draws random numbers; pass Planner\(..., samples=8\)")


def test_a_planner_ends_no_episode_that_it_can_keep_going():
    alive = lambda state, action, t: 1 + 0 * state[0]
    ends = lambda state, action, t, next_state: next_state[1] > 0.1
    planner = Planner(TASK, alive, HORIZON, search=CEM(samples=16, elites=4, iterations=3), termination=ends)
    episode = unroll(TASK, planner, jnp.zeros(2), HORIZON, reward=alive, termination=ends)
    assert episode.length == HORIZON
    assert (unroll(TASK, planner, jnp.array([0.0, 0.3]), HORIZON, termination=ends).actions[0] < 0).all()


def test_a_planner_acts_in_evaluations_and_environments_as_it_does_in_an_unroll():
    task = LinearQuadratic(TASK.A, TASK.B, horizon=3)
    planner = Planner(task, task.reward, 2, search=GradientSearch(iterations=2, starts=2))
    start = lambda key: jax.vmap(task.reset)(jax.random.split(jax.random.split(key)[0], 2))
    returns = [unroll(task, planner, s, 3, reward=task.reward).returns() for s in start(KEY)]
    np.testing.assert_allclose(evaluate(task, planner, episodes=2, key=KEY).returns, returns, rtol=1e-9)
    episode = collect(TaskEnv(task, time_aware=False), planner, 1)
    again = unroll(task, planner, episode.states[0, 0], 3)
    np.testing.assert_allclose(episode.actions[0], again.actions, atol=1e-5)  # Observations are float32.


def test_a_reward_that_gives_a_gradient_search_no_direction_is_warned_of():
    with pytest.warns(UserWarning, match="The reward is a constant to the gradient"):
        Planner(TASK, lambda state, action, t: jnp.asarray(state[0] > 0, float), 2)
    Planner(TASK, lambda state, action, t: jnp.asarray(state[0] > 0, float), 2, search=CEM())
    Planner(TASK, RewardModel(2, 1, key=KEY), 2)


MISUSES = {
    "a model that is none": (lambda: Planner(jnp.sin, reward, 2), "Planner got the model"),
    "a horizon of 0": (lambda: Planner(TASK, reward, 0), "horizon=0"),
    "an optimiser as search": (lambda: Planner(TASK, reward, 2, search=optax.adam(0.1)), "pass an awmkit.GradientSearch"),
    "a value of one argument": (lambda: Planner(TASK, reward, 2, terminal_value=lambda s: 0.0), "terminal value"),
    "a reward of one argument": (lambda: Planner(TASK, lambda s: 0.0, 2), "reward"),
    "more elites than samples": (lambda: CEM(samples=4), "elites=8, samples=4"),
    "no starts": (lambda: GradientSearch(starts=0), "starts=0"),
    "no optimiser": (lambda: GradientSearch(0.1), "optimiser"),
    "the plan of another horizon": (lambda: PLANNER.step(jnp.zeros((2, 1)), START, 0), r"memory of shape \(5, 1\)"),
    "a state that is not finite": (lambda: PLANNER(START * jnp.nan, 0), "not finite"),
}


@pytest.mark.parametrize("name", MISUSES)
def test_a_misused_planner_says_what_to_do(name):
    says(*MISUSES[name])
