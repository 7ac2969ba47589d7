"""Episodes of any Gymnasium environment: the data that world models are fitted to.

Apart from the environments made of tasks because it goes the other way, and no gradient comes back with it.
"""

import operator
from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.spaces import Box
from jax.core import Tracer
from jaxtyping import PRNGKeyArray

from .._checks import check_call, check_counts, check_key
from .._dynamics import AbstractTask
from .._progress import AbstractProgress, check_progress, NoProgress, TqdmProgress
from .._reward import Reward, with_next_state
from .._trajectory import Trajectory
from ..methods import Policy
from ._task_env import compiled, TaskEnv


def collect(
    env: gymnasium.Env,
    policy: Policy | np.ndarray,
    episodes: int,
    *,
    horizon: int | None = None,
    key: PRNGKeyArray | None = None,
    absorb: bool = False,
    progress: AbstractProgress = TqdmProgress(),
) -> Trajectory:
    """Whole episodes of a policy in any Gymnasium environment with Box spaces, by `env.reset` and `env.step`.

    ```python
    episodes = collect(gymnasium.make("Pendulum-v1"), policy, 20, key=key)
    model = fit(AWM(3, 1, Transformer(horizon=200, key=k1), key=k2).normalised(episodes.states), episodes, key=k3).model
    ```

    States are the observations as they are: of awmkit's own tasks, make the environment with `time_aware=False`.

    **Arguments**

    - `env`: one environment, not a vector of them.
    - `policy`: called as `policy(state, t, *, key)`, returns an action (A,) in [-1, 1], which is mapped to the environment's
      bounds; or an array of actions (H, A). The trajectory holds the actions in [-1, 1].
    - `episodes`: how many, N.
    - `horizon`: H; by default the environment's own time limit.
    - `key`: seeds the environment's first reset and the policy; without one, the environment's generator goes on and a
      Gaussian policy takes its mode.
    - `absorb`: whether an episode that ends before H holds its last state, with reward 0, while the policy acts on.
    - `progress`: `TqdmProgress()` shows a bar on stderr, `NoProgress()` nothing.

    **Returns:** a `awmkit.Trajectory` of states (N, H+1, S), actions (N, H, A) and rewards (N, H), in JAX's default float.

    **Raises:** `ValueError` for spaces other than a Box of numbers, infinite action bounds, no horizon, an action of the wrong
    shape, anything not finite, and, unless `absorb`, an episode that ends before H.
    """
    _, actions = _spaces(env)
    horizon = _horizon(env, horizon)
    check_counts("collect", episodes=episodes)
    check_progress(progress)
    if key is not None:
        check_key("collect", key)
    act = _policy(policy, (horizon, *actions.shape))
    seed, keys = None, [None] * episodes
    if key is not None:
        seed_key, policy_key = jax.random.split(key)
        seed, keys = _seed(seed_key), jax.random.split(policy_key, episodes)
    rows = []
    with progress.start("collect", episodes) as meter:
        meter.update(0, phase="compiling")
        for n in range(episodes):
            rows.append(_episode(env, act, horizon, key=keys[n], seed=None if n else seed, absorb=absorb))
            meter.update(n + 1, phase="collecting")
    return Trajectory(*(jnp.asarray(np.stack(row)) for row in zip(*rows, strict=True)))


