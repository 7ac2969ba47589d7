"""Where gradients go and how they grow: theory beside measurement, and four world models of one chaotic task side by side.

    python examples/gradient_growth.py              about 8 minutes on two cores
    python examples/gradient_growth.py --quick      about 1 minute: 60 steps, fits too small for conclusions
    python examples/gradient_growth.py --seeds 3    three seeds, one after the other; stop it, go on with --out

1. Statements of theory, each with its source, its bound and the measured growth of |ds_H/da_0|, what is left of the first
   action after H steps: a linear cell, an RNN, self-attention (at random and after training), and models that feed their
   predictions back.
2. The report of `awmkit.analysis` on the driven double pendulum, started at large angles so that it is chaotic: the simulator
   and four models fitted to the same episodes of random torques. Growth laws, hops, Lyapunov exponents, a landscape, and
   fidelity: the cosine with the true gradient, exact and smoothed.

Expect: every statement holds. Gradients through the simulator, the HWM and the Markov model grow exponentially with the
horizon, at the rate of their Lyapunov exponents, over paths of some 135 hops; those through the AWMs do not, over none. At 20
steps the simulator's own gradient points best (cosine 0.95); at 200 its norm is 10^5 times that of the smoothed one and its
cosine 0.2 to 0.3, and the LSTM AWM's is better (0.4 to 0.5). The transformer AWM, less well fitted, stays behind.
"""

import argparse
import dataclasses
import json
import math
import sys
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray
from study import command, resumable

from awmkit import AbstractDynamics, AWM, fit, HWM, LSTM, Markov, plot, RNN, Trajectory, Transformer, unroll
from awmkit.analysis import gradient_growth, GradientGrowth, Report, report
from awmkit.tasks import Circles, DoublePendulum, DrivenDoublePendulum, LinearQuadratic

THIRD = "\n\n3. Medians over"


@dataclasses.dataclass(frozen=True)
class Setting:
    """How much work is done; every number is in the JSON."""

    horizon: int = 200
    horizons: tuple[int, ...] = (10, 20, 35, 50, 75, 100, 150, 200)
    fidelity_horizons: tuple[int, ...] = (20, 50, 100, 200)
    spread: float = 2.0  # of starting angles and speeds: radians, radians per second
    episodes: int = 2048
    updates: int = 400
    updates_cheap: int = 900  # of models whose update costs a third
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


class Statement(eqx.Module):
    """One line of theory and what was measured: `bounds` are those of the rate per step, or of the degree where `of_degree`."""

    about: str
    claim: str
    source: str
    growth: GradientGrowth
    bounds: tuple[float, float]
    of_degree: bool = False
    exponential: bool = False

    @property
    def measured(self) -> tuple[float, float, float]:
        """The fitted rate or degree, with its interval."""
        law = self.growth.law
        assert law is not None, f"{self.about}: {self.growth}"
        return (law.degree, *law.degree_interval) if self.of_degree else (law.rate, *law.rate_interval)

    @property
    def holds(self) -> bool:
        """Whether the interval reaches into the bounds, and the law is exponential where that is claimed."""
        (_, low, high), (least, greatest) = self.measured, self.bounds
        law = self.growth.law
        right_law = not self.exponential or (law is not None and law.law == "exponential")
        return right_law and high >= least - 1e-5 and low <= greatest + 1e-5


def models_of(horizon: int, key: PRNGKeyArray) -> dict[str, AWM | HWM | Markov]:
    """The models before fitting, of the paper's sizes."""
    keys = jax.random.split(key, 9)
    return {
        "AWM transformer": AWM(6, 2, Transformer(horizon=horizon, key=keys[0]), predict_changes=False, key=keys[1]),
        "AWM LSTM": AWM(6, 2, LSTM(key=keys[2]), predict_changes=False, key=keys[3]),
        "AWM RNN": AWM(6, 2, RNN(key=keys[4]), predict_changes=False, key=keys[5]),
        "HWM transformer": HWM(6, 2, Transformer(horizon=horizon, key=keys[6]), key=keys[7]),
        "Markov": Markov(6, 2, key=keys[8]),
    }


def collect(task: DrivenDoublePendulum, episodes: int, key: PRNGKeyArray) -> Trajectory:
    """Episodes of random torques."""
    state_key, action_key = jax.random.split(key)
    states = jax.vmap(task.reset)(jax.random.split(state_key, episodes))
    actions = jax.random.uniform(action_key, (episodes, task.horizon, task.action_size), minval=-1.0)
    return jax.jit(jax.vmap(lambda s, a: unroll(task, a, s, task.horizon)))(states, actions)


