"""awmkit: policy gradients through world models and differentiable simulators, with every gradient path named."""

from ._ascent import Critic as Critic, ShortUnroll as ShortUnroll, TargetEntropy as TargetEntropy, WholeEpisode as WholeEpisode
from ._bpo import bpo as bpo, BPOResult as BPOResult
from ._checkpoint import load as load, save as save, versions as versions
from ._dynamics import AbstractDynamics as AbstractDynamics, AbstractTask as AbstractTask
from ._fit import Fit as Fit, fit as fit
from ._learner import (
    Fitting as Fitting,
    Metrics as Metrics,
    steady_actions as steady_actions,
    uniform_actions as uniform_actions,
    Warmup as Warmup,
)
from ._log import JSONLines as JSONLines
from ._methods import Parallel as Parallel, Picard as Picard, Sequential as Sequential
from ._normaliser import Normaliser as Normaliser
from ._paths import BPO as BPO, Paths as Paths
from ._policies import GaussianPolicy as GaussianPolicy, MLPPolicy as MLPPolicy
from ._progress import Progress as Progress
from ._replay import Replay as Replay
from ._reward import Transition as Transition
from ._trajectory import Trajectory as Trajectory
from ._unroll import unroll as unroll, unroll_grad as unroll_grad
from .models import (
    AWM as AWM,
    GRU as GRU,
    HWM as HWM,
    LinearStateSpace as LinearStateSpace,
    LSTM as LSTM,
    Markov as Markov,
    RewardModel as RewardModel,
    RNN as RNN,
    Transformer as Transformer,
)

__version__ = "0.1.0"
