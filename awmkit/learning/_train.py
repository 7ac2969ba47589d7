"""BPO, the paper's algorithm: act, store the episodes, fit the model to them, ascend the return that it predicts.

One entry point for every world model, for the simulator's own gradient and for every kind of task; what differs is an argument.
"""

import contextlib
import math
import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Key

from .._checks import check_call, check_counts, kind
from .._dynamics import AbstractDynamics, AbstractTask
from .._progress import AbstractProgress, check_progress, NoProgress, TqdmProgress
from .._reward import Reward
from .._trajectory import Trajectory
from ..models import AWM, HWM
from ..models._trainable import AbstractTrainable
from ..models._world_model import AbstractWorldModel
from . import _train_state
from ._checkpoint import check_folder, load, read_header, save, versions
from ._sharding import check_mesh, gather, place
from ._train_state import Metrics, Mode, ModelUpdates, RunConfig, TrainState, Warmup
from .ascents._ascent import AbstractAscent, FullHorizon, ShortHorizon, UpdateInfo


class TrainResult(eqx.Module):
    """What `train` returns. Of several seeds, everything but `seconds` has a leading axis.

    - `model`, `policy`: as learned.
    - `reward`: as learned; `None` where it was known.
    - `metrics`: a `awmkit.Metrics` whose fields have a last axis, one entry an epoch.
    - `seconds`: of wall time, of this call, compilation included.
    - `learner`: these and the replay and the optimisers' memories.
    """

    model: AbstractDynamics
    policy: Callable[..., Array]
    reward: AbstractTrainable | None
    metrics: Metrics
    seconds: float
    learner: TrainState

    def __repr__(self) -> str:
        steps, returns = np.max(self.metrics.steps[..., -1]), np.atleast_2d(self.metrics.true_return)
        seeds = "" if returns.shape[0] == 1 else f"{returns.shape[0]} seeds, medians of which are shown, "
        middle = np.median(returns, axis=0)
        kinds = ", ".join(f"{name}={type(getattr(self, name)).__name__}" for name in ("model", "policy", "reward", "learner"))
        return (
            f"TrainResult({kinds},\n  metrics={seeds}{middle.size} epochs to {steps} steps, true_return {middle[0]:.4g} at "
            f"first, {middle.max():.4g} at best, {middle[-1]:.4g} at last,\n  seconds={self.seconds:.1f})"
        )


