"""The report of several dynamics: tables, JSON and figures; none but the figures need an optional package."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from mixed import Mixed

from awmkit import AbstractDynamics, analysis, AWM, LSTM, MLPPolicy, NoProgress
from awmkit.analysis import (
    action_jacobian,
    fidelity,
    gradient_growth,
    hop_spectrum,
    landscape,
    lyapunov,
    newton_sweeps,
    policy_hop_spectrum,
    report,
    true_gradient,
)

KEY = jax.random.key(0)
MIXED = Mixed(0.6, 0.6)
STATES, ACTIONS = jax.random.normal(KEY, (4, 1)), 0.5 * jax.random.normal(KEY, (4, 16, 1))


def reward(state, action, t):
    return -jnp.sum(state**2) - 0.1 * jnp.sum(action**2)


@pytest.fixture(scope="module")
def result():
    dynamics = {"mixed": MIXED, "LSTM": AWM(1, 1, LSTM(4, key=KEY), key=KEY)}
    return report(dynamics, STATES, ACTIONS, reward=reward, truth=MIXED, key=KEY, pairs=64, progress=NoProgress())


def test_a_report_has_the_known_growth_hops_exponents_and_fidelity(result):
    mixed, lstm = result.entries["mixed"], result.entries["LSTM"]
    assert mixed.state_growth.law.law == "exponential" and abs(mixed.state_growth.law.rate - jnp.log(1.2)) < 1e-6
    assert jnp.allclose(mixed.hops.weights.sum(axis=1), 1) and (mixed.hops.mean > 3).all() and (lstm.hops.mean == 0).all()
    assert jnp.allclose(mixed.exponents.exponents, jnp.log(1.2), atol=0.05)
    assert jnp.allclose(mixed.fidelity.exact.cosine.value, 1) and set(mixed.seconds) >= {"hops", "landscape", "fidelity"}


def test_a_report_prints_tables_and_stores_raw_values_as_json(result):
    text = str(result)
    assert (
        "exp(0.182 H)" in text
        and "mixed" in text
        and "LSTM" in text
        and "H = 16" in text
        and max(map(len, text.split("\n"))) < 180
    )
    record = json.loads(result.json())
    assert record["entries"]["mixed"]["state_growth"]["law"]["law"] == "exponential"
    assert len(record["entries"]["LSTM"]["landscape"]["values"]) == 401 and record["versions"]["jax"]
    assert record["setting"]["horizon"] == 16 and len(record["truth"]["ceiling"]) == len(record["setting"]["fidelity_horizons"])


def test_every_result_can_be_drawn(result):
    pytest.importorskip("matplotlib").use("Agg")
    from awmkit import plot

    figure = plot.report(result)
    assert len(figure.axes) == 6 and all(axes.lines or axes.containers for axes in figure.axes)
    alone = report(MIXED, STATES, ACTIONS, reward=reward, key=KEY, progress=NoProgress())
    assert "Mixed" in str(alone) and alone.truth is None and plot.report(alone)
    runaway = report({"runaway": Mixed(1e40, 0.0)}, STATES, ACTIONS, reward=reward, key=KEY, progress=NoProgress())
    assert "not finite" in str(runaway) and plot.report(runaway) and runaway.json()
    labels = lambda axes: axes.get_legend_handles_labels()[1]
    assert "exp(0.182 H)" in labels(plot.growth(alone.entries["Mixed"].state_growth))[0]
    state, actions = STATES[0], ACTIONS[0]
    assert plot.jacobian({"a": action_jacobian(MIXED, state, actions)}).lines
    assert plot.hops(hop_spectrum(MIXED, state, actions)).lines
    assert plot.exponents(lyapunov(MIXED, state, actions, count=2)).lines
    square = landscape(MIXED, actions, state, 16, reward=reward, directions=2, points=5, key=KEY)
    assert plot.landscape(square).collections
    assert plot.fidelity(result.entries["mixed"].fidelity).containers
    plot.plt.close("all")


TRACES = []


class Counted(AbstractDynamics):
    """A dynamics that counts how often its step is traced."""

    state_size: int = 1
    action_size: int = 1

    def init(self, state, horizon):
        return None

    def step(self, carry, state, action, t, *, key=None):
        TRACES.append(t)
        return carry, 1.1 * jnp.sin(state) + action


COUNTED, POLICY = Counted(), MLPPolicy(1, 1, width=4, key=KEY)
ANALYSES = {
    "jacobian": lambda s, a: action_jacobian(COUNTED, s[0], a[0]),
    "hops of states": lambda s, a: hop_spectrum(COUNTED, s[0], a[0]),
    "hops of the return": lambda s, a: hop_spectrum(COUNTED, s[0], a[0], reward=reward),
    "hops of the policy": lambda s, a: policy_hop_spectrum(COUNTED, POLICY, s[0], 16, reward=reward),
    "growth of states": lambda s, a: gradient_growth(COUNTED, s, a),
    "growth of the return": lambda s, a: gradient_growth(COUNTED, s, a, reward=reward),
    "exponents": lambda s, a: lyapunov(COUNTED, s[0], a[0]),
    "sweeps of Newton": lambda s, a: newton_sweeps(COUNTED, a[0], s, 16),
    "fidelity": lambda s, a: fidelity(COUNTED, true_gradient(COUNTED, a[0], s, reward=reward, key=KEY, pairs=8)),
    "landscape": lambda s, a: landscape(COUNTED, a[0], s[0], 16, reward=reward, key=KEY, points=5),
}


@pytest.mark.parametrize("name", ANALYSES)
def test_an_analysis_is_compiled_once_for_each_shape(name):
    ANALYSES[name](STATES, ACTIONS)
    traces = len(TRACES)
    ANALYSES[name](STATES + 1, ACTIONS / 2)
    assert len(TRACES) == traces > 0


def test_every_analysis_has_a_row():
    public = {name for name, thing in vars(analysis).items() if callable(thing) and name.islower()}
    called = {name for run in ANALYSES.values() for name in run.__code__.co_names}
    assert public - called == {"fit_growth", "report"}  # The first compiles nothing; the second calls the others.


def test_analyses_need_neither_matplotlib_nor_gymnasium_nor_mujoco():
    code = """
import sys
for name in ("matplotlib", "gymnasium", "mujoco"):
    sys.modules[name] = None  # importing it is an error
import jax, jax.numpy as jnp
from awmkit.analysis import report
from awmkit.tasks import spiral
task = spiral(1.1, 0.3)
result = report(task, jnp.ones((3, 2)), jnp.ones((3, 8, 1)), reward=task.reward, truth=task, key=jax.random.key(0), pairs=32)
assert "exp(0.0953 H)" in str(result), str(result)
assert result.json()
try:
    import awmkit.plot
except ImportError:
    print("done")
"""
    env = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert run.stdout.strip() == "done", run.stderr
