"""Run a batch in groups that fit in a processor's cache."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax import lax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun, Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import PyTree


def few_at_a_time(fn: Callable, *args: PyTree, size: int | None) -> PyTree:
    """Return fn(*args), a tree of arrays. Under `jax.vmap` on a CPU, `size` examples run at a time, in a loop.

    The intermediate values of a few examples stay in the cache of a processor, where those of a batch do not. Reverse mode
    recomputes them group by group, instead of storing those of the whole batch. Other platforms run the batch at once.

    **Arguments:** `fn`: a function. `args`: trees whose arrays may be batched. `size`: largest number of examples in a group, which
    is a divisor of the batch size; `None` for all.
    """
    if size is None:
        return fn(*args)
    arrays, static = eqx.partition(args, eqx.is_array)
    flat, tree = jtu.tree_flatten(arrays)
    of_flat = lambda *flat: fn(*eqx.combine(jtu.tree_unflatten(tree, flat), static))
    traced, out = jax.make_jaxpr(of_flat, return_shape=True)(*flat)
    count = len(traced.consts)  # Arrays that the function closes over, which may be batched too.
    whole = lambda *inputs: jaxpr_as_fun(ClosedJaxpr(traced.jaxpr, inputs[:count]))(*inputs[count:])
    inputs = (*traced.consts, *flat)
    return jtu.tree_unflatten(jtu.tree_structure(out), _call.bind(*inputs, jaxpr=jax.make_jaxpr(whole)(*inputs), size=size))


def _run(*flat, jaxpr, size):
    del size
    return jaxpr_as_fun(jaxpr)(*flat)


def _batch(flat, axes, *, jaxpr, size):
    count = next(x.shape[axis] for x, axis in zip(flat, axes, strict=True) if axis is not None)
    flat = [x if axis is None else jnp.moveaxis(x, axis, 0) for x, axis in zip(flat, axes, strict=True)]
    batched = tuple(None if axis is None else 0 for axis in axes)
    at_once = jax.vmap(jaxpr_as_fun(jaxpr), in_axes=batched)
    group = max(n for n in range(1, max(1, min(size, count)) + 1) if count % n == 0)

    def in_groups(*flat):
        # Neighbours go to different groups: devices that share the batch then share every group evenly.
        split = lambda x: jnp.moveaxis(x.reshape(group, count // group, *x.shape[1:]), 1, 0)
        join = lambda x: jnp.moveaxis(x, 0, 1).reshape(count, *x.shape[2:])
        shared = [x if axis is None else None for x, axis in zip(flat, batched, strict=True)]
        of_group = lambda xs: at_once(*(y if x is None else x for x, y in zip(shared, xs, strict=True)))
        groups = [None if axis is None else split(x) for x, axis in zip(flat, batched, strict=True)]
        return [join(x) for x in lax.map(jax.checkpoint(of_group, prevent_cse=False), groups)]

    out = at_once(*flat) if group == count else lax.platform_dependent(*flat, cpu=in_groups, default=at_once)
    return out, [0] * len(out)


def _differentiate(primals, tangents, *, jaxpr, size):
    """Differentiate the function itself: a derivative that is taken before a batch is made runs the batch at once."""
    del size
    moved = [type(tangent) is not ad.Zero for tangent in tangents]

    def of_moved(*some):
        some = iter(some)
        return jaxpr_as_fun(jaxpr)(*(next(some) if m else x for m, x in zip(moved, primals, strict=True)))

    pick = lambda xs: [x for m, x in zip(moved, xs, strict=True) if m]
    return jax.jvp(of_moved, pick(primals), pick(tangents))


_call = Primitive("few_at_a_time")
_call.multiple_results = True
_call.def_impl(_run)
_call.def_abstract_eval(lambda *flat, jaxpr, size: jaxpr.out_avals)
mlir.register_lowering(_call, mlir.lower_fun(_run, multiple_results=True))
batching.primitive_batchers[_call] = _batch
ad.primitive_jvps[_call] = _differentiate
