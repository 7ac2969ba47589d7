"""Collect whole episodes from any Gymnasium environment, to fit world models to."""

from collections.abc import Callable

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from .._checks import check_call, check_counts, check_key
from .._progress import AbstractProgress, check_progress, TqdmProgress
from .._trajectory import Trajectory
from ..methods import Policy
from ._programs import call_policy, compiled
from ._spaces import box_spaces
from ._task_env import TaskEnv


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
    """Collect whole episodes of a policy in any Gymnasium environment with Box spaces.

    ```python
    episodes = collect(gymnasium.make("Pendulum-v1"), policy, 20, key=key)
    model = fit(AWM(3, 1, key=k1).normalised(episodes.states), episodes, key=k2).model
    ```

    States are the environment's observations. Make awmkit's own environments with `time_aware=False`, so that t is no part of
    the state.

    **Arguments**

    - `env`: one environment, not a vectorised one.
    - `policy`: called as `policy(state, t, *, key)`, returns an action in [-1, 1], shape (A,), which is scaled to the bounds of
      the environment's action space. Or an array of actions, shape (H, A). The trajectory holds the actions in [-1, 1].
    - `episodes`: the number of episodes, N.
    - `horizon`: the number of steps of an episode, H. By default the environment's own time limit.
    - `key`: seeds the first reset of the environment, and the policy. Without a key the environment continues with its own random
      numbers, and a Gaussian policy takes its mode.
    - `absorb`: whether to accept an episode that ends before H. The rest of it repeats its last state with reward 0, while the
      policy continues to choose actions.
    - `progress`: the meter: `TqdmProgress()` shows a bar on stderr, `NoProgress()` shows nothing.

    **Returns:** an `awmkit.Trajectory` of states (N, H+1, S), actions (N, H, A) and rewards (N, H), in JAX's default float.

    **Raises:** `ValueError` if a space is not a Box of numbers, if an action bound is infinite, if there is no horizon, if an
    action has the wrong shape, if an observation, action or reward is not finite, and, without `absorb`, if an episode ends
    before H.
    """
    _, actions = box_spaces(env)
    horizon = find_horizon(env, horizon)
    check_counts("collect", episodes=episodes)
    check_progress(progress)
    act = _acting(policy, (horizon, *actions.shape))
    seed, keys = None, [None] * episodes
    if key is not None:
        check_key("collect", key)
        seed_key, policy_key = jax.random.split(key)
        seed, keys = seed_from(seed_key), jax.random.split(policy_key, episodes)
    rows = []
    with progress.start("collect", episodes) as meter:
        meter.update(0, phase="compiling")
        for n in range(episodes):
            rows.append(_episode(env, act, horizon, key=keys[n], seed=None if n else seed, absorb=absorb))
            meter.update(n + 1, phase="collecting")
    return Trajectory(*(jnp.asarray(np.stack(row)) for row in zip(*rows, strict=True)))


def find_horizon(env: gymnasium.Env, horizon: int | None) -> int:
    """`horizon`, or the environment's own time limit."""
    if horizon is None:
        inner = env.unwrapped
        horizon = inner.task.horizon if isinstance(inner, TaskEnv) else getattr(env.spec, "max_episode_steps", None)
    if horizon is None:
        raise ValueError("The environment has no time limit; pass horizon=, the number of steps of an episode.")
    check_counts("collect", horizon=horizon)
    return horizon


def seed_from(key: PRNGKeyArray) -> int:
    """A seed for `env.reset`."""
    return int(jax.random.randint(key, (), 0, np.iinfo(np.int32).max))


def _episode(env: gymnasium.Env, act: Callable, horizon: int, *, key, seed: int | None, absorb: bool) -> list[np.ndarray]:
    """States (H+1, S), actions (H, A) and rewards (H,) of one episode."""
    _, box = box_spaces(env)
    dtype = jnp.result_type(float)
    states, actions, rewards, ended = [np.asarray(env.reset(seed=seed)[0], dtype)], [], [], False
    _require_finite(states[0], "observation of the reset")
    for t in range(horizon):
        state, reward, action = states[-1], 0.0, np.asarray(act(states[-1], t, key), dtype)
        if action.shape != box.shape:
            raise ValueError(f"The policy must return an action of shape {box.shape}, got {action.shape}.")
        _require_finite(action, f"action of step {t}")
        if not ended:
            scaled = box.low + (action + 1) / 2 * (box.high - box.low)
            state, reward, terminated, truncated, _ = env.step(scaled.astype(box.dtype))
            ended = terminated or truncated
        if ended and t + 1 < horizon and not absorb:
            raise ValueError(
                f"The episode ended at step {t}, but all episodes must have {horizon} steps; pass absorb=True to repeat the last "
                "state with reward 0, make a MuJoCo environment with terminate_when_unhealthy=False, or lower the horizon."
            )
        _require_finite(state, f"observation after step {t}")
        _require_finite(reward, f"reward of step {t}")
        states.append(np.asarray(state, dtype))
        actions.append(action)
        rewards.append(reward)
    return [np.stack(states), np.stack(actions), np.asarray(rewards, dtype)]


def _acting(policy: Policy | np.ndarray, shape: tuple[int, ...]) -> Callable:
    """The policy, or the array of actions, as a function of the state, t and the episode's key."""
    if callable(policy) or isinstance(policy, str):
        fix = "write it as lambda state, t, *, key=None: ..., or pass an array of actions (H, A)"
        check_call("policy", "policy(state, t, *, key)", fix, policy, None, 0, key=None)
        act = compiled(call_policy, policy)
        return lambda state, t, key: act(state, np.asarray(t), key)
    actions = np.asarray(policy)
    if actions.shape != shape:
        raise ValueError(f"An array of actions must have shape {shape}, one row per step; got {actions.shape}.")
    return lambda state, t, key: actions[t]


def _require_finite(values, what: str) -> None:
    values = np.asarray(values)
    if not np.isfinite(values).all():
        bad = values[~np.isfinite(values)][0]
        raise ValueError(f"The {what} is {bad}; fix the environment, or avoid the states where it returns {bad}.")
