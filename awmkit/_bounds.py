"""Actions in [-1, 1] as numbers between the bounds of a control."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def scale_to_bounds(action: Float[Array, " A"], low: Float[Array, " A"], high: Float[Array, " A"]) -> Float[Array, " A"]:
    """Map actions in [-1, 1] to [low, high], and -1 and 1 exactly to the bounds. Actions beyond 1 are mapped beyond the bounds.

    The derivative is (high - low) / 2 everywhere.
    """
    scaled = low + (action + 1) / 2 * (high - low)
    bounded = jnp.where(jnp.abs(action) < 1, jnp.clip(scaled, low, high), scaled)
    exact = jnp.where(action == -1, low, jnp.where(action == 1, high, bounded))
    return scaled + lax.stop_gradient(exact - scaled)  # The difference is a rounding error.
