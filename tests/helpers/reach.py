"""The smallest task that BPO can learn, and one run of it: tests that share it share what is compiled."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

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
    """s_{t+1} = s_t / 2 + a_t from 0, and 1/2 is the best place to be: the best return is that of the first state, -1/2."""

    horizon: int = 6
    state_size: int = 2
    action_size: int = 2

    def init(self, state, horizon):
        return None

    def step(self, carry, state, action, t, *, key=None):
        return carry, state / 2 + action

    def reward(self, state, action, t):
        return -jnp.sum((state - 0.5) ** 2)

    def reset(self, key):
        return jnp.zeros(2)


FITTING = ModelUpdates(steps_per_update=0.7, batch_size=8, optimiser=optax.adam(1e-2), recency=0.9)
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
    """What a run learns, of one key or of several."""
    if key.ndim:
        return eqx.filter_vmap(make)(key)
    model_key, reward_key, policy_key = jax.random.split(key, 3)
    return {
        "model": Markov(2, 2, width=8, depth=1, key=model_key),
        "reward": RewardModel(2, 2, width=8, depth=1, key=reward_key),
        "policy": GaussianPolicy(2, 2, width=8, depth=1, horizon=6, key=policy_key),
    }


def run(key, task=Reach(), **options):
    """BPO with two environments and a replay that is soon full; 12 steps an epoch, of which the first are the warm-up's."""
    defaults = {"steps": 72, "environments": 2, "warmup": Warmup(12), "capacity": 8, "evaluate_every": 12, "noise": 0.15}
    options = {**defaults, "fitting": FITTING, "ascent": ASCENT, "progress": NoProgress(), **options}
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes, which only tests forbid.
        return train(task, key=key, **{**make(key), **options})
