"""How do I learn a policy with a world model? BPO on a cancer-treatment task whose optimum is known.

    python examples/train_policy.py            about 30 seconds on two cores
    python examples/train_policy.py --quick    about 20 seconds: 2,000 steps instead of 5,000

`train` repeats four steps: collect an episode, fit the model to all episodes, improve the policy by its gradient through the
model, evaluate. Any task and any model can take the places of those below; pass `task` itself as the model for the
simulator's own gradient.

Expect after 5,000 steps: a return of -20.529, where the optimum is -20.525, and a model error of 0.0004.
"""

import argparse
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import optax

from awmkit import AWM, FullHorizon, GaussianPolicy, GRU, held_actions, ModelUpdates, plot, TargetEntropy, train, Warmup
from awmkit.scores import reference
from awmkit.tasks import CancerTreatment, Discretised


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2,000 environment steps instead of 5,000")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out", help="folder for the figure")
    options = parser.parse_args()
    steps = 2_000 if options.quick else 5_000

    task = Discretised(CancerTreatment())  # 100 steps
    keys = jax.random.split(jax.random.key(options.seed), 4)
    # Entropy per action entry, in nats: explore widely at first, act precisely at last.
    entropy = TargetEntropy(optax.linear_schedule(-0.5, -4.0, steps))
    result = train(
        task,
        AWM(task.state_size, task.action_size, GRU(64, key=keys[0]), per_step=True, key=keys[1]),
        GaussianPolicy(task.state_size, task.action_size, horizon=task.horizon, key=keys[2]),
        key=keys[3],
        steps=steps,
        noise=0.15,
        warmup=Warmup(1_000, held_actions),
        model_updates=ModelUpdates(steps_per_update=3, batch_size=12, initial_updates=500, optimiser=optax.adam(2e-3)),
        ascent=FullHorizon(steps_per_update=6, batch_size=4, optimiser=optax.adam(6e-3), clip=1.0, entropy=entropy),
        evaluate_every=steps // 10,
    )
    metrics, optimum = result.metrics, reference(task).optimal
    assert metrics.model_error is not None
    print(f"final return {metrics.true_return[-1]:.2f}, optimum {optimum:.2f}; model error {metrics.model_error[-1]:.2g}")

    plt.rcParams.update(plot.STYLE)
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2))
    left.plot(metrics.steps, metrics.true_return, "o-", label="policy")
    left.axhline(optimum, color="grey", ls=":", label="optimum")
    left.set(xlabel="environment steps", ylabel="return", title="Return in the true system")
    left.legend()
    right.semilogy(metrics.steps, metrics.model_error, "o-")
    right.set(xlabel="environment steps", ylabel="mean squared error / variance", title="Model error on a new episode")
    options.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out / "train_policy.png")
    print(f"The figure is {options.out / 'train_policy.png'}")


if __name__ == "__main__":
    main()
