"""`improve`: policy optimisation in a model or a simulator, without an environment."""

import dataclasses
import operator
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from .._checks import check_counts, check_floats, check_shapes, kind
from .._dynamics import AbstractDynamics
from .._normaliser import is_stacked, normalise_inputs
from .._progress import AbstractProgress, check_progress, TqdmProgress
from .._reward import check_reward, Reward
from .._trajectory import check_episodes, check_whole, Trajectory
from .._unroll import unroll
from ..models._trainable import AbstractTrainable
from ._chunks import chunks
from ._loop import fori_loop
from ._replay import Replay
from ._seeds import best_of, check_keys, of_runs, one_of
from ._sweep import as_data, over_settings, settings_of, sweep_of
from ._warmup import uniform_actions
from .ascents import AbstractAscent, FullHorizon, UpdateInfo
from .ascents._ascent import check_policy


class ImproveResult(eqx.Module):
    """The result of `awmkit.improve`. With several seeds, everything but `seconds` has a leading axis of seeds, and a sweep has an
    axis of settings before it.

    - `policy`: the improved policy.
    - `updates`: an `awmkit.UpdateInfo` whose fields have a last axis of updates; `updates.predicted_return` is the learning curve.
      In skipped updates all fields but `skipped` are NaN.
    - `ascent_state`: the state of the ascent: the policy's optimiser, the scale of returns, a critic.
    - `seconds`: wall time in seconds, compilation included.
    - `sweep`: the numbers that vary, by the paths of the arguments, such as "ascent.optimiser.learning_rate"; empty if none does.
    """

    policy: Callable[..., Array]
    updates: UpdateInfo
    ascent_state: PyTree
    seconds: float
    sweep: dict[str, np.ndarray] = eqx.field(default_factory=dict)

    def __repr__(self) -> str:
        curve = np.asarray(self.updates.predicted_return)
        runs = of_runs(curve.shape[:-1], self.sweep)
        seeds = f" (medians of {runs})" if runs else ""
        ends = [x[np.isfinite(x)] for x in (curve[..., 0], curve[..., -1])]
        first, last = (np.median(x) if x.size else np.nan for x in ends)
        skipped = int(np.sum(self.updates.skipped))
        return (
            f"ImproveResult(policy={type(self.policy).__name__}, predicted_return: first {first:.4g}, last {last:.4g} "
            f"of {curve.shape[-1]}{seeds}, {skipped} skipped, seconds={self.seconds:.1f})"
        )

    def __getitem__(self, index: int) -> "ImproveResult":
        """Return the result of one of several seeds, or of one setting of a sweep."""
        parts = self.policy, self.updates, self.ascent_state
        of = "setting" if self.sweep else "seed"
        return ImproveResult(*one_of(parts, index, self.updates.skipped.shape[:-1], of=of), self.seconds)

    def best(self) -> "ImproveResult":
        """Return the result of the seed whose last predicted return is the highest; of a sweep, of the setting whose mean over
        seeds is; of one seed, this result. One in which the last update was skipped counts as the worst."""
        curve = self.updates.predicted_return
        return self if curve.ndim == 1 else self[best_of(curve)]


