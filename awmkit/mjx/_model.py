"""Read a MuJoCo model and check that MJX can step and differentiate it."""
# MuJoCo's compiled classes come without stubs.
# pyright: reportAttributeAccessIssue=false

import os

import mujoco
from mujoco import mjtIntegrator, mjx

_INTEGRATORS = (mjtIntegrator.mjINT_EULER, mjtIntegrator.mjINT_RK4, mjtIntegrator.mjINT_IMPLICITFAST)


def read_model(model: str | os.PathLike) -> mujoco.MjModel:
    """Read MJCF from a string or from an XML file."""
    try:
        if isinstance(model, str) and model.lstrip().startswith("<"):
            return mujoco.MjModel.from_xml_string(model)
        return mujoco.MjModel.from_xml_path(os.fspath(model))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"MuJoCo cannot read the model ({_one_line(error)}); pass a mujoco.MjModel, MJCF as a string, or the path of an XML "
            "file."
        ) from error


def check_model(model: mujoco.MjModel) -> None:
    """Raise if the integrator or the actuators of the model are not supported."""
    integrator = mjtIntegrator(model.opt.integrator)
    if integrator not in _INTEGRATORS:
        raise ValueError(
            f"MJX has no integrator {integrator.name}; pass integrator=mujoco.mjtIntegrator.mjINT_EULER, mjINT_IMPLICITFAST or "
            "mjINT_RK4."
        )
    if model.nu == 0:
        raise ValueError("The model has no actuators; add an <actuator> to its MJCF.")
    if model.nhistory:
        raise ValueError(
            "The model has delayed actuators or sensors, whose history MJX ignores; remove the delays from its MJCF."
        )
    unlimited = [model.actuator(i).name or str(i) for i in range(model.nu) if not model.actuator_ctrllimited[i]]
    if unlimited:
        raise ValueError(
            "Every actuator needs a control range, because actions in [-1, 1] are scaled to it; write "
            f'ctrllimited="true" ctrlrange="low high" in the MJCF for actuator {", ".join(unlimited)}.'
        )


def put_model(model: mujoco.MjModel) -> mjx.Model:
    """Convert the model to MJX, or raise if MJX does not support it."""
    try:
        return mjx.put_model(model)
    except NotImplementedError as error:
        raise ValueError(f"MJX does not support the model ({_one_line(error)}); remove this feature from its MJCF.") from error


def check_reverse_mode(model: mujoco.MjModel, placed: mjx.Model) -> None:
    """Raise if reverse mode cannot differentiate the constraint solver."""
    # MJX keeps the number of constraint rows, which is static, in a private field only.
    rows = mjx.make_data(placed)._impl.nefc
    if rows and model.opt.iterations > 1:
        raise ValueError(
            f"The model has {rows} constraint rows (contacts, joint limits, equalities, dry friction) and "
            f"{model.opt.iterations} solver iterations, and reverse mode cannot pass the lax.while_loop in which MJX runs them "
            "(github.com/google-deepmind/mujoco/issues/2259); pass forward_only=True for values and jvp with this physics, or "
            "iterations=1 for gradients of a solver that does not converge."
        )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
