"""Checks of the arguments of `train`, made before anything is compiled or collected."""

import math
from collections.abc import Sequence
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax.core import Tracer
from jaxtyping import PyTree

from .._checks import check_counts, describe, kind
from .._dynamics import AbstractDynamics, AbstractTask
from .._files import check_folder
from .._normaliser import normalisers, trainable
from .._policies import memory_of
from .._progress import check_progress
from .._reward import check_reward, with_next_state
from .._termination import check_termination, rule_of
from .._trajectory import check_episodes, check_whole, Trajectory
from .._unroll_checks import warn_of_constant_reward
from .._windows import draw_windows
from ..models._anchored import Anchored
from ..models._ensemble import members_of
from ..models._trainable import AbstractTrainable
from ._collect import empty_episodes
from ._model_checks import check_model, check_window
from ._model_updates import ModelUpdates
from ._optimise import check_trains
from ._optimiser import holds
from ._seeds import check_keys, check_seeds
from ._sharding import check_mesh
from ._warmup import Warmup
from .ascents import AbstractAscent
from .ascents._ascent import check_policy
from .ascents._imagined import begins_anywhere


def check_types(task, model, key, warmup, model_updates, ascent, callbacks, checkpoint, mesh, progress) -> None:
    """Raise if an argument of `train` has the wrong type."""
    if not isinstance(task, AbstractTask):
        raise ValueError(f"The task is {kind(task)}; pass an awmkit.AbstractTask, such as a GymnasiumTask(env).")
    if not isinstance(model, AbstractDynamics) or getattr(model, "on_host", False):
        raise ValueError(f"The model is {kind(model)}, which has no gradient; pass a world model, such as an AWM.")
    if isinstance(key, Tracer):
        raise ValueError(
            "train runs its epochs from Python, which jit and vmap cannot trace; call it outside of them, with an array of keys for "
            "several seeds in one program."
        )
    check_keys(key)
    settings = (("warmup", warmup, Warmup), ("model_updates", model_updates, ModelUpdates), ("ascent", ascent, AbstractAscent))
    for name, given, needed in settings:
        if not isinstance(given, needed):
            example = "FullHorizon" if needed is AbstractAscent else needed.__name__
            raise ValueError(f"train got {name}={describe(given)}; pass an awmkit.{example}(...).")
    if not isinstance(callbacks, Sequence):
        raise ValueError(f"The callbacks are {kind(callbacks)}; pass a list of functions, such as [JSONLines('log.jsonl')].")
    if checkpoint is not None:
        check_folder(Path(checkpoint))
    check_mesh(mesh)
    check_progress(progress)


def check_values(
    task, learned, policy, key, model_updates, ascent, *, episodes, steps, environments, noise, evaluate_every, evaluations
) -> None:
    """Raise if arguments of `train` do not fit together, or are out of range.

    `learned` are the model, the reward and the termination, by name.
    """
    model, reward, termination = (learned[name] for name in ("model", "reward", "termination"))
    if (model.state_size, model.action_size) != (task.state_size, task.action_size):
        raise ValueError(
            f"The model has state_size={model.state_size} and action_size={model.action_size}, the task {task.state_size} and "
            f"{task.action_size}; build the model with task.state_size and task.action_size."
        )
    if key.ndim and task.on_host:
        raise ValueError("Several seeds run as one program only if JAX can trace the task; call train once for each key.")
    check_seeds(key, {name: x for name, x in learned.items() if isinstance(x, AbstractTrainable)} | {"policy": policy})
    check_counts("train", least=1 if episodes is None else 0, steps=steps)
    check_counts("train", environments=environments, evaluate_every=evaluate_every, evaluations=evaluations)
    if not holds(noise, lambda x: (0 <= x) & (x < math.inf)):
        raise ValueError(f"The noise must be a standard deviation of at least 0, got {describe(noise)}; try 0.1.")
    check_policy(ascent, policy)
    if hasattr(policy, "entropy"):
        state = jnp.zeros(task.state_size)

        def entropy(policy, key):
            remembered = () if (memory := memory_of(policy)) is None else (memory,)
            return policy.entropy(*remembered, state, jnp.asarray(0), key=key)

        bonus = eqx.filter_eval_shape(entropy, _of_one_seed(policy, key), jax.random.key(0))
        if getattr(bonus, "shape", None) != ():
            raise ValueError(f"policy.entropy returned {describe(bonus)}; it must return one number, so sum over the action.")
    ascent.check(model, task.horizon)
    _check_windows(model, model_updates, ascent)
    if isinstance(model, AbstractTrainable):
        check_window("train", model, model_updates.window, task.horizon)
    one = {name: _of_one_seed(tree, key) for name, tree in learned.items() if isinstance(tree, AbstractTrainable)}
    collected = jax.eval_shape(lambda: empty_episodes(task, 2))
    if episodes is not None:
        _check_data(task, episodes, collected)
    for name, tree in one.items():
        _check_dtypes(name, tree, collected.states.dtype)
        window = model_updates.window if name == "model" and begins_anywhere(tree) else None
        check_model("train", tree, collected if window is None else _windows_of(collected, window))
    if one:
        check_trains(model_updates.optimiser, one)
    check_trains(ascent.optimiser, _of_one_seed(policy, key))
    if not isinstance(reward, AbstractTrainable):
        _check_reward(task, task.reward if reward is None else reward, termination)
    if termination is not None and not isinstance(termination, AbstractTrainable):
        check_termination(termination)


