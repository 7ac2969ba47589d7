"""`fit`: minibatch gradient descent of a model on whole episodes."""

import time
from typing import Any, Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
from jax import lax
from jax.core import Tracer
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray

from .._checks import check_counts, check_key, check_optimiser, describe
from .._dynamics import AbstractDynamics
from .._normaliser import is_stacked, Normaliser, rows_of, trainable
from .._progress import AbstractProgress, check_progress, TqdmProgress
from .._trajectory import check_episodes, Trajectory
from ..models import AbstractTrainable
from ._chunks import chunks
from ._minibatch import check_microbatch_size, episodes_at_a_time, minibatch_step
from ._model_checks import check_finite, check_model, in_one_dtype, normalise_by, warn_of_large_actions
from ._open_loop import as_trainable, check_has_parameters, OpenLoop
from ._optimise import check_trains
from ._sharding import check_mesh, gather, place, split
from ._windows import cut_windows, draw_windows

M = TypeVar("M", bound=AbstractTrainable | AbstractDynamics)


class FitResult(eqx.Module, Generic[M]):
    """The result of `fit`.

    - `model`: the fitted model.
    - `losses`: training loss at each update, computed before the optimiser step, shape (updates,).
    - `held_out`: mean square error on held-out episodes at each step, shape (H,): of open-loop predictions of s_1 ... s_H from
      s_0 and the actions, of rewards, or of ends. Each entry is divided by its variance over all episodes; 1 is as good as predicting
      the mean. Step t is the mean over the held-out episodes that reach it, and H the length of the longest of them. With
      `window=n`, shape (n,): the held-out episodes are cut into windows of n steps. `None` if nothing was held out.
    - `seconds`: wall time in seconds, compilation included.
    """

    model: M
    losses: Float[Array, " updates"]
    held_out: Float[Array, " H"] | None
    seconds: float

    def __repr__(self) -> str:
        error = "None" if self.held_out is None else f"{float(jnp.mean(self.held_out)):.3g} (mean over steps)"
        return (
            f"FitResult(model={type(self.model).__name__}, losses: first {float(self.losses[0]):.3g}, last "
            f"{float(self.losses[-1]):.3g} of {self.losses.size}, held_out={error}, seconds={self.seconds:.1f})"
        )


