"""`Trajectory`: the states, actions and rewards of an episode, or of a batch of episodes of unequal length."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, ScalarLike

from ._checks import check_shapes, describe, kind, Shape


class Trajectory(eqx.Module):
    """The states, actions and rewards of an episode. Under `jax.vmap` every field gains a leading axis: a batch of episodes.

    Episodes of unequal length share arrays of one size H. Only the first `length` steps of each happened; the rest is padding,
    which no function of awmkit reads.

    ```python
    episodes = Trajectory.from_episodes([{"states": s, "actions": a, "rewards": r, "terminated": True}, ...])
    len(episodes), episodes[:10], episodes.length, episodes.returns()
    for episode in episodes:                      # Without padding.
        print(episode.states.shape, episode.terminated)
    ```

    - `states`: s_0 ... s_H, shape (H+1, S).
    - `actions`: a_0 ... a_{H-1}, shape (H, A).
    - `rewards`: r_0 ... r_{H-1}, shape (H,); `None` if no reward was given.
    - `length`: number of steps that happened, between 1 and H. `None`: all H.
    - `terminated`: whether the task ended the episode at its last step. Otherwise it was truncated: its last state has a future
      that was not recorded. `None`: no episode was terminated.
    - `t`: index of the first step within the episode, for a window of a longer episode. `None`: 0.
    - `survival`: the probability that step t happens, shape (H,), where a model predicts whether episodes end. `None`: 1.
    - `sweeps`: number of sweeps of `Picard` or `Newton` over all steps; `None` if the steps were taken one by one.
    - `residual`: the largest change of a value in the last sweep, divided by the largest value; `None` without sweeps.
    """

    states: Float[Array, "*batch T S"]
    actions: Float[Array, "*batch H A"]
    rewards: Float[Array, "*batch H"] | None = None
    length: Int[Array, "*batch"] | None = None
    terminated: Bool[Array, "*batch"] | None = None
    t: Int[Array, "*batch"] | None = None
    survival: Float[Array, "*batch H"] | None = None
    sweeps: Int[Array, "*batch"] | None = None
    residual: Float[Array, "*batch"] | None = None

    @staticmethod
    def from_episodes(episodes: Sequence[Any]) -> "Trajectory":
        """Return one trajectory of episodes of any lengths, with a leading axis.

        **Arguments:** `episodes`: a list. Each episode has states (n+1, S), actions (n, A), rewards (n,) and `terminated`, as one
        of these:

        - a dictionary with the keys `states` and `actions`, and optionally `rewards` and `terminated`;
        - a tuple of the same, in this order;
        - a `Trajectory` of one episode;
        - an `EpisodeData` of Minari, or any object with `observations`, `actions`, `rewards` and `terminations`.

        Either all episodes have rewards, or none.

        **Returns:** a `Trajectory` in JAX's default float. Its padding repeats the last state, with actions and rewards of 0.

        **Raises:** `ValueError` if there is no episode, or, with its index, if the fields of an episode have the wrong shape, are
        not numbers or not finite, have no step, or differ in size from those of the first episode.
        """
        if isinstance(episodes, Mapping | str | Trajectory) or not hasattr(episodes, "__iter__"):
            raise ValueError(f"from_episodes needs a list of episodes, got {kind(episodes)}; pass [episode] for a single one.")
        rows = [_row(i, episode) for i, episode in enumerate(episodes)]
        if not rows:
            raise ValueError("from_episodes got an empty list; pass at least one episode.")
        first = rows[0]
        for i, row in enumerate(rows):
            if (row["rewards"] is None) != (first["rewards"] is None):
                raise ValueError(
                    f"Episode {i} {_has_rewards(row)} and episode 0 {_has_rewards(first)}; give all of them rewards."
                )
            for name in ("states", "actions"):
                if row[name].shape[1] != first[name].shape[1]:
                    raise ValueError(
                        f"The {name} of episode {i} have {row[name].shape[1]} entries and those of episode 0 "
                        f"{first[name].shape[1]}; give all episodes the same sizes."
                    )
        length = np.array([len(row["actions"]) for row in rows])
        horizon = int(length.max())
        stack = lambda name, size, mode: jnp.array(np.stack([_padded(row[name], size, mode) for row in rows]))
        return Trajectory(
            stack("states", horizon + 1, "edge"),
            stack("actions", horizon, "constant"),
            None if first["rewards"] is None else stack("rewards", horizon, "constant"),
            length=jnp.array(length),
            terminated=jnp.array([row["terminated"] for row in rows]),
        )

    @staticmethod
    def concatenate(trajectories: Sequence["Trajectory"]) -> "Trajectory":
        """Return the episodes of several trajectories, each with a leading axis, as one. The longest decides the padding.

        The result has `length` and `terminated`. `sweeps` and `residual` are left out.

        **Raises:** `ValueError` if there is none, their sizes differ, or only some of them have rewards, `t` or `survival`.
        """
        parts = list(trajectories)
        if not parts:
            raise ValueError("concatenate got an empty list; pass at least one Trajectory.")
        for part in parts:
            check_episodes("Trajectory.concatenate", part)
        optional = ("rewards", "t", "survival")
        for name in optional:
            if len({getattr(part, name) is None for part in parts}) > 1:
                raise ValueError(f"Only some of the trajectories have {name}; give it to all of them, or to none.")
        for name in ("states", "actions"):
            if len(sizes := sorted({getattr(part, name).shape[-1] for part in parts})) > 1:
                raise ValueError(f"The {name} of the trajectories have {sizes} entries; concatenate those of one size.")
        horizon = max(part.actions.shape[1] for part in parts)
        padded = [part._resized(horizon) for part in parts]
        join = lambda name: jnp.concatenate([getattr(part, name) for part in padded])
        fields = [name for name in optional if getattr(parts[0], name) is not None]
        return Trajectory(**{name: join(name) for name in ("states", "actions", "length", "terminated", *fields)})

    @property
    def horizon(self) -> int:
        """Number of steps H of the arrays, padding included."""
        return self.actions.shape[-2]

    @property
    def mask(self) -> Bool[Array, "*batch H"]:
        """Whether each step happened, shape (..., H)."""
        if self.length is None:
            return jnp.ones(self.actions.shape[:-1], bool)
        return jnp.arange(self.horizon) < self.length[..., None]

    @property
    def steps(self) -> Int[Array, "*batch H"]:
        """Index of each step within its episode, shape (..., H)."""
        first = 0 if self.t is None else self.t[..., None]
        return jnp.broadcast_to(first + jnp.arange(self.horizon), self.actions.shape[:-1])

    def returns(self, discount: ScalarLike = 1.0) -> Float[Array, "*batch"]:
        """Return J = sum_t discount^t r_t over the steps that happened, one scalar per episode.

        With `survival`, J = sum_t discount^t survival_t r_t. The discount counts from the first step of the trajectory.

        **Raises:** `ValueError` if there are no rewards.
        """
        if self.rewards is None:
            raise ValueError("This trajectory has no rewards; pass reward=task.reward to the unroll.")
        fix = "pass one reward per step and one discount"
        check_shapes("Trajectory.returns", fix, rewards=(self.rewards, ("*", "H")), discount=(discount, ()))
        rewards = self.rewards if self.length is None else jnp.where(self.mask, self.rewards, 0)
        rewards = rewards if self.survival is None else self.survival * rewards
        if isinstance(discount, int | float) and discount == 1:
            return jnp.sum(rewards, axis=-1)
        return jnp.sum(discounts(discount, rewards.shape[-1], rewards.dtype) * rewards, axis=-1)

    def mean_over_steps(self, values: Float[Array, "..."]) -> Float[Array, ""]:
        """Return the mean of `values` over the steps that happened, and over all later axes. Padding is not read.

        ```python
        def loss(self, episode):  # Of a model of your own.
            episode = episode.filled()
            return episode.mean_over_steps((self.prediction(episode) - self.target(episode)) ** 2)
        ```

        **Arguments:** `values`: one value or more per step, shape (..., H, ...).
        """
        if self.length is None:
            return jnp.mean(values)
        mask = self.mask.reshape(*self.mask.shape, *(1,) * (values.ndim - self.mask.ndim))
        count = jnp.sum(self.length) * (values.size // self.mask.size)
        return jnp.sum(jnp.where(mask, values, 0)) / count.astype(values.dtype)

    def filled(self) -> "Trajectory":
        """Return the same episodes with finite padding: the last state repeats, actions and rewards are 0.

        A network may then run over all H steps, and what it computes for padding is finite, so that a mask can remove it from
        values and gradients.
        """
        if self.length is None:
            return self
        mask, last = self.mask, self.length[..., None]
        state_at = jnp.minimum(jnp.arange(self.horizon + 1), last)
        states = jnp.take_along_axis(self.states, state_at[..., None], axis=-2)
        zero = lambda x, mask: None if x is None else jnp.where(mask, x, 0)
        actions, rewards = zero(self.actions, mask[..., None]), zero(self.rewards, mask)
        fields = (states, actions, rewards, zero(self.survival, mask))
        none = lambda x: x is None
        return eqx.tree_at(lambda x: (x.states, x.actions, x.rewards, x.survival), self, fields, is_leaf=none)

    def __len__(self) -> int:
        """Number of episodes; needs a leading axis."""
        return self._batched().actions.shape[0]

    def __getitem__(self, index) -> "Trajectory":
        """Return some of the episodes, by anything that indexes the leading axis of an array."""
        return jtu.tree_map(lambda x: x[index], self._batched())

    def __iter__(self) -> Iterator["Trajectory"]:
        """Iterate over the episodes, without their padding."""
        host = jtu.tree_map(np.asarray, self._batched())
        for i in range(len(self)):
            episode = jtu.tree_map(lambda x, i=i: x[i], host)
            n = self.horizon if episode.length is None else int(episode.length)
            cut = lambda x, n=n: None if x is None else x[:n]
            fields = {name: cut(getattr(episode, name)) for name in ("actions", "rewards", "survival")}
            kept = {name: getattr(episode, name) for name in ("terminated", "t", "sweeps", "residual")}
            yield jtu.tree_map(jnp.asarray, Trajectory(states=episode.states[: n + 1], **fields, **kept))

    def _batched(self) -> "Trajectory":
        if self.actions.ndim != 3:
            raise TypeError(
                f"Only a Trajectory with one leading axis of episodes has a number of episodes and can be indexed; its actions are "
                f"{describe(self.actions)}."
            )
        return self

    def _resized(self, horizon: int) -> "Trajectory":
        """Return these episodes with `length` and `terminated`, padded to `horizon` steps."""
        count, more = self.actions.shape[0], horizon - self.horizon
        length = jnp.full(count, self.horizon) if self.length is None else self.length
        terminated = jnp.zeros(count, bool) if self.terminated is None else self.terminated
        pad = lambda x, mode: jnp.pad(x, [(0, 0), (0, more)] + [(0, 0)] * (x.ndim - 2), mode=mode)
        zeros = lambda x: None if x is None else pad(x, "constant")
        states, actions = pad(self.states, "edge"), pad(self.actions, "constant")
        return Trajectory(states, actions, zeros(self.rewards), length, terminated, self.t, zeros(self.survival))


def discounts(discount: ScalarLike, horizon: int, dtype: DTypeLike) -> Float[Array, " H"]:
    """Return discount^t for t = 0 ... horizon - 1."""
    steps = jnp.arange(horizon, dtype=dtype)
    # JAX computes the derivative of x^t as t x^(t-1), which is not a number for x = t = 0.
    return jnp.where(steps == 0, 1, jnp.asarray(discount, dtype) ** jnp.maximum(steps, 1))


def check_episodes(
    who: str, episodes: Any, batch: Shape = ("N",), *, state_size: int | None = None, action_size: int | None = None
) -> None:
    """Raise if `episodes` is not a `Trajectory` of episodes whose shapes agree with each other and with the sizes.

    Shapes may be those of `jax.eval_shape`. Where `length` is known, it must be between 1 and H. `batch` names the leading axes.
    """
    if not isinstance(episodes, Trajectory):
        raise ValueError(
            f"The episodes are {kind(episodes)}; pass one Trajectory whose fields have a leading axis of episodes, as "
            "Trajectory.from_episodes makes of a list."
        )
    states, actions = (size if size is not None else name for size, name in ((state_size, "S"), (action_size, "A")))
    needed = {"states": (*batch, "H+1", states), "actions": (*batch, "H", actions), "rewards": (*batch, "H")}
    needed |= {"survival": (*batch, "H")}
    needed |= {name: batch for name in ("length", "terminated", "t", "sweeps", "residual")}
    given = {name: (getattr(episodes, name), shape) for name, shape in needed.items()}
    fields = {name: pair for name, pair in given.items() if pair[0] is not None or name in ("states", "actions")}
    check_shapes(who, "give the fields of the Trajectory these shapes", **fields)
    length, horizon = episodes.length, episodes.actions.shape[-2]
    if isinstance(length, Array | np.ndarray) and not isinstance(length, Tracer):
        wrong = np.flatnonzero((np.asarray(length) < 1) | (np.asarray(length) > horizon))
        if wrong.size:
            raise ValueError(
                f"{who} needs episodes of 1 to {horizon} steps, the size of their arrays, got length "
                f"{np.ravel(length)[wrong[0]]} in episode {wrong[0]}; leave out empty episodes, or use Trajectory.from_episodes."
            )


def _row(index: int, episode: Any) -> dict[str, Any]:
    """Return the fields of one episode as NumPy arrays that agree with each other."""
    names = ("states", "actions", "rewards", "terminated")
    if isinstance(episode, Trajectory):
        episode = {name: getattr(episode, name) for name in names}
    elif hasattr(episode, "observations"):
        ended = getattr(episode, "terminations", [False])
        given = (episode.observations, episode.actions, episode.rewards, np.asarray(ended).ravel()[-1:].any())
        episode = dict(zip(names, given, strict=True))
    elif isinstance(episode, tuple | list) and 2 <= len(episode) <= 4:
        episode = dict(zip(names, episode, strict=False))
    if not isinstance(episode, Mapping):
        raise ValueError(
            f"Episode {index} is {kind(episode)}; pass a dictionary with states, actions, rewards and terminated, or a tuple of them."
        )
    unknown = sorted(set(episode) - set(names), key=str)
    if unknown or "states" not in episode or "actions" not in episode:
        raise ValueError(
            f"Episode {index} has the keys {sorted(episode, key=str)}; it must have states and actions, and may have rewards and "
            "terminated."
        )
    row: dict[str, Any] = {name: _numbers(index, name, episode.get(name)) for name in names[:3]}
    shapes = {"states": (row["states"], ("n+1", "S")), "actions": (row["actions"], ("n", "A"))}
    shapes |= {} if row["rewards"] is None else {"rewards": (row["rewards"], ("n",))}
    check_shapes(f"Episode {index}", "give one state more than actions, and one reward per action", **shapes)
    if not len(row["actions"]):
        raise ValueError(f"Episode {index} has no step; leave it out.")
    ended = np.asarray(False if episode.get("terminated") is None else episode["terminated"])
    if ended.shape != () or ended.dtype != bool:
        raise ValueError(f"terminated of episode {index} must be True or False, got {describe(ended)}; pass bool(...).")
    return row | {"terminated": bool(ended)}


def _numbers(index: int, name: str, values: Any) -> np.ndarray | None:
    """Return the values in JAX's default float."""
    if values is None and name == "rewards":
        return None
    try:
        array = np.asarray(values)
        numeric = array.dtype.kind in "iufb" or jnp.issubdtype(array.dtype, jnp.floating)
    except (ValueError, TypeError):
        numeric = False
    if not numeric:
        raise ValueError(
            f"The {name} of episode {index} are not an array of numbers, got {kind(values)}; give one row of numbers per step."
        )
    array = array.astype(jax.dtypes.canonicalize_dtype(float))
    if not np.isfinite(array).all():
        at = np.argwhere(~np.isfinite(array))[0]
        raise ValueError(f"The {name} of episode {index} are not finite at step {at[0]}; leave out such episodes.")
    return array


def _padded(x: np.ndarray, size: int, mode: Any) -> np.ndarray:
    return np.pad(x, [(0, size - len(x))] + [(0, 0)] * (x.ndim - 1), mode=mode)


def _has_rewards(row: Mapping[str, Any]) -> str:
    return "has no rewards" if row["rewards"] is None else "has rewards"
