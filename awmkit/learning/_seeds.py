"""Several seeds in one program: their keys, the check of what has a leading axis of seeds, and the part of one of them."""

import operator
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float, PyTree

from .._checks import describe
from .._normaliser import is_stacked, normalisers

T = TypeVar("T", bound=PyTree)


def check_keys(key: Any) -> None:
    """Raise unless `key` is one new-style key, or an array of them."""
    if not (eqx.is_array(key) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim <= 1 and key.size):
        raise ValueError(
            "The key must be one jax.random.key(seed), or several, jax.random.split(key, seeds), for several seeds in one program, "
            f"got {describe(key)}."
        )


def check_seeds(key, trees: dict[str, Any]) -> None:
    """Raise unless there is one model or policy for each of several keys, and a single one for a single key.

    **Arguments:** `trees`: what has a leading axis of seeds, by the names for an error.
    """
    for name, tree in trees.items():
        counts = {jnp.shape(x)[:1] for x in jtu.tree_leaves(eqx.filter(tree, eqx.is_array))}
        several = len(counts) == 1 and () not in counts and all(n.shift.ndim > 1 for n in normalisers(tree))
        if key.ndim == 0 and is_stacked(tree):
            raise ValueError(
                f"There is one key but several of the {name}, stacked along a leading axis; pass an array of keys, one for each, "
                "such as jax.random.split(key, 2) for two."
            )
        if key.ndim and counts and not several:
            raise ValueError(
                f"There are {key.size} keys but one {name}; build one for each key with eqx.filter_vmap(make)(keys)."
            )
        if key.ndim and counts and counts != {key.shape}:
            raise ValueError(
                f"There are {key.size} keys and a {name} for each of {counts.pop()[0]} keys; pass the keys it was built with, or "
                "build it with eqx.filter_vmap(make)(keys)."
            )


def one_of(tree: T, index: int, shape: tuple[int, ...], *, of: str = "seed") -> T:
    """Return the arrays of one seed or setting, without their leading axis.

    **Arguments:** `tree`: arrays with a leading axis of seeds, or of the settings of a sweep. `index`: the number of the one,
    counted from the end if it is negative. `shape`: that of the leading axes, () for the result of one seed. `of`: what they are.

    **Raises:** `IndexError` if there is no such seed or setting, where JAX would return the last one.
    """
    if not shape:
        raise IndexError("This is the result of one seed, which cannot be indexed; use it as it is.")
    index = operator.index(index)
    if not -shape[0] <= index < shape[0]:
        raise IndexError(f"This is the result of {shape[0]} {of}s, which has no {of} {index}; pass a number below {shape[0]}.")
    return jtu.tree_map(lambda x: x[index] if eqx.is_array(x) else x, tree)


def best_of(returns: Float[Array | np.ndarray, "*runs updates"]) -> int:
    """Return the number of the seed or setting whose last return is the highest; of a setting, in the mean over its seeds."""
    last = np.asarray(returns)[..., -1]
    means = last.reshape(len(last), -1).mean(axis=1)
    return int(np.argmax(np.where(np.isnan(means), -np.inf, means)))


def of_runs(shape: tuple[int, ...], sweep: dict, seeds: str = "seeds") -> str:
    """Return "8 settings and 5 seeds" for the leading axes of a result, or an empty string for one run."""
    names = ["settings"] * bool(sweep) + [seeds]
    return " and ".join(f"{count} {name}" for count, name in zip(shape, names, strict=False))
