"""Where do policy gradients lead in a chaotic system? The paper's double pendulum, simulated and learned.

    python examples/paper/double_pendulum.py              three seeds: 20 minutes on two cores
    python examples/paper/double_pendulum.py --quick      one seed, at most 60 steps: 1 minute
    python examples/paper/double_pendulum.py --from-raw   the table and the figure again, from the published values

The first action sets the angle at which the upper rod is released; the lower rod is released at 0.6 pi. The only reward, at the
last step, is minus the mean square distance to the state that a release at 0.6 pi leads to. Four world models are fitted to
episodes of random releases. For the simulator and each model:

1. the gradient of the return with respect to the release, against the horizon, and the law of its growth;
2. the return against the release angle;
3. gradient ascent from the same 64 evenly spaced releases, and the *true* return at its end.

Expected: over 200 steps the simulator's gradient grows exponentially, at the rate of its Lyapunov exponent; the
transformer AWM's does not. At 40 steps, ascent ends at -0.004 (median) in the transformer AWM and at -0.13 in the simulator. No
model beats the simulator at 100 steps; at 200 steps both AWMs do.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from study import arguments, markdown, Row, Study

from awmkit import (
    AbstractDynamics,
    AWM,
    fit,
    HWM,
    LSTM,
    Markov,
    plot,
    TqdmProgress,
    Trajectory,
    Transformer,
    unroll,
    unroll_grad,
)
from awmkit.analysis import fit_growth, lyapunov
from awmkit.tasks import Circles, DoublePendulum, PassiveDoublePendulum

RELEASE = (0.6 * math.pi, 0.6 * math.pi)
COLOURS = plot.colours(["simulator", "AWM transformer", "AWM LSTM", "HWM transformer", "Markov"])


@dataclasses.dataclass(frozen=True)
class Setting:
    """The amount of work."""

    horizons: tuple[int, ...] = (10, 20, 30, 40, 60, 80, 100, 125, 150, 175, 200)
    ascent_horizons: tuple[int, ...] = (40, 100, 200)
    episodes: int = 1024
    updates: int = 300
    updates_cheap: int = 700  # for models without attention, whose updates cost a third
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
    """A policy with one parameter, the release angle in units of pi. Later actions have no effect."""

    angle: Float[Array, ""]

    def __call__(self, state, t, *, key=None):
        del state, key
        return jnp.where(t == 0, self.angle, 0)[None]


@functools.cache
def task_of(horizon: int) -> PassiveDoublePendulum:
    """Return the task. Its goal is the state that a release at `RELEASE` reaches after `horizon` - 1 steps."""
    return PassiveDoublePendulum(horizon, RELEASE, pendulum=DoublePendulum(Circles()))


def models_of(horizon: int, key: PRNGKeyArray) -> dict[str, AWM | HWM | Markov]:
    """Return the four models before fitting, of the paper's sizes."""
    keys = jax.random.split(key, 7)
    return {
        "AWM transformer": AWM(6, 1, Transformer(horizon=horizon, key=keys[0]), predict_changes=False, key=keys[1]),
        "AWM LSTM": AWM(6, 1, LSTM(key=keys[2]), predict_changes=False, key=keys[3]),
        "HWM transformer": HWM(6, 1, Transformer(horizon=horizon, key=keys[4]), key=keys[5]),
        "Markov": Markov(6, 1, key=keys[6]),
    }


def fit_models(setting: Setting, episodes: Trajectory, key: PRNGKeyArray) -> tuple[dict[str, AbstractDynamics], dict]:
    """Fit each model to the same episodes; return the models and their open-loop errors by step."""
    model_key, *fit_keys = jax.random.split(key, 5)
    models, errors = {}, {}
    for (name, model), fit_key in zip(models_of(max(setting.horizons), model_key).items(), fit_keys, strict=True):
        updates = setting.updates if "transformer" in name else setting.updates_cheap
        optimiser = optax.chain(
            optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(setting.learning_rate, updates))
        )
        result = fit(
            model.normalised(episodes),
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
    """Return |ds_H/da_0| and |dJ/da_0| at each horizon and release, shape (horizons, N)."""
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
    to_state = np.linalg.norm(np.asarray(ds, float)[:, np.array(setting.horizons)], axis=-1).T
    return {"to_state": to_state, "to_return": np.stack(to_return)}


def returns(dynamics: AbstractDynamics, task: PassiveDoublePendulum, angles: Float[Array, " N"]) -> np.ndarray:
    """Return each release's return in `dynamics`, shape (N,)."""

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
    label: str,
) -> np.ndarray:
    """Improve each release by Adam on the gradient through `dynamics`; angles are clipped to [-1, 1]. Shape (N,)."""
    optimiser = optax.adam(optax.cosine_decay_schedule(setting.step_size, setting.ascents))

    @jax.jit
    @jax.vmap
    def climb(angle, optimiser_state):
        _, grads = unroll_grad(dynamics, Release(angle), task.start, task.horizon, reward=task.reward)
        step, optimiser_state = optimiser.update(-grads.angle, optimiser_state)
        return jnp.clip(angle + step, -1, 1), optimiser_state

    optimiser_state = jax.vmap(optimiser.init)(angles)
    with TqdmProgress().start(f"ascend {label}", setting.ascents) as meter:
        meter.update(0, phase="compiling")
        for i in range(setting.ascents):
            angles, optimiser_state = jax.block_until_ready(climb(angles, optimiser_state))
            meter.update(i + 1, phase="ascending")
    return np.asarray(angles)


