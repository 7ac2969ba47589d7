"""Which random actions should a model be fitted to before a policy learns in it?

    python examples/paper/warmup.py                                    three variants, two seeds: 10 minutes on one core
    python examples/paper/warmup.py --tasks InvasivePlant              one of them
    python examples/paper/warmup.py --quick                            one variant, few updates: 2 minutes
    python examples/paper/warmup.py --from-raw                         the table again, from the published values

An AWM transformer is fitted to 1,500 steps of random actions on a variant of a task (variants.py, of draw 1, by which settings are
chosen). The table has its mean square error on these steps in units of their variance, and the cosine of the gradient of its return
with the simulator's at the best constant action: the mean over seeds, and each.
"""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from methods import MODELS
from myriad import NINE
from optimal import solve
from study import arguments, markdown, read, RESULTS, Study
from variants import draw, parameters

from awmkit import fit, held_actions, NoProgress, pink_actions, uniform_actions, unroll
from awmkit.tasks import Discretised

ACTIONS = {"uniform": uniform_actions, "held": held_actions, "pink": pink_actions}


def cell(task: Discretised, kind: str, updates: int, seeds: int) -> dict[str, Any]:
    """Fit a model for each seed, and compare its gradient with the simulator's."""
    start, shape, episodes = task.reset(jax.random.key(0)), (task.horizon, task.action_size), -(-1500 // task.horizon)
    level = jnp.asarray(solve(task, starts=2)["best_constant_action"], jnp.float32)
    plan = jnp.broadcast_to(0.95 * level, shape)
    return_in = lambda plan, dynamics: unroll(dynamics, plan, start, task.horizon, reward=task.reward).returns()
    gradient = eqx.filter_jit(eqx.filter_grad(return_in))
    collect = jax.jit(jax.vmap(lambda plan: unroll(task, plan, start, task.horizon)))
    exact, losses, cosines = gradient(plan, task), [], []
    for key in jax.random.split(jax.random.key(0), seeds):
        *model_keys, data_key, fit_key = jax.random.split(key, 4)
        data = collect(jax.vmap(lambda k: ACTIONS[kind](k, shape))(jax.random.split(data_key, episodes)))
        optimiser = optax.adam(optax.cosine_decay_schedule(2e-3, updates, 0.03))
        sizes = {"updates": updates, "batch_size": 12, "microbatch_size": 3, "holdout": 0.0}
        model = MODELS["AWM transformer"](task, *model_keys)
        result = fit(model, data, key=fit_key, optimiser=optimiser, progress=NoProgress(), **sizes)
        found = gradient(plan, result.model)
        losses.append(2 * jnp.mean(result.losses[-20:]))
        cosines.append(jnp.sum(found * exact) / jnp.sqrt(jnp.sum(found**2) * jnp.sum(exact**2)))
    return {"training_error": losses, "cosine": cosines}


def main() -> None:
    parser = arguments(__doc__, "warmup", seeds=2)
    parser.add_argument("--tasks", nargs="+", choices=NINE, default=["InvasivePlant", "Bacteria", "BearPopulations"])
    options = parser.parse_args()
    updates = 50 if options.quick else 500
    tasks = {name: draw(name, 0, 1) for name in (options.tasks[:1] if options.quick else options.tasks)}
    cells = {}
    for name, task in tasks.items():
        for kind in ACTIONS:
            config = {**parameters(task), "actions": kind, "updates": updates, "seeds": options.seeds}
            cells[name, kind] = f"{name}, {kind}", config, partial(cell, task, kind, updates, options.seeds)
    if options.from_raw:  # The published values may be part of the grid.
        published = read(RESULTS / "warmup.jsonl.gz")
        cells = {key: (c[0], published[c[0]]["config"], c[2]) for key, c in cells.items() if c[0] in published}
    study, lines = Study(options, "warmup"), []
    for (name, kind), row in study.collect(cells).items():
        each = ", ".join(f"{x:.2f}" for x in row["cosine"])
        lines.append([name, kind, f"{np.mean(row['training_error']):.2g}", f"{np.mean(row['cosine']):.2f}", each])
    study.write(markdown(["variant of draw 1", "actions", "error in training", "cosine", "of each seed"], lines))


if __name__ == "__main__":
    main()
