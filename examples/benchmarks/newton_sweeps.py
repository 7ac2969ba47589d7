"""Which systems can be unrolled in parallel over time? Sweeps of Newton's method against the largest Lyapunov exponent.

    python examples/benchmarks/newton_sweeps.py               all systems, 100 and 1,000 steps: 30 minutes on two cores
    python examples/benchmarks/newton_sweeps.py --quick       four systems, 100 steps: 1 minute
    python examples/benchmarks/newton_sweeps.py --from-raw    the published table and figure

Each system runs with an untrained policy, from a few starts. In 1,000 steps this policy pushes the cart-pole 2 km away, where float32
resolves 0.1 mm, so a second row has a damped spring beside it that holds the cart. `awmkit.analysis.newton_sweeps` counts the sweeps and measures the
exponent of the closed loop, and explains the dashed line. Where a compiler for a GPU is installed (see launches.py), the table
also has the number of kernels that a GPU launches for the gradient of 256 starts, one step after another and by `Newton` with as
many sweeps as the slowest start here needs.

Expected: 4 to 10 sweeps for smooth systems whose exponent is near or below 0, for 1,000 steps as for 100, and nearly as many sweeps as
steps for the Henon map and the ball that bounces. The passive pendulum, which is thrown at the first step, needs a third of the
steps, and the cart-pole that leaves 234 of 1,000. A gradient of cancer treatment launches 39,019 kernels for 1,000 steps by
`Sequential` and 248 for 6 sweeps by `Newton`; that of a fitted Markov model 85,015 and 415.
"""

import time
from functools import cache, partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from launches import compile_for_gpu, gpu, launches
from mujoco import mjtIntegrator  # pyright: ignore[reportAttributeAccessIssue]
from raw import arguments, markdown, Raw, until_stopped

from awmkit import BPO, fit, Markov, MLPPolicy, Newton, plot, Sequential, unroll
from awmkit.analysis import newton_sweeps, NewtonSweeps
from awmkit.mjx import cartpole, MJXTask
from awmkit.tasks import (
    BearPopulations,
    CancerTreatment,
    Discretised,
    DrivenDoublePendulum,
    Henon,
    HIVTreatment,
    LinearQuadratic,
    Lorenz,
    OneBounce,
    PassiveDoublePendulum,
)


@cache
def fitted(problem) -> Markov:
    """Return a Markov model fitted to 128 episodes of random actions."""
    task = Discretised(problem, 100)
    keys = jax.random.split(jax.random.key(0), 4)
    actions = jax.random.uniform(keys[1], (128, task.horizon, task.action_size), minval=-1)
    starts = jax.vmap(task.reset)(jax.random.split(keys[0], 128))
    episodes = jax.jit(jax.vmap(lambda start, actions: unroll(task, actions, start, task.horizon)))(starts, actions)
    return fit(Markov(task.state_size, task.action_size, key=keys[2]), episodes, updates=300, key=keys[3]).model


SYSTEMS = {
    "linear-quadratic": lambda n: LinearQuadratic(horizon=n),
    "cancer": lambda n: Discretised(CancerTreatment(), n),
    "bears": lambda n: Discretised(BearPopulations(), n),
    "HIV": lambda n: Discretised(HIVTreatment(), n),
    "Henon": lambda n: Henon(horizon=n),
    "Lorenz": lambda n: Lorenz(horizon=n),
    "one bounce": lambda n: OneBounce(n),
    "passive double pendulum": lambda n: PassiveDoublePendulum(n),
    "driven double pendulum": lambda n: DrivenDoublePendulum(n),
    "Markov, untrained": lambda n: Markov(4, 2, key=jax.random.key(0)),
    "Markov, fitted": lambda n: fitted(CancerTreatment()),
    "MuJoCo cart-pole": lambda n: cartpole(n),
    "MuJoCo cart-pole, held": lambda n: cartpole(n),
    "MuJoCo Hopper": lambda n: MJXTask.from_gymnasium(
        "Hopper-v5", horizon=n, terminate_when_unhealthy=False, integrator=mjtIntegrator.mjINT_EULER, iterations=20
    ),
}
QUICK = ["linear-quadratic", "cancer", "Henon", "Lorenz"]
SLOW = "MuJoCo cart-pole", "MuJoCo cart-pole, held", "MuJoCo Hopper"
LAUNCHED = "Markov, fitted", "cancer", "MuJoCo cart-pole, held", "MuJoCo Hopper"
BATCH, SOLVER_TURNS, TURNS = 256, 5, 7
METHODS = {"Sequential": Sequential(), "Newton": Newton()}


def reward(state, action, t):
    del t
    return -jnp.sum(state**2) - jnp.sum(action**2)


class Held(eqx.Module):
    """A policy, and a damped spring that holds a cart near x = 0."""

    policy: MLPPolicy

    def __call__(self, state, t, *, key=None):
        return jnp.tanh(self.policy(state, t, key=key) - state[0] - state[2])


def policy_of(system: str, dynamics) -> MLPPolicy | Held:
    policy = MLPPolicy(dynamics.state_size, dynamics.action_size, key=jax.random.key(1))
    return Held(policy) if system.endswith("held") else policy


def starts_of(dynamics, count: int):
    keys = jax.random.split(jax.random.key(2), count)
    if hasattr(dynamics, "reset"):
        return jax.vmap(dynamics.reset)(keys)
    return jax.vmap(lambda key: 0.5 * jax.random.normal(key, (dynamics.state_size,)))(keys)


