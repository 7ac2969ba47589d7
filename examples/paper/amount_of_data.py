"""From which amount of data on does a model give better policy gradients than the simulator?

    python examples/paper/amount_of_data.py                             all cells: 20 minutes on an H200, a day on two cores
    python examples/paper/amount_of_data.py --models LSTM --episodes 1024 4096      some cells: 30 minutes on two cores
    python examples/paper/amount_of_data.py --quick                     two models, 60 steps, short fits: 1 minute
    python examples/paper/amount_of_data.py --from-raw                  the table and the figure again, from the published values

The driven double pendulum from large starting angles is chaotic: over long horizons its exact gradient grows until it no longer says
which way the return improves. Models are fitted to episodes of 200 random torques, more updates for more episodes, and their
gradients are compared with that of the smoothed return in the simulator (`awmkit.analysis.true_gradient`). The cosine is computed
for each of 64 fresh starts, and averaged. `ceiling` is the cosine of a perfect gradient, which is below 1 because the reference is
estimated. Growth is that of |ds_H/da_0|. All seeds of a cell are fitted by one call to the same episodes; they differ in the initial
weights, the held-out episodes and the batches. The error is in variances: 1 is as good as predicting the mean.

Expected: over 20 and 50 steps the simulator's gradient is the best one, with cosines of 0.99 and 0.95. Over 200 steps, where its
cosine is 0.46, AWMs with a GRU or an LSTM are ahead from 1,024 episodes on (0.47 to 0.67), although their error there is near 1.
The transformer AWM improves with data and with width, and is behind at all horizons: 0.36 at 200 steps with 65,536 episodes. HWM
and Markov models are ahead of it up to 100 steps, and have the smallest errors at step 20. The published table has
19 of the 36 cells.
"""

import dataclasses
import functools
from typing import Any

import equinox as eqx
import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from study import arguments, markdown, read, RESULTS, Row, Study

from awmkit import AbstractDynamics, AWM, fit, GRU, HWM, LinearStateSpace, LSTM, Markov, plot, Trajectory, Transformer, unroll
from awmkit.analysis import fidelity, gradient_growth, true_gradient, TrueGradient
from awmkit.tasks import Circles, DoublePendulum, DrivenDoublePendulum

SIZES = 6, 2  # of a state and of an action


def awm(backbone: Any) -> Any:
    """Return a builder of an AWM from a builder of its backbone."""
    return lambda horizon, keys: AWM(*SIZES, backbone(horizon, keys[0]), predict_changes=False, key=keys[1])


def transformer(width: int) -> Any:
    return lambda horizon, key: Transformer(width, horizon=horizon, key=key)


MODELS = {
    "transformer": awm(transformer(48)),
    "transformer, width 96": awm(transformer(96)),
    "transformer, width 192": awm(transformer(192)),
    "state space": awm(lambda horizon, key: LinearStateSpace(key=key)),
    "GRU": awm(lambda horizon, key: GRU(key=key)),
    "LSTM": awm(lambda horizon, key: LSTM(key=key)),
    "LSTM, width 256": awm(lambda horizon, key: LSTM(256, key=key)),
    "HWM transformer": lambda horizon, keys: HWM(*SIZES, transformer(48)(horizon, keys[0]), key=keys[1]),
    "Markov": lambda horizon, keys: Markov(*SIZES, key=keys[0]),
}
EPISODES = 1024, 4096, 16384, 65536


@dataclasses.dataclass(frozen=True)
class Setting:
    """The amount of work, apart from the number of episodes."""

    horizon: int = 200
    horizons: tuple[int, ...] = (20, 50, 100, 200)
    spread: float = 2.0  # of the starting angles (rad) and speeds (rad/s)
    updates: int = 1000  # with 1,024 episodes; they grow like the square root of the number of episodes
    batch_size: int = 128
    learning_rate: float = 3e-3
    starts: int = 64
    sigma: float = 0.1
    pairs: int = 16384

    def updates_of(self, episodes: int) -> int:
        return round(self.updates * (episodes / 1024) ** 0.5)


QUICK = Setting(horizon=60, horizons=(10, 20, 40, 60), updates=60, batch_size=32, starts=8, pairs=512)
KEYS = jax.random.split(jax.random.key(0), 4)


