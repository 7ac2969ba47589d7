"""Policy gradients through world models and differentiable simulators, with every gradient path named.

Public names, by topic. `help(awmkit.NAME)` says the rest.

| topic | names |
| --- | --- |
| run a policy and differentiate its return | `unroll`, `unroll_grad`, `Trajectory` |
| episodes of your own | `load_episodes`, `save_episodes`, `scale_actions`, `unscale_actions` |
| which edges carry gradient | `Paths`, `BPO` |
| how the gradient is computed | `Sequential`, `Parallel`, `Picard`, `Newton` |
| policies | `MLPPolicy`, `GaussianPolicy`, `GRUPolicy` |
| world models | `AWM`, `HWM`, `Markov`, `Anchored`, `Normaliser`; with a standard deviation: `GaussianHead`, `Gaussian` |
| several models as one | `Ensemble`, `PessimisticReward` |
| sequence networks of AWM and HWM | `Transformer`, `CuDNNAttention`, `LinearStateSpace`, `RNN`, `LSTM`, `GRU` |
| fit a world model, a simulator, a reward or a termination | `fit`, `FitResult`, `RewardModel`, `TerminationModel` |
| measure a model, a policy | `prediction_error`, `PredictionError`, `evaluate`, `Evaluation` |
| train a policy | `train`, `TrainResult`, `Metrics`, `Warmup`, `uniform_actions`, `held_actions`, `pink_actions`, `ModelUpdates` |
| plan in a model | `Planner`, `GradientSearch`, `CEM` |
| improve a policy in a model | `improve`, `ImproveResult`, `FullHorizon`, `ShortHorizon`, `Critic`, `TargetEntropy`, `UpdateInfo` |
| optimisers whose numbers are arrays, and sweeps | `Optimiser` |
| store, save, log, show progress | `Replay`, `save`, `load`, `versions`, `JSONLines`, `TqdmProgress`, `NoProgress` |
| to subclass | `AbstractDynamics`, `AbstractTask`, `AbstractWorldModel`, `AbstractTrainable`, `AbstractBackbone`, `AbstractAttention`, `AbstractPolicy`, `AbstractMethod`, `AbstractAscent`, `AbstractSearch`, `AbstractProgress`, `AbstractMeter` |

| module | contents |
| --- | --- |
| `awmkit.tasks` | problems given by equations: pendulums, one bounce, credit assignment, Myriad, probes |
| `awmkit.analysis` | where the gradient goes: growth, hops, Lyapunov exponents, fidelity, landscapes, one report |
| `awmkit.plot` | figures of the analyses |
| `awmkit.scores` | gap closed, interquartile means, intervals |
| `awmkit.gym` | Gymnasium, both ways (`pip install "awmkit[gym]"`) |
| `awmkit.mjx` | MuJoCo bodies (`pip install "awmkit[mjx]"`) |
| `awmkit.baselines` | SAC and PPO (`pip install "awmkit[baselines]"`) |
| `awmkit.learning.minari` | data sets of Minari (`pip install "awmkit[data]"`) |
| `awmkit.learning.tensorboard` | curves for TensorBoard (`pip install "awmkit[tensorboard]"`) |
"""

from ._bounds import scale_actions, unscale_actions
from ._dynamics import AbstractDynamics, AbstractTask
from ._normaliser import Normaliser
from ._paths import BPO, Paths
from ._policies import AbstractPolicy, GaussianPolicy, GRUPolicy, MLPPolicy
from ._progress import AbstractMeter, AbstractProgress, NoProgress, TqdmProgress
from ._trajectory import Trajectory
from ._unroll import unroll, unroll_grad
from .learning import (
    AbstractAscent,
    AbstractSearch,
    CEM,
    Critic,
    evaluate,
    Evaluation,
    fit,
    FitResult,
    FullHorizon,
    GradientSearch,
    held_actions,
    improve,
    ImproveResult,
    JSONLines,
    load,
    load_episodes,
    Metrics,
    ModelUpdates,
    Optimiser,
    pink_actions,
    Planner,
    prediction_error,
    PredictionError,
    Replay,
    save,
    save_episodes,
    ShortHorizon,
    TargetEntropy,
    train,
    TrainResult,
    uniform_actions,
    UpdateInfo,
    versions,
    Warmup,
)
from .methods import AbstractMethod, Newton, Parallel, Picard, Sequential
from .models import (
    AbstractAttention,
    AbstractBackbone,
    AbstractTrainable,
    AbstractWorldModel,
    Anchored,
    AWM,
    CuDNNAttention,
    Ensemble,
    Gaussian,
    GaussianHead,
    GRU,
    HWM,
    LinearStateSpace,
    LSTM,
    Markov,
    PessimisticReward,
    RewardModel,
    RNN,
    TerminationModel,
    Transformer,
)

__all__ = [
    "AbstractAscent",
    "AbstractAttention",
    "AbstractBackbone",
    "AbstractDynamics",
    "AbstractMeter",
    "AbstractMethod",
    "AbstractPolicy",
    "AbstractProgress",
    "AbstractSearch",
    "AbstractTask",
    "AbstractTrainable",
    "AbstractWorldModel",
    "Anchored",
    "AWM",
    "BPO",
    "CEM",
    "Critic",
    "CuDNNAttention",
    "Ensemble",
    "evaluate",
    "Evaluation",
    "fit",
    "FitResult",
    "FullHorizon",
    "Gaussian",
    "GaussianHead",
    "GaussianPolicy",
    "GradientSearch",
    "GRU",
    "GRUPolicy",
    "held_actions",
    "HWM",
    "improve",
    "ImproveResult",
    "JSONLines",
    "LinearStateSpace",
    "load",
    "load_episodes",
    "LSTM",
    "Markov",
    "Metrics",
    "MLPPolicy",
    "ModelUpdates",
    "Optimiser",
    "Newton",
    "NoProgress",
    "Normaliser",
    "Parallel",
    "Paths",
    "PessimisticReward",
    "Picard",
    "pink_actions",
    "Planner",
    "prediction_error",
    "PredictionError",
    "Replay",
    "RewardModel",
    "RNN",
    "save",
    "save_episodes",
    "scale_actions",
    "Sequential",
    "ShortHorizon",
    "TargetEntropy",
    "TerminationModel",
    "TqdmProgress",
    "train",
    "TrainResult",
    "Trajectory",
    "Transformer",
    "uniform_actions",
    "unroll",
    "unroll_grad",
    "unscale_actions",
    "UpdateInfo",
    "versions",
    "Warmup",
]

__version__ = "0.1.0"
