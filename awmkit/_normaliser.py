"""`Normaliser`: means and standard deviations of data, kept inside a model or policy and not trained."""

from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree

from ._checks import check_counts, check_shapes, describe
from ._norms import rms, scale_of
from ._trajectory import Trajectory

T = TypeVar("T", bound=PyTree)


class Normaliser(eqx.Module):
    """An affine map to zero mean and unit standard deviation, entry by entry.

    Networks train best on inputs and outputs of size 1, but one state may have entries of size 800 and 0.04. A new normaliser
    is the identity; `fitted` takes its statistics from data. Calling it normalises, `inverse` undoes it, and no gradient
    reaches its statistics. `awmkit.fit` and `awmkit.train` fit the normalisers that are not set, and keep those that are.

    **Arguments**

    - `size`: number of entries D.
    - `per_step`: whether each step of a sequence has its own mean. Standard deviations are then taken about these means.
    - `per_step_scale`: whether each step also has its own standard deviation; needs `per_step`.

    **Raises:** `ValueError` if `size` is not a whole number of at least 1.
    """

    shift: Float[Array, "*T D"]
    scale: Float[Array, "*T D"]
    per_step: bool = eqx.field(static=True)
    per_step_scale: bool = eqx.field(static=True)

    def __init__(self, size: int, *, per_step: bool = False, per_step_scale: bool = False):
        check_counts("Normaliser", size=size)
        self.shift = jnp.zeros(size)
        self.scale = jnp.ones(size)
        self.per_step = per_step
        self.per_step_scale = per_step_scale

    @property
    def is_set(self) -> Bool[Array, ""]:
        """Whether the statistics come from data: those of a new normaliser are shift 0 and scale 1."""
        return jnp.any(self.shift != 0) | jnp.any(self.scale != 1)

    def fitted(self, data: Float[Array, "*batch D"], mask: Bool[Array, "*batch"] | None = None) -> "Normaliser":
        """Return this normaliser with the statistics of `data`, whether it was set or not.

        An entry that does not vary is shifted but not scaled. With `per_step_scale`, the scale of a step is at least 2 % of the
        scale over all steps, so that predictions can leave the mean everywhere.

        With `per_step` and a mask, some steps may have few rows. Those with less than a tenth of N rows, or less than 8 (or N, if
        that is smaller), share the statistics of all their rows together, or, if even these are that few, those of the last step
        that has enough.

        **Arguments:** `data`: shape (N, D), or with any other leading axes; (N, T, D) with `per_step`. `mask`: which rows count,
        the shape of `data` without D; all by default. Other rows are not read.

        **Raises:** `ValueError` if `data` has no row, a number of entries other than D, a dtype that is not floating point, or
        entries that are not finite.
        """
        size = self.shift.shape[-1]
        leading = ("N", "T") if self.per_step else ("*",)
        given = {"data": (data, (*leading, size))} | ({} if mask is None else {"mask": (mask, leading)})
        check_shapes("Normaliser.fitted", "give one row per sample", **given)
        if not data.size:
            raise ValueError(f"data must have at least one row, got {describe(data)}; give more data.")
        data = jnp.asarray(data)
        if not jnp.issubdtype(data.dtype, jnp.floating):
            raise ValueError(f"data must be floating point, got {describe(data)}; pass them .astype(float).")
        if mask is not None:
            mask = jnp.asarray(mask)
            if mask.dtype != bool:
                raise ValueError(f"mask must be of True and False, got {describe(mask)}; pass mask.astype(bool).")
            if not isinstance(mask, Tracer) and not bool(mask.any()):
                raise ValueError("mask leaves no row of data; give at least one row.")
            data = jnp.where(mask[..., None], data, 0)
        if not isinstance(data, Tracer) and not bool(jnp.isfinite(data).all()):
            raise ValueError("data must be finite, got NaN or infinity; leave out such rows.")
        unit = scale_of(data, tuple(range(data.ndim - 1))).reshape(size)
        data = data / jnp.broadcast_to(unit, data.shape)  # Otherwise the squares of 1e20 overflow, and those of 1e-23 vanish.
        rows = data.reshape(-1, size)
        if mask is None:
            shift = jnp.mean(data, axis=0) if self.per_step else jnp.mean(rows, axis=0)
            spread = jnp.std((data - jnp.broadcast_to(shift, data.shape)).reshape(rows.shape), axis=0)
            deviation = jnp.std(data, axis=0) if self.per_step_scale else spread
        else:
            mean = _masked_mean_by_step if self.per_step else _masked_mean
            shift = mean(data, mask)
            squares = (data - jnp.broadcast_to(shift, data.shape)) ** 2
            spread = jnp.sqrt(_masked_mean(squares, mask))
            deviation = jnp.sqrt(mean(squares, mask)) if self.per_step_scale else spread
        # Below this, the spread is the rounding error of the mean.
        floor = jnp.finfo(data.dtype).eps * jnp.max(jnp.abs(rows), axis=0)
        each = spread
        if self.per_step_scale:
            each = jnp.maximum(deviation, jnp.broadcast_to(0.02 * spread, shift.shape))
        scale = jnp.maximum(each * jnp.broadcast_to(unit, each.shape), jnp.finfo(data.dtype).tiny)
        scale = jnp.where(jnp.broadcast_to(spread > 8 * floor, each.shape), scale, 1)
        return eqx.tree_at(lambda n: (n.shift, n.scale), self, (shift * jnp.broadcast_to(unit, shift.shape), scale))

    @property
    def overall(self) -> Float[Array, " D"]:
        """The standard deviation pooled over all steps. Errors are divided by it; dividing by per-step deviations would
        overweight steps that barely vary."""
        return rms(self.scale, 0) if self.scale.ndim > 1 else self.scale

    def at(self, t: Int[ArrayLike, "*steps"]) -> "Normaliser":
        """Return the normaliser of step or steps `t`; a step beyond the data uses the last one."""
        t = jnp.asarray(t)
        of_step = lambda x: x if x.ndim == 1 else x[jnp.minimum(t, x.shape[0] - 1)]
        return eqx.tree_at(lambda n: (n.shift, n.scale), self, (of_step(self.shift), of_step(self.scale)))

    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """Normalise `x`.

        **Raises:** `ValueError` if `x` does not have D entries along its last axis, or as many steps as the statistics.
        """
        shift, scale = self._statistics(x)
        return (x - shift) / scale

    def inverse(self, y: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """Undo the normalisation.

        **Raises:** `ValueError` as `__call__`.
        """
        shift, scale = self._statistics(y)
        return y * scale + shift

    def _statistics(self, x: Array) -> tuple[Array, Array]:
        """Return shift and scale in the shape of `x`, without a gradient."""
        check_shapes(
            "Normaliser", "select the statistics of one step first with normaliser.at(t)", x=(x, ("*", *self.shift.shape))
        )
        shift, scale = (jnp.broadcast_to(s, x.shape) for s in (self.shift, self.scale))
        return lax.stop_gradient(shift), lax.stop_gradient(scale)


def _masked_mean(x: Float[Array, "*batch D"], mask: Bool[Array, "*batch"]) -> Float[Array, " D"]:
    """Return the mean of the rows in the mask. The others are finite."""
    axes = tuple(range(mask.ndim))
    return jnp.sum(jnp.where(mask[..., None], x, 0), axis=axes) / jnp.maximum(jnp.sum(mask), 1).astype(x.dtype)


def _masked_mean_by_step(x: Float[Array, "N T D"], mask: Bool[Array, "N T"]) -> Float[Array, "T D"]:
    """Return the mean at each step of the rows in the mask; `Normaliser.fitted` says what that is for steps with few rows."""
    count = jnp.sum(mask, axis=0)
    rows = jnp.sum(jnp.any(mask, axis=1))  # In a compiled program, some rows may be all padding.
    enough = jnp.maximum((rows + 9) // 10, jnp.minimum(rows, 8))
    often = count >= enough
    rarely = mask & ~often[None]
    each = jnp.sum(jnp.where(mask[..., None], x, 0), axis=0) / jnp.maximum(count, 1)[:, None].astype(x.dtype)
    last = each[mask.shape[1] - 1 - jnp.argmax(often[::-1])]
    together = jnp.where((jnp.sum(rarely) >= enough) | ~jnp.any(often), _masked_mean(x, rarely), last)
    return jnp.where(often[:, None], each, jnp.broadcast_to(together, each.shape))


def _is_normaliser(x: Any) -> bool:
    return isinstance(x, Normaliser)


def trainable(tree: PyTree) -> PyTree[bool]:
    """Return a tree of booleans that marks what an optimiser trains: floating-point arrays outside of normalisers."""
    # A normaliser counts as one leaf here, which is not an array, so its arrays are not marked.
    return jtu.tree_map(eqx.is_inexact_array, tree, is_leaf=_is_normaliser)


def normalisers(tree: PyTree) -> list[Normaliser]:
    """Return all normalisers in `tree`. Those of an ensemble, which stacks its members, are the shapes of one member's."""
    stacks = lambda x: getattr(x, "stacks_members", False)
    parts = jtu.tree_leaves(tree, is_leaf=lambda x: _is_normaliser(x) or stacks(x))
    of_one = lambda n: jtu.tree_map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), n)
    found = [map(of_one, normalisers(x.models)) if stacks(x) else [x] for x in parts if _is_normaliser(x) or stacks(x)]
    return [n for group in found for n in group]


