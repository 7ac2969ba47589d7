"""Do learned models and MuJoCo's own gradient learn to move Gymnasium's bodies as fast as soft actor-critic?

    pip install "awmkit[gym,mjx]" stable-baselines3       the last for SAC only; it brings PyTorch
    python examples/paper/bodies.py --arms Markov "Markov, ensemble" AWM          three seeds, three bodies: 2 hours on one core
    python examples/paper/bodies.py                       the same with SAC and the simulator: some 15 hours
    python examples/paper/bodies.py --ids Reacher-v5 --arms Markov "SAC of Stable-Baselines3"        some cells
    python examples/paper/bodies.py --quick               one arm of one body, 300 steps: 1 minute
    python examples/paper/bodies.py --from-raw            the published table and figure

All arms take the same number of steps. The policy is improved over 10 imagined steps and a critic (`ShortHorizon`):

- "Markov" and "AWM": through a model that is learned from the environment's steps (`env.step` of Gymnasium), with a learned reward
  and, where episodes can end early, a learned end. The AWM has a GRU and is fitted to windows of 10 steps from anywhere;
- "Markov, ensemble": five Markov models as an `awmkit.Ensemble`, one of which is drawn for each imagined episode;
- "simulator": through the body itself, by MJX (`MJXTask.from_gymnasium`), as SHAC does (Xu et al., 2022). Its policy reads
  positions and speeds. Where episodes can end early, they end with a probability near the bound, so that the gradient knows of it;
- "SAC of Stable-Baselines3", with its defaults.

The score is the mean return of the final policy's mode over 20 episodes of Gymnasium's length, without a discount. All arms are
scored in Gymnasium but "simulator", which is scored in MJX with hard ends; its states and rewards are Gymnasium's to 1e-5. It makes a
quarter of the updates of the policy, each with half of the starts, because a step of MJX and its Jacobian take so long.

Expected, medians of three seeds, one of SAC and the simulator: Reacher-v5 AWM -3.9, Markov -4.5, SAC -6.1, simulator -8.7;
InvertedDoublePendulum-v5 SAC 9,360, Markov 9,332, AWM 848 (one seed 9,358); HalfCheetah-v5 ensemble 465, Markov 224 (-485 to 3,406),
SAC 123, AWM -333. The other cells are not published. The simulator takes 10 minutes on Reacher, and more than an hour on the others.
"""

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import gymnasium
import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib.figure import Figure
from study import arguments, markdown, read, RESULTS, Row, Study

from awmkit import (
    AWM,
    Critic,
    Ensemble,
    evaluate,
    GaussianPolicy,
    GRU,
    Markov,
    ModelUpdates,
    plot,
    RewardModel,
    ShortHorizon,
    TerminationModel,
    train,
    Warmup,
)
from awmkit.gym import GymnasiumTask
from awmkit.mjx import MJXTask

# Whether episodes can end early, and the width of an end that has a gradient, in the units of the state.
WIDTHS = {"InvertedDoublePendulum-v5": 0.05, "Reacher-v5": None, "HalfCheetah-v5": None}
SAC = "SAC of Stable-Baselines3"
ENSEMBLE, MEMBERS = "Markov, ensemble", 5
AHEAD, EPISODES = 10, 20  # imagined steps, and episodes of an evaluation


def ascent(state_size: int, **options) -> ShortHorizon:
    settings = {"discount": 0.99, "batch_size": 64, "optimiser": optax.adam(1e-3), "clip": 1.0, "entropy": 0.0}
    return ShortHorizon(Critic(state_size, key=jax.random.key(0)), length=AHEAD, **settings | options)


def scored(task, policy, result) -> dict[str, Any]:
    found = evaluate(task, policy, episodes=EPISODES)
    curve = {"curve_steps": result.metrics.steps, "curve": result.metrics.true_return}
    return {"returns": found.returns, "lengths": found.lengths, **curve}


