"""awmkit: policy gradients through world models and differentiable simulators, with every gradient path named."""

from ._dynamics import AbstractDynamics as AbstractDynamics, AbstractTask as AbstractTask
from ._normaliser import Normaliser as Normaliser
from ._paths import BPO as BPO, Paths as Paths
from ._policies import AbstractPolicy as AbstractPolicy, GaussianPolicy as GaussianPolicy, MLPPolicy as MLPPolicy
from ._progress import (
    AbstractMeter as AbstractMeter,
    AbstractProgress as AbstractProgress,
    NoProgress as NoProgress,
    TqdmProgress as TqdmProgress,
)
from ._trajectory import Trajectory as Trajectory
from ._unroll import unroll as unroll, unroll_grad as unroll_grad
from .learning import (
    AbstractAscent as AbstractAscent,
    Critic as Critic,
    fit as fit,
    FitResult as FitResult,
    FullHorizon as FullHorizon,
    held_actions as held_actions,
    JSONLines as JSONLines,
    load as load,
    Metrics as Metrics,
    ModelUpdates as ModelUpdates,
    Replay as Replay,
    save as save,
    ShortHorizon as ShortHorizon,
    TargetEntropy as TargetEntropy,
    train as train,
    TrainResult as TrainResult,
    uniform_actions as uniform_actions,
    UpdateInfo as UpdateInfo,
    versions as versions,
    Warmup as Warmup,
)
from .methods import (
    AbstractMethod as AbstractMethod,
    Parallel as Parallel,
    Picard as Picard,
    Sequential as Sequential,
)
from .models import (
    AbstractAttention as AbstractAttention,
    AbstractBackbone as AbstractBackbone,
    AbstractTrainable as AbstractTrainable,
    AbstractWorldModel as AbstractWorldModel,
    AWM as AWM,
    CuDNNAttention as CuDNNAttention,
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
