"""Replay buffer of whole episodes, of fixed size and on the device."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax.sharding import Mesh
from jaxtyping import Array, Int, PRNGKeyArray

from .._checks import check_counts
from .._trajectory import Trajectory
from ._sharding import gather, split


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

        **Raises:** `ValueError` if `capacity` is not a whole number above 0.
        """
        check_counts("Replay", capacity=capacity)
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

        **Raises:** `ValueError` if N is larger than the capacity, or the episodes have other shapes than those stored.
        """
        shapes = lambda tree: jtu.tree_map(lambda x: x.shape[1:], tree)
        if shapes(episodes) != shapes(self.episodes):
            raise ValueError(
                f"The replay buffer stores episodes like {self.episodes}, got {episodes}; pass whole episodes of one length."
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
        """Draw `count` whole episodes with replacement. Add episodes first: an empty buffer returns zeros.

        **Arguments**

        - `key`: for the draw.
        - `count`: number of episodes.
        - `recency`: in (0, 1]: an episode is drawn less often than the next newer one by this factor. 1, the default, draws
          uniformly.

        **Raises:** `ValueError` if `recency` is not in (0, 1].
        """
        if not 0 < recency <= 1:
            raise ValueError(f"Replay.sample got recency={recency}; pass a number in (0, 1], where 1 draws uniformly.")
        drawn = jax.random.uniform(key, (count,))
        if recency == 1.0:
            ages = jnp.floor(drawn * self.size.astype(drawn.dtype))
        else:  # The inverse of the geometric distribution function, truncated at the oldest episode.
            ages = jnp.floor(jnp.log1p(-drawn * (1 - recency ** self.size.astype(drawn.dtype))) / jnp.log(recency))
        ages = jnp.clip(ages.astype(self.added.dtype), 0, self.size - 1)
        slots = (self.added - 1 - ages) % self.capacity
        return split(jtu.tree_map(lambda x: x[slots], self.episodes), self.mesh, "the number of episodes in an update")
