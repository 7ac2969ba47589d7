"""The conformance table of every dynamics and every policy. Add one row for a new class, and all conformance tests run on it.

No gradient in the table vanishes, because a vanishing gradient would pass most tests. The linear systems expand by up to 1.2
per step, the passive pendulum is conservative, networks run for few steps from states and actions of size 0.5, and the reward
is quadratic in the states, so that every step and every entry matters.
"""

import jax
import jax.numpy as jnp
import pytest

from awmkit import (
    Anchored,
    AWM,
    Ensemble,
    GaussianHead,
    GaussianPolicy,
    GRU,
    GRUPolicy,
    HWM,
    LinearStateSpace,
    LSTM,
    Markov,
    MLPPolicy,
    RNN,
    Transformer,
)
from awmkit.tasks import (
    BearPopulations,
    Circles,
    CreditAssignment,
    Discretised,
    DoublePendulum,
    DrivenDoublePendulum,
    Henon,
    LinearQuadratic,
    Lorenz,
    OneBounce,
    PartlyObserved,
    PassiveDoublePendulum,
    spiral,
)

HORIZON = 6
LEARNED = 3, 2  # state_size and action_size of the learned models


def _keys(seed: int):
    return jax.random.split(jax.random.key(seed))


def _awm(backbone, **options):
    return AWM(*LEARNED, backbone, **options, key=_keys(1)[0])


def _hwm(backbone, **options):
    return HWM(*LEARNED, backbone, **options, key=_keys(2)[0])


def _noisy():
    A = jnp.array([[1.1, 0.3], [-0.2, 0.9]])
    return LinearQuadratic(A, jnp.array([[0.5], [1.0]]), noise=0.1)


DYNAMICS = {
    "linear, with noise": _noisy,
    "spiral, expanding": lambda: spiral(1.2, 0.7),
    "Henon": Henon,
    "Lorenz": lambda: Lorenz(substeps=2),
    "double pendulum, driven": lambda: DrivenDoublePendulum(HORIZON),
    "double pendulum, passive": lambda: PassiveDoublePendulum(HORIZON, pendulum=DoublePendulum(Circles())),
    "one bounce": OneBounce,
    "credit assignment, hidden": lambda: CreditAssignment(HORIZON, hidden=True, phase=True, reward_noise=0.1),
    "bears, with noise": lambda: Discretised(BearPopulations(), noise=0.01, distractors=1),
    "bears, seen in part": lambda: PartlyObserved(Discretised(BearPopulations(), noise=0.01, distractors=1), (0, 1, 2)),
    "Markov": lambda: Markov(*LEARNED, width=8, horizon=HORIZON, per_step=True, key=_keys(3)[0]),
    "Markov, states": lambda: Markov(*LEARNED, width=8, predict_changes=False, key=_keys(3)[0]),
    "HWM transformer": lambda: _hwm(Transformer(12, 1, 3, key=_keys(4)[1])),
    "HWM GRU": lambda: _hwm(GRU(8, key=_keys(5)[1]), per_step=True),
    "AWM GRU, anchored": lambda: Anchored(_awm(GRU(8, key=_keys(5)[1]), per_step=True), every=4),
    "HWM transformer, anchored": lambda: Anchored(_hwm(Transformer(12, 1, 3, horizon=2, key=_keys(4)[1])), every=2),
    "AWM transformer, learned time": lambda: _awm(Transformer(12, 1, 3, horizon=2 * HORIZON, key=_keys(6)[1])),
    "AWM transformer, rotary time": lambda: _awm(Transformer(12, 2, 3, key=_keys(7)[1]), predict_changes=False),
    "AWM linear state space": lambda: _awm(LinearStateSpace(8, 2, 6, chunk_size=4, key=_keys(11)[1])),
    "AWM RNN": lambda: _awm(RNN(8, key=_keys(8)[1])),
    "AWM LSTM": lambda: _awm(LSTM(8, key=_keys(9)[1])),
    "AWM GRU": lambda: _awm(GRU(8, key=_keys(10)[1]), per_step=True),
    "Markov, Gaussian": lambda: Markov(*LEARNED, width=8, head=GaussianHead, key=_keys(3)[0]),
    "HWM LSTM, Gaussian": lambda: _hwm(LSTM(8, key=_keys(5)[1]), head=GaussianHead),
    "AWM GRU, Gaussian": lambda: _awm(GRU(8, key=_keys(10)[1]), per_step=True, head=GaussianHead),
    "AWM from the linear system": lambda: AWM.from_dynamics(_noisy()),
    "AWM from the pendulum": lambda: AWM.from_dynamics(DrivenDoublePendulum(HORIZON)),
    "ensemble of Markov, by episode": lambda: Ensemble([Markov(*LEARNED, width=4, key=k) for k in _keys(12)], "episode"),
    "ensemble of AWM, by step": lambda: Ensemble([_awm(GRU(4, key=k)) for k in _keys(13)], "step"),
}

POLICIES = {
    "actions": lambda s, a: jnp.clip(0.5 * jax.random.normal(jax.random.key(20), (HORIZON, a)), -1, 1),
    "MLP": lambda s, a: MLPPolicy(s, a, width=8, key=jax.random.key(21)),
    "Gaussian, with time": lambda s, a: GaussianPolicy(s, a, width=8, horizon=HORIZON, key=jax.random.key(22)),
    "GRU": lambda s, a: GRUPolicy(s, a, width=4, key=jax.random.key(23)),
}


def rows(*, slow: tuple[str, ...]):
    """Return the names of all dynamics for `pytest.mark.parametrize`. Those in `slow` run only with `pytest -m slow`."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in slow else name for name in DYNAMICS]


def start(dynamics, seed: int = 0):
    """Return a random state of size about 0.5, or an initial state of the task if it accepts no other states."""
    if isinstance(dynamics, PassiveDoublePendulum | Discretised | PartlyObserved):
        return dynamics.reset(jax.random.key(seed))
    return 0.5 * jax.random.normal(jax.random.key(seed), (dynamics.state_size,))


def reward(state, action, t):
    """Depends on every entry of the state and the action, and on the step."""
    return jnp.sum(state**2) * (1 + 0.1 * jnp.asarray(t, state.dtype)) + jnp.sum(jnp.sin(action))
