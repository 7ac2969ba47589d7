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

from .._checks import describe
from .._policies import memory_of
from ._method import AbstractMethod, stepper


class Sequential(AbstractMethod):
    """Run all steps in one scan; reverse mode is backpropagation through time. Works for every dynamics.

    **Arguments**

    - `checkpoint`: what is stored for reverse mode. The gradient does not depend on it.
        - `"none"` (the default) stores all intermediate values. It is the fastest.
        - `"step"` stores the carries between steps and recomputes each step, which costs one more forward pass.
        - `"nested"` stores every sqrt(H)-th carry, so memory grows with sqrt(H). It costs two more forward passes. Source: Griewank
          & Walther, *Evaluating Derivatives*, ch. 12.

    **Raises:** `ValueError` if `checkpoint` is none of these.
    """

    checkpoint: Literal["none", "step", "nested"] = eqx.field(static=True, default="none")

    def __check_init__(self):
        if self.checkpoint not in ("none", "step", "nested"):
            raise ValueError(f"checkpoint must be 'none', 'step' or 'nested', got {describe(self.checkpoint)}.")

    def run(self, dynamics, policy, state, horizon, *, key, paths, t=0, carry=None):
        step, steps = stepper(dynamics, policy, horizon, key=key, paths=paths, t=t)
        carry = dynamics.init(state, horizon) if carry is None else carry
        _, (states, actions) = self._scan(step, ((memory_of(policy), carry), state), steps, horizon)
        return states, actions, None

    def _scan(self, step: Callable, loop: PyTree, steps: PyTree, horizon: int) -> tuple[PyTree, PyTree]:
        """`lax.scan`, with the values kept for reverse mode as `checkpoint` says; nested: by blocks of about sqrt(H) steps."""
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
