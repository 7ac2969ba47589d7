"""The Markov world model."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from .._checks import check_counts, check_shapes
from .._normaliser import Normaliser
from ._gaussian import GaussianHead, outputs_of, sample, with_head
from ._residual_mlp import ResidualMLP
from ._trainable import check_sequence
from ._world_model import AbstractWorldModel


class Markov(AbstractWorldModel):
    """Markov world model: predicts the next state from the last state and action, by a residual MLP.

        s'_{t+1} = f(s'_t, a_t)

    It is trained one step at a time and unrolled on its own predictions. Its gradient has a single path, through every
    predicted state: ds_t/da_k = (prod_{k<i<t} df/ds_i) df/da_k.

    **Arguments**

    - `state_size`, `action_size`: number of entries of a state and of an action.
    - `width`, `depth`: width and number of the residual blocks.
    - `horizon`: if given, t / horizon is one more input, for dynamics that depend on time. `None` by default.
    - `predict_changes`: whether the network predicts s_{t+1} - s_t (the default) or s_{t+1}.
    - `per_step`: whether the means of states and of predicted quantities are computed separately for each step. Use it if the
      state changes much with time and little with the actions. The model then depends on time even without `horizon`.
    - `head`: `awmkit.GaussianHead` for a model that also predicts a standard deviation of each entry. `None` by default.
    - `key`: for the initial weights.

    **Raises:** `ValueError` if a size is not a positive whole number, or `head` or `key` has the wrong type.
    """

    input_norm: Normaliser
    output_norm: Normaliser
    network: ResidualMLP | GaussianHead
    state_size: int = eqx.field(static=True)
    action_size: int = eqx.field(static=True)
    predict_changes: bool = eqx.field(static=True)

    def __init__(
        self,
        state_size: int,
        action_size: int,
        *,
        width: int = 64,
        depth: int = 2,
        horizon: int | None = None,
        predict_changes: bool = True,
        per_step: bool = False,
        head: Callable[[ResidualMLP], GaussianHead] | None = None,
        key: PRNGKeyArray,
    ):
        check_counts("Markov", state_size=state_size, action_size=action_size)
        self.state_size = state_size
        self.action_size = action_size
        self.input_norm = Normaliser(state_size, per_step=per_step)
        self.output_norm = Normaliser(state_size, per_step=per_step)
        sizes = state_size + action_size, outputs_of(state_size, head)
        network = ResidualMLP("Markov", *sizes, width=width, depth=depth, horizon=horizon, key=key)
        self.network = with_head("Markov", network, head)
        self.predict_changes = predict_changes

    def step(self, carry, state, action, t, *, key=None):
        return carry, sample(self._predict(state, action, t), key)

    def teacher_forced(self, states, actions, t=0):
        check_sequence("Markov.teacher_forced", self, states, actions)
        return jax.vmap(self._predict)(states[:-1], actions, t + jnp.arange(actions.shape[0]))

    def residual_base(self, states):
        check_shapes("Markov.residual_base", states=(states, ("H+1", self.state_size)))
        return states[:-1]

    def _predict(self, state, action, t):
        return self.decode(self.network(self.input_norm.at(t)(state), action, t=t), state, t)