def fit(
    model: M,
    episodes: Trajectory,
    *,
    key: PRNGKeyArray,
    updates: int = 1000,
    window: int | None = None,
    batch_size: int = 64,
    microbatch_size: int | None = None,
    optimiser: optax.GradientTransformation | None = None,
    holdout: float = 0.1,
    mesh: Mesh | None = None,
    progress: AbstractProgress = TqdmProgress(),
) -> FitResult[M]:
    """Fit a model, or the parameters of a simulator, to episodes by minibatch gradient descent.

    The loss is half the mean square error of the model's predictions, in units of the targets' standard deviations. An AWM
    predicts all states from s_0 and the actions, an HWM each state from the true history, a Markov model each state from the
    true state before it. The loss of a termination model is the negative log-likelihood of the ends.

    A simulator is any other `awmkit.AbstractDynamics` without noise: known equations, with parameters to find, or with a network for
    what they leave out. All its floating-point arrays are trained, and Python numbers and static fields stay as they are. Its loss is half the
    mean square error of open-loop predictions in units of the states' standard deviations. With `window=n` these are predictions
    of n steps from recorded states. Short windows give smooth losses, and long ones are hurt less by noise in the recorded states.

    ```python
    class Boat(AbstractDynamics):
        drag: Array  # Fitted, because it is an array.
        ...

    boat = fit(Boat(drag=jnp.asarray(1.0)), episodes, key=key, window=20, optimiser=optax.adam(1e-2)).model
    ```

    ```python
    model = AWM(task.state_size, task.action_size, key=k1)
    result = fit(model, episodes, key=k2)
    result.held_out.mean()  # 1 is as good as predicting the mean
    ```

    Normalisers of awmkit's models that are not set get the statistics of the training episodes. Those that are
    set stay as they are: to replace them, pass `model.normalised(episodes)`.

    **Arguments**

    - `model`: one AWM, HWM, Markov, reward model or termination model, your own `awmkit.AbstractTrainable`, or a
      simulator.
    - `episodes`: N episodes, an `awmkit.Trajectory` with a leading axis, as `Trajectory.from_episodes` makes of a list. Their
      lengths may differ, and every step counts equally. Only a reward model needs rewards. If the dtypes of the episodes and of
      the weights differ, the episodes are computed in the widest of them.
    - `key`: for the split into training and held-out episodes, and for the batches.
    - `updates`: number of updates, 1000 by default.
    - `window`: number of steps n that are fitted at a time, by default whole episodes. Each update draws windows of n steps from
      anywhere in the episodes; every step is equally likely to begin one, and those that begin less than n steps before the end
      are shorter. Use it for episodes that are longer than the model will be unrolled. Held-out episodes stay whole, so that no
      window of theirs overlaps one that was fitted.
    - `batch_size`: number of episodes or windows per update, 64 by default, drawn with replacement.
    - `microbatch_size`: largest number of episodes that are differentiated at a time, a divisor of `batch_size`; all by default.
      Gradients are accumulated, so the result is equal up to rounding and less memory is needed. A CPU takes smaller groups by
      itself if the model asks for them (`AbstractDynamics.episodes_at_a_time`), as one with a transformer does.
    - `optimiser`: an optax optimiser, `optax.adam(1e-3)` by default; also one that reads the loss of the batch, such as
      `optax.lbfgs()`. Gradients are clipped only if it clips them.
    - `holdout`: share of the episodes held out to measure `FitResult.held_out`, in [0, 1), 0.1 by default.
    - `mesh`: devices that share the episodes of each update, such as `jax.make_mesh((8,), ("episodes",))`. Every device has
      all the data.
    - `progress`: `awmkit.TqdmProgress()` (the default) shows a bar on stderr, `awmkit.NoProgress()` nothing.

    **Returns:** a `FitResult`.

    **Raises:** `ValueError` if the model, optimiser or key has the wrong type, or the episodes do not fit the model or are not
    finite. `RuntimeError` if the loss is not finite. A warning says so if actions are outside of [-1, 1].
    """
    optimiser = optax.adam(1e-3) if optimiser is None else optimiser
    check_progress(progress)
    trained = as_trainable("fit", model)
    if isinstance(trained, OpenLoop):
        check_has_parameters(trained.dynamics)
    episodes, loss_dtype = _check(
        trained, episodes, updates, batch_size, microbatch_size, window, holdout, optimiser, key, mesh
    )
    window = window if window is None else min(window, episodes.horizon)
    began = time.monotonic()
    split_key, batch_key = jax.random.split(key)
    order = jax.random.permutation(split_key, episodes.states.shape[0])
    held = min(max(1, round(holdout * order.size)), order.size - 1) if holdout > 0 else 0
    training, held_out = (jtu.tree_map(lambda x, i=i: x[i], episodes) for i in (order[held:], order[:held]))
    trained = normalise_by(trained, training, window)
    if held and window is not None:
        held_out, episodes = cut_windows(held_out, window), cut_windows(episodes, window)
    reached = None if not held or held_out.length is None else int(held_out.length.max())

    weights, rest = eqx.partition(trained, trainable(trained))
    carry = (weights, optimiser.init(weights), jnp.zeros(updates, loss_dtype))
    carry, rest, training, held_out, episodes, batch_key = place((carry, rest, training, held_out, episodes, batch_key), mesh)
    parts = [type(part).__name__ for part in (model, getattr(model, "backbone", None)) if part is not None]
    with progress.start(" ".join(["fit", *parts]), updates) as meter:
        meter.update(0, phase="compiling")
        for start, stop in chunks(updates):
            bounds = place((jnp.asarray(start), jnp.asarray(stop)), mesh)
            settings = batch_size, microbatch_size, window, mesh
            carry = _update(carry, rest, optimiser, training, batch_key, *settings, *bounds)
            loss = float(carry[2][stop - 1])
            _require_finite(loss, stop)
            meter.update(stop, f"loss {loss:.3g}", phase="fitting")
    trained = eqx.combine(carry[0], rest)
    error = _held_out_error(trained, held_out, episodes)[:reached] if held else None
    fitted: Any = trained.dynamics if isinstance(trained, OpenLoop) else trained
    return FitResult(fitted, carry[2], error, time.monotonic() - began)


