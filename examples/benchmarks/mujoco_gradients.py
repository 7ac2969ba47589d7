"""What does a gradient through MuJoCo cost, by three ways to differentiate a control step? And what does `measure` cost?

    python examples/benchmarks/mujoco_gradients.py               1 hour on two idle cores, nearly all for HalfCheetah and Hopper
    python examples/benchmarks/mujoco_gradients.py --quick       cart-pole only
    python examples/benchmarks/mujoco_gradients.py --from-raw    the published table

The gradient is that of a sum over the states of 50 control steps, in the first state and the actions, for 8 starts in float64. Bodies
have their own settings and frame skips.

- control step: MJXTask's way. The Jacobian of a control step is computed in forward mode and stored.
- substep: the same for each of MuJoCo's steps in it.
- reverse: reverse mode through each substep, whose values are computed again on the way back. The constraint solver is
  differentiated by the implicit function theorem, as in the others.

The second table has the time of a control step of Hopper without derivatives, with `MJXTask(measure=)` of a position, which the
step computes anyway, and of the constraints' forces on the joints, which need MuJoCo's `mj_forward` of the new state.

Expected: all gradients agree to 1e-10. For the cart-pole, the Jacobians of the control step and of the substeps take the same time,
those of the control step a quarter of the memory, and reverse mode is slower by a third. The published table has the cart-pole only.
"""

# A compiled program may lack a memory analysis.
# pyright: reportOptionalMemberAccess=false

import time
from collections.abc import Callable
from functools import partial
from importlib.resources import files
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from mujoco import mjx
from raw import arguments, markdown, Raw, until_stopped

from awmkit.mjx import cartpole, MJXTask
from awmkit.mjx._forward_mode import by_forward_mode
from awmkit.mjx._step import step
from awmkit.mjx._task import _data

HORIZON, BATCH, TURNS = 50, 8, 15
BODIES: dict[str, Callable[[], MJXTask]] = {
    "cart-pole": lambda: cartpole(HORIZON),
    "HalfCheetah": lambda: MJXTask.from_gymnasium("HalfCheetah-v5", horizon=HORIZON),
    "Hopper": lambda: MJXTask.from_gymnasium("Hopper-v5", horizon=HORIZON, terminate_when_unhealthy=False),
}
MEASURES: dict[str, Callable[[mjx.Data], Array] | None] = {
    "nothing": None,
    "position of the foot": lambda data: data.xpos[4],
    "constraint forces": lambda data: data.qfrc_constraint,
}


def substep(model: mjx.Model, state: Array, ctrl: Array, warm: Array) -> tuple[Array, Array]:
    with jax.numpy_dtype_promotion("standard"):  # MJX promotes implicitly.
        after = step(model, _data(model, state, ctrl, warm))
    return jnp.concatenate([after.qpos, after.qvel, after.act]), lax.stop_gradient(after.qacc_warmstart)


def control_step(route: str, task: MJXTask) -> Callable:
    """Return a control step as a function of (state, action, warm start) that gives (state, warm start)."""
    if route == "control step":
        return lambda state, action, warm: task.step(warm, state, action, 0)[::-1]
    model, _ = task._physics()
    low, high = model.actuator_ctrlrange.T
    recomputed = jax.checkpoint(partial(substep, model))
    one = partial(by_forward_mode, substep, model) if route == "substep" else recomputed

    def run(state, action, warm):
        ctrl = low + (action + 1) / 2 * (high - low)
        body = lambda loop, _: (one(loop[0], ctrl, lax.stop_gradient(loop[1])), None)
        return lax.scan(body, (state, warm), length=task.frame_skip)[0]

    return run


def inputs(task: MJXTask) -> tuple[Array, Array]:
    """Return starts near a fall of 0.1, and actions."""
    keys = jax.random.split(jax.random.key(0), 3)
    start = task.reset(keys[0]) + 0.01 * jax.random.normal(keys[1], (BATCH, task.state_size))
    fallen = start if task.action_size == 1 else start.at[:, 1].add(-0.1)
    return fallen, 0.3 * jax.random.normal(keys[2], (BATCH, HORIZON, task.action_size))