def run_seed(setting: Setting, seed: int) -> dict:
    """Return the raw values of one seed."""
    data_key, fit_key, release_key = jax.random.split(jax.random.key(seed), 3)
    uniform = lambda key, count: jax.random.uniform(key, (count,), minval=-1.0, maxval=1.0)
    longest = task_of(max(setting.horizons))
    collect = jax.jit(jax.vmap(lambda angle: unroll(longest, Release(angle), longest.start, longest.horizon)))
    models, errors = fit_models(setting, collect(uniform(data_key, setting.episodes)), fit_key)
    everything = {"simulator": longest, **models}
    releases = uniform(release_key, setting.releases)
    starts = (2 * jnp.arange(setting.starts) + 1) / setting.starts - 1  # evenly spaced, to measure the size of basins
    out: dict = {"releases": releases, "starts": starts, "open_loop_error": errors}

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
            angles = ascend(task if name == "simulator" else dynamics, task, setting, starts, f"{name}, H={horizon}")
            found[name] = {"angles": angles, "true": returns(task, task, jnp.asarray(angles))}
        out["ascent"][str(horizon)] = found
    return out


def pooled(runs: list[Row], *path: str, axis: int = 0) -> np.ndarray:
    """Return the values at `path` of all seeds, joined along `axis`."""
    return np.concatenate([np.asarray(functools.reduce(dict.__getitem__, path, run)) for run in runs], axis=axis)


def by_horizon(runs: list[Row], part: str) -> dict[str, Any]:
    return dict(sorted(runs[0][part].items(), key=lambda item: int(item[0])))


def laws(setting: Setting, runs: list[Row], kind: str) -> dict[str, Any]:
    """Return the law of growth of the median over releases and seeds."""
    medians = {name: np.median(pooled(runs, "growth", name, kind, axis=1), axis=1) for name in COLOURS}
    return {name: fit_growth(setting.horizons, median) for name, median in medians.items()}


def table(setting: Setting, runs: list[Row]) -> str:
    """Return the numbers of the figure, medians over releases, starts and seeds, and a summary in words."""
    names, horizons = list(COLOURS), list(by_horizon(runs, "ascent"))
    growths, last = laws(setting, runs, "to_return"), max(by_horizon(runs, "landscape"), key=int)
    maxima = lambda y: int(np.sum((y[1:-1] > y[:-2]) & (y[1:-1] > y[2:])))
    ends = {
        name: [np.median([np.median(run["ascent"][h][name]["true"]) for run in runs]) for h in horizons]
        for name in ["start", *names]
    }
    error_at = min(40, max(setting.horizons))
    rows = []
    for name, values in ends.items():
        law, error, optima = str(growths.get(name, "")), "", ""
        if name != "start":
            optima = f"{np.median([maxima(np.asarray(run['landscape'][last][name])) for run in runs]):.0f}"
            if name != "simulator":
                error = f"{np.mean([run['open_loop_error'][name][error_at - 1] for run in runs]):.3f}"
        rows.append([name, law, error, optima, *(f"{value:.4f}" for value in values)])
    head = ["", "|dJ/da_0| against H", f"error, step {error_at}", f"maxima, H={last}"]
    state_law = laws(setting, runs, "to_state")["simulator"]
    norms, dt = np.median(pooled(runs, "growth", "simulator", "to_state", axis=1), axis=1), DoublePendulum().dt
    exponent = np.median([run["lyapunov"] for run in runs]) / dt
    lines = [
        markdown([h.replace("|", "\\|") for h in head] + [f"true return, H={h}" for h in horizons], rows),
        "",
        "Medians over releases, starts, seeds. error: mean square of open-loop predictions, in the data's standard deviations;",
        f"maxima: local maxima of the return over {setting.landscape} release angles.",
        "",
        f"Simulator: median |ds_H/da_0| at H = {max(setting.horizons)} is {norms[-1] / norms[0]:.0f} times that at "
        f"H = {min(setting.horizons)}; law {state_law}, {state_law.rate / dt:.2f} per second;",
        f"largest Lyapunov exponent, by tangent propagation: {exponent:.2f} per second.",
    ]
    for i, horizon in enumerate(horizons):
        scores = {name: ends[name][i] for name in names}
        above = [name for name in names if scores[name] > scores["simulator"]]
        best = max(names, key=lambda name: scores[name])
        lines.append(f"H = {horizon}: best is {best}; above the simulator's own gradient: {', '.join(above) or 'none'}.")
    lines.append(
        "A model helps by smoothing: it does not resolve the finest folds of the true landscape, so ascent stops in fewer local "
        "optima. It hurts by error: where its optimum is not the true one, ascent misses the goal."
    )
    return "\n".join(lines)


