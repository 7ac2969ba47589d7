"""Properties of every task in the conformance table: bounds, starts, reward and horizon."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from systems import DYNAMICS

import awmkit.tasks
from awmkit import AbstractTask, held_actions, MLPPolicy, uniform_actions, unroll
from awmkit.tasks import AbstractControlProblem, Discretised

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
        if isinstance(cls, type) and issubclass(cls, AbstractTask) and cls is not Discretised:
            assert cls().horizon >= 1
        elif isinstance(cls, type) and issubclass(cls, AbstractControlProblem) and cls is not AbstractControlProblem:
            assert Discretised(cls()).horizon == 100


@pytest.mark.parametrize("draw, level, noise", [(uniform_actions, 0.0, 1 / 3**0.5), (held_actions, 1 / 3**0.5, 0.3)])
def test_warm_up_actions_vary_between_episodes_and_steps_as_documented(draw, level, noise):
    plans = jax.jit(jax.vmap(lambda key: draw(key, (100, 2))))(jax.random.split(KEY, 500))
    assert plans.shape == (500, 100, 2) and (jnp.abs(plans) <= 1).all()
    means = plans.mean(axis=1)
    assert abs(means.std() - level) < 0.07 and abs((plans - means[:, None]).std() - noise) < 0.03
    assert abs(jnp.corrcoef(means.T)[0, 1]) < 0.15  # The entries are independent.
