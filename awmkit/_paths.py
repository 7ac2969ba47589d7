"""Which edges between steps carry gradient, and how much of it.

Every gradient path that the paper talks about crosses one of three methods of `Paths`, so that what a path
carries is decided here, for a simulator and a world model alike.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, ScalarLike

EDGES = ("state_to_policy", "state_to_model", "action_to_model")


class Paths(eqx.Module):
    """Gains of the gradient on the edges of an unroll. Values never change, whatever the gains.

    ```
    a_t     = policy(s_t)            state_to_policy: s_t into the policy
    s_{t+1} = dynamics(s_t, a_t)     state_to_model: s_t fed back;   action_to_model: a_t into the dynamics
    r_t     = reward(s_t, a_t)       always carries its full gradient
    ```

    `Paths()` is backpropagation through everything; `awmkit.BPO` is `Paths(state_to_policy=0.0)`, the paper's policy
    gradient, in which the policy reads detached states; `Paths(state_to_model=0.9)` damps each hop of a Markov model.

    **Arguments**

    - `state_to_policy`, `state_to_model`, `action_to_model`: finite scalars, possibly traced: 0 cuts the edge, 1 leaves it.

    **Raises:** `ValueError` for an edge of another name and for a gain that is not a finite scalar.
    """

    state_to_policy: ScalarLike
    state_to_model: ScalarLike
    action_to_model: ScalarLike

    def __init__(
        self,
        state_to_policy: ScalarLike = 1.0,
        state_to_model: ScalarLike = 1.0,
        action_to_model: ScalarLike = 1.0,
        **unknown: object,
    ):
        if unknown:
            raise ValueError(f"Paths has no edge {', '.join(map(repr, unknown))}; use {', '.join(EDGES)}.")
        for edge, gain in zip(EDGES, (state_to_policy, state_to_model, action_to_model), strict=True):
            _check_gain(edge, gain)
        self.state_to_policy = state_to_policy
        self.state_to_model = state_to_model
        self.action_to_model = action_to_model

    def to_policy(self, states: Float[Array, "*batch S"]) -> Float[Array, "*batch S"]:
        """States as the policy reads them."""
        return scale_gradient(states, self.state_to_policy)

    def feed_back(self, states: Float[Array, "*batch S"]) -> Float[Array, "*batch S"]:
        """States as the dynamics reads them."""
        return scale_gradient(states, self.state_to_model)

    def to_model(self, actions: Float[Array, "*batch A"]) -> Float[Array, "*batch A"]:
        """Actions as the dynamics reads them."""
        return scale_gradient(actions, self.action_to_model)


def _check_gain(edge: str, gain: ScalarLike) -> None:
    if not isinstance(gain, int | float | complex) and getattr(gain, "shape", None) != ():
        raise ValueError(f"The gain of {edge} is {gain!r}; give one real number, such as 0.0 to cut the edge.")
    if isinstance(gain, complex) or (isinstance(gain, int | float) and not math.isfinite(gain)):
        raise ValueError(f"The gain of {edge} is {gain!r}; give a finite real number, such as 0.0 to cut the edge.")


def is_cut(gain: ScalarLike) -> bool:
    """Whether a gain is known, without running anything, to be 0."""
    return isinstance(gain, int | float) and gain == 0


def scale_gradient(x: Float[Array, "*shape"], gain: ScalarLike) -> Float[Array, "*shape"]:
    """`x`, bit for bit, whose derivative is `gain`: in forward and in reverse mode, and for a traced gain."""
    if isinstance(gain, int | float) and gain == 1:
        return x
    if is_cut(gain):
        return lax.stop_gradient(x)
    return _scaled(x, jnp.asarray(gain, x.dtype))


@jax.custom_jvp
def _scaled(x: Array, gain: Array) -> Array:
    del gain
    return x


@_scaled.defjvp
def _scaled_jvp(primals, tangents):
    (x, gain), (dx, _) = primals, tangents
    # The recursion keeps derivatives of higher order scaled once for each time they cross the edge.
    return _scaled(x, gain), gain * dx


BPO = Paths(state_to_policy=0.0)
