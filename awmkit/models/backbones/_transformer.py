"""The transformer backbone."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..._checks import check_counts, check_key, check_shapes, kind
from ._attention import AbstractAttention, Cache, CausalAttention, frequencies, Projection
from ._backbone import AbstractBackbone, check_tokens

TOKENS = 800  # On a CPU, as many sequences run at a time as have this number of tokens.


class Transformer(AbstractBackbone):
    """A causal, pre-norm transformer (Vaswani et al., 2017; Xiong et al., 2020).

    The defaults are the size in Ma et al. (2024): 2 layers, 3 heads, width 48. `AWM` and `HWM` use it by default.

    ```python
    model = AWM(state_size, action_size, Transformer(width=96, heads=6, key=k1), key=k2)
    ```

    **Arguments**

    - `width`: size W of the tokens; a multiple of `heads`, and of `2 * heads` for rotary embedding.
    - `depth`: number of layers.
    - `heads`: attention heads per layer.
    - `horizon`: `None`, the default, uses rotary embedding (Su et al., 2021), which works for any number of steps. A number builds a
      learned time embedding for at most that many steps, as in the paper.
    - `matmul_dtype`: dtype to which the factors of matrix products are rounded, such as `jnp.bfloat16`. Sums and gradients keep
      the dtype of the states. By default nothing is rounded here, but see below.
    - `attention`: kernel for attention over a whole sequence, such as `CuDNNAttention()` on an NVIDIA GPU. `None`, the default,
      is awmkit's own exact attention, whose memory grows with the number of steps and not with its square.
    - `key`: for the initial weights.

    **Precision.** On a CPU, float32 products are exact to float32. An NVIDIA GPU rounds their factors to TF32, which has 10 bits of
    mantissa; this holds for the policy and every other network too. There are three choices:

    | choice | bits of mantissa | relative error of a gradient, H = 100 | large products on an H100 |
    | --- | --- | --- | --- |
    | `with jax.default_matmul_precision("highest"):` around the call | 23 | 2e-7 | 67 TFLOP/s by its data sheet |
    | the default | 10 | 4e-4 | 387 TFLOP/s |
    | `matmul_dtype=jnp.bfloat16` | 7 | 3e-3 | 746 TFLOP/s |

    Over long horizons a transformer of the default size is bound by memory, not by products, so a gradient gains less than the
    rates suggest. `Picard` stops at the precision of the choice. The errors are emulated on a CPU by
    `examples/benchmarks/precision.py`.

    **Raises:** `ValueError` if `width` is not such a multiple, if a size is not a positive whole number, or if
    `attention` cannot run on this machine.
    """

    blocks: list["Block"]
    time: Float[Array, "T W"] | None
    norm: eqx.nn.LayerNorm
    width: int = eqx.field(static=True)
    horizon: int | None = eqx.field(static=True)
    parallel: ClassVar[bool] = True
    resizable: ClassVar[bool] = True

    def __init__(
        self,
        width: int = 48,
        depth: int = 2,
        heads: int = 3,
        *,
        horizon: int | None = None,
        matmul_dtype: DTypeLike | None = None,
        attention: AbstractAttention | None = None,
        key: PRNGKeyArray,
    ):
        check_counts("Transformer", width=width, depth=depth, heads=heads, horizon=horizon)
        check_key("Transformer", key)
        divisor = heads if horizon is not None else 2 * heads
        if width % divisor:
            embedding = "the learned time embedding" if horizon is not None else "rotary embedding"
            raise ValueError(
                f"Transformer width must be a multiple of {divisor} with {heads} heads and {embedding}, got {width}; use "
                f"width={divisor * max(1, round(width / divisor))}, or change heads."
            )
        if attention is not None:
            if not isinstance(attention, AbstractAttention):
                raise ValueError(
                    f"attention must be None or an AbstractAttention, got {kind(attention)}; pass CuDNNAttention()."
                )
            attention.check(width // heads)
        options = {"rotary": horizon is None, "matmul_dtype": matmul_dtype, "kernel": attention}
        self.blocks = [Block(width, heads, **options, key=k) for k in jax.random.split(key, depth)]
        self.time = None if horizon is None else _sinusoids(horizon + 1, width)
        self.norm = eqx.nn.LayerNorm(width)
        self.width = width
        self.horizon = horizon

    def init(self, first, horizon):
        check_shapes("Transformer", first=(first, (self.width,)))
        empty = [block.attention.empty_cache(first.dtype) for block in self.blocks]
        return self.resize(self._append(empty, first[None], 0)[0], horizon)

    def step(self, memory, token, t, *, key=None):
        del key
        space = self._check_memory(memory, token=(token, (self.width,)), t=(t, ()))
        if not isinstance(t, Tracer) and np.greater_equal(t, space):
            raise ValueError(
                f"The memory of this Transformer has space for {space} steps, got t={t}; resize it to {t + 1} first."
            )
        position = jnp.asarray(t) + 1
        # A write past the end would replace the last step, so a traced t that is too large makes the feature NaN.
        token = jnp.where(position <= space, token, jnp.nan)
        tokens, after = token[None] if self.time is None else (token + self.time[position])[None], []
        for block, cache in zip(self.blocks, memory, strict=True):
            cache, tokens = block.step(cache, tokens, position)
            after.append(cache)
        return after, self.norm(tokens[0])

    def append(self, memory, tokens, t, *, keys=None):
        del keys
        space, end = self._check_memory(memory, tokens=(tokens, ("B", self.width))), t + tokens.shape[0]
        self._check(end)
        if t > space:
            raise ValueError(f"The memory of this Transformer has {space} steps, got t={t}; append the steps before first.")
        memory, features = self._append([(k[: t + 1], v[: t + 1]) for k, v in memory], tokens, t + 1)
        return self.resize(memory, max(space, end)), features

    def resize(self, memory, horizon):
        self._check(horizon)
        horizon = max(horizon, self._check_memory(memory))
        room = lambda x: jnp.zeros((horizon + 1 - x.shape[0], *x.shape[1:]), x.dtype)
        return [(jnp.concatenate([k, room(k)]), jnp.concatenate([v, room(v)])) for k, v in memory]

    def sequences_at_a_time(self, tokens):
        return max(1, TOKENS // tokens)

    def _append(self, memory, tokens, position: int):
        """Append tokens, the first at `position`, to a cache without free space. Returns the new cache and the features."""
        if self.time is not None:
            tokens = tokens + self.time[position : position + tokens.shape[0]]
        after = []
        for block, cache in zip(self.blocks, memory, strict=True):
            cache, tokens = block(cache, tokens)
            after.append(cache)
        return after, jax.vmap(self.norm)(tokens)

    def _check_memory(self, memory, **tokens) -> int:
        """Raise unless the memory and the tokens have their shapes. Return for how many steps the memory has space."""
        heads = self.blocks[0].attention.heads
        check_tokens(self, memory, ("T", heads, self.width // heads), **tokens)
        return memory[0][0].shape[0] - 1

    def _check(self, horizon: int) -> None:
        if self.horizon is not None and horizon > self.horizon:
            raise ValueError(
                f"The horizon must be at most {self.horizon}, for which this Transformer has a learned time embedding, got "
                f"{horizon}; build it with horizon={horizon}, or with horizon=None for rotary embedding, which has no limit."
            )


class Block(eqx.Module):
    """One layer: attention and an MLP, each applied to the normalised tokens and added to them."""

    attention: CausalAttention
    up: Projection
    down: Projection
    before_attention: eqx.nn.LayerNorm
    before_mlp: eqx.nn.LayerNorm

    def __init__(self, width: int, heads: int, *, rotary: bool, matmul_dtype, kernel, key: PRNGKeyArray):
        attention_key, up_key, down_key = jax.random.split(key, 3)
        self.attention = CausalAttention(
            width, heads, rotary=rotary, matmul_dtype=matmul_dtype, kernel=kernel, key=attention_key
        )
        self.up = Projection(width, 4 * width, matmul_dtype, key=up_key)
        self.down = Projection(4 * width, width, matmul_dtype, key=down_key)
        self.before_attention = eqx.nn.LayerNorm(width)
        self.before_mlp = eqx.nn.LayerNorm(width)

    def __call__(self, cache: Cache, tokens: Float[Array, "T W"]) -> tuple[Cache, Float[Array, "T W"]]:
        """Append `tokens` to a cache without free space. Returns the new cache and the outputs at the new tokens."""
        known = cache[0].shape[0]
        positions = jnp.arange(known, known + tokens.shape[0])
        q, k, v = self.attention.project(jax.vmap(self.before_attention)(tokens), positions)
        k, v = jnp.concatenate([cache[0], k]), jnp.concatenate([cache[1], v])
        return (k, v), self._mlp(tokens + self.attention(q, k, v))

    def step(self, cache: Cache, tokens: Float[Array, "1 W"], position: Int[Array, ""]) -> tuple[Cache, Float[Array, "1 W"]]:
        """Write one token at `position` into a cache with free space. Returns the new cache and the output at the token."""
        q, k, v = self.attention.project(jax.vmap(self.before_attention)(tokens), position[None])
        keys = lax.dynamic_update_index_in_dim(cache[0], k[0], position, 0)
        values = lax.dynamic_update_index_in_dim(cache[1], v[0], position, 0)
        return (keys, values), self._mlp(tokens + self.attention.step(q, keys, values, position))

    def _mlp(self, tokens: Float[Array, "T W"]) -> Float[Array, "T W"]:
        return tokens + self.down(jax.nn.gelu(self.up(jax.vmap(self.before_mlp)(tokens))))


def _sinusoids(length: int, width: int) -> Float[Array, "T W"]:
    """Initial values of the learned time embedding, in which neighbouring steps are similar."""
    half = (width + 1) // 2
    angles = jnp.arange(length, dtype=float)[:, None] * frequencies(half)[None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)[:, :width]
