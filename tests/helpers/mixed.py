"""A dynamics with a known number of gradient paths through its states and its carry."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from awmkit import AbstractDynamics


class Mixed(AbstractDynamics):
    """s_{t+1} = feedback s_t + memory c_t + a_t, where c_t = s_t is read from the carry, which also has a step counter.

    ds_t/da_k = (feedback + memory)^(t-k-1). The paths with n hops contribute the n-th term of its binomial expansion.
    """

    # Arrays, so that different values share one compiled program.
    feedback: Float[Array, ""] = eqx.field(converter=lambda x: jnp.asarray(x, float))
    memory: Float[Array, ""] = eqx.field(converter=lambda x: jnp.asarray(x, float))
    state_size: int = 1
    action_size: int = 1

    def init(self, state, horizon):
        return {"remembered": state, "steps": jnp.asarray(0)}

    def step(self, carry, state, action, t, *, key=None):
        state = self.feedback * state + self.memory * carry["remembered"] + action
        return {"remembered": state, "steps": carry["steps"] + 1}, state
