"""Fit models and train policies, and everything a run needs: replay buffer, checkpoints, logs, ascents."""

from ._checkpoint import load as load, read_header as read_header, save as save, versions as versions
from ._fit import fit as fit, FitResult as FitResult
from ._json_lines import JSONLines as JSONLines
from ._metrics import Metrics as Metrics
from ._model_updates import ModelUpdates as ModelUpdates
from ._replay import Replay as Replay
from ._train import train as train, TrainResult as TrainResult
from ._train_state import TrainState as TrainState
from ._warmup import held_actions as held_actions, uniform_actions as uniform_actions, Warmup as Warmup
from .ascents import (
    AbstractAscent as AbstractAscent,
    Critic as Critic,
    FullHorizon as FullHorizon,
    ShortHorizon as ShortHorizon,
    TargetEntropy as TargetEntropy,
    UpdateInfo as UpdateInfo,
)

__all__ = [
    "AbstractAscent",
    "Critic",
    "fit",
    "FitResult",
    "FullHorizon",
    "held_actions",
    "JSONLines",
    "load",
    "Metrics",
    "ModelUpdates",
    "read_header",
    "Replay",
    "save",
    "ShortHorizon",
    "TargetEntropy",
    "train",
    "TrainResult",
    "TrainState",
    "uniform_actions",
    "UpdateInfo",
    "versions",
    "Warmup",
]
