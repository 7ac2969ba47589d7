"""Ascents: ways to improve a policy by the gradient of an imagined return."""

from ._ascent import (
    AbstractAscent as AbstractAscent,
    Critic as Critic,
    FullHorizon as FullHorizon,
    ShortHorizon as ShortHorizon,
    TargetEntropy as TargetEntropy,
    UpdateInfo as UpdateInfo,
)
