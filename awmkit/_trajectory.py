"""`Trajectory`: the states, actions and rewards of an episode, or of a batch of episodes of unequal length."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
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
    def from_episodes(episodes: Iterable[Any]) -> "Trajectory":
        """Return one trajectory of episodes of any lengths, with a leading axis.

        **Arguments:** `episodes`: a list, a generator, or a data set of Minari. Each episode has states (n+1, S), actions (n, A),
        rewards (n,) and `terminated`, as one of these:

        - a dictionary with the keys `states` and `actions`, and optionally `rewards`, `terminated` and `t`;
        - a tuple of the same, in this order;
        - a `Trajectory` of one episode;
        - an `EpisodeData` of Minari, or any object or dictionary with `observations`, `actions`, and optionally `rewards` and
          `terminations`.

        Either all episodes have rewards, or none. `terminated` is one value, or one for each step, which is true at most at the
        last one. If some episodes have `t`, it is 0 in the others.

        **Returns:** a `Trajectory` in JAX's default float. Its padding repeats the last state, with actions and rewards of 0.

        **Raises:** `ValueError` if there is no episode, or, with its index, if the fields of an episode have the wrong shape, are
        not numbers or not finite, have no step, or differ in size from those of the first episode.
        """
        batch = isinstance(episodes, Trajectory) and episodes.actions.ndim > 2
        if not hasattr(episodes, "__iter__") or isinstance(episodes, Mapping | str | Trajectory) and not batch:
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
            t=None if all(row["t"] is None for row in rows) else jnp.array([row["t"] or 0 for row in rows]),
        )

    @staticmethod
    def concatenate(trajectories: Iterable["Trajectory"]) -> "Trajectory":
        """Return the episodes of several trajectories, each with a leading axis, as one. The longest decides the padding.

        The result has `length` and `terminated`, and `t` or `survival` if one of them has it. `sweeps` and `residual` are left out.

        **Raises:** `ValueError` if there is none, their sizes differ, or only some of them have rewards.
        """
        parts = [trajectories] if isinstance(trajectories, Trajectory) else list(trajectories)
        if not parts:
            raise ValueError("concatenate got an empty list; pass at least one Trajectory.")
        for part in parts:
            check_episodes("Trajectory.concatenate", part)
        if len({part.rewards is None for part in parts}) > 1:
            raise ValueError("Only some of the trajectories have rewards; give them to all, or to none.")
        for name in ("states", "actions"):
            if len(sizes := sorted({getattr(part, name).shape[-1] for part in parts})) > 1:
                raise ValueError(f"The {name} of the trajectories have {sizes} entries; concatenate those of one size.")
        horizon = max(part.horizon for part in parts)
        padded = [part.padded(horizon)._with_defaults() for part in parts]
        join = lambda name: jnp.concatenate([getattr(part, name) for part in padded])
        optional = [name for name in ("rewards", "t", "survival") if any(getattr(part, name) is not None for part in parts)]
        return Trajectory(**{name: join(name) for name in ("states", "actions", "length", "terminated", *optional)})

    @property
    def horizon(self) -> int:
        """Number of steps H of the arrays, padding included."""
        return self.actions.shape[-2]

    @property
    def mask(self) -> Bool[Array, "*batch H"]:
        """Whether each step happened, shape (..., H)."""
        if self.length is None:
            return jnp.ones(self.actions.shape[:-1], bool)
        return self._step_numbers() < jnp.asarray(self.length)[..., None]

    @property
    def steps(self) -> Int[Array, "*batch H"]:
        """Index of each step within its episode, shape (..., H)."""
        first = 0 if self.t is None else jnp.asarray(self.t)[..., None]
        return self._step_numbers() + first

    def returns(self, discount: ScalarLike = 1.0) -> Float[Array, "*batch"]:
        """Return J = sum_t discount^t r_t over the steps that happened, one scalar per episode.

        With `survival`, J = sum_t discount^t survival_t r_t. The discount counts from the first step of the trajectory.

        **Raises:** `ValueError` if there are no rewards.
        """
        if self.rewards is None:
            raise ValueError("This trajectory has no rewards; pass reward=task.reward to the unroll.")
        fix = "pass one reward per step and one discount"
        check_shapes("Trajectory.returns", fix, rewards=(self.rewards, ("*", "H")), discount=(discount, ()))
        happened = lambda x: x if self.length is None else jnp.where(self.mask, x, 0)
        rewards = happened(self.rewards)
        rewards = rewards if self.survival is None else happened(self.survival) * rewards
        if isinstance(discount, int | float) and discount == 1:
            return jnp.sum(rewards, axis=-1)
        return jnp.sum(discounts(discount, rewards.shape[-1], rewards.dtype) * rewards, axis=-1)

    def mean_over_steps(self, values: Array) -> Float[Array, ""]:
        """Return the mean of `values` over the steps that happened, and over all later axes. Padding is not read.

        ```python
        def loss(self, episode):  # Of a model of your own.
            episode = episode.filled()
            return episode.mean_over_steps((self.prediction(episode) - self.target(episode)) ** 2)
        ```

        **Arguments:** `values`: one value or more per step, shape (..., H, ...).

        **Raises:** `ValueError` if the values do not begin with the axes of the steps.
        """
        values, steps = jnp.asarray(values), self.actions.shape[:-1]
        if values.shape[: len(steps)] != steps:
            needed = f"({', '.join(map(str, steps))}, ...)"
            raise ValueError(f"mean_over_steps needs values of shape {needed}, got {describe(values)}; give one per step.")
        if self.length is None:
            return jnp.mean(values)
        values = values if jnp.issubdtype(values.dtype, jnp.inexact) else values.astype(float)
        mask = self.mask.reshape(*steps, *(1,) * (values.ndim - len(steps)))
        count = jnp.sum(self.length) * math.prod(values.shape[len(steps) :])
        return jnp.sum(jnp.where(mask, values, 0)) / count.astype(values.dtype)

    def filled(self) -> "Trajectory":
        """Return the same episodes with finite padding: the last state repeats, actions and rewards are 0.

        A network may then run over all H steps, and what it computes for padding is finite, so that a mask can remove it from
        values and gradients.
        """
        if self.length is None:
            return self
        mask, last = self.mask, jnp.asarray(self.length)[..., None]
        state_at = jnp.minimum(jnp.arange(self.horizon + 1).reshape(*(1,) * (last.ndim - 1), -1), last)
        states = jnp.take_along_axis(self.states, state_at[..., None], axis=-2)
        zero = lambda x, mask: None if x is None else jnp.where(mask, x, 0)
        actions, rewards = zero(self.actions, mask[..., None]), zero(self.rewards, mask)
        fields = (states, actions, rewards, zero(self.survival, mask))
        none = lambda x: x is None
        return eqx.tree_at(lambda x: (x.states, x.actions, x.rewards, x.survival), self, fields, is_leaf=none)

    def padded(self, horizon: int) -> "Trajectory":
        """Return the same episodes in arrays of `horizon` steps, with `length` and `terminated`; needs a leading axis.

        **Raises:** `ValueError` if `horizon` is less than the number of steps of the arrays.
        """
        count, more = len(self), horizon - self.horizon
        if more < 0:
            raise ValueError(f"padded needs a horizon of at least {self.horizon}, the size of the arrays, got {horizon}.")
        length = jnp.full(count, self.horizon) if self.length is None else self.length
        terminated = jnp.zeros(count, bool) if self.terminated is None else self.terminated
        # NumPy pads known arrays, because JAX would compile a program for every length.
        numpy = lambda x: jnp if isinstance(x, Tracer) else np
        pad = lambda x, mode: jnp.asarray(numpy(x).pad(x, [(0, 0), (0, more)] + [(0, 0)] * (x.ndim - 2), mode=mode))
        zeros = lambda x: None if x is None else pad(x, "constant")
        states, actions = pad(self.states, "edge"), pad(self.actions, "constant")
        return Trajectory(states, actions, zeros(self.rewards), length, terminated, self.t, zeros(self.survival))

    def __len__(self) -> int:
        """Number of episodes; needs a leading axis."""
        return self._batched().actions.shape[0]

    def __getitem__(self, index) -> "Trajectory":
        """Return some of the episodes, by an index, a slice, a list or array of indices, or an array of bools.

        **Raises:** `IndexError` if there is no such episode, or `index` is none of these.
        """
        at = np.asarray(index, None if np.size(index) else int) if isinstance(index, list) else index
        if not isinstance(at, slice):
            kinds, count = (at.dtype.kind if hasattr(at, "dtype") else type(at)), len(self)
            if kinds not in ("i", "u", "b", int):
                raise IndexError(
                    f"Index episodes by an int, a slice, or a list or array of ints or bools, got {describe(index)}."
                )
            # JAX would clamp an index that is too large to the last episode.
            at = at if isinstance(at, Tracer) else np.arange(count)[at]
        return jtu.tree_map(lambda x: x[at], self._batched())

    def __iter__(self) -> Iterator["Trajectory"]:
        """Iterate over the episodes, without their padding."""
        host = jtu.tree_map(np.asarray, self._batched())
        for i in range(len(self)):
            n = self.horizon if host.length is None else host.length[i]
            cut: Any = lambda x, size=None, i=i: None if x is None else jnp.asarray(x[i][:size] if size else x[i])
            fields = {name: cut(getattr(host, name), n) for name in ("actions", "rewards", "survival")}
            kept = {name: cut(getattr(host, name)) for name in ("terminated", "t", "sweeps", "residual")}
            yield Trajectory(states=cut(host.states, n + 1), **fields, **kept)

    def _batched(self) -> "Trajectory":
        if self.actions.ndim != 3:
            raise TypeError(
                f"Only a Trajectory with one leading axis of episodes has a number of episodes and can be indexed; its actions are "
                f"{describe(self.actions)}."
            )
        return self

    def _step_numbers(self) -> Int[Array, "*batch H"]:
        return jnp.broadcast_to(jnp.arange(self.horizon), self.actions.shape[:-1])

    def _with_defaults(self) -> "Trajectory":
        """Return these episodes with `t` and `survival`."""
        t = jnp.zeros(len(self), int) if self.t is None else self.t
        survival = jnp.ones(self.actions.shape[:-1], self.actions.dtype) if self.survival is None else self.survival
        return dataclasses.replace(self, t=t, survival=survival)


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


def check_whole(who: str, episodes: Trajectory) -> None:
    """Raise if episodes are windows of longer ones."""
    if episodes.t is not None and not isinstance(episodes.t, Tracer) and np.any(np.asarray(episodes.t) != 0):
        number = int(np.argmax(np.asarray(episodes.t) != 0))
        raise ValueError(
            f"{who} needs whole episodes, from their first step on; number {number} is a window that begins at step "
            f"{int(episodes.t[number])}; pass the episodes that the windows are from."
        )


def _row(index: int, episode: Any) -> dict[str, Any]:
    """Return the fields of one episode as NumPy arrays that agree with each other."""
    names = ("states", "actions", "rewards", "terminated", "t")
    if isinstance(episode, Trajectory):
        if episode.survival is not None:
            raise ValueError(
                f"Episode {index} has survival, the probability of each step, as imagined episodes do; join such episodes, each with a "
                "leading axis, with Trajectory.concatenate."
            )
        n = None if episode.length is None or episode.actions.ndim != 2 else int(episode.length)
        rewards = None if episode.rewards is None else episode.rewards[:n]
        states, actions = episode.states[: None if n is None else n + 1], episode.actions[:n]
        episode = dict(zip(names, (states, actions, rewards, episode.terminated, episode.t), strict=True))
    elif hasattr(episode, "observations") and hasattr(episode, "actions"):
        given = {name: getattr(episode, name, None) for name in ("rewards", "terminations")}
        episode = {"observations": episode.observations, "actions": episode.actions, **given}
    elif isinstance(episode, tuple | list) and 2 <= len(episode) <= len(names):
        episode = dict(zip(names, episode, strict=False))
    if not isinstance(episode, Mapping):
        raise ValueError(
            f"Episode {index} is {kind(episode)}; pass a dictionary with states, actions, rewards and terminated, or a tuple of them."
        )
    if "observations" in episode:  # Of Minari, whose time limits do not matter, nor what else it knows of a step.
        others = {name: x for name, x in episode.items() if name not in ("id", "truncations", "infos")}
        new = {"observations": "states", "terminations": "terminated"}
        episode = {new.get(name, name): x for name, x in others.items()}
    unknown = sorted(set(episode) - set(names), key=str)
    if unknown or "states" not in episode or "actions" not in episode:
        raise ValueError(
            f"Episode {index} has the keys {sorted(episode, key=str)}; it must have states and actions, and may have rewards, "
            "terminated and t."
        )
    row: dict[str, Any] = {name: _numbers(index, name, episode.get(name)) for name in names[:3]}
    shapes = {"states": (row["states"], ("n+1", "S")), "actions": (row["actions"], ("n", "A"))}
    shapes |= {} if row["rewards"] is None else {"rewards": (row["rewards"], ("n",))}
    fix = "give one state more than actions, one reward per action, and states and actions of one entry as x[:, None]"
    check_shapes(f"Episode {index}", fix, **shapes)
    steps = len(row["actions"])
    if not steps:
        raise ValueError(f"Episode {index} has no step; leave it out.")
    for name in names[:3]:
        if (x := row[name]) is not None and not np.isfinite(x).all():
            at = np.argwhere(~np.isfinite(x))[0, 0]
            raise ValueError(
                f"The {name} of episode {index} are not finite in {x.dtype} at step {at}; leave out such episodes."
            )
    t = episode.get("t")
    if t is not None and (_array(t).shape != () or _array(t).dtype.kind not in "iu"):
        raise ValueError(f"t of episode {index} must be the index of its first step, got {describe(t)}; pass int(...).")
    return row | {"terminated": _terminated(index, episode.get("terminated"), steps), "t": t if t is None else int(t)}


def _terminated(index: int, given: Any, steps: int) -> bool:
    """Return whether the last of all steps ended the episode."""
    ended = _array(False if given is None else given)
    if ended.shape not in ((), (steps,)) or ended.dtype != bool:
        raise ValueError(
            f"terminated of episode {index} must be True or False, or {steps} of them, one for each step, got {describe(given)}; pass "
            "it .astype(bool)."
        )
    if ended.shape and ended[:-1].any():
        raise ValueError(
            f"Episode {index} is terminated after {int(ended.argmax()) + 1} of {steps} steps; split it there, and give each part its "
            "last state."
        )
    return bool(ended.ravel()[-1])


def _numbers(index: int, name: str, values: Any) -> np.ndarray | None:
    """Return the values in JAX's default float."""
    if values is None and name == "rewards":
        return None
    if isinstance(values, Tracer):
        raise ValueError(f"The {name} of episode {index} are traced; call from_episodes outside of jax.jit and jax.vmap.")
    if isinstance(values, Mapping):
        raise ValueError(
            f"The {name} of episode {index} are a dictionary of {sorted(values, key=str)}; join its arrays by "
            "numpy.concatenate([...], axis=-1)."
        )
    array = _array(values)
    if array.dtype.kind not in "iufb" and not jnp.issubdtype(array.dtype, jnp.floating):  # The second is for bfloat16.
        raise ValueError(
            f"The {name} of episode {index} are not an array of numbers, got {kind(values)}; give one row of numbers per step."
        )
    with np.errstate(over="ignore"):  # A number that is too large for the default float becomes infinite.
        return array.astype(jax.dtypes.canonicalize_dtype(float))


def _array(values: Any) -> np.ndarray:
    try:
        return np.asarray(values)
    except (ValueError, TypeError):  # Rows of different lengths.
        return np.array(None)


def _padded(x: np.ndarray, size: int, mode: Any) -> np.ndarray:
    return np.pad(x, [(0, size - len(x))] + [(0, 0)] * (x.ndim - 1), mode=mode)


def _has_rewards(row: Mapping[str, Any]) -> str:
    return "has no rewards" if row["rewards"] is None else "has rewards"
