"""The part of one seed in the result of several."""

import operator
from typing import TypeVar

import equinox as eqx
import jax.tree_util as jtu
from jaxtyping import PyTree

T = TypeVar("T", bound=PyTree)


def one_seed(tree: T, seed: int, shape: tuple[int, ...]) -> T:
    """Return the arrays of one seed, without their leading axis.

    **Arguments:** `tree`: arrays with a leading axis of seeds. `seed`: its number, counted from the end if it is negative.
    `shape`: that of the seeds, () for the result of one.

    **Raises:** `IndexError` if there is no such seed, where JAX would return the last one.
    """
    if not shape:
        raise IndexError("This is the result of one seed, which cannot be indexed; use it as it is.")
    index = operator.index(seed)
    if not -shape[0] <= index < shape[0]:
        raise IndexError(f"This is the result of {shape[0]} seeds, which has no seed {index}; pass a number below {shape[0]}.")
    return jtu.tree_map(lambda x: x[index] if eqx.is_array(x) else x, tree)
