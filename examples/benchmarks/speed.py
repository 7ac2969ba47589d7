"""How long does a policy gradient take, for every dynamics and method?

    python examples/benchmarks/speed.py               ten systems, horizons from 20 to 4,096: 45 minutes
    python examples/benchmarks/speed.py --quick       a transformer AWM at two horizons: 1 minute
    python examples/benchmarks/speed.py --from-raw    the published table and figure
    python examples/benchmarks/speed.py --minutes 8 --batch 256 --horizons 100 1000      on a GPU that is lent for 10 minutes
    python examples/benchmarks/speed.py --plan --systems Markov --horizons 100 --methods Sequential    launches on an H100

A policy gradient is the mean BPO gradient over 16 initial states with respect to an MLP policy. Models have the paper's size
(width 48, 2 layers, 3 heads) and are not trained. Short horizons and cheap systems come first, and each line is printed when it
is measured. Stop with Ctrl-C or `--minutes`: the table, the figure and the raw values of what was measured are kept, and the same
command continues. The methods of a system and a horizon take turns, on inputs that differ; compilation is timed separately.

Memory is what XLA plans for the compiled program, without inputs and outputs. FLOPs are those of the matrix products, as a share
of the rate at which this machine multiplies large matrices. Errors are those of one gradient in float32 against `Sequential` in
float64. Launches are the kernels that a GPU launches per step of the unroll, for which `launches.py` needs a GPU or a compiler for
one. `--plan` counts them only, and runs nothing. Runs longer than --patience or larger than --memory are left out.

Expected: `Parallel()` of the transformer AWM is 6 times as fast as the fastest sequential method at 400 steps and 9 times at
2,000; with `Picard()` 13 times. 4,096 steps take 20 s and less than 2 GiB. Time and memory of the state-space AWM are linear in
the horizon. Errors are at most 3e-5 in float32 (an untrained Markov model's gradient overflows from 1,000 steps on) and 2e-4
with bfloat16; on a GPU, where float32 products are TF32, they are near 1e-3.
"""

# Parts of models are accessed by name, and a compiled program may lack a memory analysis.
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false

import math
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray
from launches import launches, plan
from matplotlib.figure import Figure
from raw import arguments, markdown, Raw, until_stopped

from awmkit import (
    AbstractDynamics,
    AWM,
    BPO,
    CuDNNAttention,
    GRU,
    HWM,
    LinearStateSpace,
    LSTM,
    Markov,
    MLPPolicy,
    Newton,
    Parallel,
    Picard,
    plot,
    RNN,
    Sequential,
    Transformer,
    unroll,
)
from awmkit.mjx import cartpole
from awmkit.tasks import DrivenDoublePendulum

WIDTH, STATES, ACTIONS = 48, 4, 2
ON_GPU = jax.default_backend() == "gpu"
Build = Callable[[int, PRNGKeyArray], AbstractDynamics]
Cells = dict[tuple[str, int], dict[str, dict[str, Any]]]  # rows by system and horizon, and by method


def awm(backbone: Callable[[int, PRNGKeyArray], Any]) -> Build:
    """Return a builder of an AWM from a builder of its backbone."""
    return lambda horizon, key: AWM(STATES, ACTIONS, backbone(horizon, key), key=key)


SYSTEMS: dict[str, Build] = {
    "Markov": lambda n, key: Markov(STATES, ACTIONS, key=key),
    "AWM RNN": awm(lambda n, key: RNN(WIDTH, key=key)),
    "AWM GRU": awm(lambda n, key: GRU(WIDTH, key=key)),
    "AWM LSTM": awm(lambda n, key: LSTM(WIDTH, key=key)),
    "AWM state space": awm(lambda n, key: LinearStateSpace(WIDTH, key=key)),
    "AWM transformer": awm(lambda n, key: Transformer(WIDTH, horizon=n, key=key)),
    "AWM transformer, bfloat16": awm(lambda n, key: Transformer(WIDTH, horizon=n, matmul_dtype=jnp.bfloat16, key=key)),
    "HWM transformer": lambda n, key: HWM(STATES, ACTIONS, Transformer(WIDTH, horizon=n, key=key), key=key),
    "double pendulum": lambda n, key: DrivenDoublePendulum(n),
    "cart-pole in MJX": lambda n, key: cartpole(n),
}
if ON_GPU:
    SYSTEMS["AWM transformer, cuDNN"] = awm(
        lambda n, key: Transformer(WIDTH, horizon=n, matmul_dtype=jnp.bfloat16, attention=CuDNNAttention(), key=key)
    )
