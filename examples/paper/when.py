"""When do actions world models give better policy gradients? A map over tasks, horizons and models.

    python examples/paper/when.py               34 points, five methods: 5 hours on one core
    python examples/paper/when.py --quick       two points, two methods, one seed: 2 minutes
    python examples/paper/when.py --from-raw    the table and the figure again, from the published values

A point is a task and a horizon. The tasks range from contracting to chaotic; some are noisy, have distracting states, or show
only part of their state. At each point a policy is trained on 50 episodes with five methods (methods.py). The advantage of the
AWM transformer over another method is the difference of their true returns divided by (best median of all methods - mean of
random plans). The figure shows it against

- the growth of the simulator's ds_t/da_0 from the first step to the last, in decades, with states in units of their standard
  deviations (median over 16 random plans, float64);
- the transformer's open-loop error on the policy's last episodes, before it was fitted to them;
- the norm of the policy gradient during training, before clipping: the other method's divided by the transformer's.

The raw values are in myriad.jsonl.gz, which myriad.py shares.

The answer: AWM transformers give better policy gradients than models that feed predictions back if the gradients of those
models are several times larger than theirs (chaos, a wall, delay, hidden state). Otherwise they give no better ones, and on the
driven pendulum at 50 and 200 steps they give worse ones. They beat the simulator's gradient only where it explodes. The ratio
of gradients predicts the advantage better than the system's growth or the model's error.

Expected at the 34 points, counting advantages above 0.02: over Markov ahead at 12 and behind at 4; where Markov's gradient is
more than 3 times larger, ahead at 9 of 11 and behind at 2 (the driven pendulum), elsewhere ahead at 3 of 23 and behind at 2.
Rank correlation with the ratio +0.61 (p = 0.0002), with growth +0.30 (0.09), with the error +0.24 (0.18). Over the HWM LSTM
ahead at 7 and behind at 5; +0.44 (0.01), +0.32 (0.07), +0.14 (0.44). Over the AWM LSTM 13 and 2. Over the simulator 1 (passive
pendulum, 100 steps) and 8. Caveats: the ratio was added after two thirds of the points had been seen, and no p is corrected for
twelve tests. Growth is measured along random plans, which do not swing the driven pendulum up to where it is chaotic.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import myriad
import numpy as np
from jaxtyping import PRNGKeyArray
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from methods import learn, record
from scipy.stats import spearmanr
from study import arguments, markdown, Study

from awmkit import AbstractTask, held_actions, unroll
from awmkit.scores import TELLING
from awmkit.tasks import (
    CancerTreatment,
    CreditAssignment,
    Discretised,
    DrivenDoublePendulum,
    HIVTreatment,
    OneBounce,
    PassiveDoublePendulum,
)

METHODS = ("AWM transformer", "AWM LSTM", "HWM LSTM", "Markov", "simulator")
PLANS = 64
CLEAR = 0.02  # a clear advantage: more than the spread of seeds at easy points
LARGER = 3.0  # ratio of gradients that divides the points into two groups
LARGEST = 1e6  # the figure clips ratios of gradients to [1 / LARGEST, LARGEST]


class Partial(AbstractTask):
    """A task that shows only the first `shown` entries of its state. The hidden entries start in the same state each time."""

    task: AbstractTask
    shown: int
    horizon: int
    state_size: int
    action_size: int

    def __init__(self, task: AbstractTask, shown: int):
        self.task, self.shown, self.horizon = task, shown, task.horizon
        self.state_size, self.action_size = shown, task.action_size

    def init(self, state, horizon):
        whole = self._whole(state)
        return self.task.init(whole, horizon), whole

    def step(self, carry, state, action, t, *, key=None):
        memory, whole = carry
        memory, whole = self.task.step(memory, whole, action, t, key=key)
        return (memory, whole), whole[: self.shown]

    def reward(self, state, action, t):
        return self.task.reward(self._whole(state), action, t)

    def reset(self, key):
        return self.task.reset(key)[: self.shown]

    def _whole(self, state):
        return jnp.concatenate([state, self.task.reset(jax.random.key(0))[self.shown :]])


HORIZONS = {
    "CancerTreatment": [50, 100, 200, 500],
    "HIVTreatment": [20, 50, 100, 200, 500],
    "MouldFungicide": [50, 100, 200, 500],
}
POINTS: dict[str, tuple[Callable[[int], AbstractTask], list[int]]] = {
    **{
        name: (lambda n, name=name: Discretised(myriad.TASKS[name](), n), HORIZONS.get(name, [100]))
        for name in (problem.__name__ for problem in TELLING)
    },
    "cancer, noise": (lambda n: Discretised(CancerTreatment(), n, noise=0.02), [100]),
    "cancer, 4 distractors": (lambda n: Discretised(CancerTreatment(), n, distractors=4), [100]),
    "HIV, seen in part": (lambda n: Partial(Discretised(HIVTreatment(), n), 1), [100]),
    "one bounce": (lambda n: OneBounce(n), [20, 100]),
    "credit assignment": (lambda n: CreditAssignment(n), [20, 50]),
    "credit assignment, hidden": (lambda n: CreditAssignment(n, hidden=True), [20]),
    "passive double pendulum": (lambda n: PassiveDoublePendulum(n), [20, 50, 100]),
    "driven double pendulum": (lambda n: DrivenDoublePendulum(n), [10, 50, 100, 200]),
}


def growth(task: AbstractTask) -> float:
    """Return the decades by which |ds_t/da_0| grows from the first step where it is not 0 to the last; median over 16 plans."""
    with jax.enable_x64(True):

        def norms(key: PRNGKeyArray):
            start_key, plan_key, noise_key = jax.random.split(key, 3)
            plan = held_actions(plan_key, (task.horizon, task.action_size)).astype(float)
            states = lambda first: unroll(
                task, plan.at[0].set(first), task.reset(start_key).astype(float), task.horizon, key=noise_key
            ).states[1:]
            return states(plan[0]), jax.jacfwd(states)(plan[0])

        states, jacobians = jax.jit(jax.vmap(norms))(jax.random.split(jax.random.key(1), 16))
        spread = jnp.std(states, axis=(0, 1))
        scale = jnp.where(spread > 1e-9, spread, 1)
        sizes = np.asarray(jnp.linalg.norm(jacobians / scale[:, None], axis=(-2, -1)))
    first = np.array([size[np.flatnonzero(size > 0)[0]] if (size > 0).any() else 1.0 for size in sizes])
    return float(np.median(np.log10(np.maximum(sizes[:, -1], 1e-12) / first)))


def random_return(task: AbstractTask) -> float:
    """Return the mean true return of random plans."""

    def episode(key):
        start_key, plan_key, noise_key = jax.random.split(key, 3)
        plan = held_actions(plan_key, (task.horizon, task.action_size))
        return unroll(task, plan, task.reset(start_key), task.horizon, reward=task.reward, key=noise_key).returns()

    return float(jnp.mean(jax.jit(jax.vmap(episode))(jax.random.split(jax.random.key(2), PLANS))))


def plans_cell(task: AbstractTask) -> dict[str, float]:
    """Measure a point with random plans."""
    return {"growth": growth(task), "random": random_return(task)}


def cell(task: AbstractTask, method: str, episodes: int, seeds: int) -> dict[str, Any]:
    """Train all seeds of a method at a point that is no problem of Myriad."""
    keys = jax.random.split(jax.random.key(0), seeds)
    run = record(learn(task, method, episodes, keys, starts=16, evaluations=16))
    return {**run, "returns": [curve[-1] for curve in run["curve"]]}


def model_error(run: dict[str, Any]) -> float:
    """Return the error in the last episodes, median over seeds."""
    return float(np.median([curve[-1] for curve in run["metrics"]["model_error"]]))


def gradient_norm(run: dict[str, Any]) -> float:
    """Return the median over epochs and seeds of the gradient's norm before clipping; infinite ones count as the largest float."""
    norms, skipped = (np.asarray(run["metrics"][name]) for name in ("gradient_norm", "skipped"))
    return float(np.median(np.where((norms == 0) & (skipped > 0), np.finfo(np.float32).max, norms)))


