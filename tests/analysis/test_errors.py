"""Wrong arguments of the analyses: each gives one clear sentence."""

import jax
import jax.numpy as jnp
import pytest
from misuse import says

from awmkit import MLPPolicy, NoProgress, Sequential
from awmkit.analysis import (
    action_jacobian,
    fidelity,
    fit_growth,
    gradient_growth,
    hop_spectrum,
    landscape,
    lyapunov,
    newton_sweeps,
    policy_hop_spectrum,
    report,
    true_gradient,
)
from awmkit.tasks import Henon, LinearQuadratic, spiral

KEY = jax.random.key(0)
SYSTEM = spiral(1.0, 0.3)
STATE, PLAN = jnp.ones(2), jnp.ones((5, 1))
STATES, ACTIONS = jnp.ones((4, 2)), jnp.ones((4, 5, 1))


def reward(state, action, t):
    return jnp.sum(state)


def run_landscape(**options):
    return landscape(SYSTEM, PLAN, STATE, 5, **{"reward": reward, "key": KEY, **options})


def run_true_gradient(policy=PLAN, states=STATES, **options):
    return true_gradient(SYSTEM, policy, states, **{"reward": reward, "key": KEY, "pairs": 4, "horizons": (5,), **options})


def run_growth(states=STATES, actions=ACTIONS, **options):
    return gradient_growth(SYSTEM, states, actions, **options)


def run_report(dynamics=SYSTEM, **options):
    return report(dynamics, STATES, ACTIONS, **{"reward": reward, "key": KEY, "progress": NoProgress(), **options})


