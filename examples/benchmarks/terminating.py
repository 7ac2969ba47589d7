"""What does awmkit learn in environments whose episodes end early, online and from data alone?

    python examples/benchmarks/terminating.py               2 hours on two cores; each row is printed when it is measured
    python examples/benchmarks/terminating.py --quick       one seed, few steps: 2 minutes, learns little
    python examples/benchmarks/terminating.py --from-raw    the published table

- online: `train` with a Markov model, a learned end and stochastic value gradients (`ShortHorizon`) over 10 imagined steps.
  The reward of InvertedPendulum-v5 is 1 per step, so its only gradient is that of the probability of having survived. A critic
  without a horizon values the rest: the limit of 1,000 steps cuts an episode but is no end.
- offline: the same with a learning rate that decays, from 300 episodes alone, 200 of random actions and 100 of a half-trained
  policy, which is sampled and disturbed.
- SAC of Stable-Baselines3, after the same number of steps, if `stable_baselines3` is installed.

The table has the mean return of 20 evaluation episodes with a 95 % interval, for each seed.

Expected for InvertedPendulum-v5: 1,000, the largest return there is, online after about 10,000 steps, where SAC has 114 to 174. For
InvertedDoublePendulum-v5 after 20,000 steps: 9,316 and 9,355 in two seeds, where SAC has 9,360 in one. For Hopper-v5 after 50,000
steps: 1,097, 2,517 and 3,313, where SAC has 490, 408 and 325. The return on the way varies between 0 and 3,500, because the learning
rate is constant.
"""

import importlib.util
import time
from collections.abc import Callable
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import optax
from raw import arguments, markdown, Raw, until_stopped

from awmkit import (
    Critic,
    evaluate,
    GaussianPolicy,
    Markov,
    ModelUpdates,
    RewardModel,
    ShortHorizon,
    TerminationModel,
    TqdmProgress,
    train,
    Trajectory,
    Warmup,
)
from awmkit.gym import GymnasiumTask

STEPS = {"InvertedPendulum-v5": 10_000, "InvertedDoublePendulum-v5": 20_000, "Hopper-v5": 50_000}
OFFLINE = "InvertedPendulum-v5"


def alive(state, action, t):
    """The reward of InvertedPendulum-v5, except for the step that ends the episode, which has 0."""
    del action, t
    return jnp.ones((), state.dtype)


def parts(task: GymnasiumTask, id: str, key) -> dict[str, Any]:
    """Return a task's model, end, reward and policy before any fit."""
    sizes, keys = (task.state_size, task.action_size), jax.random.split(key, 5)
    return {
        "model": Markov(*sizes, key=keys[0]),
        "termination": TerminationModel(*sizes, key=keys[1]),
        "reward": alive if id == "InvertedPendulum-v5" else RewardModel(*sizes, key=keys[2]),
        "policy": GaussianPolicy(*sizes, key=keys[3]),
        "key": keys[4],
    }


def ascent(task: GymnasiumTask, **options) -> ShortHorizon:
    critic = Critic(task.state_size, key=jax.random.key(0))
    settings = {"discount": 0.99, "batch_size": 64, "optimiser": optax.adam(1e-3), "clip": 1.0, "entropy": 0.0}
    return ShortHorizon(critic, length=10, **settings | options)


