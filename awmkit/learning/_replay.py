"""Replay buffer of episodes of any lengths, of fixed size and on the device."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, ScalarLike

from .._checks import check_counts, check_key, describe
from .._trajectory import check_episodes, check_whole, Trajectory
from .._windows import check_from_start
from ._optimiser import holds
from ._sharding import check_mesh, gather, split


class Steps(eqx.Module):
    """The steps in a replay buffer, one row per step.

    - `state`, `action`, `reward`, `next_state`: s_t, a_t, r_t and s_{t+1}.
    - `t`: index of the step within its episode.
    - `length`: number of steps of its episode, from its beginning.
    - `terminated`: whether the task ended its episode.
    """

    state: Float[Array, "*C S"]
    action: Float[Array, "*C A"]
    reward: Float[Array, "*C"] | None
    next_state: Float[Array, "*C S"]
    t: Int[Array, "*C"]
    length: Int[Array, "*C"]
    terminated: Bool[Array, "*C"]


class Replay(eqx.Module):
    """A replay buffer of episodes. It stores steps, so episodes of any lengths need no padding. When it is full, the oldest
    steps are overwritten.

    - `steps`: `capacity` rows, each an `awmkit.learning.Steps`. Rows that have not been filled contain zeros.
    - `begins`: for each episode, the number of steps that were added before it, also `capacity` rows.
    - `added`: number of steps added so far.
    - `episodes_added`: number of episodes added so far.
    - `whole`: number of episodes stored whole.
    - `horizon`: number of steps H of the longest episode that fits.
    - `uneven`: whether episodes may be shorter than H.
    - `mesh`: devices that share the episodes of a sample; every device stores all episodes.

    ```python
    replay = Replay.empty(10_000, jax.eval_shape(collect_one, key)).add(jax.vmap(collect_one)(keys))
    batch = replay.sample(key, 64)              # 64 whole episodes
    batch = replay.sample(key, 64, window=20)   # 64 windows of up to 20 steps, from anywhere
    batch = replay.sample(key, 64, window=20, from_start=0.5)   # half of them from the first step of an episode
    replay.episodes                             # everything that is stored
    ```
    """

    steps: Steps
    begins: Int[Array, " C"]
    added: Int[Array, ""]
    episodes_added: Int[Array, ""]
    whole: Int[Array, ""]
    horizon: int = eqx.field(static=True)
    uneven: bool = eqx.field(static=True)
    mesh: Mesh | None = eqx.field(static=True, default=None)

    @staticmethod
    def empty(capacity: int, episode: Trajectory, *, mesh: Mesh | None = None) -> "Replay":
        """An empty replay buffer.

        **Arguments**

        - `capacity`: number of steps that fit; at least those of one episode.
        - `episode`: one episode, without a leading axis, or its shapes from `jax.eval_shape`. Episodes may be shorter than its
          arrays if it has `length`.
        - `mesh`: devices that share the episodes of a sample, if any.

        **Raises:** `ValueError` if `capacity` is not a whole number of at least H, or `episode` is not one episode.
        """
        check_episodes("Replay.empty", episode, ())
        check_counts("Replay", least=episode.horizon, capacity=capacity)
        check_mesh(mesh)
        rows = jax.eval_shape(lambda x: jtu.tree_map(lambda y: y[0], _rows(x)), episode)
        steps = jtu.tree_map(lambda x: jnp.zeros((capacity, *x.shape), x.dtype), rows)
        zero, begins = jnp.zeros((), int), jnp.zeros(capacity, int)
        return Replay(steps, begins, zero, zero, zero, episode.horizon, episode.length is not None, mesh)

    @property
    def capacity(self) -> int:
        """Number of steps that fit."""
        return self.steps.t.shape[-1]

    @property
    def size(self) -> Int[Array, ""]:
        """Number of steps stored."""
        return jnp.minimum(self.added, self.capacity)

    @property
    def episodes(self) -> Trajectory:
        """All episodes that are stored whole, the oldest first. Their number must be known, so not inside `jit`."""
        if isinstance(self.whole, Tracer) or self.whole.ndim:
            raise ValueError(
                "Replay.episodes needs one buffer outside of jit and vmap; use replay.sample inside, and for several seeds "
                "jax.tree.map(lambda x: x[i], replay).episodes."
            )
        return self._read_episodes(self.episodes_added - self.whole + jnp.arange(int(self.whole)))

    def add(self, episodes: Trajectory) -> "Replay":
        """Return the buffer with N more episodes, an `awmkit.Trajectory` with a leading axis of length N.

        **Raises:** `ValueError` if the episodes may not fit, are windows of longer ones, have other shapes than those stored, or a
        dtype that the buffer cannot store without rounding.
        """
        check_episodes("Replay.add", episodes)
        check_whole("Replay.add", episodes)
        count, horizon = episodes.actions.shape[:2]
        rows = jax.vmap(_rows)(episodes)
        stored, given = (jtu.tree_map(lambda x, n=n: (x.shape[n:], x.dtype), x) for x, n in ((self.steps, 1), (rows, 2)))
        with jax.numpy_dtype_promotion("standard"):
            fits = lambda old, new: old[0] == new[0] and jnp.promote_types(old[1], new[1]) == old[1]
            is_pair = lambda x: isinstance(x, tuple)
            same = jtu.tree_structure(stored) == jtu.tree_structure(given)
            same = same and all(map(fits, *(jtu.tree_leaves(tree, is_leaf=is_pair) for tree in (stored, given))))
        if not same or not (horizon == self.horizon or self.uneven and horizon < self.horizon):
            raise ValueError(
                f"The replay buffer stores steps like {describe(self.steps)} of episodes of {self.horizon} steps, got "
                f"{describe(episodes)}; pass episodes of that length, with the same fields and dtypes."
            )
        if episodes.length is not None and not self.uneven:
            raise ValueError(
                "The replay buffer was made for episodes of equal length, got episodes with a length; make it from such an episode."
            )
        lengths = rows.length[:, 0]
        total = count * horizon if episodes.length is None else jnp.sum(lengths)
        if not isinstance(total, Tracer) and total > self.capacity:
            raise ValueError(
                f"The replay buffer has room for {self.capacity} steps and got {int(total)} at once; raise its capacity."
            )
        begins = self.added + jnp.cumsum(lengths) - lengths
        added, episodes_added = self.added + jnp.sum(lengths), self.episodes_added + count
        offset = jnp.arange(horizon)[None]
        at = begins[:, None] + offset
        # Padding is dropped, and what would be overwritten at once, because the order of such writes is undefined.
        kept = (offset < lengths[:, None]) & (at >= added - self.capacity)
        at = jnp.where(kept, at % self.capacity, self.capacity)
        write = lambda old, new: old.at[at].set(new, mode="drop")
        steps = jtu.tree_map(write, self.steps, gather(rows, self.mesh))
        newest = min(count, self.capacity)
        numbers = (episodes_added - newest + jnp.arange(newest)) % self.capacity
        all_begins = self.begins.at[numbers].set(begins[count - newest :])
        # The newest `capacity` episodes have a row in `begins`; of those, some may have lost their first step.
        ages = (episodes_added - 1 - jnp.arange(self.capacity)) % self.capacity
        whole = jnp.sum((ages < episodes_added) & (all_begins >= added - self.capacity))
        return Replay(steps, all_begins, added, episodes_added, whole, self.horizon, self.uneven, self.mesh)

    def sample(
        self,
        key: PRNGKeyArray,
        count: int,
        *,
        recency: ScalarLike = 1.0,
        window: int | None = None,
        from_start: float = 0.0,
    ) -> Trajectory:
        """Draw episodes, or windows of episodes, with replacement. Add episodes first.

        **Arguments**

        - `key`: for the draw.
        - `count`: number of episodes or windows.
        - `recency`: in (0, 1]: an episode is drawn less often than the next newer one by this factor. 1, the default, draws
          uniformly.
        - `window`: number of steps of a window. Every stored step is equally likely to be the first of one (with a `recency`
          below 1, every step of the episode drawn). A window that reaches the end of its episode is shorter. By default
          whole episodes.
        - `from_start`: share of the windows that begin at the first step of an episode, rounded to a whole number of windows.
          0, the default, treats the first step like all others.

        **Returns:** a `Trajectory` with a leading axis. Windows have `t`, the index of their first step.

        **Raises:** `ValueError` if `recency` is not in (0, 1], `from_start` is not in [0, 1] or has no window, or the buffer is
        empty. In a compiled program, which cannot raise it, an empty buffer returns NaN.
        """
        check_counts("Replay.sample", count=count, window=window)
        check_from_start("Replay.sample", from_start, window)
        check_key("Replay.sample", key)
        if not holds(recency, lambda x: (0 < x) & (x <= 1)) or np.ndim(recency):
            raise ValueError(
                f"Replay.sample got recency={describe(recency)}; pass a number in (0, 1], where 1 draws uniformly."
            )
        if not isinstance(self.added, Tracer) and not self.added:
            raise ValueError("Replay.sample got an empty replay buffer; add episodes first with replay = replay.add(episodes).")
        if window is None:
            return self._shared(self._read_episodes(self._draw_episodes(key, count, recency)))
        first = round(from_start * count)
        rows = self._draw_steps(key, count - first, recency)
        if first:
            begins = self._begins_of(self._draw_episodes(jax.random.fold_in(key, 1), first, recency))
            rows = jnp.concatenate([begins, rows])
        return self._shared(self._read(rows, window))

    def starts(self, key: PRNGKeyArray, count: int) -> Float[Array, "count S"]:
        """Draw `count` initial states of stored episodes, with replacement."""
        rows = self._begins_of(self._draw_episodes(key, count, 1.0))
        return self._shared(self.steps.state[rows])

    def visited(self, key: PRNGKeyArray, count: int) -> tuple[Float[Array, "count S"], Int[Array, " count"]]:
        """Draw `count` states in which a stored step began, all equally likely, and the index of that step in its episode."""
        rows = self._draw_steps(key, count, 1.0)
        return self._shared((self.steps.state[rows], self.steps.t[rows]))

    def grown(self, capacity: int) -> "Replay":
        """Return a buffer with more rows, which has not overwritten anything yet."""
        more = capacity - self.capacity
        pad = lambda x: jnp.pad(x, [(0, 0)] * self.added.ndim + [(0, more)] + [(0, 0)] * (x.ndim - 1 - self.added.ndim))
        steps, begins = jtu.tree_map(pad, (self.steps, self.begins))
        return eqx.tree_at(lambda r: (r.steps, r.begins), self, (steps, begins))

    def _shared(self, drawn):
        """Return what was drawn, NaN if the buffer is empty, shared by the devices."""
        poison = lambda x: jnp.where(self.added > 0, x, jnp.nan) if jnp.issubdtype(x.dtype, jnp.floating) else x
        return split(jtu.tree_map(poison, drawn), self.mesh, "the number of episodes in an update")

    def _draw_episodes(self, key: PRNGKeyArray, count: int, recency: ScalarLike) -> Int[Array, " count"]:
        """Draw the numbers of episodes that are stored whole."""
        ages = draw_ages(jax.random.uniform(key, (count,)), self.whole, recency).astype(self.added.dtype)
        return self.episodes_added - 1 - jnp.clip(ages, 0, self.whole - 1)

    def _draw_steps(self, key: PRNGKeyArray, count: int, recency: ScalarLike) -> Int[Array, " count"]:
        """Draw the rows of stored steps."""
        if isinstance(recency, Tracer):
            drawn = (self._draw_any_steps(key, count), self._draw_recent_steps(key, count, recency))
            return jnp.where(recency == 1, *drawn)
        return self._draw_any_steps(key, count) if recency == 1 else self._draw_recent_steps(key, count, recency)

    def _draw_any_steps(self, key: PRNGKeyArray, count: int) -> Int[Array, " count"]:
        ages = jnp.floor(jax.random.uniform(key, (count,)) * self.size).astype(self.added.dtype)
        return (self.added - 1 - jnp.clip(ages, 0, self.size - 1)) % self.capacity

    def _draw_recent_steps(self, key: PRNGKeyArray, count: int, recency: ScalarLike) -> Int[Array, " count"]:
        episode_key, step_key = jax.random.split(key)
        rows = self._begins_of(self._draw_episodes(episode_key, count, recency))
        lengths = self.steps.length[rows]
        steps = jnp.floor(jax.random.uniform(step_key, (count,)) * lengths).astype(self.added.dtype)
        return (rows + jnp.clip(steps, 0, lengths - 1)) % self.capacity

    def _begins_of(self, numbers: Int[Array, " N"]) -> Int[Array, " N"]:
        """Return the rows of the first steps of these episodes."""
        return self.begins[numbers % self.capacity] % self.capacity

    def _read_episodes(self, numbers: Int[Array, " N"]) -> Trajectory:
        episodes = self._read(self._begins_of(numbers), self.horizon)
        if self.uneven:
            return eqx.tree_at(lambda x: x.t, episodes, None)
        return Trajectory(episodes.states, episodes.actions, episodes.rewards)

    def _read(self, rows: Int[Array, " N"], window: int) -> Trajectory:
        """Return the windows that begin at these rows."""
        left = self.steps.length[rows] - self.steps.t[rows]
        length = jnp.minimum(left, window)
        offset = jnp.arange(window)[None]
        at = (rows[:, None] + jnp.minimum(offset, length[:, None] - 1)) % self.capacity
        last = self.steps.next_state[at[:, -1]][:, None]
        happened = offset < length[:, None]
        states = jnp.where(happened[..., None], self.steps.state[at], last)
        actions = jnp.where(happened[..., None], self.steps.action[at], 0)
        rewards = None if self.steps.reward is None else jnp.where(happened, self.steps.reward[at], 0)
        ended = self.steps.terminated[rows] & (left <= window)
        states = jnp.concatenate([states, last], axis=1)
        return Trajectory(states, actions, rewards, None if window == 1 else length, ended, self.steps.t[rows])


def _rows(episode: Trajectory) -> Steps:
    """Return the steps of one episode, padding included."""
    horizon = episode.horizon
    length = horizon if episode.length is None else episode.length
    terminated = False if episode.terminated is None else episode.terminated
    steps = episode.states[:-1], episode.actions, episode.rewards, episode.states[1:]
    fill = lambda x, dtype: jnp.broadcast_to(jnp.asarray(x, dtype), (horizon,))
    return Steps(*steps, jnp.arange(horizon), fill(length, int), fill(terminated, bool))


def draw_ages(uniform: Float[Array, " count"], size: Int[Array, ""], recency: ScalarLike) -> Float[Array, " count"]:
    """Turn uniform numbers in [0, 1) into the ages of episodes, 0 for the newest of `size`.

    An age is drawn `recency` times as often as the next smaller one. This is the inverse of the distribution function
    (1 - recency^(age + 1)) / (1 - recency^size).
    """
    size = size.astype(uniform.dtype)
    traced = isinstance(recency, Tracer)
    if not traced and recency == 1.0:
        return jnp.floor(uniform * size)
    # Of a number in float64, where no recency below 1 has the logarithm 0.
    rate = jnp.log(jnp.asarray(recency, uniform.dtype)) if traced else math.log(np.asarray(recency).item())
    rate = jnp.where(rate == 0, -1, rate) if traced else rate
    ages = jnp.floor(jnp.log1p(uniform * jnp.expm1(size * rate)) / rate)
    return jnp.where(recency == 1, jnp.floor(uniform * size), ages) if traced else ages