def train(
    task: AbstractTask,
    model: AbstractDynamics,
    policy: Callable[..., Array],
    *,
    key: Key[Array, "*seeds"],
    steps: int = 5_000,
    environments: int = 1,
    noise: float = 0.0,
    warmup: Warmup = Warmup(),
    model_updates: ModelUpdates = ModelUpdates(),
    ascent: AbstractAscent = FullHorizon(),
    reward: Reward | AbstractTrainable | None = None,
    capacity: int | None = None,
    evaluate_every: int = 500,
    evaluations: int = 1,
    callbacks: Sequence[Callable[[Metrics], object]] = (),
    checkpoint: str | Path | None = None,
    mesh: Mesh | None = None,
    progress: AbstractProgress = TqdmProgress(),
) -> TrainResult:
    """Learn a policy by the gradient of the return that a model predicts (Ma et al., 2024; the schedule is theirs).

    After a warm-up of random actions, again and again: an episode of the policy with its noise in each environment, stored
    whole; updates of the model on whole episodes; updates of the policy on the return of imagined ones.

    ```python
    task = Discretised(CancerTreatment())
    model = AWM(task.state_size, task.action_size, Transformer(horizon=task.horizon, key=k1), key=k2)
    policy = GaussianPolicy(task.state_size, task.action_size, horizon=task.horizon, key=k3)
    result = train(task, model, policy, key=k4, checkpoint="run.awm")
    result.metrics.true_return
    ```

    Statistics of the warm-up normalise the states that a world model and a policy read, and scale the return.

    **Several seeds as one program**: give an array of keys, and a model and a policy with a leading axis, as
    `eqx.filter_vmap(make)(keys)` builds them. A simulator is one for all.

    **Arguments**

    - `task`: any `awmkit.AbstractTask`, an `awmkit.gym.GymnasiumTask` among them. If JAX can trace it, an epoch is one
      compiled program.
    - `model`: a world model, fitted as the run goes; or `task` itself, for the simulator's own gradient; or another dynamics.
    - `policy`: as in `awmkit.unroll`; evaluated without a key, at its mode.
    - `key`: one key, or an array of them, (K,).
    - `steps`: of the environment in all, the warm-up's among them, rounded up to whole episodes.
    - `environments`: how many act side by side; updates are due by steps, whoever makes them.
    - `noise`: standard deviation of the pink noise that is added to the policy's own actions while it acts; the sum is clipped
      to [-1, 1].
    - `warmup`, `model_updates`, `ascent`: see `awmkit.Warmup`, `awmkit.ModelUpdates`, and `awmkit.FullHorizon` or
      `awmkit.ShortHorizon`.
    - `reward`: what imagined episodes are scored with, by default the task's reward; an `awmkit.RewardModel` is learned.
    - `capacity`: of the replay, in episodes; by default room for all.
    - `evaluate_every`, `evaluations`: environment steps of an epoch, rounded to whole iterations, and how many true episodes of
      the mode end it.
    - `callbacks`: called with the `awmkit.Metrics` of each epoch, such as `awmkit.JSONLines`.
    - `checkpoint`: a file that holds the whole run, written after each epoch; if it exists, the run goes on from it and ends
      as if it had never stopped, bit for bit on the same machine. So after Ctrl-C or a kill: make the same call again.
    - `mesh`: devices, as `jax.make_mesh((8,), ("episodes",))`, that share the episodes of each update, and of each iteration
      where `environments` can be split evenly. Of several processes, each of which makes this call, the first alone shows
      progress, writes the checkpoint and calls back.
    - `progress`: `TqdmProgress()` shows steps, return, model error, gradient norm and time left on stderr, `NoProgress()` nothing.

    **Returns:** a `awmkit.TrainResult`.

    **Raises:** `ValueError` for what does not fit together, or a checkpoint of another run; `RuntimeError` when the model's
    loss, or what the task returns, is not finite. A policy gradient that is not finite is left out and counted, in
    `Metrics.policy_update.skipped`; where an epoch has no other, a warning says so.
    """
    started = time.monotonic()
    check_progress(progress)
    _check_kinds(task, model, key, warmup, model_updates, ascent, callbacks, checkpoint, mesh)
    _check(task, model, policy, reward, key, steps, environments, noise, ascent, evaluate_every, evaluations)
    per_iteration = task.horizon * environments
    warm = math.ceil(warmup.steps / per_iteration) * environments
    before, iterations = warm * task.horizon, math.ceil((steps - warm * task.horizon) / per_iteration)
    if iterations < 1:
        raise ValueError(f"train got steps={steps}, and the warm-up takes {before}; give it more, or a shorter warm-up.")
    capacity = warm + iterations * environments if capacity is None else capacity
    learned, known = (reward, None) if isinstance(reward, AbstractTrainable) else (None, reward)
    loop = RunConfig(task, model_updates, ascent, environments, evaluations, noise, known, before, mesh)
    start = place(_Start(loop, model, learned, policy, warmup, warm, capacity, key), mesh)
    loop, key = start.loop, start.key

    config = {
        "run": re.sub(" at 0x[0-9a-f]+", "", eqx.tree_pformat(start, width=120)),
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "epoch": max(1, round(evaluate_every / loop.per_iteration)),
    }
    learner, rows = (None, []) if checkpoint is None or not Path(checkpoint).exists() else _resume(checkpoint, config, start)
    done = (int(np.max(rows[-1].steps)) - before) // loop.per_iteration if rows else 0
    total = before + iterations * loop.per_iteration
    first = jax.process_index() == 0
    shown = progress if first else NoProgress()
    with _resumable(checkpoint, rows), shown.start(f"train {type(model).__name__}", total) as meter:
        if learner is None:
            meter.update(0, phase="warm-up")
            learner = start.run()
        meter.update(before + done * loop.per_iteration, phase="compiling")
        for begin in range(done, iterations, config["epoch"]):
            end = min(begin + config["epoch"], iterations)
            learner, row = _epoch(loop, learner, begin, end, before, key)
            _require_finite(row)
            _warn_of_skips(row, loop.due_between(begin, end, ascent.steps_per_update))
            rows.append(row)
            for callback in callbacks if first else ():
                callback(row)
            if checkpoint is not None and first:
                save(checkpoint, (learner, _stack(rows)), config={**config, "epochs": len(rows)})
            meter.update(before + end * loop.per_iteration, _line(row), phase="learning")
    return TrainResult(learner.model, learner.policy, learner.reward, _stack(rows), time.monotonic() - started, learner)


