"""What does an ensemble cost, and what does pessimism do where a policy learns from few data alone?

    python examples/benchmarks/ensembles.py               40 minutes on two cores; each row is printed when it is measured
    python examples/benchmarks/ensembles.py --quick       few updates and one seed: 3 minutes, learns nothing
    python examples/benchmarks/ensembles.py --from-raw    the published tables

- time: seconds of `fit` for one model, for five as one program, and for five one after the other, in turns in one process, as
  medians. A processor is measured as it is; with one thread for each matrix product; and with two devices of one thread each, which
  share the episodes of every batch (`mesh`). The second turns off only Eigen's threads: XLA still splits fusions and most matrix
  products, so that one Markov fit keeps 1.5 to 1.6 of two cores busy in all settings. One model is also measured with all threads on one core.
  The ratio of processor seconds depends little on what else the machine does. The difference of the five to separate fits is
  reported too.
- offline: InvertedPendulum-v5 from data alone, those of terminating.py: every tenth of their 300 episodes, and all of them. The policy is
  improved by `ShortHorizon` over 10 imagined steps in one model, in an ensemble of five that draws a member for each episode, and
  in the same ensemble with pessimism. All arms share the data, the models, the termination model and the initial policies. The models
  of all seeds are fitted by one call, and the policies of all seeds improved by one.

Expected: five models as one program take 4.7 (Markov) and 4.5 times (AWM) the time of one, a little less than five apart, because one
fit uses most of both cores already. Against one fit that is kept on one core they take 2.4 and 3.5 times its time. All differ from separate
fits by rounding. From 30 episodes, pessimism improves the mean return from 168 to 242 and the worst seed from 124 to 157; from 300
episodes it makes no difference.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
import terminating
from raw import arguments, markdown, Raw, until_stopped

from awmkit import (
    AWM,
    Ensemble,
    evaluate,
    fit,
    GaussianPolicy,
    improve,
    load,
    load_episodes,
    Markov,
    NoProgress,
    save,
    save_episodes,
    TerminationModel,
    Trajectory,
)
from awmkit.gym import GymnasiumTask

MEMBERS = 5
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false"
SETTINGS = {
    "as it is": "",
    "one thread": ONE_THREAD,
    "two devices, one thread each": f"{ONE_THREAD} --xla_force_host_platform_device_count=2",
}
MODELS = {"Markov": Markov, "AWM": AWM}
UPDATES = {"Markov": 100, "AWM": 30}
DATA = {"every tenth episode": 10, "all episodes": 1}
ARMS = {"one model": 0.0, "ensemble": 0.0, "ensemble, pessimism 1": 1.0}


def member(models, i: int):
    return jtu.tree_map(lambda x: x[i] if eqx.is_array(x) else x, models)


def on_one_core(run):
    """Call `run` with all threads of this process on one core. `multi_thread_eigen=false` leaves most operations on all of them."""
    cores, threads = os.sched_getaffinity(0), [int(name) for name in os.listdir("/proc/self/task")]
    try:
        for thread in threads:
            os.sched_setaffinity(thread, {min(cores)})
        return run()
    finally:
        for thread in threads:
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(thread, cores)


def measure_time(kind: str, updates: int, turns: int) -> dict[str, Any]:
    """Time fits in this process, whose flags are those of a setting."""
    keys = jax.random.split(jax.random.key(0), MEMBERS)
    models = eqx.filter_vmap(lambda key: MODELS[kind](4, 1, key=key))(keys)
    states = jnp.cumsum(0.1 * jax.random.normal(keys[0], (256, 51, 4)), axis=1)
    episodes = Trajectory(states, jax.random.uniform(keys[1], (256, 50, 1), minval=-1.0))
    mesh = jax.make_mesh((2,), ("episodes",)) if jax.device_count() == 2 else None
    options = {"updates": updates, "mesh": mesh, "holdout": 0.0, "progress": NoProgress()}
    runs = {
        "one": lambda: [fit(member(models, 0), episodes, key=keys[0], **options)],
        "one core": lambda: on_one_core(runs["one"]),
        "together": lambda: [fit(models, episodes, key=keys, **options)],
        "apart": lambda: [fit(member(models, i), episodes, key=keys[i], **options) for i in range(MEMBERS)],
    }
    first, results = {}, {}
    seconds, processor = ({name: [] for name in runs} for _ in range(2))
    for turn in range(turns + 1):  # The first one compiles.
        for name, run in runs.items():
            if turn == 0 and name in ("apart", "one core"):
                continue
            began, used = time.perf_counter(), time.process_time()
            results[name] = run()
            taken, used = time.perf_counter() - began, time.process_time() - used
            if turn:
                seconds[name].append(taken)
                processor[name].append(used)
            else:
                first[name] = taken
    losses = np.stack([result.losses for result in results["apart"]])
    difference = float(np.max(np.abs(losses - results["together"][0].losses) / np.abs(losses)))
    return {"seconds": seconds, "processor": processor, "first": first, "difference": difference}


def in_a_process(kind: str, setting: str, updates: int, turns: int) -> dict[str, Any]:
    """Run `measure_time` in a process of its own, because flags are read when JAX starts."""
    command = [sys.executable, __file__, "--child", kind, str(updates), str(turns)]
    flags = " ".join(filter(None, (os.environ.get("XLA_FLAGS"), SETTINGS[setting])))
    found = subprocess.run(command, env={**os.environ, "XLA_FLAGS": flags}, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(found.stdout.splitlines()[-1])


def learn(data: Trajectory, seeds: int, updates: int) -> tuple[Any, Any]:
    """Return the models of all seeds, with axes of seeds and members, and a termination model. All models are fitted by one call."""
    sizes, keys = (data.states.shape[-1], data.actions.shape[-1]), jax.random.split(jax.random.key(0), 2 + seeds * MEMBERS)
    models = eqx.filter_vmap(lambda key: Markov(*sizes, key=key))(keys[2:])
    decaying = optax.adam(optax.cosine_decay_schedule(1e-3, updates))
    options = {"window": 1, "batch_size": 256, "updates": updates, "optimiser": decaying, "progress": NoProgress()}
    models = fit(models, data, key=keys[2:], bootstrap=True, **options).model
    apart = lambda x: x.reshape(seeds, MEMBERS, *x.shape[1:]) if eqx.is_array(x) else x
    termination = fit(TerminationModel(*sizes, key=keys[0]), data, key=keys[1], holdout=0.0, **options).model
    return jtu.tree_map(apart, models), termination


def prepared(folder: Path, task: GymnasiumTask, share: str, step: int, half_trained: int, **settings) -> tuple[Trajectory, Any]:
    """Return the data, and what `learn` makes of them. Both are kept in the output folder, for all arms."""
    episodes, models = folder / f"behaviour_{half_trained}.npz", folder / f"models_{share.replace(' ', '_')}_{half_trained}"
    if not episodes.exists():
        save_episodes(episodes, terminating.behaviour(task, half_trained))
    data = load_episodes(episodes)[::step]
    if not models.exists():
        save(models, learn(data, **settings))
    return data, load(models)


def measure_offline(task: GymnasiumTask, data: Trajectory, learned, arm: str, seeds: int, updates: int) -> dict[str, Any]:
    """Improve the policies of all seeds by one call, and evaluate them."""
    models, termination = learned
    first = lambda models: member(models, 0)
    model = eqx.filter_vmap(first if arm == "one model" else lambda models: Ensemble(models, "episode"))(models)
    keys = jax.random.split(jax.random.key(1), seeds)
    policies = eqx.filter_vmap(lambda key: GaussianPolicy(task.state_size, task.action_size, key=key))(keys)
    decaying = optax.adam(optax.cosine_decay_schedule(1e-3, updates))
    ascent = terminating.ascent(task, optimiser=decaying, pessimism=ARMS[arm])
    options = {"reward": terminating.alive, "termination": termination, "key": keys, "progress": NoProgress()}
    result = improve(model, policies, data, updates=updates, ascent=ascent, **options)
    found = [evaluate(task, result[seed].policy, episodes=20) for seed in range(seeds)]
    lengths = np.sum(np.asarray(data.mask), axis=1)
    return {
        "returns": [x.returns.tolist() for x in found],
        "predicted": result.updates.predicted_return[:, -1].tolist(),
        "seconds": result.seconds,
        "behaviour": float(np.mean(data.returns())),
        "episodes": len(data),
        "data_steps": int(lengths.sum()),
    }


def table_of_times(rows: dict[str, dict[str, Any]]) -> str:
    lines = []
    for name, row in rows.items():
        cells = [f"{statistics.median(row['seconds'][run]):.2f}" for run in ("one", "together", "apart")]
        for kind in ("seconds", "processor"):
            pairs = zip(row[kind]["one"], row[kind]["together"], strict=True)
            cells.append(f"{statistics.median(together / one for one, together in pairs):.2f}")
        alone = row["seconds"].get("one core")
        pairs = zip(alone or [], row["seconds"]["together"], strict=False)
        cells.append(f"{statistics.median(together / one for one, together in pairs):.2f}" if alone else "-")
        first = f"{row['first']['one']:.0f}, {row['first']['together']:.0f}"
        lines.append([name, *cells, f"{row['difference']:.0e}", first])
    head = [
        "seconds of a fit",
        "one",
        "five as one program",
        "five apart",
        "five / one",
        "five / one, processor seconds",
        "five / one on one core",
    ]
    return markdown([*head, "largest relative difference of losses", "first calls of one and five, with compilation"], lines)


def table_of_returns(rows: dict[str, dict[str, Any]]) -> str:
    """Return one row for each size of the data and arm, with the mean return of each seed."""
    lines = []
    for row in rows.values():
        returns = [float(np.mean(x)) for x in row["returns"]]
        data = f"{row['episodes']} episodes, {row['data_steps']:,} steps, mean return {row['behaviour']:.0f}"
        means = f"{np.mean(returns):.0f}", f"{min(returns):.0f}", ", ".join(f"{x:.0f}" for x in returns)
        lines.append([data, row["config"]["arm"], *means, f"{row['seconds']:.0f}"])
    return markdown(
        ["data", "policy improved in", "mean return", "worst seed", "each seed", "seconds of improve, all seeds"], lines
    )


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        kind, updates, turns = sys.argv[2:]
        print(json.dumps(measure_time(kind, int(updates), int(turns))))
        return
    parser = arguments(__doc__, "ensembles")
    parser.add_argument("--parts", nargs="+", default=["time", "offline"], choices=["time", "offline"], help="what to measure")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS), help="models of the time part")
    parser.add_argument(
        "--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS), help="settings of the time part"
    )
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), help="arms of the offline part")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds of the offline part")
    parser.add_argument("--updates", type=int, default=1000, help="updates of the models and policies of the offline part")
    options = parser.parse_args()
    raw, few = Raw(options, "ensembles"), options.quick
    times: dict[str, dict[str, Any]] = {}
    returns: dict[str, dict[str, Any]] = {}
    with until_stopped(options):
        for setting in options.settings if "time" in options.parts else ():
            for kind in options.models:
                name, config = f"{kind}, {setting}", {"updates": 5 if few else UPDATES[kind], "turns": 1 if few else 3}
                measure = lambda kind=kind, setting=setting, config=config: in_a_process(kind, setting, **config)
                if not options.from_raw or name in raw.rows:
                    times[name] = raw.run(name, config, measure)
                    print(table_of_times({name: times[name]}).splitlines()[-1], flush=True)
        half_trained, updates, seeds = (200, 20, 1) if few else (2000, options.updates, options.seeds)
        task, settings = GymnasiumTask(gymnasium.make(terminating.OFFLINE)), {"updates": updates, "seeds": seeds}
        for share, step in DATA.items() if "offline" in options.parts else ():
            for arm in options.arms:
                name = f"offline, {share}, {arm}"
                config = {"data": share, "arm": arm, "half_trained": half_trained, "members": MEMBERS, **settings}
                measure = lambda a=arm, s=share, n=step: measure_offline(
                    task, *prepared(options.out, task, s, n, half_trained, **settings), a, **settings
                )
                if not options.from_raw or name in raw.rows:
                    returns[name] = raw.run(name, config, measure)
                    print(table_of_returns({name: returns[name]}).splitlines()[-1], flush=True)
    raw.write("\n\n".join(make(rows) for make, rows in ((table_of_times, times), (table_of_returns, returns)) if rows))


if __name__ == "__main__":
    main()
