"""World models and the sequence networks they are made of."""

from ._awm import AWM as AWM
from ._backbone import AbstractBackbone as AbstractBackbone
from ._fitted import AbstractFitted as AbstractFitted
from ._hwm import HWM as HWM
from ._markov import Markov as Markov
from ._recurrent import GRU as GRU, LSTM as LSTM, RNN as RNN
from ._reward_model import RewardModel as RewardModel
from ._state_space import LinearStateSpace as LinearStateSpace
from ._transformer import Transformer as Transformer
from ._world_model import AbstractWorldModel as AbstractWorldModel
