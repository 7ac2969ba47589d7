"""A critic: a network that predicts the rest of the return from a state."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Scalar, ScalarLike

from ..._checks import check_shapes
from ..._normaliser import Normaliser


class Critic(eqx.Module):
    """V(s, t), an MLP: the expected return from step t to the end of the episode, divided by the ascent's `return_scale`.

    **Arguments**

    - `state_size`: number of entries of a state.
    - `horizon`: number of steps H of an episode; t / H is an input of the network.
    - `width`, `depth`: width and number of the hidden layers.
    - `key`: for the initial weights.
    """

    input_norm: Normaliser
    network: eqx.nn.MLP
    horizon: int = eqx.field(static=True)

    def __init__(self, state_size: int, horizon: int, *, width: int = 64, depth: int = 2, key: PRNGKeyArray):
        self.input_norm = Normaliser(state_size)
        self.network = eqx.nn.MLP(state_size + 1, "scalar", width, depth, jax.nn.swish, key=key)
        self.horizon = horizon

    def __call__(self, state: Float[Array, " S"], t: ScalarLike) -> Scalar:
        check_shapes("Critic", state=(state, self.input_norm.shift.shape), t=(t, ()))
        return self.network(jnp.append(self.input_norm(state), jnp.asarray(t, state.dtype) / self.horizon))
