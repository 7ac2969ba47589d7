"""One bounce and credit assignment: closed forms, the saltation matrix, and the options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st

from awmkit import unroll, unroll_grad
from awmkit.tasks import CreditAssignment, OneBounce

throw = OneBounce(200)
value_of_throw = jax.jit(
    lambda a: unroll_grad(throw, jnp.zeros((200, 1)).at[0].set(a), throw.reset(jax.random.key(0)), 200, reward=throw.reward)
)


@given(a=st.floats(-1, 0.9))
def test_the_final_position_of_a_thrown_ball_and_its_gradient_are_known(a):
    """The ball covers v dt sum_k (1 - 10 dt)^k = 2 - a metres, 1 of them before the wall."""
    value, gradient = value_of_throw(a)
    np.testing.assert_allclose(value, -((-a - throw.goal) ** 2), atol=1e-7)
    np.testing.assert_allclose(gradient[0, 0], -2 * (a + throw.goal), atol=1e-7)
    assert not gradient[1:].any()


jacobian_of_step = jax.jit(jax.jacobian(lambda s: throw.step(None, s, jnp.zeros(1), 3)[1][:2]))


@given(x=st.floats(-1, 2), v=st.floats(-400, 30))
def test_the_jacobian_of_a_bounce_is_the_free_jacobian_times_the_saltation_matrix(x, v):
    """With f = (v, -c v) before the wall and (-v, c v) after it, DR + (f+ - DR f-) n' / (n' f-) = -I."""
    free = np.array([[1, throw.dt], [0, 1 - throw.friction * throw.dt]])
    bounced = x + throw.dt * v < throw.wall
    f_before, f_after, n = np.array([v, -throw.friction * v]), np.array([-v, throw.friction * v]), np.array([1.0, 0.0])
    reset = np.diag([1.0, -1.0])
    saltation = reset + np.outer(f_after - reset @ f_before, n) / (n @ f_before) if bounced else np.eye(2)
    np.testing.assert_allclose(jacobian_of_step(jnp.array([x, v, -1.0, 0.5]))[:, :2], saltation @ free, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"hidden": True, "phase": True}, {"distraction": 0.0, "scale": 3.0}])
def test_the_optimal_return_of_credit_assignment_is_known(options):
    task, key = CreditAssignment(20, **options), jax.random.key(1)
    chase = lambda state, t, *, key: jnp.where(t == 0, 0.5, jnp.clip(state[1], -1, 1))[None]
    episode = unroll(task, chase, task.reset(key), 20, reward=task.reward, key=key)
    y = episode.states[1:19, 1]
    missed = jnp.sum(jnp.maximum(jnp.abs(y) - 1, 0) ** 2) / 20
    np.testing.assert_allclose(episode.returns(), 10 - options.get("distraction", 1.0) * missed, rtol=1e-12)


def test_a_hidden_action_is_in_the_last_state_only_and_has_the_same_rewards():
    seen, hidden = CreditAssignment(20), CreditAssignment(20, hidden=True, phase=True)
    key, actions = jax.random.key(2), jnp.full((20, 1), 0.3)
    run = lambda task: unroll(task, actions, task.reset(key), 20, reward=task.reward, key=key)
    a, b = run(seen), run(hidden)
    np.testing.assert_allclose(a.rewards, b.rewards)
    assert not b.states[:19, 0].any() and b.states[19, 0] == 0.3 and (a.states[1:, 0] == 0.3).all()
    assert b.states[0, 2] == 1 and (b.states[1:, 2] == -1).all()
    gradients = [unroll_grad(t, actions, t.reset(key), 20, reward=t.reward, key=key)[1] for t in (seen, hidden)]
    np.testing.assert_allclose(*gradients)
    np.testing.assert_allclose(gradients[0][0, 0], -40 * (0.3 - 0.5))


def test_the_noise_of_rewards_has_its_standard_deviation():
    task, keys = CreditAssignment(50, reward_noise=0.5, distraction=0.0), jax.random.split(jax.random.key(0), 200)
    run = lambda key: unroll(task, jnp.zeros((50, 1)), task.reset(key), 50, reward=task.reward, key=key).rewards[:-1]
    np.testing.assert_allclose(jnp.std(jax.jit(jax.vmap(run))(keys)), 0.5, rtol=0.05)
