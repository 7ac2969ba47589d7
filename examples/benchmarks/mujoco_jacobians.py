"""Are MJXTask's states and derivatives those of C MuJoCo, and what do they cost?

    python examples/benchmarks/mujoco_jacobians.py                       1 hour on two cores; each body is printed when it is done
    python examples/benchmarks/mujoco_jacobians.py --quick               Hopper only
    python examples/benchmarks/mujoco_jacobians.py --bodies Ant finger   these bodies only; rows that are measured are kept
    python examples/benchmarks/mujoco_jacobians.py --from-raw            the published table

The bodies are Gymnasium's and dm_control's. For the latter run `pip install --no-deps --target FOLDER dm_control`, because its
dependencies ask for another version of MuJoCo, and then this script with PYTHONPATH=FOLDER. Only its XML files are read.

Each body is tested in four states of C MuJoCo: at rest, in contact under random actions, the same with random speeds added, and in
flight. All numbers are float64. Both programs take the model's own options, with two exceptions: Newton's solver replaces PGS,
which MJX lacks, and the solver's tolerance is 1e-20, because differences amplify what it leaves.

- Jacobian: of one step in (qpos, qvel, act, action). Forward mode is compared with central differences of C MuJoCo with
  Richardson's extrapolation; the error is that of a column relative to its length, the largest over columns without a kink.
  Entries of quaternions are moved one by one and are not normalised again, as both programs take them.
- Kink: a column along which the set of contacts or the state of a constraint row (MuJoCo's `efc_state`) changes within the
  difference, or one-sided differences do not approach each other as the move gets smaller. They are listed by name.
- Reverse: the largest difference of the Jacobian by reverse mode, relative to the largest entry.
- 50 steps: the largest error of the states along 50 steps under constant actions, and by how much C MuJoCo itself amplifies a
  change of the start by 1e-10.
- Time: of one step with its whole Jacobian, of one step with its gradient in reverse mode, and of the latter through one solver
  iteration of MJX, with the relative error of that step.
"""

# MuJoCo's compiled classes come without stubs.
# pyright: reportAttributeAccessIssue=false

import argparse
import importlib.util
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from mujoco import mjtJoint, mjtSolver, mjtState, mjx
from raw import arguments, markdown, Raw, until_stopped

from awmkit.mjx import MJXTask

STATE, TOLERANCE = mjtState.mjSTATE_PHYSICS, 1e-20


class Body(NamedTuple):
    """The package and file of a body, the index of its height in qpos, if it can fly, objects that the file's tasks delete, and
    the move of differences. Rounding errors of a difference are inversely proportional to it."""

    package: str
    file: str
    height: int | None
    delete: tuple[str, ...] = ()
    move: float = 1e-6


WALLS = tuple(f"geom wall_{side}" for side in ("px", "py", "nx", "ny"))
BODIES = {
    "Hopper": Body("gymnasium", "hopper.xml", 1),
    "HalfCheetah": Body("gymnasium", "half_cheetah.xml", 1),
    "Walker2d": Body("gymnasium", "walker2d_v5.xml", 1),
    "Ant": Body("gymnasium", "ant.xml", 2),
    "Humanoid": Body("gymnasium", "humanoid.xml", 2),
    "finger": Body("dm_control", "finger.xml", None),
    "walker": Body("dm_control", "walker.xml", 0, move=1e-5),
    "humanoid": Body("dm_control", "humanoid.xml", 2),
    # As in its tasks walk and run, which have no terrain.
    "quadruped": Body("dm_control", "quadruped.xml", 2, ("geom terrain", "body ball", "site target", "rangefinder", *WALLS)),
}
FOLDERS = {"gymnasium": "envs/mujoco/assets", "dm_control": "suite"}


def folder(body: Body) -> Path | None:
    """Return the folder of the body's file, or `None` if its package is not installed. The package is not imported."""
    package = importlib.util.find_spec(body.package)
    if package is None or not package.submodule_search_locations:
        return None
    return Path(package.submodule_search_locations[0]) / FOLDERS[body.package]