@eqx.filter_jit
def _update(carry, rest, optimiser, episodes, key, batch_size, microbatch_size, window, mesh, start, stop):
    """Make updates `start` to `stop`. Both are traced, so that chunks of any length share one program."""

    def update(i, carry):
        weights, optimiser_state, losses = carry
        draw_key = jax.random.fold_in(key, i)
        if window is None:
            drawn = jax.random.randint(draw_key, (batch_size,), 0, episodes.states.shape[0])
            batch = jtu.tree_map(lambda x: x[drawn], episodes)
        else:
            batch = draw_windows(draw_key, episodes, batch_size, window)
        batch = split(batch, mesh, "batch_size")
        loss = lambda weights, episode: eqx.combine(weights, rest).loss(episode)
        few = episodes_at_a_time([eqx.combine(weights, rest)], batch.actions.shape[1])
        weights, optimiser_state, value = minibatch_step(loss, weights, batch, optimiser, optimiser_state, microbatch_size, few)
        return weights, optimiser_state, losses.at[i].set(value)

    return gather(lax.fori_loop(start, stop, update, carry), mesh)


@eqx.filter_jit
def _held_out_error(model, held_out, episodes):
    errors = jax.vmap(lambda episode: model.prediction(episode))(held_out) - model.target(held_out)
    targets = model.target(episodes)
    unit = Normaliser(targets.shape[-1]).fitted(targets, rows_of(episodes, targets.shape[1])).scale
    squares = (errors / unit[None, None]) ** 2
    if held_out.length is None:
        return jnp.mean(squares, axis=(0, 2))
    mask = held_out.mask[..., None]
    count = jnp.maximum(jnp.sum(mask, axis=0), 1).astype(squares.dtype)
    return jnp.mean(jnp.sum(jnp.where(mask, squares, 0), axis=0) / count, axis=1)


def _check(
    model, episodes, updates, batch_size, microbatch_size, window, holdout, optimiser, key, mesh
) -> tuple[Trajectory, Any]:
    """Check the arguments of `fit` before anything is run. Returns the episodes in one dtype, and the dtype of the loss."""
    check_episodes("fit", episodes, state_size=model.state_size, action_size=model.action_size)
    if any(isinstance(x, Tracer) for x in jtu.tree_leaves((model, episodes, key))):
        raise ValueError(
            "fit makes its updates from Python, which jit, vmap and grad cannot trace; call it once for each model, outside of them."
        )
    check_counts("fit", updates=updates, batch_size=batch_size, window=window)
    check_microbatch_size("fit", microbatch_size, batch_size)
    check_key("fit", key, several="call fit once for each key")
    check_optimiser(optimiser)
    check_mesh(mesh)
    if is_stacked(model):
        raise ValueError(
            f"fit got several models {type(model).__name__}, stacked along a leading axis; fit them one after another, each with "
            "jax.tree.map(lambda x: x[i], models) for its number i."
        )
    if episodes.states.shape[0] < 2:
        raise ValueError(f"fit got states {describe(episodes.states)}; it needs at least 2 episodes.")
    if not 0 <= holdout < 1:
        raise ValueError(f"fit got holdout={describe(holdout)}; pass the share of episodes to hold out, in [0, 1).")
    episodes = in_one_dtype(model, episodes)
    shapes = jax.eval_shape(lambda x: x if window is None else draw_windows(key, x, 1, min(window, x.horizon)), episodes)
    loss_dtype = check_model("fit", model, shapes).dtype
    check_finite(model, episodes)
    warn_of_large_actions("fit", episodes.actions)
    check_trains(optimiser, model.dynamics if isinstance(model, OpenLoop) else model)
    return episodes, loss_dtype


def _require_finite(loss: float, update: int) -> None:
    if not np.isfinite(loss):
        raise RuntimeError(
            f"The loss was {loss} after update {update}; lower the learning rate, clip the gradient with "
            "optax.clip_by_global_norm, or replace statistics of other data with model.normalised(episodes)."
        )
