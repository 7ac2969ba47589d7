"""The actions world model (AWM)."""

from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from .._checks import check_shapes, kind
from .._dynamics import AbstractDynamics
from .._few_at_a_time import few_at_a_time
from .._normaliser import Normaliser
from ._gaussian import GaussianHead, sample
from ._sequence_parts import sequence_parts
from ._trainable import check_sequence
from ._world_model import AbstractWorldModel
from .backbones import AbstractBackbone


class AWM(AbstractWorldModel):
    """Actions world model: predicts every state from the initial state and the actions only.

        s'_{t+1} = g(s_0, a_0 ... a_t)          (Ma et al., 2024)

    No prediction is fed back into the model. The gradient of a reward with respect to an action therefore passes through the
    sequence network only, and is as well behaved as that network's.

    ```python
    model = AWM(task.state_size, task.action_size, key=k1)
    model = fit(model, episodes, key=k2).model
    ```

    **Arguments**

    - `state_size`, `action_size`: number of entries of a state and of an action.
    - `backbone`: sequence network that reads s_0 and then a_0, a_1, ...: `Transformer`, `LinearStateSpace`, `RNN`, `LSTM`, `GRU` or
      an `AbstractBackbone` of your own. By default the paper's transformer (2 layers, 3 heads, width 48) with rotary embedding,
      which needs no horizon.
    - `predict_changes`: whether the network predicts s_{t+1} - s_0 (the default) or s_{t+1}.
    - `per_step`: whether the statistics of the predicted quantity are computed separately for each step. The network then
      only learns the deviations that the actions cause, which have the same size at every step. Use it if all episodes have
      the same length and start in similar states, and especially if the actions have a small effect. `False` by default.
    - `head`: `awmkit.GaussianHead` for a model that also predicts a standard deviation of each entry. `None` by default.
    - `key`: for the initial weights.

    **Raises:** `ValueError` if a size is not a positive whole number, `backbone` is not an `AbstractBackbone`, or `head` or `key`
    has the wrong type.
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
        backbone: AbstractBackbone | None = None,
        *,
        predict_changes: bool = True,
        per_step: bool = False,
        head: Callable[[eqx.nn.MLP], GaussianHead] | None = None,
        key: PRNGKeyArray,
    ):
        parts = sequence_parts("AWM", state_size, action_size, backbone, reads_state=False, head=head, key=key)
        self.backbone, self.embed_state, self.embed_action, self.head = parts
        self.state_size = state_size
        self.action_size = action_size
        self.input_norm = Normaliser(state_size)
        self.output_norm = Normaliser(state_size, per_step=per_step, per_step_scale=per_step)
        self.predict_changes = predict_changes

    @staticmethod
    def from_dynamics(dynamics: AbstractDynamics) -> "AWM":
        """Return the AWM whose recurrent cell is `dynamics` and whose hidden state is the state.

        Its values and gradients are those of `dynamics` under `Paths()`. It shows that backpropagation through a Markov model is
        an AWM with a poor sequence network, and it lets `Parallel` run any dynamics.

        **Raises:** `ValueError` if `dynamics` is not an `AbstractDynamics`.
        """
        if not isinstance(dynamics, AbstractDynamics):
            raise ValueError(f"AWM.from_dynamics needs an AbstractDynamics, got {kind(dynamics)}; pass an instance of one.")
        size, actions = dynamics.state_size, dynamics.action_size
        awm = AWM(size, actions, _Cell(dynamics=dynamics, width=size), predict_changes=False, key=jax.random.key(0))
        identity = eqx.nn.Identity()
        return eqx.tree_at(lambda m: (m.embed_state, m.embed_action, m.head), awm, (identity, identity, identity))

    @property
    def parallel(self):
        return self.backbone.parallel

    @property
    def resizable(self):
        return self.backbone.resizable

    def init(self, state, horizon):
        return self.backbone.init(self.embed_state(self.input_norm(state)), horizon), state

    def step(self, carry, state, action, t, *, key=None):
        memory, first = carry
        memory, feature = self.backbone.step(memory, self.embed_action(action), t, key=key)
        return (memory, first), sample(self.decode(self.head(feature), first, t), key)

    def rollout_segment(self, carry, state, actions, t, *, keys=None):
        return self._run_segment(carry, actions, t, keys, sample)  # pyright: ignore[reportArgumentType]

    def _run_segment(self, carry, actions, t: int, keys, read: Callable):
        """Return the carry and `read(prediction, key)` of each step."""

        def run(self, carry, actions, keys):
            memory, first = carry
            memory, features = self.backbone.append(memory, jax.vmap(self.embed_action)(actions), t, keys=keys)
            predict = lambda feature, t, key: read(self.decode(self.head(feature), first, t), key)
            return (memory, first), jax.vmap(predict)(features, t + jnp.arange(actions.shape[0]), keys)

        return few_at_a_time(run, self, carry, actions, keys, size=self.episodes_at_a_time(t + actions.shape[0]))

    def resize_carry(self, carry, horizon):
        memory, first = carry
        return self.backbone.resize(memory, horizon), first

    def episodes_at_a_time(self, horizon):
        return self.backbone.sequences_at_a_time(horizon)

    def teacher_forced(self, states, actions):
        check_sequence("AWM.teacher_forced", self, states, actions)
        start = self.init(states[0], actions.shape[0])
        return self._run_segment(start, actions, 0, None, lambda predicted, key: predicted)[1]

    def residual_base(self, states):
        check_shapes("AWM.residual_base", states=(states, ("H+1", self.state_size)))
        return jnp.broadcast_to(states[0], states[1:].shape)

    def normalised(self, episodes):
        # A dynamics used as a cell works in the units of its own states.
        return self if isinstance(self.backbone, _Cell) else super().normalised(episodes)


class _Cell(AbstractBackbone):
    """A dynamics as a recurrent network: the tokens are s_0 and the actions, the feature is the state."""

    dynamics: AbstractDynamics
    width: int = eqx.field(static=True)

    def init(self, first, horizon):
        return self.dynamics.init(first, horizon), first

    def step(self, memory, token, t, *, key=None):
        carry, state = memory
        carry, state = self.dynamics.step(carry, state, token, t, key=key)
        return (carry, state), state
