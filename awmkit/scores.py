"""Scores of Myriad tasks relative to known optimal returns, and statistics of many runs on many tasks.

- `reference`: the optimal, best constant and random return of a task.
- `gap_closed`, `normalised`: scores of returns relative to these.
- `iqm`, `probability_of_improvement`, `interval`: aggregates over seeds and tasks (Agarwal et al., 2021, *Deep Reinforcement
  Learning at the Edge of the Statistical Precipice*).
- `table`: all of it as a Markdown table.

Everything here is NumPy on numbers: no dynamics is run and nothing is compiled.
"""

import dataclasses
import importlib.resources
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import numpy as np
from numpy.typing import ArrayLike
from tabulate import tabulate

from ._checks import check_counts, check_shapes, describe, kind
from .analysis import Interval
from .tasks import AbstractControlProblem, Bioreactor, Discretised, Epidemic, MYRIAD, PredatorPrey

__all__ = [
    "gap_closed",
    "interval",
    "iqm",
    "normalised",
    "probability_of_improvement",
    "Reference",
    "reference",
    "table",
    "TELLING",
]

TELLING = tuple(problem for problem in MYRIAD if problem not in (Bioreactor, PredatorPrey, Epidemic))
"""The nine problems that count in aggregates. In the other three a constant action is (nearly) optimal."""

_ORACLE = json.loads(importlib.resources.files("awmkit.tasks").joinpath("_oracle.json").read_text())
_DEFAULTS: dict[type, AbstractControlProblem] = {problem: problem() for problem in MYRIAD}  # pyright: ignore[reportCallIssue]


class Reference(eqx.Module):
    """The result of `reference`: known returns of a task.

    - `optimal`: the largest possible return, found by an independent solver (direct multiple shooting from many starts).
    - `best_constant`: the return of the best constant action on a grid with spacing 0.01.
    - `random`: the mean return of 200 episodes with uniformly random actions.
    """

    optimal: float
    best_constant: float
    random: float


def reference(
    task: Discretised | AbstractControlProblem | type[AbstractControlProblem], horizon: int | None = None
) -> Reference:
    """Look up the known returns of a Myriad problem.

    ```python
    reference(CancerTreatment, 100).optimal  # -20.5253
    reference(Discretised(CancerTreatment(), 100)).optimal  # the same
    ```

    **Arguments**

    - `task`: a problem of `awmkit.tasks.MYRIAD`, its class, or a `Discretised` task.
    - `horizon`: the number of steps; required for a problem, taken from a task.

    **Returns:** a `Reference`.

    **Raises:** `ValueError` if the returns are not known: they are for some horizons and parameters, explicit Euler steps, no
    distractors and no noise.
    """
    task = _as_task(task, horizon)
    name, steps = _name(task.problem), str(task.horizon)
    if steps not in _ORACLE.get(name, {}):
        known = [f"{n} at {', '.join(found)}" for n, found in _ORACLE.items() if n.split("(")[0] == name.split("(")[0]]
        raise ValueError(f"No reference returns are known for {name} at {steps} steps; known are {'; '.join(known)}.")
    numbers = _ORACLE[name][steps]
    return Reference(numbers["optimal"], numbers["best_constant"], numbers["random_mean"])


def gap_closed(task: Discretised, returns: ArrayLike) -> np.ndarray:
    """The fraction of the gap between the best constant action and the optimum that is closed.

        score = (R - R_best_constant) / (R_optimal - R_best_constant)

    1 is optimal, 0 is as good as the best constant action, and negative scores are worse. Prefer it to `normalised`, by which
    trivial policies can look good: in `BearPopulations` most constant actions reach 0.9998.

    **Arguments**

    - `task`: a Myriad task, as for `reference`.
    - `returns`: true returns R, of any shape.

    **Returns:** scores of the same shape.

    **Raises:** `ValueError` if the reference returns are not known, or the best constant action is (nearly) optimal.
    """
    known = reference(task)
    gap = known.optimal - known.best_constant
    if type(task.problem) not in TELLING:
        raise ValueError(
            f"{type(task.problem).__name__} has no gap to close, because its best constant action is within {gap:.1g} of the "
            f"optimal return {known.optimal:.6g}; use awmkit.scores.normalised."
        )
    return np.asarray((_numbers("returns", returns) - known.best_constant) / gap)


def normalised(task: Discretised, returns: ArrayLike) -> np.ndarray:
    """The usual normalised score: 1 is optimal, 0 is as good as random actions.

        score = (R - R_random) / (R_optimal - R_random)

    **Arguments**

    - `task`: a Myriad task, as for `reference`.
    - `returns`: true returns R, of any shape.

    **Returns:** scores of the same shape.

    **Raises:** `ValueError` if the reference returns are not known.
    """
    known = reference(task)
    return np.asarray((_numbers("returns", returns) - known.random) / (known.optimal - known.random))


