"""`lax.fori_loop` and `lax.while_loop` for trees that have leaves other than arrays."""

from collections.abc import Callable
from typing import TypeVar

import equinox as eqx
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Int, PyTree

T = TypeVar("T", bound=PyTree)


def fori_loop(start: Int[ArrayLike, ""], stop: Int[ArrayLike, ""], body: Callable[[Array, T], T], carry: T) -> T:
    """As `lax.fori_loop`; leaves of `carry` that are not arrays stay as they are at the start."""
    arrays, rest = eqx.partition(carry, eqx.is_array)
    body_of_arrays = lambda i, arrays: eqx.filter(body(i, eqx.combine(arrays, rest)), eqx.is_array)
    return eqx.combine(lax.fori_loop(start, stop, body_of_arrays, arrays), rest)


def while_loop(goes_on: Callable[[T], Bool[Array, ""]], body: Callable[[T], T], carry: T) -> T:
    """As `lax.while_loop`; leaves of `carry` that are not arrays stay as they are at the start."""
    arrays, rest = eqx.partition(carry, eqx.is_array)
    body_of_arrays = lambda arrays: eqx.filter(body(eqx.combine(arrays, rest)), eqx.is_array)
    goes_on_with = lambda arrays: goes_on(eqx.combine(arrays, rest))
    return eqx.combine(lax.while_loop(goes_on_with, body_of_arrays, arrays), rest)
