"""Collect whole episodes from any Gymnasium environment, to fit world models to."""

import re
import weakref
from collections.abc import Callable
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from .._checks import check_call, check_counts, check_key, kind
from .._policies import memory_of
from .._progress import AbstractProgress, check_progress, TqdmProgress
from .._trajectory import Trajectory
from ..methods import Policy
from ._programs import call_policy, compiled
from ._spaces import box_spaces, real_numbers, scale_to
from ._task_env import TaskEnv


def collect(
    env: gymnasium.Env,
    policy: Policy | np.ndarray,
    episodes: int | None = None,
    *,
    steps: int | None = None,
    horizon: int | None = None,
    key: PRNGKeyArray | None = None,
    progress: AbstractProgress = TqdmProgress(),
) -> Trajectory:
    """Collect whole episodes of a policy in any Gymnasium environment with Box spaces. Episodes may end early.

    ```python
    episodes = collect(gymnasium.make("Pendulum-v1"), policy, 20, key=key)
    model = fit(AWM(3, 1, key=k1), episodes, key=k2).model
    ```

    States are the environment's observations. Make awmkit's own environments with `time_aware=False`, so that t is no part of
    the state.

    **Arguments**

    - `env`: one environment, not a vectorised one.
    - `policy`: called as `policy(state, t, *, key)`, returns an action in [-1, 1], shape (A,), which is scaled to the bounds of
      the environment's action space. JAX traces and compiles it once, so it draws random numbers from `key`, and does not see a
      global variable that changes later. Or an array of actions, shape (H, A). The trajectory holds the actions in [-1, 1].
    - `episodes`: the number of episodes, N.
    - `steps`: instead of `episodes`, a number of environment steps: collect whole episodes until they have at least this many.
    - `horizon`: the largest number of steps of an episode, H. By default the environment's own time limit. An episode of H steps
      is truncated.
    - `key`: seeds the first reset of the environment, and the policy. Without a key the environment continues with its own random
      numbers, and a Gaussian policy takes its mode.
    - `progress`: the meter: `TqdmProgress()` shows a bar on stderr, `NoProgress()` shows nothing.

    **Returns:** an `awmkit.Trajectory` of N episodes in JAX's default float, padded to the longest. `length` is the number of
    steps of each, and `terminated` whether the environment ended it; otherwise it was truncated. Both are `None` if all episodes
    have one length and none terminated.

    **Raises:** `ValueError` if a space is not a Box of numbers, if an action bound is infinite, if there is no horizon, if the
    policy draws random numbers outside of JAX, if an action has the wrong shape or is outside of [-1, 1], if the environment does
    not return what its spaces and Gymnasium's interface say, if an observation, action or reward is not finite, and unless one of
    `episodes` and `steps` is given.
    """
    _, actions = box_spaces(env)
    horizon = find_horizon(env, horizon)
    check_counts("collect", episodes=episodes, steps=steps)
    if (episodes is None) == (steps is None):
        raise ValueError(f"collect got episodes={episodes} and steps={steps}; give the number of one of them.")
    check_progress(progress)
    remember, act = _acting(policy, (horizon, *actions.shape))
    total: Any = episodes if steps is None else steps
    seed, keys = None, [None] * total  # Enough for `steps` too: an episode has at least one step.
    if key is not None:
        check_key("collect", key, several="call collect once for each")
        seed_key, policy_key = jax.random.split(key)
        seed, keys = seed_from(seed_key), jax.random.split(policy_key, total)
    rows, done = [], 0
    with progress.start("collect", total) as meter:
        meter.update(0, phase="compiling")
        while done < total:
            n = len(rows)
            rows.append(_episode(env, remember(), act, horizon, key=keys[n], seed=None if n else seed))
            done += 1 if steps is None else len(rows[n]["actions"])
            meter.update(min(done, total), phase="collecting")
    found = Trajectory.from_episodes(rows)
    if any(row["terminated"] or len(row["actions"]) < found.horizon for row in rows):
        return found
    return Trajectory(found.states, found.actions, found.rewards)


def find_horizon(env: gymnasium.Env, horizon: int | None) -> int:
    """`horizon`, or the tightest time limit of the environment and its wrappers."""
    if horizon is None:
        layers = [env]
        while isinstance(layers[-1], gymnasium.Wrapper):
            layers.append(layers[-1].env)
        limits = [getattr(layer.spec, "max_episode_steps", None) for layer in layers]
        limits.append(layers[-1].task.horizon if isinstance(layers[-1], TaskEnv) else None)
        horizon = min((limit for limit in limits if limit is not None), default=None)
    if horizon is None:
        raise ValueError("The environment has no time limit; pass horizon=, the largest number of steps of an episode.")
    check_counts("collect", horizon=horizon)
    return horizon


def seed_from(key: PRNGKeyArray) -> int:
    """A seed for `env.reset`."""
    return int(jax.random.randint(key, (), 0, np.iinfo(np.int32).max))


def reset(env: gymnasium.Env, seed: int | None) -> np.ndarray:
    """Reset the environment. Returns a copy of the observation, shape (S,)."""
    returned = env.reset(seed=seed)
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise ValueError(
            f"env.reset must return (observation, info), got {_tuple(returned)}; an environment of the old Gym interface can be "
            "wrapped by the package shimmy."
        )
    space: Any = env.observation_space
    return _finite(returned[0], space.shape, "observation of the reset")


