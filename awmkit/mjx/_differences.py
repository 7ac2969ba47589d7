"""What MuJoCo's model can ask for and MJX 3.17 leaves out without an error, field by field.

Each row was found by reading which fields of `mujoco.MjModel` MJX reads, and checked by stepping both. The fields that MJX reads
and refuses by itself are not repeated here.
"""
# MuJoCo's compiled classes come without stubs.
# pyright: reportAttributeAccessIssue=false

import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import mujoco
import numpy as np
from mujoco import mjtBias, mjtDisableBit, mjtEnableBit, mjtGain, mjtGeom, mjtIntegrator, mjtJoint, mjtObj, mjtTrn


class Difference(NamedTuple):
    """A field of a compiled model, which objects of a kind set it, what MJX does instead, and the fix.

    `where(model)` returns the objects' numbers, or for an option (kind `None`) whether it makes a difference.
    """

    field: str
    kind: mjtObj | None
    where: Callable[[mujoco.MjModel], Any]
    mjx: str
    fix: str


def check_differences(model: mujoco.MjModel) -> None:
    """Raise if MJX steps the model differently from MuJoCo."""
    for field, kind, where, mjx, fix in DIFFERENCES:
        found = where(model)
        if not np.size(found) or (kind is None and not found):
            continue
        names = "" if kind is None else f" of {_names(model, kind, found)}"
        raise ValueError(f"MJX moves the model differently from MuJoCo by {field}{names}: MJX {mjx}; {fix}.")


def warn_of_approximations(model: mujoco.MjModel) -> None:
    """Warn of contacts that MJX finds by another algorithm than MuJoCo, and of derivatives that it loses at single points."""
    shapes = {tuple(sorted(_shape(model, geom) for geom in pair)) for pair in _colliding(model)}
    own = [f"{first} and {second}" for first, second in sorted(shapes - ALIKE) if "plane" not in (first, second)]
    if own:
        warnings.warn(
            f"MJX finds contacts in its own way between {', '.join(own)}, so the model moves differently from MuJoCo there; compare "
            "episodes with MuJoCo before you trust a result.",
            stacklevel=3,
        )

    turning = np.isin(model.jnt_type, (mjtJoint.mjJNT_BALL, mjtJoint.mjJNT_FREE))
    drives = np.isin(model.actuator_trntype, (mjtTrn.mjTRN_JOINT, mjtTrn.mjTRN_JOINTINPARENT))
    servos = model.actuator_trnid[drives & (model.actuator_biastype == mjtBias.mjBIAS_AFFINE), 0]
    pulled = np.flatnonzero(turning & ((model.jnt_stiffness > 0) | np.isin(np.arange(model.njnt), servos)))
    if pulled.size:
        warnings.warn(
            f"The spring or servo of {_names(model, JOINT, pulled)} has a derivative of 0 in MJX where it is exactly at its "
            "reference; let reset start episodes elsewhere.",
            stacklevel=3,
        )


def _names(model: mujoco.MjModel, kind: mjtObj, found: np.ndarray) -> str:
    if kind == DOF:
        kind, found = JOINT, np.unique(model.dof_jntid[found])
    what = kind.name.removeprefix("mjOBJ_").lower()
    return f"{what} " + ", ".join(mujoco.mj_id2name(model, kind, int(i)) or str(i) for i in found)


def _shape(model: mujoco.MjModel, geom: int) -> str:
    return mjtGeom(model.geom_type[geom]).name.removeprefix("mjGEOM_").lower()


def _colliding(model: mujoco.MjModel) -> Iterator[tuple[int, int]]:
    """Yield the pairs of geoms that MuJoCo tests for contact."""
    if any(_disabled(model, mjtDisableBit.mjDSBL_CONTACT, mjtDisableBit.mjDSBL_CONSTRAINT)):
        return
    yield from zip(model.pair_geom1.tolist(), model.pair_geom2.tolist(), strict=True)
    (unfiltered,) = _disabled(model, mjtDisableBit.mjDSBL_FILTERPARENT)
    types, affinities, bodies = model.geom_contype, model.geom_conaffinity, model.geom_bodyid
    welded = model.body_weldid[bodies]
    above = model.body_weldid[model.body_parentid[welded]]
    for i, j in itertools.combinations(np.flatnonzero(types | affinities), 2):
        family = welded[i] and welded[j] and (welded[i] == above[j] or welded[j] == above[i])
        low, high = sorted(int(bodies[geom]) for geom in (i, j))
        if (
            (types[i] & affinities[j] or types[j] & affinities[i])
            and welded[i] != welded[j]
            and (unfiltered or not family)
            and (low << 16) + high not in model.exclude_signature
        ):
            yield int(i), int(j)


def _not_zero(field: str) -> Callable[[mujoco.MjModel], np.ndarray]:
    def where(model):
        values = getattr(model, field)
        return np.flatnonzero(values if values.ndim == 1 else values.any(axis=1))

    return where


