"""Which model learns the better policy on the paper's optimal-control tasks?

    python examples/paper/myriad.py --table 5000        nine tasks, 50 episodes of 100 steps: 2 hours on one core
    python examples/paper/myriad.py --table 20000       nine tasks, 200 episodes: 3 hours
    python examples/paper/myriad.py --table horizons    three tasks, 50 to 500 steps per episode: 2 hours
    python examples/paper/myriad.py --table degenerate  the three tasks in which a constant action is (nearly) optimal
    python examples/paper/myriad.py --quick             one task, two methods, 1,500 steps: 2 minutes
    python examples/paper/myriad.py --tasks CancerTreatment --methods "AWM transformer" --episodes 50
    python examples/paper/myriad.py --from-raw          the four tables again, from the published values: 10 seconds

The score is the gap closed, (R - best constant action) / (optimal - best constant action), of the final policy's mode on the
true task, in float64. Optimal returns come from an independent solver. Each method has one set of hyper-parameters for all
tasks (methods.py). All seeds of a cell run as one program.

Expected interquartile means over five seeds and nine tasks, at 5,000 and at 20,000 steps: AWM transformer 0.955, 0.987; AWM GRU
0.973, 0.990; HWM LSTM 0.957, 0.992; Markov 0.966, 0.986; simulator 0.994, 0.999; SAC 0.10, 0.81.
Seconds per cell on one core: AWM transformer 270 (at 20,000 steps 300 to 370), AWM GRU 100 (130 to 155), HWM LSTM 120 (150 to
170), Markov 75 (85), simulator 25 (20), SAC 115 (500).
"""

import argparse
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from methods import learn, MODELS, record, train_sac
from study import arguments, Row, Study

from awmkit import unroll
from awmkit.plot import COLOURS
from awmkit.scores import gap_closed, table, TELLING
from awmkit.tasks import Discretised, MYRIAD

FLOOR = -0.5  # lowest score in the figure
TASKS: dict[str, Any] = {problem.__name__: problem for problem in MYRIAD}
NINE = [problem.__name__ for problem in TELLING]
COMPARED = ["AWM transformer", "AWM GRU", "HWM LSTM", "Markov", "simulator", "SAC"]
TABLES: dict[str, dict[str, Any]] = {
    "5000": {"tasks": NINE, "methods": COMPARED, "episodes": [50], "horizons": [100], "seeds": 5},
    "20000": {"tasks": NINE, "methods": COMPARED, "episodes": [200], "horizons": [100], "seeds": 5},
    "horizons": {
        "tasks": ["CancerTreatment", "HIVTreatment", "MouldFungicide"],
        "methods": ["AWM transformer", "HWM LSTM", "Markov", "AWM LSTM", "simulator"],
        "episodes": [50],
        "horizons": [50, 100, 200, 500],
        "seeds": 3,
    },
    "degenerate": {
        "tasks": ["Bioreactor", "PredatorPrey", "Epidemic"],
        "methods": COMPARED,
        "episodes": [50],
        "horizons": [100],
        "seeds": 5,
    },
    "quick": {"tasks": ["CancerTreatment"], "methods": ["AWM LSTM", "Markov"], "episodes": [30], "horizons": [50], "seeds": 2},
}


def cell(task: Discretised, method: str, episodes: int, seeds: int) -> dict:
    """Train all seeds of a method on a task."""
    keys = jax.random.split(jax.random.key(0), seeds)
    if method == "SAC":
        result = train_sac(task, episodes, keys)
        return {"steps": result.steps, "curve": result.returns, "returns": exact_returns(task, result.policy)}
    result = learn(task, method, episodes, keys)
    return {**record(result), "returns": exact_returns(task, result.policy)}


def exact_returns(task: Discretised, policies) -> np.ndarray:
    """Return the true return of each policy's mode, in float64: in Glucose, differences of 0.1 in 3,200 matter."""
    with jax.enable_x64(True):
        double = lambda x: jnp.asarray(np.asarray(x), float) if eqx.is_inexact_array(x) else x
        policies = jtu.tree_map(double, policies)

        def true_return(policy):
            mode = lambda state, t, *, key=None: policy(state, t)
            return unroll(task, mode, task.reset(jax.random.key(0)), task.horizon, reward=task.reward).returns()

        return np.asarray(eqx.filter_jit(eqx.filter_vmap(true_return))(policies))


