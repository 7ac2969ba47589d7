"""MuJoCo tasks: MJX against C MuJoCo, Gymnasium and the ODE, and gradients against finite differences, also at rest.

The quick tests share one small Euler model. Tests that compile larger models are marked slow.
"""

import re
from contextlib import nullcontext
from pathlib import Path

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from misuse import says
from mujoco import mjtCone, mjtIntegrator, mjtSolver
from rounding import rounding

import awmkit.mjx
from awmkit import Sequential, unroll, unroll_grad
from awmkit.mjx import cartpole, double_pendulum, MJXTask, pendulum
from awmkit.tasks import DrivenDoublePendulum

KEY = jax.random.key(0)
EULER, RK4, FAST = mjtIntegrator.mjINT_EULER, mjtIntegrator.mjINT_RK4, mjtIntegrator.mjINT_IMPLICITFAST
IDS = [f"{name}-v5" for name in "InvertedPendulum InvertedDoublePendulum Reacher Swimmer Hopper HalfCheetah Walker2d".split()]
READY = [pendulum, cartpole, double_pendulum]
QUICK = {"xla_backend_optimization_level": 0}  # Compile faster.


@pytest.fixture(autouse=True)
def away_from_the_repository(tmp_path, monkeypatch):
    """MuJoCo writes its log of warnings to the working directory."""
    monkeypatch.chdir(tmp_path)


BALL = '<mujoco><worldbody><site name="0"/><body>{joint}<geom size="1"/></body></worldbody>{actuator}</mujoco>'
HINGE, MOTOR = '<joint name="0"/>', '<actuator><{kind} joint="0" {options}/></actuator>'
LIMITED = MOTOR.format(kind="motor", options='ctrlrange="-1 1"')


FALLING = BALL.format(joint='<joint name="0" type="slide" axis="0 0 1"/>', actuator=LIMITED).replace(
    "<body>", '<geom name="floor" type="plane" size="9 9 1"/><body pos="0 0 1.5">'
)


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
    assert np.allclose(inside.states, alone.states, atol=200 * rounding(jnp.float32))


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
    task = MJXTask.from_gymnasium(id)
    start, rest = task.reset(KEY), task.model.qpos0
    assert start.shape == (task.state_size,)
    assert task.reward(start, jnp.zeros(task.action_size), 0, start).shape == ()
    assert jnp.abs(start[: rest.size] - rest).max() <= 0.3 and (start != task.reset(jax.random.key(1))).any()


@pytest.mark.parametrize("id", [id for id in IDS if id not in ("Reacher-v5", "Swimmer-v5", "HalfCheetah-v5")])
def test_a_gymnasium_body_ends_an_episode_and_stops_its_healthy_reward_where_the_environment_does(id):
    env, task = gymnasium.make(id).unwrapped, MJXTask.from_gymnasium(id)
    env.action_space.seed(0)
    low, high = env.model.actuator_ctrlrange.T
    rows = []
    for seed in range(12):
        env.reset(seed=seed)
        for _ in range(80):
            state, action = np.concatenate([env.data.qpos, env.data.qvel]), env.action_space.sample()
            _, reward, terminated, *_ = env.step(action)
            after = np.concatenate([env.data.qpos, env.data.qvel])
            rows.append((state, (action - low) / (high - low) * 2 - 1, after, float(reward), terminated))
            if terminated:
                break
    states, actions, after, rewards, terminated = map(np.stack, zip(*rows, strict=True))
    compute = lambda s, a, n: (task.terminates(s, a, 0, n), task.reward(s, a, 0, n))
    ends, ours = jax.vmap(compute)(*map(jnp.asarray, (states, actions, after)))
    late = np.zeros(len(rows), bool)
    if id == "InvertedDoublePendulum-v5":  # The environment reads the tip of an earlier time.
        late = ends != terminated
        height = 0.6 * (np.cos(after[:, 1]) + np.cos(after[:, 1] + after[:, 2]))
        assert late.sum() <= 2 and (np.abs(height[late] - 1) < 0.01).all()
    assert (ends == terminated)[~late].all() and terminated.any() and not terminated.all()
    assert np.abs(ours - rewards)[~late].max() < (0.05 if id == "InvertedDoublePendulum-v5" else 1e-6)
    smooth = MJXTask.from_gymnasium(id, healthy_width=1e-6)
    np.testing.assert_allclose(jax.vmap(smooth.terminates, (0, 0, None, 0))(states, actions, 0, after), ends, atol=1e-3)


