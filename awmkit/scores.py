"""What a return is worth: scores of Myriad tasks against known optima, and what to say of many runs of many tasks.

Apart because it is arithmetic on the host, numbers in and numbers out: no dynamics is run and nothing is compiled here.
"""

import dataclasses
import importlib.resources
import json
from collections.abc import Callable, Mapping, Sequence

import equinox as eqx
import numpy as np
from numpy.typing import ArrayLike

from .analysis import Interval
from .tasks import AbstractControlProblem, Bioreactor, Discretised, Epidemic, MYRIAD, PredatorPrey

TELLING = tuple(problem for problem in MYRIAD if problem not in (Bioreactor, PredatorPrey, Epidemic))
"""The nine problems that count in aggregates; in the other three a constant action is as good as optimal, or nearly."""

_ORACLE = json.loads(importlib.resources.files("awmkit.tasks").joinpath("_oracle.json").read_text())
_DEFAULTS: dict[type, AbstractControlProblem] = {problem: problem() for problem in MYRIAD}  # pyright: ignore[reportCallIssue]


class Reference(eqx.Module):
    """Returns to compare with.

    - `optimal`: the greatest there is, by an independent solver: direct multiple shooting from many starts.
    - `best_constant`: of the best constant action on a grid of 0.01.
    - `random`: the mean of 200 episodes of uniformly random actions.
    """

    optimal: float
    best_constant: float
    random: float


def reference(
    task: Discretised | AbstractControlProblem | type[AbstractControlProblem], horizon: int | None = None
) -> Reference:
    """The known returns of a Myriad problem in N steps.

    ```python
    reference(CancerTreatment, 100).optimal  # -20.5253
    reference(Discretised(CancerTreatment(), 100))  # the same
    ```

    **Arguments:** `task`: a problem, its class, or a task made of it. `horizon`: N of a problem; a task has its own.

    **Returns:** an `awmkit.scores.Reference`.

    **Raises:** `ValueError` where no such numbers exist: for other tasks and horizons, changed parameters, other solvers than
    explicit Euler, distractors or noise.
    """
    task = _as_task(task, horizon)
    name, steps = _name(task.problem), str(task.horizon)
    if steps not in _ORACLE.get(name, {}):
        of_this = [f"{n} at {', '.join(found)}" for n, found in _ORACLE.items() if n.split("(")[0] == name.split("(")[0]]
        raise ValueError(
            f"There are no reference numbers for {name} at {steps} steps, but for {'; '.join(of_this)}; use these."
        )
    numbers = _ORACLE[name][steps]
    return Reference(numbers["optimal"], numbers["best_constant"], numbers["random_mean"])


def gap_closed(task: Discretised, returns: ArrayLike) -> np.ndarray:
    """(R - best constant) / (optimal - best constant): 1 is optimal, 0 no better than a constant action; may be negative.

    The score that tells good from trivial: in `BearPopulations` any harmless constant has 0.9998 of `normalised`.

    **Arguments:** `task`: see `awmkit.scores.reference`. `returns`: R, of any shape.

    **Returns:** scores of the same shape.

    **Raises:** `ValueError` as `reference` does, and for a task whose best constant is as good as optimal, or nearly.
    """
    known = reference(task)
    gap = known.optimal - known.best_constant
    if type(task.problem) not in TELLING:
        raise ValueError(
            f"{type(task.problem).__name__} has no gap to close: its best constant action is within {gap:.1g} of the optimal "
            f"return, {known.optimal:.6g}, so the quotient would tell nothing; use awmkit.scores.normalised."
        )
    return np.asarray((np.asarray(returns, float) - known.best_constant) / gap)


def normalised(task: Discretised, returns: ArrayLike) -> np.ndarray:
    """(R - random) / (optimal - random): 1 is optimal, 0 no better than random actions; the usual score.

    **Arguments**, **Returns:** as for `awmkit.scores.gap_closed`. **Raises:** `ValueError` as `reference` does.
    """
    known = reference(task)
    return np.asarray((np.asarray(returns, float) - known.random) / (known.optimal - known.random))


def iqm(scores: ArrayLike) -> float:
    """The interquartile mean over all runs of all tasks.

    The mean of what is left when the floor(n/4) least and the floor(n/4) greatest of n runs are dropped: whole runs, also where
    n/4 is not a whole number, as `rliable` and `scipy.stats.trim_mean` do. Agarwal et al. (2021), *Deep Reinforcement Learning
    at the Edge of the Statistical Precipice*.

    **Arguments:** `scores`: shape (seeds, tasks), or any other.

    **Returns:** a number.

    **Raises:** `ValueError` for no scores, or scores that are not finite, which no order would put in their place.
    """
    ordered = np.sort(_finite(scores), axis=None)
    cut = ordered.size // 4
    return float(ordered[cut : ordered.size - cut].mean())


