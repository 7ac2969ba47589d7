"""The transformer backbone, with attention written here.

Library attention keeps its softmax in float32 and has no cache; ours is exact in float64, and the cached steps and the
parallel pass run the same code on one token or on all.
"""

import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ._backbone import AbstractBackbone

Cache = tuple[Float[Array, "_ N D"], Float[Array, "_ N D"]]  # Keys and values.
KEPT = 2**17  # of a head's attention weights, what reverse mode may keep at once


class Transformer(AbstractBackbone):
    """A causal, pre-norm transformer (Vaswani et al., 2017; Xiong et al., 2020); by default of the paper's size.

    **Arguments**

    - `width`: of tokens; a multiple of `heads`.
    - `depth`, `heads`: blocks, and attention heads in each.
    - `horizon`: build a learned time embedding for up to this many steps. `None`: rotary embedding (Su et al., 2021) of the
      distance between steps, which knows no longest horizon.
    - `key`: for the weights.

    **Raises:** `ValueError` for a width that the heads do not divide (evenly, with rotary embedding).
    """

    blocks: list["Block"]
    time: Float[Array, "T W"] | None
    norm: eqx.nn.LayerNorm
    width: int = eqx.field(static=True)
    horizon: int | None = eqx.field(static=True)
    parallel: ClassVar[bool] = True

    def __init__(self, width: int = 48, depth: int = 2, heads: int = 3, *, horizon: int | None = None, key: PRNGKeyArray):
        if width % heads or (horizon is None and width // heads % 2):
            raise ValueError(
                f"A Transformer of width {width} cannot have {heads} heads; make width a multiple of heads, and of 2 * heads "
                "for rotary embedding."
            )
        self.blocks = [Block(width, heads, rotary=horizon is None, key=k) for k in jax.random.split(key, depth)]
        # Learned from a start in which neighbouring steps look alike.
        self.time = None if horizon is None else _sinusoids(horizon + 1, width)
        self.norm = eqx.nn.LayerNorm(width)
        self.width = width
        self.horizon = horizon

    def init(self, first, horizon):
        empty = [block.attention.empty(first.dtype) for block in self.blocks]
        return self.grow(self._append(empty, first[None], 0)[0], horizon)

    def step(self, memory, token, t, *, key=None):
        del key
        position = jnp.asarray(t) + 1
        tokens, after = token[None] if self.time is None else (token + self.time[position])[None], []
        for block, cache in zip(self.blocks, memory, strict=True):
            cache, tokens = block.step(cache, tokens, position)
            after.append(cache)
        return after, self.norm(tokens[0])

    def segment(self, memory, tokens, t, *, keys=None):
        del keys
        self._check(t + tokens.shape[0])
        return self._append([(k[: t + 1], v[: t + 1]) for k, v in memory], tokens, t + 1)

    def grow(self, memory, horizon):
        self._check(horizon)
        room = lambda x: jnp.zeros((horizon + 1 - x.shape[0], *x.shape[1:]), x.dtype)
        return [(jnp.concatenate([k, room(k)]), jnp.concatenate([v, room(v)])) for k, v in memory]

    def _append(self, memory, tokens, position: int):
        """The memory of just the tokens so far, these included, and the features at these, the first at `position`."""
        if self.time is not None:
            tokens = tokens + self.time[position : position + tokens.shape[0]]
        after = []
        for block, cache in zip(self.blocks, memory, strict=True):
            cache, tokens = block(cache, tokens)
            after.append(cache)
        return after, jax.vmap(self.norm)(tokens)

    def _check(self, horizon: int) -> None:
        if self.horizon is not None and horizon > self.horizon:
            raise ValueError(
                f"The horizon is {horizon}, but this Transformer learned a time embedding for {self.horizon} steps; build it "
                f"with horizon={horizon}, or with horizon=None for rotary embedding, which has no limit."
            )


class Block(eqx.Module):
    """Attention and an MLP, each on the normalised tokens and added to them."""

    attention: "CausalAttention"
    up: eqx.nn.Linear
    down: eqx.nn.Linear
    before_attention: eqx.nn.LayerNorm
    before_mlp: eqx.nn.LayerNorm

    def __init__(self, width: int, heads: int, *, rotary: bool, key: PRNGKeyArray):
        attention_key, up_key, down_key = jax.random.split(key, 3)
        self.attention = CausalAttention(width, heads, rotary=rotary, key=attention_key)
        self.up = eqx.nn.Linear(width, 4 * width, key=up_key)
        self.down = eqx.nn.Linear(4 * width, width, key=down_key)
        self.before_attention = eqx.nn.LayerNorm(width)
        self.before_mlp = eqx.nn.LayerNorm(width)

    def __call__(self, cache: Cache, tokens: Float[Array, "T W"]) -> tuple[Cache, Float[Array, "T W"]]:
        """The tokens that follow those in the cache, which holds no more: the cache with them, and what they become."""
        known, total = cache[0].shape[0], cache[0].shape[0] + tokens.shape[0]
        positions = jnp.arange(total)
        q, k, v = self.attention.project(jax.vmap(self.before_attention)(tokens), positions[known:])
        k, v = jnp.concatenate([cache[0], k]), jnp.concatenate([cache[1], v])
        # Rows in groups, each against the keys that it may see: half the work, in pieces that fit a cache.
        rows = max(64, -(-total // 8))
        mixed = []
        for start in range(known, total, rows):
            end = min(start + rows, total)
            mask = positions[start:end, None] >= positions[:end]
            mixed.append(attend(q[start - known : end - known], k[:end], v[:end], mask))
        return (k, v), self._mlp(tokens + self.attention.join(jnp.concatenate(mixed)))

    def step(self, cache: Cache, tokens: Float[Array, "1 W"], position: Int[Array, ""]) -> tuple[Cache, Float[Array, "1 W"]]:
        """As `__call__`, for the one token at `position`, of which the cache, which has room, knows the predecessors."""
        q, k, v = self.attention.project(jax.vmap(self.before_attention)(tokens), position[None])
        keys = lax.dynamic_update_index_in_dim(cache[0], k[0], position, 0)
        values = lax.dynamic_update_index_in_dim(cache[1], v[0], position, 0)
        mask = (jnp.arange(keys.shape[0]) <= position)[None]
        return (keys, values), self._mlp(tokens + self.attention.join(attend(q, keys, values, mask)))

    def _mlp(self, tokens: Float[Array, "T W"]) -> Float[Array, "T W"]:
        return tokens + _each(self.down, jax.nn.gelu(_each(self.up, jax.vmap(self.before_mlp)(tokens))))


class CausalAttention(eqx.Module):
    """Multi-head attention's projections; between `project` and `join` keys and values can be cached, and `attend` stands."""

    projection: eqx.nn.Linear
    output: eqx.nn.Linear
    heads: int = eqx.field(static=True)
    rotary: bool = eqx.field(static=True)

    def __init__(self, width: int, heads: int, *, rotary: bool, key: PRNGKeyArray):
        projection_key, output_key = jax.random.split(key)
        self.projection = eqx.nn.Linear(width, 3 * width, key=projection_key)
        self.output = eqx.nn.Linear(width, width, key=output_key)
        self.heads = heads
        self.rotary = rotary

    def empty(self, dtype) -> Cache:
        """The cache of no token."""
        width = int(self.output.in_features)
        none = jnp.zeros((0, self.heads, width // self.heads), dtype)
        return none, none

    def project(self, tokens: Float[Array, "T W"], positions: Int[Array, " T"]) -> tuple[Array, Array, Array]:
        """Queries, keys and values, each of shape (T, N, D)."""
        projected = _each(self.projection, tokens)
        q, k, v = (x.reshape(x.shape[0], self.heads, -1) for x in jnp.split(projected, 3, axis=1))
        if self.rotary:
            q, k = _rotate(q, positions), _rotate(k, positions)
        return q, k, v

    def join(self, mixed: Float[Array, "T N D"]) -> Float[Array, "T W"]:
        """What attention adds to the tokens, of all heads."""
        return _each(self.output, mixed.reshape(mixed.shape[0], -1))


def attend(
    q: Float[Array, "T N D"], k: Float[Array, "U N D"], v: Float[Array, "U N D"], mask: Bool[Array, "T U"]
) -> Float[Array, "T N D"]:
    """softmax(q k^T / sqrt(D)) v over what `mask` shows, each head by itself."""

    def head(q, k, v):
        scores = jnp.where(mask, (q / math.sqrt(q.shape[-1])) @ k.T, -jnp.inf)
        weights = jnp.exp(scores - lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
        # Normalised after the product: D divisions a row instead of U.
        return weights @ v / jnp.sum(weights, axis=-1, keepdims=True)

    heads = tuple(x.swapaxes(0, 1) for x in (q, k, v))
    if mask.size <= KEPT:
        return jax.vmap(head)(*heads).swapaxes(0, 1)
    # One head after another, and in reverse mode once more, so that no more than one head's weights are ever there.
    again = jax.checkpoint(head, prevent_cse=False)
    return lax.map(lambda x: again(*x), heads).swapaxes(0, 1)


def _each(layer: eqx.nn.Linear, tokens: Float[Array, "T I"]) -> Float[Array, "T O"]:
    """The layer at each token, as one product whose result needs no transposition."""
    assert layer.bias is not None
    return tokens @ layer.weight.T + layer.bias


def _rotate(x: Float[Array, "T N D"], positions: Int[Array, " T"]) -> Float[Array, "T N D"]:
    """Rotate pairs of entries by angles proportional to position, so that products depend on distances alone."""
    half = x.shape[-1] // 2
    angles = positions[:, None, None].astype(x.dtype) * _frequencies(half).astype(x.dtype)
    left, right = x[..., :half], x[..., half:]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([left * cos - right * sin, left * sin + right * cos], axis=-1)


def _sinusoids(length: int, width: int) -> Float[Array, "T W"]:
    half = (width + 1) // 2
    angles = jnp.arange(length, dtype=float)[:, None] * _frequencies(half)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)[:, :width]


def _frequencies(count: int) -> Float[Array, " F"]:
    """Radians a step, from 1 down to 1/10,000."""
    return 10_000.0 ** (-jnp.arange(count) / count)