def test_the_gradient_of_the_reachers_reward_is_finite_at_its_target():
    reward = MJXTask.from_gymnasium("Reacher-v5").reward
    touching = jnp.zeros(8).at[2].set(0.1 + 0.11)
    value_and_grad = jax.value_and_grad(lambda s: reward(s, jnp.zeros(2), 0, s))
    value, grads = value_and_grad(touching)
    assert value == 0 and jnp.isfinite(grads).all()
    value, grads = value_and_grad(touching.at[3].set(1e-170))  # Its square vanishes.
    assert jnp.isclose(value, -1e-170, rtol=1e-12, atol=0) and jnp.isclose(grads[3], -1)


SMOOTH = '<geom size="1" condim="1" priority="1"/><body '
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
        "needs a finite control range.*for actuator 0",
    ),
    "an infinite control range": (
        lambda: ball(actuator=MOTOR.format(kind="motor", options='ctrlrange="-inf inf"')),
        "needs a finite control range.*for actuator 0",
    ),
    "no joints": (
        lambda: ball("", '<actuator><motor site="0" ctrlrange="-1 1"/></actuator>'),
        "no joints",
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
    "a constant to measure": (lambda: ball(measure=3), "measure must be a function of the mjx.Data.*got 3"),
    "a number measured": (lambda: ball(measure=lambda data: data.qpos[0]), "measure returned.*one vector.*jnp.concatenate"),
    "a complete state to complete": (
        lambda: ball(measure=lambda data: data.site_xpos[0]).complete(jnp.zeros(5)),
        r"complete needs state of shape \(2,\), got.*\[5\]",
    ),
    "elliptic cones with and without friction": (
        lambda: MJXTask(FALLING.replace("<body ", SMOOTH), zero, horizon=5, cone=mjtCone.mjCONE_ELLIPTIC),
        "MJX does not support.*condim=1",
    ),
    "a solver MJX lacks": (lambda: ball(solver=mjtSolver.mjSOL_PGS), "no PGS.*solver=mujoco.mjtSolver.mjSOL_NEWTON"),
    "a solver's name": (lambda: ball(solver="Newton"), "solver must be a mujoco.mjtSolver.*got 'Newton'"),
    "no horizon": (lambda: ball(horizon=0), "horizon=0"),
    "half a frame": (lambda: pendulum(frame_skip=0.5), "frame_skip=0.5"),
    "no iterations": (lambda: ball(iterations=0), "iterations=0"),
    "a width of nothing": (
        lambda: MJXTask.from_gymnasium("Reacher-v5", healthy_width=0.1),
        "Reacher-v5 does not end early here, so healthy_width=0.1 has no effect; leave it out",
    ),
    "a negative width": (
        lambda: MJXTask.from_gymnasium("Hopper-v5", healthy_width=-1.0),
        "must be one positive number, got -1.0",
    ),
    "a rule of one argument": (
        lambda: MJXTask(BALL.format(joint=HINGE, actuator=LIMITED), zero, horizon=5, terminates=lambda state: False),
        "termination rule.*state, action, t",
    ),
    "an unknown body": (
        lambda: MJXTask.from_gymnasium("Ant-v5"),
        "id must be one of InvertedPendulum-v5.*Walker2d-v5, got 'Ant-v5'",
    ),
}


@pytest.mark.parametrize("name", SENTENCES)
def test_misuse_raises_one_clear_sentence(name):
    says(*SENTENCES[name])