MISUSES = {
    # Growth.
    "a law for three horizons": (lambda: fit_growth([1, 2, 3], [1.0, 2.0, 3.0]), r"at least 4 different.*\(3,\)"),
    "a law for a norm of zero": (
        lambda: fit_growth([1, 2, 3, 4], [1.0, 0.0, 1.0, 1.0]),
        "positive and finite, got .*leave out",
    ),
    "a law for words": (lambda: fit_growth(["a"] * 4, [1.0] * 4), "must hold numbers"),
    "fewer actions than starts": (
        lambda: run_growth(actions=ACTIONS[:2]),
        r"\(N, H, 1\), got float64\[4, 2\] and float64\[2, 5, 1\]",
    ),
    "a horizon longer than the actions": (lambda: run_growth(horizons=[1, 2, 3, 9]), r"from 1 to 5.*\[1, 2, 3, 9\]"),
    "growth in three steps": (
        lambda: gradient_growth(SYSTEM, jnp.zeros((2, 2)), jnp.zeros((2, 3, 1))),
        "At least 4 steps are needed.*got 3; pass longer sequences of actions",
    ),
    "a start that is not a number": (
        lambda: newton_sweeps(SYSTEM, PLAN, jnp.zeros((3, 2)).at[2, 1].set(jnp.nan), 5),
        r"states must be finite, got nan at index \[2, 1\]",
    ),
    "growth at three horizons": (lambda: run_growth(horizons=[1, 2, 3]), "at least 4 different whole numbers"),
    "fractional horizons": (lambda: run_growth(horizons=[1.5, 2.5, 3.5, 4.5]), "whole numbers from 1 to 5"),
    "NaN in a start": (lambda: run_growth(STATES.at[2, 1].set(jnp.nan)), r"states must be finite, got nan at index \[2, 1\]"),
    "infinity in the actions": (
        lambda: run_growth(actions=ACTIONS.at[1].set(jnp.inf)),
        r"actions must be finite, got inf at index \[1, 0, 0\]",
    ),
    "growth of no dynamics": (lambda: gradient_growth([], STATES, ACTIONS), "at least one dynamics"),
    "growth of a class": (lambda: gradient_growth(Henon, STATES, ACTIONS), "class Henon"),
    # Jacobians, hops and exponents.
    "actions without an axis of steps": (
        lambda: action_jacobian(SYSTEM, STATE, jnp.ones(5)),
        r"\(H, 1\), got float64\[2\] and float64\[5\]",
    ),
    "an unknown mode": (lambda: action_jacobian(SYSTEM, STATE, PLAN, mode="both"), "'forward', 'reverse' or None.*'both'"),
    "a negative number of hops": (lambda: hop_spectrum(SYSTEM, STATE, PLAN, hops=-1), "hops=-1"),
    "half a hop": (lambda: hop_spectrum(SYSTEM, STATE, PLAN, hops=0.5), "hops=0.5"),
    "a share beyond the largest number of hops": (
        lambda: hop_spectrum(SYSTEM, STATE, PLAN, hops=2).beyond(3),
        "from 0 to 2 for this spectrum, got 3; make one with hops=3",
    ),
    "policy hops of actions": (lambda: policy_hop_spectrum(SYSTEM, PLAN, STATE, 5, reward=reward), "got an array of actions"),
    "hops of a reward without actions": (
        lambda: hop_spectrum(SYSTEM, STATE, PLAN, reward=lambda s: s[0]),
        r"reward\(state, action, t",
    ),
    "too many exponents": (lambda: lyapunov(SYSTEM, STATE, PLAN, count=3), "from 1 to 2.*got 3"),
    "half an exponent": (lambda: lyapunov(SYSTEM, STATE, PLAN, count=1.5), "count=1.5"),
    "no step left for the exponents": (
        lambda: lyapunov(SYSTEM, STATE, PLAN, discard=5),
        "less than the number of steps 5, got 5",
    ),
    "sweeps of another method": (
        lambda: newton_sweeps(SYSTEM, PLAN, STATES, 5, method=Sequential()),
        "got a Sequential; pass method=Newton",
    ),
    "sweeps of one start": (lambda: newton_sweeps(SYSTEM, PLAN, STATE, 5), "pass one row per start"),
    # True gradients, fidelity and landscapes.
    "a true gradient of one start": (lambda: run_true_gradient(states=STATES[:1]), r"at least 2 starts, got float64\[1, 2\]"),
    "a policy without horizons": (
        lambda: run_true_gradient(MLPPolicy(2, 1, width=4, key=KEY), horizons=None),
        r"needs horizons.*pass horizons=\(20, 50\)",
    ),
    "no smoothing": (lambda: run_true_gradient(sigma=0.0), "sigma must be positive, got 0.0"),
    "one pair": (lambda: run_true_gradient(pairs=1), "pairs=1.*at least 2"),
    "a true gradient without a reward": (lambda: run_true_gradient(reward=None), "reward is None|reward must"),
    "a true gradient longer than its actions": (lambda: run_true_gradient(horizons=(7,)), r"from 1 to 5.*got \[7\]"),
    "a name for the true gradient": (
        lambda: fidelity(SYSTEM, "truth"),
        r"TrueGradient, got a str; make one with true_gradient",
    ),
    "fidelity of a model of another size": (
        lambda: fidelity(LinearQuadratic(jnp.eye(3), jnp.ones((3, 1))), run_true_gradient()),
        r"states of shape \(N, 3\), got.*float64\[4, 2\]",
    ),
    "three directions": (lambda: run_landscape(directions=3), "needs 1 or 2 directions.*got 3 directions"),
    "two points": (lambda: run_landscape(points=2), "at least 3 points.*2 points"),
    "a span of zero": (lambda: run_landscape(span=0.0), "positive span.*span=0.0"),
    "a direction of another shape": (
        lambda: run_landscape(directions=[jnp.ones((4, 1))]),
        r"shape \(5, 1\).*got \(4, 1\); make it policy-shaped",
    ),
    "a number for a landscape's key": (lambda: run_landscape(key=0), "key.*0.*jax.random.key"),
    # Reports.
    "a report of no dynamics": (lambda: run_report({}), "at least one dynamics"),
    "a report of a name": (lambda: run_report({"a": "x"}), "dynamics.*a str"),
    "a report of a reward without time": (lambda: run_report(reward=lambda s, a: s[0]), r"reward\(state, action, t"),
    "a legacy key for a report": (lambda: run_report(key=jax.random.PRNGKey(0)), r"uint32\[2\]"),
}


@pytest.mark.parametrize("name", MISUSES)
def test_misuse_raises_one_clear_sentence(name):
    says(*MISUSES[name])