def online(id: str, seed: int, steps: int):
    """Train in the environment. Returns its task and the result."""
    task = GymnasiumTask(gymnasium.make(id))
    updates = ModelUpdates(steps_per_update=1.0, batch_size=256, window=1, initial_updates=1000)
    options = {"model_updates": updates, "warmup": Warmup(min(1000, steps // 2)), "noise": 0.1, "steps": steps}
    made = parts(task, id, jax.random.key(seed))
    return task, train(
        task, ascent=ascent(task), evaluate_every=1000, evaluations=3, progress=TqdmProgress(), **options, **made
    )


def measure_online(id: str, seed: int, steps: int) -> dict[str, Any]:
    began = time.monotonic()
    task, result = online(id, seed, steps)
    curve = {"curve_steps": np.asarray(result.metrics.steps), "curve": np.asarray(result.metrics.true_return)}
    taken = {"environment_steps": int(result.metrics.steps[-1]), "seconds": time.monotonic() - began}
    return scored(task, result.policy) | {name: x.tolist() for name, x in curve.items()} | taken


def scored(task: GymnasiumTask, policy) -> dict[str, Any]:
    found = evaluate(task, policy, episodes=20)
    return {"returns": found.returns.tolist(), "lengths": found.lengths.tolist(), "interval": list(found.interval)}


def behaviour(task: GymnasiumTask, steps: int) -> Trajectory:
    """Return 300 episodes: 200 of random actions, 100 of a policy after a short training, sampled and disturbed."""
    _, half = online(OFFLINE, 100, steps)
    random = lambda state, t, *, key: jax.random.uniform(key, (task.action_size,), minval=-1.0)
    noisy = lambda state, t, *, key: jnp.clip(half.policy(state, t, key=key) + 0.3 * jax.random.normal(key, (1,)), -1, 1)
    keys = jax.random.split(jax.random.key(100))
    return Trajectory.concatenate([task.collect(random, 200, key=keys[0]), task.collect(noisy, 100, key=keys[1])])


def measure_offline(seed: int, updates: int, half_trained: int) -> dict[str, Any]:
    began, task = time.monotonic(), GymnasiumTask(gymnasium.make(OFFLINE))
    data = behaviour(task, half_trained)
    decaying = optax.adam(optax.cosine_decay_schedule(1e-3, updates))  # No later data corrects the last updates.
    settings = ModelUpdates(batch_size=256, window=1, initial_updates=updates, optimiser=decaying)
    made = parts(task, OFFLINE, jax.random.key(seed))
    options = {"episodes": data, "steps": 0, "model_updates": settings, "progress": TqdmProgress()}
    result = train(task, ascent=ascent(task, initial_updates=updates, optimiser=decaying), **options, **made)
    lengths, returns = np.sum(np.asarray(data.mask), axis=1), np.asarray(data.returns())
    found = {"behaviour": float(returns.mean()), "data_steps": int(lengths.sum()), "data_lengths": lengths.tolist()}
    return scored(task, result.policy) | found | {"environment_steps": 0, "seconds": time.monotonic() - began}


def measure_sac(id: str, seed: int, steps: int) -> dict[str, Any]:
    from stable_baselines3 import SAC  # pyright: ignore[reportMissingImports]
    from stable_baselines3.common.evaluation import evaluate_policy  # pyright: ignore[reportMissingImports]

    began = time.monotonic()
    model = SAC("MlpPolicy", gymnasium.make(id), seed=seed).learn(steps)
    returns, lengths = evaluate_policy(model, gymnasium.make(id), n_eval_episodes=20, return_episode_rewards=True, warn=False)
    taken = {"environment_steps": steps, "seconds": time.monotonic() - began}
    return {"returns": list(map(float, returns)), "lengths": list(map(int, lengths))} | taken


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Return one row per learner and seed."""
    lines = []
    for name, row in rows.items():
        low, high = row["interval"] if "interval" in row else (min(row["returns"]), max(row["returns"]))
        kind = "" if "interval" in row else " (range)"
        behaviour = f"{row['behaviour']:.0f} ({row['data_steps']:,} steps)" if "behaviour" in row else ""
        returns = f"{np.mean(row['returns']):.0f} [{low:.0f}, {high:.0f}]{kind}"
        lines.append([name, f"{row['environment_steps']:,}", returns, behaviour, f"{row['seconds']:.0f}"])
    return markdown(["run", "environment steps", "return", "mean return of the data", "seconds"], lines)


def main() -> None:
    parser = arguments(__doc__, "terminating")
    parser.add_argument("--ids", nargs="+", default=list(STEPS), choices=list(STEPS), help="environments")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    options = parser.parse_args()
    raw, few = Raw(options, "terminating"), options.quick
    found: dict[str, dict[str, Any]] = {}
    with until_stopped(options):
        for id in options.ids:
            steps = 200 if few else STEPS[id]
            for seed in range(1 if few else options.seeds):
                config = {"id": id, "seed": seed, "steps": steps}
                runs: dict[str, tuple[dict[str, Any], Callable[[], dict[str, Any]]]] = {}
                runs |= {f"{id}, online, seed {seed}": (config, lambda id=id, s=seed, n=steps: measure_online(id, s, n))}
                if id == OFFLINE:
                    updates = {"updates": 20 if few else 5000, "half_trained": 200 if few else 2000}
                    measure = lambda s=seed, updates=updates: measure_offline(s, **updates)
                    runs[f"{id}, offline, seed {seed}"] = {**config, **updates, "steps": 0}, measure
                name = f"{id}, SAC of Stable-Baselines3, seed {seed}"
                if name in raw.rows or importlib.util.find_spec("stable_baselines3") is not None:
                    runs[name] = config, lambda id=id, s=seed, n=steps: measure_sac(id, s, n)
                for name, (config, measure) in runs.items():
                    if not options.from_raw or name in raw.rows:
                        found[name] = raw.run(name, config, measure)
                        print(table({name: found[name]}).splitlines()[-1], flush=True)
    raw.write(table(found))


if __name__ == "__main__":
    main()
