"""How long does a policy gradient take, and a model's update, for every dynamics and method?

    python examples/benchmarks/speed.py               ten systems, horizons from 20 to 4,096: 45 minutes
    python examples/benchmarks/speed.py --quick       a transformer AWM at two horizons: 1 minute
    python examples/benchmarks/speed.py --from-raw    the published table and figure
    python examples/benchmarks/speed.py --systems "AWM transformer" --horizons 400 2000 --methods Sequential Parallel

A policy gradient is the mean BPO gradient over 16 initial states with respect to an MLP policy. Models have the paper's size
(width 48, 2 layers, 3 heads) and are not trained. The methods of a system and a horizon take turns, on inputs that differ;
compilation is timed separately. Memory is what XLA plans for the compiled program, without inputs and outputs. FLOPs are those
of the matrix products, as a share of the rate at which this machine multiplies matrices of size 2,048. Errors are those of one
gradient in float32 against `Sequential` in float64. Runs longer than --patience or larger than --memory are left out.

An update of a model uses 64 episodes of 100 steps, all at once or 16 at a time (`fit(microbatch_size=16)`). The transformer is
compared with the same network written with Equinox's own attention, which must give the same gradient.

Expected: `Parallel()` of the transformer AWM is 6 times as fast as the fastest sequential method at 400 steps and 9 times at
2,000; with `Picard()` 13 times. 4,096 steps take 20 s and less than 2 GiB. Time and memory of the state-space AWM are linear in
the horizon. Errors are at most 3e-5 in float32 (an untrained Markov model's gradient overflows from 1,000 steps on) and 2e-4
with bfloat16. An update with 16 episodes at a time is 1.6 times as fast as the straightforward one.
"""

# Parts of models are accessed by name, and a compiled program may lack a memory analysis.
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false

import math
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray
from matplotlib.figure import Figure
from raw import arguments, markdown, Raw

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
    Parallel,
    Picard,
    plot,
    RNN,
    Sequential,
    Trajectory,
    Transformer,
    unroll,
)
from awmkit.learning._minibatch import loss_and_gradient  # the update of `fit` without its loop
from awmkit.mjx import cartpole
from awmkit.tasks import DrivenDoublePendulum

WIDTH, STATES, ACTIONS = 48, 4, 2
EPISODES, LENGTH, FEW = 64, 100, 16  # a model's update: episodes, their steps, and the smaller microbatch
Build = Callable[[int, PRNGKeyArray], AbstractDynamics]


def awm(backbone: Callable[[int, PRNGKeyArray], Any]) -> Build:
    """Return a builder of an AWM from a builder of its backbone."""
    return lambda horizon, key: AWM(STATES, ACTIONS, backbone(horizon, key), key=key)


SYSTEMS: dict[str, Build] = {
    "AWM transformer": awm(lambda n, key: Transformer(WIDTH, horizon=n, key=key)),
    "AWM transformer, bfloat16": awm(lambda n, key: Transformer(WIDTH, horizon=n, matmul_dtype=jnp.bfloat16, key=key)),
    "AWM state space": awm(lambda n, key: LinearStateSpace(WIDTH, key=key)),
    "AWM GRU": awm(lambda n, key: GRU(WIDTH, key=key)),
    "AWM LSTM": awm(lambda n, key: LSTM(WIDTH, key=key)),
    "AWM RNN": awm(lambda n, key: RNN(WIDTH, key=key)),
    "HWM transformer": lambda n, key: HWM(STATES, ACTIONS, Transformer(WIDTH, horizon=n, key=key), key=key),
    "Markov": lambda n, key: Markov(STATES, ACTIONS, key=key),
    "double pendulum": lambda n, key: DrivenDoublePendulum(n),
    "cart-pole in MJX": lambda n, key: cartpole(n),
}
if jax.default_backend() == "gpu":
    SYSTEMS["AWM transformer, cuDNN"] = awm(
        lambda n, key: Transformer(WIDTH, horizon=n, matmul_dtype=jnp.bfloat16, attention=CuDNNAttention(), key=key)
    )
