"""The policy gradient through a MuJoCo simulator and through a world model of it, by the same call on the same device.

    python examples/simulator_vs_model.py                     about 5 minutes on two cores
    python examples/simulator_vs_model.py --quick             about 1 minute: 20 steps, a poor fit
    python examples/simulator_vs_model.py --task cartpole     another of awmkit.mjx: pendulum, cartpole, double_pendulum

Episodes of random actions in an MJX task are fitted by an actions world model (LSTM). Then `unroll_grad` differentiates the
return of one policy through both, for horizons from 10 to 100 steps: the norm of the mean gradient over 64 starts, the cosine
between the two, and how long it takes for all starts (medians of 11 interleaved runs, compilation apart). Both gradients are
the paper's (`paths=BPO`). The reward is the task's own.

Expect of the double pendulum: on two cores the model's gradient is some 10 times faster, and compiles 12 times faster. From
most starts it points the simulator's way at every horizon (median cosine 0.8 to 0.9). So does the mean gradient up to 50 steps
(0.7 to 0.8); at 100 the simulator's is 10 times larger, that of the few starts in which chaos has broken out, and the two
have nothing in common.
"""

import argparse
import importlib.metadata
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray
from matplotlib.figure import Figure

from awmkit import AbstractDynamics, AWM, BPO, fit, FitResult, LSTM, MLPPolicy, TqdmProgress, unroll, unroll_grad
from awmkit.mjx import cartpole, double_pendulum, MJXTask, pendulum

TASKS = {"pendulum": pendulum, "cartpole": cartpole, "double_pendulum": double_pendulum}
STARTS, RUNS = 64, 11


def draw_starts(task: MJXTask, count: int, key: PRNGKeyArray) -> Float[Array, "N S"]:
    """Positions and speeds all over the place: near the task's own start, at rest, gradients nearly cancel."""
    return jnp.tile(task.reset(key), (count, 1)) + jax.random.normal(key, (count, task.state_size))