class GymnasiumTask(AbstractTask):
    """Any Gymnasium environment with Box spaces as a task to learn from: its episodes, sizes, bounds and reward.

    No gradient goes through `env.step`, so that `init` and `step` raise: fit a world model to the episodes of `collect` and
    give that to the unroll, with `reward=task.reward`.

    ```python
    task = GymnasiumTask(gymnasium.make("Pendulum-v1"))
    episodes = task.collect(policy, 20, key=key)
    ```

    **Arguments**

    - `env`: the environment.
    - `reward`: its reward, if known: `reward(state, action, t)`, or `reward(state, action, t, next_state)`.
    - `horizon`: H; by default the environment's own time limit.

    **Raises:** `ValueError` for spaces other than a Box of numbers, infinite action bounds and no horizon.
    """

    env: gymnasium.Env = eqx.field(static=True)
    known_reward: Reward | None
    horizon: int = eqx.field(static=True)
    state_size: int = eqx.field(static=True)
    action_size: int = eqx.field(static=True)
    on_host: ClassVar[bool] = True

    def __init__(self, env: gymnasium.Env, *, reward: Reward | None = None, horizon: int | None = None):
        observations, actions = _spaces(env)
        self.env = env
        self.known_reward = reward
        self.horizon = _horizon(env, horizon)
        self.state_size, self.action_size = observations.shape[0], actions.shape[0]

    @property
    def bounds(self):
        observations, _ = _spaces(self.env)
        return tuple(observations.low.tolist()), tuple(observations.high.tolist())

    def reward(self, state, action, t, next_state=None):
        if self.known_reward is None:
            raise ValueError(
                "This GymnasiumTask was given no reward function; pass GymnasiumTask(env, reward=...), or fit an "
                "awmkit.RewardModel to task.collect(...) and use fit(...).model as the reward."
            )
        return with_next_state(self.known_reward)(state, action, t, next_state)

    def collect(
        self,
        policy: Policy | np.ndarray,
        episodes: int,
        *,
        key: PRNGKeyArray | None = None,
        absorb: bool = False,
        progress: AbstractProgress = NoProgress(),
    ) -> Trajectory:
        """Episodes of H steps in the environment; see `awmkit.gym.collect`."""
        return collect(self.env, policy, episodes, horizon=self.horizon, key=key, absorb=absorb, progress=progress)

    def reset(self, key):
        """s_0 of `env.reset`, with a seed drawn from the key: a call on the host, which no JAX transformation can trace."""
        if isinstance(key, Tracer):
            raise ValueError(
                "GymnasiumTask.reset calls env.reset, which cannot be traced; call it outside of jit and vmap, or take the "
                "initial states task.collect(...).states[:, 0]."
            )
        return jnp.asarray(self.env.reset(seed=_seed(key))[0], jnp.result_type(float))

    def init(self, state, horizon):
        raise ValueError(self._untraceable())

    def step(self, carry, state, action, t, *, key=None):
        raise ValueError(self._untraceable())

    def _untraceable(self) -> str:
        return (
            "No unroll and no gradient goes through env.step; fit a world model to task.collect(policy, episodes) and unroll "
            "that in place of the GymnasiumTask."
        )


def _episode(env: gymnasium.Env, act: Callable, horizon: int, *, key, seed: int | None, absorb: bool) -> list[np.ndarray]:
    """States (H+1, S), actions (H, A) and rewards (H,) of one episode."""
    _, box = _spaces(env)
    dtype = jnp.result_type(float)
    states, actions, rewards, ended = [np.asarray(env.reset(seed=seed)[0], dtype)], [], [], False
    _require_finite(states[0], "observation of the reset")
    for t in range(horizon):
        state, reward, action = states[-1], 0.0, np.asarray(act(states[-1], t, key), dtype)
        if action.shape != box.shape:
            raise ValueError(f"The policy returned an action of shape {action.shape}; the environment needs {box.shape}.")
        _require_finite(action, f"action of step {t}")
        if not ended:
            bounded = box.low + (action + 1) / 2 * (box.high - box.low)
            state, reward, terminated, truncated, _ = env.step(bounded.astype(box.dtype))
            ended = terminated or truncated
        if ended and t + 1 < horizon and not absorb:
            raise ValueError(
                f"The episode ended by step {t}, before its {horizon} steps were over, and all must be of one length; pass "
                "absorb=True to hold the last state with reward 0, give a MuJoCo environment terminate_when_unhealthy=False, "
                "or ask for a shorter horizon."
            )
        _require_finite(state, f"observation after step {t}")
        _require_finite(reward, f"reward of step {t}")
        states.append(np.asarray(state, dtype))
        actions.append(action)
        rewards.append(reward)
    return [np.stack(states), np.stack(actions), np.asarray(rewards, dtype)]


