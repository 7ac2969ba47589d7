"""Norms, root mean squares and clipping over the whole range of floating-point numbers.

The square of a float32 overflows above 1.8e19 and vanishes below 1e-19. Entries are therefore divided by a power of two near the
largest of them before they are squared. This is exact: results that do not overflow have the same bits without it.
"""

from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, PyTree, Scalar, ScalarLike

Axis = int | tuple[int, ...] | None
AnyArray = TypeVar("AnyArray", Array, np.ndarray)


def scale_of(x: AnyArray, axis: Axis = None) -> AnyArray:
    """Return a power of two near the largest magnitude of `x` along `axis`, which is kept with size 1.

    The largest entry divided by it is between 0.5 and 8, unless it is subnormal. No gradient passes. The result is a NumPy array
    if `x` is one.
    """
    # XLA may divide by multiplying with the reciprocal, which must not be subnormal, because XLA replaces subnormals by 0.
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        x = x.astype(float)
    if isinstance(x, np.ndarray):
        info, largest = np.finfo(x.dtype), np.max(np.abs(x), axis=axis, keepdims=True, initial=0)
        return np.ldexp(np.ones_like(largest), np.frexp(np.clip(largest, info.tiny, info.max / 8))[1])
    info, largest = jnp.finfo(x.dtype), jnp.max(jnp.abs(lax.stop_gradient(x)), axis=axis, keepdims=True, initial=0)
    return lax.reduce_precision(jnp.clip(largest, info.tiny, info.max / 8), info.nexp, 0)


def norm(x: AnyArray, axis: Axis = None) -> AnyArray:
    """Return the Euclidean norm of `x` along `axis`; the Frobenius norm for two axes.

    It is infinite only if an entry is, or if the norm is too large for a float. Its derivative is x / |x|, and 0 at 0.
    """
    if isinstance(x, np.ndarray):
        scale = scale_of(x, axis)
        return np.asarray(np.sqrt(np.sum((x / scale) ** 2, axis=axis)) * np.squeeze(scale, axis))
    return _norm(x, axis)


def rms(x: Float[Array, "..."], axis: Axis = None) -> Float[Array, "..."]:
    """Return the root mean square of `x` along `axis`."""
    scale = scale_of(x, axis)
    return jnp.sqrt(jnp.mean((x / scale) ** 2, axis=axis)) * jnp.squeeze(scale, axis)


def std(x: Float[Array, "..."], axis: Axis = None) -> Float[Array, "..."]:
    """Return the standard deviation of `x` along `axis`."""
    scale = scale_of(x, axis)
    return jnp.std(x / scale, axis=axis) * jnp.squeeze(scale, axis)


def clip_tree(tree: PyTree[Array], limit: ScalarLike) -> tuple[PyTree[Array], Scalar]:
    """Scale `tree` down so that its global norm is at most `limit`. Returns the new tree, and the norm before clipping."""
    leaves = jtu.tree_leaves(tree)
    dtype = _wide(*leaves)
    scale = jnp.max(jnp.stack([scale_of(x).astype(dtype).reshape(()) for x in leaves]))
    size = jnp.sqrt(sum(jnp.sum((x.astype(dtype) / scale) ** 2) for x in leaves))
    limit = jnp.asarray(limit, dtype)
    # The limit is divided by the size of the scaled tree, because 100 / 1e38 may not be a normal number.
    ratio = limit / jnp.where(size > 0, size, 1)
    clip = lambda x: jnp.where(size * scale <= limit, x, (x.astype(dtype) / scale * ratio).astype(x.dtype))
    return jtu.tree_map(clip, tree), size * scale


def all_finite(tree: PyTree[Array]) -> Bool[Array, ""]:
    """Return whether every entry of `tree` is finite. A finite tree may have an infinite norm."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jtu.tree_leaves(tree)]))


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _norm(x, axis):
    return _norm_and_direction(x, axis)[0]


@_norm.defjvp
def _norm_jvp(axis, primals, tangents):
    value, direction = _norm_and_direction(primals[0], axis)
    return value, jnp.sum(direction * tangents[0], axis=axis)


def _wide(*arrays):
    """The dtype in which squares are summed. In float16 the sum of 65,504 ones is infinite."""
    return jnp.float64 if any(x.dtype == jnp.float64 for x in arrays) else jnp.float32


def _norm_and_direction(x, axis):
    """|x| and x / |x|."""
    wide = x.astype(_wide(x))
    scale = scale_of(wide, axis)
    squares = jnp.sum((wide / scale) ** 2, axis=axis, keepdims=True)
    size = jnp.sqrt(jnp.where(squares == 0, 1, squares))
    value = jnp.where(squares == 0, 0, size * scale)
    return jnp.squeeze(value, axis).astype(x.dtype), (wide / scale / size).astype(x.dtype)
