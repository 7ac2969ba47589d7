"""BPO in a MuJoCo simulator: swing up a cart-pole by MJX's own gradient, by two world models' and by soft actor-critic.

    python examples/mjx_cartpole.py                       three seeds of 10,000 steps, 100 an episode: 8 minutes of a core
    python examples/mjx_cartpole.py --quick               one seed, two methods, 50 steps an episode: 2 to 3 minutes
    python examples/mjx_cartpole.py --episodes 400        40,000 steps: 25 minutes of a core

The task is `awmkit.mjx.cartpole`: from hanging, the return is the pole's mean height over the episode, -1 to 1, less small
costs. Every method has the same steps of the environment, and the models the same hyper-parameters as in `myriad.py`. All
seeds of a method run as one program, so that MJX, which compiles slowly, is compiled once for them; the table's seconds are
of all seeds together, compilation included.

Expect at 10,000 steps, medians of three seeds: Markov -0.08, the simulator -0.11, AWM LSTM -0.69 (at best along the way -0.19),
SAC -0.86; doing nothing -1.00, random actions -1.11. At 40,000: the simulator 0.02, Markov -0.08, SAC -0.22, AWM LSTM -0.29.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from methods import learn, record, train_sac
from study import arguments, Study

from awmkit import Paths, unroll
from awmkit.mjx import cartpole, MJXTask

METHODS = ("AWM LSTM", "Markov", "simulator", "SAC")
EVALUATIONS = 5  # episodes
# The paper's, damped from step to step. Undamped, Markov's gradient overflows in states that it has not seen, and no update of
# the policy then gets it out of there.
DAMPED = Paths(state_to_policy=0.0, state_to_model=0.95)


def cell(task: MJXTask, method: str, episodes: int, seeds: int) -> dict:
    """All seeds of a method."""
    keys = jax.random.split(jax.random.key(0), seeds)
    if method == "SAC":
        result = train_sac(task, episodes, keys, evaluations=EVALUATIONS)
        return {"steps": result.steps[0], "curve": result.returns}
    return record(learn(task, method, episodes, keys, evaluations=EVALUATIONS, paths=DAMPED))


def idle(task: MJXTask) -> dict:
    """The returns of doing nothing and of actions drawn at random, 20 episodes each."""
    keys = jax.random.split(jax.random.key(1), 20)
    drawn = jax.random.uniform(jax.random.key(2), (20, task.horizon, task.action_size), minval=-1.0)
    run = lambda key, actions: unroll(task, actions, task.reset(key), task.horizon, reward=task.reward).returns()
    episodes = jax.jit(jax.vmap(run))(jnp.concatenate([keys, keys]), jnp.concatenate([0 * drawn, drawn]))
    return {"doing nothing": episodes[:20], "random actions": episodes[20:]}


def figure(runs: dict[str, dict], floor: dict) -> Figure:
    """True returns along the runs: each seed, and their median."""
    fig, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    for i, (method, run) in enumerate(runs.items()):
        curves = np.array(run["curve"])
        axis.plot(run["steps"], curves.T, color=f"C{i}", lw=0.7, alpha=0.5)
        axis.plot(run["steps"], np.median(curves, axis=0), color=f"C{i}", lw=2, label=method)
    for style, (name, returns) in zip((":", "--"), floor.items(), strict=True):
        axis.axhline(np.mean(returns), color="k", ls=style, lw=1, label=name)
    axis.set(xlabel="environment steps", ylabel=f"true return, mean of {EVALUATIONS} episodes", title="MJX cart-pole")
    axis.set_yscale("symlog", linthresh=1.5, linscale=3)  # A cart that runs away is paid decades less.
    ticks = (-30, -10, -1, -0.5, 0, 0.5, 1)
    axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    fig.legend(fontsize=8, loc="outside lower center", ncols=3)
    return fig


def table(runs: dict[str, dict], floor: dict) -> str:
    """Medians over seeds of the last and the best evaluation, in Markdown."""
    rows = ["| method | last return | best return | seconds |", "|---|---|---|---|"]
    for method, run in runs.items():
        curves = np.array(run["curve"])
        spread = lambda x: f"{np.median(x):.2f} ({x.min():.2f} .. {x.max():.2f})"
        rows.append(f"| {method} | {spread(curves[:, -1])} | {spread(curves.max(axis=1))} | {run['seconds']:.0f} |")
    return "\n".join([*rows, *(f"| {name} | {np.mean(returns):.2f} | | |" for name, returns in floor.items())])


def main() -> None:
    parser = arguments(__doc__, "mjx_cartpole", seeds=3)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--horizon", type=int, default=100, help="steps of an episode, of 0.05 s")
    parser.add_argument("--episodes", type=int, default=100, help="of the environment in all, warm-up included")
    options = parser.parse_args()
    if options.quick:
        options.methods, options.horizon, options.episodes, options.seeds = ["AWM LSTM", "Markov"], 50, 40, 1
    task = cartpole(options.horizon, frame_skip=5)
    study = Study(options.out, total=1 + len(options.methods))
    size = {"horizon": options.horizon, "episodes": options.episodes, "seeds": options.seeds}
    label = f"H{options.horizon}-E{options.episodes}-S{options.seeds}"
    idled = study.run(f"idle-H{options.horizon}", {"horizon": options.horizon}, lambda: idle(task))
    floor = {name: idled[name] for name in ("doing nothing", "random actions")}
    runs = {}
    for method in options.methods:
        fn = lambda m=method: cell(task, m, options.episodes, options.seeds)
        runs[method] = study.run(f"{method}-{label}", {"method": method, **size}, fn)
        figure(runs, floor).savefig(options.out / f"{label}.png", dpi=110)
        plt.close("all")
    text = f"{options.episodes} episodes of {options.horizon} steps, {options.seeds} seeds\n\n{table(runs, floor)}\n"
    (options.out / f"{label}.md").write_text(text)
    print("\n" + text)


if __name__ == "__main__":
    main()
