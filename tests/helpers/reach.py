"""A small task for `train`, and one run of it. Tests that use them share compiled programs."""

import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Scalar

from awmkit import (
    AbstractTask,
    Critic,
    GaussianPolicy,
    Markov,
    ModelUpdates,
    NoProgress,
    RewardModel,
    ShortHorizon,
    TargetEntropy,
    train,
    Warmup,
)


class Reach(AbstractTask):
    """s_{t+1} = s_t / 2 + a_t from s_0 = 0. The reward is largest at 1/2. The best return is -1/2, all of it from the first state.

    An action larger than `limit` makes the state NaN. `limit` is an array, so that all values share compiled programs.
    """

    limit: Scalar = eqx.field(default=math.inf, converter=jnp.asarray)
    horizon: int = eqx.field(static=True, default=6)
    state_size: int = eqx.field(static=True, default=2)
    action_size: int = eqx.field(static=True, default=2)

    def init(self, state, horizon):
        return None

    def step(self, carry, state, action, t, *, key=None):
        return carry, jnp.where(jnp.max(jnp.abs(action)) > self.limit, jnp.nan, state / 2 + action)

    def reward(self, state, action, t):
        return -jnp.sum((state - 0.5) ** 2)

    def reset(self, key):
        return jnp.zeros(2)


@functools.cache
def host_task():
    """Return `Reach` as a Gymnasium environment, whose episodes are collected on the host. Cached, so that it compiles once."""
    from awmkit.gym import GymnasiumTask, TaskEnv

    return GymnasiumTask(TaskEnv(Reach(), time_aware=False))


MODEL_UPDATES = ModelUpdates(steps_per_update=0.7, batch_size=8, optimiser=optax.adam(1e-2), recency=0.9)
ASCENT = ShortHorizon(
    Critic(2, 6, width=8, depth=1, key=jax.random.key(9)),
    length=3,
    steps_per_update=0.9,
    batch_size=8,
    optimiser=optax.adam(1e-2),
    critic_optimiser=optax.adam(1e-2),
    polyak=0.9,
    entropy=TargetEntropy(-1.0),
)


@eqx.filter_jit
def make(key):
    """Return a model, a reward model and a policy; for an array of keys, a batch of each."""
    if key.ndim:
        return eqx.filter_vmap(make)(key)
    model_key, reward_key, policy_key = jax.random.split(key, 3)
    return {
        "model": Markov(2, 2, width=8, depth=1, key=model_key),
        "reward": RewardModel(2, 2, width=8, depth=1, key=reward_key),
        "policy": GaussianPolicy(2, 2, width=8, depth=1, horizon=6, key=policy_key),
    }


def parts():
    """Return parts of a run whose description must not depend on the process: on addresses, or on the order of a set."""
    return Reach(), MODEL_UPDATES, ASCENT, {"ab", "cd", "ef"}, lambda state: state in {"gh", "ij", "kl"}, eqx.filter_jit(make)


def run(key, task=Reach(), **options):
    """Train with two environments and a replay buffer of 8 episodes of 6 steps, which fills up during the run.

    An epoch has 12 steps: one episode in each environment. The warm-up takes the first 12 steps.
    """
    defaults = {"steps": 72, "environments": 2, "warmup": Warmup(12), "capacity": 48, "evaluate_every": 12, "noise": 0.15}
    options = {**defaults, "model_updates": MODEL_UPDATES, "ascent": ASCENT, "progress": NoProgress(), **options}
    with jax.numpy_dtype_promotion("standard"):  # optax needs implicit promotion.
        return train(task, key=key, **{**make(key), **options})