@contextlib.contextmanager
def _resumable(checkpoint: str | Path | None, rows: list[Metrics]) -> Iterator[None]:
    """An interrupt says how to go on, in its last line."""
    try:
        yield
    except KeyboardInterrupt:
        done = f"train was interrupted after {int(np.max(rows[-1].steps)) if rows else 0} steps"
        if checkpoint is None:
            how = 'they are lost, but with checkpoint="run.awm" the same call goes on where it stopped'
        elif Path(checkpoint).exists():
            how = f"make the same call again, with checkpoint={str(checkpoint)!r}, to go on from its last whole epoch"
        else:
            how = f"no epoch was whole, so that {checkpoint} was not written yet; lower evaluate_every to keep more"
        raise KeyboardInterrupt(f"{done}; {how}.") from None


class _Start(eqx.Module):
    """All that decides a run, and so how it begins."""

    loop: RunConfig
    model: AbstractDynamics
    reward: AbstractTrainable | None
    policy: Callable[..., Array]
    warmup: Warmup
    episodes: int = eqx.field(static=True)
    capacity: int = eqx.field(static=True)
    key: Key[Array, "*seeds"]

    def run(self) -> TrainState:
        """The learner after the warm-up."""
        lived = None
        if self.loop.task.on_host:
            lived = _train_state.warm_up(self.loop.task, self.warmup.actions, self.episodes, self._keys(self.key)[0])
        return _prime(self, lived)

    def shapes(self) -> TrainState:
        """The same, but for what the arrays hold; nothing is run."""
        task = self.loop.task
        shapes = (task.horizon + 1, task.state_size), (task.horizon, task.action_size), (task.horizon,)
        lived = eqx.filter_eval_shape(lambda: Trajectory(*(jnp.zeros((self.episodes, *shape)) for shape in shapes)))
        return eqx.filter_eval_shape(_prime, self, lived if task.on_host else None)

    def prime(self, model, reward, policy, key, lived) -> TrainState:
        warm_key, prime_key = self._keys(key)
        if lived is None:
            lived = _train_state.warm_up(self.loop.task, self.warmup.actions, self.episodes, warm_key)
        return _train_state.prime(self.loop, model, reward, policy, lived, self.capacity, prime_key)

    @staticmethod
    def _keys(key):
        # Iterations take the small numbers.
        return jax.random.split(jax.random.fold_in(key, 2**31 - 1))


@eqx.filter_jit
def _prime(start: _Start, lived) -> TrainState:
    prime = lambda model, reward, policy, key: start.prime(model, reward, policy, key, lived)
    if start.key.ndim:  # A simulator is one for all seeds.
        several = eqx.if_array(0)
        model = several if isinstance(start.model, AbstractTrainable) else None
        prime = eqx.filter_vmap(prime, in_axes=(model, several, several, 0))
    learner = prime(start.model, start.reward, start.policy, start.key)
    # Weak types would become strong in the first epoch and compile a second.
    return jtu.tree_map(lambda x: lax.convert_element_type(x, x.dtype) if eqx.is_inexact_array(x) else x, learner)


def _epoch(loop: RunConfig, learner: TrainState, begin: int, end: int, before: int, key) -> tuple[TrainState, Metrics]:
    run = _lived_epoch if loop.task.on_host else _compiled_epoch
    begun, ended = place((jnp.asarray(begin), jnp.asarray(end)), loop.mesh)
    learner, total, true_return = run(loop, learner, begun, ended, key)
    return learner, jax.device_get(_train_state.metrics(loop, learner, total, begin, end, before, true_return))


