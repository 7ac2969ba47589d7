"""Fits a model and learns a policy on all devices there are; test_sharding.py runs it in processes of its own.

python tests/sharded.py                               on this process's devices
python tests/sharded.py 127.0.0.1:1234 2 0            on those of 2 processes, as process 0
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

from awmkit import AWM, fit, FullHorizon, GaussianPolicy, GRU, ModelUpdates, NoProgress, train, unroll, Warmup
from awmkit.tasks import CancerTreatment, Discretised


def learn() -> dict:
    mesh = jax.make_mesh((jax.device_count(),), ("episodes",)) if jax.device_count() > 1 else None
    task = Discretised(CancerTreatment(), 10)
    keys = jax.random.split(jax.random.key(0), 5)
    model = AWM(task.state_size, 1, GRU(8, key=keys[0]), key=keys[1])
    plans = jax.random.uniform(keys[2], (30, 10, 1), minval=-1.0)
    episodes = jax.vmap(lambda plan: unroll(task, plan, task.reset(keys[0]), 10))(plans)
    fitted = fit(model, episodes, key=keys[3], updates=20, batch_size=16, microbatch_size=8, mesh=mesh, progress=NoProgress())
    result = train(
        task,
        model,
        GaussianPolicy(task.state_size, 1, width=8, key=keys[4]),
        key=keys[4],
        steps=400,
        environments=8,
        warmup=Warmup(160),
        model_updates=ModelUpdates(steps_per_update=10.0, batch_size=16, microbatch_size=8),
        ascent=FullHorizon(steps_per_update=20.0, batch_size=16),
        evaluate_every=80,
        mesh=mesh,
        progress=NoProgress(),
    )
    numbers = {"losses": fitted.losses, "held_out": fitted.held_out, "policy": result.policy, "metrics": result.metrics}
    sample = jax.jit(lambda: result.learner.replay.sample(keys[0], 16).states)()
    whole = {"devices": jax.device_count(), "split": not sample.sharding.is_fully_replicated}
    return {**whole, **{name: flat(tree) for name, tree in numbers.items()}}


def flat(tree) -> list[float]:
    arrays = [x for x in jax.tree.leaves(tree) if hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.inexact)]
    return np.concatenate([np.ravel(x) for x in arrays]).tolist()


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    if len(sys.argv) > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    print(json.dumps(learn()))
