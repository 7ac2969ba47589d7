"""Compare `unroll` and `unroll_grad` with closed forms; test causality, keys, dtypes and JAX transformations."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st
from jaxtyping import Array, Key
from rounding import rounding
from systems import DYNAMICS, HORIZON, POLICIES, reward, rows, start

from awmkit import AbstractDynamics, BPO, MLPPolicy, Parallel, Paths, Sequential, Trajectory, unroll, unroll_grad
from awmkit._reward import check_reward, with_next_state
from awmkit.analysis import hop_spectrum
from awmkit.analysis._gradients import return_gradients
from awmkit.tasks import LinearQuadratic, OneBounce, spiral


@given(seed=st.integers(0, 2**31 - 1), horizon=st.integers(1, 8), discount=st.floats(0, 1))
def test_the_linear_quadratic_gradient_equals_its_closed_form(seed, horizon, discount):
    keys = jax.random.split(jax.random.key(seed), 6)
    A, B = jax.random.normal(keys[0], (3, 3)), jax.random.normal(keys[1], (3, 2))
    Q, R = (M @ M.T for M in (jax.random.normal(keys[2], (3, 3)), jax.random.normal(keys[3], (2, 2))))
    system = LinearQuadratic(A, B, Q=Q, R=R)
    state, actions = jax.random.normal(keys[4], (3,)), jax.random.normal(keys[5], (horizon, 2))
    value, grads = unroll_grad(system, actions, state, horizon, reward=system.reward, discount=discount)
    states = [np.asarray(state)]
    for action in actions:
        states.append(A @ states[-1] + B @ action)
    expected = sum(-(discount**t) * (s @ Q @ s + a @ R @ a) for t, (s, a) in enumerate(zip(states, actions, strict=False)))
    assert np.allclose(value, expected)
    for k in range(horizon):
        slope = -2 * discount**k * R @ actions[k]
        for t in range(k + 1, horizon):
            slope -= 2 * discount**t * (np.linalg.matrix_power(A, t - k - 1) @ B).T @ Q @ states[t]
        assert np.allclose(grads[k], slope, atol=1e-8 * (1 + np.abs(slope).max()))


@pytest.mark.parametrize("discount", [0.0, 0.5, 1.0])
def test_a_return_and_its_derivative_by_the_discount_are_right_from_0_to_1(discount):
    rewards = jnp.array([3.0, -2.0, 5.0])
    returns = lambda discount: Trajectory(jnp.zeros((4, 1)), jnp.zeros((3, 1)), rewards).returns(discount)
    value, slope = jax.value_and_grad(returns)(discount)
    expected = 3 - 2 * discount + 5 * discount**2
    assert np.isclose([returns(discount), value], expected).all() and np.isclose(slope, -2 + 10 * discount)


@given(rate=st.sampled_from([0.8, 1.0, 1.25]), angle=st.floats(-3, 3), gain=st.floats(0, 1))
def test_each_hop_multiplies_the_jacobian_norm_of_a_spiral_by_rate_times_gain(rate, angle, gain):
    # A spiral is a scaled rotation, so that ds_{t+1}/ds_t has norm `rate` in every direction.
    norms = damped_norms(jnp.asarray(rate), jnp.asarray(angle), jnp.asarray(gain))
    assert jnp.allclose(norms, (rate * gain) ** np.arange(11, -1, -1), rtol=1e-9, atol=1e-12)


@jax.jit
def damped_norms(rate, angle, gain):
    """Return |ds_12/da_k| for k = 0 to 11."""
    final = lambda actions: unroll(spiral(rate, angle), actions, jnp.ones(2), 12, paths=Paths(state_to_model=gain)).states[-1]
    return jnp.linalg.norm(jax.jacrev(final)(jnp.zeros((12, 1)))[:, :, 0], axis=0)


def distance(state, action, t, next_state):
    return next_state[0] - state[0]


class Distance(eqx.Module):
    """A reward as a module, as a method and as a compiled method."""

    unit: float = 1.0

    def __call__(self, state, action, t, next_state=None):
        return (next_state[0] - state[0]) / self.unit

    def method(self, state, action, t, next_state):
        return self(state, action, t, next_state)

    @eqx.filter_jit
    def compiled(self, state, action, t, next_state):
        return self(state, action, t, next_state)


REWARDS_OF_THE_NEXT_STATE = {
    "function": distance,
    "lambda": lambda s, a, t, next_state: next_state[0] - s[0],
    "keyword only": lambda s, a, t, *, next_state: next_state[0] - s[0],
    "after an option": lambda s, a, t, unit=1.0, next_state=None: (next_state[0] - s[0]) / unit,
    "partial": partial(lambda unit, s, a, t, next_state: (next_state[0] - s[0]) / unit, 1.0),
    "module": Distance(),
    "bound method": Distance().method,
    "compiled method": Distance().compiled,
    "compiled": jax.jit(distance),
    "compiled with its arrays": eqx.filter_jit(distance),
    "checkpointed": jax.checkpoint(distance),
}


@pytest.mark.parametrize("name", REWARDS_OF_THE_NEXT_STATE)
def test_a_reward_with_a_parameter_named_next_state_is_called_with_it(name):
    transition = jnp.array([1.0, 2.0]), jnp.zeros(1), 0, jnp.array([4.0, 2.0])
    check_reward(REWARDS_OF_THE_NEXT_STATE[name])
    assert with_next_state(REWARDS_OF_THE_NEXT_STATE[name])(*transition) == 3
    assert with_next_state(with_next_state(REWARDS_OF_THE_NEXT_STATE[name]))(*transition) == 3


def test_a_reward_without_next_state_is_called_with_three_arguments():
    transition = jnp.array([1.0, 2.0]), jnp.zeros(1), 0, jnp.array([4.0, 2.0])
    three = lambda s, a, t: s[0]
    for plain in (three, lambda s, a, t, scale=1.0: s[0], lambda *args: args[0][0] + len(args) - 3, jax.jit(three)):
        check_reward(plain)
        assert with_next_state(plain)(*transition) == 1
    check_reward(max)  # `max` has no signature to inspect.
    assert with_next_state(max)(1, 0, 0, 4) == 1


def test_a_reward_of_the_next_state_has_the_correct_value_and_gradient():
    """The sum of the distances telescopes, so the gradient of the return equals the gradient of the last state."""
    system, actions = spiral(1.1, 0.4), jnp.linspace(-1, 1, 6)[:, None]
    value, grads = unroll_grad(system, actions, jnp.ones(2), 6, reward=distance, check=True)
    end = lambda actions: unroll(system, actions, jnp.ones(2), 6).states[-1, 0]
    assert jnp.isclose(value, end(actions) - 1) and jnp.allclose(grads, jax.grad(end)(actions))
    fourth = unroll(system, actions, jnp.ones(2), 6).states[4]
    broken = lambda state, action, t, next_state: jnp.where(jnp.allclose(next_state, fourth), jnp.nan, state[0])
    with pytest.raises(Exception, match="t=3, the reward"):
        jax.block_until_ready(unroll_grad(system, actions, jnp.ones(2), 6, reward=broken, check=True))


NUMBERS = {"int": 0, "float": 0.0, "NumPy": np.float64(0)}


class Summing(AbstractDynamics):
    """s_{t+1} = s_t + a_t + c_t. The carry c_t starts as a number; it grows by 1 if this is an int, and else by s_t."""

    first: str
    state_size: int = 1
    action_size: int = 1

    def init(self, state, horizon):
        return NUMBERS[self.first]

    def step(self, carry, state, action, t, *, key=None):
        return carry + (1 if self.first == "int" else state[0]), state + action + jnp.asarray(carry, state.dtype)


@pytest.mark.parametrize("first", NUMBERS)
def test_a_carry_may_start_as_a_number_as_in_a_plain_scan(first):
    system, actions, squared = Summing(first), jnp.ones((3, 1)), lambda s, a, t: s[0] ** 2
    value, grads = unroll_grad(system, actions, jnp.ones(1), 3, reward=squared, method=Sequential("step"))
    assert value == 1 + 4 + 16 and (grads[:, 0] == jnp.array([4.0 + 8.0, 8.0, 0.0])).all()
    last = 1 if first == "int" else 2  # ds_3/da_0, through the carry too
    assert hop_spectrum(system, jnp.ones(1), actions).whole[3, 0] == last


def test_a_reward_may_be_a_python_float():
    assert (unroll(spiral(1.0, 0.3), jnp.zeros((3, 1)), jnp.ones(2), 3, reward=lambda s, a, t: 0.5).rewards == 0.5).all()


def test_the_reward_method_of_a_task_is_traced_once():
    traced = []

    class Counted(OneBounce):
        def reward(self, state, action, t, next_state=None):
            traced.append(t)
            return super().reward(state, action, t)

    task = Counted()
    run = lambda: unroll(task, jnp.zeros((3, 1)), task.reset(jax.random.key(0)), 3, reward=task.reward)
    run()
    before = len(traced)
    run()
    assert len(traced) == before > 0


@pytest.mark.parametrize("name", DYNAMICS)
def test_states_do_not_depend_on_later_actions_and_parallel_states_agree(name):
    dynamics = DYNAMICS[name]()
    key = jax.random.key(3)
    actions = POLICIES["actions"](dynamics.state_size, dynamics.action_size)
    states = lambda actions: unroll(dynamics, actions, start(dynamics), HORIZON, key=key, method=Sequential()).states
    value, jacobian = states(actions), jax.jacfwd(states)(actions)  # (H+1, S, H, A)
    for k in range(HORIZON):
        assert (jacobian[: k + 1, :, k] == 0).all()
        if name not in ("double pendulum, passive", "one bounce", "credit assignment, hidden"):  # Later actions do nothing.
            assert jnp.max(jnp.abs(jacobian[k + 1, :, k])) > 1e-4
    if not dynamics.reads_state:
        parallel = unroll(dynamics, actions, start(dynamics), HORIZON, key=key, method=Parallel()).states
        assert jnp.allclose(parallel, value, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", [n for n in DYNAMICS if n.startswith("AWM")])
def test_dynamics_with_reads_state_false_ignore_their_state(name):
    dynamics = DYNAMICS[name]()
    state, action = start(dynamics), jnp.zeros(dynamics.action_size)
    carry = dynamics.init(state, HORIZON)
    step = lambda s: dynamics.step(carry, s, action, 0, key=jax.random.key(0))[1]
    assert (step(state) == step(jnp.full_like(state, jnp.nan))).all()


class Drawn(AbstractDynamics):
    """A dynamics that uses `keys[t]` at step t, so that an unroll in parts draws the same noise as the whole unroll."""

    dynamics: AbstractDynamics
    keys: Key[Array, " H"]
    state_size: int
    action_size: int

    def init(self, state, horizon):
        return self.dynamics.init(state, horizon)

    def step(self, carry, state, action, t, *, key=None):
        return self.dynamics.step(carry, state, action, t, key=self.keys[t])


SLOW = (
    "double pendulum, passive",
    "AWM transformer, rotary time",
    "AWM linear state space",
    "AWM from the pendulum",
    "ensemble of AWM, by step",
)


@pytest.mark.parametrize("name", rows(slow=SLOW))
def test_an_unroll_in_two_parts_has_the_value_and_gradient_of_one_unroll(name):
    dynamics, paths = DYNAMICS[name](), Paths(0.7, 0.9, 1.1)
    state, keys = start(dynamics), jax.random.split(jax.random.key(4), HORIZON)
    methods = {"Sequential": Sequential()} if dynamics.reads_state else {"Sequential": Sequential(), "Parallel": Parallel()}
    policy = POLICIES["MLP"](dynamics.state_size, dynamics.action_size)

    def whole(policy, method):
        return unroll(drawn(method), policy, state, HORIZON, reward=reward, paths=paths, method=method).returns(0.9)

    def drawn(method):
        return dynamics if isinstance(method, Parallel) else Drawn(dynamics, keys, dynamics.state_size, dynamics.action_size)

    def parts(policy, method, cut=2):
        """Run the first `cut` steps in a Python loop and the others by an unroll that starts at t = `cut`."""
        system, now, value = drawn(method), state, 0.0
        carry = system.init(state, HORIZON)
        for t in range(cut):
            action = policy(paths.to_policy(now), t)
            value = value + 0.9**t * reward(now, action, t)
            carry, now = system.step(carry, paths.feed_back(now), paths.to_model(action), t)
        options = {"reward": reward, "paths": paths, "method": method, "t": cut, "carry": carry}
        return value + 0.9**cut * unroll(system, policy, now, HORIZON - cut, **options).returns(0.9)

    for method in methods.values():
        if isinstance(method, Parallel) and name == "AWM from the linear system":
            continue  # It draws its noise from the key of the unroll.
        both = lambda policy, m=method: [eqx.filter_value_and_grad(f)(policy, m) for f in (whole, parts)]
        expected, found = eqx.filter_jit(both)(policy)
        for x, y in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
            assert jnp.allclose(x, y, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["AWM transformer, rotary time", "HWM transformer", "Markov"])
def test_an_unroll_continues_from_the_carry_of_a_segment(name):
    model = DYNAMICS[name]()
    actions = 0.5 * jax.random.normal(jax.random.key(5), (HORIZON, 2))
    whole = unroll(model, actions, start(model), HORIZON, reward=reward)
    for space, method in ((HORIZON, None), (HORIZON, Sequential()), (2, Sequential())):
        carry, states = model.rollout_segment(model.init(start(model), space), start(model), actions[:2], 0)
        rest = unroll(model, actions[2:], states[-1], HORIZON - 2, reward=reward, t=2, carry=carry, method=method)
        assert jnp.allclose(rest.states, whole.states[2:], atol=1e-12)
        assert jnp.allclose(rest.rewards, whole.rewards[2:], atol=1e-12)
        assert rest.t == 2 and whole.t is None


def test_the_horizon_may_be_a_number_of_numpy_or_jax():
    system, policy = spiral(1.1, 0.4), POLICIES["MLP"](2, 1)
    runs = [unroll(system, policy, jnp.ones(2), horizon) for horizon in (3, np.int64(3), jnp.asarray(3))]
    assert all(eqx.tree_equal(run, runs[0]) for run in runs)
    values = [unroll_grad(system, policy, jnp.ones(2), horizon, reward=reward)[0] for horizon in (3, np.int32(3))]
    assert values[0] == values[1]


def test_the_first_step_may_be_traced_and_all_first_steps_share_one_program():
    traced = []

    def counted(state, action, t):
        traced.append(t)
        return reward(state, action, t)

    system, policy = spiral(1.1, 0.4), POLICIES["Gaussian, with time"](2, 1)
    run = lambda t: unroll(system, policy, jnp.ones(2), 3, reward=counted, t=t)
    before, values = 0, []
    for t in (1, 2, 3):
        values.append(run(t).rewards)
        before = before or len(traced)
    assert len(traced) == before
    batched = jax.vmap(lambda t: unroll(system, policy, jnp.ones(2), 3, reward=reward, t=t).rewards)(jnp.arange(1, 4))
    assert jnp.allclose(jnp.stack(values), batched) and (batched[0] != batched[1]).all()
    value, grads = unroll_grad(system, policy, jnp.ones(2), 3, reward=reward, t=2)
    assert jnp.isclose(value, values[1].sum())
    broken = lambda s, a, t: jnp.where(t == 3, jnp.nan, 1.0) * s[0]
    with pytest.raises(eqx.EquinoxRuntimeError, match="t=3, the reward"):
        unroll_grad(system, policy, jnp.ones(2), 3, reward=broken, t=2, check=True)


def test_the_bpo_gradient_equals_the_formula_of_the_paper():
    system, policy = spiral(1.1, 0.4), MLPPolicy(2, 1, width=4, key=jax.random.key(0))
    _, grads = unroll_grad(system, policy, jnp.ones(2), 7, reward=reward, paths=BPO)
    trajectory = unroll(system, policy, jnp.ones(2), 7)
    weights, rest = eqx.partition(policy, eqx.is_inexact_array)
    total = jax.tree.map(jnp.zeros_like, weights)
    for t in range(7):
        dr_ds, dr_da = jax.grad(reward, (0, 1))(trajectory.states[t], trajectory.actions[t], t)
        for k in range(t + 1):
            of_action = dr_da if k == t else dr_ds @ np.linalg.matrix_power(system.A, t - k - 1) @ system.B
            act = lambda w, s=trajectory.states[k], k=k: eqx.combine(w, rest)(s, k)
            total = jax.tree.map(jnp.add, total, jax.vjp(act, weights)[1](of_action)[0])
    for x, y in zip(jax.tree.leaves(grads), jax.tree.leaves(total), strict=True):
        assert jnp.allclose(x, y, rtol=1e-10, atol=1e-12)


def test_unroll_composes_with_jit_vmap_grad_and_jacfwd():
    system, policy = DYNAMICS["linear, with noise"](), MLPPolicy(2, 1, width=4, key=jax.random.key(0))
    run = lambda s, k: unroll(system, policy, s, 5, reward=reward, key=k).returns()
    states, keys = jax.random.normal(jax.random.key(1), (4, 2)), jax.random.split(jax.random.key(2), 4)
    batched = jax.jit(jax.vmap(run))(states, keys)
    assert jnp.allclose(batched, jnp.stack([run(s, k) for s, k in zip(states, keys, strict=True)]))
    assert jnp.allclose(jax.grad(run)(states[0], keys[0]), jax.jacfwd(run)(states[0], keys[0]))
    grads = jax.vmap(lambda s: unroll_grad(system, policy, s, 5, reward=reward, key=keys[0])[0])(states)
    assert jnp.allclose(grads, jax.vmap(lambda s: run(s, keys[0]))(states))


def test_noise_differs_between_steps_and_a_key_reproduces_it():
    system, still = DYNAMICS["linear, with noise"](), jnp.zeros((50, 1))
    states = unroll(system, still, jnp.zeros(2), 50, key=jax.random.key(0)).states
    noise = states[1:] - states[:-1] @ system.A.T
    assert np.unique(np.asarray(noise).round(12)).size == noise.size and 0.05 < jnp.std(noise) < 0.2
    assert (unroll(system, still, jnp.zeros(2), 50, key=jax.random.key(0)).states == states).all()
    gaussian = POLICIES["Gaussian, with time"](2, 1)
    sampled, mode = (unroll(spiral(1.0, 0.1), gaussian, jnp.ones(2), 4, key=k).actions for k in (jax.random.key(0), None))
    assert (sampled != mode).all() and jnp.allclose(
        mode[0], gaussian.mode(jnp.ones(2), 0), rtol=1e-12
    )  # compiled against uncompiled


def test_float32_inputs_give_float32_values_and_gradients():
    single = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32) if eqx.is_inexact_array(x) else x, tree)
    for name in ("Markov", "HWM GRU", "AWM transformer, learned time"):
        model = DYNAMICS[name]()
        policy = POLICIES["MLP"](3, 2)
        exact, _ = unroll_grad(model, policy, start(model), 6, reward=reward, paths=BPO)
        value, grads = unroll_grad(single(model), single(policy), single(start(model)), 6, reward=reward, paths=BPO)
        assert value.dtype == jnp.float32 and all(g.dtype == jnp.float32 for g in jax.tree.leaves(grads))
        assert jnp.allclose(value.astype(float), exact, rtol=100 * rounding(jnp.float32))


@pytest.mark.parametrize("name", ["AWM transformer, learned time", "Markov"])
def test_unrolls_and_analyses_promote_no_ranks(name):
    dynamics, state, actions = DYNAMICS[name](), jnp.ones(3), jnp.ones((HORIZON, 2))

    def run(state, actions):
        value, grads = unroll_grad(dynamics, actions, state, HORIZON, reward=reward, discount=0.9)
        spectrum = hop_spectrum(dynamics, state, actions, reward=reward, hops=2)
        options = {"reward": reward, "discount": 0.9, "keys": None, "batch_size": 1}
        return (
            value,
            grads,
            spectrum.mean_hops,
            return_gradients(dynamics, actions, state[None], HORIZON, jnp.arange(1, 4), **options),
        )

    with jax.numpy_rank_promotion("raise"):
        jax.make_jaxpr(run)(state, actions)
