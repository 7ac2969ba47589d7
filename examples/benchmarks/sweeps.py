"""What does a sweep cost as one program? Eight learning rates of the policy, five seeds each, on the cancer task.

    python examples/benchmarks/sweeps.py               some minutes on two cores; each row is written when it is measured
    python examples/benchmarks/sweeps.py --quick       two learning rates, two seeds, few updates: 1 minute
    python examples/benchmarks/sweeps.py --from-raw    the published table and figure

- `improve`: the policy is improved in the simulator itself, without a model, so that the gradient is exact.
- `train`: the whole loop, with a `Markov` model that is fitted to the episodes that the policy collects: 200 steps of warm-up, and 20
  updates of the model and of the policy, which learn little. Most of the time is compilation.

There are three ways to make the 40 runs.

- sweep: one call, whose learning rate is an array: `Optimiser(optax.adam, learning_rate=rates)`.
- Optimiser: one call of five seeds for each rate, with `Optimiser(optax.adam, learning_rate=rate)`.
- optax: one call of five seeds for each rate, with `optax.adam(rate)`.

They are measured in turns in one process, and each begins with no compiled program. The table has the medians over the rounds
and the largest difference of a last return from that of the sweep, relative to it.

Expected: the sweep takes a fourth of the processor time of optax, which compiles again for every rate, and about that of Optimiser.
Most of the programs counted are single operations outside of the loop of updates. Returns of `improve` agree to rounding (1e-7), but
for the two largest rates, where 60 updates amplify it to 4e-6 and 2e-4. In float64 (`JAX_ENABLE_X64=1`) the differences at these
rates are 2e-13 and 1e-12, so it is rounding. Those of `train` agree to 1e-6.
"""

import time
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from raw import arguments, markdown, Raw, until_stopped

from awmkit import (
    FullHorizon,
    GaussianPolicy,
    improve,
    ImproveResult,
    Markov,
    ModelUpdates,
    NoProgress,
    Optimiser,
    plot,
    train,
    TrainResult,
    Warmup,
)
from awmkit.tasks import CancerTreatment, Discretised

TASK = Discretised(CancerTreatment(), 100)
WAYS = "sweep", "Optimiser", "optax"
COMPILED: list[str] = []
jax.monitoring.register_event_duration_secs_listener(lambda event, duration_secs, **_: COMPILED.append(event))


def run(optimiser, seeds: int, updates: int) -> ImproveResult:
    make_key, run_key = jax.random.split(jax.random.key(0))
    make = lambda key: GaussianPolicy(TASK.state_size, TASK.action_size, horizon=TASK.horizon, key=key)
    ascent = FullHorizon(optimiser=optimiser, batch_size=4, clip=1.0, entropy=0.01)
    options = {"reward": TASK.reward, "horizon": TASK.horizon, "updates": updates, "progress": NoProgress()}
    policies, starts = eqx.filter_vmap(make)(jax.random.split(make_key, seeds)), TASK.reset(make_key)[None]
    return improve(TASK, policies, starts, key=jax.random.split(run_key, seeds), ascent=ascent, **options)


