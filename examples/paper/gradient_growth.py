"""How do gradients grow with the horizon, where do they go, and do they point the right way?

    python examples/paper/gradient_growth.py              three seeds: 25 minutes on two cores
    python examples/paper/gradient_growth.py --quick      one seed, 60 steps, short fits: 1 minute, too little for conclusions
    python examples/paper/gradient_growth.py --from-raw   the tables and figures again, from the published values

1. Statements of theory, each with its source and bound, beside the measured growth of |ds_H/da_0|: for a linear cell, an RNN,
   self-attention (random and trained), and models that feed their predictions back.
2. `awmkit.analysis.report` on the driven double pendulum, which is chaotic from large starting angles: the simulator and four
   models fitted to the same episodes of random torques.

Expected: every statement holds. Gradients through the simulator, the HWM and the Markov model grow exponentially, at the rate
of their Lyapunov exponents, over paths of about 135 hops; gradients through AWMs do not, and have no hops. At 20 steps the
simulator's gradient points best (cosine 0.95). At 200 steps its norm is 10^5 times that of the smoothed gradient and its cosine
0.2 to 0.3; the LSTM AWM's cosine is 0.4 to 0.5. The transformer AWM is less well fitted and behind.
"""

import dataclasses
import json
import math
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray
from matplotlib.figure import Figure
from study import arguments, markdown, Study

from awmkit import AbstractDynamics, AWM, fit, HWM, LSTM, Markov, plot, RNN, Trajectory, Transformer, unroll
from awmkit.analysis import (
    Agreement,
    Entry,
    Fidelity,
    gradient_growth,
    GradientGrowth,
    Growth,
    Hops,
    Interval,
    Landscape,
    Lyapunov,
    Report,
    report,
)
from awmkit.tasks import Circles, DoublePendulum, DrivenDoublePendulum, LinearQuadratic


@dataclasses.dataclass(frozen=True)
class Setting:
    """The amount of work."""

    horizon: int = 200
    horizons: tuple[int, ...] = (10, 20, 35, 50, 75, 100, 150, 200)
    fidelity_horizons: tuple[int, ...] = (20, 50, 100, 200)
    spread: float = 2.0  # of the starting angles (rad) and speeds (rad/s)
    episodes: int = 2048
    updates: int = 400
    updates_cheap: int = 900  # for models without attention, whose updates cost a third
    batch_size: int = 64
    learning_rate: float = 3e-3
    starts: int = 64
    sigma: float = 0.1
    pairs: int = 4096


QUICK = Setting(
    horizon=60,
    horizons=(6, 10, 15, 20, 30, 40, 50, 60),
    fidelity_horizons=(10, 20, 40, 60),
    episodes=256,
    updates=60,
    updates_cheap=120,
    starts=8,
    pairs=512,
)


def statement(about: str, claim: str, source: str, growth: GradientGrowth, bounds: tuple[float, float]) -> dict[str, Any]:
    """Compare a statement of theory with the measured growth. It bounds the degree of a power law, or else the rate per step.

    It holds if the measured interval overlaps the bounds, and if the law is exponential where that is claimed.
    """
    law = growth.law
    assert law is not None, f"{about}: {growth}"
    value, (low, high) = (law.degree, law.degree_interval) if "degree" in claim else (law.rate, law.rate_interval)
    holds = high >= bounds[0] - 1e-5 and low <= bounds[1] + 1e-5 and ("exponential" not in claim or law.law == "exponential")
    finite = [bound if math.isfinite(bound) else None for bound in bounds]
    said = {"about": about, "claim": claim, "source": source, "bounds": finite}
    return said | {"measured": (value, low, high), "law": str(growth), "holds": holds, "growth": dataclasses.asdict(growth)}


def models_of(horizon: int, key: PRNGKeyArray) -> dict[str, AWM | HWM | Markov]:
    """Return the models before fitting, of the paper's sizes."""
    keys = jax.random.split(key, 9)
    return {
        "AWM transformer": AWM(6, 2, Transformer(horizon=horizon, key=keys[0]), predict_changes=False, key=keys[1]),
        "AWM LSTM": AWM(6, 2, LSTM(key=keys[2]), predict_changes=False, key=keys[3]),
        "AWM RNN": AWM(6, 2, RNN(key=keys[4]), predict_changes=False, key=keys[5]),
        "HWM transformer": HWM(6, 2, Transformer(horizon=horizon, key=keys[6]), key=keys[7]),
        "Markov": Markov(6, 2, key=keys[8]),
    }


