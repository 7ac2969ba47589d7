"""A Gymnasium environment as a task."""

from typing import ClassVar

import equinox as eqx
import gymnasium
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import PRNGKeyArray

from .._dynamics import AbstractTask
from .._progress import AbstractProgress, NoProgress
from .._reward import Reward, with_next_state
from .._trajectory import Trajectory
from ..learning._evaluate import as_task
from ..methods import Policy
from ._collect import collect, find_horizon, reset, seed_from
from ._spaces import box_spaces


class GymnasiumTask(AbstractTask):
    """A Gymnasium environment with Box spaces as a task to learn from.

    Episodes come from its method `collect`, which `awmkit.train` calls. Neither an unroll nor a gradient can pass `env.step`, so
    `init` and `step` raise an error: fit a world model to the episodes and unroll the model, with `reward=task.reward`.

    ```python
    task = GymnasiumTask(gymnasium.make("Pendulum-v1"))
    episodes = task.collect(policy, 20, key=key)
    ```

    **Arguments**

    - `env`: the environment.
    - `reward`: the environment's reward as a function of JAX arrays, if you know it: `reward(state, action, t)`, or
      `reward(state, action, t, next_state)`. Without it, fit an `awmkit.RewardModel`.
    - `horizon`: the largest number of steps of an episode, H. By default the environment's own time limit.

    **Raises:** `ValueError` if a space is not a Box of numbers, if an action bound is infinite, or if there is no horizon.
    """

    env: gymnasium.Env = eqx.field(static=True)
    known_reward: Reward | None
    horizon: int = eqx.field(static=True)
    state_size: int = eqx.field(static=True)
    action_size: int = eqx.field(static=True)
    on_host: ClassVar[bool] = True

    def __init__(self, env: gymnasium.Env, *, reward: Reward | None = None, horizon: int | None = None):
        observations, actions = box_spaces(env)
        self.env = env
        self.known_reward = reward
        self.horizon = find_horizon(env, horizon)
        self.state_size, self.action_size = observations.shape[0], actions.shape[0]

    @property
    def bounds(self):
        observations, _ = box_spaces(self.env)
        return tuple(observations.low.tolist()), tuple(observations.high.tolist())

    def reward(self, state, action, t, next_state=None):
        if self.known_reward is None:
            raise ValueError(
                "This GymnasiumTask has no reward function; pass reward=RewardModel(task.state_size, task.action_size, key=key) "
                "to train, which fits it to the collected rewards, or write the reward in JAX and pass GymnasiumTask(env, reward=...)."
            )
        return with_next_state(self.known_reward)(state, action, t, next_state)

    def collect(
        self,
        policy: Policy | np.ndarray,
        episodes: int | None = None,
        *,
        steps: int | None = None,
        key: PRNGKeyArray | None = None,
        progress: AbstractProgress = NoProgress(),
    ) -> Trajectory:
        """Collect episodes of at most H steps; see `awmkit.gym.collect`."""
        return collect(self.env, policy, episodes, steps=steps, horizon=self.horizon, key=key, progress=progress)

    def reset(self, key):
        """Return the observation of `env.reset`, seeded by `key`. It runs in Python, so JAX cannot trace it."""
        if isinstance(key, Tracer):
            raise ValueError(
                "GymnasiumTask.reset calls env.reset, which JAX cannot trace; call it outside of jit and vmap, or use the "
                "initial states of task.collect(...).states[:, 0]."
            )
        return jnp.array(reset(self.env, seed_from(key)))

    def init(self, state, horizon):
        raise ValueError(_CANNOT_UNROLL)

    def step(self, carry, state, action, t, *, key=None):
        raise ValueError(_CANNOT_UNROLL)


@as_task.register
def _(task: gymnasium.Env) -> AbstractTask:
    return GymnasiumTask(task)


_CANNOT_UNROLL = (
    "A GymnasiumTask cannot be unrolled or differentiated, because JAX cannot trace env.step; fit a world model to "
    "task.collect(policy, episodes) and unroll the model."
)
