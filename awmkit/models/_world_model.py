"""The interface of a learned dynamics, with normalisation and residual prediction."""

import abc
import math
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from .._checks import check_shapes, parameters_of
from .._dynamics import AbstractDynamics, step_keys
from .._normaliser import Normaliser, rows_of
from ._gaussian import Gaussian
from ._trainable import AbstractTrainable, check_data, check_sequence

Outputs = TypeVar("Outputs", bound=Array | Gaussian)


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
    - If `step` reads t, `teacher_forced` takes a third parameter, `t=0`, the index of its first step, and calls `step` with t,
      t + 1, ... A model without it is fitted to windows of episodes as if each began at step 0.
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

    **With a standard deviation.** Put the network inside an `awmkit.GaussianHead`. `decode` and `teacher_forced` then return a
    `Gaussian`, a mean and a deviation, whose likelihood is the loss, and `step` returns a sample of it:

    ```python
    class Noisy(AbstractWorldModel):
        head: GaussianHead
        input_norm: Normaliser
        output_norm: Normaliser
        predict_changes: bool = eqx.field(static=True)
        state_size: int = eqx.field(static=True)
        action_size: int = eqx.field(static=True)

        def predict(self, state, action, t):
            return self.decode(self.head(jnp.concatenate([self.input_norm(state), action])), state, t)

        def step(self, carry, state, action, t, *, key=None):
            return carry, self.predict(state, action, t).sample(key)

        def teacher_forced(self, states, actions):
            return jax.vmap(lambda s, a: self.predict(s, a, 0))(states[:-1], actions)

        def residual_base(self, states):
            return states[:-1]
    ```
    """

    input_norm: eqx.AbstractVar[Normaliser]
    output_norm: eqx.AbstractVar[Normaliser]
    predict_changes: eqx.AbstractVar[bool]

    @abc.abstractmethod
    def teacher_forced(self, states: Float[Array, "T S"], actions: Float[Array, "H A"]) -> Float[Array, "H S"] | Gaussian:
        """Return the predictions of s_1 ... s_H that the loss compares with an episode, in one pass.

        A Markov model predicts each state from the true state before it, an HWM from the true history, and an AWM predicts all of
        them from s_0 and the actions.

        **Arguments:** `states`: s_0 ... s_H, shape (H+1, S). `actions`: a_0 ... a_{H-1}, shape (H, A).

        **Returns:** shape (H, S); of a model with an `awmkit.GaussianHead`, means and deviations of this shape, a `Gaussian`.
        """

    @abc.abstractmethod
    def residual_base(self, states: Float[Array, "T S"]) -> Float[Array, "H S"]:
        """Return the states to which predicted changes are added, for each of s_1 ... s_H.

        A model that predicts s_{t+1} - s_t returns s_0 ... s_{H-1}; an AWM, which predicts s_{t+1} - s_0, repeats s_0.

        **Arguments:** `states`: s_0 ... s_H, shape (H+1, S).

        **Returns:** shape (H, S).
        """

    def decode(self, outputs: Outputs, base: Float[Array, "*_ S"], t: ArrayLike) -> Outputs:
        """Convert the network's `outputs` at step or steps `t` into states. Predicted changes are added to `base`.

        **Arguments:** `outputs`: shape (S,) or (H, S), or a `Gaussian` with arrays of this shape, as an `awmkit.GaussianHead`
        returns. `base`: the same shape, or (S,) for one state that all changes are added to. `t`: a number, or shape (H,).

        **Returns:** the states, of the shape of `outputs`, or a `Gaussian` of them.
        """
        if isinstance(outputs, Gaussian):
            arrays = {name: (x, ("*", self.state_size)) for name, x in outputs._asdict().items()}
            check_shapes(f"{type(self).__name__}.decode", "give the mean and the deviation one shape", **arrays)
            scale = lax.stop_gradient(self.output_norm.at(t).scale)
            deviation = outputs.deviation * jnp.broadcast_to(scale, outputs.deviation.shape)
            states: Any = Gaussian(self.decode(outputs.mean, base, t), deviation)
            return states
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
        episode = episode.filled()
        time = {} if episode.t is None or not reads_time(self) else {"t": episode.t}
        predicted = self.teacher_forced(episode.states, episode.actions, **time)
        unit = lax.stop_gradient(self.output_norm.overall)[None]
        if isinstance(predicted, Gaussian):
            squares = ((predicted.mean - episode.states[1:]) / predicted.deviation) ** 2
            return episode.mean_over_steps(0.5 * (squares + math.log(2 * math.pi)) + jnp.log(predicted.deviation / unit))
        return 0.5 * episode.mean_over_steps(((predicted - episode.states[1:]) / unit) ** 2)

    def target(self, episodes):
        check_shapes(f"{type(self).__name__}.target", states=(episodes.states, ("*", "H+1", self.state_size)))
        return episodes.filled().states[..., 1:, :]

    def prediction(self, episode, *, key: PRNGKeyArray | None = None):
        check_sequence(f"{type(self).__name__}.prediction", self, episode.states, episode.actions)
        episode = episode.filled()
        state, actions = episode.states[0], episode.actions
        if episode.t is None or not reads_time(self):
            return self.open_loop(state, actions, key=key)
        keys = step_keys(key, actions.shape[0])
        return self.rollout_segment(self.init(state, actions.shape[0]), state, actions, episode.t, keys=keys)[1]

    def normalised(self, episodes):
        check_data(f"{type(self).__name__}.normalised", self, episodes)
        if episodes.t is not None and reads_time(self) and (self.input_norm.per_step or self.output_norm.per_step):
            raise ValueError(
                f"{type(self).__name__}.normalised got windows of episodes, and has statistics for each step of an episode; pass "
                "whole episodes, whose t is None."
            )
        episodes = episodes.filled()
        states, targets = episodes.states, episodes.states[:, 1:]
        if self.predict_changes:
            targets = targets - jax.vmap(self.residual_base)(states)
        statistics = (
            self.input_norm.fitted(states, rows_of(episodes, states.shape[1])),
            self.output_norm.fitted(targets, rows_of(episodes, targets.shape[1])),
        )
        return eqx.tree_at(lambda m: (m.input_norm, m.output_norm), self, statistics)


def reads_time(model: AbstractWorldModel) -> bool:
    """Return whether `t` of an episode matters to the model. If not, its steps count from the first state it was given."""
    return "t" in parameters_of(model.teacher_forced)
