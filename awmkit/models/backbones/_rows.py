"""Causal attention for a CPU: groups of rows, each against only the keys that it may see."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from ._products import matmul

MIN_ROWS = 64
MAX_WEIGHTS = 2**17  # If a head has more attention weights than this, the heads run one at a time.


def attention_by_rows(
    q: Float[Array, "T N D"], k: Float[Array, "U N D"], v: Float[Array, "U N D"], matmul_dtype: DTypeLike | None
) -> Float[Array, "T N D"]:
    """Return causal attention of the last T of U tokens: half of the work, in pieces that fit in a CPU's cache."""
    total, known = k.shape[0], k.shape[0] - q.shape[0]
    positions, rows = jnp.arange(total), max(MIN_ROWS, -(-total // 8))
    mixed = []
    for start in range(known, total, rows):
        end = min(start + rows, total)
        mask = positions[start:end, None] >= positions[None, :end]
        mixed.append(masked_attention(q[start - known : end - known], k[:end], v[:end], mask, matmul_dtype))
    return jnp.concatenate(mixed)


def masked_attention(
    q: Float[Array, "T N D"],
    k: Float[Array, "U N D"],
    v: Float[Array, "U N D"],
    mask: Bool[Array, "T U"],
    matmul_dtype: DTypeLike | None,
) -> Float[Array, "T N D"]:
    """Return attention to the keys where `mask` is True."""

    def head(q, k, v):
        scores = jnp.where(mask, matmul(q / q.shape[-1] ** 0.5, k.T, matmul_dtype), -jnp.inf)
        weights = jnp.exp(scores - lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
        # Normalising after the product takes D divisions per row instead of U.
        return matmul(weights, v, matmul_dtype) / jnp.sum(weights, axis=-1, keepdims=True)

    heads = tuple(x.swapaxes(0, 1) for x in (q, k, v))
    if mask.size <= MAX_WEIGHTS:
        mixed = jax.vmap(head)(*heads)
    else:  # One head at a time, recomputed in reverse mode, so that only one head's weights are in memory.
        checkpointed = jax.checkpoint(head, prevent_cse=False)
        mixed = lax.map(lambda x: checkpointed(*x), heads)
    return mixed.swapaxes(0, 1)
