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
from jaxtyping import Array, Float, Key

from .._checks import check_counts, describe
from .._dynamics import AbstractDynamics
from .._normaliser import Normaliser, rows_of, trainable
from .._progress import AbstractProgress, check_progress, TqdmProgress
from .._trajectory import check_episodes, Trajectory
from .._windows import check_from_start, cut_windows, draw_windows
from ..models import AbstractTrainable
from ._chunks import chunks
from ._minibatch import check_microbatch_size, episodes_at_a_time, minibatch_step
from ._model_checks import check_finite, check_model, check_window, in_one_dtype, normalise_by, warn_of_large_actions
from ._open_loop import as_trainable, check_can_be_fitted, OpenLoop
from ._optimise import check_trains
from ._optimiser import AnyOptimiser, check_optimiser
from ._seeds import check_keys, check_seeds, of_runs, one_of
from ._sharding import check_mesh, gather, place, split
from ._sweep import over_settings, settings_of, some_finite, sweep_of

M = TypeVar("M", bound=AbstractTrainable | AbstractDynamics)

# One object, so that a second fit finds the program of the first: an optax optimiser is compared by identity.
ADAM = optax.adam(1e-3)


class FitResult(eqx.Module, Generic[M]):
    """The result of `fit`. With several keys, everything but `seconds` has a leading axis of members, and a sweep has an axis of
    settings before it.

    - `model`: the fitted model, or models: `awmkit.Ensemble(result.model)` is a dynamics made of them.
    - `losses`: training loss at each update, computed before the optimiser step, shape (updates,).
    - `held_out`: mean square error on held-out episodes at each step, shape (H,): of open-loop predictions of s_1 ... s_H from
      s_0 and the actions, of rewards, or of ends. Each entry is divided by its variance over all episodes; 1 is as good as predicting
      the mean. Step t is the mean over the held-out episodes that reach it, and H the length of the longest of them. With
      `window=n`, shape (n,): the held-out episodes are cut into windows of n steps. `None` if nothing was held out. Of several
      members, NaN at steps that only held-out episodes of others reach.
    - `seconds`: wall time in seconds, compilation included.
    - `sweep`: the hyper-parameters that vary, such as "optimiser.learning_rate"; empty if none does.

    With several keys, `result[i]` is the result of member i, and `result.best()` that of the member with the smallest mean of
    `held_out`. In a sweep they are the result of setting i, and that of the setting with the smallest mean over its members.
    """

    model: M
    losses: Float[Array, "*members updates"]
    held_out: Float[Array, "*members H"] | None
    seconds: float
    sweep: dict[str, np.ndarray] = eqx.field(default_factory=dict)

    def __getitem__(self, index: int) -> "FitResult[M]":
        """Return the result of one of several members, or of one setting of a sweep."""
        parts, of = (self.model, self.losses, self.held_out), "setting" if self.sweep else "seed"
        model, losses, held_out = one_of(parts, index, self.losses.shape[:-1], of=of)
        if held_out is not None and held_out.ndim == 1:
            held_out = held_out[: 1 + np.flatnonzero(~np.isnan(held_out)).max(initial=-1)]
        return FitResult(model, losses, held_out, self.seconds)

    def best(self) -> "FitResult[M]":
        """Return the result of the member whose mean of `held_out`, or last loss if nothing was held out, is the smallest; of one
        model, this result."""
        if self.losses.ndim == 1:
            return self
        results = [self[i] for i in range(self.losses.shape[0])]
        return results[int(np.nanargmin([result._error() for result in results]))]

    def _error(self) -> float:
        """The mean of `held_out`, or the last loss; of several members their mean."""
        if self.losses.ndim > 1:
            return float(np.mean([self[i]._error() for i in range(self.losses.shape[0])]))
        return float(jnp.mean(self.losses[-1:] if self.held_out is None else self.held_out))

    def __repr__(self) -> str:
        median = lambda x: float(np.median(x))
        error = "None" if self.held_out is None else f"{median(jnp.nanmean(self.held_out, axis=-1)):.3g} (mean over steps)"
        runs = of_runs(self.losses.shape[:-1], self.sweep, "members")
        members = f"medians of {runs}, " if runs else ""
        return (
            f"FitResult(model={type(self.model).__name__}, {members}losses: first {median(self.losses[..., 0]):.3g}, last "
            f"{median(self.losses[..., -1]):.3g} of {self.losses.shape[-1]}, held_out={error}, seconds={self.seconds:.1f})"
        )


