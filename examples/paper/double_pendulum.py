"""Where gradients lead in a chaotic system: the paper's double pendulum, simulated and learned.

    python examples/double_pendulum.py              about 7 minutes on two cores
    python examples/double_pendulum.py --quick      about 1 minute: up to 60 steps, ascent at 40
    python examples/double_pendulum.py --seeds 3    three seeds, one after the other; stop it, go on with --out

The first action releases the upper rod, the lower one is released at 0.6 pi; the only reward, at the last step, is minus the
mean square distance to the state that a release at 0.6 pi leads to. From data of random releases four world models are
fitted; then, in the simulator and in each model:

1. the gradient of the return with respect to the release, against the horizon, with the law of its growth;
2. the return's landscape over the release angle;
3. gradient ascent from the same 64 releases, evenly spaced, and the *true* return of where it ends.

Expect: over 200 steps the simulator's gradient grows exponentially, at the rate of its Lyapunov exponent; that of the
transformer AWM does not (60 steps are too few to tell). At 40 steps ascent in the transformer AWM ends within 0.02 of the
goal in the median, in the simulator at about -0.13. In the median of three seeds no model beats the simulator at 100 steps,
and at 200 steps the AWMs do.
"""

import argparse
import dataclasses
import functools
import importlib.metadata
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import matplotlib.pyplot as plt
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray
from matplotlib.lines import Line2D
from study import command, resumable

from awmkit import AbstractDynamics, AWM, fit, HWM, LSTM, Markov, TqdmProgress, Trajectory, Transformer, unroll, unroll_grad
from awmkit.analysis import fit_growth, lyapunov
from awmkit.tasks import Circles, DoublePendulum, PassiveDoublePendulum

RELEASE = (0.6 * math.pi, 0.6 * math.pi)
COLOURS = {"simulator": "black", "AWM transformer": "C0", "AWM LSTM": "C2", "HWM transformer": "C1", "Markov": "C3"}


@dataclasses.dataclass(frozen=True)
class Setting:
    """How much work is done; every number is in the JSON."""

    horizons: tuple[int, ...] = (10, 20, 30, 40, 60, 80, 100, 125, 150, 175, 200)
    ascent_horizons: tuple[int, ...] = (40, 100, 200)
    episodes: int = 1024
    updates: int = 300
    updates_cheap: int = 700  # of models whose update costs a third
    batch_size: int = 64
    learning_rate: float = 3e-3
    releases: int = 128
    landscape: int = 401
    starts: int = 64
    ascents: int = 60
    step_size: float = 0.04
    lyapunov_steps: int = 2000


QUICK = Setting(
    horizons=(10, 20, 30, 40, 50, 60),
    ascent_horizons=(40,),
    episodes=512,
    updates=150,
    updates_cheap=300,
    releases=64,
    landscape=201,
    ascents=40,
    step_size=0.06,
    lyapunov_steps=1000,
)


class Release(eqx.Module):
    """The policy: one number, the release angle in units of pi; later actions do nothing."""

    angle: Float[Array, ""]

    def __call__(self, state, t, *, key=None):
        del state, key
        return jnp.where(t == 0, self.angle, 0)[None]


@functools.cache
def task_of(horizon: int) -> PassiveDoublePendulum:
    """The task; its goal is where the goal's release leads after `horizon` - 1 steps."""
    return PassiveDoublePendulum(horizon, RELEASE, pendulum=DoublePendulum(Circles()))


def models_of(horizon: int, key: PRNGKeyArray) -> dict[str, AWM | HWM | Markov]:
    """The four models before fitting, of the paper's sizes."""
    keys = jax.random.split(key, 7)
    return {
        "AWM transformer": AWM(6, 1, Transformer(horizon=horizon, key=keys[0]), predict_changes=False, key=keys[1]),
        "AWM LSTM": AWM(6, 1, LSTM(key=keys[2]), predict_changes=False, key=keys[3]),
        "HWM transformer": HWM(6, 1, Transformer(horizon=horizon, key=keys[4]), key=keys[5]),
        "Markov": Markov(6, 1, key=keys[6]),
    }


