"""Do settings that were chosen on some tasks carry over to others?

    python examples/paper/variants.py                                  18 variants, 5 methods, 5,000 steps: some 6 hours on one core
    python examples/paper/variants.py --seeds 5 --steps 5000 20000     the same, two numbers of steps: some 50 hours
    python examples/paper/variants.py --methods Markov --tasks Bacteria Harvest          some cells
    python examples/paper/variants.py --check                          the solver against known optimal returns: 2 minutes
    python examples/paper/variants.py --quick                          one variant, two methods, 2,500 steps: 2 minutes
    python examples/paper/variants.py --from-raw                       the table and the figure again, from the published values

A variant of a Myriad task has other parameters and another start, each multiplied by its own factor between 0.6 and 1.4 (the start
stays within the bounds of the state, and the duration T is kept), and between 50 and 200 steps per episode. `draw` draws variants
from a seed and rejects one only if a return of random actions is not finite. Settings are chosen with `--draw 1`, never on the
variants of draw 0 or on the nine reported tasks. Their optimal returns come from the exact gradient through the simulator
(optimal.py). `--check` compares them with the known ones of the nine tasks; the largest relative difference is 5e-15.

"AWM transformer, windows" is fitted to the rests of episodes from any step on too. The column "smaller error of the two" has, for each
variant, the transformer whose last error on new episodes is the smaller one, which needs no return of the task.

Processor seconds per cell of 5,000 steps and two seeds, compilation included: either transformer 130 to 630, which grows with the
steps of an episode, Markov 40 to 110, simulator 25; the optimal returns of a variant take 2 to 15. The published values are a part
of the grid, with two seeds: the optimal returns of all 18 variants, and the cells in the table.
"""

import dataclasses
import functools
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from methods import learn, MODELS, record
from myriad import exact_returns, NINE, TASKS
from optimal import random_returns, solve
from study import arguments, markdown, read, RESULTS, Row, Study

from awmkit import pink_actions
from awmkit.plot import COLOURS
from awmkit.scores import iqm, reference
from awmkit.tasks import Discretised

METHODS = "AWM transformer", "AWM transformer, windows", "Markov", "simulator", "AWM GRU"
SPREAD = 0.4  # largest relative change of a parameter and of an entry of the start
CONDITIONED = 0.02  # smallest gap between the best constant action and the optimum, in units of the range, that is a scale
CHOSEN = "smaller error of the two"


def draw(name: str, number: int, seed: int = 0) -> Discretised:
    """Return variant `number` of the task of this name."""
    for attempt in range(100):
        rng = np.random.default_rng([seed, NINE.index(name), number, attempt])
        factor = lambda x, rng=rng: float(x * (1 + rng.uniform(-SPREAD, SPREAD)))
        problem = TASKS[name]()
        bounds = zip(problem.x0, problem.x_bounds, strict=True)
        start = tuple(float(np.clip(factor(x), low, high)) for x, (low, high) in bounds)
        numbers = [f.name for f in dataclasses.fields(problem) if f.name not in ("x0", "T", "x_bounds", "u_bounds")]
        changed = {field: factor(getattr(problem, field)) for field in numbers}
        task = Discretised(dataclasses.replace(problem, x0=start, **changed), int(rng.integers(50, 201)))
        if np.isfinite(random_returns(task)).all():
            return task
    raise RuntimeError(f"No variant {number} of {name} has finite returns of random actions.")


def parameters(task: Discretised) -> dict[str, Any]:
    """Return what distinguishes a variant, for its raw values."""
    problem = task.problem
    fixed = "x_bounds", "u_bounds"
    numbers = {f.name: getattr(problem, f.name) for f in dataclasses.fields(problem) if f.name not in fixed}
    return {"problem": type(problem).__name__, "horizon": task.horizon, **jax.tree_util.tree_map(float, numbers)}