def _check_windows(model, model_updates, ascent) -> None:
    """Raise if imagined episodes begin anywhere, but the model has statistics of the steps of whole episodes or of shorter windows."""
    if not (ascent.from_any_step and begins_anywhere(model) and any(normaliser.per_step for normaliser in normalisers(model))):
        return
    one, window, steps = members_of(model), model_updates.window, getattr(ascent, "length", 1)
    if window is None and isinstance(one, Anchored):
        return  # Its statistics are those of the steps after any anchor, also of whole episodes.
    steps = min(one.every, steps) if isinstance(one, Anchored) else steps
    if window is None or window < steps:
        raise ValueError(
            f"{type(ascent).__name__} begins imagined episodes at any step and an {type(members_of(model)).__name__} counts its steps "
            f"from there, but with per_step=True its statistics would be those of {'whole episodes' if window is None else f'{window} steps'}; "
            f"pass ModelUpdates(window={steps}), or build the model without per_step."
        )


def _windows_of(episodes, window: int):
    """Return the shapes of two windows of the episodes."""
    draw = lambda key, episodes: draw_windows(key, episodes, 2, min(window, episodes.horizon))
    return jax.eval_shape(draw, jax.random.key(0), episodes)


def _check_data(task: AbstractTask, episodes: Trajectory, collected: Trajectory) -> None:
    """Raise if the episodes that a run begins with are not like those that it collects."""
    check_episodes("train", episodes, state_size=task.state_size, action_size=task.action_size)
    check_whole("train", episodes)
    if episodes.rewards is None:
        raise ValueError("train got episodes without rewards; give each step its reward.")
    if episodes.horizon > task.horizon:
        raise ValueError(
            f"train got episodes in arrays of {episodes.horizon} steps, but an episode of the task has at most {task.horizon}; pass "
            "a task with a longer horizon, or shorter episodes."
        )
    for name in ("states", "actions", "rewards"):
        given, needed = getattr(episodes, name), getattr(collected, name)
        if given.dtype != needed.dtype:
            raise ValueError(
                f"train got {name} of {given.dtype}, but the task's are {needed.dtype}; pass them .astype({needed.dtype})."
            )
        if not bool(jnp.isfinite(getattr(episodes.filled(), name)).all()):
            raise ValueError(f"The episodes' {name} are not all finite; leave out such episodes.")


def _check_reward(task: AbstractTask, reward, termination) -> None:
    """Raise if the reward of imagined episodes cannot be computed, before the warm-up is collected."""
    check_reward(reward)
    state, action = jnp.zeros(task.state_size), jnp.zeros(task.action_size)
    eqx.filter_eval_shape(with_next_state(reward), state, action, jnp.asarray(0), state)
    if not isinstance(termination, AbstractTrainable):  # A learned one is smooth, so every reward has a gradient.
        warn_of_constant_reward(reward, state, action, rule_of(task) if termination is None else termination)


def _check_dtypes(name: str, model: AbstractTrainable, dtype) -> None:
    """Raise if the weights of a model are wider than the task's states, which it could not predict step by step."""
    weights = eqx.filter_eval_shape(lambda model: eqx.filter(model, trainable(model)), model)
    wide = [x.dtype for x in jtu.tree_leaves(weights) if jnp.finfo(x.dtype).bits > jnp.finfo(dtype).bits]
    if wide:
        raise ValueError(
            f"The task's states are {dtype} and the weights of the {name} {wide[0]}; use one dtype, in a simulator for example "
            "with task.reset(key).astype(float)."
        )


def _of_one_seed(tree: PyTree, key) -> PyTree:
    """The shapes of the first of several models or policies, or of the only one."""
    first = lambda x: jax.ShapeDtypeStruct(x.shape[key.ndim :], x.dtype) if eqx.is_array(x) else x
    return jtu.tree_map(first, tree)
