"""Which model finds an action whose reward comes many steps later?

    python examples/paper/credit_assignment.py              delays of 20, 50, 100 and 200 steps: 2 hours on one core
    python examples/paper/credit_assignment.py --quick      one delay, two methods, two seeds: 1 minute
    python examples/paper/credit_assignment.py --from-raw   the table and the figure again, from the published values
    python examples/paper/credit_assignment.py --horizons 100 --variants distractor --methods "AWM transformer"

Only the first action matters: it earns at most 10, at the last step, if it is 0.5. In the variant "distractor" a random number
is shown at each step in between, and following it with the action earns a little. Each method learns from 50 episodes, 15 of
them random, with one set of hyper-parameters for all delays (methods.py). The policy's mode is evaluated in 256 true episodes.
The first action may depend on the distractor's first value, so its error is averaged over starts.

No model can predict the distractor; the best prediction is its mean. In such a model the policy sees no distractor to follow.

Expected number of seeds of five that find the first action (within 0.05) at delays of 20, 50, 100, 200 behind the distractor:
AWM transformer 4, 5, 4, 3; Markov 4, 5, 5, 4; AWM LSTM 1, 2, 2, 2; HWM transformer 4, 0, 0, 0; HWM LSTM 4, 0, 1, 1; simulator
5, 5, 5, 5. Without it: AWM transformer 5, 5, 5, 3; Markov 5, 5, 5, 4; AWM LSTM 4, 2, 2, 2; HWM transformer 4, 3, 0, 0; HWM LSTM
4, 1, 2, 3. A cell takes from 13 seconds (simulator, 20 steps) to 16 minutes (HWM transformer, 200 steps) on one core.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Array, Scalar
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from methods import learn, record
from study import arguments, markdown, Row, Study

from awmkit import uniform_actions, unroll
from awmkit.plot import COLOURS
from awmkit.tasks import CreditAssignment

METHODS = ("AWM transformer", "AWM LSTM", "HWM transformer", "HWM LSTM", "Markov", "simulator")
VARIANTS = {"delay alone": 0.0, "distractor": 1.0}  # weight of the reward for following the distractor
BEST_FIRST, CLOSE, EVALUATIONS = 0.5, 0.05, 256


def cell(task: CreditAssignment, method: str, episodes: int, seeds: int) -> dict:
    """Train and evaluate all seeds of a method at one delay.

    Warm-up actions are independent of each other, so that a model can tell their effects apart.
    """
    keys = jax.random.split(jax.random.key(0), seeds)
    result = learn(task, method, episodes, keys, starts=8, evaluations=16, actions=uniform_actions)
    return {**record(result), **eqx.filter_vmap(lambda policy: evaluate(task, policy))(result.policy)}


@eqx.filter_jit
def evaluate(task: CreditAssignment, policy: Callable[..., Array]) -> dict[str, Scalar]:
    """Return means over true episodes of a policy's mode; `tracking` is the mean square distance to the distractor."""

    def episode(key):
        reset_key, unroll_key = jax.random.split(key)
        mode = lambda state, t, *, key=None: policy(state, t)
        seen = unroll(task, mode, task.reset(reset_key), task.horizon, reward=task.reward, key=unroll_key)
        first, distractor = seen.actions[0, 0], seen.states[1:-2, 1]
        return {
            "returns": seen.returns(),
            "first_actions": first,
            "first_errors": jnp.abs(first - BEST_FIRST),
            "tracking": jnp.mean((distractor - seen.actions[1:-1, 0]) ** 2),
        }

    episodes = jax.vmap(episode)(jax.random.split(jax.random.key(1), EVALUATIONS))
    return {name: jnp.mean(x) for name, x in episodes.items()}


def bounds(variant: str, horizon: float) -> dict[str, float]:
    """Return the expected return of the best first action, with the distractor followed as well as possible or ignored."""
    paid = VARIANTS[variant] * (horizon - 2) / horizon
    # An action in [-1, 1] cannot follow a standard normal y beyond: E[(|y| - 1)^2 if |y| > 1] = 0.1507 is lost.
    return {"best": 10 - 0.1507 * paid, "best that ignores the distractor": 10 - paid}