def arm(joint="", geom="", motor="", option="", flag="", body="", rest=""):
    """MJCF of a hinge, a tendon on it and one motor, without contacts."""
    return f"""<mujoco>{rest}<option {option}><flag {flag}/></option><worldbody>
      <body name="leg" {body}><joint name="hip" axis="0 1 0" {joint}/><geom name="shin" size=".1" pos=".3 0 0" {geom}/></body></worldbody>
      <actuator><general name="motor" joint="hip" ctrlrange="-1 1" {motor}/></actuator></mujoco>"""


def tendon(options):
    return f'<tendon><fixed name="cord" {options}><joint joint="hip" coef="1"/></fixed></tendon>'


VELOCITY = 'biastype="affine" biasprm="0 0 -5"'
FLOOR = '<worldbody><geom name="floor" type="plane" size="9 9 1"/></worldbody>'
PAIR = FLOOR + '<contact><pair name="sole" geom1="floor" geom2="shin" {}/></contact>'
EQUALITY = '<equality><joint name="lock" joint1="hip" {}/></equality>'
FREE = '<worldbody><body pos="0 0 9"><freejoint name="fly"/><geom size=".1 .2 .3" type="box" contype="0"/></body></worldbody>'
PLUGIN = """<extension><plugin plugin="mujoco.elasticity.cable"/></extension><worldbody><body name="cable"><freejoint/>
  <geom type="capsule" size=".1 .1"/><plugin plugin="mujoco.elasticity.cable"/></body></worldbody>"""
MUSCLE = 'gaintype="muscle" biastype="muscle" dyntype="muscle" dynprm=".01 .04" lengthrange="-1 1" gainprm="{0}" biasprm="{0}"'.format(
    ".75 1.05 9 200 .5 1.6 1.5 1.3 1.2"
)