def iqm(scores: ArrayLike) -> float:
    """The interquartile mean: the mean of the middle half of all runs of all tasks (Agarwal et al., 2021).

    Of n runs, the floor(n/4) lowest and the floor(n/4) highest are dropped, as in `rliable` and `scipy.stats.trim_mean`.

    **Arguments**

    - `scores`: an array of any shape, usually (seeds, tasks).

    **Returns:** a number.

    **Raises:** `ValueError` if there is no score, or a score is not finite.
    """
    ordered = np.sort(_finite(scores), axis=None)
    cut = ordered.size // 4
    return float(ordered[cut : ordered.size - cut].mean())


def probability_of_improvement(x: ArrayLike, y: ArrayLike) -> float:
    """The probability that a run of one method scores higher than a run of another, averaged over tasks.

    For each task this is the Mann-Whitney U statistic divided by the number of pairs (Agarwal et al., 2021); ties count half.
    0.5 means no difference. It says how often x is better, not by how much.

    **Arguments**

    - `x`, `y`: scores of the two methods on the same tasks, shape (seeds, tasks). The numbers of seeds may differ.

    **Returns:** a number from 0 to 1.

    **Raises:** `ValueError` if the shapes do not fit, or a score is not finite.
    """
    x, y = _by_task(x), _by_task(y)
    check_shapes(
        "probability_of_improvement",
        "pass scores of the same tasks, one column for each",
        x=(x, ("seeds", "tasks")),
        y=(y, ("other seeds", "tasks")),
    )
    return float(np.mean((x[:, None] > y) + 0.5 * (x[:, None] == y)))


def interval(
    statistic: Callable[..., float],
    scores: ArrayLike,
    *others: ArrayLike,
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
) -> Interval:
    """A statistic with its stratified bootstrap interval, by percentiles (Agarwal et al., 2021).

    The interval says what to expect from other seeds on the same tasks. Each resample draws seeds with replacement, separately
    for each task and array. With few seeds the interval is somewhat too narrow: with 5 seeds on 9 tasks with normal scores, a
    95 % interval contains the true interquartile mean in 91 % of cases.

    ```python
    interval(iqm, scores)
    interval(probability_of_improvement, x, y)
    ```

    **Arguments**

    - `statistic`: called as `statistic(scores, *others)`, returns a number.
    - `scores`, `others`: arrays of shape (seeds, tasks), with at least 2 seeds.
    - `seed`: seed of the resampling.
    - `resamples`: number of resamples.
    - `level`: probability of the interval, 0.95 by default.

    **Returns:** an `awmkit.analysis.Interval` of single numbers.

    **Raises:** `ValueError` if the shapes do not fit, a score is not finite, or there are fewer than 2 seeds.
    """
    arrays = [_by_task(array) for array in (scores, *others)]
    if len({array.shape[1] for array in arrays}) > 1:
        given = ", ".join(str(array.shape) for array in arrays)
        raise ValueError(f"All scores must be of the same tasks, shape (seeds, tasks), got {given}; pass one column per task.")
    if min(len(array) for array in arrays) < 2:
        raise ValueError("An interval needs scores of at least 2 seeds, got 1; use the statistic without an interval.")
    check_counts("interval", resamples=resamples)
    if not (np.ndim(level) == 0 and 0 < level < 1):
        raise ValueError(f"level must be one number between 0 and 1, got {describe(level)}; 0.95 is the default.")
    value = statistic(*arrays)
    if np.shape(value) != () or not np.isreal(value):
        raise ValueError(
            f"The statistic must return one number, got {describe(np.asarray(value))}; reduce it over seeds and tasks."
        )
    rng = np.random.default_rng(seed)
    resampled = lambda array: np.take_along_axis(array, rng.integers(len(array), size=array.shape), axis=0)
    draws = [statistic(*map(resampled, arrays)) for _ in range(resamples)]
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(*map(np.asarray, (value, low, high)))