def _mixed(field: str) -> Callable[[mujoco.MjModel], np.ndarray]:
    """Objects whose solref has one positive number and one that is not."""

    def where(model):
        positive = getattr(model, field) > 0
        return np.flatnonzero(positive[:, 0] != positive[:, 1])

    return where


def _widthless(field: str) -> Callable[[mujoco.MjModel], np.ndarray]:
    """Objects whose solimp jumps from one impedance to another over a width of 0."""

    def where(model):
        low, high, width = getattr(model, field)[:, :3].T
        return np.flatnonzero((width <= mujoco.mjMINVAL) & (low != high))

    return where


def _overlapping_limits(model: mujoco.MjModel, objects: str) -> np.ndarray:
    """Joints or tendons that can be within the margin of both limits at once."""
    limited, margin, interval = (getattr(model, f"{objects}_{name}") for name in ("limited", "margin", "range"))
    two_sided = objects == "tendon" or model.jnt_type != mjtJoint.mjJNT_BALL
    return np.flatnonzero(limited.astype(bool) & two_sided & (2 * margin > interval[:, 1] - interval[:, 0]))


def _disabled(model: mujoco.MjModel, *flags: mjtDisableBit) -> list[bool]:
    return [bool(model.opt.disableflags & int(flag)) for flag in flags]


def _medium(model: mujoco.MjModel) -> bool:
    return model.opt.density > 0 or model.opt.viscosity > 0


def _half_disabled(model: mujoco.MjModel) -> bool:
    """Whether a passive force is left in MuJoCo though springs or dampers are disabled; MJX's Euler step damps all the same."""
    no_springs, no_dampers = _disabled(model, mjtDisableBit.mjDSBL_SPRING, mjtDisableBit.mjDSBL_DAMPER)
    springs = model.jnt_stiffness.any() or model.tendon_stiffness.any()
    dampers = model.dof_damping.any() or model.tendon_damping.any()
    others = model.body_gravcomp.any() or _medium(model)
    left = (springs and not no_springs) or (dampers and not no_dampers) or others
    return bool((no_springs != no_dampers and left) or (no_dampers and model.dof_damping.any()))


def _friction(model: mujoco.MjModel) -> bool:
    frictions = model.geom_contype, model.pair_dim, model.dof_frictionloss, model.tendon_frictionloss
    return any(values.any() for values in frictions)


def _implicitfast(model: mujoco.MjModel) -> bool:
    return model.opt.integrator == mjtIntegrator.mjINT_IMPLICITFAST


def _clamped_dampers(model: mujoco.MjModel) -> np.ndarray:
    gains = (model.actuator_gaintype == mjtGain.mjGAIN_AFFINE) & (model.actuator_gainprm[:, 2] != 0)
    biases = (model.actuator_biastype == mjtBias.mjBIAS_AFFINE) & (model.actuator_biasprm[:, 2] != 0)
    return np.flatnonzero(_implicitfast(model) & model.actuator_forcelimited.astype(bool) & (gains | biases))


def _muscles(model: mujoco.MjModel) -> np.ndarray:
    return np.flatnonzero(_implicitfast(model) & (model.actuator_gaintype == mjtGain.mjGAIN_MUSCLE))


def _lone_free_bodies(model: mujoco.MjModel) -> np.ndarray:
    """Free joints of bodies that carry no other joint."""
    alone = np.bincount(model.body_rootid[model.dof_bodyid], minlength=model.nbody)[model.jnt_bodyid] == 6
    return np.flatnonzero(_implicitfast(model) & (model.jnt_type == mjtJoint.mjJNT_FREE) & alone)


def _callbacks(model: mujoco.MjModel) -> bool:
    names = ("control", "passive", "contactfilter", "act_dyn", "act_gain", "act_bias")
    return any(getattr(mujoco, f"get_mjcb_{name}")() is not None for name in names)


JOINT, TENDON, GEOM, PAIR = mjtObj.mjOBJ_JOINT, mjtObj.mjOBJ_TENDON, mjtObj.mjOBJ_GEOM, mjtObj.mjOBJ_PAIR
EQUALITY, DOF, ACTUATOR, PLUGIN = mjtObj.mjOBJ_EQUALITY, mjtObj.mjOBJ_DOF, mjtObj.mjOBJ_ACTUATOR, mjtObj.mjOBJ_PLUGIN
CONSTRAINTS = {"jnt": JOINT, "dof": DOF, "geom": GEOM, "pair": PAIR, "eq": EQUALITY, "tendon": TENDON}
SOLREFS = ["jnt_solref", "dof_solref", "geom_solref", "pair_solref", "pair_solreffriction", "eq_solref"]
SOLREFS += ["tendon_solref_lim", "tendon_solref_fri"]
SOLIMPS = [field.replace("ref", "imp") for field in SOLREFS if field != "pair_solreffriction"]
LINEAR = "keeps only the linear term"
BY_EULER = "pass integrator=mujoco.mjtIntegrator.mjINT_EULER"