# Models that MJX moves differently, and the field and object that the error must name.
DROPPED = [
    (arm(joint='stiffness="1 2 3"'), "jnt_stiffnesspoly of joint hip"),
    (arm(joint='damping="0 2"'), "dof_dampingpoly of joint hip"),
    (arm(rest=tendon('stiffness="1 2"')), "tendon_stiffnesspoly of tendon cord"),
    (arm(rest=tendon('damping="1 2"')), "tendon_dampingpoly of tendon cord"),
    (arm(motor='damping="3"'), "actuator_damping of actuator motor"),
    (arm(motor='armature="3"'), "actuator_armature of actuator motor"),
    (arm(motor='dyntype="filter" dynprm="0.1" actearly="true"'), "actuator_actearly of actuator motor"),
    (arm(motor='group="2"', option='actuatorgroupdisable="2"'), "opt.disableactuator of actuator motor"),
    (arm(motor=f'{VELOCITY} forcerange="-1 1"', option='integrator="implicitfast"'), "actuator_forcerange of actuator motor"),
    (arm(motor=MUSCLE, option='integrator="implicitfast"'), "actuator_gaintype of actuator motor.*mjINT_EULER"),
    (
        arm(rest=FREE, option='integrator="implicitfast"'),
        r"opt.integrator \(implicitfast\) of joint fly: .*mjINT_EULER",
    ),
    (arm(geom='fluidshape="ellipsoid"', option='density="9"'), "geom_fluid of geom shin"),
    (arm(geom='surfacevel="1 0 0 0 0 0"'), "geom_surfacevel of geom shin"),
    (arm(geom='adhesion="9"'), "geom_adhesion of geom shin"),
    (arm(rest=PAIR.format('adhesion="9"')), "pair_adhesion of pair sole"),
    (arm(rest=PLUGIN), "plugin 0"),
    (arm(joint='limited="true" range="-1 1" margin="2"'), "jnt_range and jnt_margin of joint hip"),
    (arm(rest=tendon('limited="true" range="-1 1" margin="2"')), "tendon_range and tendon_margin of tendon cord"),
    (arm(joint='limited="true" range="-1 1" solreflimit="-9 1"'), "jnt_solref of joint hip"),
    (arm(joint='frictionloss="1" solreffriction="1 -9"'), "dof_solref of joint hip"),
    (arm(geom='solref="-9 1"'), "geom_solref of geom shin"),
    (arm(rest=PAIR.format('solref="-9 1"')), "pair_solref of pair sole"),
    (arm(rest=PAIR.format('solreffriction="-9 1"')), "pair_solreffriction of pair sole"),
    (arm(rest=EQUALITY.format('solref="-9 1"')), "eq_solref of equality lock"),
    (arm(rest=tendon('solreflimit="-9 1"')), "tendon_solref_lim of tendon cord"),
    (arm(rest=tendon('solreffriction="-9 1"')), "tendon_solref_fri of tendon cord"),
    (arm(joint='solimplimit=".5 .9 0"'), "jnt_solimp of joint hip"),
    (arm(joint='solimpfriction=".5 .9 0"'), "dof_solimp of joint hip"),
    (arm(geom='solimp=".5 .9 0"'), "geom_solimp of geom shin"),
    (arm(rest=PAIR.format('solimp=".5 .9 0"')), "pair_solimp of pair sole"),
    (arm(rest=EQUALITY.format('solimp=".5 .9 0"')), "eq_solimp of equality lock"),
    (arm(rest=tendon('solimplimit=".5 .9 0"')), "tendon_solimp_lim of tendon cord"),
    (arm(rest=tendon('solimpfriction=".5 .9 0"')), "tendon_solimp_fri of tendon cord"),
    (arm(joint='stiffness="1" damping="2"', flag='spring="disable"'), r"opt.disableflags \(spring or damper\)"),
    (arm(option='noslip_iterations="3"', joint='frictionloss="1"'), "opt.noslip_iterations"),
    (arm(flag='sleep="enable"'), r"opt.enableflags \(sleep\)"),
]
# What looks like a row of the table but moves as in MuJoCo.
KEPT = [
    arm(joint='stiffness="1" damping="2" armature="1"', rest=tendon('stiffness="1" damping="2"')),
    arm(motor='dyntype="none" actearly="true"'),
    arm(motor='group="2"', option='actuatorgroupdisable="3"'),
    arm(motor=f'{VELOCITY} forcerange="-1 1"'),
    arm(motor=VELOCITY, option='integrator="implicitfast"'),
    arm(motor='gaintype="affine" gainprm="1 1 -5"', option='integrator="implicitfast"'),
    arm(motor=MUSCLE),
    arm(geom='fluidshape="ellipsoid"'),
    arm(geom='fluidshape="none"', option='density="9"'),
    arm(joint='limited="true" range="-1 1" margin=".01" solreflimit="-9 -1" solimplimit=".9 .9 0"'),
    arm(flag='damper="disable"'),
    arm(joint='stiffness="1"', flag='spring="disable" damper="disable"'),
    arm(option='noslip_iterations="3"', geom='contype="0"'),
]


@pytest.mark.parametrize("mjcf, names", DROPPED)
def test_a_feature_that_mjx_drops_is_refused_by_the_name_of_its_field_and_object(mjcf, names):
    says(lambda: MJXTask(mjcf, zero, horizon=5), f"differently from MuJoCo by .*{names}")


@pytest.mark.parametrize("mjcf", KEPT)
def test_a_feature_that_does_not_change_the_motion_is_accepted(mjcf):
    MJXTask(mjcf, zero, horizon=5)


def test_every_row_of_the_table_of_differences_has_a_model():
    assert len(DROPPED) == len(awmkit.mjx._differences.DIFFERENCES) - 1  # The last row is tested next.


def test_a_callback_is_refused():
    model = mujoco.MjModel.from_xml_string(arm())
    mujoco.set_mjcb_passive(lambda model, data: None)
    try:
        says(lambda: MJXTask(model, zero, horizon=5), "callback.*set_mjcb")
    finally:
        mujoco.set_mjcb_passive(None)


CYLINDERS = """<worldbody><geom name="block" type="cylinder" size="1 1" {0}/><body name="rod" pos="0 0 3"><freejoint/>
  <geom type="cylinder" size="1 1" {0}/></body></worldbody>"""
BARE = 'contype="0" conaffinity="0"'
LOOP = '<equality><connect body1="leg" body2="world" anchor="0 0 0"/></equality>'