@eqx.filter_jit
def _compiled_epoch(loop, learner, begin, end, key):
    epoch = lambda learner, key: _train_state.epoch(loop, learner, begin, end, key)
    return gather((eqx.filter_vmap(epoch) if key.ndim else epoch)(learner, key), loop.mesh)


def _lived_epoch(loop, learner, begin, end, key):
    """As `_compiled_epoch`, for environments on the host."""
    task, sums = loop.task, []
    for i in range(int(begin), int(end)):
        act_key, learn_key = _train_state.iteration_keys(key, i)
        episodes = _train_state.explore(loop, learner.policy, act_key)
        learner, seen = _learn(loop, learner, episodes, jnp.asarray(i), learn_key)
        sums.append(seen)
    evaluated = _train_state.act(task, Mode(learner.policy), loop.evaluations, _train_state.evaluation_key(key))
    return learner, jtu.tree_map(lambda *x: sum(x), *sums), jnp.mean(evaluated.returns())


_learn = eqx.filter_jit(_train_state.learn)


def _resume(path, config: dict[str, Any], start: _Start) -> tuple[TrainState, list[Metrics]]:
    """Where the run in the file had got to."""
    kept = read_header(path)
    for name, given in config.items():
        if (had := kept["config"].get(name)) != given:
            had, given = _difference(had, given)
            raise ValueError(
                f"{path} holds another run: its {name} is {had}, and the one asked for is {given}; give the arguments it was "
                "begun with, or another file."
            )
    if kept["versions"] != versions():
        warnings.warn(f"{path} was written by {kept['versions']}, and goes on with {versions()}.", stacklevel=3)
    epochs, zero = kept["config"]["epochs"], jnp.zeros(())
    fitted = zero if isinstance(start.model, AbstractWorldModel) else None
    row = Metrics(jnp.zeros((), int), zero, zero, fitted, fitted, UpdateInfo(zero, zero, zero, zero, zero))
    like = jtu.tree_map(lambda x: jax.ShapeDtypeStruct((*start.key.shape, epochs), x.dtype), row)
    learner, rows = load(path, (start.shapes(), like))
    return learner, [jtu.tree_map(lambda x, i=i: np.asarray(x[..., i]), rows) for i in range(epochs)]


def _difference(had, given) -> tuple[Any, Any]:
    """Of texts, their first lines that differ."""
    if not (isinstance(had, str) and isinstance(given, str)):
        return had, given
    lines = zip_longest(had.splitlines(), given.splitlines(), fillvalue="nothing")
    return next((x.strip(" ,"), y.strip(" ,")) for x, y in lines if x != y)


def _stack(rows: list[Metrics]) -> Metrics:
    return jtu.tree_map(lambda *x: jnp.asarray(np.stack(x, axis=-1)), *rows)


def _line(row: Metrics) -> str:
    """Of several seeds, the median."""
    error = "" if row.model_error is None else f"model error {np.median(row.model_error):.2g}  "
    skipped = f"  {int(np.sum(row.policy_update.skipped))} skipped" if np.any(row.policy_update.skipped) else ""
    return f"return {np.median(row.true_return):.5g}  {error}gradient {np.median(row.policy_update.gradient_norm):.2g}{skipped}"


def _require_finite(row: Metrics) -> None:
    for name, returns in (("acted", row.acted_return), ("evaluated", row.true_return)):
        if not np.isfinite(returns).all():
            raise RuntimeError(
                f"The task's {name} returns were {returns} up to step {np.max(row.steps)}: its states or rewards are not "
                "finite under this policy; mend the task, for a simulator say with more substeps."
            )
    if row.model_loss is not None and not np.isfinite(row.model_loss).all():
        raise RuntimeError(
            f"The model's loss was {row.model_loss} after {np.max(row.steps)} steps; lower its learning rate, or clip its "
            "gradient: ModelUpdates(optimiser=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3)))."
        )


