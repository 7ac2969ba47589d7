"""Can BPO swing up a cart-pole in MuJoCo, through the simulator's gradient and through world models?

    python examples/paper/mjx_cartpole.py                   three seeds, 100 episodes of 100 steps: 8 minutes on one core
    python examples/paper/mjx_cartpole.py --episodes 400    40,000 steps: 25 minutes
    python examples/paper/mjx_cartpole.py --quick           one seed, two methods, 50 steps per episode: 2 to 3 minutes
    python examples/paper/mjx_cartpole.py --from-raw        both tables again, from the published values

The task is `awmkit.mjx.cartpole`. The pole starts hanging, and the return is its mean height over the episode (-1 to 1) minus
small costs. All methods take the same number of environment steps; the models have the hyper-parameters of methods.py. All
seeds of a method run as one program, so MJX, which compiles slowly, compiles once. The seconds in the table include that.

Expected medians of three seeds at 10,000 and at 40,000 steps: Markov -0.08, -0.08; simulator -0.11, 0.02; AWM LSTM -0.69 (best
evaluation -0.19), -0.29; SAC -0.86, -0.22. Doing nothing gives -1.00, random actions -1.11.
"""

import argparse
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from methods import learn, record, train_sac
from study import arguments, markdown, Row, Study

from awmkit import Paths, unroll
from awmkit.mjx import cartpole, MJXTask
from awmkit.plot import COLOURS

METHODS = ("AWM LSTM", "Markov", "simulator", "SAC")
EVALUATIONS = 5  # episodes
# The paper's paths, damped from step to step. Without damping, Markov's gradient overflows in states that are far from the
# data, and the policy never recovers.
DAMPED = Paths(state_to_policy=0.0, state_to_model=0.95)


def cell(task: MJXTask, method: str, episodes: int, seeds: int) -> dict:
    """Train all seeds of a method."""
    keys = jax.random.split(jax.random.key(0), seeds)
    if method == "SAC":
        result = train_sac(task, episodes, keys, evaluations=EVALUATIONS)
        return {"steps": result.steps[0], "curve": result.returns}
    return record(learn(task, method, episodes, keys, evaluations=EVALUATIONS, paths=DAMPED))


def idle(task: MJXTask) -> dict:
    """Return the returns of doing nothing and of random actions, 20 episodes each."""
    keys = jax.random.split(jax.random.key(1), 20)
    drawn = jax.random.uniform(jax.random.key(2), (20, task.horizon, task.action_size), minval=-1.0)
    run = lambda key, actions: unroll(task, actions, task.reset(key), task.horizon, reward=task.reward).returns()
    episodes = jax.jit(jax.vmap(run))(jnp.concatenate([keys, keys]), jnp.concatenate([0 * drawn, drawn]))
    return {"doing nothing": episodes[:20], "random actions": episodes[20:]}


def baselines(cells: dict[Any, Row]) -> dict[str, float]:
    return {name: float(np.mean(cells["idle"][name])) for name in ("doing nothing", "random actions")}


def figure(cells: dict[Any, Row]) -> Figure:
    """Draw the true return during training: each seed, and their median."""
    fig, axis = plt.subplots(figsize=(6, 4))
    for method in (method for method in METHODS if method in cells):
        curves, steps = np.array(cells[method]["curve"]), cells[method]["steps"]
        axis.plot(steps, curves.T, color=COLOURS[method], lw=0.7, alpha=0.5)
        axis.plot(steps, np.median(curves, axis=0), color=COLOURS[method], lw=2, label=method)
    for style, (name, level) in zip((":", "--"), baselines(cells).items(), strict=True):
        axis.axhline(level, color="grey", ls=style, lw=1, label=name)
    axis.set(xlabel="environment steps", ylabel=f"true return, mean of {EVALUATIONS} episodes", title="MJX cart-pole")
    axis.xaxis.set_major_locator(MaxNLocator(5))
    axis.set_yscale("symlog", linthresh=1.5, linscale=3)  # A cart that runs away gets returns of -30 and less.
    ticks = (-30, -10, -1, -0.5, 0, 0.5, 1)
    axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    fig.legend(loc="outside lower center", ncols=3)
    return fig


def table(methods: list[str], cells: dict[Any, Row]) -> str:
    """Return medians over seeds of the last and the best evaluation."""
    spread = lambda x: f"{np.median(x):.2f} ({x.min():.2f} .. {x.max():.2f})"
    curves = {method: np.array(cells[method]["curve"]) for method in methods}
    rows = [[m, spread(x[:, -1]), spread(x.max(axis=1)), f"{cells[m]['seconds']:.0f}"] for m, x in curves.items()]
    rows += [[name, f"{level:.2f}", "", ""] for name, level in baselines(cells).items()]
    return markdown(["method", "last return", "best return", "seconds"], rows)


def run(options: argparse.Namespace, episodes: int) -> None:
    """Run the cells that are missing and write the table and the figure."""
    task = cartpole(options.horizon, frame_skip=5)
    size = {"horizon": options.horizon, "episodes": episodes, "seeds": options.seeds}
    label = f"H{options.horizon}-E{episodes}-S{options.seeds}"
    cells: dict[str, Any] = {"idle": (f"idle-H{options.horizon}", {"horizon": options.horizon}, partial(idle, task))}
    for method in options.methods:
        config = {"method": method, **size}
        cells[method] = f"{method}-{label}", config, partial(cell, task, method, episodes, options.seeds)
    study = Study(options, "mjx_cartpole", title=f"mjx_cartpole_{episodes * options.horizon}")
    rows = study.collect(cells, figure)
    title = f"{episodes} episodes of {options.horizon} steps, {options.seeds} seeds"
    study.write(f"{title}\n\n{table(options.methods, rows)}")


def main() -> None:
    parser = arguments(__doc__, "mjx_cartpole", seeds=3)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--horizon", type=int, default=100, help="steps per episode, of 0.05 s each")
    parser.add_argument("--episodes", type=int, default=100, help="number of episodes, warm-up included")
    options = parser.parse_args()
    if options.quick:
        options.methods, options.horizon, options.episodes, options.seeds = ["AWM LSTM", "Markov"], 50, 40, 1
    for episodes in (100, 400) if options.from_raw else (options.episodes,):
        run(options, episodes)


if __name__ == "__main__":
    main()