@pytest.mark.parametrize(
    "mjcf, notes",
    [
        (arm(geom=BARE, rest=CYLINDERS.format("")), "contacts in its own way between cylinder and cylinder, so"),
        (arm(geom=BARE, rest=CYLINDERS.format(BARE)), None),
        (arm(geom=BARE, rest=CYLINDERS.format("") + '<contact><exclude body1="world" body2="rod"/></contact>'), None),
        (arm(geom=BARE, rest=CYLINDERS.format(""), flag='contact="disable"'), None),
        (arm(rest=LOOP), None),
    ],
)
def test_contacts_that_mjx_finds_in_its_own_way_are_warned_of(mjcf, notes):
    with nullcontext() if notes is None else pytest.warns(UserWarning, match=f"{notes}.*differently from MuJoCo"):
        MJXTask(mjcf, zero, horizon=5)


@pytest.mark.parametrize(
    "joint, kind, warned", [('stiffness="1"', "motor", True), ("", "position", True), ("", "motor", False)]
)
def test_a_spring_or_servo_of_a_ball_joint_is_warned_of(joint, kind, warned):
    motor = MOTOR.format(kind=kind, options='gear="0 1 0 0 0 0" ctrlrange="-1 1"')
    with pytest.warns(UserWarning, match="joint 0 has a derivative of 0") if warned else nullcontext():
        ball(f'<joint name="0" type="ball" {joint}/>', motor)


def test_options_change_a_copy_and_flags_that_do_not_move_the_state_are_cleared():
    flags = '<flag energy="enable" fwdinv="enable"/>'
    model = mujoco.MjModel.from_xml_string(FALLING.replace("<worldbody>", f'<option solver="PGS">{flags}</option><worldbody>'))
    options = {"integrator": FAST, "solver": mjtSolver.mjSOL_CG, "iterations": 7, "cone": mjtCone.mjCONE_ELLIPTIC}
    before = {name: getattr(model.opt, name) for name in [*options, "enableflags"]}
    placed = MJXTask(model, zero, horizon=5, **options).model
    assert {name: getattr(placed.opt, name) for name in options} == options and placed.opt.enableflags == 0
    assert {name: getattr(model.opt, name) for name in before} == before and before["enableflags"] and before["solver"] == 0


def test_elliptic_cones_without_friction_are_stepped_as_pyramids():
    option = '<option cone="elliptic"/><worldbody>'
    task = ball('<joint name="0" limited="true" range="-1 1"/>')
    elliptic = MJXTask(FALLING.replace("<worldbody>", option).replace("<geom", '<geom condim="1"'), zero, horizon=5)
    assert task.model.opt.cone == elliptic.model.opt.cone == mjtCone.mjCONE_PYRAMIDAL


WITH_STATE = f"""<mujoco><worldbody><body>{HINGE}<inertial pos="1 0 0" mass="1" diaginertia="1 1 1"/></body></worldbody>
  <actuator><general joint="0" ctrlrange="-1 1" dyntype="filter" dynprm="0.1" gainprm="3"/></actuator></mujoco>"""
# A ball on the floor in a sliding contact, pushed by an actuator with a state at a site on its top.
ROLLING = """<mujoco><option timestep="0.01"/><worldbody><geom type="plane" size="9 9 1"/>
  <body pos="0 0 .1"><freejoint/><geom size=".1" pos=".02 0 0"/><site name="top" pos="0 0 .1"/></body></worldbody>
  <actuator><general site="top" gear="1 0 0 0 0 0" ctrlrange="-1 1" gainprm="9" dyntype="filter" dynprm=".05"/></actuator>
  <sensor><accelerometer site="top"/><framelinvel objtype="site" objname="top"/></sensor></mujoco>"""
ROLL = np.array([0, 0, 0.098, 1, 0, 0, 0, 0.3, 0.1, -0.2, 0.5, 0.2, 0.1, 0.3])
# The same ball in a plane, because the program of RK4 takes minutes to compile for a free ball.
PLANAR = ROLLING.replace(
    "<freejoint/>", '<joint type="slide" axis="1 0 0"/><joint type="slide" axis="0 0 1"/><joint axis="0 1 0"/>'
)


