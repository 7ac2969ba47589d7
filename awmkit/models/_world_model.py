"""What every learned model has beyond a dynamics: what it predicts from data, and the statistics it predicts with.

Apart from the models so that `fit` serves any of them, and a user's own.
"""

import abc
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from .._checks import check_counts, check_key, describe, kind
from .._dynamics import AbstractDynamics
from .._normaliser import Normaliser
from ._trainable import AbstractTrainable
from .backbones._backbone import AbstractBackbone

W = TypeVar("W", bound="AbstractWorldModel")


class AbstractWorldModel(AbstractDynamics, AbstractTrainable):
    """A dynamics that is fitted to episodes.

    **Fields** a subclass provides

    - `input_norm`: normalises the states that it reads.
    - `output_norm`: normalises what its network puts out.
    - `predict_changes`: whether that is a change from `residual_base`, or the state itself.
    """

    input_norm: eqx.AbstractVar[Normaliser]
    output_norm: eqx.AbstractVar[Normaliser]
    predict_changes: eqx.AbstractVar[bool]

    @abc.abstractmethod
    def teacher_forced(self, states: Float[Array, "T S"], actions: Float[Array, "H A"]) -> Float[Array, "H S"]:
        """s_1 ... s_H as the model is trained to predict them from an episode, in one pass.

        Markov: each from the true state before. HWM: each from the true history. AWM: all from s_0 and the actions.
        """

    @abc.abstractmethod
    def residual_base(self, states: Float[Array, "T S"]) -> Float[Array, "H S"]:
        """What s_1 ... s_H are changes from."""

    def loss(self, episode):
        errors = (self.teacher_forced(episode.states, episode.actions) - episode.states[1:]) / lax.stop_gradient(
            self.output_norm.overall
        )
        return 0.5 * jnp.mean(errors**2)

    def target(self, episodes):
        return episodes.states[..., 1:, :]

    def prediction(self, episode):
        return self.open_loop(episode.states[0], episode.actions)

    def normalised(self: W, states: Float[Array, "N T S"]) -> W:
        """This model with the statistics of episodes' `states`, (N, H+1, S). Weights stay: do it once, before the first fit.

        **Raises:** `ValueError` for states of another shape.
        """
        if len(shape := getattr(states, "shape", ())) != 3 or shape[2] != self.state_size:
            raise ValueError(
                f"normalised got states {describe(states)}; give those of whole episodes, (N, H+1, {self.state_size}), such as "
                "episodes.states."
            )
        targets = states[:, 1:]
        if self.predict_changes:
            targets = targets - jax.vmap(self.residual_base)(states)
        statistics = self.input_norm.fitted(states), self.output_norm.fitted(targets)
        return eqx.tree_at(lambda m: (m.input_norm, m.output_norm), self, statistics)


def decode(model: AbstractWorldModel, outputs: Array, origin: Array, t: ArrayLike = 0) -> Array:
    """States from what a network put out at step `t`, or at several."""
    states = model.output_norm.at(t).inverse(outputs)
    return origin + states if model.predict_changes else states


def check_parts(who: str, state_size: int, action_size: int, backbone: AbstractBackbone, key) -> None:
    """Raise for what no sequence model can be built of."""
    check_counts(who, state_size=state_size, action_size=action_size)
    if not isinstance(backbone, AbstractBackbone):
        raise ValueError(
            f"The backbone is {kind(backbone)}; give {who} a network, such as Transformer(key=key) or LSTM(key=key)."
        )
    check_key(who, key)


def head(width: int, state_size: int, *, key) -> eqx.nn.MLP:
    """From a backbone's feature to what the model puts out."""
    return eqx.nn.MLP(width, state_size, width, 1, jax.nn.swish, key=key)