def fit_models(setting: Setting, episodes: Trajectory, key: PRNGKeyArray) -> tuple[dict[str, AbstractDynamics], dict]:
    """Each model fitted to the same episodes, and its open-loop error by step."""
    model_key, *fit_keys = jax.random.split(key, 5)
    models, errors = {}, {}
    for (name, model), fit_key in zip(models_of(max(setting.horizons), model_key).items(), fit_keys, strict=True):
        updates = setting.updates if "transformer" in name else setting.updates_cheap
        optimiser = optax.chain(
            optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(setting.learning_rate, updates))
        )
        result = fit(
            model.normalised(episodes.states),
            episodes,
            key=fit_key,
            updates=updates,
            batch_size=setting.batch_size,
            optimiser=optimiser,
        )
        models[name] = result.model
        errors[name] = np.asarray(result.held_out)
    return models, errors


def growth(dynamics: AbstractDynamics, setting: Setting, angles: Float[Array, " N"]) -> dict[str, np.ndarray]:
    """|ds_H/da_0| and |dJ/da_0| at each horizon and release, shape (horizons, N), from one tangent along each trajectory."""
    longest = max(setting.horizons)
    start = task_of(longest).start

    @jax.jit
    @jax.vmap
    def tangents(angle):
        return jax.jvp(lambda angle: unroll(dynamics, Release(angle), start, longest).states, (angle,), (1.0,))

    states, ds = tangents(angles)
    to_return = []
    for horizon in setting.horizons:
        reward = lambda s, task=task_of(horizon), t=horizon - 1: task.reward(s, jnp.zeros(1), t)
        slope = jax.vmap(jax.grad(reward))(states[:, horizon - 1])
        to_return.append(np.abs(np.sum(slope * ds[:, horizon - 1], axis=-1)))
    to_state = np.linalg.norm(np.asarray(ds)[:, np.array(setting.horizons)], axis=-1).T
    return {"to_state": to_state, "to_return": np.stack(to_return)}


def returns(dynamics: AbstractDynamics, task: PassiveDoublePendulum, angles: Float[Array, " N"]) -> np.ndarray:
    """J of each release, predicted by `dynamics`, shape (N,)."""

    @jax.jit
    @jax.vmap
    def value(angle):
        return unroll(dynamics, Release(angle), task.start, task.horizon, reward=task.reward).returns()

    return np.asarray(value(angles))


def ascend(
    dynamics: AbstractDynamics,
    task: PassiveDoublePendulum,
    setting: Setting,
    angles: Float[Array, " N"],
    report: Callable[[int], None],
) -> np.ndarray:
    """Where Adam on the gradient through `dynamics` takes each release, kept within [-1, 1]; shape (N,)."""
    optimiser = optax.adam(optax.cosine_decay_schedule(setting.step_size, setting.ascents))

    @jax.jit
    @jax.vmap
    def climb(angle, optimiser_state):
        _, grads = unroll_grad(dynamics, Release(angle), task.start, task.horizon, reward=task.reward)
        step, optimiser_state = optimiser.update(-grads.angle, optimiser_state)
        return jnp.clip(angle + step, -1, 1), optimiser_state

    optimiser_state = jax.vmap(optimiser.init)(angles)
    for i in range(setting.ascents):
        angles, optimiser_state = jax.block_until_ready(climb(angles, optimiser_state))
        report(i + 1)
    return np.asarray(angles)