def load(body: Body) -> mujoco.MjModel:
    """Return the model."""
    spec = mujoco.MjSpec.from_file(f"{folder(body)}/{body.file}")
    for name in body.delete:
        kind, *own = name.split()
        for found in [getattr(spec, kind)(own[0])] if own else [s for s in spec.sensors if s.name.startswith("rf_")]:
            spec.delete(found)
    model = spec.compile()
    if model.opt.solver == mjtSolver.mjSOL_PGS:
        model.opt.solver = mjtSolver.mjSOL_NEWTON
    return model


class Point(NamedTuple):
    """A state, an action in [-1, 1], and the warm start of the solver."""

    state: np.ndarray
    action: np.ndarray
    warm: np.ndarray


class CMuJoCo:
    """Steps of C MuJoCo as a function of (state, action), with the warm start given."""

    def __init__(self, model: mujoco.MjModel):
        self.model, self.data = model, mujoco.MjData(model)
        self._low, self._high = model.actuator_ctrlrange.T

    def step(self, point: Point) -> Point:
        model, data = self.model, self.data
        mujoco.mj_setState(model, data, point.state, STATE)
        data.ctrl[:] = self._low + (point.action + 1) / 2 * (self._high - self._low)
        data.qacc_warmstart[:] = point.warm
        mujoco.mj_step(model, data)
        state = np.empty_like(point.state)
        mujoco.mj_getState(model, data, state, STATE)
        return point._replace(state=state, warm=data.qacc_warmstart.copy())

    def constraints(self) -> tuple[int, bytes, bytes]:
        """Contacts, states of rows, and whether a row's impedance depends on its depth, at the last step's beginning."""
        data = self.data
        saturated = np.abs(data.efc_KBIP[:, 3]) > 0
        return data.ncon, data.efc_state.tobytes(), saturated.tobytes()

    def jacobian(self, point: Point, move: float) -> tuple[np.ndarray, list[int], list[int]]:
        """Return differences, the columns whose constraints change, and those whose one-sided differences disagree."""
        inputs = np.concatenate([point.state, point.action])

        def at(inputs):
            state, action = np.split(inputs, [point.state.size])
            after = self.step(Point(state, action, point.warm)).state
            return after, self.constraints()

        centre, constraints = at(inputs)
        columns, switched, bent = [], [], []
        for i, unit in enumerate(np.eye(inputs.size)):
            sides = {h: at(inputs + h * unit) for h in (move, -move, move / 2, -move / 2)}
            difference = {h: (sides[h][0] - sides[-h][0]) / (2 * h) for h in (move, move / 2)}
            columns.append((4 * difference[move / 2] - difference[move]) / 3)
            if any(side[1] != constraints for side in sides.values()):
                switched.append(i)
                continue
            # The gap of one-sided differences halves with the move where the second derivative is continuous.
            gaps = [np.linalg.norm(sides[h][0] + sides[-h][0] - 2 * centre) / h for h in (move, move / 2)]
            if gaps[1] > 0.7 * gaps[0] and gaps[1] > 1e-6 * np.linalg.norm(columns[-1]):
                bent.append(i)
        return np.stack(columns, axis=1), switched, bent