def fit_models(setting: Setting, models: dict, episodes: Trajectory, key: PRNGKeyArray) -> tuple[dict, dict]:
    """Each model fitted to the same episodes, and its open-loop error by step."""
    fitted, errors = {}, {}
    for (name, model), fit_key in zip(models.items(), jax.random.split(key, len(models)), strict=True):
        updates = setting.updates if "transformer" in name else setting.updates_cheap
        schedule = optax.cosine_decay_schedule(setting.learning_rate, updates)
        optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
        batch_size = min(setting.batch_size, setting.episodes // 4)
        print(f"{name}, {updates} updates", flush=True)
        result = fit(model, episodes, key=fit_key, updates=updates, batch_size=batch_size, optimiser=optimiser)
        fitted[name], errors[name] = result.model, np.asarray(result.held_out)
    return fitted, errors


def linear_cell(U: Float[Array, "S S"]) -> AWM:
    """An AWM whose recurrent cell is h' = U h + B a, and whose state is h."""
    return AWM.from_dynamics(LinearQuadratic(U, jnp.eye(U.shape[0])[:, :2]))


def statements(setting: Setting, untrained: dict, seen: Report, trained: dict, given: tuple, key: PRNGKeyArray) -> list:
    """Theory, and the measurements beside it. `given`: starts and actions."""
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
        Statement("AWM, linear cell, 1.03 orthogonal", "rate = log sigma", chain, measure(linear_cell(U)), extremes(U)),
        Statement("AWM, linear cell, any", between, chain, measure(linear_cell(V)), extremes(V)),
        Statement("AWM RNN, random", at_most, chain, measure(rnn), largest(rnn)),
        Statement("AWM RNN, trained", at_most, chain, measure(trained["AWM RNN"]), largest(trained["AWM RNN"])),
        Statement("AWM transformer, random", "degree <= 3", cubic, measure(attention), (-math.inf, 3.0), True),
        Statement("AWM transformer, trained", "degree <= 3", cubic, after["AWM transformer"], (-math.inf, 3.0), True),
        Statement("the same, |dJ_H/da|", "degree <= 3", cubic, ascended["AWM transformer"], (-math.inf, 3.0), True),
    ]
    for name in ("simulator", "HWM transformer", "Markov"):
        claim = f"exponential, at its exponent {exponent[name]:.3f} +- 30 %"
        low, high = sorted((0.7 * exponent[name], 1.3 * exponent[name]))
        about = name if name == "simulator" else f"{name}, trained"
        lines.append(Statement(about, claim, product, after[name], (low, high), exponential=True))
    return lines


def run_seed(setting: Setting, seed: int) -> dict:
    """Everything for one seed."""
    began = time.monotonic()
    data_key, model_key, fit_key, start_key, report_key, cell_key = jax.random.split(jax.random.key(seed), 6)
    task = DrivenDoublePendulum(setting.horizon, spread=setting.spread, pendulum=DoublePendulum(Circles()))
    episodes = collect(task, setting.episodes, data_key)
    models = models_of(setting.horizon, model_key)
    models = {name: model.normalised(episodes.states) for name, model in models.items()}
    trained, errors = fit_models(setting, models, episodes, fit_key)
    fresh = collect(task, setting.starts, start_key)
    given = fresh.states[:, 0], fresh.actions
    shown = {name: model for name, model in trained.items() if name != "AWM RNN"}  # It is here for its bound.
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
    return {"seed": seed, "report": seen, "theory": theory, "error": errors, "seconds": time.monotonic() - began}


def theory_table(theory: list[Statement]) -> str:
    rows = [["", "statement", "source", "measured", "law", ""]]
    for line in theory:
        value, low, high = line.measured
        bounds = " ... ".join(f"{b:.3f}" for b in line.bounds if math.isfinite(b))
        claim = f"{line.claim} ({bounds})" if "sigma" in line.claim else line.claim
        verdict = "holds" if line.holds else "DOES NOT HOLD"
        rows.append([line.about, claim, line.source, f"{value:.3g} [{low:.3g}, {high:.3g}]", str(line.growth), verdict])
    return aligned(rows, "<")


