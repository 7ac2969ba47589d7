"""`train`: collect episodes, fit a model to them, improve a policy in the model, evaluate, repeat."""

import dataclasses
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Key

from .._checks import check_counts
from .._dynamics import AbstractDynamics, AbstractTask
from .._progress import AbstractProgress, NoProgress, TqdmProgress
from .._reward import Reward
from .._trajectory import Trajectory
from .._types import Number
from ..models._trainable import AbstractTrainable
from ._chunks import chunks
from ._collect import is_uneven
from ._metrics import Metrics
from ._model_checks import warn_of_large_actions
from ._model_updates import ModelUpdates
from ._resume import explain_interrupt, identity, load_run, save_run, stack
from ._seeds import best_of, of_runs, one_of
from ._sharding import place
from ._sweep import as_data, some_finite, sweep_of
from ._train_checks import check_types, check_values
from ._train_state import first_state, initial_updates, number_of_steps, run_epoch, RunConfig, TrainState
from ._warmup import Warmup
from .ascents import AbstractAscent, FullHorizon


class TrainResult(eqx.Module):
    """The result of `train`. With several seeds, everything but `seconds` has a leading axis of seeds, and a sweep has an axis of
    settings before it.

    - `model`: the fitted world model, or the simulator that was given.
    - `policy`: the trained policy.
    - `reward`: the fitted reward model, or `None` if the reward was known.
    - `termination`: the fitted termination model, or `None`.
    - `metrics`: an `awmkit.Metrics` whose fields have a last axis of epochs.
    - `seconds`: wall time of this call in seconds, compilation included.
    - `state`: everything a run changes, as in a checkpoint: models and policy, the replay buffer (`state.replay`) and the
      optimisers' states.
    - `sweep`: the numbers that vary, by the paths of the arguments, such as "ascent.optimiser.learning_rate": one for each
      setting. Empty if none does.

    With several seeds, `result[i]` is the result of seed i, and `result.best()` that of the seed with the highest last
    `true_return`. In a sweep, `result[i]` is the result of setting i, `result[i][k]` that of its seed k, and `result.best()` that
    of the setting with the highest last `true_return`, in the mean over its seeds.
    """

    model: AbstractDynamics
    policy: Callable[..., Array]
    reward: AbstractTrainable | None
    termination: AbstractTrainable | None
    metrics: Metrics
    seconds: float
    state: TrainState
    sweep: dict[str, np.ndarray] = eqx.field(default_factory=dict)

    def __getitem__(self, index: int) -> "TrainResult":
        """Return the result of one of several seeds, or of one setting of a sweep."""
        parts, of = (self.state, self.metrics), "setting" if self.sweep else "seed"
        state, metrics = one_of(parts, index, self.metrics.steps.shape[:-1], of=of)
        return TrainResult(state.model, state.policy, state.reward, state.termination, metrics, self.seconds, state)

    def best(self) -> "TrainResult":
        """Return the result of the seed whose last `true_return` is the highest; of a sweep, of the setting whose mean over seeds
        is; of one seed, this result."""
        return self if self.metrics.steps.ndim == 1 else self[best_of(self.metrics.true_return)]

    def __repr__(self) -> str:
        steps, returns = np.max(self.metrics.steps[..., -1]), np.asarray(self.metrics.true_return)
        runs = of_runs(returns.shape[:-1], self.sweep)
        seeds = f"medians of {runs}, " if runs else ""
        median = np.median(returns.reshape(-1, returns.shape[-1]), axis=0)
        kinds = ", ".join(
            f"{name}={type(getattr(self, name)).__name__}" for name in ("model", "policy", "reward", "termination", "state")
        )
        return (
            f"TrainResult({kinds},\n  metrics={seeds}{median.size} epochs, {steps} steps, true_return: first {median[0]:.4g}, "
            f"best {median.max():.4g}, last {median[-1]:.4g},\n  seconds={self.seconds:.1f})"
        )