def figure(setting: Setting, cells: Mapping[Any, Row]) -> Figure:
    """Draw growth, landscapes, and returns after ascent, side by side."""
    runs = list(cells.values())
    landscapes = by_horizon(runs, "landscape")
    fig = plt.figure(figsize=(15, 5.2))
    grid = fig.add_gridspec(len(landscapes), 3)
    draw_growth(fig.add_subplot(grid[:, 0]), setting, runs)
    panels = grid[:, 1].subgridspec(len(landscapes), 1, hspace=0.08).subplots(sharex=True, squeeze=False)[:, 0]
    for axes, (horizon, curves) in zip(panels, landscapes.items(), strict=True):
        for name, colour in COLOURS.items():
            axes.plot(180 * np.linspace(-1, 1, setting.landscape), curves[name], color=colour, lw=1)
        axes.axvline(math.degrees(RELEASE[0]), color="grey", ls=":", lw=1)
        axes.set(ylabel=f"return, {horizon} steps", ylim=(-2, 0.1))
    panels[0].set_title("2. The return in each dynamics (dotted: the goal)")
    panels[-1].set_xlabel("release angle of the upper rod, degrees")
    draw_ascent(fig.add_subplot(grid[:, 2]), runs)
    handles = [Line2D([], [], color=colour, marker="o", ms=4, label=name) for name, colour in COLOURS.items()]
    handles.append(Line2D([], [], color="grey", marker="x", ls="", label="before ascent"))
    fig.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return fig


def draw_growth(axes, setting: Setting, runs: list[Row]) -> None:
    growths = laws(setting, runs, "to_return")
    for name, colour in COLOURS.items():
        low, middle, high = np.quantile(pooled(runs, "growth", name, "to_return", axis=1), [0.25, 0.5, 0.75], axis=1)
        axes.plot(setting.horizons, middle, "o-", ms=3, color=colour, label=str(growths[name]))
        axes.fill_between(setting.horizons, low, high, color=colour, alpha=0.1, lw=0)
    axes.set(
        yscale="log",
        xlabel="horizon H, steps of 0.05 s",
        ylabel="|dJ/da$_0$| per pi rad; median and quartiles",
        title="1. Gradient of the return against the horizon",
    )
    axes.legend(title="law of growth", loc="upper left")


def draw_ascent(axes, runs: list[Row]) -> None:
    names, horizons = ["start", *COLOURS], list(by_horizon(runs, "ascent"))
    for i, name in enumerate(names):
        for j, horizon in enumerate(horizons):
            low, middle, high = np.quantile(pooled(runs, "ascent", horizon, name, "true"), [0.25, 0.5, 0.75])
            axes.errorbar(
                j + 0.12 * (i - len(names) / 2 + 0.5),
                middle,
                yerr=[[middle - low], [high - middle]],
                fmt="x" if name == "start" else "o",
                color=COLOURS.get(name, "grey"),
                capsize=2,
            )
    axes.axhline(0, color="grey", ls=":", lw=1)
    axes.set_xticks(range(len(horizons)), [f"{h} steps" for h in horizons])
    axes.set(ylabel="true return (0 is the goal); median and quartiles", title="3. After ascent from the same releases")


def main() -> None:
    parser = arguments(__doc__, "double_pendulum", seeds=3)
    parser.add_argument("--seed", type=int, default=0, help="first seed")
    options = parser.parse_args()
    setting, seeds = Setting(), range(options.seed, options.seed + options.seeds)
    if options.quick:
        setting, seeds = QUICK, seeds[:1]
    config = dataclasses.asdict(setting)
    cells = {seed: (f"seed {seed}", config, functools.partial(run_seed, setting, seed)) for seed in seeds}
    study = Study(options, "double_pendulum")
    rows = study.collect(cells, functools.partial(figure, setting))
    study.write(table(setting, list(rows.values())))


if __name__ == "__main__":
    main()