def fit(
    model: M,
    episodes: Trajectory,
    *,
    key: Key[Array, "*members"],
    updates: int = 1000,
    window: int | None = None,
    from_start: float = 0.0,
    batch_size: int = 64,
    microbatch_size: int | None = None,
    optimiser: AnyOptimiser | None = None,
    holdout: float = 0.1,
    bootstrap: bool = False,
    mesh: Mesh | None = None,
    progress: AbstractProgress = TqdmProgress(),
) -> FitResult[M]:
    """Fit a model, or the parameters of a simulator, to episodes by minibatch gradient descent.

    The loss is half the mean square error of the model's predictions, in units of the targets' standard deviations. An AWM
    predicts all states from s_0 and the actions, an HWM each state from the true history, a Markov model each state from the
    true state before it. The loss of a termination model is the negative log-likelihood of the ends, and that of a world model with
    an `awmkit.GaussianHead` is the negative log-likelihood of the next states.

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

    **Several models in one program**: pass an array of K keys, and a model with a leading axis of the same length, built by
    `eqx.filter_vmap(make)(keys)`. Each member has its own held-out episodes and its own batches, as `fit(models[i],
    key=keys[i])` has, and all share one copy of the data.

    ```python
    keys = jax.random.split(key, 5)
    models = eqx.filter_vmap(lambda key: Markov(task.state_size, task.action_size, key=key))(keys)
    ensemble = Ensemble(fit(models, episodes, key=keys).model)
    ```

    On a CPU one fit already uses most of two cores, so five on two cores take 4.5 times as long as one
    (examples/benchmarks/ensembles.py).

    **A sweep in one program**: the numbers of an `awmkit.Optimiser` may be arrays of shape (N,), as in `awmkit.train`. All settings
    begin with the same models and have the same keys.

    **Arguments**

    - `model`: one AWM, HWM, Markov, reward model or termination model, your own `awmkit.AbstractTrainable`, or a
      simulator; or several of a kind, with a leading axis.
    - `episodes`: N episodes, an `awmkit.Trajectory` with a leading axis, as `Trajectory.from_episodes` makes of a list. Their
      lengths may differ, and every step counts equally. Only a reward model needs rewards. If the dtypes of the episodes and of
      the weights differ, the episodes are computed in the widest of them.
    - `key`: for the split into training and held-out episodes, and for the batches: one `jax.random.key`, or an array of keys of
      shape (K,) for K models.
    - `updates`: number of updates, 1000 by default.
    - `window`: number of steps n that are fitted at a time, by default whole episodes. Each update draws windows of n steps from
      anywhere in the episodes; every step is equally likely to begin one, and those that begin less than n steps before the end
      are shorter. Use it for episodes that are longer than the model will be unrolled. Held-out episodes stay whole, so that no
      window of theirs overlaps one that was fitted.
    - `from_start`: share of the windows that begin at the first step of an episode, 0 by default; see `awmkit.ModelUpdates`.
    - `batch_size`: number of episodes or windows per update, 64 by default, drawn with replacement.
    - `microbatch_size`: largest number of episodes that are differentiated at a time, a divisor of `batch_size`; all by default.
      Gradients are accumulated, so the result is equal up to rounding and less memory is needed. A CPU takes smaller groups by
      itself if the model asks for them (`AbstractDynamics.episodes_at_a_time`), as one with a transformer does.
    - `optimiser`: an optax optimiser, `optax.adam(1e-3)` by default; also one that reads the loss of the batch, such as
      `optax.lbfgs()`. Gradients are clipped only if it clips them.
    - `holdout`: share of the episodes held out to measure `FitResult.held_out`, in [0, 1), 0.1 by default.
    - `bootstrap`: whether the training episodes are drawn with replacement from those that are not held out, in their number
      (Breiman, 1996). Each member of an ensemble then knows other data, about 63 % of them. `False` by default: all of them.
    - `mesh`: devices that share the episodes of each update, such as `jax.make_mesh((8,), ("episodes",))`. Every device has
      all the data.
    - `progress`: `awmkit.TqdmProgress()` (the default) shows a bar on stderr, `awmkit.NoProgress()` nothing.

    **Returns:** a `FitResult`.

    **Raises:** `ValueError` if the model, optimiser or key has the wrong type, there is not one model for each key, or the
    episodes do not fit the model or are not finite. `RuntimeError` if the loss is not finite. A warning says so if actions are
    outside of [-1, 1].
    """
    optimiser = ADAM if optimiser is None else optimiser
    check_progress(progress)
    check_from_start("fit", from_start, window)
    check_keys(key)
    members = [as_trainable("fit", member) for member in _members(model, key)]
    first = members[0]
    if isinstance(first, OpenLoop):
        check_can_be_fitted(first.dynamics)
    episodes, loss_dtype = _check(first, episodes, updates, batch_size, microbatch_size, window, holdout, optimiser, key, mesh)
    window = window if window is None else min(window, episodes.horizon)
    sweep = sweep_of(optimiser, "optimiser.")
    runs = *settings_of(sweep), *key.shape
    began = time.monotonic()
    count, pick = len(episodes), lambda numbers: jtu.tree_map(lambda x: x[numbers], episodes)
    held = min(max(1, round(holdout * count)), count - 1) if holdout > 0 else 0

    def prepare(member, key):
        """Return a model with its normalisers set, the numbers of its training and held-out episodes, and the key of its batches."""
        split_key, batch_key = jax.random.split(key)
        order = jax.random.permutation(split_key, count)
        training = order[held:]
        if bootstrap:
            training = training[jax.random.randint(jax.random.fold_in(split_key, 0), training.shape, 0, training.size)]
        return normalise_by(member, pick(training), window, from_start), training, order[:held], batch_key

    keys = key if key.ndim else key[None]
    prepared = [prepare(member, key) for member, key in zip(members, keys, strict=True)]
    stack = lambda *x: jnp.stack(x) if eqx.is_array(x[0]) else x[0]
    trained, training, held_out, batch_key = jtu.tree_map(stack, *prepared) if key.ndim else prepared[0]

    weights, rest = eqx.partition(trained, trainable(trained))
    begin = lambda optimiser, weights: (weights, optimiser.init(weights))
    begin = eqx.filter_vmap(begin, in_axes=(None, 0)) if key.ndim else begin
    carry = (*over_settings(begin, optimiser, None)(weights), jnp.zeros((*runs, updates), loss_dtype))
    carry, rest, episodes, training, batch_key = place((carry, rest, episodes, training, batch_key), mesh)
    parts = [type(part).__name__ for part in (model, getattr(model, "backbone", None)) if part is not None]
    with progress.start(" ".join(["fit", *map(str, key.shape), *parts]), updates) as meter:
        meter.update(0, phase="compiling")
        for start, stop in chunks(updates):
            bounds = place((jnp.asarray(start), jnp.asarray(stop)), mesh)
            settings = batch_size, microbatch_size, window, from_start, mesh
            carry = _update(carry, rest, optimiser, episodes, training, batch_key, *settings, *bounds)
            loss = np.asarray(carry[2][..., stop - 1])
            _require_finite(loss, stop, sweep)
            meter.update(stop, f"loss {np.median(loss):.3g}", phase="fitting")
    trained, error = eqx.combine(carry[0], rest), None
    each = [trained]
    if sweep:
        each = [eqx.combine(jtu.tree_map(lambda x, i=i: x[i], carry[0]), rest) for i in range(runs[0])]
        trained = jtu.tree_map(stack, *each)
    if held:
        # In a compiled program no window is left out, so that one program serves all members.
        cut = eqx.filter_jit(cut_windows) if key.ndim else cut_windows
        in_windows = lambda episodes, cut: episodes if window is None else cut(episodes, window)
        held_out = [in_windows(pick(numbers), cut) for numbers in (held_out if key.ndim else held_out[None])]
        of_setting = lambda trained: _held_out_errors(trained, held_out, in_windows(episodes, cut_windows), mesh, key.shape)
        error = jnp.stack(list(map(of_setting, each))) if sweep else of_setting(trained)
    fitted: Any = trained.dynamics if isinstance(trained, OpenLoop) else trained
    return FitResult(fitted, carry[2], error, time.monotonic() - began, sweep)


