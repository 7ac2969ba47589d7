"""When do actions world models give better policy gradients? A map over tasks, horizons and models.

    python examples/when.py                 COST
    python examples/when.py --quick         two points, two methods, one seed: about 2 minutes
    python examples/myriad.py --episodes 50 --seeds 3 --horizons 50 100 200 500 \\
        --tasks CancerTreatment HIVTreatment MouldFungicide --methods "AWM transformer" "HWM LSTM" Markov

Every point is a task at a horizon, from contracting to chaotic; noisy, with distracting states, and seen in part. At each, a
policy is learned from 50 episodes through five dynamics, by the hyper-parameters in methods.py. Two things are
measured of a point: how much the simulator's ds_t/da_0 grows from the first step to the last, in decades, states in units of
their standard deviations (median over 16 random plans, float64); and of a model its open-loop error on the policy's own last
episodes, before it was fitted to them. The figure has the advantage of the AWM transformer over every other method against
both: the difference of true returns as a share of what there is to gain, (best median of all methods - mean of random plans).

Runs of Myriad tasks are myriad.py's and in its folder, where each of the two finds what the other did; the third command
reads from there how scores of three tasks change with the horizon.

EXPECT
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import myriad
import numpy as np
from jaxtyping import PRNGKeyArray
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from methods import record, train
from scipy.stats import spearmanr
from study import arguments, Study

from awmkit import AbstractTask, steady_actions, unroll
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


class Partial(AbstractTask):
    """A task of which only the entries before `shown` are seen; those hidden begin as `task.reset` says, alike each time."""

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
    """Decades by which |ds_t/da_0| grows from the first step that it reaches to the last one, median over 16 plans."""
    with jax.enable_x64(True):

        def norms(key: PRNGKeyArray):
            start_key, plan_key, noise_key = jax.random.split(key, 3)
            plan = steady_actions(plan_key, (task.horizon, task.action_size)).astype(float)
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
    """The mean true return of random plans."""

    def episode(key):
        start_key, plan_key, noise_key = jax.random.split(key, 3)
        plan = steady_actions(plan_key, (task.horizon, task.action_size))
        return unroll(task, plan, task.reset(start_key), task.horizon, reward=task.reward, key=noise_key).value()

    return float(jnp.mean(jax.jit(jax.vmap(episode))(jax.random.split(jax.random.key(2), PLANS))))


def cell(name: str, task: AbstractTask, method: str, episodes: int, seeds: int) -> dict[str, Any]:
    """All seeds of a method at a point."""
    if isinstance(task, Discretised) and name in myriad.TASKS:
        return myriad.cell(task, method, episodes, seeds)
    keys = jax.random.split(jax.random.key(0), seeds)
    run = record(train(task, method, episodes, keys, starts=16, evaluations=16))
    return {**run, "returns": [curve[-1] for curve in run["curve"]]}


def model_error(run: dict[str, Any]) -> float:
    """Of the last episodes, median over seeds."""
    return float(np.median([curve[-1] for curve in run["metrics"]["model_error"]]))


def advantages(point: dict[str, Any]) -> dict[str, np.ndarray]:
    """Of the first method, the AWM transformer, over every other, each pair of seeds, as a share of what there is to gain."""
    returns = {method: np.asarray(run["returns"]) for method, run in point["runs"].items()}
    gain = max(np.median(r) for r in returns.values()) - point["random"]
    first, *others = returns
    return {m: ((returns[first][:, None] - returns[m][None]) / gain).ravel() for m in others}


def table(points: dict[str, dict[str, Any]]) -> str:
    """A row a point: growth, median true returns, the AWM transformer's model error, and the best method."""
    methods = list(next(iter(points.values()))["runs"])
    lines = [f"| point | decades | {' | '.join(methods)} | error of {methods[0]} | best |", "|---" * (len(methods) + 4) + "|"]
    for name, point in sorted(points.items(), key=lambda item: item[1]["growth"]):
        medians = {m: float(np.median(run["returns"])) for m, run in point["runs"].items()}
        error = model_error(point["runs"][methods[0]])
        cells = " | ".join(f"{medians[m]:.4g}" for m in methods)
        best = max(medians, key=lambda m: medians[m])
        lines.append(f"| {name} | {point['growth']:.1f} | {cells} | {error:.2g} | {best} |")
    return "\n".join(lines)


