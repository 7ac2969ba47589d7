"""A dynamics whose paths through states and through its carry can be counted by hand."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from awmkit import AbstractDynamics


class Mixed(AbstractDynamics):
    """s_{t+1} = feedback s_t + memory c_t + a_t, where c_t = s_t comes from the carry, next to a counter.

    ds_t/da_k = (feedback + memory)^(t-k-1), and its paths with n hops are the n-th term of the binomial expansion.
    """

    # Arrays, so that all values share one compiled program.
    feedback: Float[Array, ""] = eqx.field(converter=lambda x: jnp.asarray(x, float))
    memory: Float[Array, ""] = eqx.field(converter=lambda x: jnp.asarray(x, float))
    state_size: int = 1
    action_size: int = 1

    def init(self, state, horizon):
        return {"remembered": state, "steps": jnp.asarray(0)}

    def step(self, carry, state, action, t, *, key=None):
        state = self.feedback * state + self.memory * carry["remembered"] + action
        return {"remembered": state, "steps": carry["steps"] + 1}, state
