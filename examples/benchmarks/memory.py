"""What does a policy gain from a memory where the state does not show all that matters?

    python examples/benchmarks/memory.py               two tasks, five seeds: 15 minutes
    python examples/benchmarks/memory.py --quick       a few updates of everything: 5 minutes
    python examples/benchmarks/memory.py --from-raw    the published table

Three policies of the same size, about 1,200 weights: a Gaussian policy that sees the state, one that also sees the step, and a
GRU. Two tasks:

- credit assignment with a hidden action: the first action is rewarded in the last step, and only following the distractor in
  between. Every state before the last looks like the first, so without a memory or the time no policy knows when to do what.
- HIV seen in part: virulence differs from patient to patient by up to a factor of 100. Only healthy cells are counted; infected
  cells, virus and virulence are hidden. What the cells did since the start shows how virulent the virus is.

They are improved in the simulator, by BPO and by the closed loop, and in world models of what is observed, by BPO. All seeds of a
row are one program. A return is the mean of 256 episodes in the task, without noise of the policy.
"""

import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from raw import arguments, markdown, Raw, until_stopped

from awmkit import (
    AbstractTask,
    AWM,
    BPO,
    evaluate,
    fit,
    FullHorizon,
    GaussianPolicy,
    GRU,
    GRUPolicy,
    held_actions,
    improve,
    Markov,
    NoProgress,
    Paths,
    Trajectory,
    unroll,
)
from awmkit.tasks import CreditAssignment, Discretised, HIVTreatment, PartlyObserved

NAMES = "Gaussian", "Gaussian, with time", "GRU"
PATHS = {"BPO": BPO, "closed loop": Paths()}


class Patients(AbstractTask):
    """The HIV problem, whose rate of infection is 2.4e-5 times a factor of 0.1 to 10. State: (x, y, v, log of the factor)."""

    horizon: int = eqx.field(static=True, default=50)
    state_size: int = eqx.field(static=True, default=4)
    action_size: int = eqx.field(static=True, default=1)
    bounded_actions = True

    def step(self, carry, state, action, t, *, key=None):
        patient = Discretised(HIVTreatment(k=2.4e-5 * jnp.exp(state[3])), self.horizon)
        return carry, jnp.append(patient.step(None, state[:3], action, t)[1], state[3])

    def reward(self, state, action, t):
        return Discretised(HIVTreatment(), self.horizon).reward(state[:3], action, t)

    def reset(self, key):
        return jnp.append(jnp.array(HIVTreatment().x0), jax.random.uniform(key, (), minval=jnp.log(0.1), maxval=jnp.log(10)))


TASKS: dict[str, AbstractTask] = {
    "credit assignment": CreditAssignment(10, hidden=True, distraction=5.0),
    "HIV": PartlyObserved(Patients(), observed=(0,)),
    "HIV, all observed": Patients(),
}


def policy(name: str, task: AbstractTask, key):
    sizes = task.state_size, task.action_size
    if name == "GRU":
        return GRUPolicy(*sizes, width=16, key=key)
    return GaussianPolicy(*sizes, width=32, horizon=task.horizon if name == "Gaussian, with time" else None, key=key)


def model(name: str, task: AbstractTask, key):
    sizes, (key, backbone_key) = (task.state_size, task.action_size), jax.random.split(key)
    return Markov(*sizes, width=32, key=key) if name == "Markov" else AWM(*sizes, GRU(32, key=backbone_key), key=key)


def episodes_of(task: AbstractTask, count: int, key) -> Trajectory:
    """Return episodes of held random actions."""

    @eqx.filter_jit
    def collect(keys):
        draw = lambda k: held_actions(k, (task.horizon, task.action_size))
        run = lambda a, b, c: unroll(task, draw(a), task.reset(b), task.horizon, reward=task.reward, key=c)
        return jax.vmap(run)(*keys)

    return collect([jax.random.split(k, count) for k in jax.random.split(key, 3)])


def measure(task: AbstractTask, where: str, paths: str, policy_name: str, seeds: int, updates: int) -> dict[str, Any]:
    began, quiet = time.monotonic(), NoProgress()
    data_key, build_key, fit_key, improve_key = jax.random.split(jax.random.key(0), 4)
    data, keys = episodes_of(task, 256, data_key), jax.random.split(build_key, seeds)
    dynamics, error = task, None
    if where != "simulator":
        fitted = fit(
            eqx.filter_vmap(lambda k: model(where, task, k))(keys),
            data,
            key=jax.random.split(fit_key, seeds),
            updates=4 * updates,
            optimiser=optax.adam(3e-3),
            progress=quiet,
        )
        dynamics, error = fitted.model, np.mean(np.asarray(fitted.held_out).reshape(seeds, -1), axis=1).tolist()
    schedule = optax.cosine_decay_schedule(5e-3, updates)
    found = improve(
        dynamics,
        eqx.filter_vmap(lambda k: policy(policy_name, task, k))(keys),
        data,
        reward=task.reward,
        key=jax.random.split(improve_key, seeds),
        updates=updates,
        ascent=FullHorizon(optimiser=optax.adam(schedule), clip=1.0, entropy=0.0, paths=PATHS[paths]),
        progress=quiet,
    )
    one = lambda i: jax.tree.map(lambda x: x[i] if eqx.is_array(x) else x, found.policy)
    returns = [evaluate(task, one(i), episodes=256, key=jax.random.key(1)).mean for i in range(seeds)]
    return {"returns": returns, "held_out_error": error, "seconds": time.monotonic() - began}


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Return one line per task and way to improve, with mean and range over seeds of each policy."""
    lines = []
    for where in dict.fromkeys(name.rsplit("; ", 1)[0] for name in rows):
        cells = [rows.get(f"{where}; {name}") for name in NAMES]
        text = [f"{np.mean(x['returns']):.2f} ({min(x['returns']):.2f} to {max(x['returns']):.2f})" if x else "" for x in cells]
        lines.append([where, *text])
    return markdown(["improved in", *NAMES], lines)


def main() -> None:
    parser = arguments(__doc__, "memory")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    options = parser.parse_args()
    raw, updates = Raw(options, "memory"), 5 if options.quick else 500
    ways = [("simulator", "BPO"), ("simulator", "closed loop"), ("AWM", "BPO"), ("Markov", "BPO")]
    runs = [(task, *way, name) for way in ways for task in ("credit assignment", "HIV") for name in NAMES]
    runs.insert(6, ("HIV, all observed", "simulator", "BPO", "Gaussian, with time"))
    found = {}
    with until_stopped(options):
        for task, where, paths, name in runs:
            label = f"{task}, {where}, {paths}; {name}"
            config = {"updates": updates, "seeds": options.seeds}
            if options.from_raw and label not in raw.rows:
                continue
            run = lambda t=TASKS[task], w=where, p=paths, n=name: measure(t, w, p, n, options.seeds, updates)
            found[label] = raw.run(label, config, run)
            print(label, np.round(found[label]["returns"], 2), flush=True)
    raw.write(table(found))


if __name__ == "__main__":
    main()