LEARNED = [name for name in SYSTEMS if "AWM" in name or name in ("HWM transformer", "Markov")]
# Systems that are measured at some horizons only: others tell little more, or take minutes to compile.
ONLY = {"AWM transformer, bfloat16": (100, 400), "HWM transformer": (20, 100, 400), "cart-pole in MJX": (100,)}
METHODS = {
    "Sequential": Sequential(),
    "Sequential, step": Sequential("step"),
    "Sequential, nested": Sequential("nested"),
    "Parallel": Parallel(),
    "Parallel, Picard": Parallel(sampling=Picard()),
    "Parallel, Picard by 256": Parallel(sampling=Picard(), block=256),
}


def reward(state, action, t):
    del t
    return -jnp.sum(state**2) - jnp.sum(action**2)


def gradient(system: str, horizon: int, method) -> Callable[[Float[Array, "N S"]], Float[Array, " P"]]:
    """Return a function of initial states: the mean gradient, computed in their dtype with weights drawn in float32."""
    model_key, policy_key = jax.random.split(jax.random.key(0))
    model = SYSTEMS[system](horizon, model_key)
    policy = MLPPolicy(model.state_size, model.action_size, key=policy_key)

    def run(states):
        cast = lambda x: x.astype(states.dtype) if eqx.is_inexact_array(x) else x
        dynamics, actor = jax.tree.map(cast, (model, policy))
        one = lambda policy, s: unroll(dynamics, policy, s, horizon, reward=reward, paths=BPO, method=method).returns()
        mean = lambda policy: jnp.mean(jax.vmap(lambda s: one(policy, s))(states))
        return ravel_pytree(eqx.filter_grad(mean)(actor))[0]

    return run


def first_states(system: str, horizon: int, batch: int) -> Float[Array, "N S"]:
    model = SYSTEMS[system](horizon, jax.random.key(0))
    return 0.5 * jax.random.normal(jax.random.key(1), (batch, model.state_size))


def multiplications(jaxpr, sweeps: float) -> float:
    """Return the FLOPs of a program's matrix products; `sweeps` is the number of iterations of while loops."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
            total += 2 * math.prod(out) * math.prod(left[i] for i in contracted)
        times = {"scan": equation.params.get("length", 1), "while": sweeps}.get(equation.primitive.name, 1)
        total += times * sum(multiplications(inner, sweeps) for inner in _programs(equation.params.values()))
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


def in_turns(calls: dict[str, Callable[[int], Any]], options) -> dict[str, list[float]]:
    """Return the milliseconds of every call. The calls take turns, after a first turn that is not counted.

    After three turns the measurement stops if it has taken twice the patience.
    """
    for call in calls.values():
        jax.block_until_ready(call(0))
    times, begun = {name: [] for name in calls}, time.perf_counter()
    for i in range(options.repeats):
        if i >= 3 and time.perf_counter() - begun > 2 * options.patience:
            break
        for name, call in calls.items():
            times[name].append(synchronised(call, i + 1))
    return times


def compile_method(system: str, horizon: int, method: str, states: Array, limit_GiB: float) -> tuple[Any, dict]:
    """Return the compiled gradient (`None` if it does not fit in memory) and its costs."""
    run, sweeps = gradient(system, horizon, METHODS[method]), None
    if "Picard" in method:
        model = SYSTEMS[system](horizon, jax.random.split(jax.random.key(0))[0])
        policy = MLPPolicy(model.state_size, model.action_size, key=jax.random.split(jax.random.key(0))[1])
        count = lambda s: unroll(model, policy, s, horizon, method=METHODS[method]).sweeps
        sweeps = float(jnp.max(jax.jit(jax.vmap(count))(states)))
    start = time.perf_counter()
    traced = jax.jit(run).trace(states)
    compiled = traced.lower().compile()
    seconds, plan = time.perf_counter() - start, compiled.memory_analysis()
    memory = plan.temp_size_in_bytes / 2**20 if plan else math.nan
    flops = multiplications(traced.jaxpr.jaxpr, sweeps or 1)
    known = {"compile_s": seconds, "memory_MiB": memory, "flops": flops, "sweeps": sweeps}
    return (compiled if not memory > 1024 * limit_GiB else None), known


def gradient_cell(system: str, horizon: int, methods: list[str], options) -> dict[str, Any]:
    """Measure a system's gradient at a horizon, by every method."""
    states = first_states(system, horizon, options.batch)
    same = jnp.broadcast_to(states[:1], states.shape)
    rows, compiled = {}, {}
    for method in methods:
        program, rows[method] = compile_method(system, horizon, method, states, options.memory)
        if program is not None:
            compiled[method] = program
    run = gradient(system, horizon, Sequential("nested"))
    with jax.enable_x64(True):
        exact = np.asarray(jax.jit(run)(jnp.asarray(np.asarray(states[:1]), float)))
    calls = {method: lambda i, run=run: run(states + 0.01 * i) for method, run in compiled.items()}
    for method, times in in_turns(calls, options).items():
        error = np.linalg.norm(np.asarray(compiled[method](same), float) - exact) / np.linalg.norm(exact)
        rows[method] |= {"ms": times, "error": float(error)}
    return {"methods": rows}