def points(c: CMuJoCo, body: Body) -> dict[str, Point]:
    """Return the four states."""
    model, random = c.model, np.random.default_rng(0)
    size, key = model.nq + model.nv + model.na, model.nu
    start = Point(np.concatenate([model.qpos0, np.zeros(model.nv + model.na)]), np.zeros(key), np.zeros(model.nv))
    rest = start
    for _ in range(int(20 / model.opt.timestep)):
        rest = c.step(rest)
    moving, touching, apart = start, [], []
    for i in range(2000):
        if i % 20 == 0:
            moving = moving._replace(action=random.uniform(-1, 1, model.nu))
        moving = c.step(moving)
        if i >= 200:
            (touching if c.data.ncon else apart).append(moving)
    contact = touching[random.integers(len(touching))]
    speeds = slice(model.nq, model.nq + model.nv)
    thrown = contact._replace(state=contact.state.copy())
    thrown.state[speeds] += random.normal(size=model.nv)
    if body.height is None:
        flight = apart[random.integers(len(apart))]
    else:
        flight = start._replace(state=random.normal(scale=0.05, size=size), action=random.uniform(-1, 1, model.nu))
        flight.state[: model.nq] += model.qpos0
        flight.state[body.height] += 3
        flight.state[speeds] *= 20
    return {"at rest": rest, "in contact": contact, "thrown": thrown, "in flight": flight}


def names(model: mujoco.MjModel) -> list[str]:
    """Return the names of the entries of (qpos, qvel, act, action)."""
    widths = {mjtJoint.mjJNT_FREE: (7, 6), mjtJoint.mjJNT_BALL: (4, 3)}
    joints = [(model.joint(j).name or f"joint {j}", widths.get(mjtJoint(model.jnt_type[j]), (1, 1))) for j in range(model.njnt)]
    indexed = lambda name, width: [name] if width == 1 else [f"{name}[{k}]" for k in range(width)]
    found = [entry for name, width in joints for entry in indexed(name, width[0])]
    found += [f"speed of {entry}" for name, width in joints for entry in indexed(name, width[1])]
    found += [f"activation {i}" for i in range(model.na)] + [f"action {i}" for i in range(model.nu)]
    return found


def programs(model: mujoco.MjModel) -> tuple[MJXTask, Any, Any, Any]:
    """Return the task; a step with its Jacobian; a step with a vector times its Jacobian; the same through one MJX iteration."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MJX's own ways of finding contacts are measured here.
        task = MJXTask(model, lambda state, action, t: state[0], horizon=1)
    low, high = model.actuator_ctrlrange.T

    def by_task(task, warm):
        def function(inputs):
            after, state = task.step(warm, *jnp.split(inputs, [task.state_size]), 0)
            return state, (state, after)

        return function

    def with_jacobian(task, inputs, warm):
        jacobian, (state, after) = jax.jacfwd(by_task(task, warm), has_aux=True)(inputs)
        return state, after, jacobian

    def with_product(task, inputs, warm, vector):
        state, pull, _ = jax.vjp(by_task(task, warm), inputs, has_aux=True)
        return state, pull(vector)[0]

    def with_product_of_mjx(task, inputs, warm, vector):
        placed = task.model.replace(opt=task.model.opt.replace(iterations=1))
        placed = jax.tree.map(lambda x: x.astype(float) if eqx.is_inexact_array(x) else x, placed)
        ends = np.cumsum([model.nq, model.nv, model.na])

        def function(inputs):
            qpos, qvel, act, action = jnp.split(inputs, ends)
            ctrl = low + (action + 1) / 2 * (high - low)
            with jax.numpy_dtype_promotion("standard"):
                data = mjx.make_data(placed).replace(qpos=qpos, qvel=qvel, act=act, ctrl=ctrl, qacc_warmstart=warm)
                after = mjx.step(placed, data)
            return jnp.concatenate([after.qpos, after.qvel, after.act])

        state, pull = jax.vjp(function, inputs)
        return state, pull(vector)[0]

    return task, eqx.filter_jit(with_jacobian), eqx.filter_jit(with_product), eqx.filter_jit(with_product_of_mjx)


def compiled(program: Any, *arguments: Any) -> tuple[Any, float]:
    """Compile, without the cache, and return the seconds that it took."""
    start = time.perf_counter()
    return program.lower(*arguments).compile(), time.perf_counter() - start


def timed(program: Any, *arguments: Any) -> float:
    """Return the median time of a call in ms."""
    times = []
    for _ in range(30):
        start = time.perf_counter()
        jax.block_until_ready(program(*arguments))
        times.append(1000 * (time.perf_counter() - start))
    return float(np.median(times))


def precise(task: MJXTask) -> MJXTask:
    """The task with the tolerances that are used for comparisons."""
    where = lambda task: (task.model.opt.tolerance, task.model.opt.ls_tolerance)
    return eqx.tree_at(
        where, task, [jnp.full_like(x, tolerance) for x, tolerance in zip(where(task), (TOLERANCE, 1e-10), strict=True)]
    )


def relative(error: np.ndarray, size: np.ndarray) -> np.ndarray:
    """The length of each column of an error relative to the column's size; columns of zeros are compared with 1."""
    lengths = np.linalg.norm(size, axis=0)
    return np.linalg.norm(error, axis=0) / np.where(lengths > 0, lengths, 1)