def _members(model, key) -> list:
    """Return the models of several keys, or the only one."""
    check_seeds(key, {"model": model})
    return [one_of(model, i, key.shape) for i in range(key.size)] if key.ndim else [model]


@eqx.filter_jit
def _update(
    carry, rest, optimiser, episodes, training, key, batch_size, microbatch_size, window, from_start, mesh, start, stop
):
    """Make updates `start` to `stop`, of one model or several. Both are traced, so that chunks of any length share one program."""

    def run(optimiser, carry, rest, training, key):
        def update(i, carry):
            weights, optimiser_state, losses = carry
            draw_key = jax.random.fold_in(key, i)
            if window is None:
                drawn = training[jax.random.randint(draw_key, (batch_size,), 0, training.size)]
                batch = jtu.tree_map(lambda x: x[drawn], episodes)
            else:
                batch = draw_windows(draw_key, episodes, batch_size, window, among=training, from_start=from_start)
            batch = split(batch, mesh, "batch_size")
            loss = lambda weights, episode: eqx.combine(weights, rest).loss(episode)
            few = episodes_at_a_time([eqx.combine(weights, rest)], batch.actions.shape[1])
            weights, optimiser_state, value = minibatch_step(
                loss, weights, batch, optimiser, optimiser_state, microbatch_size, few
            )
            return weights, optimiser_state, losses.at[i].set(value)

        return lax.fori_loop(start, stop, update, carry)

    members = eqx.if_array(0)
    run = eqx.filter_vmap(run, in_axes=(None, members, members, members, 0)) if key.ndim else run
    run_all = over_settings(run, optimiser, eqx.if_array(0), None, None, None)
    return gather(run_all(carry, rest, training, key), mesh)


