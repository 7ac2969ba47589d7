"""Windows: parts of n steps of longer episodes."""

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Int, PRNGKeyArray

from ._checks import describe
from ._trajectory import Trajectory


def draw_windows(
    key: PRNGKeyArray,
    episodes: Trajectory,
    count: int,
    size: int,
    *,
    among: Int[Array, " M"] | None = None,
    from_start: float = 0.0,
) -> Trajectory:
    """Draw windows of `size` steps from N episodes, so that every step is equally likely to begin one.

    A window that begins less than `size` steps before the end of its episode is padded. Its `t` is the index of its first step.

    **Arguments:** `among`: the numbers of the episodes to draw from, by default all. `from_start`: share of the windows that begin
    at the first step of an episode, all episodes equally likely.
    """
    among = jnp.arange(len(episodes)) if among is None else among
    length = _lengths(episodes)[among]
    ends = jnp.cumsum(length)
    first = round(from_start * count)
    step = jax.random.randint(key, (count - first,), 0, ends[-1])
    index = jnp.searchsorted(ends, step, side="right")
    start = step - (ends - length)[index]
    if first:
        drawn = jax.random.randint(jax.random.fold_in(key, 1), (first,), 0, among.size, index.dtype)
        index, start = jnp.concatenate([drawn, index]), jnp.pad(start, (first, 0))
    return _windows_at(episodes, among[index], start, size)


def check_from_start(who: str, from_start: float, window: int | None) -> None:
    """Raise if a share of windows that begin at the first step is not one, or if there are no windows."""
    if not (isinstance(from_start, int | float) and 0 <= from_start <= 1):
        raise ValueError(
            f"{who} got from_start={describe(from_start)}; pass the share of windows that begin at a first step, in [0, 1]."
        )
    if from_start and window is None:
        raise ValueError(
            f"{who} got from_start={from_start} and no window; whole episodes begin there anyway, so pass a window."
        )


def cut_windows(episodes: Trajectory, size: int) -> Trajectory:
    """Cut N episodes into windows of `size` steps, side by side; the last of an episode may be shorter.

    In a compiled program, where lengths are unknown, windows that begin after the end of their episode have length 0.
    """
    count, horizon = episodes.actions.shape[:2]
    starts = jnp.arange(0, horizon, size)
    index, start = (x.ravel() for x in jnp.meshgrid(jnp.arange(count), starts, indexing="ij"))
    windows = _windows_at(episodes, index, start, size)
    happened = windows.mask[:, 0]
    return windows if isinstance(happened, Tracer) else windows[happened]


def spread_windows(episodes: Trajectory, size: int, from_start: float = 0.0) -> Trajectory:
    """Return windows of `size` steps that begin at regular distances, as those that `draw_windows` draws do on average.

    There are as many windows as steps, but at most eight times as many as fit side by side, so that memory is at most eight times
    that of the episodes; and at most 4,096, unless more fit side by side.
    """
    count, horizon = episodes.actions.shape[:2]
    side_by_side = count * -(-horizon // size)
    windows = min(count * horizon, 8 * side_by_side, max(4096, side_by_side))
    first = round(from_start * windows)
    length = _lengths(episodes)
    ends, rest = jnp.cumsum(length), windows - first
    # In floating point, because the product may be too large for an integer.
    share = (jnp.arange(rest, dtype=float) + 0.5) / max(rest, 1)
    step = jnp.minimum(jnp.floor(share * ends[-1].astype(share.dtype)).astype(ends.dtype), ends[-1] - 1)
    index = jnp.searchsorted(ends, step, side="right")
    start = step - (ends - length)[index]
    if first:
        index = jnp.concatenate([(jnp.arange(first) % count).astype(index.dtype), index])
        start = jnp.pad(start, (first, 0))
    return _windows_at(episodes, index, start, size)


def _windows_at(episodes: Trajectory, index: Int[Array, " K"], start: Int[Array, " K"], size: int) -> Trajectory:
    """Return the windows of `size` steps that begin at step `start` of the episodes with these numbers."""
    episodes, length = episodes.filled(), _lengths(episodes)[index]
    pick = lambda x, count: x[index[:, None], jnp.minimum(start[:, None] + jnp.arange(count)[None], x.shape[1] - 1)]
    return Trajectory(
        pick(episodes.states, size + 1),
        pick(episodes.actions, size),
        None if episodes.rewards is None else pick(episodes.rewards, size),
        length=jnp.clip(length - start, 0, size),
        terminated=None if episodes.terminated is None else episodes.terminated[index] & (length - start <= size),
        t=start if episodes.t is None else episodes.t[index] + start,
    )


def _lengths(episodes: Trajectory) -> Int[Array, " N"]:
    return jnp.full(episodes.actions.shape[:1], episodes.horizon) if episodes.length is None else episodes.length