def table(
    returns: Mapping[str, Mapping[str, Sequence[float | None]]], horizon: int, *, of: str | None = None, seed: int = 0
) -> str:
    """A Markdown table of several methods on Myriad tasks, with one row per task and one column per method.

    Each cell shows the median, lowest and highest score over seeds: the gap closed, or, on tasks that are not in `TELLING`
    (marked by a star), the normalised score. The last rows show the interquartile mean and the probability that `of` improves
    on each other method, both over the tasks without a star and with 95 % intervals. A method with missing runs has neither.

    ```python
    print(table({"AWM": {"Harvest": [6.39, 6.40]}, "SAC": {"Harvest": [6.1, 5.3]}}, 100))
    ```

    **Arguments**

    - `returns`: for each method, for each problem by its class name, the true return of each seed; `None` or a non-finite
      number is a missing run.
    - `horizon`: the number of steps of all tasks.
    - `of`: the method to compare with the others, by default the first.
    - `seed`: seed of the intervals' resampling.

    **Returns:** the text.

    **Raises:** `ValueError` if a method or problem is unknown, or its reference returns are.
    """
    check_counts("table", horizon=horizon)
    if not isinstance(returns, Mapping) or not all(isinstance(cells, Mapping) for cells in returns.values()):
        raise ValueError(
            f'returns must map each method to a dict by problem, got {describe(returns)}; pass {{"AWM": {{"Harvest": [6.39]}}}}.'
        )
    of = of or next(iter(returns), "no method")
    names = {name for cells in returns.values() for name in cells}
    unknown = names - {problem.__name__ for problem in MYRIAD} | {of} - returns.keys()
    if unknown or not names:
        given = ", ".join(unknown) or "no task"
        raise ValueError(
            f"returns must map each method to a dict by class names of Myriad problems, and of must be a method, got {given}."
        )
    tasks = [problem for problem in sorted(MYRIAD, key=lambda problem: problem not in TELLING) if problem.__name__ in names]
    runs = {m: {name: _runs(name, cell) for name, cell in cells.items()} for m, cells in returns.items()}
    seeds = max(run.size for cells in runs.values() for run in cells.values())
    none = np.zeros(0)
    scores = {m: {p: _finite_scores(p, horizon, cells.get(p.__name__, none)) for p in tasks} for m, cells in runs.items()}
    missing = lambda m: f"{sum(seeds - cell.size for cell in scores[m].values())} of {seeds * len(tasks)}"
    rows = [
        *([p.__name__ + " *" * (p not in TELLING), *(_spread(scores[m][p], seeds) for m in returns)] for p in tasks),
        *_aggregates(scores, of, seeds, seed=seed),
        ["runs missing", *map(missing, returns)],
    ]
    notes = [
        f"Gap closed, median (lowest..highest) over at most {seeds} seeds: 1 is optimal, 0 is the best constant action.",
        "* Normalised score instead (0 is random), because a constant action is nearly optimal. Not part of IQM and P.",
        f"IQM: interquartile mean. P: probability that a run of {of} scores higher than a run of this method.",
        "Both over tasks without a star, with 95 % stratified bootstrap intervals, for methods without missing runs.",
    ]
    return "\n".join([tabulate(rows, [f"N = {horizon}", *returns], tablefmt="github", disable_numparse=True), "", *notes])


def _as_task(task, horizon: int | None) -> Discretised:
    """The task as a `Discretised` with default options; raise if it is anything else."""
    given = f"{task.__name__ if isinstance(task, type) else type(task).__name__} with horizon={horizon}"
    task = _DEFAULTS.get(task) if isinstance(task, type) else task
    if isinstance(task, AbstractControlProblem) and horizon is not None:
        task = Discretised(task, horizon)
    if not isinstance(task, Discretised) or type(task.problem) not in MYRIAD or horizon not in (None, task.horizon):
        raise ValueError(
            f"No reference returns are known for {given}; pass a problem of awmkit.tasks.MYRIAD and its horizon, or "
            "Discretised(problem, horizon) without a horizon."
        )
    if task != Discretised(task.problem, task.horizon):
        options = f"solver={task.solver}, substeps={task.substeps}, distractors={task.distractors}, noise={tuple(map(float, task.noise))}"
        raise ValueError(
            f"Reference returns are known for explicit Euler steps without distractors or noise, got {options}; "
            "use Discretised(problem, horizon)."
        )
    return task


def _name(problem: AbstractControlProblem) -> str:
    """The problem's class name with all parameters that differ from their defaults: the key of its reference returns."""
    fields = {field.name: (getattr(problem, field.name), field.default) for field in dataclasses.fields(problem)}
    changed = ", ".join(f"{name}={value}" for name, (value, default) in fields.items() if value != default)
    return type(problem).__name__ + (f"({changed})" if changed else "")


def _numbers(name: str, values: ArrayLike) -> np.ndarray:
    """Return `values` as an array; raise unless they are numbers, with rows of one length. `None` counts as NaN."""
    try:
        return np.asarray(values, float)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} must be an array of numbers, got {kind(values)} ({error}); give each row the same length."
        ) from None


def _finite(scores: ArrayLike) -> np.ndarray:
    """Return scores as an array; raise unless there are some and all are finite."""
    scores = _numbers("scores", scores)
    if not scores.size or not np.isfinite(scores).all():
        given = f"{scores.size} scores, {np.sum(~np.isfinite(scores))} of them not finite"
        raise ValueError(f"scores must hold at least one number, all finite, got {given}; drop or repeat failed runs.")
    return scores


def _by_task(scores: ArrayLike) -> np.ndarray:
    scores = _finite(scores)
    if scores.ndim != 2:
        raise ValueError(f"scores must have shape (seeds, tasks), got {scores.shape}; pass one column per task.")
    return scores


def _runs(problem: str, returns: Any) -> np.ndarray:
    values = _numbers(f"returns of {problem}", returns)
    if values.ndim != 1:
        raise ValueError(f"The returns of {problem} must have shape (seeds,), got {values.shape}; give one number per seed.")
    return values


def _finite_scores(problem: type[AbstractControlProblem], horizon: int, returns: np.ndarray) -> np.ndarray:
    scores = (gap_closed if problem in TELLING else normalised)(Discretised(_DEFAULTS[problem], horizon), returns)
    return scores[np.isfinite(scores)]


def _aggregates(scores: Mapping[str, Mapping[type, np.ndarray]], of: str, seeds: int, *, seed: int) -> list[list[str]]:
    """The rows of both aggregates, with empty cells for methods with missing runs."""
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
    return interval(statistic, *arrays, seed=seed).format(".3f")[0]
