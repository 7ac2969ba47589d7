"""`prediction_error`: the open-loop error of a model at each step and the coverage of its intervals, over episodes."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import PRNGKeyArray
from tabulate import tabulate

from .._checks import check_counts, check_key, describe, parameters_of
from .._dynamics import AbstractDynamics
from .._normaliser import is_stacked, Normaliser, rows_of
from .._trajectory import check_episodes, Trajectory
from .._windows import cut_windows
from ..models import AbstractTrainable
from ._model_checks import check_finite, check_model, in_one_dtype
from ._open_loop import as_trainable, OpenLoop


class PredictionError(eqx.Module):
    """The open-loop error of a model at each step. `print` it for a table.

    - `rmse`: root mean square error of each entry of what is predicted, shape (H, D), in units of the data. Row i is the error
      after i + 1 steps: of s_1, s_2, ... for a world model or simulator.
    - `low`, `high`: ends of the 95 % interval of `rmse` over episodes, shape (H, D).
    - `deviation`: standard deviation of each entry over all episodes and steps, shape (D,): the error of predicting the mean.
    - `episodes`: number of episodes that reach each step, shape (H,).
    - `coverage`: with a key, the share of the entries in the data that lie within the central interval of sampled predictions,
      shape (H, D); `level` if the model is calibrated. Less says that its deviations are too small. `None` without a key.
    - `coverage_low`, `coverage_high`: ends of the 95 % interval of `coverage` over episodes, shape (H, D).
    - `level`: the probability within the intervals of the predictions, such as 0.9.
    """

    rmse: np.ndarray
    low: np.ndarray
    high: np.ndarray
    deviation: np.ndarray
    episodes: np.ndarray
    coverage: np.ndarray | None = None
    coverage_low: np.ndarray | None = None
    coverage_high: np.ndarray | None = None
    level: float | None = None

    @property
    def relative(self) -> np.ndarray:
        """`rmse` divided by `deviation`, shape (H, D); 1 is as good as predicting the mean."""
        return self.rmse / self.deviation

    def __repr__(self) -> str:
        relative = np.sqrt(np.mean(self.relative**2))
        coverage = "" if self.coverage is None else f", coverage of {self.level:.0%} intervals = {np.mean(self.coverage):.3g}"
        return (
            f"PredictionError({self.rmse.shape[0]} steps, {self.rmse.shape[1]} entries, {self.episodes[0]} episodes, rmse / "
            f"deviation = {relative:.3g}{coverage})"
        )

    def __str__(self) -> str:
        steps, entries = self.rmse.shape
        rows = sorted({*(n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if n < steps), steps})
        shown = min(entries, 6)
        relative = np.sqrt(np.mean(self.relative**2, axis=1))
        cell = lambda i, j: f"{self.rmse[i, j]:.3g} [{self.low[i, j]:.3g}, {self.high[i, j]:.3g}]"
        covered = [] if self.coverage is None else np.mean(self.coverage, axis=1)
        first = lambda n: [n + 1, self.episodes[n], f"{relative[n]:.3g}", *(f"{x:.3g}" for x in covered[n : n + 1])]
        table = [[*first(n - 1), *(cell(n - 1, j) for j in range(shown))] for n in rows]
        heads = ["step", "episodes", "relative", *["coverage"] * (len(covered) > 0), *(f"entry {j}" for j in range(shown))]
        deviations = ["deviation", *[""] * (len(heads) - shown - 1), *(f"{x:.3g}" for x in self.deviation[:shown])]
        coverage = "" if self.coverage is None else f"; coverage: share within {self.level:.0%} intervals, over all entries"
        more = f"\n{entries - shown} more entries are in `rmse`." if entries > shown else ""
        return (
            tabulate([*table, deviations], heads, tablefmt="plain", disable_numparse=True, stralign="right")
            + "\nRoot mean square error in units of the data, with its 95 % interval over episodes; relative: divided by the "
            + f"deviation, over all entries{coverage}.{more}"
        )


def prediction_error(
    model: AbstractTrainable | AbstractDynamics,
    episodes: Trajectory,
    *,
    window: int | None = None,
    level: float = 0.9,
    samples: int = 100,
    key: PRNGKeyArray | None = None,
) -> PredictionError:
    """Return the error of a model's predictions at each step, in units of the data.

    A world model or simulator predicts s_1 ... s_H from s_0 and the recorded actions, open loop. A reward model predicts the
    reward of each recorded transition, and a termination model the probability that it ends the episode, which is compared with
    1 or 0.

    ```python
    error = prediction_error(model, held_out)  # Episodes that the model was not fitted to.
    print(error)
    error.rmse[9]  # Of each entry of the state, after 10 steps.
    ```

    **Calibration.** With a `key`, a model with noise is also sampled, open loop, `samples` times for each episode. `coverage` is the
    share of the entries in the data that lie within the central interval of these samples with the probability `level`. Ends of
    the interval are counted by ranks, so that the coverage of a calibrated model is `level` for any number of samples. The model is a
    world model with an `awmkit.GaussianHead`, or any dynamics whose `step` draws under its key. The error stays that of the
    prediction without a key, for a simulator that of the mean of the samples.

    ```python
    error = prediction_error(model, held_out, key=key)
    error.coverage[9]  # Of each entry of the state, after 10 steps; 0.9 is right.
    ```

    The interval of an error or coverage is a 95 % interval over episodes, by Student's t: of the mean square error, normal on a logarithmic scale, it is
    never negative, and skewed as mean squares are; of the coverage it is that of Wilson (1927), between 0 and 1. Windows of one episode are not independent, and count as one. At a step that
    only one episode reaches, it is from 0 to infinity, or to 1.

    **Arguments**

    - `model`: one model that `awmkit.fit` accepts.
    - `episodes`: N episodes, an `awmkit.Trajectory` with a leading axis. Their lengths may differ.
    - `window`: number of steps predicted at a time, by default whole episodes. Episodes are cut into windows of this size, side
      by side, and step i of the result is step i of a window. Use the number of steps for which the model will be unrolled.
    - `level`: the probability within the intervals whose coverage is measured, between 0 and 1, 0.9 by default.
    - `samples`: number of predictions sampled for each episode or window, 100 by default.
    - `key`: a `jax.random.key` for these samples; without one, no coverage is measured.

    **Returns:** a `PredictionError`, up to the length of the longest episode.

    **Raises:** `ValueError` if the model has the wrong type, or the episodes do not fit the model or are not finite, if `level` is not
    between 0 and 1, or if a key is given and the model draws no samples, as reward and termination models do not.
    """
    model = as_trainable("prediction_error", model)
    check_episodes("prediction_error", episodes, state_size=model.state_size, action_size=model.action_size)
    check_counts("prediction_error", window=window, samples=samples)
    _check_sampling(model, level, key)
    if any(isinstance(x, Tracer) for x in jtu.tree_leaves((model, episodes))):
        raise ValueError(
            "prediction_error computes on the host, which jit, vmap and grad cannot trace; call it outside of them."
        )
    if is_stacked(model):
        raise ValueError(
            f"prediction_error got several models {type(model).__name__}, stacked along a leading axis; pass "
            "jax.tree.map(lambda x: x[i] if eqx.is_array(x) else x, models) for its number i."
        )
    episodes = in_one_dtype(model, episodes)
    check_finite(model, episodes)
    count = len(episodes)
    length = np.full(count, episodes.horizon) if episodes.length is None else np.asarray(episodes.length)
    number = np.arange(count)
    if window is not None:
        number = np.repeat(number, -(-length // window))
        episodes = cut_windows(episodes, min(window, episodes.horizon))
    mean = ranks = None
    if key is None or not isinstance(model, OpenLoop):
        check_model("prediction_error", model, episodes)
    if key is not None:
        mean, *ranks = _sample(model, episodes, jax.random.split(key, len(episodes)), samples)
    predicted = mean if isinstance(model, OpenLoop) else None
    squares, deviation = jtu.tree_map(lambda x: np.asarray(x, np.float64), _squares(model, episodes, predicted))
    mask = np.asarray(episodes.mask)
    steps = int(mask.any(axis=0).sum())

    def by_episode(values):
        """Return the sums over the windows of each episode, for the steps that happened."""
        sums = np.zeros((count, *values.shape[1:]))
        np.add.at(sums, number, values)
        return sums[:, :steps]

    happened = by_episode(mask[..., None])
    coverage: dict[str, Any] = {}
    if ranks is not None:
        below, equal = map(np.asarray, ranks)
        covered = np.where(mask[..., None], _covered(below, equal, samples, level), 0)
        names = "coverage", "coverage_low", "coverage_high"
        coverage = dict(zip(names, _interval_of_share(by_episode(covered), happened), strict=True)) | {"level": level}
    rmse, low, high = _interval(by_episode(squares), happened)
    return PredictionError(rmse, low, high, deviation, (happened[..., 0] > 0).sum(axis=0), **coverage)


def _check_sampling(model: AbstractTrainable, level: Any, key: Any) -> None:
    if not (isinstance(level, int | float) and 0 < level < 1):
        raise ValueError(f"prediction_error got level={describe(level)}; pass a probability between 0 and 1, such as 0.9.")
    if key is None:
        return
    check_key("prediction_error", key)
    if "key" not in parameters_of(model.prediction):
        raise ValueError(
            f"prediction_error got a key, and {type(model).__name__} draws no samples; pass a dynamics, or no key. A model of your own "
            "draws them in prediction(episode, *, key=None)."
        )


@eqx.filter_jit
def _sample(model: Any, episodes: Trajectory, keys: Any, samples: int) -> tuple[Any, Any, Any]:
    """Return the mean of the samples, and for each entry of the targets how many samples are below it and how many equal it."""

    def of_episode(x):
        episode, key = x
        target = model.target(episode)

        def add(sums, key):
            sample = model.prediction(episode, key=key)
            new = sample / samples, (sample < target).astype(int), (sample == target).astype(int)
            return jtu.tree_map(jnp.add, sums, new), None

        zeros = jnp.zeros_like(target), jnp.zeros(target.shape, int), jnp.zeros(target.shape, int)
        return lax.scan(add, zeros, jax.random.split(key, samples))[0]

    return lax.map(of_episode, (episodes, keys), batch_size=64)


def _covered(below: np.ndarray, equal: np.ndarray, samples: int, level: float) -> np.ndarray:
    """Return the share of each entry's ranks that lie in the central interval.

    Of a calibrated model the entry is one more sample, so its rank, from 0 to `samples`, is uniform. A rank r stands for the
    probabilities from r / (samples + 1) to (r + 1) / (samples + 1), and samples that equal the entry leave several ranks open.
    """
    low, high = below / (samples + 1), (below + equal + 1) / (samples + 1)
    inside = np.minimum(high, (1 + level) / 2) - np.maximum(low, (1 - level) / 2)
    return np.maximum(inside, 0) / (high - low)


@eqx.filter_jit
def _squares(model: AbstractTrainable, episodes: Trajectory, predicted: Any = None) -> tuple[Any, Any]:
    """Return the squared errors, 0 at padding, and the deviation of the targets."""
    if predicted is None:
        # A batch at a time, so that memory does not grow with the number of episodes.
        predicted = lax.map(lambda episode: model.prediction(episode), episodes, batch_size=64)
    targets = model.target(episodes)
    rows = rows_of(episodes, targets.shape[1])
    squares = (predicted - targets) ** 2
    deviation = Normaliser(targets.shape[-1]).fitted(targets, rows).scale
    return squares if rows is None else jnp.where(rows[..., None], squares, 0), deviation


def _mean_and_variance(total: np.ndarray, happened: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the mean, the variance of its error and the number of episodes, from each episode's sum and number of terms.

    The mean is a ratio of two sums over episodes; its standard error is that of the linearised ratio (Cochran, *Sampling
    Techniques*, 1977, sec. 6.4).
    """
    terms, episodes = happened.sum(axis=0), (happened > 0).sum(axis=0)
    mean = total.sum(axis=0) / terms
    variance = ((total - mean * happened) ** 2).sum(axis=0) / terms**2 * episodes / np.maximum(episodes - 1, 1)
    return mean, variance, episodes


