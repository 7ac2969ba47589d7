"""MJX's step, with the derivative of the constraint solver's solution in place of its iterations' derivative."""
# MuJoCo's compiled classes come without stubs.
# pyright: reportAttributeAccessIssue=false

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from jax import lax
from jaxtyping import Array, Float
from mujoco import mjtCone, mjtDisableBit, mjtEq, mjtGeom, mjtIntegrator, mjtJoint, mjx

_BODIES = mjx.kinematics, mjx.com_pos, mjx.camlight, mjx.tendon, mjx.crb, mjx.tendon_armature, mjx.factor_m, mjx.collision
_FORCES = mjx.sensor_pos, mjx.fwd_velocity, mjx.sensor_vel, mjx.fwd_actuation, mjx.fwd_acceleration


def step(model: mjx.Model, data: mjx.Data) -> mjx.Data:
    """Step like `mujoco.mjx.step`. Any mode differentiates it exactly, with any number of solver iterations.

    Take second derivatives through `by_forward_mode` only: JAX 0.10 forgets the rule of `solve` in the gradient of a scan.

    With RK4, only the state, the time, qacc and the warm start are set in the data returned.
    """
    integrator = model.opt.integrator
    if integrator == mjtIntegrator.mjINT_RK4:
        return _runge_kutta(model, data)
    after = (mjx.euler if integrator == mjtIntegrator.mjINT_EULER else mjx.implicit)(model, forward(model, data))
    return after.replace(qpos=_moved(model, data.qpos, model.opt.timestep * after.qvel))


def forward(model: mjx.Model, data: mjx.Data) -> mjx.Data:
    """Compute accelerations and forces like MuJoCo, with the derivative of `solve`."""
    stages = *_BODIES, round_contacts, mjx.make_constraint, _with_curvature, mjx.transmission, *_FORCES
    for stage in stages:
        data = stage(model, data)
    solved = solve(model, data) if data._impl.efc_J.size else data.replace(qacc=data.qacc_smooth)
    return mjx.sensor_acc(model, solved)  # MJX leaves it out where there are no constraint rows.


def round_contacts(model: mjx.Model, data: mjx.Data) -> mjx.Data:
    """Find the contacts of capsules with capsules and spheres as MuJoCo does. MJX moves them by up to a millionth of their size.

    The contact lies between the closest points p1 + s h1 and p2 + t h2 of the capsules' axes (Ericson, Real-Time Collision
    Detection, section 5.1.9). MuJoCo has a second contact where they are parallel.
    """
    kinds, sizes = model.geom_type, model.geom_size
    capsules, spheres = (kinds == kind for kind in (mjtGeom.mjGEOM_CAPSULE, mjtGeom.mjGEOM_SPHERE))
    if np.sum(capsules | spheres) < 2 or not data._impl.ncon or not capsules.any():
        return data
    contact = data._impl.contact
    first, second = contact.geom.T
    halves = jnp.where(capsules, sizes[:, 1], 0.0)[:, None] * data.geom_xmat[:, :, 2]
    p1, p2, h1, h2 = data.geom_xpos[first], data.geom_xpos[second], halves[first], halves[second]
    dot = lambda x, y: jnp.sum(x * y, axis=1, keepdims=True)
    inside = lambda x: jnp.clip(x, -1.0, 1.0)
    nonzero = lambda x: jnp.where(x > mujoco.mjMINVAL, x, 1.0)
    a, b, c, u, v = dot(h1, h1), dot(h1, h2), dot(h2, h2), dot(h1, p2 - p1), dot(h2, p1 - p2)
    s = inside((c * u + b * v) / nonzero(a * c - b**2))
    t = inside((v + b * s) / nonzero(c))
    s = inside((u + b * t) / nonzero(a))
    start, along = p1 + s * h1, p2 + t * h2 - p1 - s * h1
    squared = dot(along, along)
    apart = jnp.sqrt(jnp.where(squared > 0, squared, 1.0))
    normal = jnp.where(squared > 0, along / apart, jnp.array([1.0, 0.0, 0.0]))
    radius = sizes[first, :1]
    dist = jnp.where(squared > 0, apart, 0.0) - radius - sizes[second, :1]
    across = jnp.where(jnp.abs(normal[:, 1:2]) < 0.5, jnp.array([0.0, 1.0, 0.0]), jnp.array([0.0, 0.0, 1.0]))
    across = across - normal * dot(normal, across)
    across = across / jnp.linalg.norm(across, axis=1, keepdims=True)
    frame = jnp.stack([normal, across, jnp.cross(normal, across)], axis=1)
    rounds = (capsules | spheres)[:, None] & (capsules | spheres) & (capsules[:, None] | capsules)
    ours = jnp.asarray(rounds)[first, second]
    contact = contact.replace(
        dist=jnp.where(ours, dist[:, 0], contact.dist),
        pos=jnp.where(ours[:, None], start + normal * (radius + dist / 2), contact.pos),
        frame=jnp.where(ours[:, None, None], frame, contact.frame),
    )
    return data.replace(_impl=data._impl.replace(contact=contact))


