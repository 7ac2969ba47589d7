"""Backbones: the causal sequence networks inside AWM and HWM."""

from ._attention import AbstractAttention as AbstractAttention, CuDNNAttention as CuDNNAttention
from ._backbone import AbstractBackbone as AbstractBackbone
from ._recurrent import GRU as GRU, LSTM as LSTM, RNN as RNN
from ._state_space import LinearStateSpace as LinearStateSpace
from ._transformer import Transformer as Transformer

__all__ = ["AbstractAttention", "AbstractBackbone", "CuDNNAttention", "GRU", "LinearStateSpace", "LSTM", "RNN", "Transformer"]
