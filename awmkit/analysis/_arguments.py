"""Checks of the arguments that several analyses share: starts, actions and horizons."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from .._paths import Paths
from .._unroll_checks import check_arguments

Horizons = Sequence[int] | Int[np.ndarray, " n"]


def check_plan(dynamics, state, actions, *, key) -> tuple[Float[Array, " S"], Float[Array, "H A"]]:
    """Return s_0 and a_0 ... a_{H-1} as arrays; raise as `unroll` does if they do not fit the dynamics."""
    if jnp.ndim(actions) != 2:
        raise ValueError(f"actions must have shape (H, A), got {jnp.shape(actions)}; pass one row per step.")
    state, actions = check_arguments(dynamics, actions, state, len(actions), key=key, paths=Paths(), method=None)
    assert isinstance(actions, Array)
    return state, actions


def check_batch(dynamics, states, actions, *, key) -> tuple[Float[Array, "N S"], Float[Array, "N H A"]]:
    """Return N starts and their actions as arrays; raise if they do not fit the dynamics or are not finite."""
    if jnp.ndim(states) != 2 or jnp.ndim(actions) != 3 or len(states) != len(actions) or len(states) == 0:
        raise ValueError(
            f"states must have shape (N, S) and actions (N, H, A), got {jnp.shape(states)} and {jnp.shape(actions)}; pass one "
            "sequence of actions per start."
        )
    check_plan(dynamics, states[0], actions[0], key=key)
    for name, array in (("states", states), ("actions", actions)):
        if not isinstance(array, Tracer) and not np.isfinite(array).all():
            where = np.argwhere(~np.isfinite(np.asarray(array)))[0].tolist()
            raise ValueError(
                f"{name} must be finite, got {np.asarray(array)[tuple(where)]} at index {where}; drop such starts."
            )
    return jnp.asarray(states), jnp.asarray(actions)


def check_horizons(horizons: Horizons | None, longest: int, *, count: int = 4) -> np.ndarray:
    """Return the horizons in ascending order, by default eight; raise unless at least `count` differ and all are in 1 ... H."""
    if horizons is None:
        horizons = np.round(np.geomspace(min(4, max(1, longest // 4)), longest, 8)).astype(int)
    chosen = np.unique(np.asarray(horizons))
    if chosen.size < count or chosen[0] < 1 or chosen[-1] > longest or not np.issubdtype(chosen.dtype, np.integer):
        raise ValueError(
            f"horizons must hold at least {count} different whole numbers from 1 to {longest}, the number of steps, "
            f"got {chosen.tolist()}."
        )
    return chosen
