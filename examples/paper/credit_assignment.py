"""Credit assignment: the return and the first action that each kind of model leads to, against the delay of the reward.

    python examples/credit_assignment.py             delays of 20, 50, 100 and 200 steps, with and without distractor
    python examples/credit_assignment.py --quick     one delay, two methods, two seeds: about a minute
    python examples/credit_assignment.py --horizons 100 --variants distractor --methods "AWM transformer"

Only the first action matters, and is paid for at the last step: at most 10, where it is 0.5. In between nothing happens, or a
distractor, drawn anew at each step, pays for being tracked. Every run learns from 50 episodes, 15 of random actions. Each
method has one set of hyper-parameters for all delays (see `train`); all seeds of a method and a delay run as one program.
Evaluated is the policy's mode, in 256 true episodes: what the first action is depends on the distractor's first value, if it is
not ignored.
Runs are kept one by one: stop it, start it again, add to it.

No model can predict the distractor. The best a model can do is its mean, and in a model that does no more a policy sees no
distractor to track; what a model has memorised of the noise of its few episodes is, to the policy, as good as a distractor.

Expect with the distractor, seeds of five whose first action is within 0.05 of 0.5 in the mean over starts, at delays of 20, 50,
100, 200: AWM transformer 4, 5, 4, 3; Markov 4, 5, 5, 4; AWM LSTM 1, 2, 2, 2; HWM transformer 4, 0, 0, 0; HWM LSTM 4, 0, 1, 1;
the simulator all. Without: AWM transformer 5, 5, 5, 3; Markov 5, 5, 5, 4; AWM LSTM 4, 2, 2, 2; HWM transformer 4, 3, 0, 0; HWM
LSTM 4, 1, 2, 3. A cell takes from 13 seconds of a core (simulator, H = 20) to 16 minutes (HWM transformer, H = 200), all 48 two
hours.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Array, Scalar
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from methods import COLOURS, learn, record, WARMUP
from study import arguments, Study

from awmkit import uniform_actions, unroll
from awmkit.tasks import CreditAssignment

METHODS = ("AWM transformer", "AWM LSTM", "HWM transformer", "HWM LSTM", "Markov", "simulator")
VARIANTS = {"delay alone": 0.0, "distractor": 1.0}  # weight of what the distractor pays
BEST_FIRST, CLOSE, EVALUATIONS = 0.5, 0.05, 256


def cell(task: CreditAssignment, method: str, episodes: int, seeds: int) -> dict:
    """All seeds of a method at one delay.

    Warm-up actions are independent: were the first one like the others, a model need not tell it from them.
    """
    keys = jax.random.split(jax.random.key(0), seeds)
    result = learn(task, method, episodes, keys, starts=8, evaluations=16, actions=uniform_actions)
    return {**record(result), **eqx.filter_vmap(lambda policy: evaluate(task, policy))(result.policy)}


@eqx.filter_jit
def evaluate(task: CreditAssignment, policy: Callable[..., Array]) -> dict[str, Scalar]:
    """Means over true episodes of a policy's mode; `tracking` is the mean square distance to the distractor."""

    def episode(key):
        reset_key, unroll_key = jax.random.split(key)
        mode = lambda state, t, *, key=None: policy(state, t)
        lived = unroll(task, mode, task.reset(reset_key), task.horizon, reward=task.reward, key=unroll_key)
        first, distractor = lived.actions[0, 0], lived.states[1:-2, 1]
        return {
            "returns": lived.returns(),
            "first_actions": first,
            "first_errors": jnp.abs(first - BEST_FIRST),
            "tracking": jnp.mean((distractor - lived.actions[1:-1, 0]) ** 2),
        }

    episodes = jax.vmap(episode)(jax.random.split(jax.random.key(1), EVALUATIONS))
    return {name: jnp.mean(x) for name, x in episodes.items()}


def bounds(variant: str, horizon: float) -> dict[str, float]:
    """Expected returns of the best first action and of what can be done about the distractor."""
    paid = VARIANTS[variant] * (horizon - 2) / horizon
    # E[(|y| - 1)^2 for |y| > 1], what clipping to [-1, 1] leaves of a standard normal y.
    return {"best": 10 - 0.1507 * paid, "best that ignores the distractor": 10 - paid}


