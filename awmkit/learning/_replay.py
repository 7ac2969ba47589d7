"""The episodes that were lived: a ring of fixed size on the device, in which an episode stays whole.

Apart from the algorithm because its one promise, that steps of two episodes are never mixed, is tested by itself.
"""

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
    """Whole episodes in fixed memory; when it is full the oldest give way.

    - `episodes`: a `awmkit.Trajectory` whose leading axis counts slots.
    - `added`: how many episodes were ever added.
    - `mesh`: devices that share the episodes of a sample; each has all that are stored.

    ```python
    replay = Replay.empty(100, jax.eval_shape(run, key)).add(jax.vmap(run)(keys))
    batch = replay.sample(key, 64)
    ```
    """

    episodes: Trajectory
    added: Int[Array, ""]
    mesh: Mesh | None = eqx.field(static=True, default=None)

    @staticmethod
    def empty(capacity: int, episode: Trajectory, *, mesh: Mesh | None = None) -> "Replay":
        """Room for `capacity` episodes of the shapes and dtypes of `episode`, an unbatched one or what `jax.eval_shape` gives.

        **Raises:** `ValueError` for a capacity below 1.
        """
        check_counts("Replay", capacity=capacity)
        blank = lambda x: jnp.zeros((capacity, *x.shape), x.dtype)
        return Replay(jtu.tree_map(blank, episode), jnp.zeros((), int), mesh)

    @property
    def capacity(self) -> int:
        """How many episodes there is room for."""
        return self.episodes.actions.shape[0]

    @property
    def size(self) -> Int[Array, ""]:
        """How many episodes it holds."""
        return jnp.minimum(self.added, self.capacity)

    def add(self, episodes: Trajectory) -> "Replay":
        """With N more episodes, a trajectory with a leading axis.

        **Raises:** `ValueError` for more episodes at once than there is room for, and for episodes of another shape.
        """
        shapes = lambda tree: jtu.tree_map(lambda x: x.shape[1:], tree)
        if shapes(episodes) != shapes(self.episodes):
            raise ValueError(f"Replay keeps episodes like {self.episodes} and got {episodes}; give whole ones of one length.")
        count = episodes.actions.shape[0]
        if count > self.capacity:
            raise ValueError(f"Replay has room for {self.capacity} episodes and got {count} at once; give it more capacity.")
        slots = (self.added + jnp.arange(count)) % self.capacity
        write = lambda old, new: old.at[slots].set(new)
        written = jtu.tree_map(write, self.episodes, gather(episodes, self.mesh))
        return Replay(written, self.added + count, self.mesh)

    def sample(self, key: PRNGKeyArray, count: int, *, recency: float = 1.0) -> Trajectory:
        """`count` whole episodes, drawn with replacement; an empty replay has none to draw, so add some first.

        **Arguments:** `recency`: in (0, 1], how much less likely an episode is than the one that came after it. 1 is uniform.

        **Raises:** `ValueError` for a `recency` outside of it.
        """
        if not 0 < recency <= 1:
            raise ValueError(f"Replay.sample got recency={recency}; give a number in (0, 1], of which 1 draws all alike.")
        drawn = jax.random.uniform(key, (count,))
        if recency == 1.0:
            ages = jnp.floor(drawn * self.size.astype(drawn.dtype))
        else:  # The inverse of the geometric distribution, cut off at the oldest episode.
            ages = jnp.floor(jnp.log1p(-drawn * (1 - recency ** self.size.astype(drawn.dtype))) / jnp.log(recency))
        ages = jnp.clip(ages.astype(self.added.dtype), 0, self.size - 1)
        slots = (self.added - 1 - ages) % self.capacity
        return split(jtu.tree_map(lambda x: x[slots], self.episodes), self.mesh, "the number of episodes in an update")
