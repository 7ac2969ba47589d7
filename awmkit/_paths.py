"""`Paths`: which edges between steps carry gradient, and how much of it."""

import math
from typing import TypeVar

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from jax import lax
from jaxtyping import Array, Float, PyTree, ScalarLike

from ._checks import describe
from ._types import Number

EDGES = ("state_to_policy", "state_to_model", "action_to_model", "memory_to_policy")

Memory = TypeVar("Memory", bound=PyTree)


class Paths(eqx.Module):
    """Gains of the gradient on the edges between steps. They scale gradients and never change values.

    ```
    a_t     = policy(s_t)            state_to_policy: s_t into the policy
    s_{t+1} = dynamics(s_t, a_t)     state_to_model:  s_t into the dynamics
                                     action_to_model: a_t into the dynamics
    r_t     = reward(s_t, a_t)       always carries the full gradient
    ```

    A policy with a memory m_t (see `awmkit.AbstractPolicy`) has one more edge:

    ```
    m_{t+1}, a_t = policy.step(m_t, s_t)     memory_to_policy: m_t into the policy
    ```

    - `Paths()` is ordinary backpropagation through the closed loop.
    - `BPO`, which is `Paths(state_to_policy=0.0)`, is the paper's policy gradient: the policy reads detached states. It leaves
      `memory_to_policy` at 1: the policy learns what to remember, by a gradient that never crosses the dynamics.
    - `Paths(state_to_model=0.9)` multiplies the gradient by 0.9 at each step of a Markov model or simulator.

    **Arguments**

    - `state_to_policy`, `state_to_model`, `action_to_model`, `memory_to_policy`: finite scalars, which may be traced. 0 cuts the
      edge. 1, the default, passes the gradient on unchanged. Arrays of shape (N,) are a sweep of `awmkit.train` or `awmkit.improve`.

    **Raises:** `ValueError` if an argument is not one of these edges, or a gain is not a finite scalar.
    """

    state_to_policy: Number
    state_to_model: Number
    action_to_model: Number
    memory_to_policy: Number

    def __init__(
        self,
        state_to_policy: Number = 1.0,
        state_to_model: Number = 1.0,
        action_to_model: Number = 1.0,
        memory_to_policy: Number = 1.0,
        **unknown: object,
    ):
        if unknown:
            raise ValueError(f"Paths has no edge {', '.join(map(repr, unknown))}; use {', '.join(EDGES)}.")
        gains = state_to_policy, state_to_model, action_to_model, memory_to_policy
        for edge, gain in zip(EDGES, gains, strict=True):
            _check_gain(edge, gain)
        self.state_to_policy = state_to_policy
        self.state_to_model = state_to_model
        self.action_to_model = action_to_model
        self.memory_to_policy = memory_to_policy

    def to_policy(self, states: Float[Array, "*batch S"]) -> Float[Array, "*batch S"]:
        """Return states as the policy reads them."""
        return scale_gradient(states, self.state_to_policy)

    def feed_back(self, states: Float[Array, "*batch S"]) -> Float[Array, "*batch S"]:
        """Return states as the dynamics reads them."""
        return scale_gradient(states, self.state_to_model)

    def to_model(self, actions: Float[Array, "*batch A"]) -> Float[Array, "*batch A"]:
        """Return actions as the dynamics reads them."""
        return scale_gradient(actions, self.action_to_model)

    def recall(self, memory: Memory) -> Memory:
        """Return a policy's memory as the policy reads it. Only its floating-point arrays have a gradient."""
        return jtu.tree_map(lambda x: scale_gradient(x, self.memory_to_policy) if eqx.is_inexact_array(x) else x, memory)


def _check_gain(edge: str, gain: Number) -> None:
    number = isinstance(gain, int | float)
    array = not isinstance(gain, complex) and len(shape := getattr(gain, "shape", (0,))) <= 1 and shape != (0,)
    if number and not math.isfinite(gain) or not number and not array:
        raise ValueError(f"The gain of {edge} must be one finite real number, got {describe(gain)}; 0.0 cuts the edge.")


def is_cut(gain: ScalarLike) -> bool:
    """Return whether the gain is 0 and known before the program runs."""
    return isinstance(gain, int | float) and gain == 0


def scale_gradient(x: Float[Array, "*shape"], gain: ScalarLike) -> Float[Array, "*shape"]:
    """Return `x` unchanged; its derivative is `gain`, in forward and reverse mode, also for a traced gain."""
    x = jnp.asarray(x)
    if isinstance(gain, int | float) and gain == 1:
        return x
    if is_cut(gain):
        return lax.stop_gradient(x)
    # Not a custom_jvp rule, which JAX 0.10 forgets in the second derivative of a scan. Values that are not finite stay as they are.
    still = lax.stop_gradient(x)
    return jnp.where(jnp.isfinite(still), still + jnp.asarray(gain, x.dtype) * (x - still), x)


BPO = Paths(state_to_policy=0.0)
"""The paper's policy gradient: the policy reads detached states. What it remembers keeps its gradient."""
