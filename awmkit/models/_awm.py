"""The actions world model: every state from the initial state and the actions alone."""

from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from .._checks import kind
from .._dynamics import AbstractDynamics
from .._normaliser import Normaliser
from ._world_model import AbstractWorldModel, check_parts, decode, head
from .backbones._backbone import AbstractBackbone


class AWM(AbstractWorldModel):
    """s'_{t+1} = g(s_0, a_0 ... a_t) (Ma et al., 2024): no prediction is ever fed back.

    The gradient from a reward to an action runs through the sequence network and nothing else, and inherits the network's
    gradient propagation.

    **Arguments**

    - `state_size`, `action_size`: S and A.
    - `backbone`: a sequence network: `Transformer`, `LinearStateSpace`, `RNN`, `LSTM` or `GRU`. Its first token is s_0, the
      following are a_t.
    - `predict_changes`: predict s_t - s_0 (the default), or s_t itself.
    - `per_step`: whether `normalised` takes the statistics of what it predicts step by step, not over all steps. What is left to
      learn is then what the actions change, of one size at every step: better where episodes of one length begin alike, as
      those of one task do; needed where the actions change little; and a transformer, which averages over tokens, need not
      learn that effects add up. The loss keeps one unit for all steps.
    - `key`: for the weights of embeddings and head.

    **Raises:** `ValueError` for sizes that are no whole numbers above 0, what is no backbone, and another kind of key.

    ```python
    model = AWM(task.state_size, task.action_size, Transformer(horizon=100, key=k1), key=k2).normalised(episodes.states)
    model = fit(model, episodes, key=k3).model
    ```
    """

    input_norm: Normaliser
    output_norm: Normaliser
    embed_state: Callable
    embed_action: Callable
    backbone: AbstractBackbone
    head: Callable
    state_size: int = eqx.field(static=True)
    action_size: int = eqx.field(static=True)
    predict_changes: bool = eqx.field(static=True)
    reads_state: ClassVar[bool] = False

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
        check_parts("AWM", state_size, action_size, backbone, key)
        state_key, action_key, head_key = jax.random.split(key, 3)
        self.state_size = state_size
        self.action_size = action_size
        self.input_norm = Normaliser(state_size)
        self.output_norm = Normaliser(state_size, per_step=per_step, per_step_scale=per_step)
        self.embed_state = eqx.nn.Linear(state_size, backbone.width, key=state_key)
        self.embed_action = eqx.nn.Linear(action_size, backbone.width, key=action_key)
        self.backbone = backbone
        self.head = head(backbone.width, state_size, key=head_key)
        self.predict_changes = predict_changes

    @staticmethod
    def from_dynamics(dynamics: AbstractDynamics) -> "AWM":
        """The AWM whose recurrent cell is `dynamics`, its hidden state the state.

        With the true simulator it *is* the simulator: equal values and, where `state_to_model` carries its full gradient,
        equal gradients. So "backpropagation through a Markov model" is an AWM with a poor sequence network.

        **Raises:** `ValueError` for what is no dynamics.
        """
        if not isinstance(dynamics, AbstractDynamics):
            raise ValueError(f"from_dynamics got {kind(dynamics)}; pass an instance of awmkit.AbstractDynamics.")
        size, actions = dynamics.state_size, dynamics.action_size
        awm = AWM(size, actions, _Cell(dynamics=dynamics, width=size), predict_changes=False, key=jax.random.key(0))
        identity = eqx.nn.Identity()
        return eqx.tree_at(lambda m: (m.embed_state, m.embed_action, m.head), awm, (identity, identity, identity))

    @property
    def parallel(self):
        return self.backbone.parallel

    def init(self, state, horizon):
        return self.backbone.init(self.embed_state(self.input_norm(state)), horizon), state

    def step(self, carry, state, action, t, *, key=None):
        memory, first = carry
        memory, feature = self.backbone.step(memory, self.embed_action(action), t, key=key)
        return (memory, first), decode(self, self.head(feature), first, t)

    def rollout_segment(self, carry, state, actions, t, *, keys=None):
        memory, first = carry
        memory, features = self.backbone.append(memory, jax.vmap(self.embed_action)(actions), t, keys=keys)
        return (memory, first), decode(self, jax.vmap(self.head)(features), first, t + jnp.arange(actions.shape[0]))

    def resize_carry(self, carry, horizon):
        memory, first = carry
        return self.backbone.resize(memory, horizon), first

    def teacher_forced(self, states, actions):
        return self.open_loop(states[0], actions)

    def residual_base(self, states):
        return jnp.broadcast_to(states[0], states[1:].shape)

    def normalised(self, states):
        # A cell that is a dynamics works in the units of its states.
        return self if isinstance(self.backbone, _Cell) else super().normalised(states)


class _Cell(AbstractBackbone):
    """A dynamics as a recurrent network: tokens are s_0 and the actions, the hidden state and the feature are the state."""

    dynamics: AbstractDynamics
    width: int = eqx.field(static=True)

    def init(self, first, horizon):
        return self.dynamics.init(first, horizon), first

    def step(self, memory, token, t, *, key=None):
        carry, state = memory
        carry, state = self.dynamics.step(carry, state, token, t, key=key)
        return (carry, state), state
