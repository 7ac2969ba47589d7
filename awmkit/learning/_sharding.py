"""One program on many devices, by `jax.sharding` alone: episodes are split over them, everything else each device has.

Apart because `fit` and `train` say the same three things with it: what every device has, what is split, what comes together.
"""

from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .._checks import kind

T = TypeVar("T")


def check_mesh(mesh: Mesh | None) -> None:
    """Raise for what is no mesh."""
    if mesh is not None and not isinstance(mesh, Mesh):
        raise ValueError(f'The mesh is {kind(mesh)}; pass one of devices, such as jax.make_mesh((8,), ("episodes",)).')


def place(tree: T, mesh: Mesh | None) -> T:
    """The arrays of `tree` on every device. Several processes must all have the same."""
    return _each(tree, mesh, _put, PartitionSpec())


def split(tree: T, mesh: Mesh | None, name: str) -> T:
    """Inside a compiled program: the leading axis of each array split evenly over all devices.

    **Raises:** `ValueError`, with the `name` of what to change, where that cannot be.
    """
    if mesh is None:
        return tree
    counts = {x.shape[0] for x in jtu.tree_leaves(tree)}
    if uneven := [count for count in counts if count % mesh.size]:
        raise ValueError(
            f"{name} is {uneven[0]}, which cannot be split evenly over {mesh.size} devices; make it a multiple of {mesh.size}."
        )
    return _each(tree, mesh, lax.with_sharding_constraint, PartitionSpec(mesh.axis_names))


def gather(tree: T, mesh: Mesh | None) -> T:
    """Inside a compiled program: what was split, whole on every device."""
    return _each(tree, mesh, lax.with_sharding_constraint, PartitionSpec())


def _put(x, sharding: NamedSharding):
    if jax.process_count() == 1:
        return jax.device_put(x, sharding)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_put(jax.random.key_data(x), sharding), impl=jax.random.key_impl(x))
    return jax.device_put(np.asarray(x), sharding)  # An array of one process's device would have to stay there.


def _each(tree, mesh, move, spec):
    if mesh is None:
        return tree
    # Axes whose sharding the compiler works out, whatever the mesh was made for.
    sharding = NamedSharding(Mesh(mesh.devices, mesh.axis_names), spec)
    return jtu.tree_map(lambda x: move(x, sharding) if eqx.is_array(x) else x, tree)
