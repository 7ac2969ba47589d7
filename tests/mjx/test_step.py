"""Steps of MJX and their Jacobians against C MuJoCo, where contacts stick, slide and open, from two warm starts."""
# MuJoCo's compiled classes come without stubs.
# pyright: reportAttributeAccessIssue=false

import equinox as eqx
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from mujoco import mjtCone, mjtIntegrator, mjtSolver, mjtState, mjx

from awmkit.mjx._step import round_contacts, step

# A ball that slides and rolls on a floor, with a stop, dry friction and an actuator with a state, and for slow tests a free ball.
MODEL = """<mujoco><option timestep="0.01" tolerance="1e-20" ls_tolerance="1e-10"/><worldbody>
    <geom type="plane" size="9 9 1" conaffinity="3"/>
    <body name="ball" pos="0 0 0.1"><joint name="x" type="slide" axis="1 0 0" limited="true" range="-9 1"/><joint type="slide" axis="0 0 1"/>
      <joint axis="0 1 0" frictionloss="0.01"/><geom size="0.1" condim="4"/></body>{free}</worldbody>
  <actuator><general joint="x" gainprm="3" dyntype="filter" dynprm="0.1" ctrlrange="-1 1"/></actuator>{equality}</mujoco>"""
FREE = '<body name="free" pos="0 3 0.1"><freejoint/><geom size="0.1" contype="2" conaffinity="0"/></body>'
EQUALITIES = '<equality><connect body1="ball" body2="free" anchor="0 1.5 0"/><weld body1="free"/></equality>'
FAST, ELLIPTIC = mjtIntegrator.mjINT_IMPLICITFAST, mjtCone.mjCONE_ELLIPTIC


def put_model(model):
    return jax.tree.map(lambda x: x.astype(float) if eqx.is_inexact_array(x) else x, mjx.put_model(model))


def c_step(model, inputs, warm):
    """The state after a step from (state, ctrl), and the acceleration."""
    data, kind = mujoco.MjData(model), mjtState.mjSTATE_PHYSICS
    state, data.ctrl[:] = np.split(inputs, [-model.nu])
    data.qacc_warmstart[:] = warm
    mujoco.mj_setState(model, data, state, kind)
    mujoco.mj_step(model, data)
    after = np.empty_like(state)
    mujoco.mj_getState(model, data, after, kind)
    return after, data.qacc.copy()


def c_jacobian(model, inputs, warm):
    """The Jacobian by central differences with Richardson's extrapolation."""
    difference = lambda move: (c_step(model, inputs + move, warm)[0] - c_step(model, inputs - move, warm)[0]) / (2 * move.max())
    columns = [(4 * difference(move / 2) - difference(move)) / 3 for move in 2e-6 * np.eye(inputs.size)]
    return np.stack(columns, axis=1)


def states(model):
    """States with the ball at rest, sliding, in the air, and at the stop, and the accelerations that C MuJoCo finds there."""
    rest = np.concatenate([model.qpos0, np.zeros(model.nv + model.na + model.nu)])
    for _ in range(100):
        rest[:-1] = c_step(model, rest, np.zeros(model.nv))[0]
    sliding, flying, stopped = rest.copy(), rest.copy(), rest.copy()
    sliding[model.nq] = 1
    flying[1], flying[model.nq : -1] = 1, np.linspace(-1, 1, model.nv + model.na)
    stopped[[0, model.nq, -1]] = 1.0003, 0.1, 0.5
    inputs = np.stack([rest, sliding, flying, stopped])
    return inputs, np.stack([c_step(model, x, np.zeros(model.nv))[1] for x in inputs])