def train(
    task: AbstractTask,
    model: AbstractDynamics,
    policy: Callable[..., Array],
    *,
    key: Key[Array, "*seeds"],
    steps: int = 5_000,
    environments: int = 1,
    noise: Number = 0.0,
    warmup: Warmup = Warmup(),
    model_updates: ModelUpdates = ModelUpdates(),
    ascent: AbstractAscent = FullHorizon(),
    reward: Reward | AbstractTrainable | None = None,
    termination: Callable[..., Array] | None = None,
    episodes: Trajectory | None = None,
    capacity: int | None = None,
    evaluate_every: int = 500,
    evaluations: int = 1,
    callbacks: Sequence[Callable[[Metrics], object]] = (),
    checkpoint: str | Path | None = None,
    mesh: Mesh | None = None,
    progress: AbstractProgress = TqdmProgress(),
) -> TrainResult:
    """Train a policy by gradient ascent on the return that a model predicts (Ma et al., 2024).

    ```python
    task = Discretised(CancerTreatment())
    model = AWM(task.state_size, task.action_size, key=k1)
    policy = GaussianPolicy(task.state_size, task.action_size, horizon=task.horizon, key=k2)
    result = train(task, model, policy, key=k3, noise=0.1, checkpoint="run.awm")
    result.metrics.true_return  # one number per epoch
    ```

    **What happens**

    1. Warm-up: collect episodes of random actions (`warmup`). Their statistics set the normalisers of the model, the policy, a
       reward model and a critic that are not set, and scale the returns. Normalisers that are set, as in a fitted model, stay as
       they are. Make the initial updates of the model and of the policy.
    2. Repeat until `steps` environment steps are done. One iteration is:
        - collect one episode of the policy in each environment, with noise on its actions (`noise`), and store it in the
          replay buffer;
        - fit the model to whole episodes from the replay buffer (`model_updates`);
        - improve the policy by the gradient of the return of imagined episodes (`ascent`).
    3. After about `evaluate_every` steps an epoch ends: evaluate the policy's mode on the true task, call the callbacks, and
       write the checkpoint.

    The number of updates is proportional to the number of environment steps: `steps_per_update=2.0` makes 50 updates for 100
    steps, whatever the number of environments.

    **If it does not learn**, look at `result.metrics`:

    - `model_error` near 1: the model predicts no better than the mean state. Fit more (`ModelUpdates(steps_per_update=0.5,
      initial_updates=500)`), try a larger learning rate, or collect a longer warm-up.
    - `model_error` small on the warm-up's episodes but growing as the policy changes: add `noise`, about 0.1 to 0.3.
    - `policy_update.predicted_return` does not grow: the policy hardly changes. Raise its learning rate, for example
      `FullHorizon(optimiser=optax.adam(1e-2), clip=1.0)`. The default, 1e-4, suits long runs.
    - `policy_update.predicted_return` grows but `true_return` does not: the policy exploits errors of the model; fit more, or
      improve the policy less often.
    - `policy_update.gradient_norm` is huge, or updates are skipped: the gradient explodes. Use an AWM, shorten the horizon,
      use `ShortHorizon`, or damp the gradient with `FullHorizon(paths=Paths(state_to_policy=0.0, state_to_model=0.95))`.
    - `policy_update.entropy` falls early, and `true_return` stops growing: keep the entropy high for longer with a
      `TargetEntropy` and a schedule.

    **Several seeds in one program**: pass an array of keys, and a model and a policy with a leading axis of the same length,
    built by `eqx.filter_vmap(make)(keys)`. All seeds share a simulator.

    **A sweep in one program**: numbers among the settings may be arrays of shape (N,), one number for each of N settings.

    ```python
    rates = jnp.logspace(-4, -2, 8)
    result = train(..., key=keys, ascent=FullHorizon(optimiser=Optimiser(optax.adam, learning_rate=rates)))
    result.sweep  # {"ascent.optimiser.learning_rate": rates}
    result.metrics.true_return  # shape (8 settings, seeds, epochs), or (8, epochs) for one key
    result.best()  # the result of the best setting
    plot.swept(result)
    ```

    These are the hyper-parameters of an `awmkit.Optimiser`, the noise, `recency`, and of the ascent `clip`, `entropy` (or the
    numbers of its `TargetEntropy`), `return_scale`, `discount`, `pessimism`, `polyak` and the gains of its `Paths`. Several arrays vary
    together and have one length. For a grid, pass `a, b = map(jnp.ravel, jnp.meshgrid(a, b))`. All settings have the same keys, the
    same initial model and policy and the same warm-up, so that their differences are paired. A number that is not an array is
    shared. Calls that differ only in such numbers share one program; a discount or a recency of 1, a pessimism of 0, and gains that are Python
    numbers, have programs of their own.

    **Arguments**

    - `task`: the problem to solve; any `awmkit.AbstractTask`. If JAX can trace it, each epoch is one compiled program. An
      `awmkit.gym.GymnasiumTask` collects its episodes on the host.
    - `model`: the dynamics through which the gradient is computed: a world model, which is fitted during the run; `task` itself,
      for the exact gradient of a simulator; or another `awmkit.AbstractDynamics`.
    - `policy`: called as `policy(state, t, *, key)`, returns an action in [-1, 1], shape (A,). Evaluated without a key, so
      that a stochastic policy takes its mode.
    - `key`: one `jax.random.key`, or an array of keys of shape (K,) for K seeds.
    - `steps`: number of environment steps, the warm-up's included, rounded up to whole episodes. Steps are counted as they
      happen: an episode that ends after 10 steps counts 10. With `episodes`, 0 learns from these alone.
    - `environments`: number of episodes collected per iteration, 1 by default, by the same policy. More of them run faster
      side by side, especially on an accelerator; the number of updates per step does not change.
    - `noise`: standard deviation of the pink noise added to the policy's actions while it collects; the sum is clipped to
      [-1, 1]. 0 by default; 0.1 to 0.3 helps a near-deterministic policy explore.
    - `warmup`: length and actions of the warm-up; see `awmkit.Warmup`.
    - `model_updates`: how the model is fitted; see `awmkit.ModelUpdates`.
    - `ascent`: how the policy is improved: `awmkit.FullHorizon` (the default), `awmkit.ShortHorizon`, or your own
      `awmkit.AbstractAscent`.
    - `reward`: the reward of imagined episodes, the task's own by default: `reward(state, action, t)`, or with a fourth
      parameter `next_state`. Pass an `awmkit.RewardModel` to learn it from the collected rewards.
    - `termination`: whether or with which probability a step ends an imagined episode, the task's own rule by default:
      `termination(state, action, t, next_state)`. Pass an `awmkit.TerminationModel` to learn it from the collected episodes. A
      Gymnasium environment whose episodes end early needs one or the other, or imagined episodes never end.
    - `episodes`: data to begin with, an `awmkit.Trajectory` of any behaviour, instead of the warm-up. It is stored in the replay
      buffer, and its statistics take the part of the warm-up's. For offline learning, pass `steps=0` and set the number of
      updates: `ModelUpdates(initial_updates=...)` and `FullHorizon(initial_updates=...)`. The task then only evaluates.
    - `capacity`: size of the replay buffer in steps; the oldest are overwritten. By default all steps fit.
    - `evaluate_every`: number of environment steps per epoch, rounded to whole iterations.
    - `evaluations`: number of evaluation episodes at the end of each epoch. 1 is enough if the task is deterministic.
    - `callbacks`: functions called with the `awmkit.Metrics` of each epoch, such as an `awmkit.JSONLines`. If one has a method
      `begin_run(epochs)`, it is called first, with the epochs that a resumed run has already done.
    - `checkpoint`: path of a file to which the whole run is written after each epoch. If the file exists, the run resumes
      from it: after an interrupt, make the same call again. All arguments that decide the result must be equal, compared by
      `awmkit.learning.fingerprint`: arrays by their bytes, functions by their code and everything they close over. A
      resumed run ends with exactly the same numbers as one that was never interrupted, on the same machine. A call with more
      `steps` continues a finished run.
    - `mesh`: devices that share the episodes of each update, such as `jax.make_mesh((8,), ("episodes",))`. They share the
      collection too if `environments` can be split evenly over them. With several processes, each makes this call; the first
      one shows progress, writes the checkpoint and calls the callbacks.
    - `progress`: `awmkit.TqdmProgress()` (the default) shows the phase, steps, true return, model error, gradient norm and
      time left on stderr; `awmkit.NoProgress()` shows nothing.

    **Returns:** an `awmkit.TrainResult`.

    **Raises:** `ValueError` if arguments do not fit together, or the checkpoint belongs to another run. `RuntimeError` if a
    return of the task or the model's loss is not finite. An update whose policy gradient or step is not finite is skipped and
    counted in `Metrics.policy_update.skipped`. A warning says so if all updates of an epoch are skipped or have a gradient of
    exactly 0, if the reward is a constant to the gradient, or if actions of the warm-up are outside of [-1, 1].
    """
    began = time.monotonic()
    check_types(task, model, key, warmup, model_updates, ascent, callbacks, checkpoint, mesh, progress)
    counts = {"steps": steps, "environments": environments, "evaluate_every": evaluate_every, "evaluations": evaluations}
    check_counts("train", least=0, capacity=capacity)
    learned = {"model": model, "reward": reward, "termination": termination}
    check_values(task, learned, policy, key, model_updates, ascent, noise=noise, episodes=episodes, **counts)
    known = {
        name: None if isinstance(learned[name], AbstractTrainable) else learned[name] for name in ("reward", "termination")
    }
    learned |= {name: None for name, rule in known.items() if rule is not None}
    settings = episodes, environments, evaluations, noise, capacity or 0, mesh
    config = RunConfig(task, warmup, model_updates, ascent, known["reward"], known["termination"], *settings)
    if (sweep := sweep_of(config)) and task.on_host:
        raise ValueError(
            f"A sweep ({', '.join(sweep)}) runs as one program only if JAX can trace the task; call train once for each setting."
        )
    iterations, uneven = config.iterations(steps), is_uneven(task)
    if episodes is None:  # Where episodes may end early, the warm-up may take more steps.
        _require_more_than_warmup(steps, warmup.steps if uneven else config.steps_after(0))
    per_epoch = max(1, round(evaluate_every / config.steps_per_iteration))
    epoch_length = f"{evaluate_every} steps" if uneven else f"{per_epoch} iterations"
    run = {} if checkpoint is None else identity(config, learned, policy, key, epoch_length)
    config = as_data(dataclasses.replace(config, capacity=_capacity(config, capacity, steps)))
    config, learned, policy, key = place((config, learned, policy, key), mesh)

    main = jax.process_index() == 0
    epochs: list[Metrics] = []
    shown, label = progress if main else NoProgress(), f"train {type(model).__name__}"
    end = steps if uneven else config.steps_after(iterations)
    total = max(1, end)
    with explain_interrupt(checkpoint, epochs), shown.start(label, total) as meter:
        if checkpoint is not None and Path(checkpoint).exists():
            state, earlier = load_run(checkpoint, run, config, learned, policy, key)
            epochs.extend(earlier)
        else:
            meter.update(0, phase="warm-up" if episodes is None else "storing the data")
            state = first_state(config, learned, policy, key)
            if episodes is None:
                _require_more_than_warmup(steps, int(np.min(jax.device_get(state.steps))))
            warn_of_large_actions("The warm-up of train", state.replay.steps.action)
        for callback in callbacks if main else ():
            if hasattr(callback, "begin_run"):
                callback.begin_run(tuple(epochs))  # pyright: ignore[reportFunctionMemberAccess]
        taken = lambda: int(np.min(jax.device_get(state.steps)))
        if taken() >= end + (config.steps_per_iteration if uneven else 1):
            raise ValueError(
                f"{checkpoint} is a run of {taken()} steps, more than steps={steps}; pass at least that many, or the path of "
                "another file."
            )
        meter.update(taken(), phase="compiling")
        if not epochs:
            for name, count in (("model", model_updates.initial_updates), ("policy", ascent.initial_updates)):
                for start, stop in chunks(count):
                    bounds = place((jnp.asarray(start), jnp.asarray(stop)), mesh)
                    state, wait = initial_updates(config, state, *bounds, key, of_policy=name == "policy")
                    jax.block_until_ready(wait)
                    meter.update(taken(), f"{stop} of {count}", phase=f"initial updates of the {name}")
        while not epochs or taken() < end:
            start = int(np.min(jax.device_get(state.iterations)))
            stop = min(start + per_epoch, max(iterations, 0))
            target = min(steps, taken() + evaluate_every) if uneven else config.steps_after(stop)
            bounds = place((jnp.asarray(start), jnp.asarray(stop), jnp.asarray(target)), mesh)
            show = lambda steps, phase: meter.update(min(int(steps), total), _note(epochs), phase=phase)
            state, epoch, updates = run_epoch(config, state, *bounds, key, show=show)
            epoch = jax.device_get(epoch)
            _require_finite(epoch, sweep)
            _warn_of_lost_updates(epoch, np.atleast_1d(jax.device_get(updates)))
            epochs.append(epoch)
            for callback in callbacks if main else ():
                callback(epoch)
            if checkpoint is not None and main:
                save_run(checkpoint, run, state, epochs)
            meter.update(min(taken(), total), _note(epochs), phase="collecting, fitting, improving")
    parts = state.model, state.policy, state.reward, state.termination
    return TrainResult(*parts, stack(epochs), time.monotonic() - began, state, sweep)


