"""How long a policy gradient through a transformer AWM takes, by each method, side by side in one run.

    python examples/speed.py                    about 3 minutes on two cores
    python examples/speed.py --horizons 100     about half a minute

The mean BPO gradient over a batch of initial states, of an AWM of the paper's size (2 layers, 3 heads, width 48) and an MLP
policy. Compilation is timed apart; runs are synchronised, on inputs that differ, and interleaved between the methods. Memory
is what the compiled program allocates beside its inputs and outputs, as XLA plans it. Errors are relative to `Sequential()`.

Expect: at H = 400 and batch 16 `Parallel` is 4 to 6 times faster than `Sequential`, in less memory.
"""

import argparse
import importlib.metadata
import json
import sys
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from awmkit import AWM, BPO, MLPPolicy, Parallel, Picard, Progress, Sequential, Transformer, unroll

METHODS = {
    "Sequential()": Sequential(),
    'Sequential("step")': Sequential("step"),
    'Sequential("nested")': Sequential("nested"),
    "Parallel()": Parallel(),
    "Parallel(sampling=Picard())": Parallel(sampling=Picard()),
}


def compile_methods(horizon: int, batch: int) -> tuple[dict, jax.Array]:
    """For each method the compiled mean gradient, what compiling cost, and the memory it needs; and the initial states."""
    keys = jax.random.split(jax.random.key(0), 4)
    model = AWM(4, 2, Transformer(horizon=horizon, key=keys[0]), key=keys[1])
    policy = MLPPolicy(4, 2, key=keys[2])
    states = jax.random.normal(keys[3], (batch, 4))
    reward = lambda s, a, t: -jnp.sum(s**2) - jnp.sum(a**2)
    compiled = {}
    for name, method in METHODS.items():

        def value(policy, states, method=method):
            one = lambda s: unroll(model, policy, s, horizon, reward=reward, paths=BPO, method=method).value()
            return jnp.mean(jax.vmap(one)(states))

        gradient = lambda states, value=value: ravel_pytree(eqx.filter_grad(value)(policy, states))[0]
        start = time.perf_counter()
        run = jax.jit(gradient).lower(states).compile()
        seconds = time.perf_counter() - start
        plan = run.memory_analysis()
        memory = plan.temp_size_in_bytes / 2**20 if plan else float("nan")
        compiled[name] = {"run": run, "compile_s": seconds, "memory_MiB": memory}
    return compiled, states


def measure(horizon: int, batch: int, repeats: int) -> dict[str, dict]:
    """Median and quartiles of the milliseconds of a gradient, by method."""
    compiled, states = compile_methods(horizon, batch)
    reference = compiled["Sequential()"]["run"](states)
    times: dict[str, list[float]] = {name: [] for name in compiled}
    with Progress(f"H = {horizon}, batch {batch}", repeats) as bar:
        for i in range(repeats):
            for name, entry in compiled.items():
                start = time.perf_counter()
                jax.block_until_ready(entry["run"](states + 0.01 * i))
                times[name].append(1e3 * (time.perf_counter() - start))
            bar.update(i + 1)
    rows = {}
    for name, entry in compiled.items():
        error = jnp.linalg.norm(entry["run"](states) - reference) / jnp.linalg.norm(reference)
        low, middle, high = np.quantile(times[name], [0.25, 0.5, 0.75])
        rows[name] = {
            "ms": middle,
            "quartiles_ms": [low, high],
            "times": float(np.median(times["Sequential()"]) / middle),
            "compile_s": entry["compile_s"],
            "memory_MiB": entry["memory_MiB"],
            "error": float(error),
            "raw_ms": times[name],
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--horizons", type=int, nargs="+", default=[100, 200, 400])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--out", type=Path, help="a JSON file for the raw values")
    arguments = parser.parse_args()
    if arguments.out and arguments.out.exists():
        parser.error(f"{arguments.out} exists; choose another file with --out.")
    print(__doc__)
    record: dict = {
        "command": " ".join(["python", "examples/speed.py", *sys.argv[1:]]),
        "device": jax.devices()[0].device_kind,
        "versions": {p: importlib.metadata.version(p) for p in ("jax", "jaxlib", "equinox", "awmkit")},
        "batch": arguments.batch,
        "horizons": {},
    }
    for horizon in arguments.horizons:
        rows = measure(horizon, arguments.batch, arguments.repeats)
        record["horizons"][str(horizon)] = rows
        print(
            f"\nH = {horizon:<24} {'median ms':>10} {'quartiles':>16} {'faster':>7} {'compile s':>10} {'MiB':>8} {'error':>9}"
        )
        for name, row in rows.items():
            low, high = row["quartiles_ms"]
            print(
                f"{name:<28} {row['ms']:>10.1f} {low:>8.1f}-{high:<7.1f} {row['times']:>6.1f}x {row['compile_s']:>10.1f} "
                f"{row['memory_MiB']:>8.1f} {row['error']:>9.1e}",
                flush=True,
            )
        if arguments.out:
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
