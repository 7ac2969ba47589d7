"""The warm-up of a training run: episodes of random actions, collected before anything is learned."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._checks import check_call, check_counts
from .._dynamics import AbstractTask
from .._trajectory import Trajectory
from ._collect import collect_each
from ._exploration import pink_noise


def uniform_actions(key: PRNGKeyArray, shape: tuple[int, int]) -> Float[Array, "H A"]:
    """Independent uniform actions in [-1, 1], as in the paper's warm-up. Pass it to `awmkit.Warmup`.

    **Arguments:** `key`: for the draw. `shape`: (H, A).

    **Returns:** the actions of one episode, shape (H, A).
    """
    return jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)


def held_actions(key: PRNGKeyArray, shape: tuple[int, int]) -> Float[Array, "H A"]:
    """A constant action, uniform in [-1, 1], plus independent noise of standard deviation 0.3, clipped to [-1, 1].

    Pass it to `awmkit.Warmup` if independent actions average out and leave the state near where it starts: held actions reach
    a wider range of states.

    **Arguments:** `key`: for the draw. `shape`: (H, A).

    **Returns:** the actions of one episode, shape (H, A).
    """
    level_key, noise_key = jax.random.split(key)
    level = jax.random.uniform(level_key, shape[1:], minval=-1.0, maxval=1.0)
    return jnp.clip(level + 0.3 * jax.random.normal(noise_key, shape), -1.0, 1.0)


def pink_actions(key: PRNGKeyArray, shape: tuple[int, int]) -> Float[Array, "H A"]:
    """A constant action, uniform in [-1, 1], plus pink noise of standard deviation 0.5, clipped to [-1, 1].

    Pass it to `awmkit.Warmup` for an AWM, which predicts states from sequences of actions: these sequences vary slowly and
    quickly, as those of a policy do. Held actions only have a level and fast noise.

    **Arguments:** `key`: for the draw. `shape`: (H, A).

    **Returns:** the actions of one episode, shape (H, A).
    """
    level_key, noise_key = jax.random.split(key)
    level = jax.random.uniform(level_key, shape[1:], minval=-1.0, maxval=1.0)
    return jnp.clip(level + 0.5 * pink_noise(noise_key, shape), -1.0, 1.0)


class Warmup(eqx.Module):
    """Settings of the warm-up of `awmkit.train`: episodes of random actions before the first update.

    The statistics of these episodes set the normalisers of the model and the policy that are not set, and scale the returns.

    **Arguments**

    - `steps`: number of environment steps, 1,500 by default, rounded up to whole episodes.
    - `actions`: draws the actions of one episode: `actions(key, (H, A))` returns an array (H, A) in [-1, 1]. Use
      `awmkit.uniform_actions` (the default), `awmkit.held_actions`, `awmkit.pink_actions`, or your own
      function.

    **Raises:** `ValueError` if `steps` is not a whole number above 0, or `actions` cannot be called as `actions(key, shape)`.
    """

    steps: int = eqx.field(static=True, default=1_500)
    actions: Callable[..., Array] = eqx.field(static=True, default=uniform_actions)

    def __check_init__(self):
        check_counts("Warmup", steps=self.steps)
        check_call("warm-up's actions", "actions(key, shape)", "write it so, as uniform_actions", self.actions, None, None)


def warmup_episodes(task: AbstractTask, actions: Callable[..., Array], episodes: int, key: PRNGKeyArray) -> Trajectory:
    """Collect episodes of random actions. `actions(key, (H, A))` draws those of one episode."""
    shape = task.horizon, task.action_size
    action_key, collect_key = jax.random.split(key)
    plans = jax.vmap(lambda k: actions(k, shape))(jax.random.split(action_key, episodes))
    return collect_each(task, lambda plan: plan, plans, collect_key)
