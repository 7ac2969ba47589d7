"""What `fit` needs of anything that is learned from episodes: a loss to descend, and an error in units that mean something.

Apart from world models because a reward is learned by the same loop.
"""

import abc

import equinox as eqx
from jaxtyping import Array, Float, Scalar

from .._trajectory import Trajectory


class AbstractTrainable(eqx.Module):
    """A module that `awmkit.fit` can fit to whole episodes."""

    state_size: eqx.AbstractVar[int]
    action_size: eqx.AbstractVar[int]

    @abc.abstractmethod
    def loss(self, episode: Trajectory) -> Scalar:
        """What is descended, of one episode: 0.5 times the mean square error, in units of the model's targets."""

    @abc.abstractmethod
    def target(self, episodes: Trajectory) -> Float[Array, "*batch H D"]:
        """What of the episodes is predicted."""

    @abc.abstractmethod
    def prediction(self, episode: Trajectory) -> Float[Array, "H D"]:
        """What is predicted of one episode, as the model will be used, open loop."""