def task_of(setting: Setting) -> DrivenDoublePendulum:
    return DrivenDoublePendulum(setting.horizon, spread=setting.spread, pendulum=DoublePendulum(Circles()))


@functools.cache
def collect(setting: Setting, episodes: int, fresh: bool = False) -> Trajectory:
    """Return episodes of random torques; fresh ones are never fitted."""
    task, (state_key, action_key) = task_of(setting), jax.random.split(KEYS[0 if fresh else 1])
    states = jax.vmap(task.reset)(jax.random.split(state_key, episodes))
    actions = jax.random.uniform(action_key, (episodes, task.horizon, task.action_size), minval=-1.0)
    return jax.jit(jax.vmap(lambda s, a: unroll(task, a, s, task.horizon)))(states, actions)


@functools.cache
def reference(setting: Setting) -> TrueGradient:
    """Return the gradient of the true return, exact and smoothed, of the first fresh episode's torques from all fresh starts."""
    task, fresh = task_of(setting), collect(setting, setting.starts, fresh=True)
    return true_gradient(
        task,
        fresh.actions[0],
        fresh.states[:, 0],
        reward=task.reward,
        horizons=setting.horizons,
        sigma=setting.sigma,
        pairs=setting.pairs,
        batch_size=1024 if jax.default_backend() == "gpu" else 16,
        key=KEYS[2],
    )


def judge(setting: Setting, dynamics: AbstractDynamics) -> dict[str, Any]:
    """Return how the gradient through `dynamics` agrees with the smoothed one, and how it grows."""
    truth, fresh = reference(setting), collect(setting, setting.starts, fresh=True)
    found = fidelity(dynamics, truth, batch_size=setting.starts)
    growth = gradient_growth(dynamics, fresh.states[:, 0], fresh.actions, horizons=setting.horizons, batch_size=setting.starts)
    interval = lambda x: {"value": x.value, "low": x.low, "high": x.high}
    return {
        "cosine_of_each": interval(found.smoothed.cosine_of_each),
        "cosine": interval(found.smoothed.cosine),
        "norm_ratio": interval(found.smoothed.norm_ratio),
        "growth": np.median(np.asarray(growth.norms, float), axis=1),
    }


def run_simulator(setting: Setting) -> dict[str, Any]:
    """Return the raw values of the simulator's own gradient, and the ceiling."""
    return {"judged": [judge(setting, task_of(setting))], "ceiling": reference(setting).ceiling_of_each}