def compare(differentiate, free="", *, integrator, cone, solver=mjtSolver.mjSOL_NEWTON, equality=""):
    model = mujoco.MjModel.from_xml_string(MODEL.format(free=free, equality=equality))
    model.opt.integrator, model.opt.cone, model.opt.solver = integrator, cone, solver
    placed = put_model(model)
    data, ends = mjx.make_data(placed), np.cumsum([model.nq, model.nv, model.na])

    def f(inputs, warm):
        qpos, qvel, act, ctrl = jnp.split(inputs, ends)
        after = step(placed, data.replace(qpos=qpos, qvel=qvel, act=act, ctrl=ctrl, qacc_warmstart=warm))
        state = jnp.concatenate([after.qpos, after.qvel, after.act])
        return state, state

    inputs, warm = states(model)
    with jax.numpy_dtype_promotion("standard"):
        quick = jax.jit(jax.vmap(differentiate(f, has_aux=True)), compiler_options={"xla_backend_optimization_level": 0})
        jacobians, values = quick(inputs, warm)
        from_cold = quick(inputs, 0 * warm)
    pairs = list(zip(inputs, warm, strict=True))
    expected, differences = (np.stack([g(model, *pair) for pair in pairs]) for g in (lambda *x: c_step(*x)[0], c_jacobian))
    print(np.abs(values - expected).max(), np.abs(jacobians - differences).max(axis=(1, 2)))
    assert np.allclose(from_cold[1], values, atol=1e-12)
    assert np.allclose(from_cold[0], jacobians, atol=1e-11 * np.abs(jacobians).max())
    assert np.allclose(values, expected, atol=1e-12)
    assert np.allclose(jacobians, differences, atol=1e-9 * np.abs(differences).max())


def test_jacobians_of_elliptic_contacts_equal_mujocos_differences_where_they_stick_slide_open_and_at_a_stop():
    compare(jax.jacfwd, integrator=FAST, cone=ELLIPTIC)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"integrator": mjtIntegrator.mjINT_RK4, "cone": ELLIPTIC},
        {"integrator": mjtIntegrator.mjINT_EULER, "cone": mjtCone.mjCONE_PYRAMIDAL, "solver": mjtSolver.mjSOL_CG},
        {"integrator": mjtIntegrator.mjINT_EULER, "cone": ELLIPTIC, "equality": EQUALITIES},
    ],
)
@pytest.mark.parametrize("differentiate", [jax.jacfwd, jax.jacrev])
def test_jacobians_of_either_mode_equal_mujocos_differences(differentiate, options):
    compare(differentiate, FREE, **options)


CAPSULES = """<mujoco><worldbody><geom type="capsule" size="0.1 0.3"/>
  <body><freejoint/><geom type="capsule" size="0.15 0.2"/></body><body><freejoint/><geom size="0.2"/></body></worldbody></mujoco>"""


def test_capsules_and_spheres_touch_where_they_do_in_mujoco():
    model = mujoco.MjModel.from_xml_string(CAPSULES)
    placed, data = put_model(model), mujoco.MjData(model)
    empty = mjx.make_data(placed)
    positions = np.random.default_rng(0).normal(size=(40, 14)) * np.tile([0.15] * 3 + [1.0] * 4, 2)

    def contacts(qpos):
        found = empty.replace(qpos=qpos)
        for stage in (mjx.kinematics, mjx.collision, round_contacts):
            found = stage(placed, found)
        contact = found._impl.contact
        return contact.geom, jnp.concatenate([contact.dist[:, None], contact.pos, contact.frame.reshape(-1, 9)], axis=1)

    with jax.numpy_dtype_promotion("standard"):
        geoms, found = map(np.asarray, jax.jit(jax.vmap(contacts))(positions))
    tested = 0
    for i, data.qpos[:] in enumerate(positions):
        mujoco.mj_forward(model, data)
        for contact in data.contact:
            (ours,) = found[i][np.all(np.sort(geoms[i]) == np.sort(contact.geom), axis=1)]
            assert np.allclose(ours, [contact.dist, *contact.pos, *contact.frame], atol=1e-10)
            tested += 1
    assert tested > 60