def step(env: gymnasium.Env, action: np.ndarray, t: int) -> tuple[np.ndarray, float, bool, bool]:
    """Make step t. Returns a copy of the observation, shape (S,), the reward, and whether the episode terminated, was truncated."""
    returned = env.step(action)
    if not isinstance(returned, tuple) or len(returned) != 5:
        raise ValueError(
            f"env.step must return (observation, reward, terminated, truncated, info), got {_tuple(returned)}; an environment of "
            "the old Gym interface can be wrapped by the package shimmy."
        )
    space: Any = env.observation_space
    observation, reward, terminated, truncated, _ = returned
    observation = _finite(observation, space.shape, f"observation after step {t}")
    reward = _finite(reward, (), f"reward of step {t}")
    for name, flag in ("terminated", terminated), ("truncated", truncated):
        if not isinstance(flag, bool) and (np.shape(flag) != () or flag not in (False, True)):
            raise ValueError(f"{name} of step {t} must be True or False, got {kind(flag)}; fix env.step.")
    return observation, reward.item(), bool(terminated), bool(truncated)


def _episode(env: gymnasium.Env, memory, act: Callable, horizon: int, *, key, seed: int | None) -> dict[str, Any]:
    """States (n+1, S), actions (n, A) and rewards (n,) of one episode, and whether the environment terminated it."""
    _, box = box_spaces(env)
    dtype, states, actions, rewards = _float(), [reset(env, seed)], [], []
    terminated = truncated = False
    while len(actions) < horizon and not (terminated or truncated):
        t = len(actions)
        memory, action = act(memory, states[-1], t, key)
        action = np.array(action, dtype)
        if action.shape != box.shape:
            raise ValueError(f"The policy must return an action of shape {box.shape}, got {action.shape}.")
        _require_finite(action, f"action of step {t}")
        if np.abs(action).max() > 1:
            raise ValueError(
                f"The policy must return actions in [-1, 1], which are scaled to the bounds of the action space, got {action} at "
                f"step {t}; divide by the bounds, or clip with jnp.clip(action, -1, 1)."
            )
        state, reward, terminated, truncated = step(env, scale_to(box, action), t)
        states.append(state)
        actions.append(action)
        rewards.append(reward)
    return {
        "states": np.stack(states),
        "actions": np.stack(actions),
        "rewards": np.array(rewards, dtype),
        "terminated": terminated,
    }


def _acting(policy: Policy | np.ndarray, shape: tuple[int, ...]) -> tuple[Callable, Callable]:
    """Return two functions for the policy, or the array of actions: its memory before an episode; and its new memory and action
    from the memory, the state, t and the episode's key."""
    if callable(policy) or isinstance(policy, str):
        fix = "write it as lambda state, t, *, key=None: ..., or pass an array of actions (H, A)"
        check_call("policy", "policy(state, t, *, key)", fix, policy, None, 0, key=None)
        act = compiled(call_policy, policy)

        def checked(memory, state, t, key):
            if act.program not in _REPEATABLE:
                _check_repeatable(policy, memory, state, t, key)
                _REPEATABLE.add(act.program)
            return act(memory, state, np.asarray(t), key)

        return compiled(memory_of, policy), checked
    actions = real_numbers(policy, shape, what="An array of actions", fix="give one row per step")
    return lambda: None, lambda memory, state, t, key: (None, actions[t])


_REPEATABLE = weakref.WeakSet()  # Compiled policies that have been checked.


def _check_repeatable(policy: Any, memory, state: np.ndarray, t: int, key: PRNGKeyArray | None) -> None:
    """Raise if a policy changes each time that JAX traces it, as one that draws from NumPy does."""
    programs = [jax.make_jaxpr(lambda *args: call_policy(policy, *args))(memory, state, np.asarray(t), key) for _ in range(2)]
    text = [re.sub("0x[0-9a-f]+", "", str(program)) for program in programs]  # Some primitives show the address of a function.
    constants = [[np.asarray(_plain(x)) for x in program.consts] for program in programs]
    if text[0] != text[1] or not all(
        np.array_equal(x, y, equal_nan=x.dtype.kind in "fc") for x, y in zip(*constants, strict=True)
    ):
        raise ValueError(
            "The policy gives other numbers each time that JAX traces it, as one that draws from NumPy does; once compiled, it would "
            "repeat the first ones at every step. Draw random numbers from its argument key with jax.random, or pass an array of "
            "actions."
        )


def _plain(x: Any) -> Any:
    """Return a key as the array of numbers that it is, and any other array unchanged."""
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def _finite(values: Any, shape: tuple[int, ...], what: str) -> np.ndarray:
    """Return a copy in JAX's default float; raise unless they are finite real numbers of this shape.

    Environments may fill one array again at every step, so nothing of theirs is kept.
    """
    numbers = real_numbers(values, shape, what=f"The {what}", fix="fix the environment or its space").astype(_float())
    _require_finite(numbers, what)
    return numbers


def _float() -> np.dtype:
    """JAX's default float. `jnp.result_type(float)` takes as long as a step of a small environment."""
    return jax.dtypes.canonicalize_dtype(float)


def _tuple(returned: Any) -> str:
    return f"a tuple of {len(returned)}" if isinstance(returned, tuple) else kind(returned)


def _require_finite(values: np.ndarray, what: str) -> None:
    if not np.isfinite(values).all():
        bad = values[~np.isfinite(values)][0]
        raise ValueError(f"The {what} is {bad}; fix the environment, or avoid the states where it returns {bad}.")