def measure(name: str) -> dict[str, Any]:
    """Measure a body."""
    model = load(BODIES[name])
    task, forward, reverse, one = programs(model)
    found = points(CMuJoCo(model), BODIES[name])
    model.opt.tolerance, model.opt.ls_tolerance = TOLERANCE, 1e-10
    c, entries, exact = CMuJoCo(model), names(model), precise(task)
    vector = jnp.asarray(np.random.default_rng(1).normal(size=task.state_size))
    inputs = {kind: jnp.asarray(np.concatenate([point.state, point.action])) for kind, point in found.items()}
    first = inputs["in contact"], jnp.asarray(found["in contact"].warm)
    forward, seconds_forward = compiled(forward, exact, *first)
    reverse, seconds_reverse = compiled(reverse, exact, *first, vector)
    one, seconds_one = compiled(one, task, *first, vector)
    row: dict[str, Any] = {
        "nq": model.nq,
        "nv": model.nv,
        "na": model.na,
        "nu": model.nu,
        "compile": {"Jacobian": seconds_forward, "gradient": seconds_reverse, "gradient, one iteration": seconds_one},
        "ms": {
            "Jacobian": timed(forward, task, *first),
            "gradient": timed(reverse, task, *first, vector),
            "gradient, one iteration": timed(one, task, *first, vector),
        },
        "points": {},
    }
    for kind, point in found.items():
        warm = jnp.asarray(point.warm)
        state, _, jacobian = map(np.asarray, forward(exact, inputs[kind], warm))
        loose = np.asarray(forward(task, inputs[kind], warm)[2])
        rows = [np.asarray(reverse(exact, inputs[kind], warm, unit)[1]) for unit in jnp.eye(task.state_size)]
        differences, switched, bent = c.jacobian(point, BODIES[name].move)
        after = c.step(point).state
        contacts, constraints = c.data.ncon, np.bincount(c.data.efc_state, minlength=5).tolist()
        smooth = np.delete(np.arange(len(entries)), switched + bent)
        errors = relative(jacobian - differences, differences)
        row["points"][kind] = {
            "state": point.state.tolist(),
            "action": point.action.tolist(),
            "contacts": contacts,
            "rows by efc_state": constraints,
            "step": float(np.abs(state - after).max()),
            "step, one iteration": float(np.abs(np.asarray(one(task, inputs[kind], warm, vector)[0]) - after).max()),
            "finite": bool(np.isfinite(jacobian).all() and np.isfinite(rows).all()),
            "Jacobian": float(errors[smooth].max()),
            "Jacobian, own tolerance": float(relative(loose - differences, differences)[smooth].max()),
            "worst": entries[smooth[errors[smooth].argmax()]],
            "reverse": float(np.abs(np.stack(rows) - jacobian).max() / np.abs(jacobian).max()),
            "constraints switch": {entries[i]: float(errors[i]) for i in switched},
            "one-sided differences disagree": {entries[i]: float(errors[i]) for i in bent},
            **follow(c, forward, exact, point),
        }
        print(f"{name}, {kind}: {summary(row['points'][kind])}", flush=True)
    return row


