"""One bounce: where gradients lead in a system with a wall, simulated and learned.

    python examples/one_bounce.py             two walls, six methods, five seeds: an hour of one core
    python examples/one_bounce.py --quick     one wall, two methods, one seed: about a minute
    python examples/one_bounce.py --variants "far wall" --methods "AWM transformer" simulator

The first action throws a ball at a wall; friction stops it; the only reward, at the last step, is minus the square of its
distance to a goal. There are two walls. Every throw reaches the near one, the paper's, and the return is a parabola. The
weakest throws do not reach the far one: where the wall begins to matter the return has a kink, and beyond it a slope that
leads away from the goal, to a local optimum of -0.25 at the weakest throw of all. For each method, the simulator's own
gradient and that of five kinds of model:

1. a plan, an array of actions, ascends the return from 64 first actions, evenly spaced, in a model that was fitted to episodes
   of random actions: the *true* return of where it ends, and the share that ends within 0.01 of the optimum;
2. a policy is learned by BPO: the true return of its mode.

Runs are kept one by one: stop it, start it again, add to it.

Expect of the near wall that all plans end within 0.01 of the optimum in the simulator, all but one of 320 in the AWM
transformer, 92 % in the AWM LSTM, 12 to 19 % in the HWMs and Markov. Of the far wall, that no gradient leaves the wrong side of
the kink: those 16 starts end at -0.25 in the simulator (75 % within 0.01); AWM transformer 73 %, AWM LSTM 74 %, the others 10
to 17 %. Policies: median regret below 0.00001 of the simulator, at most 0.00001 of the AWM transformer on both walls, 0.20 and
0.25 of Markov.
"""

import dataclasses
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray
from methods import COLOURS, learn, MODELS, record
from study import arguments, Study

from awmkit import AbstractDynamics, fit, TqdmProgress, uniform_actions, unroll, unroll_grad
from awmkit.tasks import OneBounce

METHODS = ("AWM transformer", "AWM LSTM", "HWM transformer", "HWM LSTM", "Markov", "simulator")
VARIANTS = {"near wall": {}, "far wall": {"wall": -1.5, "goal": -0.5}}  # what differs from the paper's task
CLOSE, FLOOR = 0.01, 1e-9  # of regrets that count as none; of those that the figure tells apart


@dataclasses.dataclass(frozen=True)
class Setting:
    """How much work is done; every number is in each JSON."""

    horizon: int = 100
    episodes: int = 512
    updates: int = 1000
    updates_cheap: int = 2000  # of models whose update costs less
    batch_size: int = 32
    starts: int = 64
    ascents: int = 60
    step_size: float = 0.06
    landscape: int = 201
    lived: int = 50


QUICK = Setting(horizon=50, updates=150, updates_cheap=400, lived=25, landscape=101)


def fit_model(task: OneBounce, method: str, setting: Setting, key: PRNGKeyArray) -> tuple[AbstractDynamics, np.ndarray]:
    """A model fitted to episodes of random actions, and its open-loop error by step; or the simulator itself."""
    if method == "simulator":
        return task, np.zeros(task.horizon)
    data_key, model_key, more_key, fit_key = jax.random.split(key, 4)
    actions = jax.random.uniform(data_key, (setting.episodes, task.horizon, 1), minval=-1.0)
    episodes = jax.jit(jax.vmap(lambda a: unroll(task, a, start_of(task), task.horizon)))(actions)
    model = MODELS[method](task, model_key, more_key).normalised(episodes.states)  # pyright: ignore[reportAttributeAccessIssue]
    updates = setting.updates if "transformer" in method else setting.updates_cheap
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(3e-3, updates)))
    result = fit(model, episodes, key=fit_key, updates=updates, batch_size=setting.batch_size, optimiser=optimiser)
    return result.model, np.asarray(result.held_out)


def start_of(task: OneBounce) -> Float[Array, " S"]:
    return task.reset(jax.random.key(0))


def plans(task: OneBounce, firsts: Float[Array, " N"]) -> Float[Array, "N H 1"]:
    """Plans that differ in the first action; later ones are 0."""
    return jnp.zeros((firsts.size, task.horizon, 1)).at[:, 0, 0].set(firsts)


def even(count: int) -> Float[Array, " N"]:
    """First actions all over the range: whose basin is larger is not left to luck."""
    return (2 * jnp.arange(count) + 1) / count - 1


def returns(dynamics: AbstractDynamics, task: OneBounce, actions: Float[Array, "N H 1"]) -> Float[Array, " N"]:
    """Of each plan, as `dynamics` has it."""
    value = lambda plan: unroll(dynamics, plan, start_of(task), task.horizon, reward=task.reward).returns()
    return jax.jit(jax.vmap(value))(actions)


def ascend(dynamics: AbstractDynamics, task: OneBounce, setting: Setting, label: str) -> Float[Array, "N H 1"]:
    """Where Adam on the gradient through `dynamics` takes the plans, kept within [-1, 1]."""
    optimiser = optax.adam(optax.cosine_decay_schedule(setting.step_size, setting.ascents))

    @jax.jit
    @jax.vmap
    def climb(plan, memory):
        _, grads = unroll_grad(dynamics, plan, start_of(task), task.horizon, reward=task.reward)
        step, memory = optimiser.update(-grads, memory)
        return jnp.clip(plan + step, -1, 1), memory

    actions = plans(task, even(setting.starts))
    memory = jax.vmap(optimiser.init)(actions)
    with TqdmProgress().start(f"ascend {label}", setting.ascents) as bar:
        for i in range(setting.ascents):
            actions, memory = jax.block_until_ready(climb(actions, memory))
            bar.update(i + 1)
    return actions


