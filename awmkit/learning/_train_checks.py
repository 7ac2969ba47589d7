"""Checks of the arguments of `train`, made before anything is compiled or collected."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu

from .._checks import check_call, check_counts, kind
from .._dynamics import AbstractDynamics, AbstractTask
from .._files import check_folder
from .._progress import check_progress
from .._reward import check_reward, with_next_state
from ..models._trainable import AbstractTrainable
from ._model_updates import ModelUpdates
from ._sharding import check_mesh
from ._warmup import Warmup
from .ascents import AbstractAscent


def check_types(task, model, key, warmup, model_updates, ascent, callbacks, checkpoint, mesh, progress) -> None:
    """Raise if an argument of `train` has the wrong type."""
    if not isinstance(task, AbstractTask):
        raise ValueError(f"The task is {kind(task)}; pass an awmkit.AbstractTask, such as a GymnasiumTask(env).")
    if not isinstance(model, AbstractDynamics) or getattr(model, "on_host", False):
        raise ValueError(f"The model is {kind(model)}, which has no gradient; pass a world model, such as an AWM.")
    if not (eqx.is_array(key) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim <= 1):
        raise ValueError(
            "The key must be one jax.random.key(seed), or several, jax.random.split(key, seeds), for several seeds in one program."
        )
    settings = (("warmup", warmup, Warmup), ("model_updates", model_updates, ModelUpdates), ("ascent", ascent, AbstractAscent))
    for name, given, needed in settings:
        if not isinstance(given, needed):
            example = "FullHorizon" if needed is AbstractAscent else needed.__name__
            raise ValueError(f"train got {name}={given!r}; pass an awmkit.{example}(...).")
    if not isinstance(callbacks, Sequence):
        raise ValueError(f"The callbacks are {kind(callbacks)}; pass a list of functions, such as [JSONLines('log.jsonl')].")
    if checkpoint is not None:
        check_folder(Path(checkpoint))
    check_mesh(mesh)
    check_progress(progress)


def check_values(task, model, policy, reward, key, ascent, *, steps, environments, noise, evaluate_every, evaluations) -> None:
    """Raise if arguments of `train` do not fit together, or are out of range."""
    if (model.state_size, model.action_size) != (task.state_size, task.action_size):
        raise ValueError(
            f"The model has state_size={model.state_size} and action_size={model.action_size}, the task {task.state_size} and "
            f"{task.action_size}; build the model with task.state_size and task.action_size."
        )
    if key.ndim and task.on_host:
        raise ValueError("Several seeds run as one program only if JAX can trace the task; call train once for each key.")
    _check_seeds(key, {"model": model, "policy": policy, "reward": reward})
    check_counts("train", steps=steps, environments=environments, evaluate_every=evaluate_every, evaluations=evaluations)
    if not noise >= 0:
        raise ValueError(f"The noise must be a standard deviation of at least 0, got {noise}; try 0.1.")
    check_call("policy", "policy(state, t, *, key)", "write it so, or pass a GaussianPolicy", policy, None, 0, key=None)
    if not hasattr(policy, "entropy") and ascent.entropy != 0:
        raise ValueError(
            f"The entropy bonus needs a policy with a method entropy, which {type(policy).__name__} lacks; pass a GaussianPolicy, "
            f"or {type(ascent).__name__}(entropy=0)."
        )
    ascent.check(model, task.horizon)
    if not isinstance(reward, AbstractTrainable):
        _check_reward(task, task.reward if reward is None else reward)


def _check_reward(task: AbstractTask, reward) -> None:
    """Raise if the reward of imagined episodes cannot be computed, before the warm-up is collected."""
    check_reward(reward)
    state, action = jnp.zeros(task.state_size), jnp.zeros(task.action_size)
    eqx.filter_eval_shape(with_next_state(reward), state, action, jnp.asarray(0), state)


def _check_seeds(key, learned: dict[str, Any]) -> None:
    """Several keys need one model and one policy each; they share a simulator."""
    for name, tree in learned.items():
        if key.ndim and (name == "policy" or isinstance(tree, AbstractTrainable)):
            if any(jnp.shape(x)[:1] != key.shape for x in jtu.tree_leaves(eqx.filter(tree, eqx.is_array))):
                raise ValueError(
                    f"There are {key.size} keys but one {name}; build one for each key with eqx.filter_vmap(make)(keys)."
                )