def run_train(optimiser, seeds: int, steps: int) -> TrainResult:
    model_key, policy_key, run_key = (jax.random.split(key, seeds) for key in jax.random.split(jax.random.key(0), 3))
    sizes = TASK.state_size, TASK.action_size
    model = eqx.filter_vmap(lambda key: Markov(*sizes, horizon=TASK.horizon, key=key))(model_key)
    policy = eqx.filter_vmap(lambda key: GaussianPolicy(*sizes, horizon=TASK.horizon, key=key))(policy_key)
    ascent = FullHorizon(optimiser=optimiser, batch_size=4, clip=1.0, entropy=0.01)
    updates = {"warmup": Warmup(steps // 2), "model_updates": ModelUpdates(steps_per_update=10, batch_size=4)}
    ascent = replace(ascent, steps_per_update=10)
    return train(TASK, model, policy, key=run_key, steps=steps, ascent=ascent, progress=NoProgress(), **updates)


def measure(verb: str, way: str, rates: list[float], **config: int) -> dict[str, Any]:
    jax.clear_caches()
    returns_of = {
        "improve": lambda optimiser: run(optimiser, **config).updates.predicted_return,
        "train": lambda optimiser: run_train(optimiser, **config).metrics.true_return,
    }[verb]
    before, wall, processor = len(COMPILED), time.monotonic(), time.process_time()
    if way == "sweep":
        returns = returns_of(Optimiser(optax.adam, learning_rate=jnp.array(rates)))
    else:
        of = {"Optimiser": lambda rate: Optimiser(optax.adam, learning_rate=rate), "optax": optax.adam}[way]
        returns = jnp.stack([returns_of(of(rate)) for rate in rates])
    returns = np.asarray(returns[..., -1]).tolist()
    taken = {"seconds": time.monotonic() - wall, "processor_seconds": time.process_time() - processor}
    compiled = COMPILED[before:].count("/jax/core/compile/backend_compile_duration")
    return {"returns": returns, "compilations": compiled, **taken}


def table(rows: dict[str, list[dict[str, Any]]]) -> str:
    """Return one row per verb and way."""
    lines = []
    for way, each in rows.items():
        sweep = rows[f"{way.split(', ')[0]}, sweep"][0]
        median = lambda name, each=each: np.median([row[name] for row in each])
        off = max(np.max(np.abs(np.divide(row["returns"], sweep["returns"]) - 1)) for row in each)
        seconds = [f"{median('seconds'):.0f}", f"{median('processor_seconds'):.0f}"]
        lines.append([way, *seconds, f"{median('compilations'):.0f}", f"{off:.1g}", str(len(each))])
    return markdown(["", "seconds", "of processors", "programs compiled", "largest difference of a return", "rounds"], lines)


def main() -> None:
    parser = arguments(__doc__, "sweeps")
    parser.add_argument("--rounds", type=int, default=3, help="how often each way is measured by improve; by train once")
    parser.add_argument(
        "--verbs", nargs="+", default=["improve", "train"], choices=["improve", "train"], help="what to measure"
    )
    options = parser.parse_args()
    raw, few = Raw(options, "sweeps"), options.quick
    rates = np.logspace(-4, -1.5, 2 if few else 8).tolist()
    seeds = 2 if few else 5
    configs = {
        "improve": {"rates": rates, "seeds": seeds, "updates": 10 if few else 60},
        "train": {"rates": rates, "seeds": seeds, "steps": 200 if few else 400},
    }
    found: dict[str, list[dict[str, Any]]] = {}
    jax.config.update("jax_enable_compilation_cache", False)
    with until_stopped(options):
        for i in range(1 if few else options.rounds):
            for verb in options.verbs:
                for way in WAYS if i == 0 or verb == "improve" else ():
                    name = f"{way}, round {i}" if verb == "improve" else f"train, {way}"
                    if not options.from_raw or name in raw.rows:
                        row = raw.run(name, configs[verb], lambda v=verb, w=way: measure(v, w, **configs[v]))
                        found.setdefault(f"{verb}, {way}", []).append(row)
    raw.write(table(found))
    if "improve, sweep" not in found:
        return
    returns = np.array(found["improve, sweep"][0]["returns"])
    with plot.style():
        figure, axes = plt.subplots(figsize=(5, 3.4))
        axes.plot(rates, returns.mean(axis=1), "o-", color=plot.COLOURS["simulator"])
        axes.fill_between(rates, returns.min(axis=1), returns.max(axis=1), color=plot.COLOURS["simulator"], alpha=0.12, lw=0)
        axes.set(xscale="log", xlabel="learning rate", ylabel="return: mean and range of the seeds", title="Cancer treatment")
        figure.savefig(options.out / "sweeps.png")


if __name__ == "__main__":
    main()