def predictors(point: dict[str, Any], method: str) -> dict[str, float]:
    """Return the quantities that may predict whether the first method is ahead of `method`."""
    first = next(iter(point["runs"].values()))
    return {
        "growth": point["growth"],
        "its model error": model_error(first),
        "ratio of gradients": gradient_norm(point["runs"][method]) / gradient_norm(first),
    }


def advantages(point: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return the first method's advantage over each other one, for every pair of seeds."""
    returns = {method: np.asarray(run["returns"]) for method, run in point["runs"].items()}
    gain = max(np.median(r) for r in returns.values()) - point["random"]
    first, *others = returns
    return {m: ((returns[first][:, None] - returns[m][None]) / gain).ravel() for m in others}


def by_growth(points: dict[str, dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Sort the points from contracting to chaotic."""
    return sorted(points.items(), key=lambda item: item[1]["growth"])


def table(points: dict[str, dict[str, Any]]) -> str:
    """Return a row per point: growth, median true returns, the first method's model error, and the best method."""
    methods = list(next(iter(points.values()))["runs"])
    rows = []
    for name, point in by_growth(points):
        medians = {m: float(np.median(run["returns"])) for m, run in point["runs"].items()}
        error = model_error(point["runs"][methods[0]])
        best = max(medians, key=lambda m: medians[m])
        rows.append([name, f"{point['growth']:.1f}", *(f"{medians[m]:.5g}" for m in methods), f"{error:.2g}", best])
    return markdown(["point", "decades", *methods, f"error of {methods[0]}", "best"], rows)


def correlations(points: dict[str, dict[str, Any]]) -> str:
    """Say where the first method is ahead of each other one, with rank correlations (Spearman) of the predictors."""
    lines, (first, *others) = [], next(iter(points.values()))["runs"]
    for method in others:
        advantage = np.array([np.median(advantages(point)[method]) for point in points.values()])
        known = [predictors(point, method) for point in points.values()]
        larger = np.array([each["ratio of gradients"] for each in known]) > LARGER
        counts = [
            f"{(advantage[where] > CLEAR).sum()} of {where.sum()} points {which}, behind at {(advantage[where] < -CLEAR).sum()}"
            for where, which in (
                (larger, f"where the other's gradient is over {LARGER:g} times larger"),
                (~larger, "elsewhere"),
            )
        ]
        lines.append(f"{first} over {method}: ahead by {CLEAR} at {', at '.join(counts)}")
        if len(points) > 3:
            ranks = {name: spearmanr([each[name] for each in known], advantage) for name in known[0]}
            lines.append("  rank correlation with " + ", ".join(f"{n} {r:+.2f} (p = {p:.2g})" for n, (r, p) in ranks.items()))
    return "\n".join(lines)


def figure(points: dict[str, dict[str, Any]]) -> Figure:
    """Draw the advantage over each method against each predictor: quartiles over pairs of seeds. Points are numbered by growth."""
    first, *others = next(iter(points.values()))["runs"]
    labels = {
        "growth": "growth of the simulator's $ds_t/da_0$, decades",
        "its model error": f"error of the {first}, variances",
        "ratio of gradients": f"gradient norm over the {first}'s",
    }
    size = (3.4 * len(others) + 2, 9)
    fig, axes = plt.subplots(3, len(others), figsize=size, squeeze=False, sharey=True)
    for column, method in enumerate(others):
        for i, (name, point) in enumerate(by_growth(points)):
            low, middle, high = np.quantile(np.clip(advantages(point)[method], -1, 1), [0.25, 0.5, 0.75])
            known = predictors(point, method)
            known["ratio of gradients"] = np.clip(known["ratio of gradients"], 1 / LARGEST, LARGEST)
            label = f"{i + 1}  {name}" if column == 0 else None
            for axis, x in zip(axes[:, column], known.values(), strict=True):
                bars = [[middle - low], [high - middle]]
                axis.errorbar(x, middle, bars, fmt="o", ms=3, color=f"C{i % 10}", lw=0.6, alpha=0.7, label=label)
                axis.annotate(str(i + 1), (x, middle), fontsize=6, xytext=(2, 2), textcoords="offset points")
        axes[0, column].set(title=f"Over {method}")
        for axis, text in zip(axes[:, column], labels.values(), strict=True):
            axis.set_yscale("symlog", linthresh=CLEAR)
            axis.set_ylim(-1.3, 1.3)
            axis.tick_params(labelsize=8)
            axis.set_xlabel(text, fontsize=8)
            axis.axhspan(-CLEAR, CLEAR, color="0.93")
        for axis in axes[1:, column]:
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(numticks=5))
            axis.xaxis.set_minor_formatter(NullFormatter())
    for axis in axes[:, 0]:
        axis.set_ylabel(f"advantage of the {first}", fontsize=8)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), fontsize=7, loc="outside right center")
    return fig


