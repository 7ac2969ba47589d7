"""`Normaliser`: means and standard deviations of data, kept inside a model or policy and not trained."""

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from ._checks import check_counts, describe
from ._norms import rms, scale_of


class Normaliser(eqx.Module):
    """An affine map to zero mean and unit standard deviation, entry by entry.

    Networks train best on inputs and outputs of size 1, but one state may have entries of size 800 and 0.04. A new normaliser
    is the identity; `fitted` takes its statistics from data. Calling it normalises, `inverse` undoes it, and no gradient
    reaches its statistics.

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

    def fitted(self, data: Float[Array, "*batch D"]) -> "Normaliser":
        """Return this normaliser with the statistics of `data`.

        An entry that does not vary is shifted but not scaled. With `per_step_scale`, the scale of a step is at least 2 % of the
        scale over all steps, so that predictions can leave the mean everywhere.

        **Arguments:** `data`: shape (N, D), or with any other leading axes; (N, T, D) with `per_step`.

        **Raises:** `ValueError` if `data` has no row, or a number of entries other than D.
        """
        size, needed = self.shift.shape[-1], 3 if self.per_step else 1
        if jnp.ndim(data) < needed or jnp.shape(data)[-1] != size or not jnp.size(data):
            shape = f"(N, T, {size})" if self.per_step else f"(N, {size})"
            raise ValueError(f"data must have shape {shape} with at least one row, got {describe(data)}.")
        unit = scale_of(data, tuple(range(data.ndim - 1))).reshape(size)
        data = data / unit  # Otherwise the squares of 1e20 overflow, and those of 1e-23 vanish.
        rows = data.reshape(-1, size)
        shift = jnp.mean(data, axis=0) if self.per_step else jnp.mean(rows, axis=0)
        spread = jnp.std((data - shift).reshape(rows.shape), axis=0)
        # Below this, the spread is the rounding error of the mean.
        floor = jnp.finfo(data.dtype).eps * jnp.max(jnp.abs(rows), axis=0)
        each = jnp.maximum(jnp.std(data, axis=0), 0.02 * spread) if self.per_step_scale else spread
        scale = jnp.where(spread > 8 * floor, jnp.maximum(each * unit, jnp.finfo(data.dtype).tiny), 1)
        return eqx.tree_at(lambda n: (n.shift, n.scale), self, (shift * unit, scale))

    @property
    def overall(self) -> Float[Array, " D"]:
        """The standard deviation pooled over all steps. Errors are divided by it; dividing by per-step deviations would
        overweight steps that barely vary."""
        return rms(self.scale, 0) if self.scale.ndim > 1 else self.scale

    def at(self, t: Int[ArrayLike, "*steps"]) -> "Normaliser":
        """Return the normaliser of step or steps `t`; a step beyond the data uses the last one."""
        of_step = lambda x: x if x.ndim == 1 else x[jnp.minimum(t, x.shape[0] - 1)]
        return eqx.tree_at(lambda n: (n.shift, n.scale), self, (of_step(self.shift), of_step(self.scale)))

    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """Normalise `x`."""
        return (x - lax.stop_gradient(self.shift)) / lax.stop_gradient(self.scale)

    def inverse(self, y: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """Undo the normalisation."""
        return y * lax.stop_gradient(self.scale) + lax.stop_gradient(self.shift)


def trainable(tree: PyTree) -> PyTree[bool]:
    """Return a tree of booleans that marks what an optimiser trains: floating-point arrays outside of normalisers."""
    # A normaliser counts as one leaf here, which is not an array, so its arrays are not marked.
    return jtu.tree_map(eqx.is_inexact_array, tree, is_leaf=lambda x: isinstance(x, Normaliser))