def fit_model(task: MJXTask, episodes: int, updates: int) -> FitResult[AWM]:
    """An LSTM AWM of episodes of random actions, each held for a few steps so that the pendulum gets somewhere."""
    keys = jax.random.split(jax.random.key(1), 5)
    starts = draw_starts(task, episodes, keys[0])
    draws = jax.random.uniform(keys[1], (episodes, -(-task.horizon // 5), task.action_size), minval=-1.0)
    actions = jnp.repeat(draws, 5, axis=1)[:, : task.horizon]
    data = jax.jit(jax.vmap(lambda s, a: unroll(task, a, s, task.horizon)))(starts, actions)
    model = AWM(task.state_size, task.action_size, LSTM(128, key=keys[2]), key=keys[3]).normalised(data.states)
    schedule = optax.cosine_decay_schedule(3e-3, updates)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    return fit(model, data, key=keys[4], updates=updates, optimiser=optimiser)


def compile_gradient(dynamics: AbstractDynamics, task: MJXTask, policy: MLPPolicy, horizon: int) -> tuple[Callable, float]:
    """The flat gradient from each start, (N, P), as one compiled program; and the seconds that compiling took."""

    def gradient(states: Float[Array, "N S"]) -> Float[Array, "N P"]:
        one = lambda state: unroll_grad(dynamics, policy, state, horizon, reward=task.reward, paths=BPO)[1]
        return jax.vmap(lambda state: ravel_pytree(eqx.filter(one(state), eqx.is_array))[0])(states)

    start = time.perf_counter()
    run = jax.jit(gradient).lower(jnp.zeros((STARTS, task.state_size))).compile()
    return run, time.perf_counter() - start


def compare(task: MJXTask, model: AbstractDynamics, horizons: list[int]) -> dict:
    """Norms, cosines and times of both gradients at each horizon."""
    policy = MLPPolicy(task.state_size, task.action_size, key=jax.random.key(2))
    states = draw_starts(task, STARTS, jax.random.key(3))
    result: dict = {"horizons": horizons, "cosine": [], "cosine_of_each": []}
    names = {"simulator": task, "model": model}
    result |= {name: {"norm": [], "compile_s": [], "ms": []} for name in names}
    with TqdmProgress().start("differentiate", len(horizons)) as bar:
        for i, horizon in enumerate(horizons):
            bar.update(i, f"compile H = {horizon}")
            programs = {name: compile_gradient(dynamics, task, policy, horizon) for name, dynamics in names.items()}
            gradients = {}
            for name, (run, seconds) in programs.items():
                gradients[name] = np.asarray(run(states), float)
                result[name]["compile_s"].append(seconds)
                result[name]["norm"].append(np.linalg.norm(gradients[name].mean(axis=0)))
            result["cosine"].append(cosine(*(g.mean(axis=0) for g in gradients.values())))
            result["cosine_of_each"].append([cosine(*pair) for pair in zip(*gradients.values(), strict=True)])
            for name, times in interleaved({name: run for name, (run, _) in programs.items()}, states).items():
                result[name]["ms"].append(times)
            bar.update(i + 1)
    return result


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    """Of the angle between two gradients."""
    return float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))


def interleaved(programs: dict[str, Callable], states: Array) -> dict[str, list[float]]:
    """Milliseconds of each run, the programs in turn, on inputs that differ."""
    times: dict[str, list[float]] = {name: [] for name in programs}
    for i in range(RUNS):
        for name, run in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(run(states + 1e-3 * i))
            times[name].append(1e3 * (time.perf_counter() - start))
    return times


def table(result: dict) -> str:
    """One row for each horizon."""
    lines = [
        f"{'':>8}{'|gradient|':>24}{'cosine, with quartiles of each start':>40}{'ms':>20}{'compile s':>20}",
        f"{'H':>8}{'simulator':>12}{'model':>12}{'':>40}{'simulator':>10}{'model':>10}{'simulator':>10}{'model':>10}",
    ]
    for i, horizon in enumerate(result["horizons"]):
        low, middle, high = np.quantile(result["cosine_of_each"][i], [0.25, 0.5, 0.75])
        cells = f"{result['cosine'][i]:.3f}, {middle:.3f} [{low:.3f}, {high:.3f}]"
        simulator, model = result["simulator"], result["model"]
        lines.append(
            f"{horizon:>8}{simulator['norm'][i]:>12.4g}{model['norm'][i]:>12.4g}{cells:>40}"
            f"{np.median(simulator['ms'][i]):>10.1f}{np.median(model['ms'][i]):>10.1f}"
            f"{simulator['compile_s'][i]:>10.1f}{model['compile_s'][i]:>10.1f}"
        )
    return "\n".join(lines)


def figure(result: dict, held_out: np.ndarray, title: str) -> Figure:
    """Norm, cosine, wall time and the model's error, against the horizon."""
    horizons, (fig, axes) = result["horizons"], plt.subplots(1, 4, figsize=(14, 3.2), layout="constrained")
    for name, colour in (("simulator", "tab:gray"), ("model", "tab:orange")):
        axes[0].loglog(horizons, result[name]["norm"], "o-", color=colour, label={"simulator": "MJX"}.get(name, "AWM LSTM"))
        axes[2].loglog(horizons, np.median(result[name]["ms"], axis=1), "o-", color=colour)
    axes[1].semilogx(horizons, result["cosine"], "o-", color="tab:orange", label="of the mean gradient")
    low, middle, high = np.quantile(result["cosine_of_each"], [0.25, 0.5, 0.75], axis=1)
    axes[1].semilogx(horizons, middle, ":", color="tab:orange", label="of each start, quartiles")
    axes[1].fill_between(horizons, low, high, color="tab:orange", alpha=0.2, linewidth=0)
    axes[3].semilogy(np.arange(1, len(held_out) + 1), held_out, color="tab:orange")
    titles = (
        "norm of the mean gradient",
        "cosine, model and simulator",
        f"ms for {STARTS} starts",
        "model's error, in variances",
    )
    for axis, name in zip(axes, titles, strict=True):
        axis.set(title=name, xlabel="step" if axis is axes[3] else "horizon H")
    axes[0].legend()
    axes[1].legend()
    axes[1].set_ylim(min(0.0, float(np.min(low)), *result["cosine"]) - 0.05, 1.05)
    fig.suptitle(title)
    return fig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, default="double_pendulum")
    parser.add_argument("--quick", action="store_true", help="20 steps and a short fit")
    parser.add_argument("--out", type=Path, default=Path("examples/out/simulator_vs_model"), help="a folder")
    arguments = parser.parse_args()
    path = arguments.out / f"simulator_vs_model_{arguments.task}.json"
    if path.exists():
        parser.error(f"{path} exists; choose another folder with --out.")
    print(__doc__)
    arguments.out.mkdir(parents=True, exist_ok=True)
    horizons = [10, 20] if arguments.quick else [10, 20, 50, 100]
    task = TASKS[arguments.task](max(horizons))
    fitted = fit_model(task, *((256, 200) if arguments.quick else (8192, 1500)))
    result = compare(task, fitted.model, horizons)
    held_out = np.asarray(fitted.held_out)
    print("\n" + table(result))
    packages = ("awmkit", "jax", "jaxlib", "equinox", "mujoco", "mujoco-mjx", "numpy")
    record = {
        "command": " ".join(["python", "examples/simulator_vs_model.py", *sys.argv[1:]]),
        "device": jax.devices()[0].device_kind,
        "versions": {p: importlib.metadata.version(p) for p in packages},
        "task": arguments.task,
        "starts": STARTS,
        "fit_seconds": fitted.seconds,
        "held_out": held_out.tolist(),
        **result,
    }
    path.write_text(json.dumps(record, indent=1))
    figure(result, held_out, f"Policy gradients of {arguments.task}").savefig(path.with_suffix(".png"), dpi=110)
    print(f"\nRaw values and figure: {path} and {path.with_suffix('.png').name}")


if __name__ == "__main__":
    main()
