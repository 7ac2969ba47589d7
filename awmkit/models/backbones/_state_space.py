"""The linear state-space backbone, whose recurrence runs as an associative scan."""

import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from ..._checks import check_counts, check_key, check_shapes
from ._backbone import AbstractBackbone, check_tokens

Complex = tuple[Float[Array, "..."], Float[Array, "..."]]  # Real and imaginary part, as real arrays for optimisers.


class LinearStateSpace(AbstractBackbone):
    """Layers of a linear recurrence with a complex diagonal matrix lambda, each followed by a gated linear unit.

        x_t = lambda x_{t-1} + B u_t,    y_t = Re(C x_t) + D u_t

    This is S5 (Smith et al., 2023) with the parametrisation of the linear recurrent unit (Orvieto et al., 2023), which keeps
    |lambda| < 1 for all weights. Gradients through the recurrence therefore never grow with the horizon. Over H steps the
    associative scan takes O(H) work and O(log H) dependent operations. Use it for very long horizons.

    **Arguments**

    - `width`: size of the tokens.
    - `depth`: number of layers.
    - `modes`: number of entries of lambda in each layer.
    - `chunk_size`: steps per associative scan. Longer sequences run in chunks of this size. Choose one that fits in the CPU cache
      (the default, 256, does), or the horizon on a GPU.
    - `key`: for the initial weights. |lambda| starts between 0.8 and 0.999, with phases of 0 to pi/4 per step.

    **Raises:** `ValueError` if a size is not a positive whole number, or `key` is not one key.
    """

    blocks: list["Block"]
    norm: eqx.nn.LayerNorm
    width: int = eqx.field(static=True)
    chunk_size: int = eqx.field(static=True)
    parallel: ClassVar[bool] = True

    def __init__(self, width: int = 64, depth: int = 2, modes: int = 64, *, chunk_size: int = 256, key: PRNGKeyArray):
        check_counts("LinearStateSpace", width=width, depth=depth, modes=modes, chunk_size=chunk_size)
        check_key("LinearStateSpace", key)
        self.blocks = [Block(width, modes, key=k) for k in jax.random.split(key, depth)]
        self.norm = eqx.nn.LayerNorm(width)
        self.width = width
        self.chunk_size = chunk_size

    def init(self, first, horizon):
        del horizon
        check_shapes("LinearStateSpace", first=(first, (self.width,)))
        return self.step([block.initial() for block in self.blocks], first, 0)[0]

    def step(self, memory, token, t, *, key=None):
        del t, key
        check_tokens(self, memory, self.blocks[0].decay.shape, token=(token, (self.width,)))
        after = []
        for block, x in zip(self.blocks, memory, strict=True):
            x, token = block.step(x, token)
            after.append(x)
        return after, self.norm(token)

    def append(self, memory, tokens, t, *, keys=None):
        del t, keys
        check_tokens(self, memory, self.blocks[0].decay.shape, tokens=(tokens, ("B", self.width)))
        if tokens.shape[0] <= self.chunk_size:
            return self._append_chunk(memory, tokens)
        count = tokens.shape[0] // self.chunk_size
        end = count * self.chunk_size
        chunks = tokens[:end].reshape(count, self.chunk_size, -1)
        memory, features = lax.scan(lambda x, chunk: self._append_chunk(x, chunk), memory, chunks)
        features = features.reshape(end, -1)
        if end == tokens.shape[0]:
            return memory, features
        memory, rest = self._append_chunk(memory, tokens[end:])
        return memory, jnp.concatenate([features, rest])

    def _append_chunk(self, memory, tokens):
        """Return what `append` does, by one associative scan per layer."""
        after = []
        for block, x in zip(self.blocks, memory, strict=True):
            x, tokens = block(x, tokens)
            after.append(x)
        return after, jax.vmap(self.norm)(tokens)


class Block(eqx.Module):
    """One residual layer: layer norm, the linear recurrence, a gated linear unit."""

    norm: eqx.nn.LayerNorm
    decay: Float[Array, " N"]
    phase: Float[Array, " N"]
    B: Float[Array, "2 N W"]
    C: Float[Array, "2 W N"]
    D: Float[Array, " W"]
    gate: eqx.nn.Linear

    def __init__(self, width: int, modes: int, *, key: PRNGKeyArray):
        keys = jax.random.split(key, 5)
        radius = jax.random.uniform(keys[0], (modes,), minval=0.8, maxval=0.999)
        self.norm = eqx.nn.LayerNorm(width)
        self.decay = jnp.log(-jnp.log(radius))
        self.phase = jax.random.uniform(keys[1], (modes,), maxval=math.pi / 4)
        self.B = jax.random.normal(keys[2], (2, modes, width)) / math.sqrt(2 * width)
        self.C = jax.random.normal(keys[3], (2, width, modes)) / math.sqrt(modes)
        self.D = jnp.ones(width)
        self.gate = eqx.nn.Linear(width, width, key=keys[4])

    def initial(self) -> Complex:
        """Return x before the first token."""
        return jnp.zeros_like(self.decay), jnp.zeros_like(self.decay)

    def step(self, x: Complex, token: Float[Array, " W"]) -> tuple[Complex, Float[Array, " W"]]:
        """Return the next x and the output at `token`."""
        u = self.norm(token)
        turned = _times(self._eigenvalues(), x)
        driven = self._drive(u)
        x = turned[0] + driven[0], turned[1] + driven[1]
        return x, self._leave(x, u, token)

    def __call__(self, x: Complex, tokens: Float[Array, "T W"]) -> tuple[Complex, Float[Array, "T W"]]:
        """Return x after the last token and the outputs at all tokens, by an associative scan."""
        u = jax.vmap(self.norm)(tokens)
        driven = jax.vmap(self._drive)(u)
        eigenvalues = jax.tree.map(lambda x: jnp.broadcast_to(x, driven[0].shape), self._eigenvalues())
        turns, alone = lax.associative_scan(_compose, (eigenvalues, driven))
        before = _times(turns, (x[0][None], x[1][None]))
        xs = alone[0] + before[0], alone[1] + before[1]
        return (xs[0][-1], xs[1][-1]), jax.vmap(self._leave)(xs, u, tokens)

    def _eigenvalues(self) -> Complex:
        radius = jnp.exp(-jnp.exp(self.decay))
        return radius * jnp.cos(self.phase), radius * jnp.sin(self.phase)

    def _drive(self, u):
        """Return B u, scaled so that x has the size of u for any rate of decay."""
        scale = jnp.sqrt(-jnp.expm1(-2 * jnp.exp(self.decay)))
        return scale * (self.B[0] @ u), scale * (self.B[1] @ u)

    def _leave(self, x, u, token):
        y = jax.nn.gelu(self.C[0] @ x[0] - self.C[1] @ x[1] + self.D * u)
        return token + y * jax.nn.sigmoid(self.gate(y))


def _times(a: Complex, b: Complex) -> Complex:
    return a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]


def _compose(first: tuple[Complex, Complex], then: tuple[Complex, Complex]) -> tuple[Complex, Complex]:
    """Compose two maps x -> a x + b."""
    (a, b), (c, d) = first, then
    turned = _times(c, b)
    return _times(c, a), (turned[0] + d[0], turned[1] + d[1])