def run_seed(setting: Setting, seed: int) -> dict:
    """Everything for one seed; arrays are raw values."""
    began = time.monotonic()
    data_key, fit_key, release_key = jax.random.split(jax.random.key(seed), 3)
    uniform = lambda key, count: jax.random.uniform(key, (count,), minval=-1.0, maxval=1.0)
    longest = task_of(max(setting.horizons))
    collect = jax.jit(jax.vmap(lambda angle: unroll(longest, Release(angle), longest.start, longest.horizon)))
    models, errors = fit_models(setting, collect(uniform(data_key, setting.episodes)), fit_key)
    everything = {"simulator": longest, **models}
    releases = uniform(release_key, setting.releases)
    starts = (2 * jnp.arange(setting.starts) + 1) / setting.starts - 1  # Even: whose basin is larger is not left to luck.
    out: dict = {"seed": seed, "releases": releases, "starts": starts, "open_loop_error": errors}

    free = jnp.zeros((setting.lyapunov_steps, 2))
    pendulum = DoublePendulum()
    exponents = jax.jit(
        jax.vmap(lambda a: lyapunov(pendulum, jnp.stack([jnp.pi * a, 0.0, RELEASE[1], 0.0]), free).exponents[0])
    )
    out["lyapunov"] = exponents(releases)
    out["growth"] = {name: growth(dynamics, setting, releases) for name, dynamics in everything.items()}
    grid = jnp.linspace(-1, 1, setting.landscape)
    out["landscape"] = {
        str(horizon): {name: returns(dynamics, task_of(horizon), grid) for name, dynamics in everything.items()}
        for horizon in setting.ascent_horizons
    }
    out["ascent"] = {}
    for horizon in setting.ascent_horizons:
        task = task_of(horizon)
        found = {"start": {"angles": starts, "true": returns(task, task, starts)}}
        for name, dynamics in everything.items():
            with TqdmProgress().start(f"ascend {name}, H={horizon}", setting.ascents) as bar:
                angles = ascend(task if name == "simulator" else dynamics, task, setting, starts, bar.update)
            found[name] = {"angles": angles, "true": returns(task, task, jnp.asarray(angles))}
        out["ascent"][str(horizon)] = found
    out["seconds"] = time.monotonic() - began
    return out


def summarise(setting: Setting, runs: list[dict]) -> dict:
    """Medians over releases and seeds, and the law that each curve follows."""
    names = list(COLOURS)
    pooled = lambda kind, name: np.concatenate([run["growth"][name][kind] for run in runs], axis=1)
    medians = lambda kind: {name: np.median(pooled(kind, name), axis=1) for name in names}
    to_return, to_state = medians("to_return"), medians("to_state")
    laws = {name: fit_growth(setting.horizons, to_return[name]) for name in names}
    state_laws = {name: fit_growth(setting.horizons, to_state[name]) for name in names}
    dt = DoublePendulum().dt
    chaos = {
        "norm_ratio": float(to_state["simulator"][-1] / to_state["simulator"][0]),
        "law": str(state_laws["simulator"]),
        "rate_per_second": state_laws["simulator"].rate / dt,
        "lyapunov_per_second": float(np.median([run["lyapunov"] for run in runs]) / dt),
    }
    ascent = {
        horizon: {name: [float(np.median(run["ascent"][horizon][name]["true"])) for run in runs] for name in ["start", *names]}
        for horizon in runs[0]["ascent"]
    }
    maxima = lambda y: int(np.sum((y[1:-1] > y[:-2]) & (y[1:-1] > y[2:])))
    last = max(runs[0]["landscape"], key=int)
    optima = {name: float(np.median([maxima(run["landscape"][last][name]) for run in runs])) for name in names}
    return {
        "to_return": to_return,
        "to_state": to_state,
        "law_to_return": {name: dataclasses.asdict(law) for name, law in laws.items()},
        "law_to_state": {name: dataclasses.asdict(law) for name, law in state_laws.items()},
        "law_text": {name: str(law) for name, law in laws.items()},
        "chaos": chaos,
        "ascent_median_true_return": ascent,
        "open_loop_error": {name: np.mean([run["open_loop_error"][name] for run in runs], axis=0) for name in names[1:]},
        "local_maxima": {"horizon": int(last), **optima},
    }


