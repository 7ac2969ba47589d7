"""Soft actor-critic."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import rejax
from jaxtyping import Array, PRNGKeyArray, ScalarLike

from .._dynamics import AbstractTask
from ..learning import uniform_actions
from ..learning._warmup import warmup_episodes
from ._environment import FunctionalEnv
from ._learn import Baseline, Identity, learn
from ._schedule import check_numbers, check_task, make_schedule


def sac(
    task: AbstractTask,
    *,
    key: PRNGKeyArray,
    steps: int = 5_000,
    evaluate_every: int = 500,
    evaluations: int = 1,
    warmup: int = 1_000,
    actions: Callable[..., Array] = uniform_actions,
    reward_scale: ScalarLike | None = None,
    gamma: ScalarLike = 0.99,
    learning_rate: ScalarLike = 1e-3,
    width: int = 64,
    depth: int = 2,
    batch: int = 128,
    updates: int = 2,
    polyak: ScalarLike = 0.99,
    temperature: ScalarLike = 0.01,
    entropy: ScalarLike = -4.0,
) -> Baseline:
    """Train a policy by soft actor-critic: off-policy, with two critics and a tuned temperature. Haarnoja et al. (2018).

    Use it as a model-free baseline for few environment steps. A run is one compiled program, and so are several seeds:

    ```python
    runs = jax.vmap(lambda key: sac(task, key=key))(jax.random.split(jax.random.key(0), 5))
    ```

    Policy and critics observe what an awmkit policy with a horizon reads. Because they see t, step H is terminal, and no value is
    bootstrapped from s_H, nor from a state in which the task ends early. The mean reward of each step in the warm-up is subtracted
    from the rewards, which changes the return by a constant, unless the task may end early. Steps of the warm-up are counted as
    if its episodes had H steps.

    **Arguments**

    - `task`: any task that JAX can trace.
    - `key`: for everything random.
    - `steps`: the number of environment steps, including the warm-up.
    - `evaluate_every`: environment steps between evaluations, counted back from the last step.
    - `evaluations`: episodes in each evaluation on the true task. 1 is enough if initial states and dynamics are deterministic.
    - `warmup`: environment steps with random actions, rounded up to whole episodes, at least two. They all go to the replay
      buffer, which never drops a transition.
    - `actions`: draws the actions of a warm-up episode, `actions(key, (H, A))`, as in `awmkit.Warmup`.
    - `reward_scale`: factor of the rewards. By default one over the standard deviation of the undiscounted rewards-to-go in the
      warm-up.
    - `gamma`: the discount while learning. Reported returns are undiscounted.
    - `learning_rate`: Adam's learning rate for the policy, the critics and the temperature.
    - `width`, `depth`: width and number of the hidden layers of the policy and the critics, with swish between them.
    - `batch`: the number of transitions in a minibatch.
    - `updates`: minibatches after each environment step.
    - `polyak`: the share of the target critics that is kept at each environment step.
    - `temperature`: the initial weight of the entropy, relative to the scaled rewards.
    - `entropy`: the target of the entropy, in nats for each entry of the action. Uniform actions have log 2.

    **Returns:** an `awmkit.baselines.Baseline`.

    **Raises:** `ValueError` if JAX cannot trace the task, if a count is below 1, if `steps` leaves none after the warm-up, or if
    `batch` exceeds the number of transitions in the warm-up.
    """
    counts = {"steps": steps, "warmup": warmup, "evaluate_every": evaluate_every}
    check_task("sac", task, key, **counts, evaluations=evaluations, width=width, depth=depth, batch=batch, updates=updates)
    numbers = {"gamma": gamma, "learning_rate": learning_rate, "polyak": polyak, "temperature": temperature, "entropy": entropy}
    check_numbers("sac", **numbers, **({} if reward_scale is None else {"reward_scale": reward_scale}))
    schedule = make_schedule("sac", task.horizon, **counts, steps_per_iteration=1)
    stored = schedule.warmup_episodes * task.horizon
    if batch > stored:
        raise ValueError(
            f"batch must be at most {stored}, the number of transitions in the warm-up, got {batch}; lower batch or raise warmup."
        )
    config = {"learning_rate": learning_rate, "gamma": gamma, "polyak": polyak, "num_epochs": updates, "batch_size": batch}
    config |= {"buffer_size": steps, "hidden_layer_sizes": (width,) * depth}
    with jax.numpy_dtype_promotion("standard"):  # Flax's weights are float32, whatever the task's dtype is.
        return _sac(task, key, schedule, config, actions, evaluations, reward_scale, temperature, entropy)


@eqx.filter_jit
def _sac(task, key, schedule, config, actions, evaluations, reward_scale, temperature, entropy) -> Baseline:
    warmup_key, key, evaluation_key = jax.random.split(key, 3)
    episodes = warmup_episodes(task, actions, schedule.warmup_episodes, warmup_key)
    env = FunctionalEnv.from_warmup(task, episodes, reward_scale, squash=Identity(), limit=1.0)
    # rejax's own target of the entropy is -1 for each entry of the action.
    sac_class = type("TargetingSAC", (rejax.SAC,), {"target_entropy": property(lambda self: entropy * self.action_dim)})
    learner = sac_class.create(env=env, env_params=None, agent_kwargs={"activation": "swish"}, fill_buffer=0, **config)
    ts = learner.init_state(key)
    log_alpha = jtu.tree_map(lambda x: jnp.log(temperature).astype(x.dtype), ts.alpha_ts.params)
    ts = ts.replace(
        alpha_ts=ts.alpha_ts.replace(params=log_alpha), replay_buffer=ts.replay_buffer.extend(env.transitions(episodes))
    )
    return learn(learner, ts, schedule, evaluations=evaluations, key=evaluation_key)
