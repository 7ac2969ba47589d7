"""Learning: fit models, improve policies, and everything a run needs on the way."""

from ._checkpoint import load as load, save as save, versions as versions
from ._fit import fit as fit, FitResult as FitResult
from ._json_lines import JSONLines as JSONLines
from ._replay import Replay as Replay
from ._train import train as train, TrainResult as TrainResult
from ._train_state import (
    held_actions as held_actions,
    Metrics as Metrics,
    ModelUpdates as ModelUpdates,
    uniform_actions as uniform_actions,
    Warmup as Warmup,
)
from .ascents import (
    AbstractAscent as AbstractAscent,
    Critic as Critic,
    FullHorizon as FullHorizon,
    ShortHorizon as ShortHorizon,
    TargetEntropy as TargetEntropy,
    UpdateInfo as UpdateInfo,
)