def improve(
    model: AbstractDynamics,
    policy: Callable[..., Array],
    starts: Float[Array, "N S"] | Trajectory,
    *,
    reward: Reward,
    key: Key[Array, "*seeds"],
    horizon: int | None = None,
    updates: int = 1000,
    ascent: AbstractAscent = FullHorizon(),
    termination: Callable[..., Array] | None = None,
    progress: AbstractProgress = TqdmProgress(),
) -> ImproveResult:
    """Improve a policy by gradient ascent on the return of episodes imagined in a model or a simulator.

    ```python
    model = fit(AWM(4, 2, key=k1), episodes, key=k2).model
    result = improve(model, policy, episodes, reward=reward, key=k3, ascent=FullHorizon(optimiser=optax.adam(1e-3)))
    result.updates.predicted_return  # The learning curve, one number per update.
    ```

    The policy's and a critic's normalisers that are not set, and the scale of the returns, are those of `starts` if these are
    episodes with rewards, and otherwise those of episodes of random actions in the model.

    **Several seeds in one program**: pass an array of keys, and a policy with a leading axis of the same length, built by
    `eqx.filter_vmap(make)(keys)`; a fitted model may have such an axis too. `result.best()` is the best of them.

    **A sweep in one program**: numbers of the ascent may be arrays of shape (N,); see `awmkit.train`.

    **Arguments**

    - `model`: the dynamics to differentiate: a fitted world model, a simulator or your own `awmkit.AbstractDynamics`.
    - `policy`: called as `policy(state, t, *, key)`, returns an action in [-1, 1], shape (A,).
    - `starts`: initial states of imagined episodes, shape (N, S), drawn uniformly; or whole episodes. An ascent then draws their
      initial states, or any of their states (see `FullHorizon(length=...)` and `ShortHorizon`). Of episodes that are longer than
      `horizon`, only the first steps are read, unless a critic without a horizon values what comes after.
    - `reward`: `reward(state, action, t)`, or with a fourth parameter `next_state`, such as `task.reward` or a fitted
      `awmkit.RewardModel`.
    - `key`: one `jax.random.key`, or an array of keys of shape (K,) for K seeds.
    - `horizon`: number of steps H of an imagined episode. By default that of the episodes, if `starts` are some.
    - `updates`: number of policy updates, 1000 by default.
    - `ascent`: how the policy is improved: `awmkit.FullHorizon` (the default), `awmkit.ShortHorizon`, or your own. Its
      `steps_per_update` and `initial_updates` do not matter here; schedules get the number of updates so far as steps.
    - `termination`: whether or with which probability a step ends an imagined episode, such as a fitted
      `awmkit.TerminationModel`; by default the model's own rule, if it has one.
    - `progress`: `awmkit.TqdmProgress()` (the default) shows a bar on stderr, `awmkit.NoProgress()` nothing.

    **Returns:** an `ImproveResult`.

    **Raises:** `ValueError` if arguments do not fit together. `RuntimeError` if all updates of a chunk were skipped, because
    their gradients or steps were not finite. `KeyboardInterrupt` on Ctrl-C: its attribute `result` is the `ImproveResult` so
    far; in an interactive session, `sys.last_value.result`.
    """
    began = time.monotonic()
    check_progress(progress)
    check_counts("improve", updates=updates)
    _check(model, policy, reward, key, ascent)
    sweep, ascent = sweep_of(ascent, "ascent."), as_data(ascent)
    endless = getattr(getattr(ascent, "critic", None), "horizon", 0) is None  # Then steps after the horizon count too.
    replay, horizon, data = _starts(model, starts, horizon, cut=not endless)
    ascent.check(model, horizon)
    rules = {"reward": reward, "termination": termination}
    state, policy = _begin(ascent, model, policy, replay, data, horizon, rules, key)
    carry = state, policy, _no_updates(updates, (*settings_of(sweep), *key.shape))
    done = 0
    try:
        with progress.start(f"improve {type(policy).__name__} in {type(model).__name__}", updates) as meter:
            meter.update(0, phase="compiling")
            for start, stop in chunks(updates):
                carry = _improve(ascent, model, replay, rules, carry, jnp.asarray(start), jnp.asarray(stop), key)
                info = jtu.tree_map(lambda x, span=slice(start, stop): np.asarray(x[..., span]), carry[2])
                done = stop
                if (info.skipped == 1).all() and stop - start > 1:
                    raise RuntimeError(
                        f"All updates from {start} to {stop} were skipped, because their gradients or the steps along them were not "
                        "finite; shorten the horizon, lower the learning rate, or damp the gradient with "
                        "FullHorizon(paths=Paths(state_to_policy=0.0, state_to_model=0.95))."
                    )
                note = f"return {np.median(info.predicted_return[..., -1]):.5g}  gradient {np.median(info.gradient_norm):.2g}"
                meter.update(done, note, phase="improving")
    except KeyboardInterrupt:
        interrupt = KeyboardInterrupt(
            f"improve was interrupted after {done} of {updates} updates; the policy so far is the attribute result.policy of this "
            "exception (sys.last_value.result.policy in an interactive session)."
        )
        interrupt.result = _result(carry, done, began, sweep)  # pyright: ignore[reportAttributeAccessIssue]
        raise interrupt from None
    return _result(carry, done, began, sweep)


def _result(carry, done: int, began: float, sweep: dict) -> ImproveResult:
    state, policy, infos = carry
    infos = jtu.tree_map(lambda x: x[..., :done], infos)
    shown = jtu.tree_map(lambda x: jnp.where(infos.skipped == 1, jnp.nan, x), infos)
    updates = dataclasses.replace(shown, skipped=infos.skipped)
    return ImproveResult(policy, updates, state, time.monotonic() - began, sweep)


def _no_updates(updates: int, runs: tuple[int, ...]) -> UpdateInfo:
    zeros = jnp.zeros((*runs, updates), jnp.result_type(float))
    return UpdateInfo(zeros, zeros, zeros, zeros, zeros)