def _with_curvature(model: mjx.Model, data: mjx.Data) -> mjx.Data:
    """Subtract dJ/dt qvel from the reference accelerations of connect and weld equalities, as MuJoCo does and MJX does not."""
    connect, weld = (int(np.sum(model.eq_type == kind)) for kind in (mjtEq.mjEQ_CONNECT, mjtEq.mjEQ_WELD))
    rows = min(3 * connect + 6 * weld, data._impl.ne)  # MJX's first rows; there are none if equalities are disabled.
    if not rows:
        return data

    def speeds(time):
        at = data.replace(qpos=_moved(model, data.qpos, time * data.qvel))
        for stage in (mjx.kinematics, mjx.com_pos, mjx.make_constraint):
            at = stage(model, at)
        return at._impl.efc_J[:rows] @ data.qvel

    now = jnp.zeros((), data.qpos.dtype)
    change = jax.jvp(speeds, (now,), (jnp.ones_like(now),))[1]
    return data.replace(_impl=data._impl.replace(efc_aref=data._impl.efc_aref.at[:rows].add(-change)))


class _Problem(NamedTuple):
    """What the constraint solver reads: MuJoCo's M, qfrc_smooth, efc_J, efc_aref, efc_D, efc_frictionloss, and cones."""

    mass: Float[Array, "nv nv"]
    smooth: Float[Array, " nv"]
    jacobian: Float[Array, "rows nv"]
    reference: Float[Array, " rows"]
    stiffness: Float[Array, " rows"]
    dry: Float[Array, " rows"]
    cones: Float[Array, "contacts 6"]


