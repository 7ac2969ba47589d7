"""What `fit` and `train` check and set in a model before its first update."""

import warnings
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float

from .._checks import describe
from .._normaliser import fill, rows_of, trainable
from .._trajectory import Trajectory
from .._windows import spread_windows
from ..models._anchored import Anchored, too_few_steps
from ..models._ensemble import Ensemble, members_of
from ..models._trainable import AbstractTrainable
from ..models._world_model import AbstractWorldModel, reads_time

M = TypeVar("M")


def normalise_by(model: M, episodes: Trajectory, window: int | None = None, from_start: float = 0.0) -> M:
    """Return the model, its normalisers set by the statistics of the episodes where they were not set.

    A world model whose steps count from the first state it was given, such as an AWM, takes the statistics of windows of `window`
    steps instead, which begin where those that it is fitted to do: at any step, and a share of `from_start` at the first.
    """
    if not isinstance(model, AbstractTrainable):
        return model
    if isinstance(model, Ensemble):
        members = eqx.filter_vmap(lambda member: normalise_by(member, episodes, window, from_start))(model.models)
        return eqx.tree_at(lambda m: m.models, model, members)
    if window is not None and isinstance(model, AbstractWorldModel) and not reads_time(model):
        episodes = spread_windows(episodes, window, from_start)
    return fill(model, model.normalised(episodes))


def check_window(who: str, model: AbstractTrainable, window: int | None, horizon: int) -> None:
    """Raise if an anchored model is fitted to windows that end before its next anchor."""
    one = members_of(model)
    if isinstance(one, Anchored) and window is not None and window < min(one.every, horizon):
        raise ValueError(
            f"{who} got windows of {window} steps and a model that begins again every {one.every} steps, whose later steps it would not be "
            f"fitted to; pass window={one.every}."
        )


def check_model(who: str, model: AbstractTrainable, episodes: Trajectory) -> jax.ShapeDtypeStruct:
    """Raise if the model's loss, prediction and target of an episode have shapes that do not agree. Returns those of the loss.

    Nothing is run, so arrays may be given by their shapes.
    """
    name, steps = type(model).__name__, episodes.actions.shape[1]
    if (few := too_few_steps(model, steps)) is not None:
        raise ValueError(
            f"{who} got a {name} whose statistics are those of each of {few[0]} steps, but it predicts {few[1]} steps at a time; build a "
            "new model, or replace them with model.normalised."
        )
    one = jtu.tree_map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), episodes)
    all_of = lambda model, one, episodes: (model.loss(one), model.prediction(one), model.target(one), model.target(episodes))
    loss, prediction, target, targets = eqx.filter_eval_shape(all_of, model, one, episodes)
    if getattr(loss, "shape", None) != () or not jnp.issubdtype(loss.dtype, jnp.floating):
        raise ValueError(f"{name}.loss returned {describe(loss)}; it must return one floating-point number.")
    if (
        not prediction.shape == target.shape
        or len(target.shape) != 2
        or targets.shape != (*episodes.actions.shape[:1], *target.shape)
    ):
        raise ValueError(
            f"{name} predicts {describe(prediction)} for one episode, whose target is {describe(target)}, and the target of "
            f"{episodes.actions.shape[0]} episodes is {describe(targets)}; prediction and target must have one shape (H, D), and "
            "target must keep leading axes."
        )
    return loss


def warn_of_large_actions(who: str, actions: Float[Array, "*batch A"]) -> None:
    """Warn if an action is outside of [-1, 1]."""
    largest = float(jnp.max(jnp.abs(actions)))
    if largest > 1 + 1e-3:
        warnings.warn(
            f"{who} got actions of up to {largest:.4g} in magnitude, but policies act in [-1, 1]; if they are in the units of an "
            "environment with the bounds low and high, pass 2 * (actions - low) / (high - low) - 1.",
            stacklevel=4,
        )


def check_finite(model: AbstractTrainable, episodes: Trajectory) -> None:
    """Raise if the episodes, or what the model predicts of them, are not finite."""
    targets = model.target(episodes)
    rows = rows_of(episodes, targets.shape[1])
    targets = targets if rows is None else jnp.where(rows[..., None], targets, 0)
    for name, array in (("states", episodes.states), ("actions", episodes.actions), ("targets", targets)):
        if not bool(jnp.isfinite(array).all()):
            raise ValueError(f"The episodes' {name} are not all finite; leave out such episodes.")


def in_one_dtype(model, episodes: Trajectory) -> Trajectory:
    """The episodes as JAX arrays in the widest dtype of theirs and the model's weights, in which no number is rounded."""
    episodes = episodes.filled()
    fields = {name: getattr(episodes, name) for name in ("states", "actions", "rewards")}
    fields = {name: jnp.asarray(x) for name, x in fields.items() if x is not None}
    for name, array in fields.items():
        if not jnp.issubdtype(array.dtype, jnp.floating) or array.dtype.itemsize < 2:
            raise ValueError(f"The episodes' {name} have dtype {array.dtype}; pass them .astype(float).")
    weights = jtu.tree_leaves(eqx.filter(model, trainable(model)))
    dtypes = [x.dtype for x in [*fields.values(), *weights] if jnp.issubdtype(x.dtype, jnp.floating)]
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(*dtypes)
    whole = episodes.length is None or bool((episodes.length == episodes.horizon).all())  # No mask is needed then.
    length = None if whole else jnp.asarray(episodes.length)
    in_dtype = {name: x.astype(dtype) for name, x in fields.items()}
    return Trajectory(**in_dtype, length=length, terminated=episodes.terminated, t=episodes.t)