def site_and_sensors(data):
    return jnp.concatenate([data.site_xpos[0], data.sensordata])


def measured_in_c(model, start, actions, frame_skip):
    """The last state by C MuJoCo and, after mj_forward, the position of its site and its sensors."""
    data, kind = mujoco.MjData(model), mujoco.mjtState.mjSTATE_PHYSICS
    mujoco.mj_setState(model, data, np.array(start), kind)
    for action in np.array(actions):
        data.ctrl[:] = action
        mujoco.mj_step(model, data, nstep=frame_skip)
    mujoco.mj_forward(model, data)
    state = np.empty(len(start))
    mujoco.mj_getState(model, data, state, kind)
    return np.concatenate([state, data.site_xpos[0], data.sensordata])


SWINGING = WITH_STATE.replace("</body>", '<site name="top" pos="1 0 0"/></body>').replace(
    "</mujoco>", '<sensor><accelerometer site="top"/></sensor></mujoco>'
)


@pytest.mark.parametrize(
    "mjcf, start", [(SWINGING, np.array([0.4, 0.7, 0.2])), pytest.param(ROLLING, ROLL, marks=pytest.mark.slow)]
)
def test_measured_quantities_of_a_first_state_equal_mujocos(mjcf, start):
    task = MJXTask(mjcf, zero, horizon=5, measure=site_and_sensors)
    truth = measured_in_c(mujoco.MjModel.from_xml_string(mjcf), start, [], 1)
    assert task.state_size == truth.size
    assert np.allclose(jax.jit(lambda x: task.complete(x))(jnp.asarray(start)), truth, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "mjcf, start, cone, integrator",
    [
        (ROLLING, ROLL, mjtCone.mjCONE_ELLIPTIC, EULER),
        (ROLLING, ROLL, mjtCone.mjCONE_PYRAMIDAL, EULER),
        (PLANAR, np.array([0, -0.002, 0.1, 0.3, -0.2, 0.5, 0.3]), mjtCone.mjCONE_ELLIPTIC, RK4),
    ],
)
def test_derivatives_of_states_and_measured_quantities_in_contact_equal_mujocos_differences_in_both_modes(
    mjcf, start, cone, integrator
):
    task = MJXTask(mjcf, zero, horizon=3, frame_skip=2, cone=cone, integrator=integrator, measure=site_and_sensors)
    model = mujoco.MjModel.from_xml_string(mjcf)
    model.opt.cone, model.opt.integrator = cone, integrator
    weights = jnp.sin(jnp.arange(1.0, task.state_size + 1))
    in_c = lambda start, actions: np.array(weights) @ measured_in_c(model, start, actions, 2)
    value = lambda start, actions: weights @ unroll(task, actions, task.complete(start), 3).states[-1]
    point = jnp.asarray(start), jnp.array([[0.5], [-0.2], [0.3]])
    direction = directions(point)
    by_reverse = jax.jit(jax.value_and_grad(value, (0, 1)), compiler_options=QUICK)(*point)
    by_forward = jax.jit(lambda point: jax.jvp(value, point, direction)[1], compiler_options=QUICK)(point)
    by_difference = along(in_c, point, direction, 1e-6)
    assert np.isclose(by_reverse[0], in_c(*point), rtol=1e-9)
    along_direction = sum(jnp.sum(g * d) for g, d in zip(by_reverse[1], direction, strict=True))
    assert np.isclose(along_direction, by_forward, rtol=1e-11) and np.isclose(by_forward, by_difference, rtol=1e-6)


@pytest.mark.slow
def test_second_derivatives_in_contact_equal_differences_of_the_gradient():
    task = MJXTask(FALLING, zero, horizon=1, frame_skip=2)
    value = lambda point: jnp.array([1.0, 0.7]) @ task.step(jnp.zeros(1), point[:2], point[2:], 0)[1]
    # The force is not linear in a depth of less than 1 mm.
    point, direction = jnp.array([-0.5004, -0.02, 0.3]), jnp.array([0.3, 1.0, 0.5])
    gradient = jax.jit(jax.grad(value), compiler_options=QUICK)
    along_direction = lambda point: jax.grad(value)(point) @ direction
    by_reverse = jax.jit(jax.grad(along_direction), compiler_options=QUICK)(point)
    by_forward = jax.jit(lambda x: jax.jvp(jax.grad(value), (x,), (direction,))[1], compiler_options=QUICK)(point)
    by_difference = along(gradient, (point,), (direction,), 1e-7)
    assert jnp.abs(by_difference).max() > 1
    assert jnp.allclose(by_reverse, by_forward, rtol=1e-11)
    assert jnp.allclose(by_reverse, by_difference, rtol=1e-6)


