"""What does a planner reach in the true simulator, by which search and in which model, and how long does a decision take?

    python examples/benchmarks/planning.py               1 hour on two busy cores; each row is printed when it is measured
    python examples/benchmarks/planning.py --quick       short plans, small models: 3 minutes, swings up nothing
    python examples/benchmarks/planning.py --from-raw    the published table

Tasks, from hanging to upright within 100 steps: the driven double pendulum, whose state is given by sines and cosines, and the
cart-pole in MJX, at five steps of MuJoCo to a control step. A planner optimises the next 30 actions at every step and makes the first of them, always in the true simulator. It
plans

- in the simulator itself, by its exact gradient (`GradientSearch`) or by sampling (`CEM`);
- in an AWM with a GRU, fitted to windows of 30 steps from anywhere, and begun again at every step;
- in a Markov model.

The models are fitted to episodes of random actions, held for the whole episode up to noise, and of a cheaper planner in the
simulator, disturbed by noise, because random actions hardly ever reach the upright position. The row of the data has their
number, their returns and the best reward of a step of the random ones.

A return of 1 is upright at rest in all steps. "end" is the mean reward of the last 20 steps, times 100: 1 is upright at rest. Beside
the planners stand the motors off and a policy that `improve` has trained in the simulator. Pendulum-v1 of Gymnasium runs on
the host: 10 episodes of random actions, an AWM, and its known reward.

Milliseconds per decision are medians over all decisions of `planner.step`, which are made one by one, and, after the slash, of the
time that processors worked on one, which other programs on the machine change less.

Expected: planning in the simulator ends upright, with a return of 0.28 for the double pendulum and 0.31 for the cart-pole by its
gradient, and 0.37 and 0.32 by `CEM`. The models, which saw few episodes near the top, do not get there, except Markov in some
episodes of the cart-pole. Of Pendulum-v1, ten random episodes suffice for an AWM: -155. `--only` measures some rows, `--updates` and `--starts` make them shorter.
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import optax
from raw import arguments, markdown, Raw, until_stopped

from awmkit import (
    AbstractTask,
    AWM,
    CEM,
    Evaluation,
    fit,
    FullHorizon,
    GradientSearch,
    GRU,
    held_actions,
    improve,
    load_episodes,
    Markov,
    MLPPolicy,
    NoProgress,
    Planner,
    save_episodes,
    Trajectory,
    unroll,
)
from awmkit.gym import collect
from awmkit.mjx import cartpole
from awmkit.tasks import Circles, DoublePendulum, DrivenDoublePendulum

TASKS = {
    "double pendulum": lambda: DrivenDoublePendulum(100, pendulum=DoublePendulum(Circles(), substeps=8)),
    "cart-pole": lambda: cartpole(100, frame_skip=5),
}
PENDULUM = "Pendulum-v1"
SIZES = {
    "horizon": 30,
    "starts": 4,
    "random": 64,
    "planned": {"double pendulum": 16, "cart-pole": 8},
    "updates": 3000,
    "seeds": 3,
}
SMALL = {"horizon": 4, "starts": 2, "random": 4, "planned": {"double pendulum": 1, "cart-pole": 1}, "updates": 20, "seeds": 1}
GRADIENT, SAMPLING = GradientSearch(optax.adam(0.1), iterations=10, starts=3), CEM(samples=32, elites=6, iterations=4)


@eqx.filter_jit
def unrolled(task: AbstractTask, policy, starts) -> Trajectory:
    run = lambda state, policy: unroll(task, policy, state, task.horizon, reward=task.reward)
    return jax.vmap(run, in_axes=(0, 0 if isinstance(policy, jax.Array) else None))(starts, policy)


@eqx.filter_jit
def move(task: AbstractTask, carry, state, action, t):
    """Return what the true simulator makes of an action, and the reward."""
    return *task.step(carry, state, action, t), task.reward(state, action, t)


def planned(task: AbstractTask, planner: Planner, starts, noise: float = 0.0) -> tuple[Trajectory, dict[str, list[float]]]:
    """Return episodes of a planner that decides in a loop of Python, with noise added to its actions; and the milliseconds of
    each decision."""
    episodes, wall, cpu, draw = [], [], [], np.random.default_rng(0)
    planner.step(planner.init(), starts[0], 0)  # Compiles.
    for state in starts:
        memory, carry, states, actions, rewards = planner.init(), task.init(state, task.horizon), [state], [], []
        for t in range(task.horizon):
            before = time.perf_counter(), time.process_time()
            memory, action = jax.block_until_ready(planner.step(memory, state, t))
            wall.append(1e3 * (time.perf_counter() - before[0]))
            cpu.append(1e3 * (time.process_time() - before[1]))
            action = jnp.clip(action + noise * draw.normal(size=action.shape).astype(action.dtype), -1, 1)
            carry, state, reward = move(task, carry, state, action, jnp.asarray(t))
            for rows, x in ((states, state), (actions, action), (rewards, reward)):
                rows.append(x)
        episodes.append(tuple(map(np.stack, (states, actions, rewards))))
    return Trajectory.from_episodes(episodes), {"ms": wall, "processor_ms": cpu}


def starts_of(task: AbstractTask, count: int, seed: int):
    return jax.vmap(task.reset)(jax.random.split(jax.random.key(seed), count))


def scored(task: AbstractTask, policy, sizes: dict[str, Any]) -> dict[str, Any]:
    """Return the returns of episodes from the same initial states for every policy, and the times of decisions."""
    starts = starts_of(task, sizes["starts"], 1)
    episodes, times = planned(task, policy, starts) if isinstance(policy, Planner) else (unrolled(task, policy, starts), {})
    end = task.horizon * np.mean(np.asarray(episodes.rewards)[:, -20:], axis=1)
    return {"returns": np.asarray(episodes.returns()).tolist(), "end": end.tolist(), **times}


def data_of(name: str, task: AbstractTask, sizes: dict[str, Any]) -> Trajectory:
    """Return episodes of random actions, then of a disturbed planner in the simulator."""
    draw = lambda key: held_actions(key, (task.horizon, task.action_size))
    actions = jax.vmap(draw)(jax.random.split(jax.random.key(2), sizes["random"]))
    random = unrolled(task, actions, starts_of(task, sizes["random"], 3))
    planner = planner_in(task, task, GRADIENT, sizes)
    return Trajectory.concatenate([random, planned(task, planner, starts_of(task, sizes["planned"][name], 4), 0.3)[0]])


def planner_in(model, task: AbstractTask, search, sizes: dict[str, Any]) -> Planner:
    return Planner(model, task.reward, sizes["horizon"], search=search, until=task.horizon)


@functools.cache
def optimiser(updates: int) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(2e-3, updates))  # One object, or every seed would compile again.


def fitted(kind: str, episodes: Trajectory, seed: int, sizes: dict[str, Any]):
    """Return a fitted model."""
    keys, dimensions = jax.random.split(jax.random.key(seed), 3), (episodes.states.shape[-1], episodes.actions.shape[-1])
    model = Markov(*dimensions, key=keys[0]) if kind == "Markov" else AWM(*dimensions, GRU(64, key=keys[1]), key=keys[0])
    options = {
        "window": sizes["horizon"],
        "updates": sizes["updates"],
        "optimiser": optimiser(sizes["updates"]),
        "progress": NoProgress(),
    }
    return fit(model, episodes, key=keys[2], **options).model


def trained(task: AbstractTask, sizes: dict[str, Any]):
    keys = jax.random.split(jax.random.key(0), 3)
    policy = MLPPolicy(task.state_size, task.action_size, horizon=task.horizon, key=keys[0])
    starts = jax.vmap(task.reset)(jax.random.split(keys[1], 64))
    ascent = FullHorizon(optimiser=optax.adam(3e-3), clip=1.0, entropy=0.0)
    options = {"horizon": task.horizon, "updates": sizes["updates"] // 5, "ascent": ascent, "progress": NoProgress()}
    return improve(task, policy, starts, reward=task.reward, key=keys[2], **options).policy


def measures(name: str, options, sizes: dict[str, Any]) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return what measures each row of a task, by name."""
    task, path = TASKS[name](), options.out / f"{name.replace(' ', '_')}.npz"

    def measure_data():
        episodes = data_of(name, task, sizes)
        save_episodes(path, episodes)
        returns, best = np.asarray(episodes.returns()), task.horizon * np.max(np.asarray(episodes.rewards)[: sizes["random"]])
        return {
            "returns": returns[sizes["random"] :].tolist(),
            "random": returns[: sizes["random"]].tolist(),
            "best": float(best),
        }

    off = lambda state, t, *, key=None: jnp.zeros(task.action_size, state.dtype)
    score = lambda policy: scored(task, policy, sizes)
    found = {
        "motors off": lambda: score(off),
        "gradient in the simulator": lambda: score(planner_in(task, task, GRADIENT, sizes)),
        "data": measure_data,
    }

    def in_model(kind: str, seed: int, search) -> dict[str, Any]:
        model = fitted(kind, load_episodes(path), seed, sizes)
        return score(planner_in(model, task, search, sizes))

    found["gradient in AWM, seed 0"] = lambda: in_model("AWM", 0, GRADIENT)
    found["gradient in Markov, seed 0"] = lambda: in_model("Markov", 0, GRADIENT)
    found["CEM in the simulator"] = lambda: score(planner_in(task, task, SAMPLING, sizes))
    found["policy of improve"] = lambda: score(trained(task, sizes))
    found["CEM in AWM, seed 0"] = lambda: in_model("AWM", 0, SAMPLING)
    for seed in range(1, sizes["seeds"]):
        for kind in ("AWM", "Markov"):
            found[f"gradient in {kind}, seed {seed}"] = lambda kind=kind, seed=seed: in_model(kind, seed, GRADIENT)
    return found