def collect(task: DrivenDoublePendulum, episodes: int, key: PRNGKeyArray) -> Trajectory:
    """Return episodes of random torques."""
    state_key, action_key = jax.random.split(key)
    states = jax.vmap(task.reset)(jax.random.split(state_key, episodes))
    actions = jax.random.uniform(action_key, (episodes, task.horizon, task.action_size), minval=-1.0)
    return jax.jit(jax.vmap(lambda s, a: unroll(task, a, s, task.horizon)))(states, actions)


def fit_models(setting: Setting, models: dict, episodes: Trajectory, key: PRNGKeyArray) -> tuple[dict, dict]:
    """Fit each model to the same episodes; return the models and their open-loop errors by step."""
    fitted, errors = {}, {}
    for (name, model), fit_key in zip(models.items(), jax.random.split(key, len(models)), strict=True):
        updates = setting.updates if "transformer" in name else setting.updates_cheap
        schedule = optax.cosine_decay_schedule(setting.learning_rate, updates)
        optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
        batch_size = min(setting.batch_size, setting.episodes // 4)
        result = fit(model, episodes, key=fit_key, updates=updates, batch_size=batch_size, optimiser=optimiser)
        fitted[name], errors[name] = result.model, np.asarray(result.held_out)
    return fitted, errors


def linear_cell(U: Float[Array, "S S"]) -> AWM:
    """Return an AWM whose recurrent cell is h' = U h + B a, and whose state is h."""
    return AWM.from_dynamics(LinearQuadratic(U, jnp.eye(U.shape[0])[:, :2]))


def statements(setting: Setting, untrained: dict, seen: Report, trained: dict, given: tuple, key: PRNGKeyArray) -> list:
    """Return the statements of theory with their measurements. `given` are starts and actions."""
    measure = lambda dynamics: gradient_growth(dynamics, *given, horizons=setting.horizons)
    U = 1.03 * jax.random.orthogonal(key, 6)
    V = U + 0.01 * jax.random.normal(key, (6, 6))
    log_singular = lambda matrix: jnp.log(jnp.linalg.svd(matrix, compute_uv=False))
    extremes = lambda matrix: (float(log_singular(matrix)[-1]), float(log_singular(matrix)[0]))
    largest = lambda model: (-math.inf, extremes(model.backbone.recurrent)[1])
    chain, cubic = "Pascanu et al. 2013, sec. 2.1; O(eta^H) in the paper", "O(H^3) in the paper"
    product = "the product of Jacobians; Benettin et al. 1980"
    rnn, attention = untrained["AWM RNN"], untrained["AWM transformer"]
    after = {name: entry.state_growth for name, entry in seen.entries.items()}
    ascended = {name: entry.return_growth for name, entry in seen.entries.items()}
    exponent = {name: float(jnp.median(entry.exponents.exponents[:, 0])) for name, entry in seen.entries.items()}
    at_most, between = "rate <= log sigma_max", "log sigma_min <= rate <= log sigma_max"
    lines = [
        statement("AWM, linear cell, 1.03 orthogonal", "rate = log sigma", chain, measure(linear_cell(U)), extremes(U)),
        statement("AWM, linear cell, any", between, chain, measure(linear_cell(V)), extremes(V)),
        statement("AWM RNN, random", at_most, chain, measure(rnn), largest(rnn)),
        statement("AWM RNN, trained", at_most, chain, measure(trained["AWM RNN"]), largest(trained["AWM RNN"])),
        statement("AWM transformer, random", "degree <= 3", cubic, measure(attention), (-math.inf, 3.0)),
        statement("AWM transformer, trained", "degree <= 3", cubic, after["AWM transformer"], (-math.inf, 3.0)),
        statement("the same, |dJ_H/da|", "degree <= 3", cubic, ascended["AWM transformer"], (-math.inf, 3.0)),
    ]
    for name in ("simulator", "HWM transformer", "Markov"):
        claim = f"exponential, at its exponent {exponent[name]:.3f} +- 30 %"
        low, high = sorted((0.7 * exponent[name], 1.3 * exponent[name]))
        about = name if name == "simulator" else f"{name}, trained"
        lines.append(statement(about, claim, product, after[name], (low, high)))
    return lines


def run_seed(setting: Setting, seed: int) -> dict:
    """Return the raw values of one seed."""
    data_key, model_key, fit_key, start_key, report_key, cell_key = jax.random.split(jax.random.key(seed), 6)
    task = DrivenDoublePendulum(setting.horizon, spread=setting.spread, pendulum=DoublePendulum(Circles()))
    episodes = collect(task, setting.episodes, data_key)
    models = models_of(setting.horizon, model_key)
    models = {name: model.normalised(episodes) for name, model in models.items()}
    trained, errors = fit_models(setting, models, episodes, fit_key)
    fresh = collect(task, setting.starts, start_key)
    given = fresh.states[:, 0], fresh.actions
    shown = {name: model for name, model in trained.items() if name != "AWM RNN"}  # The RNN is measured only for its bound.
    everything: dict[str, AbstractDynamics] = {"simulator": task, **shown}
    seen = report(
        everything,
        *given,
        reward=task.reward,
        truth=task,
        horizons=setting.horizons,
        fidelity_horizons=setting.fidelity_horizons,
        sigma=setting.sigma,
        pairs=setting.pairs,
        key=report_key,
    )
    theory = statements(setting, models, seen, trained, given, cell_key)
    values = {key: value for key, value in json.loads(seen.json()).items() if key in ("setting", "entries", "truth")}
    for name, entry in seen.entries.items():
        figures = {
            figure: getattr(entry.landscape, figure).item() for figure in ("total_variation", "local_maxima", "lipschitz")
        }
        values["entries"][name]["landscape"]["figures"] = figures
    return {"report": values, "theory": theory, "open_loop_error": errors}


class MeasuredLandscape(Landscape):
    """A landscape whose figures were measured before its values were rounded to six digits, which would change them."""

    figures: dict[str, float]

    total_variation = property(lambda self: self.figures["total_variation"])
    local_maxima = property(lambda self: self.figures["local_maxima"])
    lipschitz = property(lambda self: self.figures["lipschitz"])


class Ceilings(NamedTuple):
    """What the report's tables and figure need of the true gradient."""

    horizons: np.ndarray
    ceiling: np.ndarray
    ceiling_of_each: np.ndarray


TYPES = {
    "state_growth": GradientGrowth,
    "return_growth": GradientGrowth,
    "law": Growth,
    "hops": Hops,
    "exponents": Lyapunov,
    "landscape": MeasuredLandscape,
    "fidelity": Fidelity,
    "exact": Agreement,
    "smoothed": Agreement,
}


def restored(values: Any, kind: Any = None) -> Any:
    """Rebuild the result of an analysis from its raw values."""
    if isinstance(values, dict):
        kind = Interval if values.keys() == {"value", "low", "high"} else kind
        fields = {name: restored(value, TYPES.get(name)) for name, value in values.items()}
        return kind(**fields) if kind else fields
    if isinstance(values, list):
        array = np.asarray(values)
        return array if array.dtype.kind in "if" else array.astype(float)  # JSON has "inf" and "nan" as strings.
    return values


def restored_report(values: dict[str, Any]) -> Report:
    """Rebuild a report from its raw values."""
    # Curves are stored as quartiles over starts. Five rows that have these quartiles give the same tables and figures.
    spread = lambda quartiles: quartiles[np.array([0, 0, 1, 2, 2])]
    entries = {name: Entry(**restored(entry)) for name, entry in values["entries"].items()}
    curves = lambda entry: (entry.hops.weights, entry.exponents.running)
    entries = {name: eqx.tree_at(curves, entry, replace_fn=spread) for name, entry in entries.items()}
    setting, truth = restored(values["setting"]), restored(values["truth"])
    return Report(entries, Ceilings(setting["fidelity_horizons"], truth["ceiling"], truth["ceiling_of_each"]), setting)  # pyright: ignore[reportArgumentType]


def theory_table(theory: list[dict[str, Any]]) -> str:
    rows = []
    for line in theory:
        value, low, high = line["measured"]
        bounds = " ... ".join(f"{b:.3f}" for b in line["bounds"] if b is not None)
        claim = f"{line['claim']} ({bounds})" if "sigma" in line["claim"] else line["claim"]
        measured, verdict = f"{value:.3g} [{low:.3g}, {high:.3g}]", "holds" if line["holds"] else "DOES NOT HOLD"
        rows.append([line["about"].replace("|", "\\|"), claim, line["source"], measured, line["law"], verdict])
    return markdown(["", "statement", "source", "measured", "law", ""], rows)


def seeds_table(setting: Setting, reports: list[dict]) -> str:
    """Return medians over seeds, with the range if there are several."""

    def cell(values: list[float], spec: str) -> str:
        spread = f" [{min(values):{spec}}, {max(values):{spec}}]" if len(values) > 1 else ""
        return f"{np.median(values):{spec}}{spread}"

    rows = []
    for name in reports[0]["entries"]:
        entries = [report["entries"][name] for report in reports]
        cosines = [entry["fidelity"]["smoothed"]["cosine_of_each"]["value"] for entry in entries]
        rows.append(
            [
                name,
                cell([e["state_growth"]["law"]["rate"] for e in entries], ".3f"),
                cell([float(np.median(e["hops"]["mean"])) for e in entries], ".1f"),
                cell([float(np.median(e["hops"]["beyond"])) for e in entries], ".0%"),
                *(cell([c[i] for c in cosines], ".2f") for i in range(len(setting.fidelity_horizons))),
            ]
        )
    cosines_head = [f"cosine, H = {h}" for h in setting.fidelity_horizons]
    return markdown(["", "rate of \\|ds_H/da_0\\|", "mean hops", "beyond 10", *cosines_head], rows)


def theory_figure(setting: Setting, theory: list[dict[str, Any]]) -> Figure:
    """Draw norms against H, and the bound, dashed, through the first point."""
    figure, panels = plt.subplots(1, 3, figsize=(14, 5.2))
    titles = "Recurrent cells (dashed: the bound)", "Predictions fed back (dashed: exponent)", "Self-attention (dashed: H^3)"
    h = np.asarray(setting.horizons, float)
    for panel, title, chosen in zip(panels, titles, (theory[:4], theory[7:], theory[4:7]), strict=True):
        growths = {line["about"]: restored(line["growth"], GradientGrowth) for line in chosen}
        # A panel may have norms of states and of returns; its label below fits both.
        plot.growth({about: dataclasses.replace(growth, of="state") for about, growth in growths.items()}, axes=panel)
        limits = panel.get_ylim()
        panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16))
        for curve, line, growth in zip(panel.get_lines(), chosen, growths.values(), strict=False):
            low, high = line["bounds"]
            rate = high if panel is panels[0] or low is None else (low + high) / 2
            bound = (h / h[0]) ** 3 if "degree" in line["claim"] else np.exp(rate * (h - h[0]))
            panel.plot(h, growth.median[0] * bound, color=curve.get_color(), ls="--", lw=1)
        panel.set(title=title, ylim=limits, ylabel="norm; median and quartiles")
    panels[2].set_xscale("log")
    return figure


def main() -> None:
    parser = arguments(__doc__, "gradient_growth", seeds=3)
    parser.add_argument("--seed", type=int, default=0, help="first seed")
    options = parser.parse_args()
    setting, seeds = Setting(), range(options.seed, options.seed + options.seeds)
    if options.quick:
        setting, seeds = QUICK, seeds[:1]
    config = dataclasses.asdict(setting)
    cells = {seed: (f"seed {seed}", config, partial(run_seed, setting, seed)) for seed in seeds}
    study = Study(options, "gradient_growth")
    rows = list(study.collect(cells).values())
    theory, seen = rows[0]["theory"], restored_report(rows[0]["report"])
    study.save(theory_figure(setting, theory))
    study.save(plot.report(seen), "gradient_growth_report")
    parts = [
        f"1. Theory and measurement (seed {seeds[0]})",
        theory_table(theory),
        f"2. The report (seed {seeds[0]})",
        f"```text\n{seen}\n```",
        f"3. Medians over {len(rows)} seeds, [least, greatest]; cosine with the smoothed true gradient, start by start",
        seeds_table(setting, [row["report"] for row in rows]),
    ]
    study.write("\n\n".join(parts))


if __name__ == "__main__":
    main()
