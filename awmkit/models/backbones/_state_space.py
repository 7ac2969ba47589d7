"""The linear state-space backbone: a recurrence without a nonlinearity in it, so that all steps can be had at once.

Apart from the recurrent cells because its hidden state needs no scan in order of time: composition is associative.
"""

import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from ..._checks import check_counts, check_key
from ._backbone import AbstractBackbone

Complex = tuple[Float[Array, "..."], Float[Array, "..."]]  # Real and imaginary part: optimisers and strict dtypes know both.


class LinearStateSpace(AbstractBackbone):
    """Blocks of x_t = lambda x_{t-1} + B u_t, y_t = Re(C x_t) + D u_t, with lambda diagonal and complex, and a gate on top.

    S5 (Smith et al., 2023) with the stable parameters of the linear recurrent unit (Orvieto et al., 2023): |lambda| < 1
    whatever the weights, so that no gradient through the recurrence grows with the horizon. Of the steps that are taken at
    once, the number of dependent operations grows like the logarithm, and the work like their number.

    **Arguments**

    - `width`: of tokens. `depth`: blocks. `modes`: entries of lambda in each block.
    - `chunk_size`: the most steps taken at once, more one such span after another. So many should fit a processor's cache; where
      there are thousands of cores, give the horizon.
    - `key`: for the weights; |lambda| starts between 0.8 and 0.999, at phases up to pi/4 a step.
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
        return self.step([block.blank() for block in self.blocks], first, 0)[0]

    def step(self, memory, token, t, *, key=None):
        del t, key
        after = []
        for block, x in zip(self.blocks, memory, strict=True):
            x, token = block.step(x, token)
            after.append(x)
        return after, self.norm(token)

    def append(self, memory, tokens, t, *, keys=None):
        del t, keys
        if tokens.shape[0] <= self.chunk_size:
            return self._span(memory, tokens)
        spans = tokens.shape[0] // self.chunk_size
        end = spans * self.chunk_size
        memory, done = lax.scan(lambda x, span: self._span(x, span), memory, tokens[:end].reshape(spans, self.chunk_size, -1))
        done = done.reshape(end, -1)
        if end == tokens.shape[0]:
            return memory, done
        memory, rest = self._span(memory, tokens[end:])
        return memory, jnp.concatenate([done, rest])

    def _span(self, memory, tokens):
        """As `append`, with all tokens at once."""
        after = []
        for block, x in zip(self.blocks, memory, strict=True):
            x, tokens = block(x, tokens)
            after.append(x)
        return after, jax.vmap(self.norm)(tokens)


class Block(eqx.Module):
    """A residual block: normalise, the recurrence, then a gated linear unit."""

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

    def blank(self) -> Complex:
        """x before the first token."""
        return jnp.zeros_like(self.decay), jnp.zeros_like(self.decay)

    def step(self, x: Complex, token: Float[Array, " W"]) -> tuple[Complex, Float[Array, " W"]]:
        """x and the token after one step."""
        u = self.norm(token)
        turned = _times(self._eigenvalues(), x)
        driven = self._drive(u)
        x = turned[0] + driven[0], turned[1] + driven[1]
        return x, self._leave(x, u, token)

    def __call__(self, x: Complex, tokens: Float[Array, "T W"]) -> tuple[Complex, Float[Array, "T W"]]:
        """As `step`, for all tokens at once."""
        u = jax.vmap(self.norm)(tokens)
        driven = jax.vmap(self._drive)(u)
        eigenvalues = jax.tree.map(lambda x: jnp.broadcast_to(x, driven[0].shape), self._eigenvalues())
        turns, alone = lax.associative_scan(_compose, (eigenvalues, driven))
        before = _times(turns, x)
        xs = alone[0] + before[0], alone[1] + before[1]
        return (xs[0][-1], xs[1][-1]), jax.vmap(self._leave)(xs, u, tokens)

    def _eigenvalues(self) -> Complex:
        radius = jnp.exp(-jnp.exp(self.decay))
        return radius * jnp.cos(self.phase), radius * jnp.sin(self.phase)

    def _drive(self, u):
        """B u, scaled so that x is of the size of u however slowly it decays."""
        scale = jnp.sqrt(-jnp.expm1(-2 * jnp.exp(self.decay)))
        return scale * (self.B[0] @ u), scale * (self.B[1] @ u)

    def _leave(self, x, u, token):
        y = jax.nn.gelu(self.C[0] @ x[0] - self.C[1] @ x[1] + self.D * u)
        return token + y * jax.nn.sigmoid(self.gate(y))


def _times(a: Complex, b: Complex) -> Complex:
    return a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]


def _compose(first: tuple[Complex, Complex], then: tuple[Complex, Complex]) -> tuple[Complex, Complex]:
    """Two maps x -> a x + b as one."""
    (a, b), (c, d) = first, then
    turned = _times(c, b)
    return _times(c, a), (turned[0] + d[0], turned[1] + d[1])
