"""A critic: a network that predicts the rest of the return from a state."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Scalar, ScalarLike

from ..._checks import check_shapes
from ..._normaliser import Normaliser


class Critic(eqx.Module):
    """V(s, t), an MLP: the expected return from step t to the end of the episode, divided by the ascent's `return_scale`.

    Without a horizon it is V(s), the discounted return of an episode that goes on until the task terminates it.

    **Arguments**

    - `state_size`: number of entries of a state.
    - `horizon`: number of steps H of an episode, if its end is part of the problem; t / H is an input of the network. `None`,
      the default, if it is a time limit, or there is none.
    - `width`, `depth`: width and number of the hidden layers.
    - `key`: for the initial weights.
    """

    input_norm: Normaliser
    network: eqx.nn.MLP
    horizon: int | None = eqx.field(static=True)

    def __init__(self, state_size: int, horizon: int | None = None, *, width: int = 64, depth: int = 2, key: PRNGKeyArray):
        self.input_norm = Normaliser(state_size)
        self.network = eqx.nn.MLP(state_size + (horizon is not None), "scalar", width, depth, jax.nn.swish, key=key)
        self.horizon = horizon

    def __call__(self, state: Float[Array, " S"], t: ScalarLike) -> Scalar:
        check_shapes("Critic", state=(state, self.input_norm.shift.shape), t=(t, ()))
        state = self.input_norm(state)
        return self.network(state if self.horizon is None else jnp.append(state, jnp.asarray(t, state.dtype) / self.horizon))
