"""World models, reward models, termination models and the sequence networks inside them."""

from ._anchored import Anchored
from ._awm import AWM
from ._ensemble import Ensemble, PessimisticReward
from ._gaussian import Gaussian, GaussianHead
from ._hwm import HWM
from ._markov import Markov
from ._reward_model import RewardModel
from ._termination_model import TerminationModel
from ._trainable import AbstractTrainable
from ._world_model import AbstractWorldModel
from .backbones import AbstractAttention, AbstractBackbone, CuDNNAttention, GRU, LinearStateSpace, LSTM, RNN, Transformer

__all__ = [
    "AbstractAttention",
    "AbstractBackbone",
    "AbstractTrainable",
    "AbstractWorldModel",
    "Anchored",
    "AWM",
    "CuDNNAttention",
    "Ensemble",
    "Gaussian",
    "GaussianHead",
    "GRU",
    "HWM",
    "LinearStateSpace",
    "LSTM",
    "Markov",
    "PessimisticReward",
    "RewardModel",
    "RNN",
    "TerminationModel",
    "Transformer",
]