def solve(model: mjx.Model, data: mjx.Data) -> mjx.Data:
    """Solve the constraints like `mujoco.mjx.solve`, and differentiate the solution by the implicit function theorem.

    The solver minimises a convex function of the accelerations a, whose gradient is

        g(a) = M a - q - J' f(J a - r)

    with the mass matrix M, the forces q without constraints, and the constraints' Jacobian J, reference accelerations r and forces
    f (MuJoCo's documentation, chapter Computation). At its minimum g = 0, so

        da = -H^-1 dg,    H = M - J' f'(J a - r) J

    where dg is the change of g at a fixed a. This is exact once the solver has converged: with Newton and CG, and with elliptic
    cones, where the derivative of MJX's iterations is NaN if a contact does not slide. No derivative passes the solver's loop, so
    reverse mode works. The warm start has no gradient. A last Newton step makes the values more precise where it lowers |g|.
    """
    impl, fixed = data._impl, jax.tree.map(lambda x: lax.stop_gradient(x) if eqx.is_inexact_array(x) else x, (model, data))
    force, cones = _force_law(model, data)
    problem = _Problem(
        mass=mjx.full_m(model, data),
        smooth=data.qfrc_smooth,
        jacobian=impl.efc_J,
        reference=impl.efc_aref,
        stiffness=impl.efc_D,
        dry=impl.efc_frictionloss,
        cones=cones,
    )

    def forces(qacc, problem):
        """By joint, from Newton's law, and by constraint."""
        by_row = force(problem.jacobian @ qacc - problem.reference, problem)
        return problem.mass @ qacc - problem.smooth, by_row

    def residual(qacc, problem):
        by_joint, by_row = forces(qacc, problem)
        return by_joint - problem.jacobian.T @ by_row

    def newton(qacc, problem, gradient):
        hessian = jax.jacfwd(residual)(qacc, problem)
        return -jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor((hessian + hessian.T) / 2), gradient)

    @jax.custom_jvp
    def solution(problem, values):
        del problem
        return values

    @solution.defjvp
    def _(primals, tangents):
        (problem, _), (change, _) = primals, tangents
        values = solution(*primals)  # Second derivatives come here again.
        qacc = values[0]
        moved = newton(qacc, problem, jax.jvp(lambda problem: residual(qacc, problem), (problem,), (change,))[1])
        return values, (moved, *jax.jvp(forces, (qacc, problem), (moved, change))[1])

    # MJX stops where rounding hides a decrease of the function, which is the root of the precision away from the minimum.
    found, still = mjx.solve(*fixed).qacc, lax.stop_gradient(problem)
    gradient = residual(found, still)
    polished = found + newton(found, still, gradient)
    qacc = jnp.where(jnp.linalg.norm(residual(polished, still)) < jnp.linalg.norm(gradient), polished, found)
    by_row = forces(qacc, still)[1]
    qacc, qfrc_constraint, efc_force = solution(problem, (qacc, still.jacobian.T @ by_row, by_row))
    return data.replace(qacc=qacc, qfrc_constraint=qfrc_constraint, _impl=impl.replace(efc_force=efc_force))


def _force_law(model: mjx.Model, data: mjx.Data):
    """Return `force(J a - r, problem)`, the constraints' forces, and the scales of the elliptic cones, which it reads."""
    impl = data._impl
    equalities, dry = impl.ne, impl.ne + impl.nf
    elliptic = impl.contact.dim > 1 if model.opt.cone == mjtCone.mjCONE_ELLIPTIC else np.zeros(0, bool)
    dims, first = (
        values[elliptic] if elliptic.any() else values[:0] for values in (impl.contact.dim, impl.contact.efc_address)
    )
    inside = np.arange(6) < dims[:, None]
    rows = np.where(inside, first[:, None] + np.arange(6), impl.nefc)  # Out of bounds where a contact has fewer rows.
    friction = impl.contact.friction[: len(elliptic)][elliptic] if elliptic.any() else jnp.zeros((0, 5))
    across = friction[:, :1] / jnp.sqrt(model.opt.impratio)
    cones = jnp.where(inside, jnp.concatenate([across, friction], axis=1), 0.0)

    def force(x, problem):
        linear = -problem.stiffness * x
        bound = problem.dry[equalities:dry]
        by_row = jnp.concatenate(
            [
                linear[:equalities],
                jnp.clip(linear[equalities:dry], -bound, bound),
                jnp.where(x[dry:] < 0, linear[dry:], 0.0),
            ]
        )
        if not elliptic.any():
            return by_row
        take = lambda values: values.at[rows].get(mode="fill", fill_value=0.0)
        by_contact = jax.vmap(_cone_force)(take(x), take(problem.stiffness), problem.cones)
        return by_row.at[rows].set(by_contact, mode="drop")

    return force, cones


def _cone_force(x: Float[Array, " 6"], stiffness: Float[Array, " 6"], scale: Float[Array, " 6"]) -> Float[Array, " 6"]:
    """The force of an elliptic contact with x = J a - r: it sticks, slides on the cone, or is open."""
    mu, u = scale[0], scale * x
    normal, squared = u[0], jnp.sum(u[1:] ** 2)
    slides = squared > 0
    tangential = jnp.where(slides, jnp.sqrt(jnp.where(slides, squared, 1.0)), 0.0)
    sticks = (mu * normal + tangential <= 0) & (slides | (normal < 0))
    on_cone = slides & (normal < mu * tangential) & ~sticks
    pressed = -stiffness[0] * (normal - mu * tangential) * mu / jnp.maximum(mu**2 * (1 + mu**2), mujoco.mjMINVAL)
    sliding = (-pressed * scale / jnp.where(slides, tangential, 1.0) * u).at[0].set(pressed)
    return jnp.where(sticks, -stiffness * x, jnp.where(on_cone, sliding, 0.0))


