"""Ascents: ways to improve a policy by the gradient of an imagined return."""

from ._ascent import AbstractAscent as AbstractAscent, UpdateInfo as UpdateInfo
from ._critic import Critic as Critic
from ._full_horizon import FullHorizon as FullHorizon
from ._policy_step import (
    AscentState as AscentState,
    init_ascent_state as init_ascent_state,
    policy_step as policy_step,
    trainable_gradient as trainable_gradient,
)
from ._short_horizon import ShortHorizon as ShortHorizon
from ._target_entropy import TargetEntropy as TargetEntropy

__all__ = [
    "AbstractAscent",
    "AscentState",
    "Critic",
    "FullHorizon",
    "init_ascent_state",
    "policy_step",
    "ShortHorizon",
    "TargetEntropy",
    "trainable_gradient",
    "UpdateInfo",
]
