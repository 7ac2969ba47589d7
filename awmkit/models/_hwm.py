"""The history world model (HWM)."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from .._checks import check_shapes
from .._normaliser import Normaliser
from ._gaussian import GaussianHead, sample
from ._sequence_parts import sequence_parts
from ._trainable import check_sequence
from ._world_model import AbstractWorldModel
from .backbones import AbstractBackbone


class HWM(AbstractWorldModel):
    """History world model: predicts the next state from all states and actions so far.

        s'_{t+1} = h(s'_0 ... s'_t, a_0 ... a_t)

    This is the usual sequence world model. It is trained teacher-forced, in one pass over a true episode, and unrolled on its own
    predictions. Its gradient from a_k to s_t sums over 2^(t-k-1) paths, and most of them pass through many predicted states.
    An `AWM` has none of these paths.

    **Arguments**

    - `state_size`, `action_size`: number of entries of a state and of an action.
    - `backbone`: sequence network that reads s_0 and then the pairs (s_t, a_t): `Transformer`, `LinearStateSpace`, `RNN`, `LSTM`, `GRU`
      or an `AbstractBackbone` of your own. By default the paper's transformer (2 layers, 3 heads, width 48) with rotary embedding.
    - `predict_changes`: whether the network predicts s_{t+1} - s_t (the default) or s_{t+1}.
    - `per_step`: whether the means of states and of predicted quantities are computed separately for each step. Use it if the
      state changes much with time and little with the actions. `False` by default.
    - `head`: `awmkit.GaussianHead` for a model that also predicts a standard deviation of each entry. `None` by default.
    - `key`: for the initial weights.

    **Raises:** `ValueError` if a size is not a positive whole number, `backbone` is not an `AbstractBackbone`, or `head` or `key`
    has the wrong type.
    """

    input_norm: Normaliser
    output_norm: Normaliser
    embed_first: eqx.nn.Linear
    embed: eqx.nn.Linear
    backbone: AbstractBackbone
    head: eqx.nn.MLP | GaussianHead
    state_size: int = eqx.field(static=True)
    action_size: int = eqx.field(static=True)
    predict_changes: bool = eqx.field(static=True)

    def __init__(
        self,
        state_size: int,
        action_size: int,
        backbone: AbstractBackbone | None = None,
        *,
        predict_changes: bool = True,
        per_step: bool = False,
        head: Callable[[eqx.nn.MLP], GaussianHead] | None = None,
        key: PRNGKeyArray,
    ):
        parts = sequence_parts("HWM", state_size, action_size, backbone, reads_state=True, head=head, key=key)
        self.backbone, self.embed_first, self.embed, self.head = parts
        self.state_size = state_size
        self.action_size = action_size
        self.input_norm = Normaliser(state_size, per_step=per_step)
        self.output_norm = Normaliser(state_size, per_step=per_step)
        self.predict_changes = predict_changes

    def init(self, state, horizon):
        return self.backbone.init(self.embed_first(self.input_norm.at(0)(state)), horizon)

    def step(self, carry, state, action, t, *, key=None):
        token = self.embed(jnp.concatenate([self.input_norm.at(t)(state), action]))
        carry, feature = self.backbone.step(carry, token, t, key=key)
        return carry, sample(self.decode(self.head(feature), state, t), key)

    @property
    def resizable(self):
        return self.backbone.resizable

    def resize_carry(self, carry, horizon):
        return self.backbone.resize(carry, horizon)

    def episodes_at_a_time(self, horizon):
        return self.backbone.sequences_at_a_time(horizon)

    def teacher_forced(self, states, actions):
        check_sequence("HWM.teacher_forced", self, states, actions)
        steps = jnp.arange(actions.shape[0])
        first = self.embed_first(self.input_norm.at(0)(states[0]))
        tokens = jax.vmap(self.embed)(jnp.concatenate([self.input_norm.at(steps)(states[:-1]), actions], axis=1))
        return self.decode(jax.vmap(self.head)(self.backbone(first, tokens)), states[:-1], steps)

    def residual_base(self, states):
        check_shapes("HWM.residual_base", states=(states, ("H+1", self.state_size)))
        return states[:-1]
