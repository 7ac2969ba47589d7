"""Actions in [-1, 1] as numbers between the bounds of a control, and back."""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ._checks import describe, kind


def scale_actions(actions: ArrayLike, low: ArrayLike, high: ArrayLike) -> Float[Array, "*batch A"]:
    """Map actions in [low, high] to [-1, 1], the units of awmkit's policies and models: 2 (a - low) / (high - low) - 1.

    ```python
    space = env.action_space  # A data set has the actions that the environment got.
    episodes = Trajectory.from_episodes([(s, scale_actions(a, space.low, space.high), r) for s, a, r in data])
    ```

    **Arguments**

    - `actions`: shape (..., A). Actions beyond the bounds are mapped beyond 1; clip them first if the environment clips them.
    - `low`, `high`: the bounds, one number for all entries of an action, or one for each, shape (A,).

    **Raises:** `ValueError` if a bound is not finite, has another shape, or `low` is not below `high`.
    """
    actions, low, high = _checked("scale_actions", actions, low, high)
    return 2 * (actions - low) / (high - low) - 1


def unscale_actions(actions: ArrayLike, low: ArrayLike, high: ArrayLike) -> Float[Array, "*batch A"]:
    """Map actions in [-1, 1] to [low, high], the inverse of `scale_actions`. -1 and 1 are mapped exactly to the bounds.

    Arguments and errors are those of `scale_actions`.
    """
    return scale_to_bounds(*_checked("unscale_actions", actions, low, high))


def _checked(who: str, *arrays: ArrayLike) -> list[Array]:
    """Return actions and bounds as arrays of floats, or raise."""
    try:
        actions, low, high = (x if isinstance(x, Tracer) else np.asarray(x) for x in arrays)
    except (TypeError, ValueError):  # Rows of different lengths.
        actions = low = high = np.array(None)
    if not all(x.dtype.kind in "biuf" or jnp.issubdtype(x.dtype, jnp.floating) for x in (actions, low, high)):
        raise ValueError(f"{who} needs actions, low and high of real numbers, got {', '.join(map(kind, arrays))}; pass arrays.")
    if actions.ndim < 1 or any(x.shape not in ((), actions.shape[-1:]) for x in (low, high)):
        raise ValueError(
            f"{who} needs actions of shape (..., A) and low and high of shape (A,), got {describe(actions)}, {describe(low)} and "
            f"{describe(high)}; give one bound for each entry of an action."
        )
    if not isinstance(low, Tracer) and not isinstance(high, Tracer):
        ranges = np.isfinite(low) & np.isfinite(high) & np.less(low, high)
        if not ranges.all():
            at = int(np.argmin(np.ravel(ranges)))
            ends = [float(np.broadcast_to(x, ranges.shape).ravel()[at]) for x in (low, high)]
            raise ValueError(
                f"{who} needs finite bounds with low below high, got low={ends[0]:g} and high={ends[1]:g} for entry {at} of an "
                "action; leave out entries that cannot vary, and set finite bounds for the others."
            )
    dtype = actions.dtype if jnp.issubdtype(actions.dtype, jnp.floating) else jnp.dtype(float)
    return [jnp.asarray(x).astype(dtype) for x in (actions, low, high)]


def scale_to_bounds(
    action: Float[Array, "*batch A"], low: Float[Array, "..."], high: Float[Array, "..."]
) -> Float[Array, "*batch A"]:
    """Map actions in [-1, 1] to [low, high], and -1 and 1 exactly to the bounds. Actions beyond 1 are mapped beyond the bounds.

    The derivative is (high - low) / 2 everywhere.
    """
    scaled = low + (action + 1) / 2 * (high - low)
    bounded = jnp.where(jnp.abs(action) < 1, jnp.clip(scaled, low, high), scaled)
    exact = jnp.where(action == -1, low, jnp.where(action == 1, high, bounded))
    return scaled + lax.stop_gradient(exact - scaled)  # The difference is a rounding error.