def _held_out_errors(model, held_out: list[Trajectory], episodes: Trajectory, mesh, shape) -> Float[Array, "*members H"]:
    """Return the error by step of one model or several, each on its own held-out episodes."""
    errors = []
    for i, own in enumerate(held_out):
        reached = None if own.length is None else int(own.length.max())
        own, episodes = place((own, episodes), mesh)
        errors.append(_held_out_error(one_of(model, i, shape) if shape else model, own, episodes)[:reached])
    if not shape:
        return errors[0]
    longest = max(map(len, errors))
    return jnp.stack([jnp.pad(error, (0, longest - len(error)), constant_values=jnp.nan) for error in errors])


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
    check_optimiser(optimiser)
    check_mesh(mesh)
    if episodes.states.shape[0] < 2:
        raise ValueError(f"fit got states {describe(episodes.states)}; it needs at least 2 episodes.")
    if not 0 <= holdout < 1:
        raise ValueError(f"fit got holdout={describe(holdout)}; pass the share of episodes to hold out, in [0, 1).")
    episodes = in_one_dtype(model, episodes)
    one = key.reshape(-1)[0]
    shapes = jax.eval_shape(lambda x: x if window is None else draw_windows(one, x, 1, min(window, x.horizon)), episodes)
    check_window("fit", model, window, episodes.horizon)
    loss_dtype = check_model("fit", model, shapes).dtype
    check_finite(model, episodes)
    warn_of_large_actions("fit", episodes.actions)
    check_trains(optimiser, model.dynamics if isinstance(model, OpenLoop) else model)
    return episodes, loss_dtype


def _require_finite(loss: np.ndarray, update: int, sweep: dict[str, np.ndarray]) -> None:
    if some_finite(np.isfinite(loss), sweep):
        return
    wrong = np.flatnonzero(~np.isfinite(loss))
    if wrong.size:
        of_member = f" of member {wrong[0]}" if loss.ndim else ""
        raise RuntimeError(
            f"The loss{of_member} was {loss.flat[wrong[0]]} after update {update}; lower the learning rate, clip the gradient with "
            "optax.clip_by_global_norm, or replace statistics of other data with model.normalised(episodes)."
        )