def figure(options: argparse.Namespace, cells: dict[Any, Row]) -> Figure:
    """Draw the return and the error of the first action against the delay: each seed, and the median."""
    variants, horizons = options.variants, options.horizons
    size = (1 + 4.5 * len(variants), 6.5)
    fig, axes = plt.subplots(2, len(variants), figsize=size, sharex=True, squeeze=False)
    delays = np.geomspace(min(horizons) / 1.2, max(horizons) * 1.2)
    for (upper, lower), variant in zip(axes.T, variants, strict=True):
        for i, method in enumerate(options.methods):
            done = [h for h in horizons if (variant, method, h) in cells]
            x = 1.04 ** (i - (len(options.methods) - 1) / 2) * np.array(done)  # side by side on a logarithmic axis
            for axis, name in ((upper, "returns"), (lower, "first_errors")):
                values = [np.asarray(cells[variant, method, h][name]) for h in done]
                axis.plot(x, [np.median(v) for v in values], "-_", ms=10, color=COLOURS[method], label=method)
                for at, seeds in zip(x, values, strict=True):
                    axis.plot(np.full(seeds.size, at), seeds, ".", color=COLOURS[method], alpha=0.6)
        for (name, _), style in zip(bounds(variant, 20).items(), ("--", ":"), strict=True):
            if VARIANTS[variant] or name == "best":
                upper.plot(delays, [bounds(variant, h)[name] for h in delays], style, color="grey", lw=1, label=name)
        upper.set(title=variant.capitalize(), ylabel="true return")
        lower.set(xlabel="delay H, steps", ylabel="$|a_0 - 0.5|$, mean over starts", xscale="log", yscale="log")
        lower.axhline(CLOSE, color="grey", ls=":", lw=1)
        lower.set_xticks(horizons, [str(h) for h in horizons])
        lower.xaxis.set_minor_locator(NullLocator())
    fig.legend(*axes[0, -1].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return fig


def table(options: argparse.Namespace, cells: dict[Any, Row]) -> str:
    """Return medians over seeds, and how many seeds found the first action."""
    texts = []
    for variant in options.variants:
        rows = [[m, *(summary(cells[variant, m, h]) for h in options.horizons)] for m in options.methods]
        rows.append(["best", *(f"{bounds(variant, h)['best']:.2f}" for h in options.horizons)])
        title = f"{variant}: median true return; median |a_0 - 0.5|; seeds within {CLOSE}"
        texts.append(f"{title}\n\n{markdown(['', *(f'H = {h}' for h in options.horizons)], rows)}")
    return "\n\n".join(texts)


def summary(row: Row) -> str:
    errors = np.asarray(row["first_errors"])
    return f"{np.median(row['returns']):.2f}; {np.median(errors):.3f}; {np.sum(errors <= CLOSE)}/{errors.size}"


def main() -> None:
    parser = arguments(__doc__, "credit_assignment")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--horizons", nargs="+", type=int, default=[20, 50, 100, 200], help="delays, in steps")
    parser.add_argument("--episodes", type=int, default=50, help="number of episodes, warm-up included")
    options = parser.parse_args()
    if options.quick:
        options.methods, options.variants = ["AWM transformer", "simulator"], ["distractor"]
        options.horizons, options.seeds, options.episodes = [20], 2, 30
    cells = {}
    for variant, method, horizon in [(v, m, h) for h in options.horizons for v in options.variants for m in options.methods]:
        task = CreditAssignment(horizon, distraction=VARIANTS[variant])
        config = {"variant": variant, "method": method, "horizon": horizon, "episodes": options.episodes}
        label, run = f"{variant}-{method}-H{horizon}-E{options.episodes}", (task, method, options.episodes, options.seeds)
        cells[variant, method, horizon] = label, config | {"seeds": options.seeds}, partial(cell, *run)
    study = Study(options, "credit_assignment")
    study.write(table(options, study.collect(cells, partial(figure, options))))


if __name__ == "__main__":
    main()
