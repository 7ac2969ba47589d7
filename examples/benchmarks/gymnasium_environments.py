"""Do Gymnasium's continuous environments go through `collect` and `train`, and how many steps per second do these take?

    python examples/benchmarks/gymnasium_environments.py               12 environments: 5 minutes on two cores
    python examples/benchmarks/gymnasium_environments.py --quick       2 environments, fewer steps: half a minute
    python examples/benchmarks/gymnasium_environments.py --from-raw    the published table

It needs `pip install "gymnasium[mujoco,box2d]"`; environments that are not installed are left out, with a line that says so.
Each environment is used as `gymnasium.make(id)` returns it. Random actions are collected first. Then `train` makes 2,000 steps
with a Markov model, a learned reward, a learned termination where a random episode was terminated, and a critic without a
horizon. It makes few updates: the script shows that everything runs, not that it learns. `train` is called twice. The second
call does not compile, so its time gives the steps per second, and the difference is the time of compilation. The time includes
one evaluation episode after every 1,000 steps.
"""

import time
from typing import Any

import gymnasium
import jax
import numpy as np
from raw import arguments, markdown, Raw, until_stopped

from awmkit import (
    Critic,
    GaussianPolicy,
    Markov,
    ModelUpdates,
    NoProgress,
    RewardModel,
    ShortHorizon,
    TerminationModel,
    train,
    Warmup,
)
from awmkit.gym import collect, GymnasiumTask

QUICK = ["InvertedPendulum-v5", "Reacher-v5"]
MUJOCO = ["InvertedDoublePendulum", "Swimmer", "Hopper", "Walker2d", "HalfCheetah", "Pusher", "Ant", "Humanoid"]
BOX2D = {"BipedalWalker-v3": {}, "LunarLander-v3": {"continuous": True}}
IDS = [*QUICK, *(f"{name}-v5" for name in MUJOCO), *BOX2D]


def measure(id: str, steps: int) -> dict[str, Any]:
    """Collect `steps` steps of random actions in an environment, and make `steps` steps of `train` in it.

    **Raises:** what `gymnasium.make` raises if the environment is not installed.
    """
    env = gymnasium.make(id, **BOX2D.get(id, {}))
    task = GymnasiumTask(env)
    sizes = S, A = task.state_size, task.action_size
    keys = jax.random.split(jax.random.key(0), 8)
    random = lambda state, t, *, key: jax.random.uniform(key, (A,), minval=-1.0)
    collect(env, random, steps=10, horizon=10, key=keys[0], progress=NoProgress())  # Compiles the policy.
    start = time.perf_counter()
    episodes = collect(env, random, steps=steps, key=keys[0], progress=NoProgress())
    seconds = time.perf_counter() - start
    lengths = np.sum(episodes.mask, axis=-1)
    ended = np.zeros(lengths.size, bool) if episodes.terminated is None else np.asarray(episodes.terminated)

    policy, critic = GaussianPolicy(*sizes, key=keys[1]), Critic(S, key=keys[2])
    model, reward = Markov(*sizes, key=keys[3]), RewardModel(*sizes, key=keys[4])
    ends = TerminationModel(*sizes, key=keys[5])
    options = {
        "key": keys[6],
        "steps": steps,
        "reward": reward,
        "termination": ends if ended.any() else None,
        "warmup": Warmup(steps // 4),
        "model_updates": ModelUpdates(steps_per_update=10, batch_size=128, window=1),
        "ascent": ShortHorizon(critic, length=3, discount=0.99, steps_per_update=10),
        "evaluate_every": steps // 2,
        "progress": NoProgress(),
    }
    first, second = (train(task, model, policy, **options) for _ in range(2))
    assert second.metrics.model_error is not None
    return {
        "state_size": S,
        "action_size": A,
        "lengths": lengths.tolist(),
        "terminated": float(ended.mean()),
        "collect_steps_per_s": float(lengths.sum()) / seconds,
        "train_steps": int(second.metrics.steps[-1]),
        "train_steps_per_s": int(second.metrics.steps[-1]) / second.seconds,
        "compile_s": first.seconds - second.seconds,
        "model_error": float(second.metrics.model_error[-1]),
        "true_return": float(second.metrics.true_return[-1]),
    }


HEAD = ["environment", "S", "A", "mean length", "terminated", "collect, steps/s", "train, steps/s", "compile s", "model error"]


def line(id: str, row: dict[str, Any]) -> list[str]:
    """Return a line of the table."""
    cells = [id, str(row["state_size"]), str(row["action_size"]), f"{np.mean(row['lengths']):.0f}", f"{row['terminated']:.0%}"]
    rates = [f"{row['collect_steps_per_s']:,.0f}", f"{row['train_steps_per_s']:,.0f}"]
    return [*cells, *rates, f"{row['compile_s']:.0f}", f"{row['model_error']:.2g}"]


def main() -> None:
    parser = arguments(__doc__, "gymnasium_environments")
    parser.add_argument("--ids", nargs="+", choices=IDS, metavar="ID", help="environments, all 12 by default")
    options = parser.parse_args()
    raw = Raw(options, "gymnasium_environments")
    ids = options.ids or (QUICK if options.quick else IDS)
    config, lines = {"steps": 400 if options.quick else 2_000}, []
    with until_stopped(options):
        for id in [id for id in IDS if id in raw.rows] if options.from_raw else ids:
            try:
                lines.append(line(id, raw.run(id, config, lambda id=id: measure(id, config["steps"]))))
            except gymnasium.error.DependencyNotInstalled as error:
                print(f"{id} is not installed: {error}", flush=True)
                continue
            print("  ".join(f"{cell:>12}" for cell in lines[-1]), flush=True)
    raw.write(markdown(HEAD, lines))


if __name__ == "__main__":
    main()
