"""When do actions world models give better policy gradients? A map over tasks, horizons and models.

    python examples/when.py                 34 points, five methods: 5 hours of one core
    python examples/when.py --quick         two points, two methods, one seed: about 2 minutes
    python examples/myriad.py --episodes 50 --seeds 3 --horizons 50 100 200 500 \\
        --tasks CancerTreatment HIVTreatment MouldFungicide --methods "AWM transformer" "AWM LSTM" "HWM LSTM" Markov simulator

Every point is a task at a horizon, from contracting to chaotic; noisy, with distracting states, and seen in part. At each, a
policy is learned from 50 episodes through five dynamics, by the hyper-parameters in methods.py. The advantage of the AWM
transformer over every other method is the difference of true returns as a share of what there is to gain, (best median of all
methods - mean of random plans). The figure has it against three things:

- how much the simulator's ds_t/da_0 grows from the first step to the last, in decades, states in units of their standard
  deviations (median over 16 random plans, float64);
- the transformer's open-loop error on the policy's own last episodes, before it was fitted to them;
- the norm of the policy's gradient while it learned, before clipping, the other method's over the transformer's.

Runs of Myriad tasks are myriad.py's and in its folder, where each of the two finds what the other did; the third command
reads from there how scores of three tasks change with the horizon.

The answer: AWM transformers give better policy gradients than models that feed their predictions back where those models'
gradients are several times larger than theirs (chaos, a wall, delay, hidden state), no better ones where they are
not, worse ones on the driven pendulum at 50 and 200 steps, and better ones than the simulator only where its own explode; of
what was measured the ratio of gradients predicts it best, better than the system's growth or the model's error.

Expect of 34 points, ahead of Markov by more than 0.02 at 12 and behind at 4: where Markov's gradient is more than 3 times the
transformer's, ahead at 9 of 11 and behind at 2 (the driven pendulum), elsewhere ahead at 3 of 23 and behind at 2. Rank
correlations with the ratio +0.61 (p = 0.0002), growth +0.30 (0.09), the error +0.24 (0.18). Of the HWM LSTM, ahead at 7 and
behind at 5; +0.44 (0.01), +0.32 (0.07), +0.14 (0.44). Of the AWM LSTM, 13 and 2; of the simulator, 1 (the passive pendulum at
100 steps) and 8. The ratio was added when two thirds of the points were seen, and no p is corrected for there being twelve.
Growth is that along random plans, which do not swing the driven pendulum up; learned policies go where it is chaotic.
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
from methods import learn, record
from scipy.stats import spearmanr
from study import arguments, Study

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
CLEAR = 0.02  # of an advantage that is more than the spread of seeds on easy points
LARGER = 3.0  # of a ratio of gradients that sets the points apart
LARGEST = 1e6  # of a ratio of gradients in the figure, or its inverse; also where one is not finite


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
    """The mean true return of random plans."""

    def episode(key):
        start_key, plan_key, noise_key = jax.random.split(key, 3)
        plan = held_actions(plan_key, (task.horizon, task.action_size))
        return unroll(task, plan, task.reset(start_key), task.horizon, reward=task.reward, key=noise_key).returns()

    return float(jnp.mean(jax.jit(jax.vmap(episode))(jax.random.split(jax.random.key(2), PLANS))))


def cell(name: str, task: AbstractTask, method: str, episodes: int, seeds: int) -> dict[str, Any]:
    """All seeds of a method at a point."""
    if isinstance(task, Discretised) and name in myriad.TASKS:
        return myriad.cell(task, method, episodes, seeds)
    keys = jax.random.split(jax.random.key(0), seeds)
    run = record(learn(task, method, episodes, keys, starts=16, evaluations=16))
    return {**run, "returns": [curve[-1] for curve in run["curve"]]}


def model_error(run: dict[str, Any]) -> float:
    """Of the last episodes, median over seeds."""
    return float(np.median([curve[-1] for curve in run["metrics"]["model_error"]]))


def gradient_norm(run: dict[str, Any]) -> float:
    """Of the policy's updates, before clipping: median over epochs and seeds, each the largest number if none was finite."""
    norms, skipped = (np.asarray(run["metrics"][name]) for name in ("gradient_norm", "skipped"))
    return float(np.median(np.where((norms == 0) & (skipped > 0), np.finfo(np.float32).max, norms)))


def predictors(point: dict[str, Any], method: str) -> dict[str, float]:
    """What might say beforehand, or while learning, whether the first method will be ahead of `method`."""
    first = next(iter(point["runs"].values()))
    return {
        "growth": point["growth"],
        "its model error": model_error(first),
        "ratio of gradients": gradient_norm(point["runs"][method]) / gradient_norm(first),
    }


def advantages(point: dict[str, Any]) -> dict[str, np.ndarray]:
    """Of the first method, the AWM transformer, over every other, each pair of seeds, as a share of what there is to gain."""
    returns = {method: np.asarray(run["returns"]) for method, run in point["runs"].items()}
    gain = max(np.median(r) for r in returns.values()) - point["random"]
    first, *others = returns
    return {m: ((returns[first][:, None] - returns[m][None]) / gain).ravel() for m in others}


def by_growth(points: dict[str, dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """From contracting to chaotic."""
    return sorted(points.items(), key=lambda item: item[1]["growth"])


def table(points: dict[str, dict[str, Any]]) -> str:
    """A row a point: growth, median true returns, the AWM transformer's model error, and the best method."""
    methods = list(next(iter(points.values()))["runs"])
    lines = [f"| point | decades | {' | '.join(methods)} | error of {methods[0]} | best |", "|---" * (len(methods) + 4) + "|"]
    for name, point in by_growth(points):
        medians = {m: float(np.median(run["returns"])) for m, run in point["runs"].items()}
        error = model_error(point["runs"][methods[0]])
        cells = " | ".join(f"{medians[m]:.5g}" for m in methods)
        best = max(medians, key=lambda m: medians[m])
        lines.append(f"| {name} | {point['growth']:.1f} | {cells} | {error:.2g} | {best} |")
    return "\n".join(lines)


def correlations(points: dict[str, dict[str, Any]]) -> str:
    """Where the first method is ahead of every other, and what predicts it: Spearman's rank correlations over points."""
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
    """The advantage over each method against each predictor, quartiles over pairs of seeds; points are numbered by growth."""
    first, *others = next(iter(points.values()))["runs"]
    labels = {
        "growth": "growth of the simulator's $ds_t/da_0$, decades",
        "its model error": f"error of the {first}, variances",
        "ratio of gradients": f"gradient norm over the {first}'s",
    }
    size = (3.4 * len(others) + 2, 9)
    fig, axes = plt.subplots(3, len(others), figsize=size, layout="constrained", squeeze=False, sharey=True)
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
        axes[0, column].set(title=f"over {method}")
        for axis, text in zip(axes[:, column], labels.values(), strict=True):
            axis.set_yscale("symlog", linthresh=CLEAR)
            axis.set_ylim(-1.3, 1.3)
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