def measure_pendulum(search, sizes: dict[str, Any]) -> dict[str, Any]:
    """Plan in an AWM of Pendulum-v1, on the host."""
    env, keys = gymnasium.make(PENDULUM), jax.random.split(jax.random.key(0), 4)
    quiet: dict[str, Any] = {"progress": NoProgress()}
    random = [collect(env, held_actions(k, (200, 1)), 1, key=k, **quiet) for k in jax.random.split(keys[0], 10)]
    model = fitted("AWM", Trajectory.concatenate(random), 0, sizes)

    def reward(state, action, t):
        cos, sin, speed = state
        return -(jnp.arctan2(sin, cos) ** 2 + 0.1 * speed**2 + 0.001 * (2 * action[0]) ** 2)

    planner = Planner(model, reward, sizes["horizon"], search=search, until=200)
    collect(env, planner, 1, horizon=2, key=keys[1], **quiet)  # Compiles.
    began, cpu = time.perf_counter(), time.process_time()
    episodes = collect(env, planner, sizes["starts"], key=keys[2], **quiet)
    steps = sizes["starts"] * 200
    wall, cpu = (1e3 * (after - before) / steps for after, before in ((time.perf_counter(), began), (time.process_time(), cpu)))
    returns = np.asarray(episodes.returns())
    return {
        "returns": returns.tolist(),
        "random": np.concatenate([e.returns() for e in random]).tolist(),
        "ms": [wall],
        "processor_ms": [cpu],
        "end": np.mean(np.asarray(episodes.rewards)[:, -20:], axis=1).tolist(),
    }