# Systems that are measured at some horizons only: others tell little more, or take minutes to compile.
ONLY = {"AWM transformer, bfloat16": (100, 400), "HWM transformer": (20, 100, 400), "cart-pole in MJX": (100,)}
METHODS = {
    "default": None,
    "Sequential": Sequential(),
    "Sequential, step": Sequential("step"),
    "Sequential, nested": Sequential("nested"),
    "Newton": Newton(),
    "Parallel": Parallel(),
    "Parallel, Picard": Parallel(sampling=Picard()),
    "Parallel, Picard by 256": Parallel(sampling=Picard(), block=256),
}


def reward(state, action, t):
    del t
    return -jnp.sum(state**2) - jnp.sum(action**2)


def gradient(system: str, horizon: int, method) -> Callable[[Float[Array, "N S"]], tuple[Float[Array, " P"], Array | None]]:
    """Return a function of initial states: the mean gradient, computed in their dtype with weights drawn in float32, and the
    largest number of sweeps, `None` for a method without."""
    model_key, policy_key = jax.random.split(jax.random.key(0))
    model = SYSTEMS[system](horizon, model_key)
    policy = MLPPolicy(model.state_size, model.action_size, key=policy_key)

    def run(states):
        cast = lambda x: x.astype(states.dtype) if eqx.is_inexact_array(x) else x
        dynamics, actor = jax.tree.map(cast, (model, policy))

        def mean(policy):
            one = lambda s: unroll(dynamics, policy, s, horizon, reward=reward, paths=BPO, method=method)
            episodes = jax.vmap(one)(states)
            return jnp.mean(jax.vmap(lambda episode: episode.returns())(episodes)), episodes.sweeps

        grads, sweeps = eqx.filter_grad(mean, has_aux=True)(actor)
        return ravel_pytree(grads)[0], None if sweeps is None else jnp.max(sweeps)

    return run


def first_states(system: str, horizon: int, batch: int) -> Float[Array, "N S"]:
    model = SYSTEMS[system](horizon, jax.random.key(0))
    return 0.5 * jax.random.normal(jax.random.key(1), (batch, model.state_size))


