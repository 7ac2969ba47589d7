"""Backpropagation through time: one scan over the steps."""

import math
from collections.abc import Callable
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax import lax
from jaxtyping import PyTree

from ._method import AbstractMethod, stepper


class Sequential(AbstractMethod):
    """Step by step, by one scan; reverse mode is backpropagation through time. For every dynamics.

    **Arguments**

    - `checkpoint`: what reverse mode keeps. `"none"`: all intermediate values, fastest. `"step"`: the carries between steps,
      at the price of one more forward pass. `"nested"`: those of every sqrt(H)-th step and of one block, so that memory
      grows like sqrt(H), at the price of two more forward passes (Griewank & Walther, *Evaluating Derivatives*, ch. 12).
      Gradients are equal.

    **Raises:** `ValueError` for any other `checkpoint`.
    """

    checkpoint: Literal["none", "step", "nested"] = eqx.field(static=True, default="none")

    def __check_init__(self):
        if self.checkpoint not in ("none", "step", "nested"):
            raise ValueError(f"Sequential got checkpoint={self.checkpoint!r}; use 'none', 'step' or 'nested'.")

    def run(self, dynamics, policy, state, horizon, *, key, paths):
        step, steps = stepper(dynamics, policy, horizon, key=key, paths=paths)
        _, (states, actions) = self._scan(step, (dynamics.init(state, horizon), state), steps, horizon)
        return states, actions, None

    def _scan(self, step: Callable, loop: PyTree, steps: PyTree, horizon: int) -> tuple[PyTree, PyTree]:
        if self.checkpoint == "none":
            return lax.scan(step, loop, steps)
        step = jax.checkpoint(step, prevent_cse=False)
        if self.checkpoint == "step":
            return lax.scan(step, loop, steps)
        block = math.isqrt(horizon)
        whole = horizon - horizon % block
        blocks = jtu.tree_map(lambda x: x[:whole].reshape(-1, block, *x.shape[1:]), steps)
        run_block = jax.checkpoint(lambda loop, steps: lax.scan(step, loop, steps), prevent_cse=False)
        loop, first = lax.scan(run_block, loop, blocks)
        loop, rest = lax.scan(step, loop, jtu.tree_map(lambda x: x[whole:], steps))
        return loop, jtu.tree_map(lambda x, y: jnp.concatenate([x.reshape(whole, *y.shape[1:]), y]), first, rest)