def _starts(model, starts: Any, horizon: int | None, cut: bool) -> tuple[Replay, int, Trajectory | None]:
    """Return a replay buffer to draw starts from, the number of imagined steps, and episodes with rewards if there are any."""
    if isinstance(starts, Trajectory):
        check_episodes("improve", starts, state_size=model.state_size, action_size=model.action_size)
        check_whole("improve", starts)
        horizon, episodes = starts.horizon if horizon is None else horizon, starts
    else:
        check_shapes("improve", "give one row per start, or episodes", starts=(starts, ("N", model.state_size)))
        check_floats("improve", starts=starts)
        if horizon is None:
            raise ValueError("improve got initial states and no horizon; pass horizon=, the number of imagined steps.")
        # Episodes of one step that stays where it is: only the state in which it begins is read.
        states = jnp.stack([jnp.asarray(starts)] * 2, axis=1)
        episodes = Trajectory(states, jnp.zeros((len(starts), 1, model.action_size), states.dtype))
    check_counts("improve", horizon=horizon)
    horizon = operator.index(horizon)
    if cut and episodes.horizon > horizon:
        episodes = _first_steps(episodes, horizon)
    episodes = episodes.padded(max(episodes.horizon, horizon))
    capacity = max(int(np.sum(episodes.mask)), episodes.horizon)
    replay = Replay.empty(capacity, jtu.tree_map(lambda x: x[0], episodes)).add(episodes)
    data = episodes if episodes.rewards is not None else None
    return dataclasses.replace(replay, horizon=horizon), horizon, data


def _first_steps(episodes: Trajectory, horizon: int) -> Trajectory:
    """Cut episodes to their first `horizon` steps."""
    lengths = jnp.full(len(episodes), episodes.horizon) if episodes.length is None else jnp.asarray(episodes.length)
    rewards = None if episodes.rewards is None else episodes.rewards[:, :horizon]
    ended = None if episodes.terminated is None else episodes.terminated & (lengths <= horizon)
    states, actions = episodes.states[:, : horizon + 1], episodes.actions[:, :horizon]
    survival = None if episodes.survival is None else episodes.survival[:, :horizon]
    return Trajectory(states, actions, rewards, jnp.minimum(lengths, horizon), ended, survival=survival)


def _check(model, policy, reward, key, ascent) -> None:
    if not isinstance(model, AbstractDynamics) or getattr(model, "on_host", False):
        raise ValueError(f"The model is {kind(model)}, which has no gradient; pass a fitted world model, or a simulator.")
    if not isinstance(ascent, AbstractAscent):
        raise ValueError(f"The ascent is {kind(ascent)}; pass an awmkit.FullHorizon(...) or ShortHorizon(...).")
    check_keys(key)
    check_policy(ascent, policy)
    check_reward(reward)


def _seeds(fn: Callable, key, model, *in_axes) -> Callable:
    """Return `fn(ascent, model, *args)` for each of several seeds, or for one. A simulator or a single fitted model is shared."""
    if not key.ndim:
        return fn
    stacked = isinstance(model, AbstractTrainable) and is_stacked(model)
    return eqx.filter_vmap(fn, in_axes=(None, eqx.if_array(0) if stacked else None, *in_axes))


@eqx.filter_jit
def _begin(ascent, model, policy, replay, data, horizon, rules, key):
    """Set what the episodes set before the first update."""

    def begin(ascent, model, policy, key):
        action_key, start_key, ascent_key = jax.random.split(jax.random.fold_in(key, 2**31 - 1), 3)
        episodes = data
        if episodes is None:
            states = replay.starts(start_key, 64)
            draw = lambda k: uniform_actions(k, (horizon, model.action_size)).astype(states.dtype)
            # The model's noise has a key that uniform_actions does not derive from k.
            run = lambda s, k: unroll(model, draw(k), s, horizon, key=jax.random.fold_in(k, 2**31 - 1), **rules)
            episodes = jax.vmap(run)(states, jax.random.split(action_key, 64))
        policy = normalise_inputs(policy, episodes)
        return ascent.init(policy, episodes, key=ascent_key), policy

    each_seed = _seeds(begin, key, model, eqx.if_array(0), 0)
    return over_settings(each_seed, ascent, None, None, None)(model, policy, key)


@eqx.filter_jit
def _improve(ascent, model, replay, rules, carry, start, stop, key):
    """Make updates `start` to `stop`. Both are traced, so that chunks of any length share one program."""

    def run(ascent, model, carry, key):
        def update(i, carry):
            state, policy, infos = carry
            options = {"dynamics": model, "replay": replay, "steps": i, "key": jax.random.fold_in(key, i), **rules}
            state, policy, info = ascent.update(state, policy, **options)
            return state, policy, jtu.tree_map(lambda rows, x: rows.at[i].set(x.astype(rows.dtype)), infos, info)

        return fori_loop(start, stop, update, carry)

    each_seed = _seeds(run, key, model, eqx.if_array(0), 0)
    return over_settings(each_seed, ascent, None, eqx.if_array(0), None)(model, carry, key)
