"""Properties of every task in the conformance table: bounds, starts, reward and horizon."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from systems import DYNAMICS

import awmkit.tasks
from awmkit import AbstractTask, held_actions, MLPPolicy, pink_actions, uniform_actions, unroll
from awmkit.tasks import (
    AbstractControlProblem,
    Circles,
    CreditAssignment,
    Discretised,
    DoublePendulum,
    DrivenDoublePendulum,
    Henon,
    LinearQuadratic,
    Lorenz,
    MYRIAD,
    OneBounce,
    PartlyObserved,
)
from awmkit.tasks._ode import Parameter

TASKS = [name for name in DYNAMICS if isinstance(DYNAMICS[name](), AbstractTask)]
KEY = jax.random.key(0)


@pytest.mark.parametrize("name", TASKS)
def test_episodes_stay_within_the_bounds_and_the_return_has_a_gradient(name):
    task = DYNAMICS[name]()
    policy = MLPPolicy(task.state_size, task.action_size, width=8, key=KEY)

    @eqx.filter_jit
    def run(keys):
        def returns(policy, start):
            episode = unroll(task, policy, start, task.horizon, reward=task.reward, key=KEY)
            return episode.returns(), episode.states

        starts = jax.vmap(task.reset)(keys)
        gradient = eqx.filter_vmap(eqx.filter_value_and_grad(returns, has_aux=True), in_axes=(None, 0))
        return starts, gradient(policy, starts)

    starts, ((value, states), grads) = run(jax.random.split(KEY, 8))
    assert starts.shape == (8, task.state_size) and starts.dtype == jnp.float64 and task.horizon >= 1
    low, high = (jnp.array(bound) for bound in task.bounds)
    assert ((low <= states) & (states <= high)).all()
    assert value.shape == (8,) and jnp.isfinite(value).all()
    squares = sum(jnp.sum(x.reshape(8, -1) ** 2, axis=1) for x in jax.tree.leaves(grads))
    assert ((0 < squares) & jnp.isfinite(squares)).all()


def test_every_public_task_and_problem_can_be_made_without_arguments():
    for name in awmkit.tasks.__all__:
        cls = getattr(awmkit.tasks, name)
        if isinstance(cls, type) and issubclass(cls, AbstractTask) and cls not in (Discretised, PartlyObserved):
            assert cls().horizon >= 1
        elif isinstance(cls, type) and issubclass(cls, AbstractControlProblem) and cls is not AbstractControlProblem:
            assert Discretised(cls()).horizon == 100


@pytest.mark.parametrize(
    "draw, level, noise", [(uniform_actions, 0.0, 1 / 3**0.5), (held_actions, 1 / 3**0.5, 0.3), (pink_actions, 0.52, 0.39)]
)
def test_warm_up_actions_vary_between_episodes_and_steps_as_documented(draw, level, noise):
    plans = jax.jit(jax.vmap(lambda key: draw(key, (100, 2))))(jax.random.split(KEY, 500))
    assert plans.shape == (500, 100, 2) and (jnp.abs(plans) <= 1).all()
    means = plans.mean(axis=1)
    assert abs(means.std() - level) < 0.07 and abs((plans - means[:, None]).std() - noise) < 0.03
    assert abs(jnp.corrcoef(means.T)[0, 1]) < 0.15  # The entries are independent.


SINGULAR = {
    **{name: DYNAMICS[name] for name in TASKS},
    "driven pendulum, circles": lambda: DrivenDoublePendulum(3, pendulum=DoublePendulum(Circles(), substeps=1)),
    **{problem.__name__: lambda problem=problem: Discretised(problem(), 3) for problem in MYRIAD},
}
QUICK_SINGULAR = "driven pendulum, circles", "Lorenz", "CancerTreatment"


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in QUICK_SINGULAR)) for n in SINGULAR])
def test_derivatives_of_a_step_and_its_reward_are_finite_at_the_origin_and_at_the_bounds(name):
    task = SINGULAR[name]()
    low, high = (jnp.clip(jnp.array(bound), -2, 2) for bound in task.bounds)

    @jax.jit
    @jax.vmap
    def derivatives(state, action):
        step = lambda s, a: task.step(task.init(s, 3), s, a, 1, key=KEY)[1]
        rewards = [jax.grad(task.reward, (0, 1))(state, action, t) for t in (0, task.horizon - 1)]
        return rewards, jax.jacfwd(step, (0, 1))(state, action)

    origin = jnp.clip(jnp.zeros(task.state_size), *map(jnp.array, task.bounds))
    states = jnp.stack([origin, jnp.clip(origin + 1e-200, low, high), low, high, task.reset(KEY)])
    for action in (-1.0, 0.0, 1.0):
        found = derivatives(states, jnp.full((5, task.action_size), action))
        for x in jax.tree.leaves(found):
            assert jnp.isfinite(x).all()


@pytest.mark.parametrize("rho", [0.5, 1.0, 28.0])
def test_lorenz_starts_at_a_fixed_point_for_any_rho(rho):
    mean = lambda rho: Lorenz(rho=rho).reset(KEY) - jax.random.normal(KEY, (3,))
    x, y, z = mean(rho)
    assert np.allclose([x, x * (rho - z) - y, x * y - 8 / 3 * z], [y, 0, 0], atol=1e-12)
    assert jnp.isfinite(jax.jacfwd(mean)(rho)).all()


def parameters(module):
    """Return the value of each field that is annotated as a parameter, in `module` and in the modules inside it."""
    for field in dataclasses.fields(module):
        value = getattr(module, field.name)
        if isinstance(value, eqx.Module):
            yield from parameters(value)
        elif field.type in (Parameter, tuple[Parameter, Parameter], tuple[Parameter, ...]):
            yield from value if isinstance(value, tuple) else (value,)


WITH_PARAMETERS = {
    "Henon": Henon,
    "Lorenz": Lorenz,
    "OneBounce": lambda: OneBounce(3),
    "DrivenDoublePendulum": lambda: DrivenDoublePendulum(3, pendulum=DoublePendulum(substeps=1)),
    "CreditAssignment": lambda: CreditAssignment(3, reward_noise=0.1),
    "LinearQuadratic": lambda: LinearQuadratic(noise=0.1),
    **{problem.__name__: lambda problem=problem: Discretised(problem(), 3, noise=0.1) for problem in MYRIAD},
}
QUICK = "CreditAssignment", "LinearQuadratic", "CancerTreatment"


@pytest.mark.parametrize(
    "make",
    [
        lambda x: LinearQuadratic(noise=x),
        lambda x: CreditAssignment(3, distraction=x, scale=x, reward_noise=x),
        lambda x: OneBounce(3, start=x, wall=-x),
        lambda x: Discretised(MYRIAD[0](), 3, noise=x),
    ],
)
def test_parameters_may_be_traced_so_that_one_program_sweeps_over_them(make):
    after = lambda x: unroll(make(x), jnp.zeros((3, 1)), make(x).reset(KEY), 3, key=KEY).states
    sweep = jnp.array([0.1, 0.3])
    np.testing.assert_allclose(jax.vmap(after)(sweep), jnp.stack([after(float(x)) for x in sweep]), rtol=1e-10, atol=1e-12)


def test_no_parameter_of_a_task_is_a_python_number_which_filter_grad_would_skip():
    for name, make in WITH_PARAMETERS.items():
        found = list(parameters(make()))
        assert found and all(map(eqx.is_inexact_array, found)), name
    assert hash(Henon().reset) and jnp.isfinite(jax.jit(Henon().reset)(KEY)).all()  # jax.jit needs the hash.


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in QUICK)) for n in WITH_PARAMETERS])
def test_the_gradient_with_respect_to_the_parameters_of_a_task_equals_finite_differences(name):
    task = WITH_PARAMETERS[name]()

    def value(task):
        actions = 0.3 * jnp.ones((3, task.action_size))
        return unroll(task, actions, task.reset(KEY), 3, reward=task.reward, key=KEY).returns()

    @eqx.filter_jit
    def run(task, direction):
        moved = lambda h: value(eqx.apply_updates(task, jax.tree.map(lambda d: h * d, direction)))
        return eqx.filter_grad(value)(task), jax.vmap(moved)(jnp.array([-1e-5, 1e-5]))

    direction = jax.tree.map(lambda x: x * 0.1 + 0.01, eqx.filter(task, eqx.is_inexact_array))
    gradient, (below, above) = run(task, direction)
    slope = sum(jnp.sum(g * d) for g, d in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True))
    assert abs(slope) > 1e-4 and jnp.isclose(slope, (above - below) / 2e-5, rtol=1e-6)


@pytest.mark.parametrize("make", [Henon, lambda: Discretised(MYRIAD[0](), noise=0.1)])
def test_the_parameters_of_a_task_do_not_change_the_dtype_of_its_states(make):
    task, state = make(), make().reset(KEY).astype(jnp.float32)
    state = unroll(task, jnp.zeros((2, task.action_size), jnp.float32), state, 2, reward=task.reward, key=KEY).states
    assert state.dtype == jnp.float32
