"""How well do different world models predict many steps ahead?

    python examples/fit_world_model.py            about 1 minute on two cores
    python examples/fit_world_model.py --quick    about 20 seconds: a shorter fit

Collects episodes of random actions in the driven double pendulum, fits a Markov model, a history world model (HWM) and an
actions world model (AWM), and compares their open-loop errors on episodes that were held out: each model sees the first
state and the actions, and predicts all 50 states.

Expect: one step ahead Markov and the HWM are 100 times more accurate than the AWM, but their errors grow faster. At 50 steps all
three are at about 0.1 of the variance.
"""

import argparse
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from tabulate import tabulate

from awmkit import AWM, fit, GRU, HWM, Markov, plot, unroll
from awmkit.tasks import Circles, DoublePendulum, DrivenDoublePendulum

HORIZON = 50


def collect(task, key, episodes):
    """Episodes of random actions, each held for 5 steps so that the pendulum swings."""
    reset_key, action_key = jax.random.split(key)
    starts = jax.vmap(task.reset)(jax.random.split(reset_key, episodes))
    draws = jax.random.uniform(action_key, (episodes, HORIZON // 5, task.action_size), minval=-1)
    run = lambda start, actions: unroll(task, actions, start, HORIZON, reward=task.reward)
    return jax.jit(jax.vmap(run))(starts, draws.repeat(5, axis=1))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="100 updates instead of 1000")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out", help="folder for the figure")
    options = parser.parse_args()
    updates = 100 if options.quick else 1000

    task = DrivenDoublePendulum(HORIZON, pendulum=DoublePendulum(Circles(), substeps=8))
    keys = jax.random.split(jax.random.key(options.seed), 9)
    episodes = collect(task, keys[0], 2048)
    sizes = task.state_size, task.action_size
    models = {
        "Markov": Markov(*sizes, key=keys[1]),
        "HWM": HWM(*sizes, GRU(64, key=keys[2]), key=keys[3]),
        "AWM": AWM(*sizes, GRU(64, key=keys[4]), key=keys[5]),
    }
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(3e-3, updates)))
    errors, rows = {}, []
    for (name, model), key in zip(models.items(), keys[6:], strict=True):
        model = model.normalised(episodes)  # mean and deviation of the data
        fitted = fit(model, episodes, key=key, updates=updates, optimiser=optimiser)
        errors[name] = np.asarray(fitted.held_out)
        rows.append([name, *errors[name][[0, 9, 24, 49]], fitted.seconds])
    print(tabulate(rows, ["held-out error at step", "1", "10", "25", "50", "seconds"], floatfmt=".2g"))

    plt.rcParams.update(plot.STYLE)
    figure, axes = plt.subplots(figsize=(5.5, 3.6))
    for name, error in errors.items():
        axes.semilogy(np.arange(1, HORIZON + 1), error, color=plot.COLOURS[name], label=name)
    axes.axhline(1, color="grey", ls=":", lw=1, label="predicting the mean")
    axes.set(xlabel="steps ahead", ylabel="mean squared error / variance", title="Open-loop error on held-out episodes")
    axes.legend()
    options.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out / "fit_world_model.png")
    print(f"The figure is {options.out / 'fit_world_model.png'}")


if __name__ == "__main__":
    main()
