"""Matrix products whose factors may be rounded."""

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float


def matmul(x: Float[Array, "*batch T I"], y: Float[Array, "*batch I O"], dtype: DTypeLike | None) -> Float[Array, "*batch T O"]:
    """Return x y, with the factors rounded to `dtype` and the sums in the dtype of x."""
    if dtype is None:
        return x @ y
    return jnp.matmul(x.astype(dtype), y.astype(dtype), preferred_element_type=x.dtype)