def _student(episodes: np.ndarray) -> np.ndarray:
    from scipy.special import stdtrit  # Imported here because it takes longer to import than all of awmkit.

    return stdtrit(np.maximum(episodes - 1, 1), 0.975)


def _interval(total: np.ndarray, happened: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the root of the mean square, and its interval, from the sum of squares of each episode and the number of its terms."""
    mean, variance, episodes = _mean_and_variance(total, happened)
    # The logarithm of the root has half the relative error of the mean square.
    half = _student(episodes) * np.sqrt(variance) / np.where(mean > 0, 2 * mean, 1)
    half = np.where(episodes > 1, half, np.inf)
    rmse = np.sqrt(mean)
    with np.errstate(over="ignore", invalid="ignore"):
        return rmse, rmse * np.exp(-half), np.where(episodes > 1, rmse * np.exp(half), np.inf)


def _interval_of_share(total: np.ndarray, happened: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the share, and its interval, from the sum of each episode and the number of its terms.

    The interval is that of Wilson (1927) for the number of independent terms that would have the same variance, or one term per
    episode where the variance is 0.
    """
    share, variance, episodes = _mean_and_variance(total, happened)
    share = np.clip(share, 0, 1)  # A mean of ones may be rounded above 1.
    binomial = share * (1 - share)
    count = np.where(variance > 0, binomial / np.where(variance > 0, variance, 1), episodes)
    squared = _student(episodes) ** 2 / count
    centre, half = (share + squared / 2) / (1 + squared), np.sqrt(squared * binomial + squared**2 / 4) / (1 + squared)
    alone = episodes == 1
    return share, np.where(alone, 0, centre - half), np.where(alone, 1, centre + half)
