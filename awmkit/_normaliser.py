"""Statistics of data, kept inside a model or a policy as leaves that no optimiser moves.

Apart because models and policies share them, and `fit` must know them from weights.
"""

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int, PyTree


class Normaliser(eqx.Module):
    """An affine map to zero mean and unit standard deviation, entry by entry.

    Real tasks have states of size 800 beside states of size 0.04; a network wants both of size 1.

    **Arguments**

    - `size`: the number of entries D. A new normaliser is the identity, exactly.
    - `by_step`: whether the mean of sequences is taken step by step; the standard deviation is of what is left, over all steps.
    """

    shift: Float[Array, "*T D"]
    scale: Float[Array, " D"]
    by_step: bool = eqx.field(static=True)

    def __init__(self, size: int, *, by_step: bool = False):
        self.shift = jnp.zeros(size)
        self.scale = jnp.ones(size)
        self.by_step = by_step

    def fitted(self, data: Float[Array, "*batch D"]) -> "Normaliser":
        """With the mean and standard deviation of `data`, (N, D) or of any other leading shape; `by_step`, of (N, T, D).

        An entry that does not vary is shifted but not scaled.
        """
        rows = data.reshape(-1, data.shape[-1])
        shift = jnp.mean(data, axis=0) if self.by_step else jnp.mean(rows, axis=0)
        spread = jnp.std((data - shift).reshape(rows.shape), axis=0)
        # Below this, the spread is the rounding error of the mean.
        floor = jnp.finfo(data.dtype).eps * jnp.maximum(jnp.max(jnp.abs(rows), axis=0), 1e-30)
        scale = jnp.where(spread > 8 * floor, spread, 1)
        return eqx.tree_at(lambda n: (n.shift, n.scale), self, (shift, scale))

    def at(self, t: Int[ArrayLike, "*steps"]) -> "Normaliser":
        """That of step `t`, or of several; of a step beyond the data, the last one's."""
        if self.shift.ndim == 1:
            return self
        t = jnp.minimum(t, self.shift.shape[0] - 1)
        return eqx.tree_at(lambda n: n.shift, self, self.shift[t])

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
