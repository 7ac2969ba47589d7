"""The compiled part of a training run: its state, its settings, its first state, its initial updates and its epochs."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, ArrayLike, Float, Int, Key, PRNGKeyArray, PyTree, Scalar, ScalarLike

from .._dynamics import AbstractDynamics, AbstractTask
from .._normaliser import normalise_inputs
from .._norms import norm, std
from .._reward import Reward
from .._termination import rule_of
from .._trajectory import Trajectory
from .._types import Number
from .._windows import cut_windows
from ..models._ensemble import members_of
from ..models._trainable import AbstractTrainable
from ..models._world_model import AbstractWorldModel
from ._collect import call_compiled, collect, collect_each, collecting_mesh, empty_episodes, is_uneven, iterate, iterate_while
from ._exploration import ExploringPolicy, ModePolicy, pink_noise
from ._loop import fori_loop
from ._metrics import Metrics
from ._model_checks import normalise_by
from ._model_updates import init_optimiser, ModelUpdates, update_models
from ._replay import Replay
from ._sharding import gather, split
from ._sweep import number, over_settings
from ._warmup import Warmup, warmup_episodes
from .ascents import AbstractAscent, UpdateInfo


class TrainState(eqx.Module):
    """Everything that changes during `awmkit.train`, and so what a checkpoint contains.

    - `model`: the world model; a simulator does not change.
    - `reward`: the learned reward model, or `None`.
    - `termination`: the learned termination model, or `None`.
    - `policy`: the policy.
    - `optimiser_state`: the state of the models' optimiser.
    - `ascent_state`: the state of the ascent, which has the policy's optimiser and the return scale.
    - `replay`: the replay buffer of collected episodes.
    - `warmup_steps`: number of environment steps of the warm-up.
    - `steps`: number of environment steps so far, the warm-up's included.
    - `iterations`: number of iterations so far.
    """

    model: AbstractDynamics
    reward: AbstractTrainable | None
    termination: AbstractTrainable | None
    policy: Callable[..., Array]
    optimiser_state: PyTree
    ascent_state: PyTree
    replay: Replay
    warmup_steps: Int[Array, "*runs"]
    steps: Int[Array, "*runs"]
    iterations: Int[Array, "*runs"]


class RunConfig(eqx.Module):
    """The settings of a run, which do not change from epoch to epoch.

    `reward` and `termination` are those of imagined episodes where no model of them is learned. `episodes` are the data that
    the run begins with, instead of a warm-up.
    """

    task: AbstractTask
    warmup: Warmup
    model_updates: ModelUpdates
    ascent: AbstractAscent
    reward: Reward | None
    termination: Callable[..., Array] | None
    episodes: Trajectory | None
    environments: int = eqx.field(static=True)
    evaluations: int = eqx.field(static=True)
    noise: Number = eqx.field(metadata=number())
    capacity: int = eqx.field(static=True)
    mesh: Mesh | None = eqx.field(static=True)

    @property
    def steps_per_iteration(self) -> int:
        """Environment steps of one iteration, which collects an episode in each environment; at most, where lengths differ."""
        return self.task.horizon * self.environments

    @property
    def warmup_episodes(self) -> int:
        """Number of episodes of the warm-up, a multiple of the number of environments, if all have H steps."""
        if self.episodes is not None:
            return 0
        return -(-self.warmup.steps // self.steps_per_iteration) * self.environments

    def steps_after(self, iterations: int) -> int:
        """Number of environment steps, the warm-up's included, after `iterations` iterations of episodes of H steps."""
        return self.warmup_episodes * self.task.horizon + iterations * self.steps_per_iteration

    def iterations(self, steps: int) -> int:
        """Number of iterations of episodes of H steps in a run of `steps` environment steps, rounded up."""
        return -(-(steps - self.steps_after(0)) // self.steps_per_iteration)


def updates_between(start: Int[ArrayLike, ""], stop: Int[ArrayLike, ""], steps_per_update: ScalarLike) -> Int[Array, ""]:
    """Number of updates that fall due between two numbers of steps after the warm-up."""
    due = lambda steps: jnp.floor(steps * (1 / steps_per_update) + 1e-3).astype(int)
    return due(stop) - due(start)


class EpochSums(eqx.Module):
    """Sums over the iterations of an epoch, and over their updates; `metrics` turns them into means."""

    iterations: Scalar
    collected_return: Scalar
    model_error: Scalar
    model_loss: Scalar
    model_updates: Scalar
    policy_update: UpdateInfo
    policy_updates: Scalar

    @staticmethod
    def zeros(dtype) -> "EpochSums":
        zero, none = jnp.zeros((), dtype), jnp.zeros((), int)
        return EpochSums(none, zero, zero, zero, none, UpdateInfo(zero, zero, zero, zero, zero), none)


def first_state(config: RunConfig, learned: dict[str, Any], policy, key: Key[Array, "*seeds"]) -> TrainState:
    """Collect the warm-up's episodes, or take those given, and return the state after them.

    `learned` are the dynamics and the models of the reward and of the termination, by the names of their fields.
    """
    episodes = config.episodes
    if episodes is None:
        episodes = _warmup(config, _split(key)[0])
    return eqx.filter_jit(_first_state)(config, learned, policy, episodes, key)


def first_state_shapes(config: RunConfig, learned: dict[str, Any], policy, key: Key[Array, "*seeds"]) -> TrainState:
    """The shapes and dtypes of `first_state`. Nothing is run."""
    episodes = config.episodes
    if episodes is None:
        empty = lambda: empty_episodes(config.task, config.warmup_episodes)
        shape = jax.eval_shape(empty)
        episodes = jtu.tree_map(lambda x: jax.ShapeDtypeStruct((*key.shape, *x.shape), x.dtype), shape)
    return eqx.filter_eval_shape(_first_state, config, learned, policy, episodes, key)


def _split(key: Key[Array, "*seeds"]) -> tuple[Key[Array, "*seeds"], ...]:
    """The keys of the warm-up, of the initial model updates, of the ascent, and of the initial policy updates."""

    def split(key):
        # Evaluations fold 0 into the key, and iterations small numbers.
        warmup_key, rest = jax.random.split(jax.random.fold_in(key, 2**31 - 1))
        return warmup_key, *jax.random.split(rest), jax.random.fold_in(key, 2**31 - 2)

    return jax.vmap(split)(key) if key.ndim else split(key)


def _warmup(config: RunConfig, key: Key[Array, "*seeds"]) -> Trajectory:
    """Collect episodes of random actions until every seed has `config.warmup.steps` steps."""

    collect_warmup = lambda key: call_compiled(
        config.task, _warmup_episodes, config.task, config.warmup.actions, config.warmup_episodes, key
    )
    episodes = collect_warmup(key)
    if episodes.length is None:
        return episodes
    steps_of = lambda episodes: np.sum(np.asarray(episodes.mask), axis=(-2, -1))
    parts, taken = [episodes], steps_of(episodes)
    while np.min(taken) < config.warmup.steps:
        again = lambda key: jax.random.fold_in(key, len(parts))
        parts.append(collect_warmup(jax.vmap(again)(key) if key.ndim else again(key)))
        taken = taken + steps_of(parts[-1])
    join = jax.vmap(lambda *x: Trajectory.concatenate(x)) if key.ndim else lambda *x: Trajectory.concatenate(x)
    return join(*parts)


def _warmup_episodes(task: AbstractTask, actions, count: int, key: Key[Array, "*seeds"]) -> Trajectory:
    one = lambda key: warmup_episodes(task, actions, count, key)
    return jax.vmap(one)(key) if key.ndim else one(key)


def _first_state(config: RunConfig, learned, policy, episodes: Trajectory, key) -> TrainState:
    """Set the normalisers that are not set by the episodes, or by windows of them, and store these, for each seed and setting by `vmap`."""

    def start(config, learned, policy, episodes, key):
        window, from_start = config.model_updates.window, config.model_updates.from_start
        learned = {name: normalise_by(model, episodes, window, from_start) for name, model in learned.items()}
        policy = normalise_inputs(policy, episodes)
        warmup_steps = jnp.zeros((), int) if config.episodes is not None else number_of_steps(episodes)
        store = jtu.tree_map(lambda x: x[0], episodes)
        if is_uneven(config.task) or config.episodes is not None:
            episodes = episodes.padded(max(episodes.horizon, config.task.horizon))
            store = jtu.tree_map(lambda x: x[0], episodes)
        state = TrainState(
            **learned,
            policy=policy,
            optimiser_state=init_optimiser(config.model_updates, _trained(learned)),
            ascent_state=config.ascent.init(policy, episodes, key=key),
            replay=Replay.empty(config.capacity, store, mesh=config.mesh).add(episodes),
            warmup_steps=warmup_steps,
            steps=warmup_steps,
            iterations=jnp.zeros((), int),
        )
        # Weak types would become strong in the first epoch, and the second epoch would compile again.
        return jtu.tree_map(lambda x: lax.convert_element_type(x, x.dtype) if eqx.is_inexact_array(x) else x, state)

    ascent_key = _split(key)[2]
    if key.ndim:
        seeds = eqx.if_array(0)
        # All seeds share a simulator and the data.
        axes = {name: seeds if isinstance(model, AbstractTrainable) else None for name, model in learned.items()}
        start = eqx.filter_vmap(start, in_axes=(None, axes, seeds, seeds if config.episodes is None else None, 0))
    return over_settings(start, config, None, None, None, None)(learned, policy, episodes, ascent_key)


def number_of_steps(episodes: Trajectory) -> Int[Array, ""]:
    """Number of steps of all episodes."""
    if episodes.length is None:
        return jnp.asarray(episodes.actions.shape[0] * episodes.horizon)
    return jnp.sum(episodes.length)


@eqx.filter_jit
def initial_updates(config: RunConfig, state: TrainState, start, stop, key: Key[Array, "*seeds"], *, of_policy: bool):
    """Make the initial updates `start` to `stop` of the models, or of the policy. Returns the state and a number to wait for."""

    def update(config, state, fit_key, policy_key):
        if of_policy:
            state, info = _improve_policy(config, state, start, stop, state.steps, policy_key)
            return state, info.gradient_norm
        return _fit_models(config, state, start, stop, fit_key)

    update = eqx.filter_vmap(update, in_axes=(None, eqx.if_array(0), 0, 0)) if key.ndim else update
    _, fit_key, _, policy_key = _split(key)
    update_all = over_settings(update, config, eqx.if_array(0), None, None)
    return gather(update_all(state, fit_key, policy_key), config.mesh)


def run_epoch(
    config: RunConfig, state: TrainState, start, stop, steps, key: Key[Array, "*seeds"], *, show: Callable[[int, str], None]
) -> tuple[TrainState, Metrics, Int[Array, "*runs"]]:
    """Run iterations `start` to `stop`, or where lengths differ as many as it takes to reach `steps`; then evaluate the policy.

    On the host, `show(steps, phase)` is called as each phase begins; a compiled program has no phases to show.

    **Returns:** the state, the metrics and the number of policy updates.
    """
    return call_compiled(config.task, _epoch, config, state, start, stop, steps, key, show=show)


def _epoch(config: RunConfig, state: TrainState, start, stop, steps, key, *, show=lambda i, phase: None):
    """`run_epoch` of one seed, or of several seeds and settings by `vmap`."""

    def epoch(config, state, key):
        def iteration(carry, before=None):
            """Collect and learn. `before`: number of steps after the warm-up, where it is the same for all seeds."""
            state, sums = carry
            collect_key, learn_key = jax.random.split(jax.random.fold_in(key, state.iterations + 1))
            show(state.steps, "collecting")
            episodes = explore(config, state.policy, collect_key)
            show(state.steps, "fitting, improving")
            state, new = _learn(config, state, episodes, before, learn_key)
            return state, jtu.tree_map(jnp.add, sums, new)

        carry = state, EpochSums.zeros(state.replay.steps.state.dtype)
        if is_uneven(config.task):
            carry = iterate_while(config.task, lambda carry: carry[0].steps < steps, iteration, carry)
        else:
            body = lambda i, carry: iteration(carry, i * config.steps_per_iteration)
            carry = iterate(config.task, start, stop, body, carry)
        state, sums = carry
        show(state.steps, "evaluating")
        # Every evaluation has the same key, so that the returns of a run are compared on the same initial states.
        evaluated = collect(config.task, ModePolicy(state.policy), config.evaluations, jax.random.fold_in(key, 0))
        return state, _metrics(config, state, sums, jnp.mean(evaluated.returns())), sums.policy_updates

    epoch = eqx.filter_vmap(epoch, in_axes=(None, eqx.if_array(0), 0)) if key.ndim else epoch
    of_all = over_settings(epoch, config, eqx.if_array(0), None)
    return gather(of_all(state, key), collecting_mesh(config.task, config.mesh))


def explore(config: RunConfig, policy, key: PRNGKeyArray) -> Trajectory:
    """Collect an episode of the policy in each environment, with pink noise on its actions."""
    noise_key, collect_key = jax.random.split(key)
    shape = config.task.horizon, config.task.action_size
    noise = _draw_noise(noise_key, config.environments, shape)
    mesh = collecting_mesh(config.task, config.mesh)
    if mesh is not None and config.environments % mesh.size == 0:
        noise = split(noise, mesh, "environments")
    return collect_each(config.task, lambda row: ExploringPolicy(policy, row), noise * config.noise, collect_key)


@eqx.filter_jit  # A task on the host would otherwise run each operation by itself.
def _draw_noise(key, episodes: int, shape: tuple[int, int]) -> Float[Array, "N H A"]:
    return jax.vmap(lambda key: pink_noise(key, shape))(jax.random.split(key, episodes))


@eqx.filter_jit
def _learn(config: RunConfig, state: TrainState, episodes: Trajectory, before, key) -> tuple[TrainState, EpochSums]:
    """Store the episodes of one iteration, then fit the models and improve the policy."""
    fit_key, policy_key = jax.random.split(key)
    error = _model_error(state.model, episodes, config.model_updates.window)
    if state.replay.uneven:
        episodes = episodes.padded(state.replay.horizon)
    collected = number_of_steps(episodes)
    if before is None:
        before, collected = state.steps - state.warmup_steps, jnp.sum(collected)
    state = dataclasses.replace(state, replay=state.replay.add(episodes))
    due = lambda steps_per_update: updates_between(before, before + collected, steps_per_update)
    fits, updates = due(config.model_updates.steps_per_update), due(config.ascent.steps_per_update)
    if (tolerance := config.model_updates.tolerance) and isinstance(members_of(state.model), AbstractWorldModel):
        fits = jnp.where(error <= tolerance, 0, fits)
    state, loss = _fit_models(config, state, 0, fits, fit_key)
    state, info = _improve_policy(config, state, 0, updates, state.warmup_steps + before, policy_key)
    steps, iterations = state.steps + collected, state.iterations + 1
    state = dataclasses.replace(state, steps=steps, iterations=iterations)
    return state, EpochSums(jnp.ones((), int), jnp.mean(episodes.returns()), error, loss, fits, info, updates)


def _fit_models(config: RunConfig, state: TrainState, start, stop, key: PRNGKeyArray) -> tuple[TrainState, Scalar]:
    models, optimiser_state, loss = update_models(
        config.model_updates, _trained(_learned(state)), state.optimiser_state, state.replay, start, stop, key
    )
    return dataclasses.replace(state, **models, optimiser_state=optimiser_state), loss


def _improve_policy(config: RunConfig, state: TrainState, start, stop, steps, key) -> tuple[TrainState, UpdateInfo]:
    """Make updates `start` to `stop` of the policy. Returns the new state and the sum of their `UpdateInfo`."""
    # A learned reward, or the one given to `train`, or the task's own; the same for the termination.
    reward: Any = next(r for r in (state.reward, config.reward, config.task.reward) if r is not None)
    rules = state.termination, config.termination, rule_of(config.task)
    options = {"dynamics": state.model, "reward": reward, "replay": state.replay, "steps": steps}
    options["termination"] = next((rule for rule in rules if rule is not None), None)
    total = EpochSums.zeros(state.replay.steps.state.dtype).policy_update

    def update(i, carry):
        ascent_state, policy, total = carry
        ascent_state, policy, info = config.ascent.update(ascent_state, policy, key=jax.random.fold_in(key, i), **options)
        return ascent_state, policy, jtu.tree_map(jnp.add, total, info)

    ascent_state, policy, total = fori_loop(start, stop, update, (state.ascent_state, state.policy, total))
    return dataclasses.replace(state, ascent_state=ascent_state, policy=policy), total


def _metrics(config: RunConfig, state: TrainState, sums: EpochSums, true_return) -> Metrics:
    """The sums of an epoch as means."""
    info = sums.policy_update
    mean_info = jtu.tree_map(lambda x: x / jnp.maximum(sums.policy_updates - info.skipped, 1), info)
    fitted = isinstance(members_of(state.model), AbstractWorldModel)
    return Metrics(
        steps=state.steps,
        episodes=sums.iterations * config.environments,
        true_return=true_return,
        collected_return=sums.collected_return / sums.iterations,
        model_loss=sums.model_loss / jnp.maximum(sums.model_updates, 1) if fitted else None,
        model_error=sums.model_error / sums.iterations if fitted else None,
        policy_update=dataclasses.replace(mean_info, skipped=info.skipped),
    )


def _learned(state: TrainState) -> dict[str, Any]:
    return {name: getattr(state, name) for name in ("model", "reward", "termination")}


def _trained(learned: dict[str, Any]) -> dict[str, AbstractTrainable]:
    """The models that are fitted, by the names of their fields in `TrainState`."""
    return {name: model for name, model in learned.items() if isinstance(model, AbstractTrainable)}


def _model_error(model, episodes: Trajectory, window: int | None) -> Float[Array, ""]:
    """Mean square error of open-loop predictions, in units of the states' variance over all steps by the model's normaliser."""
    members = members_of(model)
    if not isinstance(members, AbstractWorldModel):
        return jnp.zeros((), episodes.states.dtype)
    episodes = (episodes if window is None else cut_windows(episodes, window)).filled()
    errors = jax.vmap(lambda episode: model.prediction(episode))(episodes) - model.target(episodes)
    states = members.input_norm  # Its deviation within steps, and that of its means between steps.
    if members is not model:  # All members of an ensemble know the same data.
        states = jtu.tree_map(lambda x: x[0], states)
    deviation = norm(jnp.stack([states.overall, std(jnp.atleast_2d(states.shift), 0)]), 0)
    return episodes.mean_over_steps((errors / deviation[None, None]) ** 2)
