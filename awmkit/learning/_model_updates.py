"""Settings of the model's updates during `train`, and the updates themselves."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import ArrayLike, Int, PRNGKeyArray, PyTree, Scalar

from .._checks import check_counts, describe
from .._normaliser import trainable
from .._types import Number
from .._windows import check_from_start
from ..models._trainable import AbstractTrainable
from ._minibatch import check_microbatch_size, episodes_at_a_time, minibatch_step
from ._optimiser import AnyOptimiser, check_optimiser, holds
from ._replay import Replay
from ._sweep import check_steps_per_update, number


class ModelUpdates(eqx.Module):
    """How `awmkit.train` fits the model, and a reward model with it, to the replay buffer.

    **Arguments**

    - `steps_per_update`: number of environment steps per update, 2 by default; may be less than 1 for several updates per
      step. If `Metrics.model_error` stays near 1, fit more: lower this.
    - `batch_size`: number of whole episodes per update, 64 by default, drawn with replacement.
    - `microbatch_size`: largest number of episodes that are differentiated at a time, a divisor of `batch_size`; all by
      default. Smaller values save memory; see `awmkit.fit`.
    - `optimiser`: an optax optimiser, `optax.adam(1e-3)` by default.
    - `initial_updates`: number of updates right after the warm-up, or to the episodes that `train` was given, 0 by default.
      Some hundreds let the first policy updates use a fitted model.
    - `window`: number of steps of the windows that the models are fitted to, drawn from anywhere in the episodes; by default
      whole episodes. Use it where episodes are long, or imagined episodes begin at any step (`ShortHorizon`, or `FullHorizon` with
      a length). Fit no more steps than are imagined at a time: 1 for a Markov model, the `length` of the
      ascent for an AWM, and exactly `every` for an `awmkit.Anchored` one.
    - `from_start`: share of the windows that begin at the first step of an episode, in [0, 1], rounded to a whole number of windows;
      the others begin anywhere. 0 by default. To a sequence model that imagines whole episodes, each episode is one example. With
      windows as long as episodes, the rest of an episode from any of its steps on is an example too.
      `ModelUpdates(window=task.horizon, from_start=0.5)` can help where data are few and the dynamics do not depend on time; an
      `awmkit.Anchored` model helps more there (examples/paper/variants.py). Neither helps where the state changes much with time and
      little with the actions.
    - `recency`: in (0, 1]: an episode is drawn less often than the next newer one by this factor. 1, the default, draws
      uniformly.
    - `tolerance`: held-out error at which the model is good enough. An iteration makes no model updates if a world model predicts
      its new episodes, before it is fitted to them, with an error (`Metrics.model_error`) of at most this. `steps_per_update` is
      then an upper limit, and may be small for all tasks: the easy ones need fewer updates. 0 by default: all updates are made.
      Seeds that run in one program take the time of the slowest.

    `optimiser` may be an `awmkit.Optimiser`. Its numbers and `recency` may be arrays of shape (N,), a sweep; see `awmkit.train`.

    **Raises:** `ValueError` if a setting is out of range.
    """

    steps_per_update: int | float = eqx.field(static=True, default=2.0)
    batch_size: int = eqx.field(static=True, default=64)
    microbatch_size: int | None = eqx.field(static=True, default=None)
    optimiser: AnyOptimiser = eqx.field(default=optax.adam(1e-3))
    initial_updates: int = eqx.field(static=True, default=0)
    window: int | None = eqx.field(static=True, default=None)
    from_start: float = eqx.field(static=True, default=0.0)
    recency: Number = eqx.field(default=1.0, metadata=number(1.0))
    tolerance: float = eqx.field(static=True, default=0.0)

    def __check_init__(self):
        check_counts("ModelUpdates", batch_size=self.batch_size, window=self.window)
        check_microbatch_size("ModelUpdates", self.microbatch_size, self.batch_size)
        check_counts("ModelUpdates", least=0, initial_updates=self.initial_updates)
        check_from_start("ModelUpdates", self.from_start, self.window)
        check_optimiser(self.optimiser)
        check_steps_per_update("ModelUpdates", self.steps_per_update)
        if not self.steps_per_update > 0 or not holds(self.recency, lambda x: (0 < x) & (x <= 1)):
            given = f"steps_per_update={self.steps_per_update} and recency={describe(self.recency)}"
            raise ValueError(f"ModelUpdates needs a positive steps_per_update and a recency in (0, 1], got {given}.")
        if not (isinstance(self.tolerance, int | float) and 0 <= self.tolerance < math.inf):
            raise ValueError(
                f"tolerance must be one finite number of at least 0, got {describe(self.tolerance)}; 0 makes all updates."
            )


def init_optimiser(settings: ModelUpdates, models: dict[str, AbstractTrainable]) -> PyTree:
    """The optimiser's state before the first update."""
    return settings.optimiser.init(eqx.filter(models, trainable(models)))


def update_models(
    settings: ModelUpdates,
    models: dict[str, AbstractTrainable],
    optimiser_state: PyTree,
    replay: Replay,
    start: Int[ArrayLike, ""],
    stop: Int[ArrayLike, ""],
    key: PRNGKeyArray,
) -> tuple[dict[str, AbstractTrainable], PyTree, Scalar]:
    """Make updates `start` to `stop` of all models on the sum of their losses.

    **Returns:** the models, the optimiser's state and the sum of the losses.
    """
    zero = jnp.zeros((), replay.steps.state.dtype)
    if not models:
        return models, optimiser_state, zero
    weights, rest = eqx.partition(models, trainable(models))
    few = episodes_at_a_time(models.values(), settings.window or replay.horizon)
    loss = lambda weights, episode: sum((m.loss(episode) for m in eqx.combine(weights, rest).values()), zero)

    def update(i, carry):
        weights, optimiser_state, total = carry
        options = {"recency": settings.recency, "window": settings.window, "from_start": settings.from_start}
        batch = replay.sample(jax.random.fold_in(key, i), settings.batch_size, **options)
        weights, optimiser_state, value = minibatch_step(
            loss, weights, batch, settings.optimiser, optimiser_state, settings.microbatch_size, few
        )
        return weights, optimiser_state, total + value

    weights, optimiser_state, total = lax.fori_loop(start, stop, update, (weights, optimiser_state, zero))
    return eqx.combine(weights, rest), optimiser_state, total
