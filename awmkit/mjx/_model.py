"""Read a MuJoCo model, change its solver options, and check that MJX can step it."""
# MuJoCo's compiled classes come without stubs.
# pyright: reportAttributeAccessIssue=false

import copy
import os
from typing import Any

import mujoco
import numpy as np
from mujoco import mjtCone, mjtEnableBit, mjtIntegrator, mjtSolver, mjx

from .._checks import describe
from ._differences import check_differences

_ENUMS = {"integrator": mjtIntegrator, "solver": mjtSolver, "cone": mjtCone}
_INTEGRATORS = (mjtIntegrator.mjINT_EULER, mjtIntegrator.mjINT_RK4, mjtIntegrator.mjINT_IMPLICITFAST)


def read_model(model: mujoco.MjModel | str | os.PathLike) -> mujoco.MjModel:
    """Copy a model, or read MJCF from a string or from an XML file."""
    try:
        if isinstance(model, mujoco.MjModel):
            return copy.copy(model)
        if isinstance(model, str) and model.lstrip().startswith("<"):
            return mujoco.MjModel.from_xml_string(model)
        return mujoco.MjModel.from_xml_path(os.fspath(model))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"MuJoCo cannot read the model ({_one_line(error)}); pass a mujoco.MjModel (MjSpec.compile() returns one), MJCF as a "
            "string, or the path of an XML file."
        ) from error


def set_options(model: mujoco.MjModel, **options: Any) -> None:
    """Set those options of the model that are not `None`, and clear the flags that MJX lacks and that do not move the state."""
    for name, value in options.items():
        if value is None:
            continue
        enum = _ENUMS.get(name, int)
        try:
            setattr(model.opt, name, enum(value))
        except (TypeError, ValueError):
            first = next(iter(enum.__members__))
            raise ValueError(
                f"{name} must be a mujoco.{enum.__name__}, such as mujoco.{enum.__name__}.{first}, got {describe(value)}."
            ) from None
    model.opt.enableflags &= ~int(mjtEnableBit.mjENBL_ENERGY | mjtEnableBit.mjENBL_FWDINV)


def check_model(model: mujoco.MjModel) -> None:
    """Raise if MJX cannot step the model, or would step it differently from MuJoCo."""
    integrator = mjtIntegrator(model.opt.integrator)
    if integrator not in _INTEGRATORS:
        raise ValueError(
            f"MJX has no integrator {integrator.name}; pass integrator=mujoco.mjtIntegrator.mjINT_EULER, mjINT_IMPLICITFAST or "
            "mjINT_RK4."
        )
    if model.opt.solver == mjtSolver.mjSOL_PGS:
        raise ValueError("MJX has no PGS solver; pass solver=mujoco.mjtSolver.mjSOL_NEWTON or mjSOL_CG.")
    if model.nv == 0:
        raise ValueError("The model has no joints, so nothing can move; add a <joint> to a body of its MJCF.")
    if model.nu == 0:
        raise ValueError("The model has no actuators; add an <actuator> to its MJCF.")
    if model.nhistory:
        raise ValueError(
            "The model has delayed actuators or sensors, whose history MJX ignores; remove the delays from its MJCF."
        )
    limited = model.actuator_ctrllimited.astype(bool) & np.isfinite(model.actuator_ctrlrange).all(axis=1)
    if not limited.all():
        unlimited = ", ".join(model.actuator(i).name or str(i) for i in np.flatnonzero(~limited))
        raise ValueError(
            "Every actuator needs a finite control range, because actions in [-1, 1] are scaled to it; write "
            f'ctrllimited="true" ctrlrange="low high" in the MJCF for actuator {unlimited}.'
        )
    check_differences(model)


def put_model(model: mujoco.MjModel) -> mjx.Model:
    """Convert the model, whose cone may change, to MJX. Raise if MJX does not support it."""
    try:
        placed = mjx.put_model(model)
        if model.opt.cone == mjtCone.mjCONE_ELLIPTIC:
            # MJX cannot step elliptic cones of a model whose contacts have no friction; there the cone makes no difference.
            model.opt.cone = mjtCone.mjCONE_PYRAMIDAL
            if (mjx.make_data(model)._impl.contact.dim > 1).any():
                model.opt.cone = mjtCone.mjCONE_ELLIPTIC
            else:
                placed = mjx.put_model(model)
        mjx.make_data(placed)
        return placed
    except NotImplementedError as error:
        raise ValueError(f"MJX does not support the model ({_one_line(error)}); remove this feature from its MJCF.") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
