"""Causal attention for an accelerator: one block of rows after the other, so that only its weights are in memory."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from ._products import matmul

ROWS = 128  # Rows of a block, at most.
PARTS = 2  # Blocks of the same part see the same number of keys, and compile to one loop.


def attention_by_blocks(
    q: Float[Array, "T N D"], k: Float[Array, "U N D"], v: Float[Array, "U N D"], matmul_dtype: DTypeLike | None
) -> Float[Array, "T N D"]:
    """Return causal attention of the last T of U tokens.

    Reverse mode computes the weights of a block again, so memory grows with U and not with T U. On a GPU the time is that
    of reading and writing weights. With n parts, (n + 1) / (2 n) of the T U weights are computed.
    """
    count, known = q.shape[0], k.shape[0] - q.shape[0]
    blocks = 1 if k.shape[0] <= 2 * ROWS else -(-count // ROWS)
    # A multiple of 8: rows of other lengths are not aligned for the tensor cores of a GPU.
    rows = _round_up(-(-count // blocks))
    heads_first = lambda x, size: jnp.pad(x, ((0, size - x.shape[0]), (0, 0), (0, 0))).swapaxes(0, 1)
    q = heads_first(q / q.shape[-1] ** 0.5, rows * blocks).reshape(q.shape[1], blocks, rows, -1).swapaxes(0, 1)
    k, v = (heads_first(x, _round_up(x.shape[0])) for x in (k, v))

    def block(q, first, k, v):
        visible = first + lax.iota(int, rows)[:, None] >= lax.iota(int, k.shape[1])[None]
        weights = jax.nn.softmax(_mask(matmul(q, k.swapaxes(1, 2), matmul_dtype), visible), axis=-1)
        return matmul(weights, v, matmul_dtype)

    if blocks == 1:
        mixed = block(q[0], known, k, v)[None]
    else:
        firsts, part, mixed = known + rows * jnp.arange(blocks), -(-blocks // PARTS), []
        for begin in range(0, blocks, part):
            seen = min(_round_up(known + (begin + part) * rows), k.shape[1])
            in_turn = jax.checkpoint(lambda x, seen=seen: block(x[0], x[1], k[:, :seen], v[:, :seen]), prevent_cse=False)
            mixed.append(lax.map(in_turn, (q[begin : begin + part], firsts[begin : begin + part])))
        mixed = jnp.concatenate(mixed)
    return mixed.swapaxes(1, 2).reshape(rows * blocks, *mixed.shape[1::2])[:count]


@jax.custom_jvp
def _mask(scores: Float[Array, "N T U"], visible: Bool[Array, "T U"]) -> Float[Array, "N T U"]:
    # Not `where`, because JAX takes a constant out of a loop and would write an array of them to memory.
    return jnp.minimum(scores, jnp.where(visible, jnp.inf, -jnp.inf).astype(scores.dtype))


@_mask.defjvp
def _(primals, tangents):
    # The derivative of the softmax is 0 for what is masked. Without this rule, reverse mode would write zeros to memory for it.
    return _mask(*primals), tangents[0]


def _round_up(length: int) -> int:
    return 8 * -(-length // 8)