# Words in the names of fields that do not move the state (looks, names, sensors, memory), that repeat other fields, or that serve
# only flexes, plugins, delays, types of actuators, solvers and flags that MJX or awmkit refuses.
UNREAD = """flex skin tex mat_ cam_ light_ bvh oct_ text tuple key_ sensor user name rgba group path matid vis stat rownnz rowadr
colind mapM mapD D_diag efm B_ sameframe simple tree mesh_ site_type site_size site_dataid width numeric magnetic signature
_aabb _gap body_contype body_conaffinity body_margin body_jnt jnt_actuatorid tendon_actuatorid dof_M dof_length length0 eq_active0
flg_ plugin history delay cranklength ctrladr ctrlnum ctrlspec outadr outnum o_ ccd_ sdf_ noslip_tolerance sleep_tolerance""".split()


def test_mjx_reads_refuses_or_may_ignore_every_field_of_a_model():
    folder = Path(mujoco.__file__).parent / "mjx" / "_src"
    names = (
        "collision_convex collision_driver collision_primitive collision_sdf constraint derivative forward mesh passive scan"
    )
    source = "".join((folder / f"{name}.py").read_text() for name in f"{names} smooth solver support".split())
    read = set(re.findall(r"\bm(?:\.opt)?(?:\._impl)?\.(\w+)", source))
    model = mujoco.MjModel.from_xml_string(arm())
    fields = {field for x in (model, model.opt) for field in dir(x) if not (field[0] == "_" or callable(getattr(x, field)))}
    counts = {field for field in fields if re.fullmatch("n[a-zA-Z0-9]+", field)}
    known = "".join((Path(awmkit.mjx.__file__).parent / f"{name}.py").read_text() for name in ("_differences", "_model"))
    unread = {field for field in fields - read - counts if not any(word in field for word in UNREAD)}
    assert len(fields & read) > 150 and sorted(field for field in unread if not re.search(rf"\b{field}\b", known)) == []


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


