"""How many steps per second do awmkit's Gymnasium environments take, compared with Gymnasium's own Pendulum-v1?

    python examples/benchmarks/env_speed.py               1 minute on two cores
    python examples/benchmarks/env_speed.py --quick       half a minute: fewer rounds, noisier
    python examples/benchmarks/env_speed.py --from-raw    the published table

The environments come from `gymnasium.make` and `make_vec` and get random actions; ends of episodes and resets are included,
compilation is not. The yardstick is Pendulum-v1: one copy, and as many copies in Gymnasium's SyncVectorEnv. All environments take
turns in each round. Ctrl-C or `--minutes` keeps the rounds so far; to measure more, choose another folder with `--out`. The table
has medians over rounds, and the median of each round's ratio to the yardstick.

Expected with 1,024 copies: 70 to 150 times the yardstick for closed-form tasks, 17 for the passive and 7 for the driven double
pendulum, whose steps are 12 and 48 stages of a Runge-Kutta solver. One copy reaches a fifth of the yardstick, because calling
compiled code takes longer than a little numpy.
"""

import argparse
import time
from typing import Any

import gymnasium
import numpy as np
from raw import arguments, markdown, Raw, until_stopped

import awmkit.gym  # noqa: F401  (registers the environments)
from awmkit import TqdmProgress

YARDSTICK = "Pendulum-v1"
IDS = sorted(id for id in gymnasium.registry if id.startswith("awmkit/") and "MJX" not in id)


def alone(env: gymnasium.Env, steps: int) -> float:
    """Return the steps per second of one environment."""
    actions = [env.action_space.sample() for _ in range(steps)]
    start = time.perf_counter()
    env.reset()
    for action in actions:
        _, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset()
    return steps / (time.perf_counter() - start)


def together(envs: gymnasium.vector.VectorEnv, steps: int) -> float:
    """Return the steps per second of all copies together."""
    actions = [envs.action_space.sample() for _ in range(steps)]
    start = time.perf_counter()
    for action in actions:
        envs.step(action)
    return steps * envs.num_envs / (time.perf_counter() - start)


def measure(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return the steps per second of each environment in each round that was not interrupted."""
    ids, copies, rounds = options.ids, options.copies, 3 if options.quick else 11
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
    with until_stopped(options), TqdmProgress().start("measure", rounds) as bar:
        for i in range(rounds):
            found = {id: (alone(ones[id], 1000), together(many[id], 10 if id == YARDSTICK else 210)) for id in names}
            for id, (one, copied) in found.items():
                rates[id]["alone"].append(one)
                rates[id]["together"].append(copied)
            bar.update(i + 1)
    if not rates[YARDSTICK]["alone"]:
        raise SystemExit("Stopped before the end of the first round; nothing was measured.")
    return rates


def table(rates: dict[str, dict[str, Any]], copies: int) -> str:
    """Return medians, and ratios to the yardstick."""
    rows = []
    for id, row in rates.items():
        ratio = {kind: np.median(np.array(row[kind]) / np.array(rates[YARDSTICK][kind])) for kind in ("alone", "together")}
        medians = f"{np.median(row['alone']):,.0f}", f"{np.median(row['together']):,.0f}"
        rows.append([id, medians[0], f"{ratio['alone']:.2f}x", medians[1], f"{ratio['together']:.0f}x"])
    return markdown(["steps per second", "one copy", "ratio", f"{copies} copies", "ratio"], rows)


def main() -> None:
    parser = arguments(__doc__, "env_speed")
    parser.add_argument("--copies", type=int, default=1024, help="copies of each vector environment")
    parser.add_argument("--ids", nargs="+", default=IDS, help="environments; by default all of awmkit without MuJoCo")
    options = parser.parse_args()
    raw = Raw(options, "env_speed")
    if not raw.rows:
        raw.add({id: ({"id": id, "copies": options.copies}, row) for id, row in measure(options).items()})
    for id in raw.rows:
        raw.run(id, {"id": id, "copies": options.copies}, dict)  # Rows of another number of copies raise an error.
    raw.write(table(raw.rows, options.copies))


if __name__ == "__main__":
    main()
