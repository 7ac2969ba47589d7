"""What does a sweep cost as one program? Eight learning rates of the policy, five seeds each, on the cancer task.

    python examples/benchmarks/sweeps.py               some minutes on two cores; each row is written when it is measured
    python examples/benchmarks/sweeps.py --quick       two learning rates, two seeds, few updates: 1 minute
    python examples/benchmarks/sweeps.py --from-raw    the published table and figure

The policy is improved by `improve` in the simulator itself, without a model, so that the gradient is exact.

- sweep: one call, whose learning rate is an array: `Optimiser(optax.adam, learning_rate=rates)`.
- Optimiser: one call of five seeds for each rate, with `Optimiser(optax.adam, learning_rate=rate)`.
- optax: one call of five seeds for each rate, with `optax.adam(rate)`.

They are measured in turns in one process, and each begins with no compiled program. The table has the medians over the rounds
and the largest difference of a last return from that of the sweep, relative to it.

Expected: the sweep takes a fourth of the processor time of optax, which compiles again for every rate, and about that of Optimiser.
Most of the programs counted are single operations outside of the loop of updates. Returns agree to rounding (1e-7), but for the
two largest rates, where 60 updates amplify it to 4e-6 and 2e-4.
"""

import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from raw import arguments, markdown, Raw, until_stopped

from awmkit import FullHorizon, GaussianPolicy, improve, ImproveResult, NoProgress, Optimiser, plot
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


def measure(way: str, rates: list[float], seeds: int, updates: int) -> dict[str, Any]:
    jax.clear_caches()
    before, wall, processor = len(COMPILED), time.monotonic(), time.process_time()
    if way == "sweep":
        returns = run(Optimiser(optax.adam, learning_rate=jnp.array(rates)), seeds, updates).updates.predicted_return
    else:
        of = {"Optimiser": lambda rate: Optimiser(optax.adam, learning_rate=rate), "optax": optax.adam}[way]
        returns = jnp.stack([run(of(rate), seeds, updates).updates.predicted_return for rate in rates])
    returns = np.asarray(returns[..., -1]).tolist()
    taken = {"seconds": time.monotonic() - wall, "processor_seconds": time.process_time() - processor}
    compiled = COMPILED[before:].count("/jax/core/compile/backend_compile_duration")
    return {"returns": returns, "compilations": compiled, **taken}


def table(rows: dict[str, list[dict[str, Any]]]) -> str:
    """Return one row per way."""
    lines = []
    for way, each in rows.items():
        median = lambda name, each=each: np.median([row[name] for row in each])
        off = max(np.max(np.abs(np.divide(row["returns"], rows["sweep"][0]["returns"]) - 1)) for row in each)
        seconds = [f"{median('seconds'):.0f}", f"{median('processor_seconds'):.0f}"]
        lines.append([way, *seconds, f"{median('compilations'):.0f}", f"{off:.1g}", str(len(each))])
    return markdown(["", "seconds", "of processors", "programs compiled", "largest difference of a return", "rounds"], lines)


def main() -> None:
    parser = arguments(__doc__, "sweeps")
    parser.add_argument("--rounds", type=int, default=3, help="how often each way is measured")
    options = parser.parse_args()
    raw, few = Raw(options, "sweeps"), options.quick
    rates = np.logspace(-4, -1.5, 2 if few else 8).tolist()
    config = {"rates": rates, "seeds": 2 if few else 5, "updates": 10 if few else 60}
    found: dict[str, list[dict[str, Any]]] = {}
    jax.config.update("jax_enable_compilation_cache", False)
    with until_stopped(options):
        for i in range(1 if few else options.rounds):
            for way in WAYS:
                if not options.from_raw or f"{way}, round {i}" in raw.rows:
                    row = raw.run(f"{way}, round {i}", config, lambda way=way: measure(way, **config))
                    found.setdefault(way, []).append(row)
    raw.write(table(found))
    returns = np.array(found["sweep"][0]["returns"])
    with plot.style():
        figure, axes = plt.subplots(figsize=(5, 3.4))
        axes.plot(rates, returns.mean(axis=1), "o-", color=plot.COLOURS["simulator"])
        axes.fill_between(rates, returns.min(axis=1), returns.max(axis=1), color=plot.COLOURS["simulator"], alpha=0.12, lw=0)
        axes.set(xscale="log", xlabel="learning rate", ylabel="return: mean and range of the seeds", title="Cancer treatment")
        figure.savefig(options.out / "sweeps.png")


if __name__ == "__main__":
    main()
