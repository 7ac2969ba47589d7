"""The transformer backbone, with attention written here.

Library attention keeps its softmax in float32 and has no cache; ours is exact in float64, and the cached steps and the
parallel pass run the same code on one token or on all.
"""

import functools
import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ..._checks import check_counts, check_key
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
    - `products`: what the factors of matrix products are rounded to, such as `jnp.bfloat16`, for accelerators that multiply
      these faster; sums keep the dtype of the states, and so do gradients, of a relative error that examples/speed.py measures.
    - `fused`: whether attention over a whole sequence is one kernel of cuDNN (FlashAttention; Dao et al., 2022) through
      `jax.nn.dot_product_attention`, in bfloat16: on an NVIDIA GPU, first derivatives in reverse mode only. Tested as far as
      the program that a GPU is given; none has run it yet.
    - `key`: for the weights.

    **Raises:** `ValueError` for a width that the heads do not divide (evenly, with rotary embedding), or `fused` without a GPU.
    """

    blocks: list["Block"]
    time: Float[Array, "T W"] | None
    norm: eqx.nn.LayerNorm
    width: int = eqx.field(static=True)
    horizon: int | None = eqx.field(static=True)
    parallel: ClassVar[bool] = True

    def __init__(
        self,
        width: int = 48,
        depth: int = 2,
        heads: int = 3,
        *,
        horizon: int | None = None,
        products: DTypeLike | None = None,
        fused: bool = False,
        key: PRNGKeyArray,
    ):
        check_counts("Transformer", width=width, depth=depth, heads=heads, horizon=horizon)
        check_key("Transformer", key)
        if width % heads or (horizon is None and width // heads % 2):
            raise ValueError(
                f"A Transformer of width {width} cannot have {heads} heads; make width a multiple of heads, and of 2 * heads "
                "for rotary embedding."
            )
        if fused and (jax.default_backend() != "gpu" or width // heads % 8):
            raise ValueError(
                f"Transformer got fused=True on a {jax.default_backend()}, with heads of width {width // heads}; cuDNN needs "
                "an NVIDIA GPU and heads of a multiple of 8, or leave fused out."
            )
        make = lambda k: Block(width, heads, rotary=horizon is None, products=products, fused=fused, key=k)
        self.blocks = [make(k) for k in jax.random.split(key, depth)]
        # Learned from a start in which neighbouring steps look alike.
        self.time = None if horizon is None else _sinusoids(horizon + 1, width)
        self.norm = eqx.nn.LayerNorm(width)
        self.width = width
        self.horizon = horizon

    def init(self, first, horizon):
        empty = [block.attention.empty(first.dtype) for block in self.blocks]
        return self.resize(self._append(empty, first[None], 0)[0], horizon)

    def step(self, memory, token, t, *, key=None):
        del key
        position = jnp.asarray(t) + 1
        tokens, after = token[None] if self.time is None else (token + self.time[position])[None], []
        for block, cache in zip(self.blocks, memory, strict=True):
            cache, tokens = block.step(cache, tokens, position)
            after.append(cache)
        return after, self.norm(tokens[0])

    def append(self, memory, tokens, t, *, keys=None):
        del keys
        self._check(t + tokens.shape[0])
        return self._append([(k[: t + 1], v[: t + 1]) for k, v in memory], tokens, t + 1)

    def resize(self, memory, horizon):
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
    up: "Projection"
    down: "Projection"
    before_attention: eqx.nn.LayerNorm
    before_mlp: eqx.nn.LayerNorm
    fused: bool = eqx.field(static=True)

    def __init__(self, width: int, heads: int, *, rotary: bool, products: DTypeLike | None, fused: bool, key: PRNGKeyArray):
        attention_key, up_key, down_key = jax.random.split(key, 3)
        self.attention = CausalAttention(width, heads, rotary=rotary, products=products, key=attention_key)
        self.fused = fused
        self.up = Projection(width, 4 * width, products, key=up_key)
        self.down = Projection(4 * width, width, products, key=down_key)
        self.before_attention = eqx.nn.LayerNorm(width)
        self.before_mlp = eqx.nn.LayerNorm(width)

    def __call__(self, cache: Cache, tokens: Float[Array, "T W"]) -> tuple[Cache, Float[Array, "T W"]]:
        """The tokens that follow those in the cache, which holds no more: the cache with them, and what they become."""
        known, total = cache[0].shape[0], cache[0].shape[0] + tokens.shape[0]
        positions = jnp.arange(total)
        q, k, v = self.attention.project(jax.vmap(self.before_attention)(tokens), positions[known:])
        k, v = jnp.concatenate([cache[0], k]), jnp.concatenate([cache[1], v])
        if self.fused:
            return (k, v), self._mlp(tokens + self.attention.attend_fused(q, k, v))
        # Rows in groups, each against the keys that it may see: half the work, in pieces that fit a cache.
        rows = max(64, -(-total // 8))
        mixed = []
        for start in range(known, total, rows):
            end = min(start + rows, total)
            mask = positions[start:end, None] >= positions[:end]
            mixed.append(self.attention.attend(q[start - known : end - known], k[:end], v[:end], mask))
        return (k, v), self._mlp(tokens + jnp.concatenate(mixed))

    def step(self, cache: Cache, tokens: Float[Array, "1 W"], position: Int[Array, ""]) -> tuple[Cache, Float[Array, "1 W"]]:
        """As `__call__`, for the one token at `position`, of which the cache, which has room, knows the predecessors."""
        q, k, v = self.attention.project(jax.vmap(self.before_attention)(tokens), position[None])
        keys = lax.dynamic_update_index_in_dim(cache[0], k[0], position, 0)
        values = lax.dynamic_update_index_in_dim(cache[1], v[0], position, 0)
        mask = (jnp.arange(keys.shape[0]) <= position)[None]
        return (keys, values), self._mlp(tokens + self.attention.attend(q, keys, values, mask))

    def _mlp(self, tokens: Float[Array, "T W"]) -> Float[Array, "T W"]:
        return tokens + self.down(jax.nn.gelu(self.up(jax.vmap(self.before_mlp)(tokens))))


class CausalAttention(eqx.Module):
    """Multi-head attention in two parts, so that keys and values can be cached between them."""

    projection: "Projection"
    output: "Projection"
    heads: int = eqx.field(static=True)
    rotary: bool = eqx.field(static=True)

    def __init__(self, width: int, heads: int, *, rotary: bool, products: DTypeLike | None, key: PRNGKeyArray):
        projection_key, output_key = jax.random.split(key)
        self.projection = Projection(width, 3 * width, products, key=projection_key)
        self.output = Projection(width, width, products, key=output_key)
        self.heads = heads
        self.rotary = rotary

    def empty(self, dtype) -> Cache:
        """The cache of no token."""
        width = self.output.weight.shape[0]
        none = jnp.zeros((0, self.heads, width // self.heads), dtype)
        return none, none

    def project(self, tokens: Float[Array, "T W"], positions: Int[Array, " T"]) -> tuple[Array, Array, Array]:
        """Queries, keys and values, each of shape (T, N, D)."""
        q, k, v = (x.reshape(x.shape[0], self.heads, -1) for x in jnp.split(self.projection(tokens), 3, axis=1))
        if self.rotary:
            q, k = _rotate(q, positions), _rotate(k, positions)
        return q, k, v

    def attend(
        self, q: Float[Array, "T N D"], k: Float[Array, "U N D"], v: Float[Array, "U N D"], mask: Bool[Array, "T U"]
    ) -> Float[Array, "T W"]:
        """softmax(q k^T / sqrt(D)) v over what `mask` shows, each head by itself; then what all add to the tokens."""
        product = functools.partial(_product, rounded=self.output.products)

        def head(q, k, v):
            scores = jnp.where(mask, product(q / math.sqrt(q.shape[-1]), k.T), -jnp.inf)
            weights = jnp.exp(scores - lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
            # Normalised after the product: D divisions a row instead of U.
            return product(weights, v) / jnp.sum(weights, axis=-1, keepdims=True)

        heads = tuple(x.swapaxes(0, 1) for x in (q, k, v))
        if mask.size <= KEPT:
            mixed = jax.vmap(head)(*heads)
        else:  # One head after another, and in reverse mode once more, so that only one head's weights are ever there.
            again = jax.checkpoint(head, prevent_cse=False)
            mixed = lax.map(lambda x: again(*x), heads)
        return self.output(mixed.swapaxes(0, 1).reshape(q.shape[0], -1))

    def attend_fused(self, q: Float[Array, "T N D"], k: Float[Array, "U N D"], v: Float[Array, "U N D"]) -> Float[Array, "T W"]:
        """As `attend` where the last T of U tokens see themselves and those before, by a kernel that wants bfloat16, as many
        queries as keys, and an even number of them; what fills them up is not seen or left out."""
        count, known = q.shape[0], k.shape[0] - q.shape[0]
        fill = lambda x, before: jnp.pad(x.astype(jnp.bfloat16), ((before, k.shape[0] % 2), (0, 0), (0, 0)))
        mixed = jax.nn.dot_product_attention(fill(q, known), fill(k, 0), fill(v, 0), is_causal=True, implementation="cudnn")
        return self.output(mixed[known : known + count].astype(q.dtype).reshape(count, -1))


class Projection(eqx.Module):
    """A linear layer on all tokens, as one product whose result needs no transposition."""

    weight: Float[Array, "O I"]
    bias: Float[Array, " O"]
    products: DTypeLike | None = eqx.field(static=True)

    def __init__(self, inputs: int, outputs: int, products: DTypeLike | None, *, key: PRNGKeyArray):
        layer = eqx.nn.Linear(inputs, outputs, key=key)
        assert layer.bias is not None
        self.weight, self.bias = layer.weight, layer.bias
        self.products = products

    def __call__(self, tokens: Float[Array, "T I"]) -> Float[Array, "T O"]:
        return _product(tokens, self.weight.T, self.products) + self.bias


def _product(x: Float[Array, "T I"], y: Float[Array, "I O"], rounded: DTypeLike | None) -> Float[Array, "T O"]:
    """x y, of factors rounded but added up in the dtype of x."""
    if rounded is None:
        return x @ y
    return jnp.matmul(x.astype(rounded), y.astype(rounded), preferred_element_type=x.dtype)


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
