"""How long does each analysis take, and how much memory, for 200 steps of 4 states and 2 actions?

    python examples/benchmarks/analysis_cost.py               10 minutes on two cores
    python examples/benchmarks/analysis_cost.py --quick       the simulator only: 2 minutes
    python examples/benchmarks/analysis_cost.py --from-raw    the published table

Each analysis of each dynamics runs in its own process without a compilation cache, from 16 starts if it takes several: once
with compilation, then once more. Memory is the growth of the process's peak.

Expected: every first run takes less than 60 seconds (the slowest is the hop spectrum of all states of a transformer) and less
than 1 GiB.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from raw import arguments, markdown, Raw, until_stopped

from awmkit import AbstractDynamics, AWM, HWM, LSTM, Markov, MLPPolicy, Transformer
from awmkit.analysis import (
    action_jacobian,
    fidelity,
    gradient_growth,
    hop_spectrum,
    landscape,
    lyapunov,
    policy_hop_spectrum,
    true_gradient,
)
from awmkit.tasks import DoublePendulum, DrivenDoublePendulum

HORIZON, STARTS = 200, 16
KEYS = jax.random.split(jax.random.key(0), 8)
TASK = DrivenDoublePendulum(HORIZON, pendulum=DoublePendulum())  # two substeps, so that the analyses dominate
DYNAMICS: dict[str, Callable[[], AbstractDynamics]] = {
    "simulator": lambda: TASK,
    "Markov": lambda: Markov(4, 2, key=KEYS[0]),
    "HWM transformer": lambda: HWM(4, 2, Transformer(horizon=HORIZON, key=KEYS[1]), key=KEYS[2]),
    "AWM transformer": lambda: AWM(4, 2, Transformer(horizon=HORIZON, key=KEYS[1]), key=KEYS[2]),
    "AWM LSTM": lambda: AWM(4, 2, LSTM(key=KEYS[1]), key=KEYS[2]),
}


def analyses(dynamics: AbstractDynamics) -> dict[str, Callable[[], Any]]:
    """Return each analysis with its defaults."""
    states = jax.vmap(TASK.reset)(jax.random.split(KEYS[3], STARTS))
    actions = jax.random.uniform(KEYS[4], (STARTS, HORIZON, 2), minval=-1.0)
    one, policy, judged = (states[0], actions[0]), MLPPolicy(4, 2, key=KEYS[5]), {"horizons": (20, 50, 100, 200)}
    given = {"reward": TASK.reward, "key": KEYS[6]}
    return {
        "action_jacobian, forward": lambda: action_jacobian(dynamics, *one, mode="forward"),
        "action_jacobian, reverse": lambda: action_jacobian(dynamics, *one, mode="reverse"),
        "hop_spectrum of states": lambda: hop_spectrum(dynamics, *one),
        "hop_spectrum of the return": lambda: hop_spectrum(dynamics, *one, reward=TASK.reward, hops=HORIZON),
        "policy_hop_spectrum": lambda: policy_hop_spectrum(dynamics, policy, one[0], HORIZON, **given),
        "gradient_growth of states": lambda: gradient_growth(dynamics, states, actions),
        "gradient_growth of the return": lambda: gradient_growth(dynamics, states, actions, reward=TASK.reward),
        "lyapunov, 2 exponents": lambda: lyapunov(dynamics, *one, count=2),
        "true_gradient and fidelity": lambda: fidelity(dynamics, true_gradient(TASK, actions[0], states, **judged, **given)),
        "landscape, a line": lambda: landscape(dynamics, actions[0], one[0], HORIZON, **given),
        "landscape, a square": lambda: landscape(dynamics, actions[0], one[0], HORIZON, directions=2, **given),
    }


def measure(dynamics: str, analysis: str) -> dict[str, float]:
    """Return the seconds of the first and of a second run, and MiB."""
    run = analyses(DYNAMICS[dynamics]())[analysis]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - start)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10
    return {"first_s": round(seconds[0], 2), "again_s": round(seconds[1], 2), "MiB": round(grown)}


def measure_apart(dynamics: str, analysis: str) -> dict[str, float]:
    """Measure in a new process."""
    command = [sys.executable, __file__, "--one", dynamics, analysis]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = arguments(__doc__, "analysis_cost")
    parser.add_argument("--dynamics", nargs="+", default=list(DYNAMICS), choices=list(DYNAMICS))
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # used by `measure_apart`
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(*options.one)))
        return
    dynamics = ["simulator"] if options.quick else options.dynamics
    raw, rows, slowest = Raw(options, "analysis_cost"), [], 0.0
    with until_stopped(options):
        for analysis in analyses(TASK):
            costs = [
                raw.run(f"{d}, {analysis}", {"dynamics": d, "analysis": analysis}, partial(measure_apart, d, analysis))
                for d in dynamics
            ]
            rows.append([analysis, *(f"{cost['first_s']:.1f} / {cost['again_s']:.1f}; {cost['MiB']:.0f}" for cost in costs)])
            slowest = max(slowest, *(cost["first_s"] for cost in costs))
    table = markdown(["seconds, first run / second run; MiB", *dynamics], rows)
    raw.write(f"{table}\n\nThe slowest first run took {slowest:.1f} s.")


if __name__ == "__main__":
    main()
