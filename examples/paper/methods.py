"""The models that the learning experiments compare, and the one set of hyper-parameters that each uses for all tasks."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import optax
from jaxtyping import Array, PRNGKeyArray

from awmkit import (
    AbstractDynamics,
    AbstractTask,
    Anchored,
    AWM,
    BPO,
    Critic,
    FullHorizon,
    GaussianPolicy,
    GRU,
    held_actions,
    HWM,
    LSTM,
    Markov,
    ModelUpdates,
    Paths,
    ShortHorizon,
    TargetEntropy,
    train,
    TrainResult,
    Transformer,
    Warmup,
)
from awmkit.baselines import Baseline, sac

Build = Callable[[AbstractTask, PRNGKeyArray, PRNGKeyArray], AbstractDynamics]
MODELS: dict[str, Build] = {
    "AWM transformer": lambda task, k1, k2: AWM(
        task.state_size, task.action_size, Transformer(horizon=task.horizon, key=k1), per_step=True, key=k2
    ),
    "AWM LSTM": lambda task, k1, k2: AWM(task.state_size, task.action_size, LSTM(64, key=k1), per_step=True, key=k2),
    "AWM GRU": lambda task, k1, k2: AWM(task.state_size, task.action_size, GRU(64, key=k1), per_step=True, key=k2),
    "HWM transformer": lambda task, k1, k2: HWM(
        task.state_size, task.action_size, Transformer(horizon=task.horizon, key=k1), per_step=True, key=k2
    ),
    "HWM LSTM": lambda task, k1, k2: HWM(task.state_size, task.action_size, LSTM(64, key=k1), per_step=True, key=k2),
    "Markov": lambda task, k1, k2: Markov(task.state_size, task.action_size, horizon=task.horizon, per_step=True, key=k1),
    "Markov, critic": lambda task, k1, k2: MODELS["Markov"](task, k1, k2),
    "simulator": lambda task, k1, k2: task,
}
EVERY = 10  # steps from one anchor to the next
MODELS_OF_VARIANTS: dict[str, Build] = {  # whose statistics and inputs are the same at all steps
    "AWM transformer, anchored": lambda task, k1, k2: Anchored(
        AWM(task.state_size, task.action_size, Transformer(horizon=EVERY, key=k1), per_step=True, key=k2), EVERY
    ),
    "Markov, time-free": lambda task, k1, k2: Markov(task.state_size, task.action_size, key=k1),
}
WARMUP = 15  # episodes of random actions; with 100 steps each they are the paper's 1,500 steps


def learn(
    task: AbstractTask,
    method: str,
    episodes: int,
    keys: PRNGKeyArray,
    *,
    starts: int = 4,
    evaluations: int = 1,
    actions: Callable[..., Array] = held_actions,
    paths: Paths = BPO,
    chosen_on_variants: bool = False,
) -> TrainResult:
    """Train a policy with one method, all seeds in one program.

    The number of updates depends on the number of episodes, not on their length. Transformers are fitted with more updates
    than the other models. From 100 episodes on, several are collected at once, at most four.

    **Arguments**

    - `task`, `method`: the task and a name in `MODELS` or `MODELS_OF_VARIANTS`. An anchored model is fitted, with twice the updates, to
      windows of `EVERY` steps, 48 at a time.
    - `episodes`: number of episodes to collect, those of the warm-up included.
    - `keys`: one per seed.
    - `starts`: batch size of a policy update. A task that always starts in the same state needs few.
    - `evaluations`: episodes per evaluation.
    - `actions`: the random actions of the warm-up.
    - `paths`: the paths of the policy gradient.
    - `chosen_on_variants`: whether to use the settings that were chosen on random variants of the tasks (variants.py), and not those
      of the other published tables. The length of the warm-up and the number of updates then depend on the number of steps, as if
      episodes had 100: few long episodes leave as much for the policy as many short ones. The policy makes twice the updates
      and explores with twice the noise.
    """
    unit = 100 if chosen_on_variants else task.horizon
    usual = -(-episodes * task.horizon // unit)
    several = usual >= 100
    warmup, environments = -(-WARMUP * unit // task.horizon), max(1, min(4, episodes // 50))
    iterations, usual_iterations = -(-(episodes - warmup) // environments), -(-(usual - WARMUP) // max(1, min(4, usual // 50)))
    twice = 2 if chosen_on_variants else 1
    policy_updates = twice * (32 if several else 16) * usual_iterations
    anchored = "anchored" in method
    model_updates = (2 if anchored else 1) * (60 if several or "transformer" in method else 30) * usual_iterations
    # Few whole episodes at a time fit in a CPU's cache; the result is the same up to rounding.
    batch: dict[str, Any] = {"batch_size": 48, "window": EVERY} if anchored else {"batch_size": 12, "microbatch_size": 3}
    per_iteration, steps_before = task.horizon * environments, warmup * task.horizon
    steps_after = iterations * per_iteration

    def make(key):
        model_key, more_key, policy_key = jax.random.split(key, 3)
        policy = GaussianPolicy(task.state_size, task.action_size, horizon=task.horizon, key=policy_key)
        return (MODELS | MODELS_OF_VARIANTS)[method](task, model_key, more_key), policy

    model, policy = eqx.filter_vmap(make)(keys)
    fitting = ModelUpdates(
        steps_per_update=steps_after / model_updates,
        initial_updates=500,
        optimiser=optax.adam(optax.cosine_decay_schedule(2e-3, 500 + model_updates, 0.03)),
        **batch,
    )
    entropy = TargetEntropy(optax.linear_schedule(-0.5, -4.0, steps_after, steps_before))
    if method == "Markov, critic":  # the SVG baseline
        ascent = ShortHorizon(
            critic=Critic(task.state_size, task.horizon, key=keys[0]),
            steps_per_update=steps_after / (8 * policy_updates),
            optimiser=optax.adam(optax.cosine_decay_schedule(1e-3, 8 * policy_updates, 0.03)),
            polyak=0.9,
            clip=1.0,
            entropy=entropy,
        )
    else:
        ascent = FullHorizon(
            steps_per_update=steps_after / policy_updates,
            batch_size=starts,
            optimiser=optax.adam(optax.cosine_decay_schedule(6e-3, policy_updates, 0.03)),
            clip=1.0,
            entropy=entropy,
            paths=paths,
        )
    return train(
        task,
        task if method == "simulator" else model,
        policy,
        key=keys,
        steps=episodes * task.horizon,
        environments=environments,
        noise=twice * 0.15,
        warmup=Warmup(steps_before, actions),
        model_updates=fitting,
        ascent=ascent,
        evaluate_every=episodes * task.horizon // 10,
        evaluations=evaluations,
    )


def train_sac(task: AbstractTask, episodes: int, keys: PRNGKeyArray, *, evaluations: int = 1) -> Baseline:
    """Train a policy with soft actor-critic, all seeds in one program.

    Its warm-up is as long as the other methods' but draws a new action at each step, from which SAC learns more. It has
    one set of hyper-parameters of its own for all tasks.
    """
    steps = episodes * task.horizon
    learn = lambda key: sac(
        task,
        key=key,
        steps=steps,
        evaluate_every=steps // 10,
        evaluations=evaluations,
        warmup=WARMUP * task.horizon,
        gamma=1.0,
        width=128,
        updates=4,
    )
    return jax.jit(jax.vmap(learn))(keys)


def record(result: TrainResult) -> dict[str, Any]:
    """Return the raw values of a run: one list per seed."""
    metrics = result.metrics.row()
    return {"steps": metrics.pop("steps")[0], "curve": metrics.pop("true_return"), "metrics": metrics}