def probability_of_improvement(x: ArrayLike, y: ArrayLike) -> float:
    """The mean over tasks of P(X > Y), a run of one method against a run of the other, ties counting half.

    The Mann-Whitney U statistic divided by the number of pairs, as in Agarwal et al. (2021). 0.5 is no difference; it says how
    often, not by how much.

    **Arguments:** `x`, `y`: scores of shape (seeds, tasks) of the same tasks; the numbers of seeds may differ.

    **Returns:** a number from 0 to 1.

    **Raises:** `ValueError` for other shapes, or scores that are not finite.
    """
    x, y = _by_task(x), _by_task(y)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"The scores are of {x.shape[1]} and {y.shape[1]} tasks; give both methods' scores of the same tasks.")
    return float(np.mean((x[:, None] > y) + 0.5 * (x[:, None] == y)))


def interval(
    statistic: Callable[..., float],
    scores: ArrayLike,
    *others: ArrayLike,
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
) -> Interval:
    """A statistic with its stratified bootstrap interval, by percentiles, as in Agarwal et al. (2021).

    Each resample draws, of every task and array by itself, as many seeds as there are, with replacement: what to expect of
    other seeds on the same tasks. It is somewhat too narrow for few seeds: with 5, on 9 tasks with normal scores, a 95 %
    interval holds the true IQM in 91 of 100 cases.

    ```python
    interval(iqm, scores)
    interval(probability_of_improvement, x, y)
    ```

    **Arguments**

    - `statistic`: called as `statistic(scores, *others)`, returns a number.
    - `scores`, `others`: arrays of shape (seeds, tasks).
    - `seed`: of the resampling. `resamples`: how many. `level`: the interval's probability.

    **Returns:** an `awmkit.analysis.Interval` of single numbers.

    **Raises:** `ValueError` for other shapes, scores that are not finite, or fewer than 2 seeds.
    """
    arrays = [_by_task(array) for array in (scores, *others)]
    if min(len(array) for array in arrays) < 2:
        raise ValueError(
            "The scores are of 1 seed, which has no spread; give at least 2, or the statistic without an interval."
        )
    rng = np.random.default_rng(seed)
    resampled = lambda array: np.take_along_axis(array, rng.integers(len(array), size=array.shape), axis=0)
    draws = [statistic(*map(resampled, arrays)) for _ in range(resamples)]
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(*map(np.asarray, (statistic(*arrays), low, high)))


def table(
    returns: Mapping[str, Mapping[str, Sequence[float | None]]], horizon: int, *, of: str | None = None, seed: int = 0
) -> str:
    """Runs of several methods on Myriad tasks as text, a Markdown table: a row for each task, a column for each method.

    A cell holds the median, least and greatest score of the seeds: the gap closed, or `normalised` of tasks that are not
    `TELLING`, marked by a star. Below are the interquartile means of the gap closed and the probability that `of` improves on
    each other method, with 95 % intervals. Runs that are not done yet, or did not end in a finite return, are counted as
    missing, and their method has no aggregates.

    ```python
    print(table({"AWM": {"Harvest": [6.39, 6.40]}, "SAC": {"Harvest": [6.1, 5.3]}}, 100))
    ```

    **Arguments**

    - `returns`: true returns, one a seed or `None`, of each problem by the name of its class, of each method by its name.
    - `horizon`: N, of all.
    - `of`: a method's name, by default the first. `seed`: of the intervals' resampling.

    **Returns:** the text.

    **Raises:** `ValueError` for names that are not known, or as `reference` does.
    """
    of = of or next(iter(returns), "no method")
    names = {name for cells in returns.values() for name in cells}
    unknown = names - {problem.__name__ for problem in MYRIAD} | {of} - returns.keys()
    if unknown or not names:
        given = ", ".join(unknown) or "no task"
        raise ValueError(
            f"The table got {given}; give returns by method and then by the class name of a problem, and `of` a method."
        )
    tasks = [problem for problem in sorted(MYRIAD, key=lambda problem: problem not in TELLING) if problem.__name__ in names]
    seeds = max(len(cell) for cells in returns.values() for cell in cells.values())
    scores = {m: {p: _finite_scores(p, horizon, cells.get(p.__name__, ())) for p in tasks} for m, cells in returns.items()}
    missing = lambda m: f"{sum(seeds - cell.size for cell in scores[m].values())} of {seeds * len(tasks)}"
    rows = [
        [f"N = {horizon}", *returns],
        *([p.__name__ + " *" * (p not in TELLING), *(_spread(scores[m][p], seeds) for m in returns)] for p in tasks),
        *_aggregates(scores, of, seeds, seed=seed),
        ["runs missing", *map(missing, returns)],
    ]
    notes = [
        f"Gap closed, median (least..greatest) over {seeds} seeds or less: 1 is optimal, 0 the best constant action.",
        "* A constant action is as good as optimal, or nearly: (R - random) / (optimal - random), not counted in IQM and P.",
        f"IQM: interquartile mean. P: the probability that a run of {of} has the higher score of the two. Both over the",
        "tasks without a star, with 95 % stratified bootstrap intervals, and only where none of their runs is missing.",
    ]
    return "\n".join([*_markdown(rows), "", *notes])


