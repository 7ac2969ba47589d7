"""Fit models and train policies, and everything a run needs: replay buffer, checkpoints, logs, ascents."""

from .._fingerprint import fingerprint
from ._checkpoint import load, read_header, save, versions
from ._episode_files import load_episodes, save_episodes
from ._evaluate import evaluate, Evaluation
from ._fit import fit, FitResult
from ._improve import improve, ImproveResult
from ._json_lines import JSONLines
from ._metrics import Metrics
from ._model_updates import ModelUpdates
from ._optimiser import Optimiser
from ._planner import Planner
from ._prediction_error import prediction_error, PredictionError
from ._replay import Replay
from ._search import AbstractSearch, CEM, GradientSearch
from ._train import train, TrainResult
from ._train_state import TrainState
from ._warmup import held_actions, pink_actions, uniform_actions, Warmup
from .ascents import AbstractAscent, Critic, FullHorizon, ShortHorizon, TargetEntropy, UpdateInfo

__all__ = [
    "AbstractAscent",
    "AbstractSearch",
    "CEM",
    "Critic",
    "evaluate",
    "Evaluation",
    "fingerprint",
    "fit",
    "FitResult",
    "FullHorizon",
    "GradientSearch",
    "held_actions",
    "improve",
    "ImproveResult",
    "JSONLines",
    "load",
    "load_episodes",
    "Metrics",
    "ModelUpdates",
    "Optimiser",
    "pink_actions",
    "Planner",
    "prediction_error",
    "PredictionError",
    "read_header",
    "Replay",
    "save",
    "save_episodes",
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
