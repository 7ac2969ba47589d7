"""Causal attention for an accelerator: tiles of rows and keys, of which only one is in memory at a time."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ._products import matmul

TILE = 256  # rows and keys of a tile


def attention_by_tiles(
    q: Float[Array, "T N D"], k: Float[Array, "U N D"], v: Float[Array, "U N D"], matmul_dtype: DTypeLike | None
) -> Float[Array, "T N D"]:
    """Return causal attention of the last T of U tokens.

    The softmax of a row is put together from those of its tiles (Milakov & Gimelshein, 2018; Dao et al., 2022). Tiles above the
    diagonal are left out. Reverse mode computes the weights of a tile again, so that memory grows with the length of
    the sequence and not with its square. All tiles have one shape, so they compile to one loop.
    """
    # A multiple of 8: rows of other lengths are not aligned for the tensor cores of a GPU.
    size = min(TILE, 8 * -(-k.shape[0] // 8))
    before = (k.shape[0] - q.shape[0]) % size  # Rows of padding, with which tiles of rows begin where tiles of keys do.
    rows, keys, values = _tiles(q / q.shape[-1] ** 0.5, size, before), _tiles(k, size), _tiles(v, size)
    first = len(keys) - len(rows)
    of_rows, of_keys = np.array([(i, j) for i in range(len(rows)) for j in range(first + i + 1)]).T

    def tile(q, k, v, diagonal):
        visible = lax.iota(int, size)[:, None] >= lax.iota(int, size)[None]
        scores = jnp.where(visible | ~diagonal, matmul(q, k.swapaxes(1, 2), matmul_dtype), -jnp.inf)
        top = lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
        weights = jnp.exp(scores - top)
        return matmul(weights, v, matmul_dtype), jnp.sum(weights, axis=-1, keepdims=True), top

    new = slice(before, before + q.shape[0])
    if len(of_rows) == 1:
        mixed, total, _ = tile(rows[0], keys[0], values[0], jnp.asarray(True))
        return (mixed / total).swapaxes(0, 1)[new]
    # Tiles are copied outside of the loop: inside, the gradient of each would be as large as all rows and keys.
    row_of, key_of = (jnp.asarray(np.eye(len(x))[of], q.dtype) for x, of in ((rows, of_rows), (keys, of_keys)))
    copies = _sum(row_of, rows), _sum(key_of, keys), _sum(key_of, values), jnp.asarray(of_keys == first + of_rows)
    tile = jax.checkpoint(tile, prevent_cse=False)
    mixed, total, top = lax.map(lambda x: tile(*x), copies)
    highest = jnp.max(jnp.where(row_of[:, :, None, None, None] > 0, top[:, None], -jnp.inf), axis=0)
    share = jnp.exp(top - highest[of_rows])
    whole = _sum(row_of.T, share * mixed) / _sum(row_of.T, share * total)
    return whole.swapaxes(1, 2).reshape(-1, *q.shape[1:])[new]


def _tiles(x: Float[Array, "T N D"], size: int, before: int = 0) -> Float[Array, "B N size D"]:
    padded = jnp.pad(x, ((before, -(before + x.shape[0]) % size), (0, 0), (0, 0)))
    return padded.reshape(-1, size, *x.shape[1:]).swapaxes(1, 2)


def _sum(weights: Float[Array, "I J"], x: Float[Array, "J N T D"]) -> Float[Array, "I N T D"]:
    return jnp.tensordot(weights, x, 1, precision=lax.Precision.HIGHEST)
