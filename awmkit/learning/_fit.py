"""ModelUpdates to whole episodes: one loop for every class of model, of a world or of a reward.

Apart from the models because the loop is the same for all: what differs is the loss, and that is theirs.
"""

import time
from typing import Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray

from .._checks import check_counts, check_key, check_optimiser, kind
from .._normaliser import Normaliser, trainable
from .._progress import AbstractProgress, check_progress, TqdmProgress
from .._trajectory import Trajectory
from ..models import AbstractTrainable
from ._minibatch import check_microbatch_size, loss_and_gradient
from ._sharding import check_mesh, gather, place, split

M = TypeVar("M", bound=AbstractTrainable)


class FitResult(eqx.Module, Generic[M]):
    """What `fit` returns.

    - `model`: the fitted model.
    - `losses`: of each update, on its batch, shape (updates,).
    - `held_out`: mean square error on episodes held out, step by step, shape (H,): of open-loop predictions of s_1 ... s_H
      from s_0 and the actions, or of rewards, each entry in units of its standard deviation; 1 is as good as the mean.
      `None` where nothing was held out.
    - `seconds`: of wall time, compilation included.
    """

    model: M
    losses: Float[Array, " updates"]
    held_out: Float[Array, " H"] | None
    seconds: float

    def __repr__(self) -> str:
        error = "None" if self.held_out is None else f"{float(jnp.mean(self.held_out)):.3g} in the mean over steps"
        return (
            f"FitResult(model={type(self.model).__name__}, losses={float(self.losses[0]):.3g} to {float(self.losses[-1]):.3g} in "
            f"{self.losses.size} updates, held_out={error}, seconds={self.seconds:.1f})"
        )


def fit(
    model: M,
    episodes: Trajectory,
    *,
    key: PRNGKeyArray,
    updates: int = 1000,
    batch_size: int = 64,
    microbatch_size: int | None = None,
    optimiser: optax.GradientTransformation | None = None,
    holdout: float = 0.1,
    mesh: Mesh | None = None,
    progress: AbstractProgress = TqdmProgress(),
) -> FitResult[M]:
    """Fit a world model, or a reward model, to whole episodes by minibatch gradient descent.

    The loss is 0.5 times the mean square error of what the model predicts over all steps, in units of its targets: an AWM
    predicts from s_0 and the actions, an HWM from true histories, a Markov model one step at a time. Statistics of the data
    are set beforehand, once:

    ```python
    model = AWM(task.state_size, task.action_size, Transformer(key=k1), key=k2).normalised(episodes.states)
    model = fit(model, episodes, key=k3).model
    ```

    **Arguments**

    - `model`: an AWM, HWM, Markov or reward model, or an `awmkit.models.AbstractTrainable` of your own.
    - `episodes`: N episodes of one length H, a `awmkit.Trajectory` with a leading axis; only a reward model needs rewards.
    - `key`: for the split and the batches.
    - `updates`, `batch_size`: how many updates, on how many episodes each, drawn with replacement.
    - `microbatch_size`: how many of these are differentiated at a time, all by default; a divisor of `batch_size`. Results are equal to
      rounding, and memory is that of so many. On a processor, whose cache few episodes fit, a transformer's updates are 1.2
      (16 of 64, two cores) to 1.9 times as fast (2 of 64, one core).
    - `optimiser`: an optax optimiser, `optax.adam(1e-3)` by default. Nothing is clipped unless it does so.
    - `holdout`: share of the episodes kept to measure `FitResult.held_out`, in [0, 1).
    - `mesh`: devices, as `jax.make_mesh((8,), ("episodes",))`, that share the episodes of each update; each has all the data.
    - `progress`: `TqdmProgress()` shows a bar on stderr, `NoProgress()` nothing.

    **Returns:** a `FitResult`.

    **Raises:** `ValueError` for what is no model, optimiser or key, and for episodes that do not fit the model or are not
    finite; `RuntimeError` when the loss is not.
    """
    optimiser = optax.adam(1e-3) if optimiser is None else optimiser
    _check(model, episodes, updates, batch_size, microbatch_size, holdout, optimiser, key, mesh)
    check_progress(progress)
    split_key, batch_key = jax.random.split(key)
    episodes = jtu.tree_map(jnp.asarray, Trajectory(episodes.states, episodes.actions, episodes.rewards))
    order = jax.random.permutation(split_key, episodes.states.shape[0])
    held = min(max(1, round(holdout * order.size)), order.size - 1) if holdout > 0 else 0
    kept, unseen = (jtu.tree_map(lambda x, i=i: x[i], episodes) for i in (order[held:], order[:held]))

    weights, rest = eqx.partition(model, trainable(model))
    loop = (weights, optimiser.init(weights), jnp.zeros(updates, episodes.states.dtype))
    loop, rest, kept, unseen, episodes, batch_key = place((loop, rest, kept, unseen, episodes, batch_key), mesh)
    start, done, chunk = time.monotonic(), 0, 1
    parts = [type(part).__name__ for part in (model, getattr(model, "backbone", None)) if part is not None]
    with progress.start(" ".join(["fit", *parts]), updates) as meter:
        meter.update(0, phase="compiling")
        while done < updates:
            began, stop = time.monotonic(), min(done + chunk, updates)
            span = place((jnp.asarray(done), jnp.asarray(stop)), mesh)
            loop = _update(loop, rest, optimiser, kept, batch_key, batch_size, microbatch_size, mesh, *span)
            loss = float(loop[2][stop - 1])
            _require_finite(loss, stop)
            if jax.process_count() > 1:  # Clocks differ.
                chunk = 1 + updates // 50
            elif done > 0:  # The first chunk compiles; the others last about half a second.
                chunk = max(1, round(0.5 * (stop - done) / (time.monotonic() - began)))
            done = stop
            meter.update(done, f"loss {loss:.3g}", phase="fitting")
    model = eqx.combine(loop[0], rest)
    held_out = _held_out_error(model, unseen, episodes) if held else None
    return FitResult(model, loop[2], held_out, time.monotonic() - start)


