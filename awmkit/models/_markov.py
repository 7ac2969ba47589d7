"""The Markov world model: the next state from the last state and action, and nothing else."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._checks import check_counts, check_key
from .._normaliser import Normaliser
from ._world_model import AbstractWorldModel, decode


class Markov(AbstractWorldModel):
    """s'_{t+1} = f(s'_t, a_t), a residual MLP: trained one step at a time, unrolled on its own predictions.

    Its gradient has one path, through every predicted state: ds_t/da_k = (prod_{k<i<t} df/ds_i) df/da_k.

    **Arguments**

    - `state_size`, `action_size`: S and A.
    - `width`, `depth`: of the residual blocks.
    - `horizon`: if given, t / horizon is one more input, for dynamics that depend on time.
    - `predict_changes`: predict s_{t+1} - s_t (the default), or s_{t+1} itself.
    - `per_step`: whether `normalised` takes the means of what it reads and of what it predicts step by step, not over all steps:
      needed where actions change little of what time changes. It then depends on time, with or without `horizon`.
    - `key`: for the weights.

    **Raises:** `ValueError` for sizes that are no whole numbers above 0, and for another kind of key.
    """

    input_norm: Normaliser
    output_norm: Normaliser
    network: "ResidualMLP"
    state_size: int = eqx.field(static=True)
    action_size: int = eqx.field(static=True)
    horizon: int | None = eqx.field(static=True)
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
        key: PRNGKeyArray,
    ):
        check_counts("Markov", state_size=state_size, action_size=action_size, width=width, horizon=horizon)
        check_counts("Markov", least=0, depth=depth)
        check_key("Markov", key)
        self.state_size = state_size
        self.action_size = action_size
        self.input_norm = Normaliser(state_size, per_step=per_step)
        self.output_norm = Normaliser(state_size, per_step=per_step)
        self.network = ResidualMLP(state_size + action_size + (horizon is not None), state_size, width, depth, key=key)
        self.horizon = horizon
        self.predict_changes = predict_changes

    def init(self, state, horizon):
        del state, horizon

    def step(self, carry, state, action, t, *, key=None):
        del key
        time = [] if self.horizon is None else [jnp.asarray(t, state.dtype)[None] / self.horizon]
        outputs = self.network(jnp.concatenate([self.input_norm.at(t)(state), action, *time]))
        return carry, decode(self, outputs, state, t)

    def teacher_forced(self, states, actions):
        step = lambda s, a, t: self.step(None, s, a, t)[1]
        return jax.vmap(step)(states[:-1], actions, jnp.arange(actions.shape[0]))

    def residual_base(self, states):
        return states[:-1]


class ResidualMLP(eqx.Module):
    """Linear, then `depth` pre-norm residual blocks of one hidden layer, then linear (He et al., 2016)."""

    enter: eqx.nn.Linear
    blocks: list[tuple[eqx.nn.LayerNorm, eqx.nn.Linear, eqx.nn.Linear]]
    leave: eqx.nn.Linear

    def __init__(self, in_size: int, out_size: int, width: int, depth: int, *, key: PRNGKeyArray):
        enter_key, leave_key, *block_keys = jax.random.split(key, 2 + 2 * depth)
        self.enter = eqx.nn.Linear(in_size, width, key=enter_key)
        self.leave = eqx.nn.Linear(width, out_size, key=leave_key)
        linear = lambda key: eqx.nn.Linear(width, width, key=key)
        pairs = zip(block_keys[::2], block_keys[1::2], strict=True)
        self.blocks = [(eqx.nn.LayerNorm(width), linear(first), linear(second)) for first, second in pairs]

    def __call__(self, x: Float[Array, " I"]) -> Float[Array, " O"]:
        x = self.enter(x)
        for norm, first, second in self.blocks:
            x = x + second(jax.nn.swish(first(norm(x))))
        return self.leave(x)