def is_stacked(tree: PyTree) -> bool:
    """Return whether the normalisers in `tree` have a leading axis, as those of several models built by `eqx.filter_vmap`.

    An ensemble counts as one model.
    """
    return any(n.shift.ndim > 1 + n.per_step or n.scale.ndim > 1 + n.per_step_scale for n in normalisers(tree))


def fill(tree: T, fitted: T) -> T:
    """Return `fitted`, with the normalisers of `tree` where those are set. Their dtypes are those in `tree`."""

    def pick(old, new):
        if not _is_normaliser(old) or old.shift.shape != new.shift.shape and old.shift.ndim > 1:
            return old if _is_normaliser(old) else new  # Statistics per step are set, perhaps for another number of steps.
        keep = lambda x, y: jnp.where(old.is_set, jnp.broadcast_to(x, y.shape), y.astype(x.dtype))
        return eqx.tree_at(lambda n: (n.shift, n.scale), new, (keep(old.shift, new.shift), keep(old.scale, new.scale)))

    return jtu.tree_map(pick, tree, fitted, is_leaf=_is_normaliser)


def rows_of(episodes: Trajectory, count: int) -> Bool[Array, "*batch T"] | None:
    """Return which of the first `count` rows of each episode are no padding: H steps, or H + 1 states. `None` stands for all.

    An empty window has no rows.
    """
    if episodes.length is None:
        return None
    length = jnp.asarray(episodes.length)[..., None]
    rows = jnp.arange(count).reshape(*(1,) * (length.ndim - 1), -1) < length + (count - episodes.horizon)
    return rows & (length > 0)


def normalise_inputs(network: T, episodes: Trajectory) -> T:
    """Return a policy or critic, its `input_norm` set by the statistics of the episodes' states if it has one that is not set."""
    if not isinstance(norm := getattr(network, "input_norm", None), Normaliser):
        return network
    fitted = norm.fitted(episodes.states, rows_of(episodes, episodes.states.shape[-2]))
    return fill(network, eqx.tree_at(lambda n: n.input_norm, network, fitted))