class Plain(eqx.Module):
    """A transformer AWM written in the straightforward way, with Equinox's attention and `vmap` over tokens."""

    embed_state: eqx.nn.Linear
    embed_action: eqx.nn.Linear
    time: Array
    blocks: list[tuple]
    norm: eqx.nn.LayerNorm
    head: eqx.nn.MLP

    def __init__(self, model: AWM):
        net = model.backbone
        self.embed_state, self.embed_action, self.head = model.embed_state, model.embed_action, model.head
        self.time, self.norm = net.time, net.norm
        self.blocks = [
            (attention(b.attention), linear(b.up), linear(b.down), b.before_attention, b.before_mlp) for b in net.blocks
        ]

    def __call__(self, state, actions):
        tokens = jnp.concatenate([self.embed_state(state)[None], jax.vmap(self.embed_action)(actions)]) + self.time
        mask = jnp.tril(jnp.ones((len(tokens), len(tokens)), bool))
        for attention, up, down, before_attention, before_mlp in self.blocks:
            x = jax.vmap(before_attention)(tokens)
            tokens = tokens + attention(x, x, x, mask=mask)
            mlp = eqx.nn.Sequential([before_mlp, up, eqx.nn.Lambda(jax.nn.gelu), down])
            tokens = tokens + jax.vmap(mlp)(tokens)
        return state + jax.vmap(self.head)(jax.vmap(self.norm)(tokens[1:]))

    def loss(self, episode: Trajectory) -> Array:
        return 0.5 * jnp.mean((self(episode.states[0], episode.actions) - episode.states[1:]) ** 2)


def linear(ours) -> eqx.nn.Linear:
    """Return Equinox's layer with the weights of awmkit's."""
    layer = eqx.nn.Linear(*ours.weight.shape[::-1], key=jax.random.key(0))
    return eqx.tree_at(lambda x: (x.weight, x.bias), layer, (ours.weight, ours.bias))


def attention(ours) -> eqx.nn.MultiheadAttention:
    """Return Equinox's attention with the weights of awmkit's."""
    biases = {f"use_{name}_bias": True for name in ("query", "key", "value", "output")}
    theirs = eqx.nn.MultiheadAttention(ours.heads, WIDTH, **biases, key=jax.random.key(0))
    projections = lambda x: (x.query_proj, x.key_proj, x.value_proj)
    weights, bias = jnp.split(ours.projection.weight, 3), jnp.split(ours.projection.bias, 3)
    layers = [
        eqx.tree_at(lambda y: (y.weight, y.bias), x, wb) for x, *wb in zip(projections(theirs), weights, bias, strict=True)
    ]
    return eqx.tree_at(lambda x: (*projections(x), x.output_proj), theirs, (*layers, linear(ours.output)))


def update_cell(options) -> dict[str, Any]:
    """Measure an update of each model and of the straightforward transformer, with all episodes at once and with few."""
    keys = jax.random.split(jax.random.key(0), 3)
    models: dict[str, Any] = {name: SYSTEMS[name](LENGTH, keys[0]) for name in LEARNED}
    models["straightforward"] = Plain(models["AWM transformer"])
    states = jax.random.normal(keys[1], (EPISODES, LENGTH + 1, STATES))
    actions = jax.random.uniform(keys[2], (EPISODES, LENGTH, ACTIONS), minval=-1.0)
    optimiser, calls, rows = optax.adam(1e-3), {}, {}
    for (name, model), microbatch_size in product(models.items(), (EPISODES, FEW)):
        weights, rest = eqx.partition(model, eqx.is_inexact_array)

        def update(weights, memory, states, rest=rest, microbatch_size=microbatch_size):
            loss = lambda weights, episode: eqx.combine(weights, rest).loss(episode)
            _, grads = loss_and_gradient(loss, weights, Trajectory(states, actions), microbatch_size)
            steps, memory = optimiser.update(grads, memory)
            return eqx.apply_updates(weights, steps), memory

        memory, label = optimiser.init(weights), f"{name}, {microbatch_size} at once"
        traced = jax.jit(update).trace(weights, memory, states)
        start = time.perf_counter()
        compiled = traced.lower().compile()
        rows[label] = {
            "compile_s": time.perf_counter() - start,
            "flops": multiplications(traced.jaxpr.jaxpr, 1),
            "memory_MiB": compiled.memory_analysis().temp_size_in_bytes / 2**20,
        }
        calls[label] = lambda i, run=compiled, w=weights, m=memory: run(w, m, states + 0.01 * i)
    for label, times in in_turns(calls, options).items():
        rows[label]["ms"] = times
    of_embedding = lambda model: eqx.filter_grad(lambda m: m.loss(Trajectory(states[0], actions[0])))(model).embed_action.weight
    ours, theirs = (of_embedding(models[name]) for name in ("AWM transformer", "straightforward"))
    return {"models": rows, "difference": float(jnp.linalg.norm(ours - theirs) / jnp.linalg.norm(theirs))}


