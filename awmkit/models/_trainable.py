"""The interface of everything that `awmkit.fit` can fit."""

import abc
from typing import TypeVar

import equinox as eqx
from jaxtyping import Array, Float, Scalar

from .._checks import check_shapes, kind
from .._trajectory import check_episodes, Trajectory

T = TypeVar("T", bound="AbstractTrainable")


class AbstractTrainable(eqx.Module):
    """A module that `awmkit.fit` can fit to whole episodes: a world model, a reward model, or your own.

    `fit` minimises the mean of `loss` over batches of episodes, and reports the error of `prediction` against `target` on the
    episodes it holds out. All floating-point arrays are trained, except those in an `awmkit.Normaliser`.

    Episodes of unequal length share arrays of one size, and have a `length`. `episode.mean_over_steps` leaves the padding out of
    a loss.

    **Fields** a subclass defines

    - `state_size`, `action_size`: number of entries of a state and of an action.

    **What must hold**

    - `prediction` and `target` have the same shape (H, D) for one episode.
    - `target` also accepts episodes with leading batch axes, because its standard deviation is the unit of the reported error.

    ```python
    class Speedometer(AbstractTrainable):
        "Predicts the distance between successive states."

        network: eqx.nn.MLP
        state_size: int = eqx.field(static=True)
        action_size: int = eqx.field(static=True)

        def loss(self, episode):
            return episode.mean_over_steps((self.prediction(episode) - self.target(episode)) ** 2)

        def target(self, episodes):
            states = episodes.filled().states
            change = states[..., 1:, :] - states[..., :-1, :]
            return jnp.linalg.norm(change, axis=-1, keepdims=True)

        def prediction(self, episode):
            return jax.vmap(self.network)(episode.filled().actions)
    ```
    """

    state_size: eqx.AbstractVar[int]
    action_size: eqx.AbstractVar[int]

    @abc.abstractmethod
    def loss(self, episode: Trajectory) -> Scalar:
        """Return the training loss of one episode, the mean over the steps that happened. `fit` weighs it by their number.

        awmkit's own models return 0.5 times the mean square error, with the targets in units of their standard deviation.
        """

    @abc.abstractmethod
    def target(self, episodes: Trajectory) -> Float[Array, "*batch H D"]:
        """Return the part of the episodes that is predicted, such as s_1 ... s_H, shape (..., H, D)."""

    @abc.abstractmethod
    def prediction(self, episode: Trajectory) -> Float[Array, "H D"]:
        """Return the prediction for one episode, shape (H, D), made in the way the model will be used: open loop for a world model."""

    def normalised(self: T, episodes: Trajectory) -> T:
        """Return this model with statistics of the N episodes in its normalisers. By default the model as it is.

        Statistics that were set are replaced. `awmkit.fit` and `awmkit.train` set only those that are not set. Weights do not
        change, so call it before the first `fit`, or to move a model to data in other units.

        **Arguments:** `episodes`: a `Trajectory` with a leading axis.

        **Raises:** `ValueError` if `episodes` is not a `Trajectory` of N episodes, or lacks what the model predicts.
        """
        del episodes
        return self


def check_sequence(who: str, model: AbstractTrainable, states, actions) -> None:
    """Raise unless these are the states (H+1, S) and actions (H, A) of one episode."""
    check_shapes(who, states=(states, ("H+1", model.state_size)), actions=(actions, ("H", model.action_size)))


def check_data(who: str, model: AbstractTrainable, episodes: Trajectory) -> None:
    """Raise unless these are N episodes with the model's sizes."""
    if not isinstance(episodes, Trajectory):
        raise ValueError(
            f"{who} needs a Trajectory of N episodes, got {kind(episodes)}; pass the episodes, not only their states."
        )
    check_episodes(who, episodes, state_size=model.state_size, action_size=model.action_size)
