"""Should a sequence model be fitted to whole episodes, to their rests too, or be anchored?

    python examples/paper/windows.py                     two variants, four models, three seeds: 20 minutes on one core
    python examples/paper/windows.py --tasks Bacteria    one of them
    python examples/paper/windows.py --quick             one variant, few updates: 2 minutes
    python examples/paper/windows.py --from-raw          the table again, from the published values

While a policy learns, the replay buffer has some episodes of random actions, and some of policies so far. Here these are 1,500 steps
of pink actions, 5 episodes near the best constant action and 10 near a plan halfway from it to the optimal one, with a quarter of
pink actions added, on a variant of a task (variants.py, of draw 1, by which settings are chosen). An AWM is fitted to whole episodes,
or with `window=task.horizon, from_start=0.5`: half of each batch are the rests of episodes from any step on. An anchored AWM
(`awmkit.Anchored`) is fitted to windows of 10 steps. Markov, which is fitted to single steps anyway, is there to compare, with the
time and the mean of each step, and without.

The table has the cosine of the gradient of the return in the model with the simulator's, at the plan halfway: the median over seeds,
each, and that of the mean of the models' gradients, which is that of an `Ensemble` of them.
"""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from methods import EVERY, MODELS, MODELS_OF_VARIANTS
from myriad import NINE
from optimal import solve
from study import arguments, markdown, read, RESULTS, Study
from variants import draw, parameters

from awmkit import fit, NoProgress, pink_actions, unroll
from awmkit.tasks import Discretised

METHODS = "AWM transformer", "AWM GRU"
ANCHORED = "AWM transformer, anchored"


def cell(task: Discretised, method: str, window: int | None, updates: int, seeds: int) -> dict[str, Any]:
    """Fit a model for each seed, and compare its gradient with the simulator's."""
    start, shape, known = task.reset(jax.random.key(0)), (task.horizon, task.action_size), solve(task, starts=12)
    constant = jnp.broadcast_to(jnp.asarray(known["best_constant_action"], jnp.float32), shape)
    halfway = (constant + jnp.asarray(known["actions"], jnp.float32)) / 2
    return_in = lambda plan, dynamics: unroll(dynamics, plan, start, task.horizon, reward=task.reward).returns()
    gradient = eqx.filter_jit(eqx.filter_grad(return_in))
    collect = jax.jit(jax.vmap(lambda plan: unroll(task, plan, start, task.horizon)))
    exact, found = gradient(0.95 * halfway, task), []

    def near(plan, episodes, key):
        noise = jax.vmap(lambda key: pink_actions(key, shape))(jax.random.split(key, episodes))
        return jnp.clip(plan + 0.25 * noise, -1, 1)

    for key in jax.random.split(jax.random.key(0), seeds):
        *model_keys, random_key, near_key, fit_key = jax.random.split(key, 5)
        random = jax.vmap(lambda k: pink_actions(k, shape))(jax.random.split(random_key, -(-1500 // task.horizon)))
        first_key, second_key = jax.random.split(near_key)
        data = collect(jnp.concatenate([random, near(constant, 5, first_key), near(halfway, 10, second_key)]))
        optimiser = optax.adam(optax.cosine_decay_schedule(2e-3, updates, 0.03))
        options: dict[str, Any] = {"updates": updates, "batch_size": 12, "microbatch_size": 3, "holdout": 0.0}
        if window is not None:
            options |= {"window": window, "from_start": 0.5} if window == task.horizon else {"window": window, "batch_size": 48}
        model = (MODELS | MODELS_OF_VARIANTS)[method](task, *model_keys)
        model = fit(model, data, key=fit_key, optimiser=optimiser, progress=NoProgress(), **options).model
        found.append(gradient(0.95 * halfway, model))
    cosine = lambda g: jnp.sum(g * exact) / jnp.sqrt(jnp.sum(g**2) * jnp.sum(exact**2))
    return {"cosine": [cosine(g) for g in found], "of_the_mean": cosine(jnp.mean(jnp.stack(found), axis=0))}


def main() -> None:
    parser = arguments(__doc__, "windows", seeds=3)
    parser.add_argument("--tasks", nargs="+", choices=NINE, default=["InvasivePlant", "Bacteria"])
    options = parser.parse_args()
    if options.quick:
        options.tasks = options.tasks[:1]
    updates, methods = (50, METHODS[1:]) if options.quick else (1500, METHODS)
    ways = [(method, label) for method in methods for label in ("whole episodes", "windows")]
    ways += [(ANCHORED, f"{EVERY} steps"), ("Markov", "steps"), ("Markov, time-free", "steps")]
    cells = {}
    for name, task in {name: draw(name, 0, 1) for name in options.tasks}.items():
        for method, label in ways:
            window = {"windows": task.horizon, f"{EVERY} steps": EVERY}.get(label)
            config = {**parameters(task), "method": method, "fitted_to": label, "updates": updates, "seeds": options.seeds}
            run = partial(cell, task, method, window, updates, options.seeds)
            cells[name, method, label] = f"{name}, {method}, {label}", config, run
    if options.from_raw:  # The published values may be part of the grid.
        published = read(RESULTS / "windows.jsonl.gz")
        cells = {key: (c[0], published[c[0]]["config"], c[2]) for key, c in cells.items() if c[0] in published}
    study, lines = Study(options, "windows"), []
    for (name, method, label), row in study.collect(cells).items():
        each = ", ".join(f"{x:.2f}" for x in row["cosine"])
        lines.append([name, method, label, f"{np.median(row['cosine']):.2f}", each, f"{row['of_the_mean']:.2f}"])
    study.write(markdown(["variant of draw 1", "model", "fitted to", "cosine", "of each seed", "of their mean"], lines))


if __name__ == "__main__":
    main()
