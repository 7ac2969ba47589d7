"""How do I save a model, and continue an interrupted run?

    python examples/save_and_load.py            about 30 seconds on two cores
    python examples/save_and_load.py --quick    about 20 seconds: fewer updates

First part: `save` writes a fitted model to one file, and `load` reads it into a new model of the same sizes. Second part:
`train(..., checkpoint=...)` writes the whole run after each epoch. The script interrupts a run in its third epoch, as
Ctrl-C would, and makes the same call again; it continues after the second.

Expect: the loaded model predicts exactly what the saved one does, and the continued run ends with exactly the returns of a run
that was never interrupted.
"""

import argparse
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
from tabulate import tabulate

from awmkit import AWM, fit, GaussianPolicy, GRU, load, Markov, ModelUpdates, save, train, unroll, Warmup
from awmkit.tasks import LinearQuadratic

HORIZON = 10


def fit_and_save(task, path, updates, key):
    """Fit an AWM to random episodes, save it, load it into a new model, and return the largest difference of predictions."""
    data_key, model_key, fit_key, other_key = jax.random.split(key, 4)
    build = lambda key: AWM(task.state_size, task.action_size, GRU(16, key=key), key=key)
    actions = jax.random.uniform(data_key, (128, HORIZON, task.action_size), minval=-1)
    episodes = jax.vmap(lambda plan: unroll(task, plan, jnp.ones(task.state_size), HORIZON))(actions)
    fitted = fit(build(model_key).normalised(episodes), episodes, key=fit_key, updates=updates)
    save(path, fitted.model, config={"task": "LinearQuadratic", "updates": updates})
    loaded = load(path, build(other_key))  # the structure comes from the new model, every array from the file
    predict = lambda model: unroll(model, actions[0], jnp.ones(task.state_size), HORIZON).states
    return float(jnp.max(jnp.abs(predict(loaded) - predict(fitted.model))))


def run(task, key, *, checkpoint, interrupt_at=None):
    """A short run of `train`; a callback interrupts it at `interrupt_at` steps. Returns the true return of each epoch."""
    model_key, policy_key, key = jax.random.split(key, 3)

    def interrupt(metrics):  # called at the end of each epoch, before its checkpoint is written
        if metrics.steps == interrupt_at:
            raise KeyboardInterrupt

    result = train(
        task,
        Markov(task.state_size, task.action_size, width=16, key=model_key),
        GaussianPolicy(task.state_size, task.action_size, width=16, key=policy_key),
        key=key,
        steps=600,
        warmup=Warmup(100),
        model_updates=ModelUpdates(batch_size=16),
        evaluate_every=100,
        callbacks=[interrupt],
        checkpoint=checkpoint,
    )
    return result.metrics.true_return


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20 updates of the model instead of 500")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out", help="folder for the model's file")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    fit_key, train_key = jax.random.split(jax.random.key(options.seed))
    task = LinearQuadratic(0.9 * jnp.eye(2), jnp.eye(2), horizon=HORIZON)

    path = options.out / "save_and_load.awm"
    difference = fit_and_save(task, path, 20 if options.quick else 500, fit_key)
    print(f"{path}: {path.stat().st_size} bytes; predictions of the saved and the loaded model differ by {difference}")

    with tempfile.TemporaryDirectory() as folder:
        whole = run(task, train_key, checkpoint=None)
        try:
            run(task, train_key, checkpoint=Path(folder) / "run.awm", interrupt_at=400)
        except KeyboardInterrupt as interruption:
            print(f"\n{interruption}\n")
        continued = run(task, train_key, checkpoint=Path(folder) / "run.awm")
    print(
        tabulate(
            [["uninterrupted", *whole], ["continued", *continued]], ["return after epoch", *map(str, range(1, len(whole) + 1))]
        )
    )


if __name__ == "__main__":
    main()
