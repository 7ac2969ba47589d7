"""The Gaussian head of a world model: a mean and a standard deviation for each entry of the next state."""

import math
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._checks import describe, kind

N = TypeVar("N", bound=Callable)


class Gaussian(NamedTuple):
    """A normal distribution of independent entries.

    - `mean`, `deviation`: mean and standard deviation of each entry, shape (..., S).
    """

    mean: Float[Array, "*steps S"]
    deviation: Float[Array, "*steps S"]

    def sample(self, key: PRNGKeyArray | None) -> Float[Array, "*steps S"]:
        """Return mean + deviation * noise, a differentiable sample under `key`; the mean without one.

        The noise is that of a new key derived from `key`, so that a network inside the same step may draw from `key` too.
        """
        if key is None:
            return self.mean
        noise_key = jax.random.fold_in(key, 2**31 - 1)
        return self.mean + self.deviation * jax.random.normal(noise_key, self.mean.shape, self.mean.dtype)


class GaussianHead(eqx.Module):
    """A network whose outputs are a normal distribution: a mean and a standard deviation for each entry of the next state.

    Pass the class to a world model. `fit` then maximises the likelihood of the next states:

    ```python
    model = fit(AWM(4, 2, head=GaussianHead, key=k1), episodes, key=k2).model
    mean, deviation = model.teacher_forced(episode.states, episode.actions)  # of s_1 ... s_H, in units of the states
    sample, prediction = model.open_loop(s_0, actions, key=k3), model.open_loop(s_0, actions)
    ```

    With a key, `step`, `open_loop` and unrolls add deviation * noise to the mean, with new noise at each step, and gradients pass
    through both (reparameterisation). Without a key they return the mean. `improve` and `train` imagine episodes with keys.

    The noise stands for what the inputs of a prediction do not determine. A Markov model or an HWM predicts from the sampled
    states, so deviations add up along an episode. An AWM feeds nothing back: its deviation at step t is that of s_t given s_0 and
    all actions, and the noises of successive steps are independent. Each step's distribution is right then, but not how steps
    vary together.

    The network returns the S means and then S numbers x, from which

        log deviation = log lowest + (log highest - log lowest) sigmoid(4 x / (log highest - log lowest) + c),

    with c such that the deviation is 1 where x = 0, as it is before training: that of predicting the mean of the data. Deviations
    are in units of the model's output normaliser.

    **Arguments**

    - `network`: a network with 2 S outputs. A world model that is given this class as its `head` passes its own.
    - `lowest`, `highest`: bounds of the deviation in units of the output normaliser, below and above 1. For other bounds, pass
      `head=functools.partial(GaussianHead, lowest=1e-4)`.

    **Raises:** `ValueError` if `network` cannot be called, or the bounds are not positive numbers below and above 1.
    """

    network: Callable
    lowest: float = eqx.field(static=True, default=1e-3)
    highest: float = eqx.field(static=True, default=10.0)

    def __check_init__(self):
        if not callable(self.network):
            raise ValueError(
                f"GaussianHead needs a network with two outputs per entry of a state, got {kind(self.network)}; pass an eqx.nn.MLP, or "
                "the class itself as head=GaussianHead to a world model."
            )
        if not 0 < self.lowest < 1 < self.highest < math.inf:
            raise ValueError(
                f"GaussianHead needs bounds with 0 < lowest < 1 < highest, got lowest={self.lowest} and highest={self.highest}; they "
                "are in units of the output normaliser, where the data have a deviation of 1."
            )

    def __call__(self, *inputs: Array, **options) -> Gaussian:
        """Return the distribution of the network's outputs for these inputs, each of its arrays of shape (S,)."""
        outputs = self.network(*inputs, **options)
        if getattr(outputs, "ndim", 0) != 1 or outputs.size % 2:
            raise ValueError(
                f"GaussianHead needs a network that returns 2 S numbers, the means and then the deviations, got {describe(outputs)}; "
                "give it twice as many outputs as the state has entries."
            )
        mean, x = jnp.split(outputs, 2)
        low, size = math.log(self.lowest), math.log(self.highest / self.lowest)
        share = jax.nn.sigmoid(4 / size * x + math.log(-low / (size + low)))
        return Gaussian(mean, jnp.exp(low + size * share))


def sample(predicted: Array | Gaussian, key: PRNGKeyArray | None) -> Array:
    """Return a sample of a prediction; the prediction itself where it has no deviation."""
    return predicted.sample(key) if isinstance(predicted, Gaussian) else predicted


def outputs_of(state_size: int, head: Callable | None) -> int:
    """Return the number of outputs of a world model's network."""
    return state_size if head is None else 2 * state_size


def with_head(owner: str, network: N, head: Callable[[N], GaussianHead] | None) -> N | GaussianHead:
    """Return the network itself, or inside a head."""
    if head is None:
        return network
    if not callable(head) or isinstance(head, eqx.Module):
        raise ValueError(f"{owner} got head={kind(head)}; pass the class, head=GaussianHead, which gets the model's network.")
    return head(network)
