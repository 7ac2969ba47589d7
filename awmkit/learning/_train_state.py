"""The compiled part of a training run: its state, its settings, its first state and its epochs."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, ArrayLike, Float, Int, Key, PRNGKeyArray, PyTree, Scalar, ScalarLike

from .._dynamics import AbstractDynamics, AbstractTask
from .._normaliser import normalise_inputs
from .._norms import norm, std
from .._reward import Reward
from .._trajectory import Trajectory
from ..models._trainable import AbstractTrainable
from ..models._world_model import AbstractWorldModel
from ._collect import call_compiled, collect, collect_each, collecting_mesh, empty_episodes, iterate
from ._exploration import ExploringPolicy, ModePolicy, pink_noise
from ._loop import fori_loop
from ._metrics import Metrics
from ._model_checks import normalise_by
from ._model_updates import init_optimiser, ModelUpdates, update_models
from ._replay import Replay
from ._sharding import gather, split
from ._warmup import Warmup, warmup_episodes
from .ascents import AbstractAscent, UpdateInfo


class TrainState(eqx.Module):
    """Everything that changes during `awmkit.train`, and so what a checkpoint contains.

    - `model`: the world model; a simulator does not change.
    - `reward`: the learned reward model, or `None`.
    - `policy`: the policy.
    - `optimiser_state`: the state of the models' optimiser.
    - `ascent_state`: the state of the ascent, which has the policy's optimiser and the return scale.
    - `replay`: the replay buffer of collected episodes.
    """

    model: AbstractDynamics
    reward: AbstractTrainable | None
    policy: Callable[..., Array]
    optimiser_state: PyTree
    ascent_state: PyTree
    replay: Replay


class RunConfig(eqx.Module):
    """The settings of a run, which do not change from epoch to epoch.

    `reward` scores imagined episodes where no reward model is learned.
    """

    task: AbstractTask
    warmup: Warmup
    model_updates: ModelUpdates
    ascent: AbstractAscent
    reward: Reward | None
    environments: int = eqx.field(static=True)
    evaluations: int = eqx.field(static=True)
    noise: float = eqx.field(static=True)
    capacity: int = eqx.field(static=True)
    mesh: Mesh | None = eqx.field(static=True)

    @property
    def steps_per_iteration(self) -> int:
        """Environment steps of one iteration, which collects an episode in each environment."""
        return self.task.horizon * self.environments

    @property
    def warmup_episodes(self) -> int:
        """Number of episodes of the warm-up, a multiple of the number of environments."""
        return -(-self.warmup.steps // self.steps_per_iteration) * self.environments

    def steps_after(self, iterations: Int[ArrayLike, ""]) -> Any:
        """Number of environment steps, the warm-up's included, after `iterations` iterations."""
        return self.warmup_episodes * self.task.horizon + iterations * self.steps_per_iteration

    def iterations(self, steps: int) -> int:
        """Number of iterations of a run of `steps` environment steps, rounded up."""
        return -(-(steps - self.steps_after(0)) // self.steps_per_iteration)

    def updates_between(self, start, stop, steps_per_update: ScalarLike) -> Int[Array, ""]:
        """Number of updates that fall due between two iterations."""
        due = lambda iterations: jnp.floor(iterations * (self.steps_per_iteration / steps_per_update) + 1e-3).astype(int)
        return due(stop) - due(start)


class EpochSums(eqx.Module):
    """Sums over the iterations of an epoch, and over their updates; `metrics` turns them into means."""

    collected_return: Scalar
    model_error: Scalar
    model_loss: Scalar
    policy_update: UpdateInfo

    @staticmethod
    def zeros(dtype) -> "EpochSums":
        zero = jnp.zeros((), dtype)
        return EpochSums(zero, zero, zero, UpdateInfo(zero, zero, zero, zero, zero))


def first_state(config: RunConfig, model, reward, policy, key: Key[Array, "*seeds"]) -> TrainState:
    """Collect the warm-up's episodes and return the state after them."""
    return call_compiled(config.task, _first_state, config, _warmup, model, reward, policy, key)


def first_state_shapes(config: RunConfig, model, reward, policy, key: Key[Array, "*seeds"]) -> TrainState:
    """The shapes and dtypes of `first_state`. Nothing is run."""
    return eqx.filter_eval_shape(_first_state, config, _no_warmup, model, reward, policy, key)


def _warmup(config: RunConfig, key: PRNGKeyArray) -> Trajectory:
    return warmup_episodes(config.task, config.warmup.actions, config.warmup_episodes, key)


def _no_warmup(config: RunConfig, key: PRNGKeyArray) -> Trajectory:
    return empty_episodes(config.task, config.warmup_episodes)


def _first_state(config: RunConfig, make_episodes, model, reward, policy, key) -> TrainState:
    """`first_state` of one seed, or of several by `vmap`, after the episodes that `make_episodes` returns."""

    def start(model, reward, policy, key):
        # Evaluations fold 0 into the key, and iterations small numbers.
        warmup_key, key = jax.random.split(jax.random.fold_in(key, 2**31 - 1))
        return _initialise(config, model, reward, policy, make_episodes(config, warmup_key), key)

    if key.ndim:
        seeds = eqx.if_array(0)
        model_seeds = seeds if isinstance(model, AbstractTrainable) else None  # All seeds share a simulator.
        start = eqx.filter_vmap(start, in_axes=(model_seeds, seeds, seeds, 0))
    return start(model, reward, policy, key)


@eqx.filter_jit
def _initialise(config: RunConfig, model, reward, policy, episodes: Trajectory, key: PRNGKeyArray) -> TrainState:
    """Set the normalisers that are not set by the warm-up's episodes, store these, and make the initial model updates."""
    fit_key, ascent_key = jax.random.split(key)
    model, reward = normalise_by(model, episodes), normalise_by(reward, episodes)
    policy = normalise_inputs(policy, episodes.states)
    state = TrainState(
        model,
        reward,
        policy,
        init_optimiser(config.model_updates, _learned(model, reward)),
        config.ascent.init(policy, episodes, key=ascent_key),
        Replay.empty(config.capacity, jtu.tree_map(lambda x: x[0], episodes), mesh=config.mesh).add(episodes),
    )
    if config.model_updates.initial_updates:
        state, _ = _fit_models(config, state, config.model_updates.initial_updates, fit_key)
    # Weak types would become strong in the first epoch, and the second epoch would compile again.
    return jtu.tree_map(lambda x: lax.convert_element_type(x, x.dtype) if eqx.is_inexact_array(x) else x, state)


def run_epoch(
    config: RunConfig, state: TrainState, start, stop, key: Key[Array, "*seeds"], *, show: Callable[[int, str], None]
) -> tuple[TrainState, Metrics]:
    """Run iterations `start` to `stop`, then evaluate the policy.

    On the host, `show(iteration, phase)` is called as each phase begins; a compiled program has no phases to show.
    """
    return call_compiled(config.task, _epoch, config, state, start, stop, key, show=show)


def _epoch(config: RunConfig, state: TrainState, start, stop, key, *, show=lambda i, phase: None) -> tuple[TrainState, Metrics]:
    """`run_epoch` of one seed, or of several by `vmap`."""

    def epoch(state, key):
        def iteration(i, carry):
            state, sums = carry
            collect_key, learn_key = jax.random.split(jax.random.fold_in(key, i + 1))
            show(i, "collecting")
            episodes = explore(config, state.policy, collect_key)
            show(i, "fitting, improving")
            state, new = _learn(config, state, episodes, i, learn_key)
            return state, jtu.tree_map(jnp.add, sums, new)

        zeros = EpochSums.zeros(state.replay.episodes.states.dtype)
        state, sums = iterate(config.task, start, stop, iteration, (state, zeros))
        show(stop, "evaluating")
        # Every evaluation has the same key, so that the returns of a run are compared on the same initial states.
        evaluated = collect(config.task, ModePolicy(state.policy), config.evaluations, jax.random.fold_in(key, 0))
        return state, _metrics(config, state, sums, start, stop, jnp.mean(evaluated.returns()))

    epoch = eqx.filter_vmap(epoch) if key.ndim else epoch
    return gather(epoch(state, key), collecting_mesh(config.task, config.mesh))


def explore(config: RunConfig, policy, key: PRNGKeyArray) -> Trajectory:
    """Collect an episode of the policy in each environment, with pink noise on its actions."""
    noise_key, collect_key = jax.random.split(key)
    shape = config.task.horizon, config.task.action_size
    noise = jax.vmap(lambda k: pink_noise(k, shape))(jax.random.split(noise_key, config.environments))
    mesh = collecting_mesh(config.task, config.mesh)
    if mesh is not None and config.environments % mesh.size == 0:
        noise = split(noise, mesh, "environments")
    return collect_each(config.task, lambda row: ExploringPolicy(policy, row), config.noise * noise, collect_key)


@eqx.filter_jit
def _learn(config: RunConfig, state: TrainState, episodes: Trajectory, iteration, key) -> tuple[TrainState, EpochSums]:
    """Store the episodes of one iteration, then fit the models and improve the policy."""
    fit_key, policy_key = jax.random.split(key)
    error = _model_error(state.model, episodes)
    state = dataclasses.replace(state, replay=state.replay.add(episodes))
    due = lambda steps_per_update: config.updates_between(iteration, iteration + 1, steps_per_update)
    state, loss = _fit_models(config, state, due(config.model_updates.steps_per_update), fit_key)
    steps = config.steps_after(iteration)
    state, info = _improve_policy(config, state, due(config.ascent.steps_per_update), steps, policy_key)
    return state, EpochSums(jnp.mean(episodes.returns()), error, loss, info)


def _fit_models(config: RunConfig, state: TrainState, updates, key: PRNGKeyArray) -> tuple[TrainState, Scalar]:
    models, optimiser_state, loss = update_models(
        config.model_updates, _learned(state.model, state.reward), state.optimiser_state, state.replay, updates, key
    )
    return dataclasses.replace(state, **models, optimiser_state=optimiser_state), loss


def _improve_policy(config: RunConfig, state: TrainState, updates, steps, key) -> tuple[TrainState, UpdateInfo]:
    """Make `updates` updates of the policy. Returns the new state and the sum of their `UpdateInfo`."""
    # A learned reward, or the one given to `train`, or the task's own.
    reward: Any = next(r for r in (state.reward, config.reward, config.task.reward) if r is not None)

    def update(i, carry):
        ascent_state, policy, total = carry
        ascent_state, policy, info = config.ascent.update(
            ascent_state,
            policy,
            dynamics=state.model,
            reward=reward,
            replay=state.replay,
            steps=steps,
            key=jax.random.fold_in(key, i),
        )
        return ascent_state, policy, jtu.tree_map(jnp.add, total, info)

    total = EpochSums.zeros(state.replay.episodes.states.dtype).policy_update
    ascent_state, policy, total = fori_loop(0, updates, update, (state.ascent_state, state.policy, total))
    return dataclasses.replace(state, ascent_state=ascent_state, policy=policy), total


def _metrics(config: RunConfig, state: TrainState, sums: EpochSums, start, stop, true_return) -> Metrics:
    """The sums of an epoch as means."""
    fits = config.updates_between(start, stop, config.model_updates.steps_per_update)
    updates = config.updates_between(start, stop, config.ascent.steps_per_update)
    info = sums.policy_update
    mean_info = jtu.tree_map(lambda x: x / jnp.maximum(updates - info.skipped, 1), info)
    fitted = isinstance(state.model, AbstractWorldModel)
    return Metrics(
        steps=jnp.asarray(config.steps_after(stop)),
        true_return=true_return,
        collected_return=sums.collected_return / (stop - start),
        model_loss=sums.model_loss / jnp.maximum(fits, 1) if fitted else None,
        model_error=sums.model_error / (stop - start) if fitted else None,
        policy_update=dataclasses.replace(mean_info, skipped=info.skipped),
    )


def _learned(model, reward) -> dict[str, AbstractTrainable]:
    """The models that are fitted, by the names of their fields in `TrainState`."""
    return {name: m for name, m in (("model", model), ("reward", reward)) if isinstance(m, AbstractTrainable)}


def _model_error(model, episodes: Trajectory) -> Float[Array, ""]:
    """Mean square error of open-loop predictions, in units of the states' variance over all steps by the model's normaliser."""
    if not isinstance(model, AbstractWorldModel):
        return jnp.zeros((), episodes.states.dtype)
    errors = jax.vmap(model.prediction)(episodes) - model.target(episodes)
    states = model.input_norm  # Its deviation within steps, and that of its means between steps.
    deviation = norm(jnp.stack([states.overall, std(jnp.atleast_2d(states.shift), 0)]), 0)
    return jnp.mean((errors / deviation[None, None]) ** 2)