def correlations(points: dict[str, dict[str, Any]]) -> str:
    """What predicts the advantage: Spearman's rank correlations over points."""
    lines, (first, *others) = [], next(iter(points.values()))["runs"]
    for method in others:
        advantage = [np.median(advantages(point)[method]) for point in points.values()]
        error = [model_error(point["runs"][first]) for point in points.values()]
        growths = [point["growth"] for point in points.values()]
        if len(points) > 3:
            (with_growth, p), (with_error, q) = (spearmanr(x, advantage) for x in (growths, error))
            text = f"with growth {with_growth:+.2f} (p = {p:.2f}), with its model error {with_error:+.2f} (p = {q:.2f})"
        else:
            text = "too few points to correlate"
        wins = sum(a > 0 for a in advantage)
        lines.append(f"{first} over {method}: ahead at {wins} of {len(points)} points; {text}")
    return "\n".join(lines)


def figure(points: dict[str, dict[str, Any]]) -> Figure:
    """The advantage over each method against growth and against model error, quartiles over pairs of seeds."""
    first, *others = next(iter(points.values()))["runs"]
    fig, axes = plt.subplots(2, len(others), figsize=(3.4 * len(others), 6), layout="constrained", squeeze=False, sharey=True)
    for column, method in enumerate(others):
        for i, (name, point) in enumerate(points.items()):
            low, middle, high = np.quantile(np.clip(advantages(point)[method], -1, 1), [0.25, 0.5, 0.75])
            error = model_error(point["runs"][first])
            for axis, x in zip(axes[:, column], (point["growth"], error), strict=True):
                axis.errorbar(x, middle, [[middle - low], [high - middle]], fmt="o", ms=4, color=f"C{i % 10}", lw=1)
                axis.annotate(name, (x, middle), fontsize=5, xytext=(3, 3), textcoords="offset points")
        axes[0, column].set(title=f"over {method}", xlabel="growth of the simulator's ds/da, decades")
        axes[1, column].set(xlabel="model's open-loop error, variances", xscale="log")
        axes[1, column].xaxis.set_major_locator(LogLocator(numticks=5))
        axes[1, column].xaxis.set_minor_formatter(NullFormatter())
        for axis in axes[:, column]:
            axis.axhline(0, color="k", lw=0.5)
            axis.set_ylim(-1.05, 1.05)
    for axis in axes[:, 0]:
        axis.set_ylabel(f"advantage of the {first}")
    return fig


def main() -> None:
    parser = arguments(__doc__, "myriad", seeds=3)
    parser.add_argument("--points", nargs="+", choices=POINTS, default=list(POINTS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--episodes", type=int, default=50, help="lived in all, warm-up included")
    options = parser.parse_args()
    if len(options.methods) < 2:
        parser.error("a map compares; give at least two --methods, the first of which is compared with the others.")
    grid = [(name, horizon) for name in options.points for horizon in POINTS[name][1]]
    if options.quick:
        grid, options.methods = [("CancerTreatment", 50), ("driven double pendulum", 10)], ["AWM LSTM", "Markov"]
        options.seeds, options.episodes = 1, 25
    study = Study(options.out, total=len(grid) * len(options.methods))
    points: dict[str, dict[str, Any]] = {}
    for name, horizon in grid:
        task = POINTS[name][0](horizon)
        point: dict[str, Any] = {"growth": growth(task), "random": random_return(task), "runs": {}}
        for method in options.methods:
            config = {"task": name, "method": method, "horizon": horizon, "episodes": options.episodes, "seeds": options.seeds}
            point["runs"][method] = study.run(
                f"{name}-{method}-N{horizon}-E{options.episodes}",
                config,
                lambda n=name, t=task, m=method: cell(n, t, m, options.episodes, options.seeds),
            )
        points[f"{name}, H = {horizon}"] = point
    text = f"{table(points)}\n\n{correlations(points)}\n"
    (study.out / "when.md").write_text(text)
    print("\n" + text)
    figure(points).savefig(study.out / "when.png", dpi=110)


if __name__ == "__main__":
    main()
