"""World models, reward models, and the sequence networks they are made of."""

from ._awm import AWM as AWM
from ._hwm import HWM as HWM
from ._markov import Markov as Markov
from ._reward_model import RewardModel as RewardModel
from ._trainable import AbstractTrainable as AbstractTrainable
from ._world_model import AbstractWorldModel as AbstractWorldModel
from .backbones import (
    AbstractBackbone as AbstractBackbone,
    GRU as GRU,
    LinearStateSpace as LinearStateSpace,
    LSTM as LSTM,
    RNN as RNN,
    Transformer as Transformer,
)
