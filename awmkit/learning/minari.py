"""Episodes as a data set of Minari (`pip install "awmkit[data]"`)."""

from typing import Any

import numpy as np

from .._bounds import unscale_actions
from .._trajectory import check_episodes, Trajectory

try:
    import gymnasium
    import minari
    from minari.data_collector import EpisodeBuffer
except ImportError as error:
    raise ImportError(f'awmkit.learning.minari needs Minari ({error}); run pip install "awmkit[data]".') from error

__all__ = ["create_dataset"]


def create_dataset(dataset_id: str, episodes: Trajectory, env: gymnasium.Env | None = None, **options: Any) -> Any:
    """Write episodes as a data set of Minari, to its folder of data sets.

    `Trajectory.from_episodes(minari.load_dataset(dataset_id))` reads it, and any other data set of Minari.

    **Arguments**

    - `dataset_id`: such as "pendulum/random-v0".
    - `episodes`: a `Trajectory` with a leading axis, and with rewards.
    - `env`: the Gymnasium environment of the episodes. Actions in [-1, 1] are scaled to its action space. Without it, actions are
      written as they are.
    - `options`: all other arguments of `minari.create_dataset_from_buffers`, such as `author`.

    **Returns:** the `minari.MinariDataset`.

    **Raises:** `ValueError` if the episodes have no rewards, or Minari refuses to write the data set.
    """
    check_episodes("create_dataset", episodes)
    if episodes.rewards is None:
        raise ValueError("A data set of Minari needs rewards, and these episodes have none; collect them with reward=.")
    box = lambda size: gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float32)
    space: Any = box(episodes.actions.shape[-1]) if env is None else env.action_space
    observations = box(episodes.states.shape[-1]) if env is None else env.observation_space
    scaled = lambda x: x if env is None else unscale_actions(x, space.low, space.high)
    buffers = []
    for i, episode in enumerate(episodes):
        last, ended = np.arange(episode.horizon) == episode.horizon - 1, bool(episode.terminated)
        buffers.append(
            EpisodeBuffer(
                id=i,
                observations=np.asarray(episode.states, observations.dtype),  # pyright: ignore[reportArgumentType]
                actions=np.asarray(scaled(episode.actions), space.dtype),  # pyright: ignore[reportArgumentType]
                rewards=np.asarray(episode.rewards).tolist(),
                terminations=(last & ended).tolist(),
                truncations=(last & (not ended)).tolist(),
                infos={},
            )
        )
    return minari.create_dataset_from_buffers(
        dataset_id, buffers, env, observation_space=observations, action_space=space, **options
    )
