"""Every task of the conformance table as a task: where it starts, what it pays and how long it lasts.

Apart from the tests of single tasks because these hold for any; how it moves is tested with all other dynamics.
"""

import jax
import jax.numpy as jnp
import pytest
from systems import DYNAMICS

from awmkit import AbstractTask, held_actions, MLPPolicy, uniform_actions, unroll, unroll_grad

TASKS = [name for name in DYNAMICS if isinstance(DYNAMICS[name](), AbstractTask)]
KEY = jax.random.key(0)


@pytest.mark.parametrize("name", TASKS)
def test_an_episode_starts_and_stays_within_its_bounds_and_its_own_reward_has_a_gradient(name):
    task = DYNAMICS[name]()
    low, high = (jnp.array(bound) for bound in task.bounds)
    starts = jax.vmap(task.reset)(jax.random.split(KEY, 8))
    assert starts.shape == (8, task.state_size) and starts.dtype == jnp.float64 and task.horizon >= 1
    policy = MLPPolicy(task.state_size, task.action_size, width=8, key=KEY)
    states = jax.vmap(lambda s: unroll(task, policy, s, task.horizon, key=KEY).states)(starts)
    assert ((low <= states) & (states <= high)).all()
    value, grads = unroll_grad(task, policy, starts[0], task.horizon, reward=task.reward, key=KEY)
    norm = jnp.linalg.norm(jnp.stack([jnp.linalg.norm(x) for x in jax.tree.leaves(grads)]))
    assert value.shape == () and jnp.isfinite(value) and 0 < norm < jnp.inf


@pytest.mark.parametrize("draw, level, noise", [(uniform_actions, 0.0, 1 / 3**0.5), (held_actions, 1 / 3**0.5, 0.3)])
def test_actions_of_a_warm_up_vary_by_episode_and_by_step_as_they_say(draw, level, noise):
    plans = jax.vmap(lambda key: draw(key, (100, 2)))(jax.random.split(KEY, 500))
    assert plans.shape == (500, 100, 2) and (jnp.abs(plans) <= 1).all()
    means = plans.mean(axis=1)
    assert abs(means.std() - level) < 0.07 and abs((plans - means[:, None]).std() - noise) < 0.03
    assert abs(jnp.corrcoef(means.T)[0, 1]) < 0.15  # Each entry by itself.
