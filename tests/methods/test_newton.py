"""`Newton`: the number of sweeps, where they start, carries of every kind, overflow, and errors.

tests/core/test_gradients.py compares it with `Sequential` and with finite differences on every dynamics of the table.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st
from jax import lax
from jaxtyping import Array
from systems import DYNAMICS, POLICIES, reward

from awmkit import AbstractDynamics, MLPPolicy, Newton, Paths, Sequential, unroll, unroll_grad
from awmkit.tasks import Henon, LinearQuadratic, spiral

LINEAR = lambda state, t, *, key=None: 0.1 * state[:1]


class Driven(AbstractDynamics):
    """A contraction with everything that a carry may have: a key, a counter, a constant, single and double precision."""

    rate: Array
    state_size: int = 2
    action_size: int = 1

    def init(self, state, horizon):
        return {"key": jax.random.key(3), "count": 0, "first": state, "memory": state[:1].astype(jnp.float32)}

    def step(self, carry, state, action, t, *, key=None):
        key, of_step = jax.random.split(carry["key"])
        drive = 0.1 * jax.random.normal(of_step, (2,)) + jnp.sin(jnp.asarray(carry["count"], float))
        state = self.rate * jnp.tanh(state[::-1]) + 0.1 * carry["first"] + carry["memory"].astype(float) + drive + action
        return {**carry, "key": key, "count": carry["count"] + 1, "memory": 0.1 * state[:1].astype(jnp.float32)}, state


class Rounds(Driven):
    """The counter depends on the state."""

    def step(self, carry, state, action, t, *, key=None):
        carry, after = super().step(carry, state, action, t, key=key)
        return {**carry, "count": (after[0] > 0).astype(int)}, after


class Rooted(AbstractDynamics):
    """x' = sqrt(x - 0.9) + a^2: not defined below 0.9, where linearisation leads."""

    state_size: int = 1
    action_size: int = 1

    def step(self, carry, state, action, t, *, key=None):
        return carry, jnp.sqrt(state - 0.9) + action**2


class Cut(AbstractDynamics):
    """x' = 0.9 x + a, whose derivative is cut, so that each sweep leaves 0.9 of the error."""

    state_size: int = 1
    action_size: int = 1

    def step(self, carry, state, action, t, *, key=None):
        return carry, 0.9 * lax.stop_gradient(state) + action


class Exploding(AbstractDynamics):
    """x' = x^2, which overflows after ten steps from 2."""

    state_size: int = 1
    action_size: int = 1

    def step(self, carry, state, action, t, *, key=None):
        return carry, state**2 + action


def test_gradients_reach_the_state_the_carry_and_the_parameters_in_the_middle_of_an_episode():
    policy, gains = POLICIES["MLP"](2, 1), Paths(0.7, 1.1, 0.9)

    @eqx.filter_jit
    def run(given, t, method):
        def value(given):
            dynamics, policy, state, memory = given
            carry = {**dynamics.init(state, 9), "memory": memory}
            options = {"reward": reward, "paths": gains, "method": method, "t": t, "carry": carry}
            trajectory = unroll(dynamics, policy, state, 9, **options)
            return trajectory.returns(), (trajectory.states, trajectory.actions)

        return eqx.filter_value_and_grad(value, has_aux=True)(given)

    given = Driven(jnp.array([0.9, -0.8])), policy, jnp.array([0.3, -0.2]), jnp.ones(1, jnp.float32)
    one, other = (run(given, jnp.asarray(4), method) for method in (Sequential(), Newton(block=5)))
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert x.dtype == y.dtype and jnp.allclose(x, y, rtol=1e-6)  # `memory` is single precision.


def test_an_entry_of_the_carry_that_is_not_floating_point_must_not_depend_on_the_state():
    with pytest.raises(ValueError, match=r"cannot linearise Rounds.*int64\[\].*method=Sequential"):
        unroll(Rounds(jnp.ones(2)), LINEAR, jnp.ones(2), 5, method=Newton())


@given(seed=st.integers(0, 2**31 - 1))
def test_the_number_of_sweeps_does_not_grow_with_the_horizon_where_perturbations_decay(seed):
    system, policy = spiral(0.9, 0.7), MLPPolicy(2, 1, width=8, key=jax.random.key(1))
    state = jax.random.normal(jax.random.key(seed), (2,))
    scan = unroll(system, policy, state, 300)
    trajectory = unroll(system, policy, state, 300, method=Newton(max_sweeps=8))
    assert 2 <= trajectory.sweeps <= 8 and jnp.allclose(trajectory.states, scan.states, atol=1e-13)
    again = unroll(system, policy, state, 300, method=Newton(start=scan.states))
    assert again.sweeps == 1 and jnp.allclose(again.actions, scan.actions, atol=1e-13)


@pytest.mark.parametrize(("block", "horizon"), [(4, 13), (3, 1)])
def test_the_block_does_not_change_the_result(block, horizon):
    system, policy = spiral(1.2, 0.7), POLICIES["MLP"](2, 1)
    run = lambda method: unroll_grad(system, policy, jnp.ones(2), horizon, reward=reward, method=method)
    for x, y in zip(jax.tree.leaves(run(Sequential())), jax.tree.leaves(run(Newton(block=block))), strict=True):
        assert jnp.allclose(x, y, rtol=1e-11, atol=1e-13)