# Pairs of shapes, in alphabetical order, whose contacts MJX finds as MuJoCo does; so are those with a plane.
ALIKE = {("box", "sphere"), ("capsule", "capsule"), ("capsule", "sphere"), ("mesh", "sphere"), ("sphere", "sphere")}

DIFFERENCES = (
    Difference("jnt_stiffnesspoly", JOINT, _not_zero("jnt_stiffnesspoly"), LINEAR, "give its stiffness one number"),
    Difference("dof_dampingpoly", DOF, _not_zero("dof_dampingpoly"), LINEAR, "give its damping one number"),
    Difference("tendon_stiffnesspoly", TENDON, _not_zero("tendon_stiffnesspoly"), LINEAR, "give its stiffness one number"),
    Difference("tendon_dampingpoly", TENDON, _not_zero("tendon_dampingpoly"), LINEAR, "give its damping one number"),
    Difference(
        "actuator_damping",
        ACTUATOR,
        lambda m: np.flatnonzero((m.actuator_damping != 0) | m.actuator_dampingpoly.any(axis=1)),
        "ignores it",
        "write the damping on the joint or tendon that it drives",
    ),
    Difference(
        "actuator_armature",
        ACTUATOR,
        _not_zero("actuator_armature"),
        "ignores it",
        "write the armature on the joint or tendon that it drives",
    ),
    Difference(
        "actuator_actearly",
        ACTUATOR,
        lambda m: np.flatnonzero(m.actuator_actearly.astype(bool) & (m.actuator_actadr >= 0)),
        "applies the activation of the step's beginning",
        'write actearly="false"',
    ),
    Difference(
        "opt.disableactuator",
        ACTUATOR,
        lambda m: np.flatnonzero([0 <= group <= 30 and m.opt.disableactuator >> group & 1 for group in m.actuator_group]),
        "lets disabled groups act",
        "remove these actuators, or clear actuatorgroupdisable",
    ),
    Difference(
        "actuator_forcerange",
        ACTUATOR,
        _clamped_dampers,
        "adds the damping of a clamped force to the implicitfast integrator",
        f"{BY_EULER}, or remove its forcerange",
    ),
    Difference(
        "actuator_gaintype",
        ACTUATOR,
        _muscles,
        "leaves the damping of muscles out of the implicitfast integrator",
        BY_EULER,
    ),
    Difference(
        "opt.integrator (implicitfast)",
        JOINT,
        _lone_free_bodies,
        "integrates the rotation of a free body without other joints explicitly",
        BY_EULER,
    ),
    Difference(
        "geom_fluid",
        GEOM,
        lambda m: np.flatnonzero((m.geom_fluid[:, 0] > 0) & _medium(m)),
        "replaces the ellipsoid in the fluid by the box of the body's inertia",
        'write fluidshape="none", or set density and viscosity to 0',
    ),
    Difference("geom_surfacevel", GEOM, _not_zero("geom_surfacevel"), "ignores it", "remove surfacevel"),
    Difference("geom_adhesion", GEOM, _not_zero("geom_adhesion"), "ignores it", "remove adhesion"),
    Difference("pair_adhesion", PAIR, _not_zero("pair_adhesion"), "ignores it", "remove adhesion"),
    Difference("body_plugin or actuator_plugin", PLUGIN, lambda m: np.arange(m.nplugin), "ignores it", "remove the plugin"),
    *(
        Difference(
            f"{objects}_range and {objects}_margin",
            CONSTRAINTS[objects],
            lambda m, objects=objects: _overlapping_limits(m, objects),
            "pushes away from the nearer limit only, where both are within the margin",
            "lower the margin to less than half of the range",
        )
        for objects in ("jnt", "tendon")
    ),
    *(
        Difference(
            field,
            CONSTRAINTS[field.split("_")[0]],
            _mixed(field),
            "uses numbers of mixed signs, which MuJoCo replaces by 0.02 1",
            "make both positive or both negative",
        )
        for field in SOLREFS
    ),
    *(
        Difference(
            field,
            CONSTRAINTS[field.split("_")[0]],
            _widthless(field),
            "takes the largest impedance where its width is 0, and MuJoCo the mean",
            "give it a positive width, or two equal impedances",
        )
        for field in SOLIMPS
    ),
    Difference(
        "opt.disableflags (spring or damper)",
        None,
        _half_disabled,
        "drops every passive force, but no damping of joints from the Euler step",
        "leave both flags on, and set to 0 the stiffness or damping that must not act",
    ),
    Difference(
        "opt.noslip_iterations",
        None,
        lambda m: m.opt.noslip_iterations > 0 and _friction(m),
        "ignores it",
        "set noslip_iterations to 0, and raise impratio to slip less",
    ),
    Difference(
        "opt.enableflags (sleep)",
        None,
        lambda m: m.opt.enableflags & int(mjtEnableBit.mjENBL_SLEEP),
        "never lets a body sleep",
        'write sleep="disable"',
    ),
    Difference(
        "a callback of this process (mujoco.set_mjcb_...)",
        None,
        _callbacks,
        "never calls it",
        "clear it with None, and put what it does into the model, the policy or the reward",
    ),
)