def _require_more_than_warmup(steps: int, warmup_steps: int) -> None:
    if steps <= warmup_steps:
        raise ValueError(
            f"train got steps={steps}, but the warm-up alone takes {warmup_steps} steps; raise steps, or shorten the warm-up."
        )


def _capacity(config: RunConfig, capacity: int | None, steps: int) -> int:
    """The number of steps that the replay buffer holds: the one given, or all that a run of `steps` steps may have."""
    given = 0 if config.episodes is None else int(number_of_steps(config.episodes))
    if capacity is None:
        last = 0 if steps == 0 else config.steps_per_iteration  # The last episodes may end after the last step.
        warmup = config.warmup_episodes * config.task.horizon
        needed = given + max(steps, warmup) + last + (warmup if is_uneven(config.task) else 0)
        return max(needed, config.task.horizon)
    check_counts("train", least=max(config.steps_per_iteration, config.task.horizon), capacity=capacity)
    if given > capacity:
        raise ValueError(
            f"train got episodes of {given} steps in all and capacity={capacity}, the number of steps that the replay buffer holds; "
            "raise the capacity, or leave it out."
        )
    return capacity


def _note(epochs: list[Metrics]) -> str:
    """What the progress meter shows of the last epoch; medians over seeds."""
    if not epochs:
        return ""
    epoch = epochs[-1]
    error = "" if epoch.model_error is None else f"model error {np.median(epoch.model_error):.2g}  "
    skipped = f"  {int(np.sum(epoch.policy_update.skipped))} skipped" if np.any(epoch.policy_update.skipped) else ""
    return f"return {np.median(epoch.true_return):.5g}  {error}gradient {np.median(epoch.policy_update.gradient_norm):.2g}{skipped}"


