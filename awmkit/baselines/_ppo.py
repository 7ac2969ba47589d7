"""Proximal policy optimisation."""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import rejax
from jaxtyping import Array, PRNGKeyArray, ScalarLike

from .._dynamics import AbstractTask
from ..learning import uniform_actions
from ..learning._warmup import warmup_episodes
from ._environment import FunctionalEnv
from ._learn import Baseline, learn
from ._schedule import check_numbers, check_task, make_schedule


def ppo(
    task: AbstractTask,
    *,
    key: PRNGKeyArray,
    steps: int = 100_000,
    evaluate_every: int = 5_000,
    evaluations: int = 1,
    warmup: int = 1_000,
    actions: Callable[..., Array] = uniform_actions,
    reward_scale: ScalarLike | None = None,
    gamma: ScalarLike = 0.99,
    learning_rate: ScalarLike = 1e-3,
    width: int = 64,
    depth: int = 2,
    envs: int = 10,
    epochs: int = 10,
    gae: ScalarLike = 0.95,
    clip: ScalarLike = 0.2,
    entropy: ScalarLike = 0.0,
) -> Baseline:
    """Train a policy by proximal policy optimisation. Schulman et al. (2017).

    It is on-policy and needs far more environment steps than `awmkit.baselines.sac`. The policy is Gaussian before a tanh, with
    one standard deviation for all states. Observations, episodes and rewards are as for `sac`.

    **Arguments**

    - `task`, `key`, `evaluations`, `actions`, `reward_scale`, `gamma`: as for `sac`.
    - `steps`: the most environment steps to make, including the warm-up. Only whole iterations are run.
    - `evaluate_every`: environment steps between evaluations, counted back from the last step.
    - `warmup`: environment steps with random actions, from which only the statistics of states and rewards are taken.
    - `learning_rate`: Adam's learning rate for the policy and the critic.
    - `width`, `depth`: width and number of the hidden layers of the policy and the critic, with swish between them.
    - `envs`: the number of episodes in an iteration, and of minibatches in an epoch.
    - `epochs`: passes over the transitions of an iteration.
    - `gae`: lambda of the generalised advantage estimate.
    - `clip`: clipping range of the probability ratio and of the value.
    - `entropy`: weight of the entropy of the action before the tanh.

    **Returns:** an `awmkit.baselines.Baseline`.

    **Raises:** `ValueError` if JAX cannot trace the task, if a count is below 1, or if `steps` leaves less than one iteration after
    the warm-up.
    """
    counts = {"steps": steps, "warmup": warmup, "evaluate_every": evaluate_every}
    check_task("ppo", task, key, **counts, evaluations=evaluations, width=width, depth=depth, envs=envs, epochs=epochs)
    numbers = {"gamma": gamma, "learning_rate": learning_rate, "gae": gae, "clip": clip, "entropy": entropy}
    check_numbers("ppo", **numbers, **({} if reward_scale is None else {"reward_scale": reward_scale}))
    schedule = make_schedule("ppo", task.horizon, **counts, steps_per_iteration=envs * task.horizon)
    config = {"learning_rate": learning_rate, "gamma": gamma, "gae_lambda": gae, "clip_eps": clip, "ent_coef": entropy}
    config |= {"num_envs": envs, "num_steps": task.horizon, "num_minibatches": envs, "num_epochs": epochs}
    with jax.numpy_dtype_promotion("standard"):  # Flax's weights are float32, whatever the task's dtype is.
        return _ppo(task, key, schedule, config, (width,) * depth, actions, evaluations, reward_scale)


@eqx.filter_jit
def _ppo(task, key, schedule, config, layers, actions, evaluations, reward_scale) -> Baseline:
    warmup_key, key, evaluation_key = jax.random.split(key, 3)
    episodes = warmup_episodes(task, actions, schedule.warmup_episodes, warmup_key)
    # The environment squashes actions instead of clipping them, so that the policy has a mode and a density in [-1, 1].
    env = FunctionalEnv.from_warmup(task, episodes, reward_scale, squash=jnp.tanh, limit=math.inf)
    agent = {"activation": "swish", "hidden_layer_sizes": layers}
    learner = rejax.PPO.create(env=env, env_params=None, agent_kwargs=agent, **config)
    return learn(learner, learner.init_state(key), schedule, evaluations=evaluations, key=evaluation_key)
