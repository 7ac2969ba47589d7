"""A typed script like a user's. pyright checks it and test_guides.py runs it.

It uses only public names, as the README and the guides show them, and reads the fields of every result.
"""

from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import Array

from awmkit import (
    AbstractDynamics,
    AbstractTask,
    AWM,
    BPO,
    fit,
    FitResult,
    FullHorizon,
    GaussianPolicy,
    GRU,
    load,
    Markov,
    ModelUpdates,
    NoProgress,
    Paths,
    save,
    Sequential,
    train,
    TrainResult,
    Trajectory,
    unroll,
    unroll_grad,
    Warmup,
)
from awmkit.analysis import gradient_growth, GradientGrowth
from awmkit.tasks import LinearQuadratic


class Damped(AbstractDynamics):
    """A user-defined dynamics: s' = rate s + a."""

    rate: float
    state_size: int = eqx.field(static=True, default=2)
    action_size: int = eqx.field(static=True, default=2)

    def init(self, state, horizon):
        return None

    def step(self, carry, state, action, t, *, key=None):
        return carry, self.rate * state + action


def collect(task: AbstractTask, horizon: int, key: Array) -> Trajectory:
    """Collect eight episodes of random actions."""
    start_key, action_key = jax.random.split(key)
    starts = jax.vmap(task.reset)(jax.random.split(start_key, 8))
    plans = jax.random.uniform(action_key, (8, horizon, task.action_size), minval=-1.0)
    return jax.vmap(lambda s, a: unroll(task, a, s, horizon, reward=task.reward))(starts, plans)


def main(folder: Path, horizon: int = 5) -> tuple[float, float]:
    """Return the sum of a fitted model's return and gradient norm, and the last return of a training run."""
    keys = jax.random.split(jax.random.key(0), 8)
    task = LinearQuadratic(0.9 * jnp.eye(2), jnp.eye(2), horizon=horizon)
    episodes = collect(task, horizon, keys[0])
    model = AWM(2, 2, GRU(8, key=keys[1]), key=keys[2]).normalised(episodes)
    fitted: FitResult[AWM] = fit(model, episodes, key=keys[3], updates=3, batch_size=4, progress=NoProgress())
    save(folder / "model", fitted.model)
    kept: AWM = load(folder / "model", model)

    policy = GaussianPolicy(2, 2, width=8, key=keys[4])
    value, grads = unroll_grad(kept, policy, episodes.states[0, 0], horizon, reward=task.reward, key=keys[5], paths=BPO)
    damped = Paths(state_to_policy=0.0, state_to_model=0.9)
    episode = unroll(Damped(rate=0.5), policy, jnp.ones(2), horizon, paths=damped, method=Sequential("step"))
    growth: GradientGrowth = gradient_growth(task, episodes.states[:, 0], episodes.actions, horizons=[1, 2, 3, 5])
    result: TrainResult = train(
        task,
        Markov(2, 2, width=8, depth=1, key=keys[6]),
        policy,
        key=keys[7],
        steps=4 * horizon,
        warmup=Warmup(steps=2 * horizon),
        model_updates=ModelUpdates(batch_size=2),
        ascent=FullHorizon(batch_size=2, optimiser=optax.adam(1e-3)),
        evaluate_every=horizon,
        progress=NoProgress(),
    )
    for found in (fitted, growth, result, episode):
        print(repr(found))
    assert fitted.held_out is not None and growth.law is not None
    return float(value + optax.tree.norm(grads)), float(result.metrics.true_return[-1])


if __name__ == "__main__":
    print(main(Path(".")))