def follow(c: CMuJoCo, forward: Any, task: MJXTask, point: Point) -> dict[str, Any]:
    """Compare 50 steps, and C MuJoCo with itself from a start that is moved by 1e-10."""
    theirs, warm, ours = point, jnp.asarray(point.warm), jnp.asarray(point.state)
    moved = point._replace(state=point.state + 1e-10 * np.random.default_rng(2).normal(size=point.state.size))
    errors, amplified, touched = [], [], []
    for _ in range(50):
        moved, theirs = c.step(moved), c.step(theirs)
        touched.append(c.data.ncon > 0)
        ours, warm, _ = forward(task, jnp.concatenate([ours, jnp.asarray(point.action)]), warm)
        errors.append(float(np.abs(np.asarray(ours) - theirs.state).max()))
        amplified.append(float(np.abs(moved.state - theirs.state).max() / 1e-10))
    return {"50 steps": max(errors), "amplified": max(amplified), "errors": errors, "steps in contact": int(np.sum(touched))}


def summary(point: dict[str, Any]) -> str:
    kinks = [*point["constraints switch"], *point["one-sided differences disagree"]]
    return (
        f"{point['contacts']} contacts, step {point['step']:.0e}, Jacobian {point['Jacobian']:.0e} ({point['worst']}), own tolerance "
        f"{point['Jacobian, own tolerance']:.0e}, reverse {point['reverse']:.0e}, 50 steps {point['50 steps']:.0e} (amplified "
        f"{point['amplified']:.0e}), one iteration {point['step, one iteration']:.0e}, finite {point['finite']}, kinks {kinks}"
    )


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Return the errors of each body and state, and the times of each body."""
    errors, times = [], []
    for name, row in rows.items():
        for kind, p in row["points"].items():
            kinks = ", ".join([*p["constraints switch"], *p["one-sided differences disagree"]])
            numbers = [
                f"{p[key]:.0e}" for key in ("step", "Jacobian", "reverse", "50 steps", "amplified", "step, one iteration")
            ]
            errors.append([name, f"{kind}, {p['contacts']}", *numbers, "no" if p["finite"] else "NaN", kinks])
        kinds = row["compile"]
        cost = [f"{row['compile'][kind]:.0f}" for kind in kinds] + [f"{row['ms'][kind]:.2f}" for kind in kinds]
        times.append([name, f"{row['nq'] + row['nv'] + row['na']} + {row['nu']}", *cost])
    head = [
        "body",
        "state, contacts",
        "step",
        "Jacobian",
        "reverse",
        "50 steps",
        "amplified",
        "step, one iteration",
        "NaN",
        "kinks",
    ]
    costs = ["s to compile: Jacobian", "gradient", "one iteration", "ms: Jacobian", "gradient", "one iteration"]
    return markdown(head, errors) + "\n\n" + markdown(["body", "states + actions", *costs], times)


def main() -> None:
    parser = arguments(__doc__, "mujoco_jacobians")
    parser.add_argument("--bodies", nargs="+", choices=BODIES, default=list(BODIES), help="bodies; all by default")
    options: argparse.Namespace = parser.parse_args()
    raw = Raw(options, "mujoco_jacobians")
    with until_stopped(options):
        for name in ["Hopper"] if options.quick else options.bodies:
            body = BODIES[name]
            if not options.from_raw and folder(body) is None:
                print(f"{name} is left out, because {body.package} is not installed; see --help")
                continue
            config = {
                "file": f"{body.package}/{body.file}",
                "deleted": list(body.delete),
                "tolerance": TOLERANCE,
                "move": body.move,
            }
            if options.from_raw and raw.find(name, config) is None:
                continue
            raw.run(name, config, lambda name=name: measure(name))
            raw.write(table(raw.rows))


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_enable_compilation_cache", False)  # The time to compile is measured.
    main()
