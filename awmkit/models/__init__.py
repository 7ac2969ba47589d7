"""World models, reward models and the sequence networks inside them."""

from ._awm import AWM as AWM
from ._hwm import HWM as HWM
from ._markov import Markov as Markov
from ._reward_model import RewardModel as RewardModel
from ._trainable import AbstractTrainable as AbstractTrainable
from ._world_model import AbstractWorldModel as AbstractWorldModel
from .backbones import (
    AbstractAttention as AbstractAttention,
    AbstractBackbone as AbstractBackbone,
    CuDNNAttention as CuDNNAttention,
    GRU as GRU,
    LinearStateSpace as LinearStateSpace,
    LSTM as LSTM,
    RNN as RNN,
    Transformer as Transformer,
)

__all__ = [
    "AbstractAttention",
    "AbstractBackbone",
    "AbstractTrainable",
    "AbstractWorldModel",
    "AWM",
    "CuDNNAttention",
    "GRU",
    "HWM",
    "LinearStateSpace",
    "LSTM",
    "Markov",
    "RewardModel",
    "RNN",
    "Transformer",
]