def figure(cells: dict, variants: list[str], horizons: list[int]) -> Figure:
    """Return, and distance of the first action to its best value, against the delay: medians over seeds, and every seed."""
    fig, axes = plt.subplots(2, len(variants), figsize=(1 + 5 * len(variants), 7), sharex=True, squeeze=False)
    methods = [method for method in METHODS if any(method == m for _, m, _ in cells)]
    delays = np.geomspace(min(horizons) / 1.2, max(horizons) * 1.2)  # One delay alone would show no line.
    for column, variant in enumerate(variants):
        for i, method in enumerate(methods):
            shift = 1.04 ** (i - (len(methods) - 1) / 2)  # side by side on a logarithmic axis
            done = [h for h in horizons if (variant, method, h) in cells]
            for row, name in enumerate(("returns", "first_errors")):
                values = [np.asarray(cells[variant, method, h][name]) for h in done]
                x = shift * np.array(done)
                axes[row, column].plot(x, [np.median(v) for v in values], "-_", ms=10, color=COLOURS[method], label=method)
                for at, seeds in zip(x, values, strict=True):
                    axes[row, column].plot(np.full(seeds.size, at), seeds, ".", color=COLOURS[method], alpha=0.6)
        for (name, _), style in zip(bounds(variant, 20).items(), ("--", ":"), strict=True):
            if variant != "delay alone" or name == "best":
                expected = [bounds(variant, h)[name] for h in delays]
                axes[0, column].plot(delays, expected, style, color="grey", lw=1, label=name)
        axes[0, column].set(title=variant, ylabel="true return")
        axes[1, column].set(xlabel="delay H, steps", ylabel="$|a_0 - 0.5|$, mean over starts", xscale="log", yscale="log")
        axes[1, column].axhline(CLOSE, color="grey", ls=":", lw=1)
        axes[1, column].set_xticks(horizons, [str(h) for h in horizons])
        axes[1, column].xaxis.set_minor_locator(NullLocator())
    axes[0, -1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    fig.tight_layout()
    return fig


def table(cells: dict, variants: list[str], methods: list[str], horizons: list[int]) -> str:
    """Medians over seeds, and how many seeds found the first action."""
    lines = []
    for variant in variants:
        lines += [f"{variant}: median true return; median |a_0 - 0.5|; seeds within {CLOSE}", ""]
        lines += ["| |" + "".join(f" H = {h} |" for h in horizons), "|---|" + "---|" * len(horizons)]
        for method in methods:
            entries = (cells[variant, method, h] for h in horizons)
            lines.append(f"| {method} |" + "".join(f" {summary(entry)} |" for entry in entries))
        lines += ["| best |" + "".join(f" {bounds(variant, h)['best']:.2f} |" for h in horizons), ""]
    return "\n".join(lines)


def summary(entry: dict) -> str:
    errors = np.asarray(entry["first_errors"])
    return f"{np.median(entry['returns']):.2f}; {np.median(errors):.3f}; {np.sum(errors <= CLOSE)}/{errors.size}"


def main() -> None:
    parser = arguments(__doc__, "credit_assignment")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--horizons", nargs="+", type=int, default=[20, 50, 100, 200], help="the delays")
    parser.add_argument("--episodes", type=int, default=50, help=f"in all, {WARMUP} of random actions among them")
    options = parser.parse_args()
    if options.quick:
        options.methods, options.variants = ["AWM transformer", "simulator"], ["distractor"]
        options.horizons, options.seeds, options.episodes = [20], 2, 30
    grid = [(v, m, h) for h in options.horizons for v in options.variants for m in options.methods]
    study = Study(options.out, total=len(grid))
    cells = {}
    for variant, method, horizon in grid:
        task = CreditAssignment(horizon, distraction=VARIANTS[variant])
        config = {"variant": variant, "method": method, "horizon": horizon, "episodes": options.episodes}
        config["seeds"] = options.seeds
        label = f"{variant}-{method}-H{horizon}-E{options.episodes}"
        cells[variant, method, horizon] = study.run(
            label, config, lambda t=task, m=method: cell(t, m, options.episodes, options.seeds)
        )
        figure(cells, options.variants, options.horizons).savefig(study.out / "credit_assignment.png", dpi=110)
        plt.close("all")
    text = table(cells, options.variants, options.methods, options.horizons)
    (study.out / "table.md").write_text(text)
    print("\n" + text)


if __name__ == "__main__":
    main()