def compiled(fn: Callable, *args: Array) -> tuple[Any, dict[str, float]]:
    lowered = jax.jit(jax.vmap(fn)).lower(*args)
    start = time.perf_counter()
    program = lowered.compile()
    seconds = time.perf_counter() - start
    return program, {"compile_s": seconds, "memory_MiB": program.memory_analysis().temp_size_in_bytes / 2**20}


def in_turns(programs: dict[str, Callable]) -> dict[str, float]:
    """Return the median time of each in ms. The first turn is left out."""
    times = {name: [] for name in programs}
    for _ in range(1 + TURNS):
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program())
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: float(np.median(found[1:])) for name, found in times.items()}


def gradients(body: str) -> dict[str, Any]:
    """Measure the three routes."""
    task = BODIES[body]()
    args, weights = inputs(task), jnp.sin(jnp.arange(1.0, task.state_size + 1))
    programs, rows, found = {}, {}, {}
    for route in ("control step", "substep", "reverse"):
        run = control_step(route, task)

        def value(start, actions, run=run):
            def body(loop, action):
                state, warm = run(loop[0], action, lax.stop_gradient(loop[1]))
                return (state, warm), state @ weights

            return jnp.sum(lax.scan(body, (start, jnp.zeros(task.model.nv)), actions)[1])

        program, rows[route] = compiled(jax.grad(value, (0, 1)), *args)
        programs[route] = partial(program, *args)
        found[route] = np.asarray(program(*args)[1])
        first = found["control step"]
        rows[route]["difference"] = float(np.abs(found[route] - first).max() / np.abs(first).max())
        print(body, route, rows[route], flush=True)
    for route, ms in in_turns(programs).items():
        rows[route]["ms"] = ms
    return {"frame skip": task.frame_skip, "routes": rows}


def measures() -> dict[str, Any]:
    """Measure a control step of Hopper without derivatives."""
    plain, programs, rows = BODIES["Hopper"](), {}, {}
    path = str(files("gymnasium") / "envs/mujoco/assets/hopper.xml")
    for name, measure in MEASURES.items():
        task = MJXTask(path, lambda state, action, t: state[0], horizon=HORIZON, frame_skip=plain.frame_skip, measure=measure)

        def run(start, actions, task=task):
            def body(loop, action):
                warm, state = task.step(loop[1], loop[0], action, 0)
                return (state, warm), state

            return lax.scan(body, (task.complete(start), jnp.zeros(task.model.nv)), actions)[1]

        program, rows[name] = compiled(run, *inputs(plain))
        programs[name] = partial(program, *inputs(plain))
    for name, ms in in_turns(programs).items():
        rows[name]["ms"] = ms / HORIZON
    return {"measures": rows}


def table(bodies: dict[str, dict[str, Any]], measured: dict[str, Any] | None) -> str:
    lines = [
        [body, f"{row['frame skip']}", route, *(f"{r[key]:{form}}" for key, form in FORMATS.items())]
        for body, row in bodies.items()
        for route, r in row["routes"].items()
    ]
    found = markdown(["body", "frame skip", "Jacobian of", "ms", "s to compile", "MiB", "difference"], lines)
    if measured is not None:
        costs = [[name, f"{row['ms']:.3f}", f"{row['compile_s']:.0f}"] for name, row in measured["measures"].items()]
        found += "\n\n" + markdown(["`measure` of", f"ms per control step of {BATCH}", "s to compile"], costs)
    return found


FORMATS = {"ms": ".0f", "compile_s": ".0f", "memory_MiB": ".2f", "difference": ".0e"}


def main() -> None:
    options = arguments(__doc__, "mujoco_gradients").parse_args()
    raw, config = Raw(options, "mujoco_gradients"), {"horizon": HORIZON, "batch": BATCH, "dtype": "float64"}
    bodies, measured = {}, None
    with until_stopped(options):
        for body in ["cart-pole"] if options.quick else BODIES:
            if not options.from_raw or body in raw.rows:
                bodies[body] = raw.run(body, config, partial(gradients, body))
        if not options.quick and (not options.from_raw or "measure" in raw.rows):
            measured = raw.run("measure", config, measures)
    raw.write(table(bodies, measured))


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_enable_compilation_cache", False)  # The time to compile is measured.
    main()