def run_model(setting: Setting, name: str, episodes: int, seeds: int) -> dict[str, Any]:
    """Return the raw values of a model fitted to some number of episodes, all seeds by one call."""
    reference(setting)  # Before the fit, so that `fit_seconds` has only the fit.
    model_key, fit_key = jax.random.split(KEYS[3])
    build = lambda key: MODELS[name](setting.horizon, jax.random.split(key))
    models, data = eqx.filter_vmap(build)(jax.random.split(model_key, seeds)), collect(setting, episodes)
    updates = setting.updates_of(episodes)
    schedule = optax.warmup_cosine_decay_schedule(0.0, setting.learning_rate, updates // 20, updates)
    result = fit(
        models,
        data,
        key=jax.random.split(fit_key, seeds),
        updates=updates,
        batch_size=min(setting.batch_size, episodes // 4),
        optimiser=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule)),
        holdout=min(0.1, 512 / episodes),
    )
    return {
        "updates": updates,
        "fit_seconds": result.seconds,
        "held_out": result.held_out,
        "losses": result.losses[:, :: max(1, updates // 100)],
        "judged": [judge(setting, result[seed].model) for seed in range(seeds)],
    }


def cosines(row: Row) -> np.ndarray:
    """Return the mean cosine over starts, for each seed and horizon."""
    return np.array([judged["cosine_of_each"]["value"] for judged in row["judged"]], float)


def spread_of(values: np.ndarray, spec: str = ".2f") -> str:
    """Return the median, with the range if there are several values."""
    among = f" [{np.min(values):{spec}}, {np.max(values):{spec}}]" if len(values) > 1 else ""
    return f"{np.median(values):{spec}}{among}"


def table(setting: Setting, rows: dict[Any, Row]) -> str:
    """Return medians over seeds, with their ranges."""
    lines = []
    for (name, episodes), row in rows.items():
        error = np.array(row["held_out"]) if "held_out" in row else None
        at = [] if error is None else [spread_of(error[:, h - 1], ".3f") for h in (setting.horizons[0], setting.horizons[-1])]
        growth = np.array([judged["growth"] for judged in row["judged"]], float)
        size = spread_of(growth[:, -1] / growth[:, 0], ".3g")
        fitted = [f"{episodes:,}", f"{row['updates']:,}", f"{row['fit_seconds']:.0f}"] if episodes else ["", "", ""]
        lines.append([name, *fitted, *(at or ["", ""]), *map(spread_of, cosines(row).T), size])
    simulator = rows["simulator", 0]
    lines.append(["ceiling", "", "", "", "", "", *(f"{x:.2f}" for x in simulator["ceiling"]), ""])
    head = ["", "episodes", "updates", "seconds", *(f"error, step {h}" for h in (setting.horizons[0], setting.horizons[-1]))]
    first, last = setting.horizons[0], setting.horizons[-1]
    return markdown([*head, *(f"cosine, H = {h}" for h in setting.horizons), f"growth from {first} to {last}"], lines)


def figure(setting: Setting, rows: dict[Any, Row]) -> Figure:
    """Draw the cosine at each horizon, and the held-out error, against the number of episodes."""
    plt.rcParams.update(plot.STYLE)
    columns = len(setting.horizons) + 1
    fig, panels = plt.subplots(1, columns, figsize=(3.2 * columns, 4.2))
    colours = plot.colours(dict.fromkeys(name for name, episodes in rows if episodes))
    for name, colour in colours.items():
        cells = sorted((episodes, row) for (named, episodes), row in rows.items() if named == name)
        amounts = [episodes for episodes, _ in cells]
        draw = functools.partial(Axes.plot, marker="o", ms=4, color=colour, label=name)
        for i, axes in enumerate(panels[:-1]):
            seeds = [cosines(row)[:, i] for _, row in cells]
            draw(axes, amounts, list(map(np.median, seeds)))
            axes.vlines(amounts, list(map(np.min, seeds)), list(map(np.max, seeds)), color=colour, alpha=0.4)
        draw(panels[-1], amounts, [float(np.median(np.array(row["held_out"])[:, -1])) for _, row in cells])
    if simulator := rows.get(("simulator", 0)):
        for i, (axes, h) in enumerate(zip(panels[:-1], setting.horizons, strict=True)):
            axes.axhline(cosines(simulator)[0, i], color="black", ls="--", lw=1, label="simulator's exact gradient")
            axes.axhline(simulator["ceiling"][i], color="grey", ls=":", lw=1, label="a perfect gradient")
            axes.set(title=f"H = {h}", ylim=(-0.05, 1), xscale="log", xlabel="episodes")
    panels[0].set_ylabel("cosine with the smoothed true gradient")
    panels[-1].set(title=f"error at step {setting.horizon}", xscale="log", yscale="log", xlabel="episodes")
    fig.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return fig


def main() -> None:
    parser = arguments(__doc__, "amount_of_data", seeds=3)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--episodes", nargs="+", type=int, default=list(EPISODES), help="numbers of episodes to fit")
    options = parser.parse_args()
    setting, seeds = Setting(), options.seeds
    if options.quick:
        setting, seeds, options.models, options.episodes = QUICK, 1, ["transformer", "Markov"], [256]
    config = dataclasses.asdict(setting)
    cells = {("simulator", 0): ("simulator", config, functools.partial(run_simulator, setting))}
    for episodes in options.episodes:
        for name in options.models:
            cell = {**config, "model": name, "episodes": episodes, "seeds": seeds}
            run = functools.partial(run_model, setting, name, episodes, seeds)
            cells[name, episodes] = f"{name}, {episodes} episodes", cell, run
    if options.from_raw:
        published = read(RESULTS / "amount_of_data.jsonl.gz")
        cells = {key: cell for key, cell in cells.items() if cell[0] in published}
    study = Study(options, "amount_of_data")
    rows = study.collect(cells, functools.partial(figure, setting))
    study.write(table(setting, rows))


if __name__ == "__main__":
    main()
