"""Where do policy gradients lead if the ball must bounce off a wall?

    python examples/paper/one_bounce.py             two walls, six methods, five seeds: 1 hour on one core
    python examples/paper/one_bounce.py --quick     one wall, two methods, one seed: 1 minute
    python examples/paper/one_bounce.py --from-raw  the table and the figure again, from the published values
    python examples/paper/one_bounce.py --variants "far wall" --methods "AWM transformer" simulator

The first action throws a ball at a wall, and friction stops it. The only reward, at the last step, is minus the squared
distance to a goal. Every throw reaches the near wall (the paper's), and the return is a parabola. The weakest throws do not
reach the far wall: there the return has a kink, and behind it a slope that leads to a local optimum of -0.25. For the
simulator's gradient and for five kinds of model:

1. Plans: an array of actions ascends the return from 64 evenly spaced first actions, in a model fitted to episodes of random
   actions. Reported are the *true* return at the end and the share within 0.01 of the optimum.
2. Policies: trained by BPO. Reported is the true return of the mode.

Expected for the near wall: all plans end within 0.01 of the optimum in the simulator, all but one of 320 in the AWM
transformer, 92 % in the AWM LSTM, 12 to 19 % in the HWMs and Markov. For the far wall: no gradient crosses the kink, so 16 of
64 starts end at -0.25 in the simulator (75 % within 0.01); AWM transformer 73 %, AWM LSTM 74 %, the others 10 to 17 %.
Policies: median regret below 0.00001 in the simulator, at most 0.00001 in the AWM transformer on both walls, 0.20 and 0.25 in
Markov.
"""

import dataclasses
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray
from matplotlib.figure import Figure
from methods import learn, MODELS, record
from study import arguments, markdown, Row, Study

from awmkit import AbstractDynamics, fit, uniform_actions, unroll, unroll_grad
from awmkit.plot import COLOURS
from awmkit.tasks import OneBounce

METHODS = ("AWM transformer", "AWM LSTM", "HWM transformer", "HWM LSTM", "Markov", "simulator")
VARIANTS = {"near wall": {}, "far wall": {"wall": -1.5, "goal": -0.5}}  # differences from the paper's task
CLOSE, FLOOR = 0.01, 1e-9  # regrets below CLOSE count as optimal; the figure shows none below FLOOR


@dataclasses.dataclass(frozen=True)
class Setting:
    """The amount of work."""

    horizon: int = 100
    episodes: int = 512
    updates: int = 1000
    updates_cheap: int = 2000  # for models without attention, whose updates cost less
    batch_size: int = 32
    starts: int = 64
    ascents: int = 60
    step_size: float = 0.06
    landscape: int = 201
    training_episodes: int = 50  # for BPO


QUICK = Setting(horizon=50, updates=150, updates_cheap=400, training_episodes=25, landscape=101)


def fit_model(task: OneBounce, method: str, setting: Setting, key: PRNGKeyArray) -> tuple[AbstractDynamics, np.ndarray]:
    """Fit a model to episodes of random actions; return it with its open-loop error by step, or the simulator itself."""
    if method == "simulator":
        return task, np.zeros(task.horizon)
    data_key, model_key, more_key, fit_key = jax.random.split(key, 4)
    actions = jax.random.uniform(data_key, (setting.episodes, task.horizon, 1), minval=-1.0)
    episodes = jax.jit(jax.vmap(lambda a: unroll(task, a, start_of(task), task.horizon)))(actions)
    model = MODELS[method](task, model_key, more_key).normalised(episodes)  # pyright: ignore[reportAttributeAccessIssue]
    updates = setting.updates if "transformer" in method else setting.updates_cheap
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(3e-3, updates)))
    result = fit(model, episodes, key=fit_key, updates=updates, batch_size=setting.batch_size, optimiser=optimiser)
    return result.model, np.asarray(result.held_out)


def start_of(task: OneBounce) -> Float[Array, " S"]:
    return task.reset(jax.random.key(0))


def plans(task: OneBounce, firsts: Float[Array, " N"]) -> Float[Array, "N H 1"]:
    """Return plans that differ in the first action; later actions are 0."""
    return jnp.zeros((firsts.size, task.horizon, 1)).at[:, 0, 0].set(firsts)


def even(count: int) -> Float[Array, " N"]:
    """Return evenly spaced first actions, so that the share of starts measures the size of a basin."""
    return (2 * jnp.arange(count) + 1) / count - 1


def returns(dynamics: AbstractDynamics, task: OneBounce, actions: Float[Array, "N H 1"]) -> Float[Array, " N"]:
    """Return each plan's return in `dynamics`."""
    value = lambda plan: unroll(dynamics, plan, start_of(task), task.horizon, reward=task.reward).returns()
    return jax.jit(jax.vmap(value))(actions)


