"""The interface of a backbone, the causal sequence network inside an AWM or HWM."""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from jax import lax
from jaxtyping import Array, Float, Key, PRNGKeyArray, PyTree, ScalarLike

from ..._checks import check_shapes, kind, Shape
from ..._dynamics import step_keys


class AbstractBackbone(eqx.Module):
    """A causal sequence network: it reads a first token, then one token per step, and returns one feature per step.

    `AWM` and `HWM` embed states and actions as tokens of size W and decode features into states. Subclass it to use your own
    network. Only `init` and `step` are required.

    **Fields** a subclass defines

    - `width`: size W of tokens and features.
    - `parallel`: class attribute; `True` if `append` processes all tokens at once instead of scanning over them. `False` by
      default. The unroll then uses the method `Parallel`.
    - `resizable`: class attribute; `True` if the memory's shape depends on the horizon, as a key-value cache's does, and `resize`
      extends it. `False` by default.

    **What must hold**

    - The feature of step t depends on the first token and on the tokens of steps 0 to t only.
    - `append` gives the values and gradients of repeated `step`, to rounding.
    - `step` returns a memory with the structure, shapes and dtypes of the one it was given.
    - `init(first, n)` followed by `resize(memory, m)` has the shapes of `init(first, m)`.

    ```python
    class Leaky(AbstractBackbone):
        decay: jax.Array
        width: int = eqx.field(static=True)

        def init(self, first, horizon):
            return first

        def step(self, memory, token, t, *, key=None):
            memory = jax.nn.sigmoid(self.decay) * memory + token
            return memory, memory

    model = AWM(state_size, action_size, Leaky(jnp.zeros(16), 16), key=key)
    ```
    """

    width: eqx.AbstractVar[int]
    parallel: ClassVar[bool] = False
    resizable: ClassVar[bool] = False

    @abc.abstractmethod
    def init(self, first: Float[Array, " S"], horizon: int) -> PyTree:
        """Return the memory after the first token, with space for `horizon` further tokens.

        **Raises:** `ValueError` if the network supports fewer than `horizon` steps.
        """

    @abc.abstractmethod
    def step(
        self, memory: PyTree, token: Float[Array, " W"], t: ScalarLike, *, key: PRNGKeyArray | None = None
    ) -> tuple[PyTree, Float[Array, " F"]]:
        """Process one token.

        **Arguments:** `memory`: from `init` or the previous call. `token`: shape (W,). `t`: index of the step, 0 for the token
        after the first one; may be traced. `key`: for a stochastic network.

        **Returns:** the new memory and the feature, shape (W,).
        """

    def append(
        self, memory: PyTree, tokens: Float[Array, "B W"], t: int, *, keys: Key[Array, " B"] | None = None
    ) -> tuple[PyTree, Float[Array, "B F"]]:
        """Process the tokens of steps t to t + B - 1. By default a scan of `step`.

        Override it, with `parallel = True`, if the network can process all tokens at once. The `memory` may have space for later
        steps; the one that is returned must have the same space, or more.

        **Arguments:** `memory`: after step t - 1. `tokens`: shape (B, W). `t`: index of their first step, a Python integer.
        `keys`: one per step.

        **Returns:** the memory after the last token, and the features, shape (B, W).
        """
        steps = (tokens, t + jnp.arange(tokens.shape[0]), keys)
        return lax.scan(lambda memory, x: self.step(memory, x[0], x[1], key=x[2]), memory, steps)

    def resize(self, memory: PyTree, horizon: int) -> PyTree:
        """Return `memory` with space for `horizon` tokens after the first. By default `memory` itself."""
        del horizon
        return memory

    def sequences_at_a_time(self, tokens: int) -> int | None:
        """Return how many sequences of this length run at a time on a CPU, or `None`, the default, for the whole batch.

        Groups are faster where the intermediate values of a batch do not fit in the CPU cache.
        """
        del tokens
        return None

    def __call__(
        self, first: Float[Array, " S"], tokens: Float[Array, "H W"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "H F"]:
        """Return the features at all `tokens`, shape (H, W)."""
        check_shapes(type(self).__name__, first=(first, (self.width,)), tokens=(tokens, ("H", self.width)))
        horizon = tokens.shape[0]
        return self.append(self.init(first, horizon), tokens, 0, keys=step_keys(key, horizon))[1]


def check_tokens(backbone: AbstractBackbone, memory: PyTree, of_memory: Shape, **tokens: tuple[Any, Shape]) -> None:
    """Raise unless every array of the memory has the shape `of_memory`, and the tokens have theirs."""
    if not all(jnp.issubdtype(getattr(x, "dtype", int), jnp.floating) for x in jtu.tree_leaves(memory)):
        who = type(backbone).__name__
        raise ValueError(
            f"{who} needs a memory of floating-point arrays, got {kind(memory)} of others; pass what init returned."
        )
    arrays = {f"memory{jtu.keystr(path)}": (x, of_memory) for path, x in jtu.tree_leaves_with_path(memory)}
    check_shapes(type(backbone).__name__, **arrays, **tokens)