def figure(options: argparse.Namespace, cells: dict[Any, Row]) -> Figure:
    """Draw every seed's score by task, or by task and horizon if there are several; triangles lie below the axis."""
    panels = [(e, [n]) for e in options.episodes for n in options.horizons]
    if len(options.horizons) > 1:
        panels = [(e, options.horizons) for e in options.episodes]
    slots = len(options.tasks) * len(panels[0][1])
    fig, axes = plt.subplots(len(panels), 1, figsize=(2 + 1.1 * slots, 3.6 * len(panels)), squeeze=False)
    for axis, (episodes, horizons) in zip(axes[:, 0], panels, strict=True):
        ticks = [(name, n) for name in options.tasks for n in horizons]
        for i, (name, n) in enumerate(ticks):
            for j, method in enumerate(options.methods):
                run = cells.get((name, method, n, episodes))
                if run is None or TASKS[name] not in TELLING:
                    continue
                scores = gap_closed(Discretised(TASKS[name](), n), run["returns"])
                x = np.full(scores.size, i + 0.8 * ((j + 0.5) / len(options.methods) - 0.5))
                for mark, where in ((".", scores >= FLOOR), ("v", scores < FLOOR)):
                    axis.plot(x[where], np.maximum(scores, FLOOR)[where], mark, color=COLOURS[method], alpha=0.6)
                median = max(np.median(scores), FLOOR)
                axis.plot(x[0], median, "_", color=COLOURS[method], ms=9, label=None if i else method)
        labels = [name if len(horizons) == 1 else f"{name}\nN = {n}" for name, n in ticks]
        axis.set_xticks(range(len(ticks)), labels, fontsize=7)
        title = f"{episodes} episodes" + (f" of {horizons[0]} steps" if len(horizons) == 1 else "")
        axis.set(ylabel="gap closed", ylim=(FLOOR - 0.05, 1.05), title=title)
        axis.margins(x=0.01)
        axis.axhline(1, color="k", lw=0.5)
        axis.axhline(0, color="k", lw=0.5, ls=":")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(options.methods))
    return fig


def run(options: argparse.Namespace, title: str) -> None:
    """Run the cells that are missing and write the table and the figure."""
    study = Study(options, "myriad", title=title)
    grid = [(t, m, n, e) for e in options.episodes for n in options.horizons for m in options.methods for t in options.tasks]
    cells = {}
    for name, method, horizon, episodes in grid:
        config = {"task": name, "method": method, "horizon": horizon, "episodes": episodes, "seeds": options.seeds}
        task = Discretised(TASKS[name](), horizon)
        label = f"{name}-{method}-N{horizon}-E{episodes}"
        cells[name, method, horizon, episodes] = label, config, partial(cell, task, method, episodes, options.seeds)
    scored = any(TASKS[name] in TELLING for name in options.tasks)
    rows = study.collect(cells, partial(figure, options) if scored else None)
    texts = []
    for episodes in options.episodes:
        for n in options.horizons:
            returns = {m: {t: rows[t, m, n, episodes]["returns"] for t in options.tasks} for m in options.methods}
            texts.append(f"{episodes} episodes of {n} steps\n\n{table(returns, n)}")
    study.write("\n".join(texts))


def main() -> None:
    parser = arguments(__doc__, "myriad")
    parser.add_argument("--table", choices=TABLES, help="a published table; sets the options below and --seeds")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=NINE)
    parser.add_argument("--methods", nargs="+", choices=(*MODELS, "SAC"), default=[*MODELS, "SAC"])
    parser.add_argument("--episodes", nargs="+", type=int, default=[50, 200], help="number of episodes, warm-up included")
    parser.add_argument("--horizons", nargs="+", type=int, default=[100], help="steps per episode")
    options = parser.parse_args()
    chosen = "quick" if options.quick else options.table
    titles = [name for name in TABLES if name != "quick"] if options.from_raw and chosen is None else [chosen]
    for name in titles:
        run(argparse.Namespace(**vars(options) | TABLES.get(name, {})), f"myriad_{name}" if name else "myriad")


if __name__ == "__main__":
    main()