def ascend(dynamics: AbstractDynamics, task: OneBounce, setting: Setting) -> Float[Array, "N H 1"]:
    """Improve the plans by Adam on the gradient through `dynamics`; actions are clipped to [-1, 1]."""
    optimiser = optax.adam(optax.cosine_decay_schedule(setting.step_size, setting.ascents))

    def climb(carry, _):
        plan, memory = carry
        _, grads = unroll_grad(dynamics, plan, start_of(task), task.horizon, reward=task.reward)
        step, memory = optimiser.update(-grads, memory)
        return (jnp.clip(plan + step, -1, 1), memory), None

    run = lambda plan: lax.scan(climb, (plan, optimiser.init(plan)), length=setting.ascents)[0][0]
    return jax.jit(jax.vmap(run))(plans(task, even(setting.starts)))


def plan_cell(task: OneBounce, method: str, setting: Setting, seeds: int) -> dict:
    """Return, for each seed, the model's error by step, its landscape along the first action, and where ascent in it ends."""
    rows = []
    grid = plans(task, jnp.linspace(-1, 1, setting.landscape))
    for seed in range(1 if method == "simulator" else seeds):  # The simulator's ascent is deterministic.
        dynamics, error = fit_model(task, method, setting, jax.random.key(seed))
        reached = ascend(dynamics, task, setting)
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
    """Train all seeds by BPO; return the true return of the mode and its first action."""
    keys = jax.random.split(jax.random.key(0), seeds)
    result = learn(task, method, setting.training_episodes, keys, actions=uniform_actions)
    seen = record(result)
    firsts = eqx.filter_vmap(lambda policy: policy(start_of(task), 0)[0])(result.policy)
    return {**seen, "returns": [curve[-1] for curve in seen["curve"]], "firsts": firsts}


CELLS = {"plan": plan_cell, "policy": policy_cell}


def figure(setting: Setting, cells: dict[Any, Row]) -> Figure:
    """Draw the landscapes, and the regrets of the plans and of the policies; one row per wall."""
    variants, methods = ([name for name in names if any(name in key for key in cells)] for names in (VARIANTS, METHODS))
    fig, axes = plt.subplots(len(variants), 3, figsize=(13, 3.8 * len(variants)), squeeze=False)
    grid = np.linspace(-1, 1, setting.landscape)
    for row, variant in zip(axes, variants, strict=True):
        task = OneBounce(setting.horizon, **VARIANTS[variant])
        true = np.asarray(returns(task, task, plans(task, jnp.asarray(grid))))
        row[0].plot(grid, true, color=COLOURS["simulator"], lw=2.5)
        row[0].set_ylim(1.5 * true.min(), -0.2 * true.min())  # Models that feed predictions back fall to -1e13 and lower.
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
        row[0].set(
            title=f"{variant.capitalize()}: true return (thick) and models' returns", xlabel="first action", ylabel="return"
        )
        row[1].set(title="Plans after ascent", xlabel="share of starts, worst first", ylabel="true regret", yscale="log")
        row[2].set(title="Policies after BPO, each seed", ylabel="true regret", yscale="log", xlim=(-0.5, len(methods) - 0.5))
        row[2].set_xticks(range(len(methods)), [name.replace(" ", "\n") for name in methods], fontsize=8)
        for axis in row[1:]:
            axis.set_ylim(FLOOR / 2, 2)
            axis.axhline(CLOSE, color="grey", ls=":", lw=1)
    fig.legend(*axes[0, 1].get_legend_handles_labels(), loc="outside lower center", ncols=len(methods))
    return fig


def table(cells: dict[Any, Row]) -> str:
    """Return medians over seeds; for plans also quartiles over starts and seeds. The optimum is 0."""
    rows = []
    for variant, method in dict.fromkeys((variant, method) for _, variant, method in cells):
        plan, policy = (np.ravel(cells[part, variant, method]["returns"]) for part in CELLS)
        quartiles = ", ".join(f"{x:.4f}" for x in np.quantile(plan, [0.25, 0.5, 0.75]))
        spread = ", ".join(f"{x:.5f}" for x in (np.median(policy), policy.min(), policy.max()))
        rows.append([variant, method, quartiles, f"{np.mean(plan > -CLOSE):.0%}", spread])
    plans_head = "plans: lower quartile, median, upper quartile of the true return"
    return markdown(["wall", "method", plans_head, f"within {CLOSE}", "policies: median, worst, best"], rows)


def main() -> None:
    parser = arguments(__doc__, "one_bounce")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    options = parser.parse_args()
    setting = QUICK if options.quick else Setting()
    if options.quick:
        options.methods, options.variants, options.seeds = ["AWM LSTM", "simulator"], ["far wall"], 1
    work = dataclasses.asdict(setting)
    work["lived"] = work.pop("training_episodes")  # the key in the published raw values
    cells = {}
    for part, variant, method in [(p, v, m) for v in options.variants for m in options.methods for p in CELLS]:
        task = OneBounce(setting.horizon, **VARIANTS[variant])
        config = {"part": part, "variant": variant, "method": method, "seeds": options.seeds, **work}
        label = f"{part}-{variant}-{method}-H{setting.horizon}"
        cells[part, variant, method] = label, config, partial(CELLS[part], task, method, setting, options.seeds)
    study = Study(options, "one_bounce")
    study.write(table(study.collect(cells, partial(figure, setting))))


if __name__ == "__main__":
    main()
