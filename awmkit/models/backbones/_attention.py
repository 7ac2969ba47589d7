"""Causal multi-head attention with a key-value cache, and the kernels that can replace it."""

import abc
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..._checks import check_shapes
from ._blocked import attention_by_blocks
from ._products import matmul
from ._rows import attention_by_rows, masked_attention, MIN_ROWS

Cache = tuple[Float[Array, "_ N D"], Float[Array, "_ N D"]]  # Keys and values of N heads.


class AbstractAttention(eqx.Module):
    """A kernel that computes causal attention over a whole sequence; pass it as `Transformer(attention=...)`.

    Subclass it to use your own kernel. A `Transformer` calls it for the parallel pass only; cached steps always use awmkit's
    exact attention. The kernel must therefore compute the same function, up to its rounding.

    ```python
    class XLAAttention(AbstractAttention):
        def __call__(self, q, k, v):
            mask = jnp.tril(jnp.ones((q.shape[0], k.shape[0]), bool), k.shape[0] - q.shape[0])
            return jax.nn.dot_product_attention(q, k, v, mask=mask[None])
    ```
    """

    @abc.abstractmethod
    def __call__(self, q: Float[Array, "T N D"], k: Float[Array, "U N D"], v: Float[Array, "U N D"]) -> Float[Array, "T N D"]:
        """Return softmax(q k^T / sqrt(D)) v for each of the N heads.

        **Arguments:** `q`: queries of the last T of U tokens, shape (T, N, D). `k`, `v`: keys and values of all U tokens, shape
        (U, N, D). Query i sees keys 0 to U - T + i.

        **Returns:** shape (T, N, D), with the dtype of `q`.
        """

    def check(self, head_size: int) -> None:
        """Raise `ValueError` if this kernel cannot run on this machine with heads of size D = `head_size`.

        `Transformer` calls it once, when it is built. By default every size is accepted.
        """


class CuDNNAttention(AbstractAttention):
    """FlashAttention by cuDNN (Dao et al., 2022), in bfloat16, through `jax.nn.dot_product_attention`.

    Use it for long sequences on an NVIDIA GPU: memory grows with the length of the sequence and not with its square. It
    supports first derivatives in reverse mode only. The tests check the program that is generated for a GPU.

    ```python
    backbone = Transformer(attention=CuDNNAttention(), key=key)
    ```

    **Raises:** `ValueError`, when a `Transformer` is built with it, if JAX does not run on a GPU or if the size of a head is not a
    multiple of 8.
    """

    def __call__(self, q, k, v):
        check_shapes("CuDNNAttention", q=(q, ("T", "N", "D")), k=(k, ("U", "N", "D")), v=(v, ("U", "N", "D")))
        if q.shape[0] > k.shape[0]:
            raise ValueError(f"CuDNNAttention got {q.shape[0]} queries and {k.shape[0]} keys; give a key for every token.")
        # cuDNN needs as many queries as keys and an even number of them. The padding is masked out or dropped.
        count, known = q.shape[0], k.shape[0] - q.shape[0]
        pad = lambda x, before: jnp.pad(x.astype(jnp.bfloat16), ((before, k.shape[0] % 2), (0, 0), (0, 0)))
        mixed = jax.nn.dot_product_attention(pad(q, known), pad(k, 0), pad(v, 0), is_causal=True, implementation="cudnn")
        return mixed[known : known + count].astype(q.dtype)

    def check(self, head_size):
        if (backend := jax.default_backend()) != "gpu" or head_size % 8:
            raise ValueError(
                f"CuDNNAttention needs an NVIDIA GPU and heads whose size is a multiple of 8, got the backend {backend} and heads "
                f"of size {head_size}; use attention=None for awmkit's own attention, which runs everywhere."
            )