def aligned(rows: list[list[str]], side: str) -> str:
    """Columns of one width; the first is a name."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    line = lambda row: "  ".join(f"{c:{side if i else '<'}{w}}" for i, (c, w) in enumerate(zip(row, widths, strict=True)))
    return "\n".join(line(row).rstrip() for row in rows)


def seeds_table(setting: Setting, reports: list[dict]) -> str:
    """Medians over seeds, with the range where there are several; of reports as their JSON has them."""

    def cell(values: list[float], spec: str) -> str:
        spread = f" [{min(values):{spec}}, {max(values):{spec}}]" if len(values) > 1 else ""
        return f"{np.median(values):{spec}}{spread}"

    heads = ["rate of |ds_H/da_0|", "mean hops", "beyond 10", *(f"cosine, H = {h}" for h in setting.fidelity_horizons)]
    rows = [["", *heads]]
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
    return aligned(rows, ">")


def theory_figure(setting: Setting, theory: list[Statement], path: Path) -> None:
    """Norms against H, with the upper bound dashed through the first point."""
    figure, panels = plt.subplots(1, 3, figsize=(16, 4.8), layout="constrained")
    titles = "Recurrent cells (dashed: the bound)", "Predictions fed back (dashed: exponent)", "Self-attention (dashed: H^3)"
    h = np.asarray(setting.horizons, float)
    for panel, title, chosen in zip(panels, titles, (theory[:4], theory[7:], theory[4:7]), strict=True):
        plot.growth({line.about: line.growth for line in chosen}, axes=panel)
        limits = panel.get_ylim()
        for curve, line in zip(panel.get_lines(), chosen, strict=False):
            rate = line.bounds[1] if panel is panels[0] else sum(line.bounds) / 2
            bound = (h / h[0]) ** 3 if line.of_degree else np.exp(rate * (h - h[0]))
            panel.plot(h, line.growth.median[0] * bound, color=curve.get_color(), ls="--", lw=1)
        panel.set(title=title, ylim=(limits[0], limits[1] * 30), ylabel="norm; median and quartiles")
        panel.spines[["top", "right"]].set_visible(False)
    panels[2].set_xscale("log")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def kept(setting: Setting, out: Path) -> list[int]:
    """The seeds that an earlier run left in the folder, if it was of the same setting."""
    records = [json.loads(path.read_text()) for path in sorted(out.glob("gradient_growth_[0-9]*.json"))]
    if any(record["config"] != json.loads(json.dumps(dataclasses.asdict(setting))) for record in records):
        sys.exit(f"{out} holds results of another setting; choose another folder with --out.")
    return [record["seed"] for record in records]


def write(setting: Setting, last: dict, seeds: list[int], out: Path) -> str:
    """JSON, tables and figures of the seeds so far, so that an interruption loses one seed at most."""
    report_of = lambda seed: out / f"gradient_growth_report_{seed}.json"
    report_of(last["seed"]).write_text(last["report"].json())
    bounds = lambda line: [b if math.isfinite(b) else None for b in line.bounds]
    kept = lambda line: (
        {"bounds": bounds(line)} | {f: getattr(line, f) for f in ("about", "claim", "source", "measured", "holds")}
    )
    record = {
        "command": command(),
        "config": dataclasses.asdict(setting),
        "seed": last["seed"],
        "theory": [kept(line) for line in last["theory"]],
        "open_loop_error": {name: [float(f"{e:.4g}") for e in error] for name, error in last["error"].items()},
        "seconds": last["seconds"],
    }
    if len(seeds) == 1:
        parts = f"1. Theory and measurement (seed {seeds[0]})", theory_table(last["theory"])
        parts += f"2. The report (seed {seeds[0]})", str(last["report"])
        head = "\n\n".join(parts)
        theory_figure(setting, last["theory"], out / "gradient_growth.png")
        plot.report(last["report"]).savefig(out / "gradient_growth_report.png", dpi=100)
        plt.close("all")
    else:
        head = (out / "gradient_growth.txt").read_text().split(THIRD)[0]
    title = f"{THIRD} {len(seeds)} seeds, [least, greatest]; cosine with the smoothed true gradient, start by start"
    text = f"{head}{title}\n\n{seeds_table(setting, [json.loads(report_of(seed).read_text()) for seed in seeds])}"
    (out / "gradient_growth.txt").write_text(text + "\n")
    (out / f"gradient_growth_{last['seed']}.json").write_text(json.dumps(record, allow_nan=False))  # Last: it says "done".
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smaller run, about 1 minute")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds, one after the other")
    parser.add_argument("--out", type=Path, help="a folder for figures, tables and JSON, gone on with; by default a new one")
    arguments = parser.parse_args()
    setting = QUICK if arguments.quick else Setting()
    here = Path(__file__).parent
    out = arguments.out or here / "out" / time.strftime("gradient_growth-%Y%m%d-%H%M%S")
    seeds = kept(setting, out)
    left = [seed for seed in range(arguments.seed, arguments.seed + arguments.seeds) if seed not in seeds]
    if not left:
        parser.error(f"{out} already holds these seeds; choose another folder with --out, or more --seeds.")
    out.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(here.parent / ".cache" / "jax"))
    print(__doc__)
    for seed in left:
        print(f"seed {seed}", flush=True)
        seeds.append(seed)
        with resumable(out):
            text = write(setting, run_seed(setting, seed), seeds, out)
    print(f"\n{text}\n\nFigures, tables and JSON are in {out}")


if __name__ == "__main__":
    main()
