"""The paper's table: realistic optimal control, twelve Myriad tasks by every kind of model, by the simulator and by SAC.

    python examples/myriad.py                           nine tasks, N = 100, 5,000 and 20,000 steps: some 8 hours of a core
    python examples/myriad.py --quick                   one task, two methods, 1,500 steps: about 2 minutes
    python examples/myriad.py --tasks CancerTreatment --methods "AWM transformer" --episodes 50 --seeds 5
    python examples/myriad.py --episodes 50 --horizons 50 100 200 500 --tasks CancerTreatment MouldFungicide HIVTreatment

Every run learns from whole episodes of N steps; 50 episodes of 100 are the paper's 5,000 environment steps. A method has one
set of hyper-parameters for all tasks (see `train`). The score is the gap closed, (R - best constant action) / (optimal - best
constant action), of the final policy's mode on the true task, evaluated in float64; optimal returns are an independent
solver's. All seeds of a task and a method run as one program. Runs are kept one by one: stop it, start it again, add to it.

Expect at 5,000 steps, of five seeds and the nine tasks, interquartile means of 0.955 for the AWM transformer, 0.973 for the AWM
GRU, 0.957 for the HWM LSTM, 0.966 for Markov, 0.994 for the simulator and 0.10 for SAC. A cell of five seeds then takes, in
seconds of one core: AWM transformer 270, AWM GRU 100, HWM LSTM 120, Markov 75, simulator 25, SAC 115.
At 20,000 steps, 0.987, 0.990, 0.992, 0.986, 0.999 and 0.81. Seconds then: AWM transformer 300 to 370, AWM GRU 130 to 155, HWM
LSTM 150 to 170, Markov 85, simulator 20, SAC 500.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from methods import COLOURS, learn, MODELS, record, train_sac
from study import arguments, Study

from awmkit import unroll
from awmkit.scores import gap_closed, table, TELLING
from awmkit.tasks import Discretised, MYRIAD

METHODS = (*MODELS, "SAC")
FLOOR = -0.5  # of the figure
TASKS: dict[str, Any] = {problem.__name__: problem for problem in MYRIAD}


def cell(task: Discretised, method: str, episodes: int, seeds: int) -> dict:
    """All seeds of a method on a task."""
    keys = jax.random.split(jax.random.key(0), seeds)
    if method == "SAC":
        result = train_sac(task, episodes, keys)
        return {"steps": result.steps, "curve": result.returns, "returns": exact_returns(task, result.policy)}
    result = learn(task, method, episodes, keys)
    return {**record(result), "returns": exact_returns(task, result.policy)}


def exact_returns(task: Discretised, policies) -> np.ndarray:
    """True returns of the modes, one a seed, in float64: glucose pays differences of 0.1 in 3,200."""
    with jax.enable_x64(True):
        double = lambda x: jnp.asarray(np.asarray(x), float) if eqx.is_inexact_array(x) else x
        policies = jtu.tree_map(double, policies)

        def true_return(policy):
            mode = lambda state, t, *, key=None: policy(state, t)
            return unroll(task, mode, task.reset(jax.random.key(0)), task.horizon, reward=task.reward).returns()

        return np.asarray(eqx.filter_jit(eqx.filter_vmap(true_return))(policies))


def figure(cells: dict, horizons: list[int], episodes: list[int]) -> Figure:
    """Scores of every seed by task, or against the horizon where there are several; triangles are below the figure."""
    names = list(dict.fromkeys(name for name, *_ in cells))
    methods = list(dict.fromkeys(method for _, method, *_ in cells))
    panels = [(e, n) for e in episodes for n in horizons] if len(horizons) == 1 else [(e, None) for e in episodes]
    width = len(names) if len(horizons) == 1 else len(names) * len(horizons)
    fig, axes = plt.subplots(len(panels), 1, figsize=(2 + 1.1 * width, 3 * len(panels)), layout="constrained", squeeze=False)
    for axis, (count, horizon) in zip(axes[:, 0], panels, strict=True):
        slots = [(name, n) for name in names for n in ([horizon] if horizon else horizons)]
        for i, (name, n) in enumerate(slots):
            for j, method in enumerate(methods):
                run = cells.get((name, method, n, count))
                if run is None or TASKS[name] not in TELLING:
                    continue
                scores = gap_closed(Discretised(TASKS[name](), n), run["returns"])
                x = np.full(scores.size, i + 0.8 * ((j + 0.5) / len(methods) - 0.5))
                for mark, where in ((".", scores >= FLOOR), ("v", scores < FLOOR)):
                    axis.plot(x[where], np.maximum(scores, FLOOR)[where], mark, color=COLOURS[method], alpha=0.6)
                axis.plot(
                    x[0], max(np.median(scores), FLOOR), "_", color=COLOURS[method], ms=9, label=method if i == 0 else None
                )
        labels = [name if horizon else f"{name}\nN = {n}" for name, n in slots]
        axis.set_xticks(range(len(slots)), labels, fontsize=7)
        axis.set(
            ylabel="gap closed",
            ylim=(FLOOR - 0.05, 1.05),
            title=f"{count} episodes" + (f" of {horizon} steps" if horizon else ""),
        )
        axis.axhline(1, color="k", lw=0.5)
        axis.axhline(0, color="k", lw=0.5, ls=":")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), fontsize=7, loc="outside lower center", ncols=len(methods))
    return fig


def main() -> None:
    parser = arguments(__doc__, "myriad")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=[problem.__name__ for problem in TELLING])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument(
        "--episodes", nargs="+", type=int, default=[50, 200], help="of the environment in all, warm-up included"
    )
    parser.add_argument("--horizons", nargs="+", type=int, default=[100])
    options = parser.parse_args()
    if options.quick:
        options.tasks, options.methods = ["CancerTreatment"], ["AWM LSTM", "Markov"]
        options.episodes, options.horizons, options.seeds = [30], [50], 2
    grid = [(t, m, n, e) for e in options.episodes for n in options.horizons for m in options.methods for t in options.tasks]
    study = Study(options.out, total=len(grid))
    cells = {}
    for name, method, horizon, episodes in grid:
        task = Discretised(TASKS[name](), horizon)
        config = {"task": name, "method": method, "horizon": horizon, "episodes": episodes, "seeds": options.seeds}
        label = f"{name}-{method}-N{horizon}-E{episodes}"
        run = study.run(label, config, lambda t=task, m=method, e=episodes: cell(t, m, e, options.seeds))
        cells[name, method, horizon, episodes] = run
        figure(cells, options.horizons, options.episodes).savefig(study.out / "myriad.png", dpi=110)
        plt.close("all")
    for episodes in options.episodes:
        for horizon in options.horizons:
            returns = {m: {t: cells[t, m, horizon, episodes]["returns"] for t in options.tasks} for m in options.methods}
            text = f"{episodes} episodes of {horizon} steps\n\n{table(returns, horizon)}\n"
            (study.out / f"table-N{horizon}-E{episodes}.md").write_text(text)
            print("\n" + text)


if __name__ == "__main__":
    main()
