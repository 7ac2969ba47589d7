"""What is compared by the examples that learn: kinds of models, and of each the hyper-parameters that serve all tasks."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import optax
from jaxtyping import Array, PRNGKeyArray

from awmkit import (
    AbstractDynamics,
    AbstractTask,
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
COLOURS = {method: f"C{i}" for i, method in enumerate(MODELS)} | {"simulator": "black", "SAC": "C8"}
WARMUP = 15  # episodes, of the paper's 1,500 steps


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
) -> TrainResult:
    """The hyper-parameters, the same for all tasks, for all seeds at once. Many episodes are lived four side by side.

    Updates are counted by the episode, so that a longer one is not more of them; a transformer needs more of them.
    `starts` an update and `evaluations` an epoch: a task that always begins alike needs few. `actions`: of the warm-up.
    """
    environments = max(1, min(4, episodes // 50))
    iterations = -(-(episodes - WARMUP) // environments)
    climbs = 16 if environments == 1 else 32
    fits = 30 if environments == 1 and "transformer" not in method else 60
    per_iteration, steps_before = task.horizon * environments, WARMUP * task.horizon

    def make(key):
        model_key, more_key, policy_key = jax.random.split(key, 3)
        policy = GaussianPolicy(task.state_size, task.action_size, horizon=task.horizon, key=policy_key)
        return MODELS[method](task, model_key, more_key), policy

    model, policy = eqx.filter_vmap(make)(keys)
    fitting = ModelUpdates(
        steps_per_update=per_iteration / fits,
        batch_size=12,
        microbatch_size=3,  # What fits the processor's cache; results are equal to rounding.
        initial_updates=500,
        optimiser=optax.adam(optax.cosine_decay_schedule(2e-3, 500 + fits * iterations, 0.03)),
    )
    entropy = TargetEntropy(optax.linear_schedule(-0.5, -4.0, iterations * per_iteration, steps_before))
    ascent = FullHorizon(
        steps_per_update=per_iteration / climbs,
        batch_size=starts,
        optimiser=optax.adam(optax.cosine_decay_schedule(6e-3, climbs * iterations, 0.03)),
        clip=1.0,
        entropy=entropy,
        paths=paths,
    )
    if method == "Markov, critic":
        ascent = short_unroll(task, 8 * climbs, per_iteration, iterations, entropy, keys[0])
    return train(
        task,
        task if method == "simulator" else model,
        policy,
        key=keys,
        steps=episodes * task.horizon,
        environments=environments,
        noise=0.15,
        warmup=Warmup(steps_before, actions),
        model_updates=fitting,
        ascent=ascent,
        evaluate_every=episodes * task.horizon // 10,
        evaluations=evaluations,
    )


def short_unroll(task: AbstractTask, updates: int, per_iteration: int, iterations: int, entropy, key) -> ShortHorizon:
    """The SVG baseline's ascent, so many updates an iteration."""
    return ShortHorizon(
        critic=Critic(task.state_size, task.horizon, key=key),
        steps_per_update=per_iteration / updates,
        optimiser=optax.adam(optax.cosine_decay_schedule(1e-3, updates * iterations, 0.03)),
        polyak=0.9,
        clip=1.0,
        entropy=entropy,
    )


def train_sac(task: AbstractTask, episodes: int, keys: PRNGKeyArray, *, evaluations: int = 1) -> Baseline:
    """Soft actor-critic for all seeds at once: the same warm-up in length, and hyper-parameters of its own, for all tasks too.

    Of actions drawn step by step it learns more than of held ones.
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
    """What a run saw, for its file: a list a seed."""
    metrics = result.metrics.row()
    return {"steps": metrics.pop("steps")[0], "curve": metrics.pop("true_return"), "metrics": metrics}