def rate_cell(options) -> dict[str, Any]:
    """Measure the FLOPs per second of products of 2,048 x 2,048 matrices in float32."""
    matrix, matmul = jnp.ones((2048, 2048)), jax.jit(jnp.matmul)
    times = in_turns({"matmul": lambda i: matmul(matrix, matrix + i)}, options)["matmul"]
    return {"flops_per_s": 2 * 2048**3 / (1e-3 * np.median(times)), "ms": times}


def predicted_s(cells: dict, system: str, method: str, horizon: int) -> float:
    """Guess the seconds of a run from the longest shorter horizon; the time grows like the square of the horizon."""
    known = [(h, cell["methods"][method]) for (s, h), cell in cells.items() if s == system and method in cell["methods"]]
    timed = [(h, row["ms"]) for h, row in known if "ms" in row]
    if known and not timed:
        return math.inf
    return max((1e-3 * np.median(ms) * (horizon / h) ** 2 for h, ms in timed[-1:]), default=0.0)


def exponents(cells: dict, system: str, method: str) -> str:
    """Return the exponents of time and memory in the horizon, fitted from 400 steps on."""
    rows = [(h, cell["methods"].get(method, {})) for (s, h), cell in cells.items() if s == system and h >= 400]
    rows = [(h, np.median(row["ms"]), row["memory_MiB"]) for h, row in rows if "ms" in row]
    if len(rows) < 2:
        return ""
    h, ms, memory = np.log(np.array(rows).T)
    return f"time H^{np.polyfit(h, ms, 1)[0]:.2f}, memory H^{np.polyfit(h, memory, 1)[0]:.2f}"


def table(cells: dict, updates: dict, rate: float) -> str:
    """Return the tables of gradients, exponents and updates."""
    gradients, updated = [], []
    for (system, horizon), cell in cells.items():
        rows = cell["methods"]
        base = min((np.median(r["ms"]) for m, r in rows.items() if "Sequential" in m and "ms" in r), default=math.nan)
        for method, row in ((m, rows[m]) for m in METHODS if m in rows):
            start, compiled = [system, horizon, method], [f"{row['compile_s']:.1f}", f"{row['memory_MiB']:.0f}"]
            if "ms" not in row:
                gradients.append([*start, "does not fit", "", "", *compiled, "", "", ""])
                continue
            low, middle, high = np.quantile(row["ms"], [0.25, 0.5, 0.75])
            share = 100 * row["flops"] / (1e-3 * middle) / rate
            times = "" if math.isnan(base) else f"{base / middle:.1f}"
            sweeps = "" if row["sweeps"] is None else f"{row['sweeps']:.0f}"
            numbers = [
                f"{middle:.1f}",
                f"{low:.1f}-{high:.1f}",
                times,
                *compiled,
                f"{share:.1f}",
                sweeps,
                f"{row['error']:.0e}",
            ]
            gradients.append([*start, *numbers])
    pairs = dict.fromkeys((s, m) for (s, _), cell in cells.items() for m in cell["methods"])
    growth = [[*pair, text] for pair in pairs if (text := exponents(cells, *pair))]
    for name, row in updates["models"].items():
        low, middle, high = np.quantile(row["ms"], [0.25, 0.5, 0.75])
        share = 100 * row["flops"] / (1e-3 * middle) / rate
        updated.append([name, f"{middle:.1f}", f"{low:.1f}-{high:.1f}", f"{row['compile_s']:.1f}", f"{share:.1f}"])
    head = [
        "system",
        "H",
        "method",
        "median ms",
        "quartiles",
        "times faster",
        "compile s",
        "MiB",
        "% of rate",
        "sweeps",
        "error",
    ]
    notes = (
        "Times faster than the fastest sequential method that fits. The straightforward transformer's gradient differs from "
        f"ours by {updates['difference']:.0e} of its norm."
    )
    update_head = [f"update, {EPISODES} episodes of {LENGTH} steps", "median ms", "quartiles", "compile s", "% of rate"]
    tables = (
        markdown(head, gradients),
        markdown(["system", "method", "grows, from H = 400 on"], growth),
        notes,
        markdown(update_head, updated),
    )
    return "\n\n".join([f"matrix products: {rate / 1e9:.0f} GFLOP/s", *tables])