def table(setting: Setting, summary: dict) -> str:
    """What the figure shows, in numbers."""
    horizons = list(summary["ascent_median_true_return"])
    error_at = min(40, max(setting.horizons)) - 1
    heads = [f"true return, H={h}" for h in horizons]
    optima = summary["local_maxima"]
    maxima_head = f"maxima, H={optima['horizon']}"
    lines = [
        f"{'':<16} {'|dJ/da_0| against H':<38} {f'error, step {error_at + 1}':>14} {maxima_head:>14} "
        + " ".join(f"{h:>19}" for h in heads)
    ]
    for name in ["start", *COLOURS]:
        law = summary["law_text"].get(name, "")
        error = summary["open_loop_error"].get(name)
        cells = [
            f"{law:<38}",
            f"{error[error_at]:>14.3f}" if error is not None else " " * 14,
            f"{optima[name]:>14.0f}" if name in optima else " " * 14,
            *(f"{np.median(summary['ascent_median_true_return'][h][name]):>19.4f}" for h in horizons),
        ]
        lines.append(f"{name:<16} " + " ".join(cells))
    chaos = summary["chaos"]
    lines += [
        "",
        "Medians over releases, starts, seeds. error: mean square of open-loop predictions, in the data's standard deviations;",
        f"maxima: local maxima of the return over {setting.landscape} release angles.",
        "",
        f"Simulator: median |ds_H/da_0| at H = {max(setting.horizons)} is {chaos['norm_ratio']:.0f} times that at "
        f"H = {min(setting.horizons)}; law {chaos['law']}, {chaos['rate_per_second']:.2f} per second;",
        f"largest Lyapunov exponent, by tangent propagation: {chaos['lyapunov_per_second']:.2f} per second.",
        *verdict(summary),
    ]
    return "\n".join(lines)


def verdict(summary: dict) -> list[str]:
    """What decided, in words that follow from the numbers."""
    lines = []
    for horizon, found in summary["ascent_median_true_return"].items():
        scores = {name: float(np.median(found[name])) for name in COLOURS}
        best = max(scores, key=lambda name: scores[name])
        above = [name for name in COLOURS if name != "simulator" and scores[name] > scores["simulator"]]
        lines.append(f"H = {horizon}: best is {best}; above the simulator's own gradient: {', '.join(above) or 'none'}.")
    lines.append(
        "A model helps by smoothing: it cannot resolve the finest folds of the true landscape and so has fewer local optima to "
        "stop in. It hurts by error: where its optimum is not the true one, ascent ends beside the goal."
    )
    return lines


def figure(setting: Setting, runs: list[dict], summary: dict, path: Path) -> None:
    """Growth, landscapes, and returns after ascent, side by side."""
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    shown = list(summary["ascent_median_true_return"])
    fig = plt.figure(figsize=(15, 5.2), layout="constrained")
    rows = len(runs[0]["landscape"])
    grid = fig.add_gridspec(rows, 3)
    draw_growth(fig.add_subplot(grid[:, 0]), setting, runs, summary)
    top = None
    for i, (horizon, curves) in enumerate(runs[0]["landscape"].items()):
        axes = fig.add_subplot(grid[i, 1], sharex=top)
        top = axes if top is None else top
        for name, values in curves.items():
            axes.plot(180 * np.linspace(-1, 1, setting.landscape), values, color=COLOURS[name], lw=1)
        axes.axvline(math.degrees(RELEASE[0]), color="grey", ls=":", lw=1)
        axes.set(ylabel=f"return, {horizon} steps", ylim=(-2, 0.1))
        axes.tick_params(labelbottom=i == rows - 1)
        if i == 0:
            axes.set_title("2. The return's landscape (dotted: the goal's release)")
    axes.set_xlabel("release angle of the upper rod, degrees")
    draw_ascent(fig.add_subplot(grid[:, 2]), runs, shown)
    handles = [Line2D([], [], color=colour, marker="o", ms=4, label=name) for name, colour in COLOURS.items()]
    handles.append(Line2D([], [], color="grey", marker="x", ls="", label="before ascent"))
    fig.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    fig.savefig(path, dpi=110)
    plt.close(fig)


def draw_growth(axes, setting: Setting, runs: list[dict], summary: dict) -> None:
    for name, colour in COLOURS.items():
        pooled = np.concatenate([run["growth"][name]["to_return"] for run in runs], axis=1)
        low, high = np.quantile(pooled, [0.25, 0.75], axis=1)
        axes.plot(setting.horizons, summary["to_return"][name], "o-", ms=3, color=colour, label=summary["law_text"][name])
        axes.fill_between(setting.horizons, low, high, color=colour, alpha=0.1, lw=0)
    axes.set(
        yscale="log",
        xlabel="horizon H, steps of 0.05 s",
        ylabel="|dJ/da$_0$|, per unit of action (pi rad); median and quartiles",
        title="1. Gradient of the return against the horizon",
    )
    axes.legend(fontsize=8, title="law of growth", title_fontsize=8, loc="upper left")


