"""Checks of the arguments that several analyses share: starts, actions and horizons."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from .._checks import check_shapes, describe
from .._paths import Paths
from .._unroll_checks import check_arguments, check_dynamics

Horizons = Sequence[int] | Int[np.ndarray, " n"]


def check_plan(dynamics, state, actions, *, key) -> tuple[Float[Array, " S"], Float[Array, "H A"]]:
    """Return s_0 and a_0 ... a_{H-1} as arrays; raise as `unroll` does if they do not fit the dynamics."""
    check_dynamics(dynamics)
    state, actions = as_array("state", state), as_array("actions", actions)
    fix = "pass one start and one action per step, and use jax.vmap for several starts"
    shapes = (dynamics.state_size,), ("H", dynamics.action_size)
    check_shapes(type(dynamics).__name__, fix, state=(state, shapes[0]), actions=(actions, shapes[1]))
    state, actions = check_arguments(dynamics, actions, state, len(actions), key=key, paths=Paths(), method=None)
    assert isinstance(actions, Array)
    return state, actions


def check_batch(dynamics, states, actions, *, key) -> tuple[Float[Array, "N S"], Float[Array, "N H A"]]:
    """Return N starts and their actions as arrays; raise if they do not fit the dynamics or are not finite."""
    check_dynamics(dynamics)
    states, actions = as_array("states", states), as_array("actions", actions)
    shapes = ("N", dynamics.state_size), ("N", "H", dynamics.action_size)
    fix = "pass one sequence of actions per start"
    check_shapes(type(dynamics).__name__, fix, states=(states, shapes[0]), actions=(actions, shapes[1]))
    check_starts(states)
    check_plan(dynamics, states[0], actions[0], key=key)
    _check_finite("actions", actions)
    return jnp.asarray(states), jnp.asarray(actions)


def check_starts(states: Float[Array, "N S"]) -> None:
    """Raise if there is no start, or if one is not finite."""
    if len(states) == 0:
        raise ValueError(f"states must hold at least one start, got {describe(states)}; pass more starts, with their actions.")
    _check_finite("states", states)


def _check_finite(name: str, array) -> None:
    if not isinstance(array, Tracer) and not np.isfinite(array).all():
        where = np.argwhere(~np.isfinite(np.asarray(array)))[0].tolist()
        raise ValueError(f"{name} must be finite, got {np.asarray(array)[tuple(where)]} at index {where}; drop such starts.")


def check_horizons(horizons: Horizons | None, longest: int | None, *, count: int = 4) -> np.ndarray:
    """Return the horizons in ascending order, by default eight; raise unless at least `count` differ and all are in 1 ... H."""
    if horizons is None:
        assert longest is not None
        if longest < count:
            raise ValueError(
                f"At least {count} steps are needed, one for each horizon, got {longest}; pass longer sequences of actions."
            )
        horizons = np.round(np.geomspace(min(4, max(1, longest // 4)), longest, 8)).astype(int)
    given = np.asarray(as_array("horizons", horizons))
    chosen = np.unique(given) if given.ndim == 1 and np.issubdtype(given.dtype, np.integer) else np.array([], int)
    if chosen.size < count or chosen[0] < 1 or longest is not None and chosen[-1] > longest:
        most = "" if longest is None else f" to {longest}, the number of steps"
        raise ValueError(
            f"horizons must hold at least {count} different whole numbers from 1{most}, got {given.tolist()}; pass a list, such "
            f"as {list(range(1, count + 1))}."
        )
    return chosen


def as_array(name: str, x: Any) -> Any:
    """Return lists and tuples as a NumPy array, and anything else as it is."""
    if not isinstance(x, list | tuple):
        return x
    try:
        return np.asarray(x)
    except ValueError:
        raise ValueError(
            f"{name} must be an array of numbers, got rows of different lengths; give each row the same length."
        ) from None
