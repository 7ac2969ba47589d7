"""The history world model: the next state from all states and actions so far."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from .._normaliser import Normaliser
from ._world_model import AbstractWorldModel, check_parts, decode, head
from .backbones._backbone import AbstractBackbone


class HWM(AbstractWorldModel):
    """s'_{t+1} = h(s'_0 ... s'_t, a_0 ... a_t): the usual sequence world model.

    Trained teacher-forced, in one pass over a true episode; unrolled on its own predictions, so that its gradient takes
    2^(t-k-1) paths from a_k to s_t, most of them through many predicted states.

    **Arguments**

    - `state_size`, `action_size`: S and A.
    - `backbone`: a sequence network: `Transformer`, `RNN`, `LSTM` or `GRU`. Its first token is s_0, the following (s_t, a_t).
    - `predict_changes`: predict s_{t+1} - s_t (the default), or s_{t+1} itself.
    - `per_step`: whether `normalised` takes the means of what it reads and of what it predicts step by step, not over all steps:
      needed where actions change little of what time changes.
    - `key`: for the weights of embedding and head.

    **Raises:** `ValueError` for sizes that are no whole numbers above 0, what is no backbone, and another kind of key.
    """

    input_norm: Normaliser
    output_norm: Normaliser
    embed_first: eqx.nn.Linear
    embed: eqx.nn.Linear
    backbone: AbstractBackbone
    head: eqx.nn.MLP
    state_size: int = eqx.field(static=True)
    action_size: int = eqx.field(static=True)
    predict_changes: bool = eqx.field(static=True)

    def __init__(
        self,
        state_size: int,
        action_size: int,
        backbone: AbstractBackbone,
        *,
        predict_changes: bool = True,
        per_step: bool = False,
        key: PRNGKeyArray,
    ):
        check_parts("HWM", state_size, action_size, backbone, key)
        first_key, embed_key, head_key = jax.random.split(key, 3)
        self.state_size = state_size
        self.action_size = action_size
        self.input_norm = Normaliser(state_size, per_step=per_step)
        self.output_norm = Normaliser(state_size, per_step=per_step)
        self.embed_first = eqx.nn.Linear(state_size, backbone.width, key=first_key)
        self.embed = eqx.nn.Linear(state_size + action_size, backbone.width, key=embed_key)
        self.backbone = backbone
        self.head = head(backbone.width, state_size, key=head_key)
        self.predict_changes = predict_changes

    def init(self, state, horizon):
        return self.backbone.init(self.embed_first(self.input_norm.at(0)(state)), horizon)

    def step(self, carry, state, action, t, *, key=None):
        token = self.embed(jnp.concatenate([self.input_norm.at(t)(state), action]))
        carry, feature = self.backbone.step(carry, token, t, key=key)
        return carry, decode(self, self.head(feature), state, t)

    def teacher_forced(self, states, actions):
        steps = jnp.arange(actions.shape[0])
        first = self.embed_first(self.input_norm.at(0)(states[0]))
        tokens = jax.vmap(self.embed)(jnp.concatenate([self.input_norm.at(steps)(states[:-1]), actions], axis=1))
        return decode(self, jax.vmap(self.head)(self.backbone(first, tokens)), states[:-1], steps)

    def residual_base(self, states):
        return states[:-1]
