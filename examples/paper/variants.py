"""Do settings that were chosen on some tasks carry over to others?

    python examples/paper/variants.py                                  18 variants, 6 methods, 5,000 steps: some 6 hours on one core
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

"AWM transformer" and "Markov" are those of myriad.py. They have the mean of each step (`per_step`), and Markov the time. The others
have neither, so that what they learn of one step holds for all: "AWM transformer, anchored" begins again at its own prediction
every 10 steps (`awmkit.Anchored`), and "Markov, time-free" reads the state and the action only. Both fail where the state changes much
with time and little with the actions. The columns "by the rule" have "AWM transformer" and "Markov" there, and the other two
elsewhere. The rule looks at the standard deviation of each entry of the state under random actions: if that about the mean at each
step is less than 5 % of that over all steps (`moved_by_actions`), actions move the state little. It needs no return of the task, and
is true for glucose only.

`--reported` runs the nine tasks of myriad.py too, on which none of these settings was chosen.

Seconds per cell on one core, compilation included: 5,000 steps and two seeds, either transformer 130 to 350, which grows with the steps
of an episode, Markov 40 to 150, simulator 25; five seeds, transformer 340 to 510, Markov 90 to 170; 20,000 steps and five seeds,
transformer 450 to 820. The optimal returns of a variant take 2 to 15. The published values are a part of the grid: the cells in the table.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from methods import learn, MODELS, record
from myriad import exact_returns, NINE, TASKS
from optimal import random_returns, solve
from study import arguments, markdown, read, RESULTS, Row, Study

from awmkit import pink_actions, unroll
from awmkit.plot import COLOURS
from awmkit.scores import iqm, reference
from awmkit.tasks import Discretised

METHODS = (
    "AWM transformer, anchored",
    "AWM transformer",
    "Markov, time-free",
    "Markov",
    "simulator",
    "AWM GRU",
)
SPREAD = 0.4  # largest relative change of a parameter and of an entry of the start
CONDITIONED = 0.02  # smallest gap between the best constant action and the optimum, in units of the range, that is a scale
# Of two methods, the first if actions move every entry of the state by more than SMALL, in the measure of `moved_by_actions`.
RULES = {
    "AWM transformer, by the rule": ("AWM transformer, anchored", "AWM transformer"),
    "Markov, by the rule": ("Markov, time-free", "Markov"),
}
SMALL = 0.05  # On the variants of draw 1 the measure is at most 0.001 for glucose, and at least 0.32 for the other tasks.


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
    return {**record(result), "returns": exact_returns(task, result.policy), "moved_by_actions": moved_by_actions(task)}


def moved_by_actions(task: Discretised) -> float:
    """Return how much of the states' spread is about their mean at each step, under 1,500 steps of pink actions.

    It is the smallest ratio of two standard deviations of an entry of the state: about its mean at each step, and over all steps.
    """
    shape = task.horizon, task.action_size
    plans = jax.vmap(lambda key: pink_actions(key, shape))(jax.random.split(jax.random.key(0), -(-1500 // task.horizon)))
    run = jax.jit(jax.vmap(lambda plan: unroll(task, plan, task.reset(jax.random.key(0)), task.horizon).states))
    states = np.asarray(run(plans), np.float64)
    about_mean = np.sqrt(np.mean((states - states.mean(0)) ** 2, (0, 1)))
    overall = states.std((0, 1))
    return float(np.min(about_mean[overall > 0] / overall[overall > 0]))


def gap_of(solved: Row) -> float:
    """Return the gap between the best constant action and the optimum, in units of the range from random to optimal."""
    return (solved["optimal"] - solved["best_constant"]) / (solved["optimal"] - solved["random"])


def regret(solved: Row, returns) -> np.ndarray:
    """Return by how much returns miss the optimum, in units of the range from random to optimal."""
    return (solved["optimal"] - np.asarray(returns, float)) / (solved["optimal"] - solved["random"])


def gap_closed(solved: Row, returns) -> np.ndarray:
    """Return the share of the gap between the best constant action and the optimum that is closed."""
    return 1 - regret(solved, returns) / gap_of(solved)


def by_the_rule(rows: dict[Any, Row]) -> dict[Any, Row]:
    """Return the rows of the methods in `RULES`, where the one that it chooses has run. The rule knows no return of the task."""
    moved = {label: row["moved_by_actions"] for (label, _, _), row in rows.items() if "moved_by_actions" in row}
    chosen = {}
    for (label, method, steps), row in rows.items():
        for rule, (first, second) in RULES.items():
            if label in moved and method == (first if moved[label] > SMALL else second):
                chosen[label, rule, steps] = row
    return chosen


def table(solved: dict[str, Row], rows: dict[Any, Row], steps: int, methods: list[str]) -> str:
    """Return the gap closed and the regret of each task, median (lowest..highest), and their means."""

    def lines_of(measure, told, spec: str):
        lines = []
        for label, known in solved.items():
            x = [measure(known, rows[label, m, steps]["returns"]) if (label, m, steps) in rows else None for m in methods]
            cells = ["" if y is None else f"{np.median(y):{spec}} ({np.min(y):{spec}}..{np.max(y):{spec}})" for y in x]
            lines.append(
                [
                    label,
                    str(known["config"]["horizon"]),
                    f"{100 * gap_of(known):.2g} %",
                    *(cells if told(known) else ["-"] * len(x)),
                ]
            )
        return lines

    conditioned = lambda known: gap_of(known) >= CONDITIONED
    lines = lines_of(gap_closed, conditioned, ".3f")
    scores = {m: [(label, rows[label, m, steps]) for label in solved if (label, m, steps) in rows] for m in methods}
    telling = {m: [gap_closed(solved[n], r["returns"]) for n, r in c if conditioned(solved[n])] for m, c in scores.items()}
    # A variant with few seeds counts as much as one with many.
    each = math.lcm(*(x.size for cells in telling.values() for x in cells))
    equal = lambda cells: np.concatenate([np.repeat(x, each // x.size) for x in cells])
    of_all = lambda summary, m: f"{summary(equal(telling[m])):.3f}" if telling[m] else ""
    lines.append(["interquartile mean", "", "", *(of_all(iqm, m) for m in methods)])
    lines.append(["lowest of all seeds", "", "", *(of_all(np.min, m) for m in methods)])
    counted = [f"{len(telling[m])} of {len(scores[m])}" for m in methods]
    lines.append(["variants in these two rows, of those run", "", "", *counted])
    counts = [sorted({len(row["returns"]) for _, row in scores[m]}) for m in methods]
    lines.append(["seeds", "", "", *(" or ".join(map(str, count)) for count in counts)])
    percent = lambda known, returns: 100 * regret(known, returns)
    return (
        f"{markdown(['gap closed', 'N', 'gap', *methods], lines)}\n\n"
        f"{markdown(['regret in %', 'N', 'gap', *methods], lines_of(percent, lambda known: True, '.2f'))}\n\n"
        "Median (lowest..highest) over seeds. Gap closed: 1 is optimal, 0 the best constant action. Regret: distance from the optimal\n"
        "return, in percent of the range from random to optimal. Gap: that of the best constant action, in the same units. Where it is\n"
        f"below {100 * CONDITIONED:.0f} %, the gap closed is not a scale, shown as - and left out of the mean and the lowest. In the mean each\n"
        "variant counts the same, whatever its number of seeds.\n"
    )


def figure(solved: dict[str, Row], steps: list[int], rows: dict[Any, Row]) -> Figure:
    """Draw the regret of every seed on every variant; the line is that of the best constant action."""
    fig, panels = plt.subplots(len(steps), 1, figsize=(13, 3.6 * len(steps)), squeeze=False)
    methods = list(dict.fromkeys(method for _, method, _ in rows))
    colours = COLOURS | {"AWM transformer, anchored": "crimson", "Markov, time-free": "teal"}
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
    parser.add_argument("--reported", action="store_true", help="the nine reported tasks with 100 steps too")
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
    reported = {name: Discretised(TASKS[name](), 100) for name in options.tasks if options.reported or options.from_raw}
    name = lambda label: f"{label}, as reported" if label in reported else f"{label}, draw {options.draw}"
    published = read(RESULTS / "variants.jsonl.gz") if options.from_raw else {}
    references = {}
    for label, task in (tasks | reported).items():
        references[label] = name(label), parameters(task), functools.partial(solve, task)
    solved = study.collect({label: c for label, c in references.items() if c[0] in published or not options.from_raw})
    if options.from_raw:  # The published values may be part of the grid.
        options.steps = sorted({row["config"]["steps"] for row in published.values() if "steps" in row["config"]})
    cells = {}
    for steps in options.steps:
        for method in options.methods:
            for label in solved:
                task = (tasks | reported)[label]
                config = {**parameters(task), "method": method, "steps": steps, "seeds": options.seeds}
                run = functools.partial(cell, task, method, steps, options.seeds)
                cells[label, method, steps] = f"{name(label)}, {method}, {steps} steps", config, run
    if options.from_raw:
        cells = {key: (c[0], published[c[0]]["config"], c[2]) for key, c in cells.items() if c[0] in published}
    rows = study.collect(cells, functools.partial(figure, solved, options.steps))
    rows |= by_the_rule(rows)
    tables = []
    for group, title in ((tasks, "Variants"), (reported, "The nine tasks as reported")):
        for steps in options.steps:
            ran = {(label, method) for label, method, n in rows if label in group and n == steps}
            methods = [method for method in (*RULES, *options.methods) if any(method == name for _, name in ran)]
            if methods:
                known = {label: row for label, row in solved.items() if any(label == name for name, _ in ran)}
                tables.append(f"{title}, {steps:,} steps\n\n{table(known, rows, steps, methods)}")
    study.write("\n".join(tables))


if __name__ == "__main__":
    main()
