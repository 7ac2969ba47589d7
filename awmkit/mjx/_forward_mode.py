"""Derivatives by forward mode, also where reverse mode is asked for."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun, Primitive
from jax.flatten_util import ravel_pytree
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, PyTree


@eqx.filter_jit
def by_forward_mode(function: Callable[..., tuple[Array, PyTree]], *args: Any) -> tuple[Array, PyTree]:
    """Return `function(*args)`, with derivatives from its Jacobian, which forward mode computes.

    Reverse mode multiplies by the transpose of the Jacobian, so it passes loops whose length is not known. The Jacobian is
    differentiated in the same way, and so on to any order. It has columns only for the arrays that are perturbed, and is computed
    once for any number of tangents.

    **Arguments**

    - `function`: returns an array, and a tree without gradient. It is traced once for arguments of the same shapes if it is
      defined at the top of a module.
    - `args`: trees of arrays and anything else.
    """
    arrays, rest = eqx.partition(args, eqx.is_array)
    leaves, tree = jtu.tree_flatten(arrays)
    traced, shapes = jax.make_jaxpr(lambda *leaves: function(*eqx.combine(tree.unflatten(leaves), rest)), return_shape=True)(
        *leaves
    )
    count = len(traced.consts)  # Arrays that the function closes over.
    whole = lambda *inputs: jaxpr_as_fun(ClosedJaxpr(traced.jaxpr, inputs[:count]))(*inputs[count:])
    inputs = (*traced.consts, *leaves)
    outputs = _by_forward_mode.bind(*inputs, jaxpr=jax.make_jaxpr(whole)(*inputs), axes=())
    return jtu.tree_unflatten(jtu.tree_structure(shapes), outputs)


# A primitive, because JAX forgets a custom_jvp rule where it takes the gradient of a scan, before it differentiates again.
# `jaxpr` computes one element of a batch, and `axes` are the `in_axes` of the `jax.vmap`s around it, from the inside out.
_by_forward_mode = Primitive("by_forward_mode")
_by_forward_mode.multiple_results = True


def _run(*inputs: Array, jaxpr: ClosedJaxpr, axes: tuple) -> list[Array]:
    return _batched(jaxpr_as_fun(jaxpr), axes)(*inputs)


def _batched(function: Callable, axes: tuple) -> Callable:
    for in_axes in axes:
        function = jax.vmap(function, in_axes)
    return function


@_by_forward_mode.def_abstract_eval
def _(*inputs, jaxpr, axes):
    shapes, sizes = [x.shape for x in inputs], []
    for in_axes in reversed(axes):
        (size,) = {shape[axis] for shape, axis in zip(shapes, in_axes, strict=True) if axis is not None}
        sizes.append(size)
        shapes = [x if axis is None else x[:axis] + x[axis + 1 :] for x, axis in zip(shapes, in_axes, strict=True)]
    return [out.update(shape=(*sizes, *out.shape)) for out in jaxpr.out_avals]


def _batch(inputs, in_axes, *, jaxpr, axes):
    outputs = _by_forward_mode.bind(*inputs, jaxpr=jaxpr, axes=(*axes, tuple(in_axes)))
    return outputs, [0] * len(outputs)


def _differentiate(inputs, changes, *, jaxpr, axes):
    moving = tuple(
        i for i, change in enumerate(changes) if not isinstance(change, ad.Zero) and change.dtype != jax.dtypes.float0
    )

    def along(inputs, changes):
        linear, *rest = _by_forward_mode.bind(*inputs, jaxpr=_linearised(jaxpr, moving), axes=())
        return linear[..., 0], rest, linear[..., 1:] @ ravel_pytree(changes)[0]

    along = _batched(along, tuple((in_axes, tuple(in_axes[i] for i in moving)) for in_axes in axes))
    value, rest, change = along(tuple(inputs), tuple(changes[i] for i in moving))
    return [value, *rest], [change, *(ad.Zero(jax.typeof(x).to_tangent_aval()) for x in rest)]


@functools.lru_cache(maxsize=16)
def _linearised(jaxpr: ClosedJaxpr, moving: tuple[int, ...]) -> ClosedJaxpr:
    """Compute the first output and the columns of its Jacobian in the inputs `moving`, side by side along the last axis."""

    def linear(*inputs):
        point, unravel = ravel_pytree([inputs[i] for i in moving])

        def at(point):
            moved = dict(zip(moving, unravel(point), strict=True))
            value, *rest = jaxpr_as_fun(jaxpr)(*(moved.get(i, x) for i, x in enumerate(inputs)))
            return value, rest

        push = lambda direction: jax.jvp(at, (point,), (direction,), has_aux=True)
        value, columns, rest = jax.vmap(push, out_axes=(None, -1, None))(jnp.eye(point.size, dtype=point.dtype))
        return jnp.concatenate([value[..., None], columns], axis=-1), *rest

    return jax.make_jaxpr(linear)(*jaxpr.in_avals)


_by_forward_mode.def_impl(jax.jit(_run, static_argnames=("jaxpr", "axes")))
mlir.register_lowering(_by_forward_mode, mlir.lower_fun(_run, multiple_results=True))
batching.primitive_batchers[_by_forward_mode] = _batch
ad.primitive_jvps[_by_forward_mode] = _differentiate