def multiplications(jaxpr, sweeps: float) -> float:
    """Return the FLOPs of a program's matrix products on this platform; `sweeps` is the number of iterations of while loops."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
            total += 2 * math.prod(out) * math.prod(left[i] for i in contracted)
        times = {"scan": equation.params.get("length", 1), "while": sweeps}.get(equation.primitive.name, 1)
        programs = _programs(equation.params.values())
        if platforms := equation.params.get("branches_platforms"):  # Only one of the branches is compiled.
            named = [i for i, names in enumerate(platforms) if names is None or jax.default_backend() in names]
            programs = programs[named[0] : named[0] + 1]
        total += times * sum(multiplications(inner, sweeps) for inner in programs)
    return total


def _programs(values) -> list:
    """Return the programs among the parameters of an operation."""
    found = []
    for value in values:
        if isinstance(value, tuple | list):
            found += _programs(value)
        elif hasattr(value, "jaxpr"):
            found.append(value.jaxpr)
        elif hasattr(value, "eqns"):
            found.append(value)
    return found


def synchronised(fn: Callable, *inputs) -> float:
    """Return the milliseconds of one call."""
    start = time.perf_counter()
    jax.block_until_ready(fn(*inputs))
    return 1e3 * (time.perf_counter() - start)


def in_turns(calls: dict[str, Callable[[int], Any]], times: dict[str, list[float]], options) -> None:
    """Append the milliseconds of every call to `times`, until each has `options.repeats`. The calls take turns.

    After three turns the measurement stops if it has taken twice the patience.
    """
    begun = time.perf_counter()
    while calls and (turn := min(map(len, times.values()))) < options.repeats:
        if turn >= 3 and time.perf_counter() - begun > 2 * options.patience:
            break
        for name, call in calls.items():
            times[name].append(synchronised(call, turn + 1))


def first_run(call: Callable[[int], Any]) -> float:
    """Return the milliseconds of a run that follows a first one, which is not counted."""
    jax.block_until_ready(call(0))
    return synchronised(call, 1)


def measure(system: str, horizon: int, methods: list[str], raw: Raw, left: Callable[[], float], options) -> None:
    """Measure a system's gradient at a horizon by several methods, print a line for each, and add the rows to `raw`.

    **Raises:** `KeyboardInterrupt` if the seconds left are fewer than the longest compilation so far took.
    """
    longest = max((row.get("compile_s", 0) for row in raw.rows.values()), default=0)
    states = first_states(system, horizon, options.batch)
    same = jnp.broadcast_to(states[:1], states.shape)
    rows, calls, compiled = {}, {}, {}
    try:
        for method in methods:
            if left() < longest:
                raise KeyboardInterrupt
            run = gradient(system, horizon, METHODS[method])
            start = time.perf_counter()
            traced = jax.jit(run).trace(states)
            program = traced.lower().compile()
            seconds, analysis = time.perf_counter() - start, program.memory_analysis()
            longest = max(longest, seconds)
            memory = analysis.temp_size_in_bytes / 2**20 if analysis else math.nan
            fits = not memory > 1024 * options.memory
            calls[method] = lambda i, run=program: run(states + 0.01 * i)
            ms = [first_run(calls[method])] if fits else []
            sweeps = program(states)[1] if fits else None
            turns = 5.0 if sweeps is None else float(sweeps)
            flops = multiplications(traced.jaxpr.jaxpr, 1 if sweeps is None else turns)
            row = {"compile_s": seconds, "memory_MiB": memory, "flops": flops, "sweeps": None if sweeps is None else turns}
            if ON_GPU:
                row["launches"], _ = launches(program.as_text(), turns)
            elif planned := plan(run, states, turns=turns):
                row["launches"] = planned.launches
            rows[method] = row | ({"ms": ms} if fits else {})
            compiled[method] = program
            time_ = f"{ms[0]:9.1f} ms" if fits else "does not fit"
            kernels = f"{row['launches'] / horizon:8.1f} launches a step" if "launches" in row else ""
            print(
                f"{system:26} H={horizon:<5} {method:24} {time_}  compiled in {seconds:5.1f} s  {memory:8.0f} MiB {kernels}",
                flush=True,
            )
        times = {method: row["ms"] for method, row in rows.items() if "ms" in row}
        in_turns({method: calls[method] for method in times}, times, options)
        run = gradient(system, horizon, Sequential("nested"))
        with jax.enable_x64(True):
            exact = np.asarray(jax.jit(run)(jnp.asarray(np.asarray(states[:1]), float))[0])
        for method in times:
            error = np.linalg.norm(np.asarray(compiled[method](same)[0], float) - exact) / np.linalg.norm(exact)
            rows[method]["error"] = float(error)
    finally:  # Also where --minutes or Ctrl-C interrupted it.
        raw.add(
            {label(system, horizon, method): (config(system, horizon, method, options), row) for method, row in rows.items()}
        )


def label(system: str, horizon: int, method: str) -> str:
    return f"{system}-H{horizon}-{method}"


def unfinished(row: dict[str, Any] | None, options) -> bool:
    """Whether a row is missing, or its measurement was interrupted after a run or two."""
    return row is None or "ms" in row and len(row["ms"]) < min(3, options.repeats)


def config(system: str, horizon: int, method: str, options) -> dict[str, Any]:
    return {"system": system, "horizon": horizon, "method": method, "batch": options.batch, "repeats": options.repeats}


def rate(options) -> dict[str, Any]:
    """Measure the FLOPs per second of products of large matrices in float32: 2,048 x 2,048, on a GPU 8,192 x 8,192."""
    size = 8192 if ON_GPU else 2048
    matrix, matmul = jnp.ones((size, size)), jax.jit(jnp.matmul)
    call = lambda i: matmul(matrix, matrix + i)
    times = {"matmul": [first_run(call)]}
    in_turns({"matmul": call}, times, options)
    return {"flops_per_s": 2 * size**3 / (1e-3 * np.median(times["matmul"])), "ms": times["matmul"]}


def predicted_s(cells: Cells, system: str, method: str, horizon: int) -> float:
    """Guess the seconds of a run from the longest shorter horizon; the time grows like the square of the horizon."""
    known = [(h, rows[method]) for (s, h), rows in cells.items() if s == system and h < horizon and method in rows]
    timed = [(h, row["ms"]) for h, row in known if "ms" in row]
    if known and not timed:
        return math.inf
    return max((1e-3 * np.median(ms) * (horizon / h) ** 2 for h, ms in timed[-1:]), default=0.0)


def exponents(cells: Cells, system: str, method: str) -> str:
    """Return the exponents of time and memory in the horizon, fitted from 400 steps on."""
    rows = [(h, methods.get(method, {})) for (s, h), methods in cells.items() if s == system and h >= 400]
    rows = [(h, np.median(row["ms"]), row["memory_MiB"]) for h, row in rows if "ms" in row]
    if len(rows) < 2:
        return ""
    h, ms, memory = np.log(np.array(rows).T)
    return f"time H^{np.polyfit(h, ms, 1)[0]:.2f}, memory H^{np.polyfit(h, memory, 1)[0]:.2f}"


def table(cells: Cells, flops_per_s: float) -> str:
    """Return the tables of gradients and exponents."""
    gradients, growth = [], []
    for (system, horizon), rows in sorted(cells.items(), key=lambda cell: (list(SYSTEMS).index(cell[0][0]), cell[0][1])):
        base = min((np.median(r["ms"]) for m, r in rows.items() if "Sequential" in m and "ms" in r), default=math.nan)
        for method, row in rows.items():
            kernels = f"{row['launches'] / horizon:.1f}" if "launches" in row else ""
            start, compiled = [system, horizon, method], [f"{row['compile_s']:.1f}", f"{row['memory_MiB']:.0f}", kernels]
            if "ms" not in row:
                gradients.append([*start, "does not fit", "", "", *compiled, "", "", ""])
                continue
            low, middle, high = np.quantile(row["ms"], [0.25, 0.5, 0.75])
            times = "" if math.isnan(base) else f"{base / middle:.1f}"
            share = f"{100 * row['flops'] / (1e-3 * middle) / flops_per_s:.1f}"
            sweeps = "" if row["sweeps"] is None else f"{row['sweeps']:.0f}"
            error = f"{row['error']:.0e}" if "error" in row else ""
            gradients.append([*start, f"{middle:.1f}", f"{low:.1f}-{high:.1f}", times, *compiled, share, sweeps, error])
    for pair in dict.fromkeys((s, m) for (s, _), rows in cells.items() for m in rows):
        if text := exponents(cells, *pair):
            growth.append([*pair, text])
    head = [
        "system",
        "H",
        "method",
        "median ms",
        "quartiles",
        "times faster",
        "compile s",
        "MiB",
        "launches a step",
        "% of rate",
        "sweeps",
        "error",
    ]
    tables = (
        markdown(head, gradients),
        "Times faster than the fastest sequential method that fits.",
        markdown(["system", "method", "grows, from H = 400 on"], growth),
    )
    return "\n\n".join([f"matrix products: {flops_per_s / 1e9:.0f} GFLOP/s", *tables])


def figure(cells: Cells) -> Figure:
    """Draw the transformer AWM's time and memory by method, and every system's time with its fastest method."""
    plt.rcParams.update(plot.STYLE)
    fig, axes = plt.subplots(1, 3, figsize=(14, 4.5))

    def draw(axis, name: str, colour: str, points: list[tuple[int, float]]) -> None:
        if points:
            axis.loglog(*zip(*points, strict=True), "o-", color=colour, label=name)

    transformer = {horizon: rows for (system, horizon), rows in cells.items() if system == "AWM transformer"}
    for axis, quantity in zip(axes[:2], ("ms", "memory_MiB"), strict=True):
        for method, colour in plot.colours(METHODS).items():
            rows = {h: methods[method] for h, methods in transformer.items() if method in methods}
            draw(axis, method, colour, [(h, np.median(row[quantity])) for h, row in rows.items() if quantity in row])
    for system, colour in plot.colours(SYSTEMS).items():
        times = {h: [np.median(r["ms"]) for r in rows.values() if "ms" in r] for (s, h), rows in cells.items() if s == system}
        draw(axes[2], system, colour, [(h, min(ms)) for h, ms in times.items() if ms])
    axes[0].set(title="AWM transformer: a gradient", xlabel="horizon (steps)", ylabel="ms")
    axes[1].set(title="Its memory", xlabel="horizon (steps)", ylabel="MiB")
    axes[2].set(title="Every system, by its fastest method", xlabel="horizon (steps)", ylabel="ms")
    for axis in axes:
        if not axis.lines:
            axis.set(xscale="log", yscale="log")
    if axes[0].lines:
        axes[0].legend()
    if axes[2].lines:
        axes[2].legend(loc="upper left", bbox_to_anchor=(1, 1))
    return fig


def print_plans(pairs: list[tuple[str, int, str]], options) -> None:
    """Print what an H100, or this machine's GPU, launches for each gradient."""
    for system, horizon, method in pairs:
        planned = plan(
            gradient(system, horizon, METHODS[method]), first_states(system, horizon, options.batch), turns=options.turns
        )
        if planned is None:
            raise SystemExit("No compiler for a GPU is installed; see launches.py.")
        print(
            f"{system:26} H={horizon:<5} {method:24} {planned.launches:9.0f} launches, {planned.launches / horizon:7.1f} a step, "
            f"{1.6e-3 * planned.launches:8.1f} ms if bound by them, {planned.waits:5.0f} waits, compiled in {planned.compile_s:.1f} s",
            flush=True,
        )


