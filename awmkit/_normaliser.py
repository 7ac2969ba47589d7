"""Statistics of data, kept inside a model or a policy as leaves that no optimiser moves.

Apart because models and policies share them, and `fit` must know them from weights.
"""

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from ._checks import check_counts, describe


class Normaliser(eqx.Module):
    """An affine map to zero mean and unit standard deviation, entry by entry.

    Real tasks have states of size 800 beside states of size 0.04; a network wants both of size 1.

    **Arguments**

    - `size`: the number of entries D. A new normaliser is the identity, exactly.
    - `per_step`: whether the mean of sequences is taken step by step, and the standard deviation about it.
    - `per_step_scale`: with `per_step`, whether that too is taken step by step, and not over all steps.
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
        """With the mean and standard deviation of `data`, (N, D) or of any other leading shape; `per_step`, of (N, T, D).

        An entry that does not vary is shifted but not scaled. Steps at which one varies less than a fiftieth of what it does
        over all steps are scaled by that, so that a prediction can leave the mean everywhere.

        **Raises:** `ValueError` for data of another number of entries, or none.
        """
        size, needed = self.shift.shape[-1], 3 if self.per_step else 1
        if jnp.ndim(data) < needed or jnp.shape(data)[-1] != size or not jnp.size(data):
            shape = f"(N, T, {size})" if self.per_step else f"(N, {size})"
            raise ValueError(f"Normaliser.fitted got {describe(data)}; give at least one row of data, {shape}.")
        rows = data.reshape(-1, data.shape[-1])
        shift = jnp.mean(data, axis=0) if self.per_step else jnp.mean(rows, axis=0)
        spread = jnp.std((data - shift).reshape(rows.shape), axis=0)
        # Below this, the spread is the rounding error of the mean.
        floor = jnp.finfo(data.dtype).eps * jnp.maximum(jnp.max(jnp.abs(rows), axis=0), 1e-30)
        each = jnp.maximum(jnp.std(data, axis=0), 0.02 * spread) if self.per_step_scale else spread
        return eqx.tree_at(lambda n: (n.shift, n.scale), self, (shift, jnp.where(spread > 8 * floor, each, 1)))

    @property
    def overall(self) -> Float[Array, " D"]:
        """The standard deviation over all steps, about the means: the unit of errors, which by step would weigh most where
        least happens."""
        return jnp.sqrt(jnp.mean(self.scale**2, axis=0)) if self.scale.ndim > 1 else self.scale

    def at(self, t: Int[ArrayLike, "*steps"]) -> "Normaliser":
        """That of step `t`, or of several; of a step beyond the data, the last one's."""
        of_step = lambda x: x if x.ndim == 1 else x[jnp.minimum(t, x.shape[0] - 1)]
        return eqx.tree_at(lambda n: (n.shift, n.scale), self, (of_step(self.shift), of_step(self.scale)))

    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """To units of the data."""
        return (x - lax.stop_gradient(self.shift)) / lax.stop_gradient(self.scale)

    def inverse(self, y: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """From units of the data."""
        return y * lax.stop_gradient(self.scale) + lax.stop_gradient(self.shift)


def trainable(tree: PyTree) -> PyTree[bool]:
    """Which leaves an optimiser may move: floating-point arrays outside of normalisers."""
    # A normaliser taken as a leaf is no array.
    return jtu.tree_map(eqx.is_inexact_array, tree, is_leaf=lambda x: isinstance(x, Normaliser))