@pytest.mark.slow
@pytest.mark.parametrize("mjcf", KEPT)
def test_an_accepted_feature_moves_as_in_mujoco_also_beyond_the_range_of_controls(mjcf):
    task = MJXTask(mjcf, zero, horizon=5)
    model = mujoco.MjModel.from_xml_string(mjcf)
    start = jax.random.normal(KEY, (task.state_size,))
    actions = jax.random.uniform(KEY, (5, 1), minval=-2, maxval=2)
    states = unroll(task, actions, start, 5).states
    assert np.allclose(states, c_states(model, start, actions, integrator=model.opt.integrator, frame_skip=1), atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("integrator", [EULER, RK4])
def test_an_orientation_at_rest_depends_on_the_spin_as_in_mujoco(integrator):
    mjcf = BALL.format(joint='<joint name="0" type="ball"/>', actuator=LIMITED.replace("<motor", '<motor gear="0 0 1 0 0 0"'))
    task = MJXTask(mjcf, zero, horizon=1, integrator=integrator)
    end = lambda spin: unroll(task, jnp.zeros((1, 1)), jnp.array([1.0, 0, 0, 0, *spin]), 1).states[-1]
    still, direction = jnp.zeros(3), jnp.array([0.3, -0.7, 0.5])
    by_forward = jax.jit(lambda: jax.jvp(end, (still,), (direction,)))()
    assert np.allclose(by_forward[0], [1, 0, 0, 0, 0, 0, 0], atol=1e-9)
    assert np.allclose(by_forward[1], [0, *(task.dt / 2 * direction), *direction], atol=1e-7)


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
STRENGTH = dict(zip(IDS, [0.005, 0.005, 0.3, 0.5, 0.5, 0.5, 0.5], strict=True))
LIFT = {"Hopper-v5": 1.0, "HalfCheetah-v5": 40.0, "Walker2d-v5": 1.0}


def episode(id, lift=0.0, **options):
    task = MJXTask.from_gymnasium(id, horizon=50, terminate_when_unhealthy=False, **options)
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
def test_an_unroll_of_a_body_ends_where_gymnasium_does_and_a_smooth_end_has_a_gradient():
    id = "InvertedPendulum-v5"
    task, smooth = MJXTask.from_gymnasium(id, horizon=20), MJXTask.from_gymnasium(id, horizon=20, healthy_width=0.05)
    start, plan = task.reset(KEY), jnp.full((20, 1), 0.3)
    trajectory = jax.jit(lambda: unroll(task, plan, start, 20, reward=task.reward))()
    _, rewards, ended, _ = gymnasium_episode(gymnasium.make(id).unwrapped, start, plan)
    length = int(np.argmax(ended)) + 1
    assert (
        trajectory.terminated
        and trajectory.length == length < 20
        and float(trajectory.returns()) == float(rewards[:length].sum())
    )
    value = jax.jit(lambda plan: unroll(smooth, plan, start, 20, reward=smooth.reward).returns())
    _, grads = unroll_grad(smooth, plan, start, 20, reward=smooth.reward)
    direction = jax.random.normal(KEY, plan.shape)
    by_difference = (value(plan + 1e-6 * direction) - value(plan - 1e-6 * direction)) / 2e-6
    assert abs(by_difference) > 0.01 and np.isclose(jnp.sum(grads * direction), by_difference, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("id", IDS)
def test_initial_states_have_gymnasiums_means_and_deviations(id):
    env = gymnasium.make(id).unwrapped
    theirs = []
    for seed in range(400):
        env.reset(seed=seed)
        theirs.append(np.concatenate([env.data.qpos, env.data.qvel]))
    ours = jax.vmap(MJXTask.from_gymnasium(id).reset)(jax.random.split(KEY, 400))
    spread = np.std(theirs, axis=0)
    assert (np.abs(np.mean(theirs, axis=0) - np.mean(ours, axis=0)) <= 0.3 * spread).all()
    assert (np.abs(np.std(ours, axis=0) - spread) <= 0.2 * spread).all()


# How far Euler in place of RK4 moves the positions (m, rad) in an episode of 50 steps. The difference is largest in a fall.
MOVED = dict(zip(IDS, [0.067, 3.8, 0.021, 0.018, 0.007, 0, 0.042], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("id", IDS)
def test_euler_moves_the_states_as_far_as_documented(id):
    task, own = episode(id)
    moved = np.abs(episode(id, integrator=EULER)[1].states - own.states)[:, : task.model.nq].max()
    print(id, moved)
    assert MOVED[id] / 2 <= moved <= 2 * MOVED[id] + 1e-9


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


BENT = {"Hopper-v5": np.array([3, 4]), "Walker2d-v5": np.array([3, 4, 6, 7])}


@pytest.mark.slow
@pytest.mark.parametrize("id", IDS)
def test_gradients_of_gymnasiums_bodies_equal_finite_differences_at_rest_in_motion_and_in_contact(id):
    task = MJXTask.from_gymnasium(id, integrator=EULER)
    rest = jnp.zeros(task.state_size).at[: task.model.nq].set(task.model.qpos0)
    if id in BENT:  # Hips and knees rest at their limits, where the derivative jumps, so bend them a little.
        rest = rest.at[BENT[id]].set(-0.01)
    moving = task.reset(KEY) + 0.1 * jax.random.normal(KEY, rest.shape)
    touching = rest.at[1].add(-0.1)  # Feet in the ground; a pendulum leans.
    errors = gradient_errors(task, jnp.stack([rest, moving, touching]), strength=0.3, eps=1e-7)
    print(id, errors)
    assert (errors < 1e-5).all()