def main() -> None:
    parser = arguments(__doc__, "speed")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--horizons", type=int, nargs="+", default=[20, 50, 100, 200, 400, 1000, 2000, 4096])
    parser.add_argument("--batch", type=int, default=16, help="number of initial states")
    parser.add_argument("--repeats", type=int, default=7, help="runs of each program")
    parser.add_argument("--patience", type=float, default=60, help="longest run, in seconds")
    parser.add_argument("--memory", type=float, default=16, help="largest program, in GiB")
    parser.add_argument("--plan", action="store_true", help="only count the launches on a GPU; nothing is run")
    parser.add_argument("--turns", type=float, default=5, help="sweeps that --plan assumes of Picard")
    options = parser.parse_args()
    if options.quick:
        options.systems, options.horizons, options.repeats = ["AWM transformer"], [50, 100], 3
        options.methods = ["Sequential", "Parallel", "Parallel, Picard"]
    groups = {}
    for horizon in sorted(options.horizons):
        for system in (s for s in SYSTEMS if s in options.systems and horizon in ONLY.get(s, (horizon,))):
            sequential = SYSTEMS[system](1, jax.random.key(0)).reads_state
            large = "transformer" in system or "space" in system  # Newton linearises the whole carry.
            able = {"Parallel": not sequential, "Newton": not large}
            groups[system, horizon] = [m for m in options.methods if able.get(m.split(",")[0], True)]
    if options.plan:
        return print_plans([(*pair, m) for pair, methods in groups.items() for m in methods], options)
    raw, cells = Raw(options, "speed"), {}
    flops_per_s = raw.run("rate", {"batch": options.batch, "repeats": options.repeats}, lambda: rate(options))["flops_per_s"]
    with until_stopped(options) as left:
        for (system, horizon), methods in groups.items():
            rows = {m: raw.find(label(system, horizon, m), config(system, horizon, m, options)) for m in methods}
            new = [
                m
                for m, row in rows.items()
                if unfinished(row, options) and predicted_s(cells, system, m, horizon) <= options.patience
            ]
            try:
                if new and not options.from_raw:
                    measure(system, horizon, new, raw, left, options)
            finally:
                rows = {m: raw.find(label(system, horizon, m), config(system, horizon, m, options)) for m in methods}
                cells[system, horizon] = {m: row for m, row in rows.items() if row is not None}
    figure(cells).savefig(options.out / "speed.png", dpi=110)
    raw.write(table(cells, flops_per_s))


if __name__ == "__main__":
    main()