def draw_ascent(axes, runs: list[dict], horizons: list[str]) -> None:
    names = ["start", *COLOURS]
    for i, name in enumerate(names):
        for j, horizon in enumerate(horizons):
            values = np.concatenate([run["ascent"][horizon][name]["true"] for run in runs])
            low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
            x = j + 0.12 * (i - len(names) / 2 + 0.5)
            axes.errorbar(
                x,
                middle,
                yerr=[[middle - low], [high - middle]],
                fmt="o" if name != "start" else "x",
                color=COLOURS.get(name, "grey"),
                capsize=2,
            )
    axes.axhline(0, color="grey", ls=":", lw=1)
    axes.set_xticks(range(len(horizons)), [f"{h} steps" for h in horizons])
    axes.set(ylabel="true return (0 is the goal); median and quartiles", title="3. After ascent from the same releases")


def plain(x):
    """Arrays as lists of numbers of six digits, for JSON."""
    if isinstance(x, dict):
        return {k: plain(v) for k, v in x.items()}
    if isinstance(x, list | tuple):
        return [plain(v) for v in x]
    if hasattr(x, "shape"):
        return plain(np.asarray(x).tolist())
    return float(f"{x:.6g}") if isinstance(x, float) else x


def kept(setting: Setting, out: Path) -> list[dict]:
    """The seeds that an earlier run left in the folder, if it was of the same setting."""
    path = out / "double_pendulum.json"
    if not path.exists():
        return []
    record = json.loads(path.read_text())
    if record["config"] != plain(dataclasses.asdict(setting)):
        sys.exit(f"{path} holds results of another setting; choose another folder with --out.")
    return [jtu.tree_map(np.asarray, run, is_leaf=lambda x: isinstance(x, list)) for run in record["seeds"]]


def write(setting: Setting, runs: list[dict], out: Path) -> dict:
    """JSON, figure and table of the seeds so far, so that an interruption loses one seed at most."""
    summary = summarise(setting, runs)
    packages = ("jax", "equinox", "optax", "diffrax", "numpy", "awmkit")
    record = {
        "command": command(),
        "config": dataclasses.asdict(setting),
        "versions": {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in packages}},
        "device": jax.devices()[0].device_kind,
        "summary": summary,
        "seeds": runs,
    }
    (out / "double_pendulum.part").write_text(json.dumps(plain(record)))
    os.replace(out / "double_pendulum.part", out / "double_pendulum.json")
    (out / "double_pendulum.txt").write_text(table(setting, summary) + "\n")
    figure(setting, runs, summary, out / "double_pendulum.png")
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smaller run, about 1 minute")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds, one after the other")
    parser.add_argument("--out", type=Path, help="a folder for figure, table and JSON, gone on with; by default a new one")
    arguments = parser.parse_args()
    setting = QUICK if arguments.quick else Setting()
    here = Path(__file__).parent
    out = arguments.out or here / "out" / time.strftime("double_pendulum-%Y%m%d-%H%M%S")
    runs = kept(setting, out)
    left = [seed for seed in range(arguments.seed, arguments.seed + arguments.seeds) if seed not in [r["seed"] for r in runs]]
    if not left:
        parser.error(f"{out} already holds these seeds; choose another folder with --out, or more --seeds.")
    out.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(here.parent / ".cache" / "jax"))
    print(__doc__)
    for seed in left:
        print(f"seed {seed}", flush=True)
        with resumable(out):
            runs.append(run_seed(setting, seed))
        summary = write(setting, runs, out)
    print("\n" + table(setting, summary))
    print(f"\n{sum(run['seconds'] for run in runs):.0f} s; figure, table and JSON are in {out}")


if __name__ == "__main__":
    main()