def _policy(policy: Policy | np.ndarray, shape: tuple[int, ...]) -> Callable:
    """The policy as a function of the state, the step and the episode's key."""
    if callable(policy) or isinstance(policy, str):
        fix = "write it so, as lambda state, t, *, key=None: ..., or pass an array of actions (H, A)"
        check_call("policy", "policy(state, t, *, key)", fix, policy, None, 0, key=None)
        act = compiled(_act, policy)
        return lambda state, t, key: act(state, np.asarray(t), key)
    plan = np.asarray(policy)
    if plan.shape != shape:
        raise ValueError(f"The policy is an array of shape {plan.shape}; the environment needs {shape}, one action a step.")
    return lambda state, t, key: plan[t]


def _act(policy, state, t, key):
    return policy(state, t, key=None if key is None else jax.random.fold_in(key, t))


def _spaces(env) -> tuple[Box, Box]:
    """The spaces of observations and actions; raises for what awmkit cannot learn from, with what to do about it."""
    if not isinstance(env, gymnasium.Env):
        raise ValueError(f"The environment is a {type(env).__name__}; pass one gymnasium.Env, such as gymnasium.make(id).")
    actions, observations = env.action_space, env.observation_space
    if not isinstance(actions, Box) or len(actions.shape) != 1 or not np.issubdtype(actions.dtype, np.floating):
        raise ValueError(
            f"The actions are a {_describe(actions)}, and a policy gradient needs real numbers, a Box of shape (A,); make the "
            "environment with its continuous actions, or wrap it in a gymnasium.wrappers.TransformAction that takes such a Box."
        )
    if not (np.isfinite(actions.low).all() and np.isfinite(actions.high).all()):
        raise ValueError(
            "The actions have infinite bounds, to which [-1, 1] cannot be mapped; set finite ones with "
            "gymnasium.wrappers.TransformAction(env, lambda a: a, gymnasium.spaces.Box(low, high))."
        )
    if not isinstance(observations, Box):
        raise ValueError(
            f"The observations are a {_describe(observations)} and a state is a vector; flatten them with "
            "gymnasium.wrappers.FlattenObservation(env)."
        )
    if len(observations.shape) != 1:
        raise ValueError(
            f"The observations are a {_describe(observations)} and a state is a vector; encode images with "
            "gymnasium.wrappers.TransformObservation, or flatten small ones with gymnasium.wrappers.FlattenObservation(env)."
        )
    return observations, actions


def _describe(space: gymnasium.Space) -> str:
    return f"{type(space).__name__} of shape {space.shape}" if isinstance(space, Box) else type(space).__name__


def _horizon(env: gymnasium.Env, horizon: int | None) -> int:
    if horizon is None:
        inner = env.unwrapped
        horizon = inner.task.horizon if isinstance(inner, TaskEnv) else getattr(env.spec, "max_episode_steps", None)
    if horizon is None:
        raise ValueError("The environment has no time limit of its own; pass horizon=, the number of steps of an episode.")
    if operator.index(horizon) < 1:
        raise ValueError(f"The horizon is {horizon}; an episode needs at least 1 step.")
    return horizon


def _seed(key: PRNGKeyArray) -> int:
    return int(jax.random.randint(key, (), 0, np.iinfo(np.int32).max))


def _require_finite(values, what: str) -> None:
    values = np.asarray(values)
    if not np.isfinite(values).all():
        bad = values[~np.isfinite(values)][0]
        raise ValueError(f"The {what} holds {bad}; mend the environment, or keep the policy away from where it breaks.")
