"""MuJoCo tasks: MJX against C MuJoCo, Gymnasium and the ODE, and gradients against finite differences, also at rest.

The quick tests share one small Euler model. Tests that compile larger models are marked slow.
"""

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from misuse import says
from mujoco import mjtIntegrator

from awmkit import Sequential, unroll, unroll_grad
from awmkit.mjx import cartpole, double_pendulum, MJXTask, pendulum
from awmkit.tasks import DrivenDoublePendulum

KEY = jax.random.key(0)
EULER, RK4, FAST = mjtIntegrator.mjINT_EULER, mjtIntegrator.mjINT_RK4, mjtIntegrator.mjINT_IMPLICITFAST
IDS = [f"{name}-v5" for name in "InvertedPendulum InvertedDoublePendulum Reacher Swimmer Hopper HalfCheetah".split()]
READY = [pendulum, cartpole, double_pendulum]


@pytest.fixture(autouse=True)
def away_from_the_repository(tmp_path, monkeypatch):
    """MuJoCo writes its log of warnings to the working directory."""
    monkeypatch.chdir(tmp_path)


BALL = '<mujoco><worldbody><body>{joint}<geom size="1"/></body></worldbody>{actuator}</mujoco>'
HINGE, MOTOR = '<joint name="0"/>', '<actuator><{kind} joint="0" {options}/></actuator>'
LIMITED = MOTOR.format(kind="motor", options='ctrlrange="-1 1"')


def ball(joint=HINGE, actuator=LIMITED, **options):
    return MJXTask(BALL.format(joint=joint, actuator=actuator), zero, **{"horizon": 5, **options})


def zero(state, action, t):
    return 0 * state[0]


def spied(monkeypatch, make):
    """The task that `make` makes, and the C model that it gives to MJX."""
    models, put = [], mujoco.mjx.put_model
    monkeypatch.setattr(mujoco.mjx, "put_model", lambda model: models.append(model) or put(model))
    return make(), models[-1]


def c_states(model, start, actions, *, integrator, frame_skip):
    """s_0 ... s_H by C MuJoCo, for a model whose control ranges are [-1, 1]."""
    model.opt.integrator = integrator
    data, kind = mujoco.MjData(model), mujoco.mjtState.mjSTATE_PHYSICS
    mujoco.mj_setState(model, data, np.array(start), kind)
    states = [np.array(start)]
    for action in np.array(actions):
        data.ctrl[:] = action
        mujoco.mj_step(model, data, nstep=frame_skip)
        states.append(np.empty_like(states[0]))
        mujoco.mj_getState(model, data, states[-1], kind)
    return np.stack(states)


def along(f, point, direction, eps):
    """Central differences of `f` along a direction, for each point of a batch."""
    at = lambda h: f(*(x + h * d for x, d in zip(point, direction, strict=True)))
    return (at(eps) - at(-eps)) / (2 * eps)


def directions(point):
    return tuple(jax.random.normal(k, x.shape) for k, x in zip(jax.random.split(KEY, len(point)), point, strict=True))


def dot(grads, direction):
    return sum(jnp.sum((g * d).reshape(len(g), -1), axis=1) for g, d in zip(grads, direction, strict=True))


# The models of the quick tests, with two Euler steps of 25 ms in a step. Physics is tested with two rods, and how programs
# compose with one, whose gradient compiles a third faster.
H = 4
SMALL = double_pendulum(H, frame_skip=2)
STARTS = jnp.array([[0.0, 0.0, 0.0, 0.0], [jnp.pi, 0.0, 0.0, 0.0], [1.0, -0.7, 0.5, 2.0]])  # Hanging, upright, moving.
PLANS = jax.random.uniform(KEY, (3, H, 2), minval=-0.9, maxval=0.9).at[:2].set(0)
SINGLE, SINGLE_STARTS, SINGLE_PLANS = pendulum(H, frame_skip=2), STARTS[:, [0, 3]], PLANS[:, :, :1]


def value(state, actions, masses):
    """The return plus the entries of the last state, on which the return does not depend."""
    task = eqx.tree_at(lambda task: task.model.body_mass, SMALL, masses)
    trajectory = unroll(task, actions, state, H, reward=task.reward)
    return trajectory.returns() + jnp.sum(trajectory.states[-1])