def in_a_model(name: str, id: str, steps: int, seed: int) -> dict[str, Any]:
    """Learn a model from the environment's steps, and a policy in it."""
    task = GymnasiumTask(gymnasium.make(id))
    sizes, keys = (task.state_size, task.action_size), jax.random.split(jax.random.key(seed), 6)
    if name == "AWM":
        model = AWM(*sizes, GRU(64, key=keys[0]), key=keys[5])
        updates = ModelUpdates(steps_per_update=1.0, batch_size=64, window=AHEAD, initial_updates=1000)
    else:
        markov = lambda key: Markov(*sizes, key=key)
        members = jax.random.split(keys[0], MEMBERS)
        model = markov(keys[0]) if name == "Markov" else Ensemble(eqx.filter_vmap(markov)(members), "episode")
        updates = ModelUpdates(steps_per_update=1.0, batch_size=256, window=1, initial_updates=1000)
    result = train(
        task,
        model,
        GaussianPolicy(*sizes, key=keys[3]),
        key=keys[4],
        steps=steps,
        noise=0.1,
        warmup=Warmup(min(1000, steps // 2)),
        model_updates=updates,
        ascent=ascent(task.state_size),
        reward=RewardModel(*sizes, key=keys[2]),
        termination=None if WIDTHS[id] is None else TerminationModel(*sizes, key=keys[1]),
        evaluate_every=steps // 20,
        evaluations=3,
    )
    return scored(task, result.policy, result)


def in_the_simulator(id: str, steps: int, seed: int) -> dict[str, Any]:
    """Improve a policy by the gradient through MJX."""
    horizon = gymnasium.spec(id).max_episode_steps
    assert horizon is not None
    task = MJXTask.from_gymnasium(id, horizon=horizon, healthy_width=WIDTHS[id])
    policy_key, key = jax.random.split(jax.random.key(seed))
    result = train(
        task,
        task,
        GaussianPolicy(task.state_size, task.action_size, key=policy_key),
        key=key,
        steps=steps,
        noise=0.1,
        warmup=Warmup(min(1000, steps // 2)),
        ascent=ascent(task.state_size, steps_per_update=8.0, batch_size=32),
        evaluate_every=steps // 20,
        evaluations=3,
    )
    return scored(MJXTask.from_gymnasium(id, horizon=horizon), result.policy, result)


def soft_actor_critic(id: str, steps: int, seed: int) -> dict[str, Any]:
    import torch  # pyright: ignore[reportMissingImports]
    from stable_baselines3 import SAC as Learner  # pyright: ignore[reportMissingImports]
    from stable_baselines3.common.evaluation import evaluate_policy  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(1)
    model = Learner("MlpPolicy", gymnasium.make(id), seed=seed).learn(steps)
    options = {"n_eval_episodes": EPISODES, "return_episode_rewards": True, "warn": False}
    returns, lengths = evaluate_policy(model, gymnasium.make(id), **options)
    return {"returns": list(map(float, returns)), "lengths": list(map(int, lengths))}


ARMS: dict[str, Callable[[str, int, int], dict[str, Any]]] = {
    "Markov": partial(in_a_model, "Markov"),
    ENSEMBLE: partial(in_a_model, ENSEMBLE),
    "AWM": partial(in_a_model, "AWM"),
    "simulator": in_the_simulator,
    SAC: soft_actor_critic,
}
COLOURS = plot.COLOURS | {SAC: plot.COLOURS["SAC"], ENSEMBLE: "tab:olive"}


def figure(rows: dict[Any, Row]) -> Figure:
    """Draw the return during training, one line per seed, and SAC's at the end."""
    ids = list(dict.fromkeys(id for id, *_ in rows))
    fig, panels = plt.subplots(1, len(ids), figsize=(2 + 3.6 * len(ids), 4), squeeze=False)
    for axes, id in zip(panels[0], ids, strict=True):
        for (of, arm, _), row in rows.items():
            if of == id and "curve" in row:
                axes.plot(row["curve_steps"], row["curve"], color=COLOURS[arm], label=arm)
            elif of == id:
                axes.axhline(np.mean(row["returns"]), color=COLOURS[arm], ls="--", label=f"{arm}, at the end")
        axes.set(title=id, xlabel="environment steps")
        axes.locator_params(axis="x", nbins=4)
    panels[0, 0].set_ylabel("true return, mean of 3 episodes")
    entries = {label: line for axes in panels[0] for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    fig.legend(entries.values(), entries, loc="outside lower center", ncols=2)
    return fig


def table(rows: dict[Any, Row]) -> str:
    """Return one row per body and arm: the returns of all seeds."""
    lines = []
    for id, arm, steps in dict.fromkeys((id, arm, row["config"]["steps"]) for (id, arm, _), row in rows.items()):
        cells = [row for (of, by, _), row in rows.items() if (of, by) == (id, arm)]
        means = [np.mean(row["returns"]) for row in cells]
        each = ", ".join(f"{mean:,.1f}" for mean in means)
        seconds = f"{np.median([row['seconds'] for row in cells]):.0f}"
        lines.append([id, arm, f"{steps:,}", f"{np.median(means):,.1f}", each, seconds])
    return markdown(["body", "arm", "steps", "median return", "mean of 20 episodes, each seed", "seconds per seed"], lines)


def main() -> None:
    parser = arguments(__doc__, "bodies", seeds=3)
    parser.add_argument("--ids", nargs="+", choices=list(WIDTHS), default=list(WIDTHS))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--steps", type=int, default=20_000)
    options = parser.parse_args()
    if options.quick:
        options.ids, options.arms, options.steps, options.seeds = ["Reacher-v5"], ["AWM"], 300, 1
    if SAC in options.arms and not options.from_raw and importlib.util.find_spec("stable_baselines3") is None:
        raise SystemExit("SAC needs pip install stable-baselines3; or leave it out with --arms Markov AWM simulator.")
    study, cells = Study(options, "bodies"), {}
    for seed in range(options.seeds):
        for id in options.ids:
            for arm in options.arms:
                config = {"id": id, "arm": arm, "steps": options.steps, "seed": seed}
                cells[id, arm, seed] = f"{id}, {arm}, seed {seed}", config, partial(ARMS[arm], id, options.steps, seed)
    if options.from_raw:  # The published values may be part of the grid.
        published = read(RESULTS / "bodies.jsonl.gz")
        cells = {key: (name, published[name]["config"], run) for key, (name, _, run) in cells.items() if name in published}
    study.write(table(study.collect(cells, figure)))


if __name__ == "__main__":
    main()
