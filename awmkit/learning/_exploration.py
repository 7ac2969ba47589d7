"""How a policy acts in the environment: with pink noise while it explores, at its mode while it is evaluated."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from .._policies import AbstractWrapper, act


class ExploringPolicy(AbstractWrapper):
    """A policy with noise (H, A) added to its actions; the sum is clipped to [-1, 1].

    A near-deterministic policy repeats one episode, so the data do not show how states respond to actions. Noise does. A policy
    that remembers its actions remembers them without this noise.
    """

    policy: Callable[..., Array]
    noise: Float[Array, "H A"]

    def step(self, memory, state, t, *, key=None):
        memory, action = act(self.policy, memory, state, t, key)
        return memory, jnp.clip(action + self.noise[t], -1, 1)


class ModePolicy(AbstractWrapper):
    """A policy that is always called without a key, so that a stochastic one returns its mode."""

    policy: Callable[..., Array]

    def step(self, memory, state, t, *, key=None):
        return act(self.policy, memory, state, t, None)


def pink_noise(key: PRNGKeyArray, shape: tuple[int, int]) -> Float[Array, "H A"]:
    """Gaussian noise of unit variance with a 1/f power spectrum, of shape (H, A). Eberhard et al. (2023), *Pink Noise Is All
    You Need*.

    The effect of independent noise averages out over an episode; slow variations of the actions change the return visibly.
    """
    steps, size = shape
    frequencies = jnp.arange(steps + 1)  # Those of a series twice as long, or the last step would correlate with the first.
    amplitudes = 1 / jnp.sqrt(jnp.maximum(frequencies, 1))
    unpaired = (frequencies == 0) | (frequencies == steps)  # All others stand for a pair of complex conjugates.
    variance = jnp.sum(jnp.where(unpaired, 1.0, 4.0) * amplitudes**2) / (2 * steps) ** 2
    real, imaginary = jax.random.normal(key, (2, steps + 1, size))
    series = jnp.fft.irfft(lax.complex(amplitudes[:, None] * real, amplitudes[:, None] * imaginary), 2 * steps, axis=0)
    return series[:steps] / jnp.sqrt(variance)