def test_a_step_equals_mujocos_step(monkeypatch):
    task, model = spied(monkeypatch, lambda: double_pendulum(H, frame_skip=2))
    states = unroll(task, PLANS[2], STARTS[2], H).states
    assert np.allclose(states, c_states(model, STARTS[2], PLANS[2], integrator=EULER, frame_skip=2), atol=1e-12)


def test_gradients_in_states_actions_and_masses_equal_finite_differences_at_rest_and_in_motion():
    point = STARTS, PLANS, jnp.stack([SMALL.model.body_mass] * 3)
    direction = directions(point)
    by_reverse = dot(jax.jit(jax.vmap(jax.grad(value, (0, 1, 2))))(*point), direction)
    by_forward = jax.jit(jax.vmap(lambda x, d: jax.jvp(value, x, d)[1]))(point, direction)
    by_difference = along(jax.jit(jax.vmap(value)), point, direction, 1e-5)
    assert jnp.allclose(by_reverse, by_forward, rtol=1e-10)
    assert jnp.allclose(by_reverse, by_difference, rtol=1e-8) and (jnp.abs(by_reverse) > 0.1).all()


@pytest.mark.slow
def test_unroll_grad_is_the_same_batched_compiled_and_checkpointed():
    checkpointed = lambda s, a: unroll_grad(SINGLE, a, s, H, reward=SINGLE.reward, method=Sequential("step"))
    values, grads = jax.jit(jax.vmap(checkpointed))(SINGLE_STARTS, SINGLE_PLANS)
    one, by_actions = unroll_grad(SINGLE, SINGLE_PLANS[2], SINGLE_STARTS[2], H, reward=SINGLE.reward)
    assert jnp.allclose(values[2], one, rtol=1e-12) and jnp.allclose(grads[2], by_actions, rtol=1e-10)
    assert jnp.isfinite(grads).all() and jnp.abs(by_actions[0]).min() > 1e-4


def test_states_keep_their_dtype_with_and_without_x64():
    state, actions = SINGLE_STARTS[2].astype(jnp.float32), SINGLE_PLANS[2].astype(jnp.float32)
    inside = unroll(SINGLE, actions, state, H, reward=SINGLE.reward)
    with jax.enable_x64(False):
        alone = unroll(SINGLE, actions, state, H, reward=SINGLE.reward)
    assert inside.states.dtype == alone.states.dtype == alone.rewards.dtype == jnp.float32
    assert np.allclose(inside.states, alone.states, atol=1e-5)


@pytest.mark.parametrize("make", READY)
def test_a_swing_up_task_rewards_height_and_starts_near_hanging(make):
    task, size = make(20), make().state_size // 2
    starts = jax.vmap(task.reset)(jax.random.split(KEY, 50))
    assert jnp.abs(starts).max() <= 0.1 and jnp.std(starts) > 0.03 and np.isclose(task.dt, 0.05)
    hanging = jnp.zeros(2 * size)
    up, idle = hanging.at[1 if make is cartpole else 0].set(jnp.pi), jnp.zeros(task.action_size)
    assert np.isclose(20 * task.reward(hanging, idle, 0), -1) and np.isclose(20 * task.reward(up, idle, 0), 1)
    assert 20 * task.reward(up, idle + 1, 0) < 1 > 20 * task.reward(up.at[size:].set(1), idle, 0)
    assert (task.rods(up)[:, 0] < 1e-12).all() and (jnp.diff(task.rods(up)[:, 1]) > 0.4).all()


def test_a_cart_far_from_the_middle_costs_reward_and_is_drawn_there():
    task = cartpole(1)
    out = jnp.array([2.0, jnp.pi / 2, 0.0, 0.0])
    assert np.allclose(task.rods(out), [[2, 0], [2.5, 0]]) and np.isclose(task.reward(out, jnp.zeros(1), 0), -0.2)


def test_without_a_reset_function_an_episode_starts_at_rest_in_qpos0():
    task = ball('<joint name="0" ref="30"/>')
    assert np.allclose(task.reset(KEY), [np.pi / 6, 0])


@pytest.mark.parametrize("id", IDS)
def test_a_gymnasium_body_has_the_state_of_its_own_file_and_random_initial_states(id):
    task = MJXTask.from_gymnasium(id, iterations=1)
    start, rest = task.reset(KEY), task.model.qpos0
    assert start.shape == (task.state_size,)
    assert task.reward(start, jnp.zeros(task.action_size), 0, start).shape == ()
    assert jnp.abs(start[: rest.size] - rest).max() <= 0.3 and (start != task.reset(jax.random.key(1))).any()


