"""Ascents: ways to improve a policy by the gradient of an imagined return."""

from .._sweep import number
from ._ascent import AbstractAscent, UpdateInfo
from ._critic import Critic
from ._full_horizon import FullHorizon
from ._policy_step import AscentState, init_ascent_state, policy_step, trainable_gradient
from ._short_horizon import ShortHorizon
from ._target_entropy import TargetEntropy

__all__ = [
    "AbstractAscent",
    "AscentState",
    "Critic",
    "FullHorizon",
    "init_ascent_state",
    "number",
    "policy_step",
    "ShortHorizon",
    "TargetEntropy",
    "trainable_gradient",
    "UpdateInfo",
]
