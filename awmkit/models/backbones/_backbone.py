"""The interface of a causal sequence network: what an AWM or an HWM predicts with.

Apart so that world models and networks know each other only through it.
"""

import abc
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key, PRNGKeyArray, PyTree, ScalarLike

from ..._dynamics import step_keys


class AbstractBackbone(eqx.Module):
    """A causal sequence network, primed with a first token and then fed one token a step.

    It can be run step by step (`init`, `step`) or over many tokens at once (`append`, `__call__`); values and gradients are
    equal.

    **Fields** a subclass provides

    - `width`: the size W of tokens and of features.
    - `parallel`: class attribute, `True` where `__call__` handles all tokens at once. The default is `False`.
    """

    width: eqx.AbstractVar[int]
    parallel: ClassVar[bool] = False

    @abc.abstractmethod
    def init(self, first: Float[Array, " S"], horizon: int) -> PyTree:
        """The memory after the first token, with room for `horizon` more.

        **Raises:** `ValueError` for a `horizon` beyond the one the network was built for.
        """

    @abc.abstractmethod
    def step(
        self, memory: PyTree, token: Float[Array, " W"], t: ScalarLike, *, key: PRNGKeyArray | None = None
    ) -> tuple[PyTree, Float[Array, " F"]]:
        """The memory after, and the feature at, the token of step `t`, which follows the first token and t others."""

    def append(
        self, memory: PyTree, tokens: Float[Array, "B W"], t: int, *, keys: Key[Array, " B"] | None = None
    ) -> tuple[PyTree, Float[Array, "B F"]]:
        """The memory after, and the features at, the tokens of step `t` and those that follow. By default a scan of `step`."""
        steps = (tokens, t + jnp.arange(tokens.shape[0]), keys)
        return lax.scan(lambda memory, x: self.step(memory, x[0], x[1], key=x[2]), memory, steps)

    def resize(self, memory: PyTree, horizon: int) -> PyTree:
        """`memory` with room for `horizon` tokens after the first; by default as it is, for one that needs no room."""
        del horizon
        return memory

    def __call__(
        self, first: Float[Array, " S"], tokens: Float[Array, "H W"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "H F"]:
        """The features at all `tokens`."""
        horizon = tokens.shape[0]
        return self.append(self.init(first, horizon), tokens, 0, keys=step_keys(key, horizon))[1]