def test_the_gradient_of_the_reachers_reward_is_finite_at_its_target():
    reward = MJXTask.from_gymnasium("Reacher-v5", iterations=1).reward
    touching = jnp.zeros(8).at[2].set(0.1 + 0.11)
    value, grads = jax.value_and_grad(lambda s: reward(s, jnp.zeros(2), 0, s))(touching)
    assert value == 0 and jnp.isfinite(grads).all()


SENTENCES = {
    "no model": (lambda: MJXTask(3, zero, horizon=5), "cannot read the model.*pass a mujoco.MjModel"),
    "no such file": (lambda: MJXTask("/nowhere.xml", zero, horizon=5), "cannot read the model.*nowhere"),
    "broken MJCF": (lambda: MJXTask("<mujoco><worldbdy/></mujoco>", zero, horizon=5), "cannot read the model.*worldbdy"),
    "no reward": (
        lambda: MJXTask(BALL.format(joint=HINGE, actuator=LIMITED), None, horizon=5),
        "reward is None",
    ),
    "no actuators": (lambda: ball(actuator=""), "no actuators"),
    "unlimited actuators": (
        lambda: ball(actuator=MOTOR.format(kind="motor", options="")),
        "needs a control range.*for actuator 0",
    ),
    "delays": (
        lambda: ball(actuator=MOTOR.format(kind="motor", options='ctrlrange="-1 1" delay="0.01" nsample="5"')),
        "delayed",
    ),
    "an integrator MJX lacks": (
        lambda: ball(integrator=mjtIntegrator.mjINT_IMPLICIT),
        "MJX has no integrator mjINT_IMPLICIT; pass.*mjINT_EULER",
    ),
    "what MJX lacks": (lambda: MJXTask.from_gymnasium("Swimmer-v5", integrator=FAST), "does not support.*fluid drag"),
    "reverse mode through a loop": (
        lambda: ball('<joint name="0" limited="true" range="-1 1"/>'),
        "1 constraint rows.*100 solver iterations.*while_loop.*2259.*forward_only=True.*iterations=1",
    ),
    "no horizon": (lambda: ball(horizon=0), "horizon=0"),
    "half a frame": (lambda: pendulum(frame_skip=0.5), "frame_skip=0.5"),
    "no iterations": (lambda: ball(iterations=0), "iterations=0"),
    "an unknown body": (
        lambda: MJXTask.from_gymnasium("Ant-v5"),
        "id must be one of InvertedPendulum-v5.*HalfCheetah-v5, got 'Ant-v5'",
    ),
    **{id: (lambda id=id: MJXTask.from_gymnasium(id), "constraint rows.*iterations=1") for id in IDS},
}


@pytest.mark.parametrize("name", SENTENCES)
def test_misuse_raises_one_clear_sentence(name):
    says(*SENTENCES[name])


WITH_STATE = f"""<mujoco><worldbody><body>{HINGE}<inertial pos="1 0 0" mass="1" diaginertia="1 1 1"/></body></worldbody>
  <actuator><general joint="0" ctrlrange="-1 1" dyntype="filter" dynprm="0.1" gainprm="3"/></actuator></mujoco>"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "make, integrator",
    [
        (pendulum, EULER),
        (cartpole, EULER),
        (cartpole, FAST),
        (double_pendulum, FAST),
        (double_pendulum, RK4),
        (WITH_STATE, RK4),
    ],
)
def test_fifty_steps_equal_mujocos(make, integrator, monkeypatch):
    if make is WITH_STATE:
        build = lambda: MJXTask(WITH_STATE, zero, horizon=50, frame_skip=10, integrator=integrator)
    else:
        build = lambda: make(50, integrator=integrator)
    task, model = spied(monkeypatch, build)
    start = jax.random.normal(KEY, (task.state_size,))
    actions = jax.random.uniform(KEY, (50, task.action_size), minval=-1)
    states = unroll(task, actions, start, 50).states
    assert task.state_size == model.nq + model.nv + model.na
    assert np.allclose(states, c_states(model, start, actions, integrator=integrator, frame_skip=10), atol=1e-9)


def relative(angles):
    """(th1, w1, th2, w2) as MuJoCo's state, with the second angle relative to the first rod."""
    th1, w1, th2, w2 = angles
    return jnp.stack([th1, th2 - th1, w1, w2 - w1])


