"""Gymnasium's spaces: the observation space of a task, the Box spaces that awmkit can learn from, and actions in them."""

from typing import Any

import gymnasium
import jax.numpy as jnp
import numpy as np
from gymnasium.spaces import Box

from .._checks import describe, kind
from .._dynamics import AbstractTask


def observation_space(task: AbstractTask, time_aware: bool) -> Box:
    """The task's bounds in float32, followed by those of t if `time_aware`."""
    largest = np.finfo(np.float32).max
    what, fix = f"A bound of {type(task).__name__}.bounds", "give one number for each entry of a state"
    bounds = (real_numbers(bound, (task.state_size,), what=what, fix=fix) for bound in task.bounds)
    low, high = (np.clip(bound.astype(float), -largest, largest).astype(np.float32) for bound in bounds)
    low = np.where(low == high, np.nextafter(low, -largest), low)  # Gymnasium warns of an entry that cannot vary.
    if time_aware:
        low, high = np.append(low, np.float32(0)), np.append(high, np.float32(task.horizon))
    return Box(low, high, dtype=np.float32)


def box_spaces(env: gymnasium.Env) -> tuple[Box, Box]:
    """Return the spaces of observations and actions, or raise if awmkit cannot learn from them."""
    if not isinstance(env, gymnasium.Env):
        raise ValueError(f"env must be one gymnasium.Env, got {kind(env)}; pass one, such as gymnasium.make(id).")
    actions, observations = env.action_space, env.observation_space
    if not isinstance(actions, Box) or len(actions.shape) != 1 or not np.issubdtype(actions.dtype, np.floating):
        raise ValueError(
            f"The action space must be a Box of floating-point numbers of shape (A,), got {_describe(actions)}; "
            f"{_action_fix(actions)}."
        )
    if not (np.isfinite(actions.low).all() and np.isfinite(actions.high).all()):
        raise ValueError(
            "The bounds of the action space must be finite, because actions in [-1, 1] are scaled to them; set finite bounds "
            "with gymnasium.wrappers.TransformAction(env, lambda a: a, gymnasium.spaces.Box(low, high))."
        )
    if not isinstance(observations, Box) or len(observations.shape) != 1:
        raise ValueError(
            f"The observation space must be a Box of shape (S,), got {_describe(observations)}; {_observation_fix(observations)}."
        )
    return observations, actions


def scale_to(box: Box, action: np.ndarray) -> np.ndarray:
    """Map an action in [-1, 1] to the bounds of `box`, in its dtype. The result is inside of the box, -1 and 1 are its bounds."""
    low, high = box.low, box.high
    scaled = 2 * (low / 2 + (action + 1) / 2 * (high / 2 - low / 2))  # Halves, because high - low may overflow.
    if np.abs(action).max() == 1:
        scaled = np.where(action == -1, low, np.where(action == 1, high, scaled))
    return np.minimum(np.maximum(scaled.astype(box.dtype), low), high)  # Rounding may have left the box.


def real_numbers(values: Any, *shapes: tuple[int, ...], what: str, fix: str) -> np.ndarray:
    """Return `values` as an array of its own memory; raise unless they are real numbers of one of the shapes."""
    try:
        numbers = np.array(values)
    except ValueError:  # Rows of different lengths.
        numbers = np.array(None)
    real = numbers.dtype.kind in "biuf" or jnp.issubdtype(numbers.dtype, jnp.floating)  # The second is for bfloat16.
    if numbers.shape not in shapes or not real:
        needed = "one real number" if shapes[0] == () else f"real numbers of shape {shapes[0]}"
        given = describe(values) if np.isscalar(values) else kind(values)
        raise ValueError(f"{what} must be {needed}, got {given}; {fix}.")
    return numbers


def _action_fix(space: gymnasium.Space) -> str:
    wrapper = "gymnasium.wrappers.TransformAction"
    if not isinstance(space, Box):
        return (
            "make the environment with its continuous actions, or compute its actions from A numbers: "
            f"{wrapper}(env, to_action, gymnasium.spaces.Box(-1.0, 1.0, (A,)))"
        )
    if len(space.shape) != 1:
        return f"reshape them: {wrapper}(env, lambda a: a.reshape({space.shape}), gymnasium.spaces.Box(low, high, (A,)))"
    return (
        f"round numbers to them: {wrapper}(env, lambda a: numpy.rint(a).astype({space.dtype!s}), "
        "gymnasium.spaces.Box(low, high, dtype=numpy.float32))"
    )


def _observation_fix(space: gymnasium.Space) -> str:
    if isinstance(space, Box) and space.shape == ():
        return "make it a vector of one entry with gymnasium.wrappers.ReshapeObservation(env, (1,))"
    if (isinstance(space, Box) and len(space.shape) == 3) or not space.is_np_flattenable:
        return "encode the observations as vectors with gymnasium.wrappers.TransformObservation"
    return "flatten the observations with gymnasium.wrappers.FlattenObservation(env)"


def _describe(space: gymnasium.Space) -> str:
    return f"a {type(space).__name__}" + (f" of {space.dtype} of shape {space.shape}" if isinstance(space, Box) else "")