def measure(system: str, horizon: int, starts: int) -> dict[str, Any]:
    """Return the sweeps and the exponent of each start."""
    dynamics = SYSTEMS[system](horizon)
    found = newton_sweeps(dynamics, policy_of(system, dynamics), starts_of(dynamics, starts), horizon)
    return {
        "sweeps": np.asarray(found.sweeps).tolist(),
        "exponents": np.asarray(found.exponents, float).tolist(),
        "settled": np.asarray(found.settled).tolist(),
    }


def kernels(system: str, horizon: int, method: str) -> dict[str, Any]:
    """Return the number of kernels that a GPU launches for a gradient from 256 starts, without sweeps and per sweep; on a machine
    with a GPU also the milliseconds of several."""
    dynamics = SYSTEMS[system](horizon)

    def gradient(policy, states):
        one = lambda policy, s: unroll(dynamics, policy, s, horizon, reward=reward, paths=BPO, method=METHODS[method]).returns()
        return eqx.filter_grad(lambda policy: jnp.mean(jax.vmap(partial(one, policy))(states)))(policy)

    inputs = policy_of(system, dynamics), starts_of(dynamics, BATCH)
    program, seconds = compile_for_gpu(gradient, *inputs)
    count = lambda sweeps: launches(program.as_text(), SOLVER_TURNS, None if method == "Sequential" else sweeps)[0]
    row: dict[str, Any] = {"launches": count(0), "launches per sweep": count(1) - count(0), "compile_s": seconds}
    if jax.default_backend() == "gpu":
        row["ms"] = []
        for _ in range(1 + TURNS):
            start = time.perf_counter()
            jax.block_until_ready(program(eqx.filter(inputs, eqx.is_array)))
            row["ms"].append(1e3 * (time.perf_counter() - start))
    return row


def table(rows: dict[tuple[str, int], dict[str, Any]], launched: dict[tuple[str, str], dict[str, Any]], longest: int) -> str:
    """Return the tables of sweeps and of launches."""
    sweeps = []
    for (system, horizon), row in rows.items():
        settled = f"{sum(row['settled'])} of {len(row['settled'])}"
        median = [f"{np.median(row['exponents']):.4f}", f"{np.median(row['sweeps']):g}", f"{max(row['sweeps'])}"]
        sweeps.append([system, f"{horizon}", *median, settled])
    head = ["system", "H", "exponent per step", "sweeps, median", "most", "starts that settle"]
    found = [markdown(head, sweeps)]
    counts, times = [], []
    for system in (s for s in LAUNCHED if (s, "Sequential") in launched and (s, "Newton") in launched):
        sequential, newton = (launched[system, method] for method in METHODS)
        sweeps = max(rows[system, longest]["sweeps"])
        whole = newton["launches"] + sweeps * newton["launches per sweep"]
        numbers = (
            sequential["launches"],
            newton["launches"],
            newton["launches per sweep"],
            sweeps,
            whole,
            sequential["launches"] / whole,
        )
        counts.append([system, *(f"{number:,.0f}" for number in numbers)])
        if "ms" in sequential and "ms" in newton:  # The first run is not counted.
            slow, fast = (float(np.median(row["ms"][1:])) for row in (sequential, newton))
            compiled = [f"{row['compile_s']:.1f}" for row in (sequential, newton)]
            times.append([system, f"{slow:.1f}", f"{fast:.1f}", f"{slow / fast:.1f}", *compiled, sequential["host"]["device"]])
    first = f"gradient of {BATCH} starts, H = {longest}"
    if counts:
        head = [f"kernel launches, {first}", "Sequential", "Newton, around sweeps", "per sweep", "sweeps", "Newton", "ratio"]
        found.append(markdown(head, counts))
    if times:
        compiled = ["s to compile: Sequential", "Newton"]
        found.append(markdown([f"milliseconds, {first}", "Sequential", "Newton", "ratio", *compiled, "device"], times))
    return "\n\n".join(found)


def main() -> None:
    parser = arguments(__doc__, "newton_sweeps")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--horizons", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--starts", type=int, default=8, help="number of starts (8); 2 for MuJoCo")
    options = parser.parse_args()
    if options.quick:
        options.systems, options.horizons = QUICK, [100]
    raw, longest = Raw(options, "newton_sweeps"), max(options.horizons)
    rows, launched = {}, {}
    with until_stopped(options):
        for horizon in options.horizons:
            for system in options.systems:
                starts = min(2, options.starts) if system in SLOW else options.starts
                config = {"system": system, "horizon": horizon, "starts": starts}
                name = f"{system}, H = {horizon}"
                if options.from_raw and raw.find(name, config) is None:
                    continue
                rows[system, horizon] = raw.run(name, config, partial(measure, system, horizon, starts))
        for system in (s for s in LAUNCHED if (s, longest) in rows and not options.quick):
            for method in METHODS:
                config = {"system": system, "horizon": longest, "method": method, "batch": BATCH, "solver turns": SOLVER_TURNS}
                name = f"{system}, launches of {method}"
                if raw.find(name, config) or gpu() is not None and not options.from_raw:
                    launched[system, method] = raw.run(name, config, partial(kernels, system, longest, method))
    plt.rcParams.update(plot.STYLE)
    figure, axes = plt.subplots(1, len(options.horizons), figsize=(7 * len(options.horizons), 4.5), squeeze=False)
    for axis, horizon in zip(axes[0], options.horizons, strict=True):
        results = {
            system: NewtonSweeps(np.array(row["sweeps"]), np.array(row["exponents"]), np.array(row["settled"]), horizon)
            for (system, h), row in rows.items()
            if h == horizon
        }
        plot.sweeps(results, axes=axis).set_title(f"{horizon} steps")
        if axis.get_legend():
            axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(options.out / "newton_sweeps.png", dpi=110)
    raw.write(table(rows, launched, longest))


if __name__ == "__main__":
    main()