@pytest.mark.slow
def test_both_double_pendulums_agree_and_eulers_error_is_of_first_order():
    ode = DrivenDoublePendulum(50)
    start = ode.reset(KEY)
    actions = 0.5 * jax.random.normal(KEY, (50, 2)).clip(-2, 2)
    truth = unroll(ode, actions, start, 50, reward=ode.reward)

    def errors(frame_skip, integrator):
        task = double_pendulum(50, frame_skip=frame_skip, integrator=integrator)
        ours = unroll(task, actions, relative(start), 50, reward=task.reward)
        return (
            float(jnp.abs(ours.states - jax.vmap(relative)(truth.states)).max()),
            float(jnp.abs(ours.rewards - truth.rewards).max()),
        )

    by_rk4, by_euler, by_half = errors(4, RK4), errors(10, EULER), errors(20, EULER)
    print("states, rewards:", by_rk4, by_euler, by_half)
    assert by_rk4[0] < 2e-5 and by_rk4[1] < 1e-8 and by_euler[0] < 0.1
    assert 1.8 < by_euler[0] / by_half[0] < 2.2


# The largest action: weak ones let the pendulums stand. The height (m) from which bodies with feet start without contact.
STRENGTH = dict(zip(IDS, [0.005, 0.005, 0.3, 0.5, 0.5, 0.5], strict=True))
LIFT = {"Hopper-v5": 1.0, "HalfCheetah-v5": 40.0}


def episode(id, lift=0.0, **options):
    task = MJXTask.from_gymnasium(id, horizon=50, **{"forward_only": True, **options})
    start = task.reset(KEY).at[1].add(lift)
    actions = jax.random.uniform(KEY, (50, task.action_size), minval=-STRENGTH[id], maxval=STRENGTH[id])
    return task, unroll(task, actions, start, 50, reward=task.reward)


def gymnasium_episode(env, start, actions):
    """States (51, S), rewards, whether the episode has ended, and whether there is a contact, in Gymnasium's own environment."""
    env.reset(seed=0)
    env.set_state(*np.split(np.array(start), [env.model.nq]))
    low, high = env.model.actuator_ctrlrange.T
    states, steps = [np.array(start)], []
    for action in np.array(actions):
        _, reward, ended, *_ = env.step(low + (action + 1) / 2 * (high - low))
        states.append(np.concatenate([env.data.qpos, env.data.qvel]))
        steps.append((reward, ended, env.data.ncon > 0))
    rewards, ended, contacts = map(np.array, zip(*steps, strict=True))
    return np.stack(states), rewards, np.logical_or.accumulate(ended), contacts


@pytest.mark.slow
@pytest.mark.parametrize("id, lift", [(id, 0.0) for id in IDS] + list(LIFT.items()))
def test_an_episode_equals_gymnasiums_over_fifty_steps_and_through_the_first_contact(id, lift):
    env = gymnasium.make(id).unwrapped
    task, ours = episode(id, lift)
    states, rewards, ended, contacts = gymnasium_episode(env, ours.states[0], ours.actions)
    by_states, by_rewards = np.abs(states - ours.states).max(), np.abs(rewards - np.asarray(ours.rewards))
    print(id, lift, "states", by_states, "rewards", by_rewards[~ended].max(), by_rewards.max(), "contact", contacts.any())
    assert contacts.any() == (id in LIFT and lift == 0)
    assert by_states < 1e-9 and by_rewards[~ended].max() < 1e-5
    # Gymnasium reads the tip's position at the last stage of RK4, not at the end of the step. A fall shows the difference.
    assert by_rewards.max() < (1e-2 if id == "InvertedDoublePendulum-v5" else 1e-6)
    assert env.frame_skip == task.frame_skip and np.isclose(env.dt, task.dt)


@pytest.mark.slow
@pytest.mark.parametrize("id", IDS)
def test_initial_states_have_gymnasiums_means_and_deviations(id):
    env = gymnasium.make(id).unwrapped
    theirs = []
    for seed in range(400):
        env.reset(seed=seed)
        theirs.append(np.concatenate([env.data.qpos, env.data.qvel]))
    ours = jax.vmap(MJXTask.from_gymnasium(id, iterations=1).reset)(jax.random.split(KEY, 400))
    spread = np.std(theirs, axis=0)
    assert (np.abs(np.mean(theirs, axis=0) - np.mean(ours, axis=0)) <= 0.3 * spread).all()
    assert (np.abs(np.std(ours, axis=0) - spread) <= 0.2 * spread).all()


