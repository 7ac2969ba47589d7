"""Fit a model and train a policy on all devices. test_sharding.py runs this script in separate processes.

python tests/helpers/sharded.py                        uses the devices of this process
python tests/helpers/sharded.py 127.0.0.1:1234 2 0     runs process 0 of 2 and uses the devices of both
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from awmkit import fit, FullHorizon, GaussianPolicy, Markov, ModelUpdates, NoProgress, train, unroll, Warmup


def learn() -> dict:
    from reach import Reach  # Imported here because it creates arrays, and the processes must be connected first.

    mesh = jax.make_mesh((jax.device_count(),), ("episodes",)) if jax.device_count() > 1 else None
    task = Reach()
    keys = jax.random.split(jax.random.key(0), 4)
    model = Markov(2, 2, width=8, depth=1, key=keys[0])
    plans = jax.random.uniform(keys[1], (30, 6, 2), minval=-1.0)
    episodes = jax.jit(jax.vmap(lambda plan: unroll(task, plan, task.reset(keys[0]), 6)))(plans)
    fitted = fit(model, episodes, key=keys[2], updates=20, batch_size=16, microbatch_size=8, mesh=mesh, progress=NoProgress())
    result = train(
        task,
        model,
        GaussianPolicy(2, 2, width=8, depth=1, key=keys[3]),
        key=keys[3],
        steps=240,
        environments=8,
        noise=0.2,
        warmup=Warmup(96),
        model_updates=ModelUpdates(steps_per_update=6.0, batch_size=16, microbatch_size=8),
        ascent=FullHorizon(steps_per_update=6.0, batch_size=16, optimiser=optax.adam(1e-2)),
        evaluate_every=48,
        mesh=mesh,
        progress=NoProgress(),
    )
    numbers = {"losses": fitted.losses, "held_out": fitted.held_out, "policy": result.policy, "metrics": result.metrics}
    sample = jax.jit(lambda: result.state.replay.sample(keys[0], 16).states)()
    devices = {"devices": jax.device_count(), "split": not sample.sharding.is_fully_replicated}
    return {**devices, **{name: flat(tree) for name, tree in numbers.items()}}


def flat(tree) -> list[float]:
    arrays = [x for x in jax.tree.leaves(tree) if hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.inexact)]
    return np.concatenate([np.ravel(x) for x in arrays]).tolist()


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    if len(sys.argv) > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    print(json.dumps(learn()))
