"""The interface of a learned dynamics, with normalisation and residual prediction."""

import abc
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from .._checks import check_shapes
from .._dynamics import AbstractDynamics
from .._normaliser import Normaliser
from ._trainable import AbstractTrainable, check_sequence

W = TypeVar("W", bound="AbstractWorldModel")


class AbstractWorldModel(AbstractDynamics, AbstractTrainable):
    """A dynamics that is fitted to episodes. Subclass it to write your own world model.

    Its network reads normalised states and returns normalised outputs. `decode` turns the outputs into states, either directly
    or as changes from a known state.

    **Fields** a subclass defines

    - `state_size`, `action_size`: number of entries of a state and of an action.
    - `input_norm`: `Normaliser` for the states the network reads.
    - `output_norm`: `Normaliser` for the network's outputs.
    - `predict_changes`: whether the outputs are changes from `residual_base`, or the states themselves.

    **What must hold**

    - `teacher_forced` gives the same predictions as calling `step` on the true states, to rounding.
    - If `rollout_segment` is overridden by a parallel pass, it gives the values and gradients of repeated `step`.

    ```python
    class Linear(AbstractWorldModel):
        weight: jax.Array
        input_norm: Normaliser
        output_norm: Normaliser
        predict_changes: bool = eqx.field(static=True)
        state_size: int = eqx.field(static=True)
        action_size: int = eqx.field(static=True)

        def step(self, carry, state, action, t, *, key=None):
            outputs = self.weight @ jnp.concatenate([self.input_norm(state), action])
            return carry, self.decode(outputs, state, t)

        def teacher_forced(self, states, actions):
            return jax.vmap(lambda s, a: self.step(None, s, a, 0)[1])(states[:-1], actions)

        def residual_base(self, states):
            return states[:-1]

    model = Linear(jnp.zeros((3, 5)), Normaliser(3), Normaliser(3), True, 3, 2)
    model = fit(model, episodes, key=key).model
    ```
    """

    input_norm: eqx.AbstractVar[Normaliser]
    output_norm: eqx.AbstractVar[Normaliser]
    predict_changes: eqx.AbstractVar[bool]

    @abc.abstractmethod
    def teacher_forced(self, states: Float[Array, "T S"], actions: Float[Array, "H A"]) -> Float[Array, "H S"]:
        """Return the predictions of s_1 ... s_H that the loss compares with an episode, in one pass.

        A Markov model predicts each state from the true state before it, an HWM from the true history, and an AWM predicts all of
        them from s_0 and the actions.

        **Arguments:** `states`: s_0 ... s_H, shape (H+1, S). `actions`: a_0 ... a_{H-1}, shape (H, A).

        **Returns:** shape (H, S).
        """

    @abc.abstractmethod
    def residual_base(self, states: Float[Array, "T S"]) -> Float[Array, "H S"]:
        """Return the states to which predicted changes are added, for each of s_1 ... s_H.

        A model that predicts s_{t+1} - s_t returns s_0 ... s_{H-1}; an AWM, which predicts s_{t+1} - s_0, repeats s_0.

        **Arguments:** `states`: s_0 ... s_H, shape (H+1, S).

        **Returns:** shape (H, S).
        """

    def decode(self, outputs: Float[Array, "*steps S"], base: Float[Array, "*_ S"], t: ArrayLike) -> Float[Array, "*steps S"]:
        """Convert the network's `outputs` at step or steps `t` into states. Predicted changes are added to `base`.

        **Arguments:** `outputs`: shape (S,) or (H, S). `base`: the same shape, or (S,) for one state that all changes are
        added to. `t`: a number, or shape (H,).
        """
        steps = ("*",) if np.shape(t) else ()
        check_shapes(
            f"{type(self).__name__}.decode",
            outputs=(outputs, ("*", self.state_size)),
            base=(base, (self.state_size,) if np.ndim(base) == 1 else ("*", self.state_size)),
            t=(t, steps),
        )
        states = self.output_norm.at(t).inverse(outputs)
        return jnp.broadcast_to(base, states.shape) + states if self.predict_changes else states

    def loss(self, episode):
        check_sequence(f"{type(self).__name__}.loss", self, episode.states, episode.actions)
        errors = self.teacher_forced(episode.states, episode.actions) - episode.states[1:]
        return 0.5 * jnp.mean((errors / lax.stop_gradient(self.output_norm.overall)[None]) ** 2)

    def target(self, episodes):
        check_shapes(f"{type(self).__name__}.target", states=(episodes.states, ("*", "H+1", self.state_size)))
        return episodes.states[..., 1:, :]

    def prediction(self, episode):
        check_sequence(f"{type(self).__name__}.prediction", self, episode.states, episode.actions)
        return self.open_loop(episode.states[0], episode.actions)

    def normalised(self: W, states: Float[Array, "N T S"]) -> W:
        """Return this model with the mean and standard deviation of the data in its normalisers.

        Statistics that were set are replaced. `awmkit.fit` and `awmkit.train` set only those that are not set. Weights do not
        change, so call it before the first `fit`, or to move a model to data in other units.

        **Arguments:** `states`: of N whole episodes, shape (N, H+1, S).

        **Raises:** `ValueError` if `states` has another shape.
        """
        check_shapes(
            f"{type(self).__name__}.normalised", "pass episodes.states", states=(states, ("N", "H+1", self.state_size))
        )
        targets = states[:, 1:]
        if self.predict_changes:
            targets = targets - jax.vmap(self.residual_base)(states)
        statistics = self.input_norm.fitted(states), self.output_norm.fitted(targets)
        return eqx.tree_at(lambda m: (m.input_norm, m.output_norm), self, statistics)
