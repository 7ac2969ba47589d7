"""How do I use a Gymnasium environment? Learn Pendulum-v1 without knowing its equations or its reward.

    python examples/gymnasium_env.py            about 1 minute on two cores
    python examples/gymnasium_env.py --quick    about 40 seconds: 3,000 steps instead of 6,000

Collects episodes by `env.step`, fits a Markov model and a reward model to them, and then lets `train` collect, fit and
improve in turn. An episode has 200 steps, which is too long to predict in one go, so the policy is improved over 10 imagined
steps and a critic (`ShortHorizon`).

Expect: held-out errors of 0.001 or less, one step ahead, for both models; the mean return rises from -1,350 (random actions) to
about -100.
"""

import argparse
from pathlib import Path

import gymnasium
import jax
import matplotlib.pyplot as plt
import optax

from awmkit import (
    BPO,
    Critic,
    fit,
    GaussianPolicy,
    held_actions,
    Markov,
    ModelUpdates,
    plot,
    RewardModel,
    ShortHorizon,
    TargetEntropy,
    train,
    Warmup,
)
from awmkit.gym import GymnasiumTask


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3,000 environment steps instead of 6,000")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out", help="folder for the figure")
    options = parser.parse_args()
    steps = 3_000 if options.quick else 6_000

    task = GymnasiumTask(gymnasium.make("Pendulum-v1"))
    keys = jax.random.split(jax.random.key(options.seed), 8)
    model = Markov(task.state_size, task.action_size, key=keys[0])
    reward = RewardModel(task.state_size, task.action_size, key=keys[1])

    # Episodes are ordinary data: any model can be fitted to them.
    random_policy = lambda state, t, key: jax.random.uniform(key, (1,), minval=-1)
    episodes = task.collect(random_policy, 10, key=keys[2])
    fitted = fit(model.normalised(episodes), episodes, key=keys[3], updates=300, batch_size=4)
    fitted_reward = fit(reward.normalised(episodes), episodes, key=keys[4], updates=300, batch_size=4)
    assert fitted.held_out is not None and fitted_reward.held_out is not None
    print(f"held-out error one step ahead: state {fitted.held_out[0]:.2g}, reward {fitted_reward.held_out.mean():.2g}")

    # The whole loop. It starts from fresh models and fits them to the episodes of the improving policy.
    rate = lambda peak, updates: optax.adam(optax.cosine_decay_schedule(peak, updates, 0.03))
    critic = Critic(task.state_size, task.horizon, key=keys[5])
    result = train(
        task,
        model,
        GaussianPolicy(task.state_size, task.action_size, key=keys[6]),
        reward=reward,
        key=keys[7],
        steps=steps,
        warmup=Warmup(2_000, held_actions),
        model_updates=ModelUpdates(
            steps_per_update=10, batch_size=16, initial_updates=300, optimiser=rate(2e-3, 300 + steps // 10)
        ),
        ascent=ShortHorizon(
            critic,
            length=10,
            batch_size=64,
            steps_per_update=4,
            optimiser=rate(3e-3, steps // 4),
            clip=1.0,
            discount=0.98,
            paths=BPO,
            entropy=TargetEntropy(optax.linear_schedule(-0.5, -2.0, steps)),
        ),
        evaluate_every=400,
        evaluations=5,
    )
    metrics = result.metrics
    print(f"mean return of 5 episodes: {metrics.true_return[0]:.0f} at first, {metrics.true_return[-1]:.0f} at last")

    plt.rcParams.update(plot.STYLE)
    figure, axes = plt.subplots(figsize=(5, 3.4))
    axes.plot(metrics.steps, metrics.true_return, "o-", label="learned policy")
    axes.axhline(float(episodes.returns().mean()), color="grey", ls=":", label="random actions")
    axes.set(xlabel="environment steps", ylabel="mean return", title="Pendulum-v1, model and reward learned")
    axes.legend()
    options.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out / "gymnasium_env.png")
    print(f"The figure is {options.out / 'gymnasium_env.png'}")


if __name__ == "__main__":
    main()
