"""Model-free baselines, by rejax (`pip install "awmkit[baselines]"`)."""

from ._baselines import Baseline as Baseline, FunctionalEnv as FunctionalEnv, ppo as ppo, sac as sac
