"""`prediction_error`: the open-loop error of a model at each step, with intervals over episodes."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax import lax
from jax.core import Tracer
from tabulate import tabulate

from .._checks import check_counts
from .._dynamics import AbstractDynamics
from .._normaliser import is_stacked, Normaliser, rows_of
from .._trajectory import check_episodes, Trajectory
from ..models import AbstractTrainable
from ._model_checks import check_finite, check_model, in_one_dtype
from ._open_loop import as_trainable
from ._windows import cut_windows


class PredictionError(eqx.Module):
    """The open-loop error of a model at each step. `print` it for a table.

    - `rmse`: root mean square error of each entry of what is predicted, shape (H, D), in units of the data. Row i is the error
      after i + 1 steps: of s_1, s_2, ... for a world model or simulator.
    - `low`, `high`: ends of the 95 % interval of `rmse` over episodes, shape (H, D).
    - `deviation`: standard deviation of each entry over all episodes and steps, shape (D,): the error of predicting the mean.
    - `episodes`: number of episodes that reach each step, shape (H,).
    """

    rmse: np.ndarray
    low: np.ndarray
    high: np.ndarray
    deviation: np.ndarray
    episodes: np.ndarray

    @property
    def relative(self) -> np.ndarray:
        """`rmse` divided by `deviation`, shape (H, D); 1 is as good as predicting the mean."""
        return self.rmse / self.deviation

    def __repr__(self) -> str:
        relative = np.sqrt(np.mean(self.relative**2))
        return (
            f"PredictionError({self.rmse.shape[0]} steps, {self.rmse.shape[1]} entries, {self.episodes[0]} episodes, rmse / "
            f"deviation = {relative:.3g})"
        )

    def __str__(self) -> str:
        steps, entries = self.rmse.shape
        rows = sorted({*(n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if n < steps), steps})
        shown = min(entries, 6)
        relative = np.sqrt(np.mean(self.relative**2, axis=1))
        cell = lambda i, j: f"{self.rmse[i, j]:.3g} [{self.low[i, j]:.3g}, {self.high[i, j]:.3g}]"
        table = [[n, self.episodes[n - 1], f"{relative[n - 1]:.3g}", *(cell(n - 1, j) for j in range(shown))] for n in rows]
        heads = ["step", "episodes", "relative", *(f"entry {j}" for j in range(shown))]
        deviations = ["deviation", "", "", *(f"{x:.3g}" for x in self.deviation[:shown])]
        more = f"\n{entries - shown} more entries are in `rmse`." if entries > shown else ""
        return (
            tabulate([*table, deviations], heads, tablefmt="plain", disable_numparse=True, stralign="right")
            + "\nRoot mean square error in units of the data, with its 95 % interval over episodes; relative: divided by the "
            + f"deviation, over all entries.{more}"
        )


def prediction_error(
    model: AbstractTrainable | AbstractDynamics, episodes: Trajectory, *, window: int | None = None
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

    The interval is a 95 % interval of the mean square error over episodes, normal on a logarithmic scale, by Student's t: it is
    never negative, and skewed as mean squares are. Windows of one episode are not independent, and count as one. At a step that
    only one episode reaches, it is from 0 to infinity.

    **Arguments**

    - `model`: one model that `awmkit.fit` accepts.
    - `episodes`: N episodes, an `awmkit.Trajectory` with a leading axis. Their lengths may differ.
    - `window`: number of steps predicted at a time, by default whole episodes. Episodes are cut into windows of this size, side
      by side, and step i of the result is step i of a window. Use the number of steps for which the model will be unrolled.

    **Returns:** a `PredictionError`, up to the length of the longest episode.

    **Raises:** `ValueError` if the model has the wrong type, or the episodes do not fit the model or are not finite.
    """
    model = as_trainable("prediction_error", model)
    check_episodes("prediction_error", episodes, state_size=model.state_size, action_size=model.action_size)
    check_counts("prediction_error", window=window)
    if any(isinstance(x, Tracer) for x in jtu.tree_leaves((model, episodes))):
        raise ValueError(
            "prediction_error computes on the host, which jit, vmap and grad cannot trace; call it outside of them."
        )
    if is_stacked(model):
        raise ValueError(
            f"prediction_error got several models {type(model).__name__}, stacked along a leading axis; pass "
            "jax.tree.map(lambda x: x[i], models) for its number i."
        )
    episodes = in_one_dtype(model, episodes)
    check_finite(model, episodes)
    count = len(episodes)
    length = np.full(count, episodes.horizon) if episodes.length is None else np.asarray(episodes.length)
    number = np.arange(count)
    if window is not None:
        number = np.repeat(number, -(-length // window))
        episodes = cut_windows(episodes, min(window, episodes.horizon))
    check_model("prediction_error", model, episodes)
    squares, deviation = jtu.tree_map(lambda x: np.asarray(x, np.float64), _squares(model, episodes))
    mask = np.asarray(episodes.mask)
    steps = int(mask.any(axis=0).sum())
    # Sums over the windows of each episode.
    total, happened = np.zeros((count, *squares.shape[1:])), np.zeros((count, mask.shape[1], 1))
    np.add.at(total, number, squares)
    np.add.at(happened, number, mask[..., None])
    return PredictionError(
        *_interval(total[:, :steps], happened[:, :steps]), deviation, (happened[:, :steps, 0] > 0).sum(axis=0)
    )


@eqx.filter_jit
def _squares(model: AbstractTrainable, episodes: Trajectory) -> tuple[Any, Any]:
    """Return the squared errors, 0 at padding, and the deviation of the targets."""
    # A batch at a time, so that memory does not grow with the number of episodes.
    predicted = lax.map(lambda episode: model.prediction(episode), episodes, batch_size=64)
    targets = model.target(episodes)
    rows = rows_of(episodes, targets.shape[1])
    squares = (predicted - targets) ** 2
    deviation = Normaliser(targets.shape[-1]).fitted(targets, rows).scale
    return squares if rows is None else jnp.where(rows[..., None], squares, 0), deviation


def _interval(total: np.ndarray, happened: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the root of the mean square, and its interval, from the sum of squares of each episode and the number of its terms.

    The mean is a ratio of two sums over episodes; its standard error is that of the linearised ratio (Cochran, *Sampling
    Techniques*, 1977, sec. 6.4).
    """
    from scipy.special import stdtrit  # Imported here because it takes longer to import than all of awmkit.

    terms, episodes = happened.sum(axis=0), (happened > 0).sum(axis=0)
    mean = total.sum(axis=0) / terms
    variance = ((total - mean * happened) ** 2).sum(axis=0) / terms**2 * episodes / np.maximum(episodes - 1, 1)
    # The logarithm of the root has half the relative error of the mean square.
    half = stdtrit(np.maximum(episodes - 1, 1), 0.975) * np.sqrt(variance) / np.where(mean > 0, 2 * mean, 1)
    half = np.where(episodes > 1, half, np.inf)
    rmse = np.sqrt(mean)
    with np.errstate(over="ignore", invalid="ignore"):
        return rmse, rmse * np.exp(-half), np.where(episodes > 1, rmse * np.exp(half), np.inf)