def _require_finite(epoch: Metrics, sweep: dict[str, np.ndarray]) -> None:
    """Raise if a return or the model's loss is not finite. In a sweep, warn unless it is so in every setting."""
    collected = np.where(epoch.episodes > 0, epoch.collected_return, 0)
    loss = np.zeros(()) if epoch.model_loss is None else epoch.model_loss
    finite = np.isfinite(collected) & np.isfinite(epoch.true_return) & np.isfinite(loss)
    if some_finite(finite, sweep):
        return
    for name, returns in (("collected", collected), ("evaluation", epoch.true_return)):
        if not np.isfinite(returns).all():
            raise RuntimeError(
                f"The task's {name} returns were {returns} up to step {np.max(epoch.steps)}: its states or rewards are not "
                "finite under this policy; fix the task, in a simulator for example with more substeps."
            )
    if epoch.model_loss is not None and not np.isfinite(epoch.model_loss).all():
        raise RuntimeError(
            f"The model's loss was {epoch.model_loss} after {np.max(epoch.steps)} steps; lower its learning rate, or clip its "
            "gradient: ModelUpdates(optimiser=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3)))."
        )


def _warn_of_lost_updates(epoch: Metrics, updates: np.ndarray) -> None:
    """Warn if a run skipped every policy update of the epoch, or all of their gradients were 0."""
    skipped = (np.atleast_1d(epoch.policy_update.skipped) == updates) & (updates > 0)
    zero = (np.atleast_1d(epoch.policy_update.gradient_norm) == 0) & ~skipped & (updates > 0)
    for runs, text in ((skipped, _SKIPPED), (zero, _ZERO)):
        if runs.any():
            first = f"All {updates.max()} policy updates of the epoch up to step {np.max(epoch.steps)}"
            warnings.warn(f"{first} {text.format(f'{runs.sum()} of {runs.size} runs')}", stacklevel=3)


_SKIPPED = (
    "were skipped in {}, because the gradients or the steps along them were not finite; damp the gradient with "
    "ascent=FullHorizon(paths=Paths(state_to_policy=0.0, state_to_model=0.95)), or shorten the episodes."
)
_ZERO = (
    "had a gradient of exactly 0 in {}, so the policy does not learn; the reward may be a constant to the gradient (0 or 1, or "
    "rounded), the policy may be saturated (normalise its states with input_norm), or paths may cut every edge."
)