def _as_task(task, horizon: int | None) -> Discretised:
    """The task that is meant, with nothing but the problem and the horizon to tell it from others."""
    given = f"{task.__name__ if isinstance(task, type) else type(task).__name__} with horizon={horizon}"
    task = _DEFAULTS.get(task) if isinstance(task, type) else task
    if isinstance(task, AbstractControlProblem) and horizon is not None:
        task = Discretised(task, horizon)
    if not isinstance(task, Discretised) or type(task.problem) not in MYRIAD or horizon not in (None, task.horizon):
        raise ValueError(
            f"There are no reference numbers for {given}; pass a problem of awmkit.tasks.MYRIAD and its horizon, or "
            "Discretised(problem, horizon) alone."
        )
    if task != Discretised(task.problem, task.horizon):
        options = f"solver={task.solver}, substeps={task.substeps}, distractors={task.distractors}, noise={task.noise}"
        raise ValueError(f"The reference numbers are of explicit Euler and nothing random, not of {options}; leave these out.")
    return task


def _name(problem: AbstractControlProblem) -> str:
    """The class and whatever differs from its defaults, as the oracle's numbers are filed."""
    fields = {field.name: (getattr(problem, field.name), field.default) for field in dataclasses.fields(problem)}
    changed = ", ".join(f"{name}={value}" for name, (value, default) in fields.items() if value != default)
    return type(problem).__name__ + (f"({changed})" if changed else "")


def _finite(scores: ArrayLike) -> np.ndarray:
    try:
        scores = np.asarray(scores, float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"The scores are no numbers ({error}); give an array of shape (seeds, tasks).") from None
    if not scores.size or not np.isfinite(scores).all():
        given = f"{scores.size} scores, of which {np.sum(~np.isfinite(scores))} are not finite"
        raise ValueError(f"There are {given}; give at least one, and leave out or repeat runs that failed.")
    return scores


def _by_task(scores: ArrayLike) -> np.ndarray:
    scores = _finite(scores)
    if scores.ndim != 2:
        raise ValueError(f"The scores have shape {scores.shape}; give (seeds, tasks), one column for each task.")
    return scores


def _finite_scores(problem: type[AbstractControlProblem], horizon: int, returns: Sequence[float | None]) -> np.ndarray:
    scores = (gap_closed if problem in TELLING else normalised)(
        Discretised(_DEFAULTS[problem], horizon), np.asarray(returns, float)
    )
    return scores[np.isfinite(scores)]


def _aggregates(scores: Mapping[str, Mapping[type, np.ndarray]], of: str, seeds: int, *, seed: int) -> list[list[str]]:
    """The rows of both aggregates; empty cells for methods with a run missing."""
    cells = {method: [cell for problem, cell in each.items() if problem in TELLING] for method, each in scores.items()}
    whole = {m: np.stack(each, axis=1) for m, each in cells.items() if each and min(cell.size for cell in each) == seeds > 0}
    means = [_estimate(iqm, whole[m], seed=seed) if m in whole else "" for m in scores]
    others = whole.keys() - {of} if of in whole else ()
    better = [_estimate(probability_of_improvement, whole[of], whole[m], seed=seed) if m in others else "" for m in scores]
    return [["IQM", *means], ["P", *better]]


def _spread(scores: np.ndarray, seeds: int) -> str:
    if not scores.size:
        return ""
    some = f", {scores.size} of {seeds}" if scores.size < seeds else ""
    return f"{np.median(scores):.3f} ({scores.min():.3f}..{scores.max():.3f}){some}"


def _estimate(statistic: Callable[..., float], *arrays: np.ndarray, seed: int) -> str:
    if len(arrays[0]) == 1:
        return f"{statistic(*arrays):.3f}"
    estimate = interval(statistic, *arrays, seed=seed)
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _markdown(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    line = lambda cells: "| " + " | ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)) + " |"
    return [line(rows[0]), line(["-" * width for width in widths]), *map(line, rows[1:])]