def cell(task: Discretised, method: str, steps: int, seeds: int) -> dict[str, Any]:
    """Train all seeds of a method on a variant."""
    keys = jax.random.split(jax.random.key(2024), seeds)
    result = learn(task, method, -(-steps // task.horizon), keys, actions=pink_actions, chosen_on_variants=True)
    return {**record(result), "returns": exact_returns(task, result.policy)}


def gap_of(solved: Row) -> float:
    """Return the gap between the best constant action and the optimum, in units of the range from random to optimal."""
    return (solved["optimal"] - solved["best_constant"]) / (solved["optimal"] - solved["random"])


def regret(solved: Row, returns) -> np.ndarray:
    """Return by how much returns miss the optimum, in units of the range from random to optimal."""
    return (solved["optimal"] - np.asarray(returns, float)) / (solved["optimal"] - solved["random"])


def gap_closed(solved: Row, returns) -> np.ndarray:
    """Return the share of the gap between the best constant action and the optimum that is closed."""
    return 1 - regret(solved, returns) / gap_of(solved)


def with_smaller_error(rows: dict[Any, Row]) -> dict[Any, Row]:
    """Return, for each variant with both, the transformer whose last error on new episodes is the smaller one, in the median of seeds.

    It is known without a return of the task.
    """
    error = lambda row: np.median([errors[-1] for errors in row["metrics"]["model_error"]])
    pairs = {(label, steps): [] for label, _, steps in rows}
    for (label, method, steps), row in rows.items():
        if method in METHODS[:2]:
            pairs[label, steps].append(row)
    return {(label, CHOSEN, steps): min(pair, key=error) for (label, steps), pair in pairs.items() if len(pair) == 2}


def table(solved: dict[str, Row], rows: dict[Any, Row], steps: int, methods: list[str]) -> str:
    """Return the gap closed and the regret of each variant, median (lowest..highest), and their means."""
    spread = lambda x, spec: f"{np.median(x):{spec}} ({np.min(x):{spec}}..{np.max(x):{spec}})"
    lines = []
    for label, known in solved.items():
        cells = [rows.get((label, method, steps)) for method in methods]
        closed = [spread(gap_closed(known, row["returns"]), ".3f") if row else "" for row in cells]
        told = closed if gap_of(known) >= CONDITIONED else ["-"] * len(methods)
        missed = [f"{100 * np.median(regret(known, row['returns'])):.2f} %" if row else "" for row in cells]
        lines.append([label, str(known["config"]["horizon"]), f"{100 * gap_of(known):.2g} %", *told, *missed])
    scores = {m: [(label, rows[label, m, steps]) for label in solved if (label, m, steps) in rows] for m in methods}
    telling = {
        m: [gap_closed(solved[n], r["returns"]) for n, r in c if gap_of(solved[n]) >= CONDITIONED] for m, c in scores.items()
    }
    of_all = lambda summary, m: f"{summary(np.concatenate(telling[m])):.3f}" if telling[m] else ""
    lines.append(["interquartile mean of gap closed", "", "", *(of_all(iqm, m) for m in methods), *[""] * len(methods)])
    lines.append(["lowest gap closed of all seeds", "", "", *(of_all(np.min, m) for m in methods), *[""] * len(methods)])
    counted = [f"{len(telling[m])} of {len(scores[m])}" for m in methods]
    lines.append(["variants in these two rows, of those run", "", "", *counted, *[""] * len(methods)])
    head = [f"{steps:,} steps", "N", "gap", *(f"{m}: gap closed" for m in methods), *(f"{m}: regret" for m in methods)]
    notes = (
        "Gap closed: 1 is optimal, 0 the best constant action; median (lowest..highest) over seeds. Regret: median distance from the\n"
        "optimal return, in units of the range from random to optimal. Gap: that of the best constant action, in the same units. Where\n"
        f"it is below {100 * CONDITIONED:.0f} %, the gap closed is not a scale, shown as - and left out of the means."
    )
    return f"{markdown(head, lines)}\n\n{notes}\n"


def figure(solved: dict[str, Row], steps: list[int], rows: dict[Any, Row]) -> Figure:
    """Draw the regret of every seed on every variant; the line is that of the best constant action."""
    fig, panels = plt.subplots(len(steps), 1, figsize=(13, 3.6 * len(steps)), squeeze=False)
    methods = list(dict.fromkeys(method for _, method, _ in rows))
    colours = COLOURS | {"AWM transformer, windows": COLOURS["SAC"]}
    for axes, n in zip(panels[:, 0], steps, strict=True):
        for i, (label, known) in enumerate(solved.items()):
            axes.plot([i - 0.4, i + 0.4], [gap_of(known)] * 2, color="grey", label=None if i else "best constant action")
            for j, method in enumerate(methods):
                if row := rows.get((label, method, n)):
                    missed = np.maximum(regret(known, row["returns"]), 1e-6)
                    x = np.full(missed.size, i + 0.7 * ((j + 0.5) / len(methods) - 0.5))
                    axes.plot(x, missed, ".", color=colours[method], alpha=0.7, label=method)
        axes.set(yscale="log", ylabel="regret (share of the range)", title=f"{n:,} steps")
        axes.set_xticks(range(len(solved)), solved, rotation=60, ha="right", fontsize=7)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    entries = dict(zip(labels, handles, strict=True))
    fig.legend(entries.values(), entries, loc="outside lower center", ncols=len(methods) + 1)
    return fig


def check() -> None:
    """Compare `solve` with the known returns of the nine reported tasks; raise unless it agrees to 1e-6."""
    lines, worst = [], 0.0
    for name in NINE:
        task = Discretised(TASKS[name](), 100)
        found, known = solve(task), reference(task)
        error = lambda key, found=found, known=known: found[key] / getattr(known, key) - 1
        worst = max(worst, abs(error("optimal")))
        lines.append(
            [name, f"{found['optimal']:.8g}", *(f"{error(key):.1e}" for key in ("optimal", "best_constant", "random"))]
        )
    print(markdown(["N = 100", "optimal", "relative difference", "of the best constant", "of random"], lines))
    if not worst < 1e-6:
        raise SystemExit(f"The largest relative difference is {worst:.1e}.")


def main() -> None:
    parser = arguments(__doc__, "variants", seeds=3)
    parser.add_argument(
        "--check", action="store_true", help="compare the solver with known optimal returns; nothing is trained"
    )
    parser.add_argument("--tasks", nargs="+", choices=NINE, default=NINE)
    parser.add_argument("--variants", type=int, default=2, help="number of variants of each task, 2 by default")
    parser.add_argument(
        "--draw", type=int, default=0, help="seed of the variants; 0 are those reported, 1 those for choosing settings"
    )
    parser.add_argument("--methods", nargs="+", choices=sorted({*MODELS, *METHODS}), default=list(METHODS))
    parser.add_argument("--steps", nargs="+", type=int, default=[5000], help="environment steps, the warm-up's included")
    options = parser.parse_args()
    if options.check:
        return check()
    if options.quick:
        options.tasks, options.variants, options.methods, options.steps, options.seeds = (
            ["Harvest"],
            1,
            ["Markov", "simulator"],
            [2500],
            1,
        )
    study = Study(options, "variants")
    tasks = {f"{name} {i + 1}": draw(name, i, options.draw) for i in range(options.variants) for name in options.tasks}
    name = lambda label: f"{label}, draw {options.draw}"
    references = {label: (name(label), parameters(task), functools.partial(solve, task)) for label, task in tasks.items()}
    published = read(RESULTS / "variants.jsonl.gz") if options.from_raw else {}
    solved = study.collect({label: c for label, c in references.items() if c[0] in published or not options.from_raw})
    cells = {}
    for steps in options.steps:
        for method in options.methods:
            for label in solved:
                config = {**parameters(tasks[label]), "method": method, "steps": steps, "seeds": options.seeds}
                run = functools.partial(cell, tasks[label], method, steps, options.seeds)
                cells[label, method, steps] = f"{name(label)}, {method}, {steps} steps", config, run
    if options.from_raw:  # The published values may be part of the grid.
        cells = {key: (c[0], published[c[0]]["config"], c[2]) for key, c in cells.items() if c[0] in published}
    rows = study.collect(cells, functools.partial(figure, solved, options.steps))
    rows |= with_smaller_error(rows)
    methods = [method for method in (*options.methods, CHOSEN) if any(method == ran for _, ran, _ in rows)]
    study.write("\n".join(table(solved, rows, steps, methods) for steps in options.steps))


if __name__ == "__main__":
    main()
