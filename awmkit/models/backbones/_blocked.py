"""Causal attention for an accelerator: one block of rows after the other, so that only its weights are in memory."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ._products import matmul

ROWS = 128  # Rows of a block, at most.
PARTS = 4  # Blocks of the same part see the same number of keys, and compile to one loop.


def attention_by_blocks(
    q: Float[Array, "T N D"], k: Float[Array, "U N D"], v: Float[Array, "U N D"], matmul_dtype: DTypeLike | None
) -> Float[Array, "T N D"]:
    """Return causal attention of the last T of U tokens.

    Reverse mode computes the weights of a block again, so memory grows with U and not with T U. It keeps the largest score and
    the sums of each row, with which the weights and their derivatives need no sum over keys. On a GPU the time is that
    of reading and writing weights. With n parts, (n + 1) / (2 n) of the T U weights are computed.
    """
    count, known, size = q.shape[0], k.shape[0] - q.shape[0], v.shape[-1]
    blocks = 1 if k.shape[0] <= 2 * ROWS else -(-count // ROWS)
    # A multiple of 8: rows of other lengths are not aligned for the tensor cores of a GPU.
    rows = _round_up(-(-count // blocks))
    heads_first = lambda x, size: jnp.pad(x, ((0, size - x.shape[0]), (0, 0), (0, 0))).swapaxes(0, 1)
    q = heads_first(q / q.shape[-1] ** 0.5, rows * blocks).reshape(q.shape[1], blocks, rows, -1).swapaxes(0, 1)
    # A column of ones adds up the weights in the product with the values, and in reverse mode what the sum needs.
    one = jnp.ones((*v.shape[:2], 1), v.dtype)
    v = jnp.concatenate([v, one, jnp.zeros((*v.shape[:2], -(v.shape[-1] + 1) % 8), v.dtype)], axis=-1)
    k, v = (heads_first(x, _round_up(x.shape[0])) for x in (k, v))
    firsts = known + rows * jnp.arange(blocks)
    visible = (firsts[:, None] + jnp.arange(rows))[..., None] >= jnp.arange(k.shape[1])
    masks = jnp.where(visible, jnp.inf, -jnp.inf).astype(q.dtype)

    def block(q, mask, k, v):
        scores = _mask(matmul(q, k.swapaxes(1, 2), matmul_dtype), mask)
        largest = checkpoint_name(lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)), "attention")
        sums = checkpoint_name(matmul(jnp.exp(scores - largest), v, matmul_dtype), "attention")
        return sums[..., :size] / sums[..., size : size + 1]

    if blocks == 1:
        mixed = block(q[0], masks[0], k, v)[None]
    else:
        once = {"prevent_cse": False, "policy": jax.checkpoint_policies.save_only_these_names("attention")}
        part, mixed = -(-blocks // PARTS), []
        for begin in range(0, blocks, part):
            seen = min(_round_up(known + (begin + part) * rows), k.shape[1])
            in_turn = jax.checkpoint(lambda q, mask, seen=seen: block(q, mask, k[:, :seen], v[:, :seen]), **once)
            inputs = q[begin : begin + part], masks[begin : begin + part, :, :seen]
            mixed.append(lax.map(lambda x, in_turn=in_turn: in_turn(*x), inputs))
        mixed = jnp.concatenate(mixed)
    return mixed.swapaxes(1, 2).reshape(rows * blocks, *mixed.shape[1::2])[:count]


# The mask is an array and the derivative is 1, because Triton takes seconds to compile a softmax that computes its own mask, and
# reverse mode would write zeros to memory for what is masked. Not a sum, which XLA adds to the product as a third array.
@jax.custom_jvp
def _mask(scores: Float[Array, "N T U"], mask: Float[Array, "T U"]) -> Float[Array, "N T U"]:
    return jnp.minimum(scores, mask[None])


@_mask.defjvp
def _(primals, tangents):
    return _mask(*primals), tangents[0]


def _round_up(length: int) -> int:
    return 8 * -(-length // 8)