def line(name: str, rows: list[dict[str, Any]]) -> list[str]:
    """Return a line of the table, of the rows of all seeds."""
    returns, end = (np.concatenate([row.get(field, []) for row in rows]) for field in ("returns", "end"))
    low, high = Evaluation(returns, np.zeros(len(returns), int), np.zeros(len(returns), bool)).interval
    cells = [name, f"{len(returns)}", f"{returns.mean():.3f} [{low:.3f}, {high:.3f}]", f"{end.mean():.2f}" if len(end) else ""]
    if "ms" in rows[0]:
        wall, cpu = (np.median(np.concatenate([row[field] for row in rows])) for field in ("ms", "processor_ms"))
        return [*cells, f"{wall:.0f} / {cpu:.0f}"]
    if "best" in rows[0]:
        count, mean = len(rows[0]["random"]), np.mean(rows[0]["random"])
        cells[0] += f": planned ones; {count} random ones have {mean:.3f}, their best step {rows[0]['best']:.2f}"
    return [*cells, ""]


def main() -> None:
    parser = arguments(__doc__, "planning")
    parser.add_argument("--tasks", nargs="+", default=[*TASKS, PENDULUM], choices=[*TASKS, PENDULUM], help="all by default")
    parser.add_argument("--only", default="", help="measure only the rows whose names contain this text")
    for name in ("updates", "starts"):
        parser.add_argument(f"--{name}", type=int, help=f"{SIZES[name]} by default")
    options = parser.parse_args()
    raw, sizes = Raw(options, "planning"), dict(SMALL if options.quick else SIZES)
    sizes |= {name: getattr(options, name) for name in ("updates", "starts") if getattr(options, name)}
    lines: dict[str, list[dict[str, Any]]] = {}
    with until_stopped(options):
        for task in options.tasks:
            if task == PENDULUM:
                searches = {"gradient in AWM": GRADIENT, "CEM in AWM": SAMPLING}
                made = {name: lambda search=search: measure_pendulum(search, sizes) for name, search in searches.items()}
            else:
                made = measures(task, options, sizes)
            for name, measure in made.items():
                name = f"{task}, {name}"
                if name not in raw.rows and (options.from_raw or options.only not in name):
                    continue
                row = raw.rows[name] if options.from_raw else raw.run(name, sizes, measure)
                lines.setdefault(name.split(", seed")[0], []).append(row)
                print("  ".join(line(name, [row])), flush=True)
    head = ["task and planner", "episodes", "return [95 % interval]", "end", "ms per decision"]
    raw.write(markdown(head, [line(name, rows) for name, rows in lines.items()]))


if __name__ == "__main__":
    main()