def plan_cell(task: OneBounce, method: str, setting: Setting, seeds: int) -> dict:
    """For each seed: the model's error by step, its landscape along the first action, and where ascent in it ends."""
    rows = []
    grid = plans(task, jnp.linspace(-1, 1, setting.landscape))
    for seed in range(1 if method == "simulator" else seeds):  # The simulator's ascent has nothing random.
        dynamics, error = fit_model(task, method, setting, jax.random.key(seed))
        reached = ascend(dynamics, task, setting, method)
        rows.append(
            {
                "error": error,
                "landscape": returns(dynamics, task, grid),
                "firsts": reached[:, 0, 0],
                "predicted": returns(dynamics, task, reached),
                "returns": returns(task, task, reached),
            }
        )
    return {name: [np.asarray(row[name]).tolist() for row in rows] for name in rows[0]}


def policy_cell(task: OneBounce, method: str, setting: Setting, seeds: int) -> dict:
    """BPO, all seeds as one program: the true return of the mode, and its first action."""
    keys = jax.random.split(jax.random.key(0), seeds)
    result = learn(task, method, setting.lived, keys, actions=uniform_actions)
    seen = record(result)
    firsts = eqx.filter_vmap(lambda policy: policy(start_of(task), 0)[0])(result.policy)
    return {**seen, "returns": [curve[-1] for curve in seen["curve"]], "firsts": firsts}


CELLS = {"plan": plan_cell, "policy": policy_cell}


def figure(cells: dict, setting: Setting, path: Path) -> None:
    """Landscapes, the true returns that plans reach, and those that policies do; a row for each wall."""
    variants, methods = ([name for name in names if any(name in key for key in cells)] for names in (VARIANTS, METHODS))
    fig, axes = plt.subplots(len(variants), 3, figsize=(15, 4 * len(variants)), squeeze=False, layout="constrained")
    for row, variant in zip(axes, variants, strict=True):
        task = OneBounce(setting.horizon, **VARIANTS[variant])
        grid = np.linspace(-1, 1, setting.landscape)
        true = returns(task, task, plans(task, jnp.asarray(grid)))
        row[0].plot(grid, true, color=COLOURS["simulator"], lw=2.5)
        row[0].set_ylim(1.5 * float(true.min()), -0.2 * float(true.min()))  # Models that feed back fall to -1e13 and less.
        for i, method in enumerate(methods):
            plan, policy = (cells.get((part, variant, method)) for part in CELLS)
            colour = COLOURS[method]
            for curve in plan["landscape"] if plan and method != "simulator" else ():
                row[0].plot(grid, curve, color=colour, lw=0.7)
            if plan:
                reached = np.sort(np.ravel(plan["returns"]))
                row[1].plot(np.linspace(0, 1, reached.size), np.maximum(-reached, FLOOR), color=colour, label=method)
            if policy:
                x = i + np.linspace(-0.2, 0.2, len(policy["returns"]))
                row[2].plot(x, np.maximum(-np.array(policy["returns"]), FLOOR), "o", color=colour)
        row[0].set(title=f"{variant}: the return, true (thick) and modelled", xlabel="first action", ylabel="return")
        row[1].set(title="after ascent of plans", xlabel="share of starts, worst first", ylabel="true regret", yscale="log")
        row[2].set(title="after BPO, each seed", ylabel="true regret", yscale="log")
        row[2].set_xticks(range(len(methods)), [name.replace(" ", "\n") for name in methods], fontsize=8)
        row[2].set(xlim=(-0.5, len(methods) - 0.5))
        for axis in row[1:]:
            axis.set_ylim(FLOOR / 2, 2)
            axis.axhline(CLOSE, color="grey", ls=":", lw=1)
    axes[0, 1].legend(fontsize=8)
    fig.savefig(path, dpi=110)
    plt.close(fig)


def table(cells: dict) -> str:
    """Medians over seeds; of plans also quartiles over starts and seeds. The optimum is 0."""
    lines = [
        f"| wall | method | plans: lower quartile, median, upper quartile of the true return | within {CLOSE} | "
        "policies: median, worst, best |",
        "|---|---|---|---|---|",
    ]
    for variant, method in dict.fromkeys((variant, method) for _, variant, method in cells):
        plan, policy = (np.ravel(cells[part, variant, method]["returns"]) for part in CELLS)
        quartiles = ", ".join(f"{x:.4f}" for x in np.quantile(plan, [0.25, 0.5, 0.75]))
        spread = ", ".join(f"{x:.5f}" for x in (np.median(policy), policy.min(), policy.max()))
        lines.append(f"| {variant} | {method} | {quartiles} | {np.mean(plan > -CLOSE):.0%} | {spread} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = arguments(__doc__, "one_bounce")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    options = parser.parse_args()
    setting = QUICK if options.quick else Setting()
    if options.quick:
        options.methods, options.variants, options.seeds = ["AWM LSTM", "simulator"], ["far wall"], 1
    grid = [(part, variant, method) for variant in options.variants for method in options.methods for part in CELLS]
    study = Study(options.out, total=len(grid))
    cells = {}
    for part, variant, method in grid:
        task = OneBounce(setting.horizon, **VARIANTS[variant])
        config = {"part": part, "variant": variant, "method": method, "seeds": options.seeds, **dataclasses.asdict(setting)}
        run = CELLS[part]
        label = f"{part}-{variant}-{method}-H{setting.horizon}"
        cells[part, variant, method] = study.run(
            label, config, lambda run=run, t=task, m=method: run(t, m, setting, options.seeds)
        )
        figure(cells, setting, study.out / "one_bounce.png")
    text = table(cells)
    (study.out / "table.md").write_text(text)
    print("\n" + text)


if __name__ == "__main__":
    main()