def main() -> None:
    parser = arguments(__doc__, "myriad", seeds=3)
    parser.add_argument("--points", nargs="+", choices=POINTS, default=list(POINTS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--episodes", type=int, default=50, help="number of episodes, warm-up included")
    options = parser.parse_args()
    if len(options.methods) < 2:
        parser.error("--methods needs at least two: the first is compared with the others")
    grid = [(name, horizon) for name in options.points for horizon in POINTS[name][1]]
    if options.quick:
        grid, options.methods = [("CancerTreatment", 50), ("driven double pendulum", 10)], ["AWM LSTM", "Markov"]
        options.seeds, options.episodes = 1, 25
    cells: dict[Any, Any] = {}
    for name, horizon in grid:
        task, at = POINTS[name][0](horizon), {"task": name, "horizon": horizon}
        cells[name, horizon, "plans"] = f"{name}-plans-N{horizon}", at | {"plans": PLANS}, partial(plans_cell, task)
        for method in options.methods:
            config = at | {"method": method, "episodes": options.episodes, "seeds": options.seeds}
            of_myriad = isinstance(task, Discretised) and name in myriad.TASKS  # myriad.py has the same cells.
            run = partial(myriad.cell if of_myriad else cell, task, method, options.episodes, options.seeds)
            cells[name, horizon, method] = f"{name}-{method}-N{horizon}-E{options.episodes}", config, run
    study = Study(options, "myriad", title="when")
    rows = study.collect(cells)
    points = {}
    for name, horizon in grid:
        plans, runs = rows[name, horizon, "plans"], {m: rows[name, horizon, m] for m in options.methods}
        points[f"{name}, H = {horizon}"] = {"growth": plans["growth"], "random": plans["random"], "runs": runs}
    study.save(figure(points))
    study.write(f"{table(points)}\n\n{correlations(points)}")


if __name__ == "__main__":
    main()
