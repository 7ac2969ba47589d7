"""Is the gradient through a learned model as good as the one through MuJoCo, and how much faster is it?

    python examples/simulator_vs_model.py                     about 2 minutes on two cores
    python examples/simulator_vs_model.py --quick             about 40 seconds: 20 steps and a short fit
    python examples/simulator_vs_model.py --task cartpole     also: pendulum, double_pendulum

Fits an AWM with an LSTM to random episodes of an MJX task. Then `unroll_grad` differentiates the return of the same policy
through the simulator and through the model, from 64 starts and for several horizons. The table has the norm of the mean
gradient, the cosine of the two gradients (of their means, and the median over starts), and the time for all starts.

Expect of the double pendulum: the model's gradient is 30 to 40 times faster. From most starts it points in the same direction
(median cosine 0.76, 0.92 and 0.95 at 10, 20 and 50 steps). A few starts with large gradients dominate the means, which agree less
(0.29, 0.85 and 0.31).
"""

import argparse
import time
from pathlib import Path

import equinox as eqx
import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from tabulate import tabulate

from awmkit import AWM, BPO, fit, LSTM, MLPPolicy, plot, unroll, unroll_grad
from awmkit.mjx import cartpole, double_pendulum, pendulum

TASKS = {"pendulum": pendulum, "cartpole": cartpole, "double_pendulum": double_pendulum}


def draw_starts(task, count, key):
    """Starts with large angles and speeds; near the rest position gradients almost cancel."""
    return task.reset(key) + jax.random.normal(key, (count, task.state_size))


def fit_model(task, episodes, updates):
    """An LSTM AWM of episodes of random actions, each held for 5 steps."""
    keys = jax.random.split(jax.random.key(1), 5)
    draws = jax.random.uniform(keys[1], (episodes, task.horizon // 5, task.action_size), minval=-1)
    run = jax.jit(jax.vmap(lambda start, actions: unroll(task, actions, start, task.horizon)))
    data = run(draw_starts(task, episodes, keys[0]), draws.repeat(5, axis=1))
    model = AWM(task.state_size, task.action_size, LSTM(64, key=keys[2]), key=keys[3]).normalised(data.states)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(3e-3, updates)))
    return fit(model, data, key=keys[4], updates=updates, optimiser=optimiser).model


def gradients(dynamics, task, policy, starts, horizon):
    """The flat policy gradient from each start, (N, P), and the median milliseconds of 5 runs without compilation."""
    one = lambda start: unroll_grad(dynamics, policy, start, horizon, reward=task.reward, paths=BPO)[1]
    flat = jax.jit(jax.vmap(lambda start: ravel_pytree(eqx.filter(one(start), eqx.is_array))[0]))
    result, times = np.asarray(flat(starts), float), []
    for _ in range(5):
        began = time.perf_counter()
        flat(starts).block_until_ready()
        times.append(1e3 * (time.perf_counter() - began))
    return result, np.median(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, default="double_pendulum")
    parser.add_argument("--quick", action="store_true", help="horizons of 10 and 20 steps, and a short fit")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out", help="folder for the figure")
    options = parser.parse_args()
    horizons = [10, 20] if options.quick else [10, 20, 50]

    task = TASKS[options.task](max(horizons))
    model = fit_model(task, *((256, 200) if options.quick else (4096, 1500)))
    policy = MLPPolicy(task.state_size, task.action_size, key=jax.random.key(2))
    starts = draw_starts(task, 64, jax.random.key(3))
    cosine = lambda x, y: np.sum(x * y, axis=-1) / (np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1))
    rows = []
    for horizon in horizons:
        print(f"differentiating {horizon} steps", flush=True)
        exact, exact_ms = gradients(task, task, policy, starts, horizon)
        learned, learned_ms = gradients(model, task, policy, starts, horizon)
        norms = [np.linalg.norm(x.mean(axis=0)) for x in (exact, learned)]
        mean_cosine = cosine(exact.mean(axis=0), learned.mean(axis=0))
        rows.append([horizon, *norms, mean_cosine, np.median(cosine(exact, learned)), exact_ms, learned_ms])
    heads = ["H", "norm, MJX", "norm, AWM", "cosine of means", "median cosine", "ms, MJX", "ms, AWM"]
    print(tabulate(rows, heads, floatfmt=".3g"))

    plt.rcParams.update(plot.STYLE)
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.2))
    columns = dict(zip(heads, np.array(rows).T, strict=True))
    for name, colour in {"MJX": plot.COLOURS["simulator"], "AWM": plot.COLOURS["AWM"]}.items():
        left.loglog(horizons, columns[f"norm, {name}"], "o-", color=colour, label=name)
        right.loglog(horizons, columns[f"ms, {name}"], "o-", color=colour, label=name)
    middle.semilogx(horizons, columns["cosine of means"], "o-", color=plot.COLOURS["AWM"], label="of the mean gradients")
    middle.semilogx(horizons, columns["median cosine"], "o:", color=plot.COLOURS["AWM"], label="median over starts")
    left.set(title="Norm of the mean gradient", xlabel="horizon, steps")
    middle.set(title="Cosine of AWM and MJX", xlabel="horizon, steps", ylim=(min(0, *columns["cosine of means"]) - 0.1, 1.05))
    right.set(title="Milliseconds for 64 starts", xlabel="horizon, steps")
    for axes in (left, middle, right):
        axes.legend()
        axes.set_xticks(horizons, horizons)
        axes.minorticks_off()
    options.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out / f"simulator_vs_model_{options.task}.png")
    print(f"The figure is {options.out / f'simulator_vs_model_{options.task}.png'}")


if __name__ == "__main__":
    main()
