"""How long does an update of a world model take, and how much does `fit(microbatch_size=)` save?

    python examples/benchmarks/update_speed.py               eight models: 2 minutes
    python examples/benchmarks/update_speed.py --quick       the smallest model and the transformer: 40 seconds
    python examples/benchmarks/update_speed.py --from-raw    the published table

An update of a model, the step of `fit` without its loop, uses 64 episodes of 100 steps, all at once or 16 at a time
(`fit(microbatch_size=16)`). The transformer is compared with the same network written with Equinox's own attention, which must
give the same gradient. Cheap models come first; each line is printed when it is measured. `speed.py` explains the columns.

Expected: the transformer's update is 1.6 times as fast as the straightforward one, and 1.3 times with 16 episodes at a time.
"""

# Parts of models are accessed by name, and a compiled program may lack a memory analysis.
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false

import time
from itertools import product
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from launches import launches, plan
from raw import arguments, markdown, Raw, until_stopped
from speed import ACTIONS, first_run, in_turns, multiplications, ON_GPU, rate, STATES, SYSTEMS, WIDTH

from awmkit import AWM, Trajectory
from awmkit.learning._minibatch import episodes_at_a_time, loss_and_gradient  # the update of `fit` without its loop

EPISODES, LENGTH, FEW = 64, 100, 16  # episodes, their steps, and the smaller microbatch
LEARNED = [name for name in SYSTEMS if "AWM" in name or name in ("HWM transformer", "Markov")]


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


def measure(name: str, raw: Raw, config: dict[str, Any], options) -> None:
    """Measure a model's update with all episodes at once and with few, beside the straightforward one of the transformer.

    Print a line for each, and add the rows to `raw`, also where --minutes or Ctrl-C interrupts.
    """
    keys = jax.random.split(jax.random.key(0), 3)
    models: dict[str, Any] = {name: SYSTEMS[name](LENGTH, keys[0])}
    if name == "AWM transformer":
        models["straightforward"] = Plain(models[name])
    states = jax.random.normal(keys[1], (EPISODES, LENGTH + 1, STATES))
    actions = jax.random.uniform(keys[2], (EPISODES, LENGTH, ACTIONS), minval=-1.0)
    optimiser, calls, rows = optax.adam(1e-3), {}, {}
    try:
        for (model_name, model), microbatch_size in product(models.items(), (EPISODES, FEW)):
            weights, rest = eqx.partition(model, eqx.is_inexact_array)
            few = episodes_at_a_time([model], LENGTH)

            def update(weights, memory, states, rest=rest, microbatch_size=microbatch_size, few=few):
                loss = lambda weights, episode: eqx.combine(weights, rest).loss(episode)
                _, grads = loss_and_gradient(loss, weights, Trajectory(states, actions), microbatch_size, few)
                steps, memory = optimiser.update(grads, memory)
                return eqx.apply_updates(weights, steps), memory

            memory, label = optimiser.init(weights), f"{model_name}, {microbatch_size} at once"
            start = time.perf_counter()
            traced = jax.jit(update).trace(weights, memory, states)
            compiled = traced.lower().compile()
            rows[label] = {
                "compile_s": time.perf_counter() - start,
                "flops": multiplications(traced.jaxpr.jaxpr, 1),
                "memory_MiB": compiled.memory_analysis().temp_size_in_bytes / 2**20,
            }
            if ON_GPU:
                rows[label]["launches"], _ = launches(compiled.as_text(), 1)
            elif planned := plan(update, weights, memory, states):
                rows[label]["launches"] = planned.launches
            calls[label] = lambda i, run=compiled, w=weights, m=memory: run(w, m, states + 0.01 * i)
            rows[label]["ms"] = [first_run(calls[label])]
            print(f"{label:40} {rows[label]['ms'][0]:8.1f} ms  compiled in {rows[label]['compile_s']:5.1f} s", flush=True)
        in_turns(calls, {label: row["ms"] for label, row in rows.items()}, options)
        if "straightforward" in models:
            episode = Trajectory(states[0], actions[0])
            of_embedding = lambda model: eqx.filter_grad(lambda m: m.loss(episode))(model).embed_action.weight
            ours, theirs = (of_embedding(model) for model in models.values())
            difference = jnp.linalg.norm(ours - theirs) / jnp.linalg.norm(theirs)
            rows[f"straightforward, {EPISODES} at once"]["difference"] = float(difference)
    finally:
        raw.add({label: (config, row) for label, row in rows.items() if "ms" in row})


def table(rows: dict[str, dict[str, Any]], flops_per_s: float) -> str:
    """Return the table of updates."""
    lines = []
    for label, row in rows.items():
        low, middle, high = np.quantile(row["ms"], [0.25, 0.5, 0.75])
        share = f"{100 * row['flops'] / (1e-3 * middle) / flops_per_s:.1f}"
        kernels = f"{row['launches']:.0f}" if "launches" in row else ""
        compiled = [f"{row['compile_s']:.1f}", f"{row['memory_MiB']:.0f}", kernels]
        lines.append([label, f"{middle:.1f}", f"{low:.1f}-{high:.1f}", *compiled, share])
    head = [
        f"update, {EPISODES} episodes of {LENGTH} steps",
        "median ms",
        "quartiles",
        "compile s",
        "MiB",
        "launches",
        "% of rate",
    ]
    tables = [f"matrix products: {flops_per_s / 1e9:.0f} GFLOP/s", markdown(head, lines)]
    for difference in (row["difference"] for row in rows.values() if "difference" in row):
        tables.append(f"The straightforward transformer's gradient differs from ours by {difference:.0e} of its norm.")
    return "\n\n".join(tables)


def main() -> None:
    parser = arguments(__doc__, "update_speed")
    parser.add_argument("--repeats", type=int, default=7, help="runs of each program")
    parser.add_argument("--patience", type=float, default=60, help="longest run, in seconds")
    options = parser.parse_args()
    raw, config = Raw(options, "update_speed"), {"repeats": options.repeats}
    flops_per_s = raw.run("rate", config, lambda: rate(options))["flops_per_s"]
    with until_stopped(options):
        for name in ["Markov", "AWM transformer"] if options.quick else LEARNED:
            last = "straightforward" if name == "AWM transformer" else name
            if not options.from_raw and raw.find(f"{last}, {FEW} at once", config) is None:
                measure(name, raw, config, options)
    raw.write(table({label: row for label, row in raw.rows.items() if label != "rate"}, flops_per_s))


if __name__ == "__main__":
    main()
