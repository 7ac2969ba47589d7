"""Replay buffer of whole episodes, of fixed size and on the device."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax.core import Tracer
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .._checks import check_counts, check_key, describe
from .._trajectory import check_episodes, Trajectory
from ._sharding import check_mesh, gather, split


class Replay(eqx.Module):
    """A replay buffer of whole episodes of equal length. When it is full, the oldest episodes are overwritten.

    - `episodes`: an `awmkit.Trajectory` with a leading axis of `capacity` slots. Slots that have not been filled contain zeros.
    - `added`: number of episodes added so far.
    - `mesh`: devices that share the episodes of a sample; every device stores all episodes.

    ```python
    replay = Replay.empty(100, jax.eval_shape(collect_one, key)).add(jax.vmap(collect_one)(keys))
    batch = replay.sample(key, 64)  # 64 episodes
    ```
    """

    episodes: Trajectory
    added: Int[Array, ""]
    mesh: Mesh | None = eqx.field(static=True, default=None)

    @staticmethod
    def empty(capacity: int, episode: Trajectory, *, mesh: Mesh | None = None) -> "Replay":
        """An empty replay buffer.

        **Arguments**

        - `capacity`: number of episodes that fit.
        - `episode`: one episode, without a leading axis, or its shapes from `jax.eval_shape`.
        - `mesh`: devices that share the episodes of a sample, if any.

        **Raises:** `ValueError` if `capacity` is not a whole number above 0, or `episode` is not one episode.
        """
        check_counts("Replay", capacity=capacity)
        check_mesh(mesh)
        check_episodes("Replay.empty", episode, ())
        slots = lambda x: jnp.zeros((capacity, *x.shape), x.dtype)
        return Replay(jtu.tree_map(slots, episode), jnp.zeros((), int), mesh)

    @property
    def capacity(self) -> int:
        """Number of episodes that fit."""
        return self.episodes.actions.shape[0]

    @property
    def size(self) -> Int[Array, ""]:
        """Number of episodes stored."""
        return jnp.minimum(self.added, self.capacity)

    def add(self, episodes: Trajectory) -> "Replay":
        """Return the buffer with N more episodes, an `awmkit.Trajectory` with a leading axis of length N.

        **Raises:** `ValueError` if N is larger than the capacity, or the episodes have other shapes than those stored, or a
        dtype that the buffer cannot store without rounding.
        """
        check_episodes("Replay.add", episodes)
        stored, given = (jtu.tree_map(lambda x: (x.shape[1:], x.dtype), tree) for tree in (self.episodes, episodes))
        with jax.numpy_dtype_promotion("standard"):
            fits = lambda old, new: old[0] == new[0] and jnp.promote_types(old[1], new[1]) == old[1]
            is_pair = lambda x: isinstance(x, tuple)
            same = jtu.tree_structure(stored) == jtu.tree_structure(given)
            if not same or not all(map(fits, *(jtu.tree_leaves(tree, is_leaf=is_pair) for tree in (stored, given)))):
                raise ValueError(
                    f"The replay buffer stores episodes like {describe(self.episodes)}, got {describe(episodes)}; pass whole "
                    "episodes of one length, with the same fields and dtypes."
                )
        count = episodes.actions.shape[0]
        if count > self.capacity:
            raise ValueError(
                f"The replay buffer has room for {self.capacity} episodes and got {count} at once; raise its capacity."
            )
        slots = (self.added + jnp.arange(count)) % self.capacity
        write = lambda old, new: old.at[slots].set(new)
        written = jtu.tree_map(write, self.episodes, gather(episodes, self.mesh))
        return Replay(written, self.added + count, self.mesh)

    def sample(self, key: PRNGKeyArray, count: int, *, recency: float = 1.0) -> Trajectory:
        """Draw `count` whole episodes with replacement. Add episodes first.

        **Arguments**

        - `key`: for the draw.
        - `count`: number of episodes.
        - `recency`: in (0, 1]: an episode is drawn less often than the next newer one by this factor. 1, the default, draws
          uniformly.

        **Raises:** `ValueError` if `recency` is not in (0, 1], or the buffer is empty. In a compiled program, which cannot
        raise it, an empty buffer returns NaN.
        """
        check_counts("Replay.sample", count=count)
        check_key("Replay.sample", key)
        if not 0 < recency <= 1:
            raise ValueError(f"Replay.sample got recency={recency}; pass a number in (0, 1], where 1 draws uniformly.")
        if not isinstance(self.added, Tracer) and not self.added:
            raise ValueError("Replay.sample got an empty replay buffer; add episodes first with replay = replay.add(episodes).")
        ages = draw_ages(jax.random.uniform(key, (count,)), self.size, recency).astype(self.added.dtype)
        slots = (self.added - 1 - jnp.clip(ages, 0, self.size - 1)) % self.capacity
        poison = lambda x: jnp.where(self.added > 0, x, jnp.nan) if jnp.issubdtype(x.dtype, jnp.floating) else x
        drawn = jtu.tree_map(lambda x: poison(x[slots]), self.episodes)
        return split(drawn, self.mesh, "the number of episodes in an update")


def draw_ages(uniform: Float[Array, " count"], size: Int[Array, ""], recency: float) -> Float[Array, " count"]:
    """Turn uniform numbers in [0, 1) into the ages of episodes, 0 for the newest of `size`.

    An age is drawn `recency` times as often as the next smaller one. This is the inverse of the distribution function
    (1 - recency^(age + 1)) / (1 - recency^size).
    """
    size = size.astype(uniform.dtype)
    if recency == 1.0:
        return jnp.floor(uniform * size)
    rate = math.log(float(recency))  # In float64, where no recency below 1 has the logarithm 0.
    return jnp.floor(jnp.log1p(uniform * jnp.expm1(size * rate)) / rate)
