"""Episodes of unequal length whose padding has any value."""

import functools

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from awmkit import Trajectory

LENGTHS = (1, 3, 7, 2, 7, 5, 4, 7)
TERMINATED = (True, False, False, True, True, False, False, True)


@functools.cache
def episodes(padding: float = np.nan) -> Trajectory:
    """Episodes whose states are 10 * number + step in the first entry."""
    step = jnp.arange(8.0) + 10 * jnp.arange(8.0)[:, None]
    states = jnp.stack([step, jnp.sin(step)], axis=-1)
    given = [
        {"states": x[: n + 1], "actions": jnp.cos(x[:n, :1]), "rewards": x[:n, 1], "terminated": end}
        for x, n, end in zip(states, LENGTHS, TERMINATED, strict=True)
    ]
    return padded_by(Trajectory.from_episodes(given), padding)


def padded_by(episodes: Trajectory, padding: float) -> Trajectory:
    fill = lambda x, mask: jnp.where(mask, x, padding)
    states = jnp.arange(episodes.horizon + 1) <= episodes.length[:, None]
    new = fill(episodes.states, states[..., None]), fill(episodes.actions, episodes.mask[..., None])
    return eqx.tree_at(lambda e: (e.states, e.actions, e.rewards), episodes, (*new, fill(episodes.rewards, episodes.mask)))
