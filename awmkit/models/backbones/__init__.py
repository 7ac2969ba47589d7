"""Backbones: the causal sequence networks that AWM and HWM predict with."""

from ._backbone import AbstractBackbone as AbstractBackbone
from ._recurrent import GRU as GRU, LSTM as LSTM, RNN as RNN
from ._state_space import LinearStateSpace as LinearStateSpace
from ._transformer import Transformer as Transformer