def figure(cells: dict) -> Figure:
    """Draw the transformer AWM's time and memory by method, and every system's time with its fastest method."""
    plt.rcParams.update(plot.STYLE)
    fig, axes = plt.subplots(1, 3, figsize=(14, 4.5))

    def draw(axis, name: str, colour: str, points: list[tuple[int, float]]) -> None:
        if points:
            axis.loglog(*zip(*points, strict=True), "o-", color=colour, label=name)

    transformer = {horizon: cell["methods"] for (system, horizon), cell in cells.items() if system == "AWM transformer"}
    for axis, quantity in zip(axes[:2], ("ms", "memory_MiB"), strict=True):
        for method, colour in plot.colours(METHODS).items():
            rows = {h: methods[method] for h, methods in transformer.items() if method in methods}
            draw(axis, method, colour, [(h, np.median(row[quantity])) for h, row in rows.items() if quantity in row])
    for system, colour in plot.colours(SYSTEMS).items():
        times = {
            h: [np.median(r["ms"]) for r in c["methods"].values() if "ms" in r] for (s, h), c in cells.items() if s == system
        }
        draw(axes[2], system, colour, [(h, min(ms)) for h, ms in times.items() if ms])
    axes[0].set(title="AWM transformer: a gradient, batch 16", xlabel="horizon (steps)", ylabel="ms")
    axes[1].set(title="Its memory", xlabel="horizon (steps)", ylabel="MiB")
    axes[2].set(title="Every system, by its fastest method", xlabel="horizon (steps)", ylabel="ms")
    axes[0].legend()
    axes[2].legend(loc="upper left", bbox_to_anchor=(1, 1))
    return fig


def main() -> None:
    parser = arguments(__doc__, "speed")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--horizons", type=int, nargs="+", default=[20, 50, 100, 200, 400, 1000, 2000, 4096])
    parser.add_argument("--batch", type=int, default=16, help="number of initial states")
    parser.add_argument("--repeats", type=int, default=7, help="runs of each program")
    parser.add_argument("--patience", type=float, default=60, help="longest run, in seconds")
    parser.add_argument("--memory", type=float, default=16, help="largest program, in GiB")
    options = parser.parse_args()
    if options.quick:
        options.systems, options.horizons, options.repeats = ["AWM transformer"], [50, 100], 3
        options.methods = ["Sequential", "Parallel", "Parallel, Picard"]
    raw, sizes, cells = Raw(options, "speed"), {"batch": options.batch, "repeats": options.repeats}, {}
    rate = raw.run("rate", sizes, lambda: rate_cell(options))["flops_per_s"]
    updates = raw.run("update", sizes, lambda: update_cell(options))
    for system in options.systems:
        sequential = SYSTEMS[system](1, jax.random.key(0)).reads_state
        able = [m for m in options.methods if m.startswith("Sequential") or not sequential]
        for horizon in (h for h in sorted(options.horizons) if h in ONLY.get(system, (h,))):
            quick = [m for m in able if predicted_s(cells, system, m, horizon) <= options.patience]
            config = {"system": system, "horizon": horizon, "methods": quick, **sizes}
            cells[system, horizon] = raw.run(
                f"{system}-H{horizon}", config, partial(gradient_cell, system, horizon, quick, options)
            )
    figure(cells).savefig(options.out / "speed.png", dpi=110)
    raw.write(table(cells, updates, rate))


if __name__ == "__main__":
    main()
