"""Soft actor-critic and PPO, model-free baselines by rejax (`pip install "awmkit[baselines]"`)."""

try:
    import rejax
except ImportError as error:
    raise ImportError(f'awmkit.baselines needs rejax ({error}); run pip install "awmkit[baselines]".') from error
else:
    del rejax  # Imported only to see that it is installed.

from ._environment import FunctionalEnv
from ._learn import Baseline
from ._ppo import ppo
from ._sac import sac

__all__ = ["Baseline", "FunctionalEnv", "ppo", "sac"]