def _warn_of_skips(row: Metrics, updates) -> None:
    idle = np.atleast_1d(row.policy_update.skipped) == updates
    if updates and idle.any():
        warnings.warn(
            f"None of the {updates} policy updates up to step {np.max(row.steps)} had a finite gradient, and so all were left "
            f"out, in {idle.sum()} of {idle.size} runs; damp the gradient, as "
            "ascent=FullHorizon(paths=Paths(state_to_policy=0.0, state_to_model=0.95)), or shorten the episodes.",
            stacklevel=3,
        )


def _check_kinds(task, model, key, warmup, model_updates, ascent, callbacks, checkpoint, mesh) -> None:
    if not isinstance(task, AbstractTask):
        raise ValueError(f"The task is {kind(task)}; pass an awmkit.AbstractTask, such as a GymnasiumTask(env).")
    if not isinstance(model, AbstractDynamics) or getattr(model, "on_host", False):
        raise ValueError(f"The model is {kind(model)}, which no gradient goes through; pass a world model, such as an AWM.")
    if not (eqx.is_array(key) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim <= 1):
        raise ValueError("The key must be one jax.random.key(seed), or several, jax.random.split(key, seeds), to run as one.")
    settings = (("warmup", warmup, Warmup), ("model_updates", model_updates, ModelUpdates), ("ascent", ascent, AbstractAscent))
    for name, given, needed in settings:
        if not isinstance(given, needed):
            example = "FullHorizon" if needed is AbstractAscent else needed.__name__
            raise ValueError(f"train got {name}={given!r}; pass an awmkit.{example}(...).")
    if not isinstance(callbacks, Sequence):
        raise ValueError(f"The callbacks are {kind(callbacks)}; pass a list of functions, such as [JSONLines('log')].")
    if checkpoint is not None:
        check_folder(Path(checkpoint))
    check_mesh(mesh)


def _check_seeds(key, learned: dict[str, Any]) -> None:
    """Several keys need a leading axis of each thing that is learned; a simulator is one for all."""
    for name, tree in learned.items():
        if key.ndim and (name == "policy" or isinstance(tree, AbstractTrainable)):
            if any(jnp.shape(x)[:1] != key.shape for x in jtu.tree_leaves(eqx.filter(tree, eqx.is_array))):
                raise ValueError(f"There are {key.size} keys and one {name}; build several by eqx.filter_vmap(make)(keys).")


def _check(task, model, policy, reward, key, steps, environments, noise, ascent, evaluate_every, evaluations) -> None:
    if (model.state_size, model.action_size) != (task.state_size, task.action_size):
        raise ValueError(
            f"The model has {model.state_size} states and {model.action_size} actions and the task {task.state_size} and "
            f"{task.action_size}; build it with task.state_size and task.action_size."
        )
    if key.ndim and task.on_host:
        raise ValueError("Several seeds run as one program only where JAX can trace the task; call train once for each key.")
    _check_seeds(key, {"model": model, "policy": policy, "reward": reward})
    check_counts("train", steps=steps, environments=environments, evaluate_every=evaluate_every, evaluations=evaluations)
    if not noise >= 0:
        raise ValueError(f"train got noise={noise}; give a standard deviation of at least 0, such as 0.1.")
    fix = "write it so, or pass a GaussianPolicy"
    check_call("policy", "policy(state, t, *, key)", fix, policy, None, 0, key=None)
    if not hasattr(policy, "entropy") and ascent.entropy != 0:
        raise ValueError(
            f"A {type(policy).__name__} has no entropy to reward; pass a GaussianPolicy, or {type(ascent).__name__}(entropy=0)."
        )
    if isinstance(ascent, ShortHorizon) and ascent.length > task.horizon:
        raise ValueError(
            f"ShortHorizon got length={ascent.length} and an episode has {task.horizon} steps; give at most those."
        )
    if isinstance(ascent, ShortHorizon) and isinstance(model, AWM | HWM):
        raise ValueError(
            f"ShortHorizon begins in the middle of an episode, and {type(model).__name__} knows episodes from their first state "
            "only; use Markov, a simulator, or FullHorizon."
        )
