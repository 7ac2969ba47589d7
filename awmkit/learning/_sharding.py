"""One program on several devices: episodes are split over them, everything else is replicated."""

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
    """Raise if `mesh` is neither `None` nor a mesh."""
    if mesh is not None and not isinstance(mesh, Mesh):
        raise ValueError(f'The mesh is {kind(mesh)}; pass a jax.sharding.Mesh, such as jax.make_mesh((8,), ("episodes",)).')


def place(tree: T, mesh: Mesh | None) -> T:
    """Copy the arrays of `tree` to every device. All processes must have equal arrays."""
    return _each(tree, mesh, _put, PartitionSpec())


def split(tree: T, mesh: Mesh | None, name: str) -> T:
    """Inside a compiled program, split the leading axis of every array evenly over all devices.

    **Arguments:** `tree`: arrays with an equal leading axis. `mesh`: the devices, or `None`. `name`: what to call the length of
    the axis in an error.

    **Raises:** `ValueError` if the length is not a multiple of the number of devices.
    """
    if mesh is None:
        return tree
    counts = {x.shape[0] for x in jtu.tree_leaves(tree)}
    if uneven := [count for count in counts if count % mesh.size]:
        raise ValueError(
            f"{name} must be a multiple of {mesh.size}, the number of devices, to be split evenly over them, got {uneven[0]}."
        )
    return _each(tree, mesh, lax.with_sharding_constraint, PartitionSpec(mesh.axis_names))


def gather(tree: T, mesh: Mesh | None) -> T:
    """Inside a compiled program, replicate every array on all devices."""
    return _each(tree, mesh, lax.with_sharding_constraint, PartitionSpec())


def _put(x, sharding: NamedSharding):
    if jax.process_count() == 1:
        return jax.device_put(x, sharding)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_put(jax.random.key_data(x), sharding), impl=jax.random.key_impl(x))
    return jax.device_put(np.asarray(x), sharding)  # A JAX array on one process's device could not be moved.


def _each(tree, mesh, move, spec):
    if mesh is None:
        return tree
    # A mesh with automatic axes: the compiler chooses the sharding of everything else.
    sharding = NamedSharding(Mesh(mesh.devices, mesh.axis_names), spec)
    return jtu.tree_map(lambda x: move(x, sharding) if eqx.is_array(x) else x, tree)