# How far one solver iteration, and Euler in place of RK4, move the positions (m, rad) in an episode of 50 steps. One iteration
# changes nothing where no constraint is active, and the difference is largest in a fall.
MOVED = dict(zip(IDS, [(0.039, 0.067), (0, 3.8), (0, 0.021), (0, 0.018), (0.0052, 0.007), (0.11, 0)], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("id", IDS)
def test_one_solver_iteration_and_euler_move_the_states_as_far_as_documented(id):
    task, own = episode(id)
    positions = lambda **options: np.abs(episode(id, **options)[1].states - own.states)[:, : task.model.nq].max()
    moved = positions(iterations=1), positions(integrator=EULER)
    print(id, "one iteration", moved[0], "Euler", moved[1])
    for here, bound in zip(moved, MOVED[id], strict=True):
        assert bound / 2 <= here <= 2 * bound + 1e-9


def last_state_and_return(task, horizon):
    def value(state, actions):
        trajectory = unroll(task, actions, state, horizon, reward=task.reward)
        return trajectory.returns() + jnp.sin(jnp.arange(1.0, task.state_size + 1)) @ trajectory.states[-1]

    return value


def gradient_errors(task, starts, *, strength, eps, horizon=3):
    """Reverse mode against differences, relative: without action at the first start, with some at the others."""
    actions = strength * jax.random.normal(KEY, (len(starts), horizon, task.action_size)).at[0].set(0)
    point = starts, actions
    f, direction = last_state_and_return(task, horizon), directions((starts, actions))
    by_reverse = dot(jax.jit(jax.vmap(jax.grad(f, (0, 1))))(*point), direction)
    return jnp.abs(by_reverse / along(jax.jit(jax.vmap(f)), point, direction, eps) - 1)


@pytest.mark.slow
@pytest.mark.parametrize("make, integrator", [(pendulum, EULER), (cartpole, FAST), (double_pendulum, RK4)])
def test_gradients_of_the_swing_up_tasks_equal_finite_differences_at_rest_and_in_motion(make, integrator):
    task = make(3, integrator=integrator)
    starts = jnp.stack([jnp.zeros(task.state_size), jax.random.normal(KEY, (task.state_size,))])
    errors = gradient_errors(task, starts, strength=0.3, eps=1e-5)
    print(make.__name__, errors)
    assert (errors < 1e-7).all()


@pytest.mark.slow
@pytest.mark.parametrize("id", IDS)
def test_gradients_of_gymnasiums_bodies_equal_finite_differences_at_rest_in_motion_and_in_contact(id):
    task = MJXTask.from_gymnasium(id, iterations=1, integrator=EULER)
    rest = jnp.zeros(task.state_size).at[: task.model.nq].set(task.model.qpos0)
    if id == "Hopper-v5":  # Its knees rest at their limits, where the derivative jumps, so bend them a little.
        rest = rest.at[3:5].set(-0.01)
    moving = task.reset(KEY) + 0.1 * jax.random.normal(KEY, rest.shape)
    touching = rest.at[1].add(-0.1)  # Feet in the ground; a pendulum leans.
    errors = gradient_errors(task, jnp.stack([rest, moving, touching]), strength=0.3, eps=1e-7)
    print(id, errors)
    assert (errors < 1e-5).all()


@pytest.mark.slow
def test_forward_mode_differentiates_a_hundred_iterations_and_reverse_mode_raises():
    task = MJXTask.from_gymnasium("InvertedPendulum-v5", forward_only=True, integrator=EULER)
    at_the_stop = jnp.array([[1.02, 0.1, 0.5, 0.2]]), jnp.full((1, 3, 1), 0.1)
    f, direction = last_state_and_return(task, 3), directions(at_the_stop)
    by_forward = jax.jit(jax.vmap(lambda x, d: jax.jvp(f, x, d)[1]))(at_the_stop, direction)
    assert jnp.allclose(by_forward, along(jax.jit(jax.vmap(f)), at_the_stop, direction, 1e-6), rtol=1e-5)
    with pytest.raises(ValueError, match="while_loop"):
        jax.grad(f)(at_the_stop[0][0], at_the_stop[1][0])
