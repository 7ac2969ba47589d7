"""A user's own dynamics whose paths through states and through its carry can be counted by hand."""

import jax.numpy as jnp

from awmkit import AbstractDynamics


class Mixed(AbstractDynamics):
    """What a user would write: s' = feedback s_t + memory c_t + a_t, where c_t = s_t comes by the carry, beside a counter.

    ds_t/da_k = (feedback + memory)^(t-k-1), of which the paths of n hops are the n-th term of the binomial expansion.
    """

    feedback: float
    memory: float
    state_size: int = 1
    action_size: int = 1

    def init(self, state, horizon):
        return {"remembered": state, "steps": jnp.asarray(0)}

    def step(self, carry, state, action, t, *, key=None):
        state = self.feedback * state + self.memory * carry["remembered"] + action
        return {"remembered": state, "steps": carry["steps"] + 1}, state
