"""Backbones: the causal sequence networks inside AWM and HWM."""

from ._attention import AbstractAttention, CuDNNAttention
from ._backbone import AbstractBackbone
from ._recurrent import GRU, LSTM, RNN
from ._state_space import LinearStateSpace
from ._transformer import Transformer

__all__ = ["AbstractAttention", "AbstractBackbone", "CuDNNAttention", "GRU", "LinearStateSpace", "LSTM", "RNN", "Transformer"]
