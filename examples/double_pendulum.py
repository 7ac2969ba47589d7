"""Do policy gradients through a learned model survive chaos? The paper's double pendulum, simulated and learned.

    python examples/double_pendulum.py            about 2.5 minutes on two cores
    python examples/double_pendulum.py --quick    about 30 seconds: 60 steps instead of 200

The only action is the angle at which the upper rod is released. The only reward, at the last step, is minus the mean squared
distance to the state that a release at 0.6 pi leads to. Two world models are fitted to random releases: a Markov model, which
feeds its predictions back, and an actions world model (AWM), which does not. Then, in the simulator and in each model, the
script measures how the gradient grows with the horizon, draws the return over all releases, and improves 64 releases by
gradient ascent. The improved releases are scored in the simulator, where 0 means that the goal is reached.

Expect with seed 0: the gradients of the simulator, exp(0.06 H), and of Markov, exp(0.05 H), explode; the AWM's shrinks. Over 200
steps the return has 104 local maxima in the simulator and 2 in the AWM. Ascent through the AWM ends with median returns of
-0.004, -0.32 and -0.18 at 40, 100 and 200 steps; through the simulator with -0.13, -0.45 and -0.38. Model error makes the AWM's
result at 100 steps depend on the seed: examples/paper/double_pendulum.py runs three seeds, and there the simulator is better.
"""

import argparse
import math
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from tabulate import tabulate

from awmkit import AWM, fit, Markov, plot, Transformer, unroll, unroll_grad
from awmkit.analysis import gradient_growth, landscape
from awmkit.tasks import Circles, DoublePendulum, PassiveDoublePendulum


def make_task(horizon):
    """The goal depends on the horizon; both rods of the goal's release are at 0.6 pi."""
    return PassiveDoublePendulum(horizon, (0.6 * math.pi, 0.6 * math.pi), pendulum=DoublePendulum(Circles()))


def plans(angles, horizon):
    """Actions (N, H, 1) that release the upper rod at `angles`, in units of pi, and then do nothing."""
    return jnp.zeros((len(angles), horizon, 1)).at[:, 0, 0].set(angles)


def fit_models(task, key, updates):
    """Both models, fitted to 1,024 random releases, and their held-out errors by step."""
    data_key, markov_key, backbone_key, awm_key, *fit_keys = jax.random.split(key, 6)
    actions = plans(jax.random.uniform(data_key, (1024,), minval=-1), task.horizon)
    episodes = jax.jit(jax.vmap(lambda plan: unroll(task, plan, task.start, task.horizon)))(actions)
    transformer = Transformer(horizon=task.horizon, key=backbone_key)
    models = {"Markov": Markov(6, 1, key=markov_key), "AWM": AWM(6, 1, transformer, predict_changes=False, key=awm_key)}
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(3e-3, updates)))
    errors = {}
    for name, fit_key in zip(models, fit_keys, strict=True):
        model = models[name].normalised(episodes)
        fitted = fit(model, episodes, key=fit_key, updates=updates, microbatch_size=16, optimiser=optimiser)
        models[name], errors[name] = fitted.model, fitted.held_out
    return models, errors


@eqx.filter_jit
def true_returns(task, angles):
    """Return of each release in the simulator, shape (N,)."""
    run = lambda plan: unroll(task, plan, task.start, task.horizon, reward=task.reward).returns()
    return jax.vmap(run)(plans(angles, task.horizon))


@eqx.filter_jit
def ascend(dynamics, task, angles):
    """Improve each release by 60 steps of Adam on the gradient through `dynamics`; shape (N,)."""
    optimiser = optax.adam(optax.cosine_decay_schedule(0.04, 60))
    gradient = lambda plan: unroll_grad(dynamics, plan, task.start, task.horizon, reward=task.reward)[1][0, 0]

    def update(_, loop):
        angles, memory = loop
        steps, memory = jax.vmap(optimiser.update)(-jax.vmap(gradient)(plans(angles, task.horizon)), memory)
        return jnp.clip(angles + steps, -1, 1), memory

    return jax.lax.fori_loop(0, 60, update, (angles, jax.vmap(optimiser.init)(angles)))[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="60 steps and shorter fits; too few steps to tell the laws apart")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out", help="folder for the figure")
    options = parser.parse_args()
    horizon, ascent_horizons, updates = (60, [40], 150) if options.quick else (200, [40, 100, 200], 300)
    began = time.monotonic()

    task = make_task(horizon)
    key, release_key = jax.random.split(jax.random.key(options.seed))
    models, errors = fit_models(task, key, updates)
    dynamics = {"simulator": task, **models}

    releases = plans(jax.random.uniform(release_key, (64,), minval=-1), horizon)
    starts = jnp.tile(task.start, (64, 1))
    horizons = np.linspace(horizon / 10, horizon, 10).astype(int)
    angles = (2 * jnp.arange(64) + 1) / 64 - 1  # evenly spaced, so that chance does not favour a basin
    growth, cuts, after = {}, {}, {"before": [true_returns(make_task(h), angles) for h in ascent_horizons]}
    for name, model in dynamics.items():
        print(f"{time.monotonic() - began:.0f} s: gradient and landscape of {name}", flush=True)
        growth[name] = gradient_growth(model, starts, releases, horizons=horizons, batch_size=64)
        still, release = plans(jnp.array([0.0, 1.0]), horizon)
        cuts[name] = landscape(model, still, task.start, horizon, reward=task.reward, directions=[release], key=key)
        after[name] = []
        for h in ascent_horizons:
            print(f"{time.monotonic() - began:.0f} s: ascent through {name}, {h} steps", flush=True)
            best = ascend(make_task(h) if name == "simulator" else model, make_task(h), angles)
            after[name].append(true_returns(make_task(h), best))

    rows = [["before", "", "", "", *(float(jnp.median(r)) for r in after["before"])]]
    for name in dynamics:
        error = f"{errors[name][39]:.2f}" if name in errors else ""
        medians = [float(jnp.median(r)) for r in after[name]]
        rows.append([name, growth[name], error, f"{cuts[name].local_maxima}", *medians])
    heads = ["", "|ds_H/da_0|", "error at step 40", "local maxima"]
    print("\n" + tabulate(rows, [*heads, *(f"return, H = {h}" for h in ascent_horizons)], floatfmt=".3f"))

    plt.rcParams.update(plot.STYLE)
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.8))
    plot.growth(growth, axes=left).set_title("Gradient against the horizon")
    plot.landscape({name: cuts[name] for name in ("simulator", "AWM")}, axes=middle)
    middle.set(title=f"The return over all releases, {horizon} steps", xlabel="release angle / pi", ylim=(-1.5, 0.1))
    for i, (name, returns) in enumerate(after.items()):
        low, median, high = np.quantile(returns, [0.25, 0.5, 0.75], axis=1)
        x = np.arange(len(ascent_horizons)) + 0.15 * (i - 1.5)
        colour = plot.COLOURS.get(name, "grey")
        right.errorbar(x, median, yerr=[median - low, high - median], fmt="o", capsize=2, color=colour, label=name)
    right.set_xticks(range(len(ascent_horizons)), [f"{h} steps" for h in ascent_horizons])
    right.set(title="True return after ascent", ylabel="return (0 is the goal); median and quartiles", ylim=(-1.5, 0.1))
    right.legend(ncols=2, loc="lower center")
    options.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out / "double_pendulum.png")
    print(f"\n{time.monotonic() - began:.0f} s; the figure is {options.out / 'double_pendulum.png'}")


if __name__ == "__main__":
    main()
