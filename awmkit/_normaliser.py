"""Statistics of data, kept inside a model or a policy as leaves that no optimiser moves.

Apart because models and policies share them, and `fit` must know them from weights.
"""

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from jax import lax
from jaxtyping import Array, Float, PyTree


class Normaliser(eqx.Module):
    """An affine map to zero mean and unit standard deviation, entry by entry.

    Real tasks have states of size 800 beside states of size 0.04; a network wants both of size 1.

    **Arguments:** `size`: the number of entries. A new normaliser is the identity, exactly.
    """

    shift: Float[Array, " D"]
    scale: Float[Array, " D"]

    def __init__(self, size: int):
        self.shift = jnp.zeros(size)
        self.scale = jnp.ones(size)

    def fitted(self, data: Float[Array, "*batch D"]) -> "Normaliser":
        """With the mean and standard deviation of `data`. An entry that does not vary is shifted but not scaled."""
        data = data.reshape(-1, data.shape[-1])
        spread = jnp.std(data, axis=0)
        # Below this, the spread is the rounding error of the mean.
        floor = jnp.finfo(data.dtype).eps * jnp.maximum(jnp.max(jnp.abs(data), axis=0), 1e-30)
        scale = jnp.where(spread > 8 * floor, spread, 1)
        return eqx.tree_at(lambda n: (n.shift, n.scale), self, (jnp.mean(data, axis=0), scale))

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
