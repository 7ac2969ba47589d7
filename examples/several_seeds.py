"""How do I run several seeds at once? Five runs as one compiled program, with median and interval.

    python examples/several_seeds.py            about 1 minute on two cores
    python examples/several_seeds.py --quick    about 40 seconds: 2,000 steps instead of 5,000

Give `train` an array of keys, and a model and a policy with a leading axis, built by `eqx.filter_vmap`. Everything in the
result then has a leading axis of seeds. The score is the share of the gap between the best constant action and the optimum
that a policy closes: 1 is optimal. Across seeds it is summarised by the median and by the interquartile mean with its
bootstrap interval.

Expect after 5,000 steps: a median of about 0.97.
"""

import argparse
from pathlib import Path

import equinox as eqx
import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from tabulate import tabulate

from awmkit import FullHorizon, GaussianPolicy, held_actions, Markov, ModelUpdates, plot, TargetEntropy, train, Warmup
from awmkit.scores import gap_closed, interval, iqm
from awmkit.tasks import CancerTreatment, Discretised


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2,000 environment steps instead of 5,000")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="from which the seeds' keys are drawn")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out", help="folder for the figure")
    options = parser.parse_args()
    steps = 2_000 if options.quick else 5_000
    task = Discretised(CancerTreatment())

    def make(key):
        model_key, policy_key = jax.random.split(key)
        model = Markov(task.state_size, task.action_size, horizon=task.horizon, per_step=True, key=model_key)
        return model, GaussianPolicy(task.state_size, task.action_size, horizon=task.horizon, key=policy_key)

    build_key, run_key = jax.random.split(jax.random.key(options.seed))
    models, policies = eqx.filter_vmap(make)(jax.random.split(build_key, options.seeds))
    # Entropy per action entry, in nats: explore widely at first, act precisely at last.
    entropy = TargetEntropy(optax.linear_schedule(-0.5, -4.0, steps))
    result = train(
        task,
        models,
        policies,
        key=jax.random.split(run_key, options.seeds),
        steps=steps,
        noise=0.15,
        warmup=Warmup(1_000, held_actions),
        model_updates=ModelUpdates(steps_per_update=3, batch_size=12, initial_updates=500, optimiser=optax.adam(2e-3)),
        ascent=FullHorizon(steps_per_update=6, batch_size=4, optimiser=optax.adam(6e-3), clip=1.0, entropy=entropy),
        evaluate_every=steps // 10,
    )

    scores = gap_closed(task, result.metrics.true_return)  # (seeds, epochs)
    last = scores[:, -1:]
    middle = interval(iqm, last)
    print(tabulate([[f"{x:.4f}" for x in last[:, 0]]], [f"seed {i}" for i in range(options.seeds)]))
    print(
        f"median {np.median(last):.4f}; interquartile mean {middle.value:.4f}, 95 % interval {middle.low:.4f} to {middle.high:.4f}"
    )

    plt.rcParams.update(plot.STYLE)
    figure, axes = plt.subplots(figsize=(5, 3.4))
    axes.plot(result.metrics.steps[0], scores.T, color=plot.COLOURS["Markov"], lw=0.8, alpha=0.5)
    axes.plot(
        result.metrics.steps[0],
        np.median(scores, axis=0),
        color=plot.COLOURS["Markov"],
        lw=2,
        label=f"median of {options.seeds} seeds",
    )
    axes.axhline(1, color="grey", ls=":", label="optimum")
    axes.set(xlabel="environment steps", ylabel="gap closed", title="Cancer treatment", ylim=(0.75, 1.02))
    axes.legend()
    options.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out / "several_seeds.png")
    print(f"The figure is {options.out / 'several_seeds.png'}")


if __name__ == "__main__":
    main()
