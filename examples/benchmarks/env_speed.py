"""How many steps a second our Gymnasium environments take, one copy and many, beside Gymnasium's own Pendulum-v1.

    python examples/env_speed.py                about 1 minute on two cores
    python examples/env_speed.py --quick        about half a minute: fewer rounds, noisier

Random actions, episode ends and resets included, as `gymnasium.make` and `make_vec` give the environments. The yardstick is
Pendulum-v1: alone, and as many copies in Gymnasium's SyncVectorEnv. In each round every environment runs in turn; the table
shows medians over the rounds, and the median of each round's ratio to the yardstick. Compilation comes before.

Expect: with 1,024 copies 70 to 150 times the yardstick for the closed-form tasks, 17 for the passive and 7 for the driven
double pendulum, whose steps are 12 and 48 stages of a Runge-Kutta solver; alone a fifth of it, since a call into compiled code
takes longer than a little numpy.
"""

import argparse
import importlib.metadata
import json
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium
import jax
import numpy as np

import awmkit.gym  # noqa: F401  (registers the environments)
from awmkit import TqdmProgress

YARDSTICK = "Pendulum-v1"
IDS = sorted(id for id in gymnasium.registry if id.startswith("awmkit/") and "MJX" not in id)


def alone(env: gymnasium.Env, steps: int) -> float:
    """Steps a second of one environment."""
    actions = [env.action_space.sample() for _ in range(steps)]
    start = time.perf_counter()
    env.reset()
    for action in actions:
        _, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset()
    return steps / (time.perf_counter() - start)


def together(envs: gymnasium.vector.VectorEnv, steps: int) -> float:
    """Steps a second of all copies, which reset themselves."""
    actions = [envs.action_space.sample() for _ in range(steps)]
    start = time.perf_counter()
    for action in actions:
        envs.step(action)
    return steps * envs.num_envs / (time.perf_counter() - start)


def measure(ids: list[str], copies: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Steps a second of each environment in each round."""
    names = [YARDSTICK, *ids]
    ones = {id: gymnasium.make(id) for id in names}
    many = {id: gymnasium.make_vec(id, copies, vectorization_mode="sync" if id == YARDSTICK else None) for id in names}
    rates: dict[str, dict[str, Any]] = {id: {"alone": [], "together": []} for id in names}
    with TqdmProgress().start("compile", len(names)) as bar:
        for i, id in enumerate(names):
            ones[id].reset(seed=0)
            many[id].reset(seed=0)
            horizon = 200 if id == YARDSTICK else ones[id].unwrapped.task.horizon  # pyright: ignore[reportAttributeAccessIssue]
            alone(ones[id], horizon + 1)
            together(many[id], 2 if id == YARDSTICK else horizon + 2)
            bar.update(i + 1, id)
    with TqdmProgress().start("measure", rounds) as bar:
        for i in range(rounds):
            for id in names:
                rates[id]["alone"].append(alone(ones[id], 1000))
                rates[id]["together"].append(together(many[id], 10 if id == YARDSTICK else 210))
            bar.update(i + 1)
    return rates


def table(rates: dict[str, dict[str, Any]], copies: int) -> str:
    """Medians, and ratios to the yardstick."""
    lines = [f"{'steps a second':<34}{'alone':>12}{'':>9}{f'{copies} copies':>16}{'':>9}"]
    for id, row in rates.items():
        cells = ""
        for kind, width in (("alone", 12), ("together", 16)):
            ratio = np.median(np.array(row[kind]) / np.array(rates[YARDSTICK][kind]))
            cells += f"{np.median(row[kind]):>{width},.0f}{f'{ratio:.2f}x' if kind == 'alone' else f'{ratio:.0f}x':>9}"
        lines.append(f"{id:<34}{cells}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 rounds instead of 11")
    parser.add_argument("--copies", type=int, default=1024, help="copies of each vector environment")
    parser.add_argument("--ids", nargs="+", default=IDS, help="environments; by default all of awmkit but those of MuJoCo")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="a folder for env_speed.json")
    arguments = parser.parse_args()
    path = arguments.out / "env_speed.json"
    if path.exists():
        parser.error(f"{path} exists; choose another folder with --out.")
    print(__doc__)
    rates = measure(arguments.ids, arguments.copies, 3 if arguments.quick else 11)
    print("\n" + table(rates, arguments.copies))
    record = {
        "command": " ".join(["python", "examples/env_speed.py", *sys.argv[1:]]),
        "device": jax.devices()[0].device_kind,
        "versions": {p: importlib.metadata.version(p) for p in ("awmkit", "jax", "jaxlib", "equinox", "gymnasium", "numpy")},
        "copies": arguments.copies,
        "steps_per_second": rates,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