def _moved(model: mjx.Model, qpos: Float[Array, " nq"], move: Float[Array, " nv"]) -> Float[Array, " nq"]:
    """The positions after a move in the coordinates of velocities.

    MJX's derivative of an orientation in an angular velocity of less than 1e-8 is 0; here it is exact.
    """
    places, speeds, quaternions, spins = _joints(model)
    moved = qpos.at[places].add(move[speeds])
    if not len(quaternions):
        return moved
    half = move[spins] / 2
    squared = jnp.sum(half**2, axis=1, keepdims=True)
    small = squared < 1e-8
    angle = jnp.sqrt(jnp.where(small, 1.0, squared))
    cos = jnp.where(small, 1 - squared / 2 * (1 - squared / 12), jnp.cos(angle))
    sinc = jnp.where(small, 1 - squared / 6 * (1 - squared / 20), jnp.sin(angle) / angle)
    w, v = qpos[quaternions[:, :1]], qpos[quaternions[:, 1:]]
    turn = sinc * half
    real = w * cos - jnp.sum(v * turn, axis=1, keepdims=True)
    imaginary = w * turn + cos * v + jnp.cross(v, turn)
    turned = jnp.concatenate([real, imaginary], axis=1)
    return moved.at[quaternions].set(turned / jnp.linalg.norm(turned, axis=1, keepdims=True))


def _joints(model: mjx.Model) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Where qpos has lengths and angles, where qvel has their speeds, and quaternions (n, 4) and angular velocities (n, 3)."""
    kind, place, speed = model.jnt_type, model.jnt_qposadr, model.jnt_dofadr
    free, ball = kind == mjtJoint.mjJNT_FREE, kind == mjtJoint.mjJNT_BALL
    three = np.arange(3)
    places = np.concatenate([(place[free][:, None] + three).ravel(), place[~(free | ball)]])
    speeds = np.concatenate([(speed[free][:, None] + three).ravel(), speed[~(free | ball)]])
    quaternions = np.concatenate([place[free] + 3, place[ball]])[:, None] + np.arange(4)
    spins = np.concatenate([speed[free] + 3, speed[ball]])[:, None] + three
    return places, speeds, quaternions, spins


def _runge_kutta(model: mjx.Model, data: mjx.Data) -> mjx.Data:
    """Runge-Kutta of order 4 like `mujoco.mjx.rungekutta4`, with its four stages in a loop, which compiles faster."""
    dt = model.opt.timestep

    def stage(slopes, part):
        qvel, qacc, act_dot, _ = (part * slope for slope in slopes)
        at = data.replace(qpos=_moved(model, data.qpos, dt * qvel), qvel=data.qvel + dt * qacc, act=data.act + dt * act_dot)
        after = forward(model, at)
        slopes = at.qvel, after.qacc, after.act_dot, after.actuator_length
        return slopes, slopes

    start = data.qvel, jnp.zeros_like(data.qvel), jnp.zeros_like(data.act), jnp.zeros_like(data.actuator_length)
    (_, qacc, _, length), slopes = lax.scan(stage, start, jnp.array([0.0, 0.5, 0.5, 1.0], data.qpos.dtype))
    weights = jnp.array([1.0, 2.0, 2.0, 1.0], data.qpos.dtype) / 6
    qvel, qacc_mean, act_dot, _ = (jnp.tensordot(weights, slope, 1) for slope in slopes)
    undamped = model.replace(opt=model.opt.replace(disableflags=model.opt.disableflags | mjtDisableBit.mjDSBL_EULERDAMP))
    after = mjx.euler(undamped, data.replace(qacc=qacc_mean, act_dot=act_dot, actuator_length=length))
    return after.replace(qpos=_moved(model, data.qpos, dt * qvel), qacc=qacc, qacc_warmstart=qacc)