class CausalAttention(eqx.Module):
    """Multi-head self-attention, split into projection and mixing so that keys and values can be cached in between.

    Without a kernel the softmax has the dtype of the tokens, so results are exact in float64, and the cached steps and the
    parallel pass run the same code.
    """

    projection: "Projection"
    output: "Projection"
    kernel: AbstractAttention | None
    heads: int = eqx.field(static=True)
    rotary: bool = eqx.field(static=True)

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        rotary: bool,
        matmul_dtype: DTypeLike | None,
        kernel: AbstractAttention | None,
        key: PRNGKeyArray,
    ):
        projection_key, output_key = jax.random.split(key)
        self.projection = Projection(width, 3 * width, matmul_dtype, key=projection_key)
        self.output = Projection(width, width, matmul_dtype, key=output_key)
        self.kernel = kernel
        self.heads = heads
        self.rotary = rotary

    def empty_cache(self, dtype) -> Cache:
        """Return the cache of a sequence without tokens."""
        width = self.output.weight.shape[0]
        empty = jnp.zeros((0, self.heads, width // self.heads), dtype)
        return empty, empty

    def project(self, tokens: Float[Array, "T W"], positions: Int[Array, " T"]) -> tuple[Array, Array, Array]:
        """Return queries, keys and values, each of shape (T, N, D)."""
        q, k, v = (x.reshape(x.shape[0], self.heads, -1) for x in jnp.split(self.projection(tokens), 3, axis=1))
        if self.rotary:
            q, k = _rotate(q, positions), _rotate(k, positions)
        return q, k, v

    def __call__(self, q: Float[Array, "T N D"], k: Float[Array, "U N D"], v: Float[Array, "U N D"]) -> Float[Array, "T W"]:
        """Attend causally, where the T queries belong to the last T of U tokens."""
        if self.kernel is not None:
            mixed = self.kernel(q, k, v)
        elif k.shape[0] <= MIN_ROWS:
            mixed = attention_by_rows(q, k, v, self.output.matmul_dtype)
        else:
            mixed = _attention_of_platform(q, k, v, self.output.matmul_dtype)
        return self.merge(mixed)

    def step(
        self, q: Float[Array, "1 N D"], k: Float[Array, "U N D"], v: Float[Array, "U N D"], position: Int[Array, ""]
    ) -> Float[Array, "1 W"]:
        """Attend to the keys of a cache up to `position`."""
        mask = (jnp.arange(k.shape[0]) <= position)[None]
        return self.merge(masked_attention(q, k, v, mask, self.output.matmul_dtype))

    def merge(self, mixed: Float[Array, "T N D"]) -> Float[Array, "T W"]:
        """Project the concatenated heads."""
        return self.output(mixed.reshape(mixed.shape[0], -1))


class Projection(eqx.Module):
    """A linear layer applied to all tokens by one matrix product, whose factors may be rounded to `matmul_dtype`."""

    weight: Float[Array, "O I"]
    bias: Float[Array, " O"]
    matmul_dtype: DTypeLike | None = eqx.field(static=True)

    def __init__(self, in_size: int, out_size: int, matmul_dtype: DTypeLike | None, *, key: PRNGKeyArray):
        layer = eqx.nn.Linear(in_size, out_size, key=key)
        assert layer.bias is not None
        self.weight, self.bias = layer.weight, layer.bias
        self.matmul_dtype = matmul_dtype

    def __call__(self, tokens: Float[Array, "T I"]) -> Float[Array, "T O"]:
        return matmul(tokens, self.weight.T, self.matmul_dtype) + self.bias[None]


@functools.partial(jax.jit, static_argnums=3)  # JAX then traces and differentiates it once for all layers and passes.
def _attention_of_platform(
    q: Float[Array, "T N D"], k: Float[Array, "U N D"], v: Float[Array, "U N D"], matmul_dtype: DTypeLike | None
) -> Float[Array, "T N D"]:
    """Return causal attention as it is fastest on the platform for which the program is compiled, which may not be the default."""
    of_platform = {"cpu": attention_by_rows, "default": attention_by_blocks}
    return lax.platform_dependent(
        q, k, v, **{name: functools.partial(f, matmul_dtype=matmul_dtype) for name, f in of_platform.items()}
    )


def frequencies(count: int) -> Float[Array, " F"]:
    """Return `count` angular frequencies in radians per step, from 1 down to almost 1/10,000."""
    return 10_000.0 ** (-jnp.arange(count) / count)


def _rotate(x: Float[Array, "T N D"], positions: Int[Array, " T"]) -> Float[Array, "T N D"]:
    """Rotate pairs of entries by angles proportional to the position, so that q k^T depends on distances only."""
    half = x.shape[-1] // 2
    angles = positions[:, None, None].astype(x.dtype) * frequencies(half).astype(x.dtype)[None, None]
    left, right = x[..., :half], x[..., half:]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([left * cos - right * sin, left * sin + right * cos], axis=-1)
