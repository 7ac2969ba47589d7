"""The rules by which Gymnasium's MuJoCo bodies end an episode, as functions of the quantities that they read.

They follow `is_healthy` and `terminated` in gymnasium/envs/mujoco/*_v5.py with default arguments.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Scalar

from .._checks import describe


def _positive(width: Any) -> Float[Array, ""] | None:
    """Return the width as an array; raise unless it is one positive number, which may be traced, or `None`."""
    if width is None:
        return None
    real = isinstance(width, int | float | np.number | np.ndarray | Array) and not isinstance(width, bool)
    # `not 0 < width`, because NaN is to be refused too.
    if not real or jnp.shape(width) != () or not isinstance(width, Tracer) and not 0 < width < float("inf"):
        raise ValueError(
            f"The width of a healthy range must be one positive number, got {describe(width)}; give 0.05, or None."
        )
    return jnp.asarray(width, float)


class Healthy(eqx.Module):
    """End an episode where a margin of the next state is not positive, or where the next state is not finite.

    With a `width`, return the probability p = 1 - prod_i sigmoid(margin_i / width) instead of a bool.

    - `margins`: returns the distances of a state to the bounds of its healthy range, shape (n,), positive inside of it.
    - `closed`: whether the bounds themselves are healthy.
    - `width`: in the units of the margins, or `None`.
    """

    margins: Callable[[Array], Array] = eqx.field(static=True)
    closed: bool = eqx.field(static=True, default=False)
    width: Float[Array, ""] | None = eqx.field(default=None, converter=_positive)

    def __call__(self, state, action, t, next_state):
        if self.width is None:
            return ~self.is_healthy(next_state)
        scaled = self.margins(next_state) / self.width.astype(next_state.dtype)
        return -jnp.expm1(jnp.sum(jax.nn.log_sigmoid(scaled)))

    def is_healthy(self, state: Float[Array, " S"]) -> Bool[Array, ""]:
        margins = self.margins(state)
        return jnp.all(margins >= 0 if self.closed else margins > 0) & jnp.all(jnp.isfinite(state))


def within(x: Scalar, low: float, high: float) -> Float[Array, " 2"]:
    """The margins of low < x < high. The sign of a difference is exact, so they are positive where the comparison is true."""
    return jnp.stack([x - low, high - x])


def hopper(state: Float[Array, " S"]) -> Float[Array, " n"]:
    """The state begins with the height and the angle of the torso."""
    others = state[1:]
    return jnp.concatenate([state[:1] - 0.7, within(state[1], -0.2, 0.2), 100 - others, others + 100])


def walker(state: Float[Array, " S"]) -> Float[Array, " 4"]:
    """The state begins with the height and the angle of the torso."""
    return jnp.concatenate([within(state[0], 0.8, 2.0), within(state[1], -1.0, 1.0)])


def pendulum(state: Float[Array, " 4"]) -> Float[Array, " 2"]:
    """The state is the cart's position, the pole's angle, and their speeds."""
    return within(state[1], -0.2, 0.2)


def double_pendulum(height: Scalar) -> Float[Array, " 1"]:
    return height[None] - 1.0


def ant(state: Float[Array, " S"]) -> Float[Array, " 2"]:
    """The state begins with the height of the torso."""
    return within(state[0], 0.2, 1.0)


def humanoid(state: Float[Array, " S"]) -> Float[Array, " 2"]:
    """The state begins with the height of the torso."""
    return within(state[0], 1.0, 2.0)
