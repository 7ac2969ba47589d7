"""Soft actor-critic and PPO, model-free baselines by rejax (`pip install "awmkit[baselines]"`)."""

try:
    import rejax as _rejax  # noqa: F401
except ImportError as error:
    raise ImportError(f'awmkit.baselines needs rejax ({error}); run pip install "awmkit[baselines]".') from error

from ._environment import FunctionalEnv as FunctionalEnv
from ._learn import Baseline as Baseline
from ._ppo import ppo as ppo
from ._sac import sac as sac

__all__ = ["Baseline", "FunctionalEnv", "ppo", "sac"]