@eqx.filter_jit
def _update(loop, rest, optimiser, episodes, key, batch_size, microbatch_size, mesh, start, stop):
    """Updates `start` to `stop`; both are traced, so that chunks of any length share one program."""

    def update(i, loop):
        weights, optimiser_state, losses = loop
        drawn = jax.random.randint(jax.random.fold_in(key, i), (batch_size,), 0, episodes.states.shape[0])
        batch = split(jtu.tree_map(lambda x: x[drawn], episodes), mesh, "batch_size")
        loss = lambda weights, episode: eqx.combine(weights, rest).loss(episode)
        value, grads = loss_and_gradient(loss, weights, batch, microbatch_size)
        steps, optimiser_state = optimiser.update(grads, optimiser_state, weights)
        return eqx.apply_updates(weights, steps), optimiser_state, losses.at[i].set(value)

    return gather(lax.fori_loop(start, stop, update, loop), mesh)


@eqx.filter_jit
def _held_out_error(model, unseen, episodes):
    errors, truth = jax.vmap(lambda episode: model.prediction(episode))(unseen) - model.target(unseen), model.target(episodes)
    return jnp.mean((errors / Normaliser(truth.shape[-1]).fitted(truth).scale) ** 2, axis=(0, 2))


def _check(model, episodes, updates, batch_size, microbatch_size, holdout, optimiser, key, mesh) -> None:
    if not isinstance(model, AbstractTrainable):
        raise ValueError(f"fit got {kind(model)}; pass a Markov, HWM, AWM, RewardModel or your own subclass.")
    if not isinstance(episodes, Trajectory):
        raise ValueError(f"The episodes are {kind(episodes)}; pass one Trajectory, each of whose fields has a leading axis.")
    check_counts("fit", updates=updates, batch_size=batch_size)
    check_microbatch_size("fit", microbatch_size, batch_size)
    check_key("fit", key)
    check_optimiser(optimiser)
    check_mesh(mesh)
    states, actions = episodes.states, episodes.actions
    needed = f"states (N, H+1, {model.state_size}) and actions (N, H, {model.action_size})"
    if states.ndim != 3 or actions.shape != (states.shape[0], states.shape[1] - 1, model.action_size):
        raise ValueError(f"fit got states {states.shape} and actions {actions.shape}; this model needs {needed}.")
    if states.shape[2] != model.state_size or states.shape[0] < 2:
        raise ValueError(f"fit got states {states.shape}; this model needs {needed}, with at least 2 episodes.")
    for name, array in (("states", states), ("actions", actions), ("targets", model.target(episodes))):
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"The episodes' {name} have dtype {array.dtype}; pass them .astype(float).")
        if not bool(jnp.isfinite(array).all()):
            raise ValueError(f"The episodes' {name} are not all finite; leave out such episodes.")
    if not 0 <= holdout < 1:
        raise ValueError(f"fit got holdout={holdout}; give the share of episodes to hold out, in [0, 1).")


def _require_finite(loss: float, update: int) -> None:
    if not np.isfinite(loss):
        raise RuntimeError(
            f"The loss was {loss} after update {update}; lower the learning rate, clip the gradient with "
            "optax.clip_by_global_norm, or normalise the model first with model.normalised(episodes.states)."
        )
