"""What each analysis costs: seconds, compilation included, and memory, for 200 steps of 4 states and 2 actions.

    python examples/analysis_cost.py                           about 10 minutes on two cores
    python examples/analysis_cost.py --dynamics simulator      about 2 minutes

Each analysis of each dynamics is run in a process of its own, without a compilation cache, from 16 starts where it takes many;
then again, compiled. Memory is how far the process grew beyond what it held before, at its largest.

Expect: every first run within 60 seconds (the slowest: the spectrum of all states of a transformer) and 1 GiB.
"""

import argparse
import importlib.metadata
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from awmkit import AbstractDynamics, AWM, HWM, LSTM, Markov, MLPPolicy, TqdmProgress, Transformer
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
TASK = DrivenDoublePendulum(HORIZON, pendulum=DoublePendulum())  # Two substeps: what is timed are the analyses.
DYNAMICS: dict[str, Callable[[], AbstractDynamics]] = {
    "simulator": lambda: TASK,
    "Markov": lambda: Markov(4, 2, key=KEYS[0]),
    "HWM transformer": lambda: HWM(4, 2, Transformer(horizon=HORIZON, key=KEYS[1]), key=KEYS[2]),
    "AWM transformer": lambda: AWM(4, 2, Transformer(horizon=HORIZON, key=KEYS[1]), key=KEYS[2]),
    "AWM LSTM": lambda: AWM(4, 2, LSTM(key=KEYS[1]), key=KEYS[2]),
}


def analyses(dynamics: AbstractDynamics) -> dict[str, Callable[[], Any]]:
    """Each analysis with its defaults."""
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
    """Seconds of the first and of a second run, and MiB."""
    run = analyses(DYNAMICS[dynamics]())[analysis]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - start)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10
    return {"first_s": round(seconds[0], 2), "again_s": round(seconds[1], 2), "MiB": round(grown)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dynamics", nargs="+", default=list(DYNAMICS), choices=list(DYNAMICS), help="which dynamics")
    parser.add_argument("--out", type=Path, help="a JSON file to write; without it, the table is only printed")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # how it calls itself
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(*arguments.one)))
        return
    if arguments.out and arguments.out.exists():
        parser.error(f"{arguments.out} exists; choose another file with --out.")
    print(__doc__)
    names = list(analyses(TASK))
    results: dict[str, dict[str, dict[str, float]]] = {name: {} for name in names}
    pairs = [(d, a) for d in arguments.dynamics for a in names]
    with TqdmProgress().start("analyses", len(pairs)) as bar:
        for i, (dynamics, analysis) in enumerate(pairs):
            command = [sys.executable, __file__, "--one", dynamics, analysis]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            results[analysis][dynamics] = json.loads(output)
            bar.update(i + 1, f"{dynamics}, {analysis}")
    print(f"\n{'seconds, the first time / again; MiB':<38}" + "".join(f"{d:>22}" for d in arguments.dynamics))
    for analysis, row in results.items():
        print(f"{analysis:<38}" + "".join(f"{r['first_s']:>9.1f} /{r['again_s']:>5.1f};{r['MiB']:>5.0f}" for r in row.values()))
    slowest = max(cell["first_s"] for row in results.values() for cell in row.values())
    print(f"\nThe slowest first run took {slowest:.1f} s.")
    if arguments.out:
        versions = {p: importlib.metadata.version(p) for p in ("awmkit", "jax", "equinox", "diffrax")}
        command = " ".join(["python", "examples/analysis_cost.py", *sys.argv[1:]])
        device = jax.devices()[0].device_kind
        arguments.out.write_text(json.dumps({"command": command, "versions": versions, "device": device, "results": results}))


if __name__ == "__main__":
    main()
