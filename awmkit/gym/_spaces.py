"""Gymnasium's spaces: the observation space of a task, and the Box spaces that awmkit can learn from."""

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from .._checks import kind
from .._dynamics import AbstractTask


def observation_space(task: AbstractTask, time_aware: bool) -> Box:
    """The task's bounds in float32, followed by those of t if `time_aware`."""
    largest = np.finfo(np.float32).max
    low, high = (np.clip(np.asarray(bound, float), -largest, largest).astype(np.float32) for bound in task.bounds)
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
            f"The action space must be a Box of real numbers of shape (A,), got {_describe(actions)}; make the environment "
            "with its continuous actions, or wrap it in a gymnasium.wrappers.TransformAction that takes such a Box."
        )
    if not (np.isfinite(actions.low).all() and np.isfinite(actions.high).all()):
        raise ValueError(
            "The bounds of the action space must be finite, because actions in [-1, 1] are scaled to them; set finite bounds "
            "with gymnasium.wrappers.TransformAction(env, lambda a: a, gymnasium.spaces.Box(low, high))."
        )
    if not isinstance(observations, Box) or len(observations.shape) != 1:
        images = "encode images with gymnasium.wrappers.TransformObservation, or " if isinstance(observations, Box) else ""
        raise ValueError(
            f"The observation space must be a Box of shape (S,), got {_describe(observations)}; "
            f"{images}flatten the observations with gymnasium.wrappers.FlattenObservation(env)."
        )
    return observations, actions


def _describe(space: gymnasium.Space) -> str:
    return f"a {type(space).__name__}" + (f" of {space.dtype} of shape {space.shape}" if isinstance(space, Box) else "")