def test_a_batch_gives_what_each_of_its_members_gives():
    system, policy = DYNAMICS["Henon"](), POLICIES["MLP"](2, 1)
    run = jax.jit(lambda state: unroll(system, policy, state, 30, method=Newton()))
    states = 0.3 * jax.random.normal(jax.random.key(0), (4, 2))
    together, alone = jax.vmap(run)(states), [run(state) for state in states]
    assert len(set(together.sweeps.tolist())) > 1 and together.sweeps.tolist() == [x.sweeps for x in alone]
    assert jnp.allclose(together.states, jnp.stack([x.states for x in alone]), atol=1e-12)


def test_a_sweep_that_leaves_the_domain_of_the_step_is_replaced_by_plain_values():
    actions = jnp.full((40, 1), 0.85)
    run = lambda method: unroll_grad(Rooted(), actions, jnp.ones(1), 40, reward=reward, method=method)
    (value, grads), (other, others) = run(Sequential()), run(Newton())
    assert jnp.isfinite(value) and jnp.allclose(value, other, rtol=1e-12) and jnp.allclose(grads, others, rtol=1e-9)


def test_a_trajectory_that_overflows_equals_the_sequential_one():
    actions = jnp.zeros((60, 1))
    scan, sweeps = (unroll(Exploding(), actions, jnp.full(1, 2.0), 60, method=m) for m in (Sequential(), Newton()))
    assert np.array_equal(scan.states, sweeps.states, equal_nan=True) and sweeps.sweeps < 20


def test_gradients_are_finite_where_products_of_jacobians_overflow_in_a_direction_that_no_reward_sees():
    system = LinearQuadratic(jnp.diag(jnp.array([10.0, 0.5])), jnp.array([[0.0], [1.0]]))
    seen = lambda state, action, t: jnp.sum(state[1:]) + action[0] ** 2
    run = lambda method: unroll_grad(system, jnp.ones((400, 1)), jnp.zeros(2), 400, reward=seen, method=method)[1]
    assert jnp.allclose(run(Sequential()), run(Newton()), rtol=1e-12)


def test_an_error_beyond_max_sweeps_says_whether_the_system_is_chaotic():
    run = lambda system, **options: unroll(system, LINEAR, jnp.full(2, 0.1), 60, method=Newton(**options))
    with pytest.raises(eqx.EquinoxRuntimeError, match=r"max_sweeps=12: .*factor of about exp\(0\.\d+\) per step.*Sequential"):
        run(Henon(), max_sweeps=12)
    with pytest.raises(eqx.EquinoxRuntimeError, match="max_sweeps=1; raise max_sweeps"):
        run(Driven(jnp.full(2, 0.5)), max_sweeps=1)
    exact = unroll(Henon(), LINEAR, jnp.full(2, 0.1), 60)  # In 60 steps rounding errors grow by 1e11.
    assert jnp.allclose(run(Henon(), tolerance=0.0).states, exact.states, atol=1e-3)


def test_single_precision_settles_at_its_own_rounding():
    system, policy = spiral(1.0, 0.3), POLICIES["MLP"](2, 1)
    single = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32) if eqx.is_inexact_array(x) else x, tree)
    exact = unroll(system, policy, jnp.ones(2), 200)
    found = unroll(single(system), single(policy), jnp.ones(2, jnp.float32), 200, method=Newton(max_sweeps=12))
    assert found.states.dtype == found.actions.dtype == jnp.float32 and jnp.allclose(
        found.states.astype(float), exact.states, atol=1e-4
    )


def test_sweeps_that_approach_the_solution_slowly_do_not_settle_early():
    actions = jnp.ones((300, 1))
    scan, sweeps = (unroll(Cut(), actions, jnp.zeros(1), 300, method=m) for m in (Sequential(), Newton()))
    assert sweeps.sweeps > 200 and jnp.allclose(scan.states, sweeps.states, rtol=1e-12)


class Rounded(AbstractDynamics):
    """A contraction whose matrix product rounds its factors to bfloat16."""

    state_size: int = 3
    action_size: int = 1

    def step(self, carry, state, action, t, *, key=None):
        weights = jax.random.normal(jax.random.key(0), (3, 3), jnp.bfloat16)
        product = jnp.matmul(weights, state.astype(jnp.bfloat16), preferred_element_type=jnp.float32)
        return carry, 0.3 * jnp.tanh(product) + jnp.sin(jnp.asarray(t, jnp.float32) + state) / 2 + action


def test_sweeps_stop_where_rounded_products_hide_what_more_would_change():
    starts, actions = jax.random.normal(jax.random.key(1), (32, 3), jnp.float32), jnp.zeros((300, 1), jnp.float32)
    runs = jax.jit(jax.vmap(lambda s: [unroll(Rounded(), actions, s, 300, method=m) for m in (Sequential(), Newton())]))
    scan, sweeps = runs(starts)
    assert jnp.max(sweeps.sweeps) <= 6 and jnp.max(jnp.abs(scan.states - sweeps.states)) < 2.0**-7
