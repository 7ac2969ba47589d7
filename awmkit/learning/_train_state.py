"""The steps of BPO, compiled: warm up, act, fit, climb, and an epoch made of them.

Apart from `train` because that is a loop over these on the host, with everything that a host is for: checks, files, progress.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import optax
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray, PyTree, Scalar, ScalarLike

from .._checks import check_call, check_counts, check_optimiser
from .._dynamics import AbstractDynamics, AbstractTask
from .._normaliser import Normaliser, trainable
from .._reward import Reward
from .._trajectory import Trajectory
from .._unroll import unroll
from ..models import RewardModel
from ..models._trainable import AbstractTrainable
from ..models._world_model import AbstractWorldModel
from ._minibatch import check_microbatch_size, loss_and_gradient
from ._replay import Replay
from ._sharding import split
from .ascents._ascent import AbstractAscent, UpdateInfo


def uniform_actions(key: PRNGKeyArray, shape: tuple[int, int]) -> Float[Array, "H A"]:
    """Each action of each step drawn from [-1, 1] by itself, of shape (H, A): the paper's warm-up. For `awmkit.Warmup`."""
    return jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)


def held_actions(key: PRNGKeyArray, shape: tuple[int, int]) -> Float[Array, "H A"]:
    """A constant drawn from [-1, 1] and noise of 0.3 on it, of shape (H, A), clipped to [-1, 1]. For `awmkit.Warmup`.

    It reaches states at which independent actions average out.
    """
    level_key, noise_key = jax.random.split(key)
    level = jax.random.uniform(level_key, shape[1:], minval=-1.0, maxval=1.0)
    return jnp.clip(level + 0.3 * jax.random.normal(noise_key, shape), -1.0, 1.0)


class Warmup(eqx.Module):
    """Episodes of random actions, from which all statistics are taken, before anything is learned.

    - `steps`: of the environment, at least 1, rounded up to whole episodes.
    - `actions`: draws the actions of an episode, `actions(key, (H, A)) -> (H, A)`: `uniform_actions`, `held_actions`.

    **Raises:** `ValueError` for fewer than 1 step.
    """

    steps: int = eqx.field(static=True, default=1_500)
    actions: Callable[..., Array] = eqx.field(static=True, default=uniform_actions)

    def __check_init__(self):
        check_counts("Warmup", steps=self.steps)
        check_call("warm-up's actions", "actions(key, shape)", "write it so, as uniform_actions", self.actions, None, None)


class ModelUpdates(eqx.Module):
    """How the model, and a learned reward with it, is fitted to the replay.

    - `steps_per_update`: environment steps for one update; may be less than 1.
    - `batch_size`: whole episodes in an update.
    - `microbatch_size`: how many of them are differentiated at a time, a divisor of `batch_size`; all by default. See `fit`.
    - `optimiser`: of the model.
    - `initial_updates`: updates right after the warm-up.
    - `recency`: in (0, 1], how much less likely an episode is drawn than the one that came after it; 1 draws all alike.

    **Raises:** `ValueError` for what is out of range.
    """

    steps_per_update: int | float = eqx.field(static=True, default=2.0)
    batch_size: int = eqx.field(static=True, default=64)
    microbatch_size: int | None = eqx.field(static=True, default=None)
    optimiser: optax.GradientTransformation = eqx.field(static=True, default=optax.adam(1e-3))
    initial_updates: int = eqx.field(static=True, default=0)
    recency: float = eqx.field(static=True, default=1.0)

    def __check_init__(self):
        check_counts("ModelUpdates", batch_size=self.batch_size)
        check_microbatch_size("ModelUpdates", self.microbatch_size, self.batch_size)
        check_counts("ModelUpdates", least=0, initial_updates=self.initial_updates)
        check_optimiser(self.optimiser)
        if not self.steps_per_update > 0 or not 0 < self.recency <= 1:
            given = f"steps_per_update={self.steps_per_update}, recency={self.recency}"
            raise ValueError(f"ModelUpdates got {given}; it needs a positive number, and a number in (0, 1].")


class Metrics(eqx.Module):
    """What an epoch of BPO did.

    - `steps`: of the environment, done so far.
    - `true_return`: of the policy's mode on the true system, mean of the evaluations.
    - `acted_return`: of the policy with its noise, mean of the epoch's episodes.
    - `model_loss`: what the fit descends, mean of the epoch's updates.
    - `model_error`: of the epoch's episodes, each before it was fitted: mean square over steps of the open-loop prediction, in
      variances of the warm-up's states; 1 is as good as their mean.
    - `policy_update`: of the epoch's policy updates: means, and of `skipped` the sum.

    A simulator, which is not fitted, has no `model_loss` and no `model_error`: they are `None`. Of several seeds, each field
    has a leading axis; of a whole run, a last axis of epochs.
    """

    steps: Int[Array, "*seeds"]
    true_return: Float[Array, "*seeds"]
    acted_return: Float[Array, "*seeds"]
    model_loss: Float[Array, "*seeds"] | None
    model_error: Float[Array, "*seeds"] | None
    policy_update: UpdateInfo

    def row(self) -> dict[str, Any]:
        """Its numbers by name, those of `policy_update` among them: a line of a log."""
        fields = {**vars(self), **vars(self.policy_update)}
        return {name: jnp.asarray(x).tolist() for name, x in fields.items() if name != "policy_update" and x is not None}


class TrainState(eqx.Module):
    """All that BPO changes as it goes, and so what a checkpoint holds."""

    model: AbstractDynamics
    reward: AbstractTrainable | None
    policy: Callable[..., Array]
    fit_memory: PyTree
    ascent_memory: PyTree
    replay: Replay
    return_scale: Scalar


class Mode(eqx.Module):
    """A policy without its noise: how it is evaluated."""

    policy: Callable[..., Array]

    def __call__(self, state, t, *, key=None):
        return self.policy(state, t)


class Noisy(eqx.Module):
    """A policy as it acts, with what is added to each of its actions, (H, A), which are then clipped to [-1, 1].

    A policy that has become sure of itself lives one episode again and again, which tells a model no derivatives.
    """

    policy: Callable[..., Array]
    added: Float[Array, "H A"]

    def __call__(self, state, t, *, key=None):
        return jnp.clip(self.policy(state, t, key=key) + self.added[t], -1, 1)


def pink_noise(key: PRNGKeyArray, shape: tuple[int, int]) -> Float[Array, "H A"]:
    """Normal noise of unit variance whose power falls with the frequency f as 1/f (Eberhard et al., 2023).

    A return tells slow swings of the actions from each other, while those of independent noise average out.
    """
    steps, size = shape
    frequencies = jnp.arange(steps + 1)  # Of twice the steps, so that the end knows nothing of the beginning.
    amplitudes = 1 / jnp.sqrt(jnp.maximum(frequencies, 1))
    alone = (frequencies == 0) | (frequencies == steps)  # The others stand for a pair.
    variance = jnp.sum(jnp.where(alone, 1, 4) * amplitudes**2) / (2 * steps) ** 2
    real, imaginary = jax.random.normal(key, (2, steps + 1, size))
    swings = jnp.fft.irfft(amplitudes[:, None] * lax.complex(real, imaginary), 2 * steps, axis=0)
    return swings[:steps] / jnp.sqrt(variance)


class RunConfig(eqx.Module):
    """What stays the same from epoch to epoch."""

    task: AbstractTask
    model_updates: ModelUpdates
    ascent: AbstractAscent
    environments: int = eqx.field(static=True)
    evaluations: int = eqx.field(static=True)
    noise: float = eqx.field(static=True, default=0.0)
    reward: Reward | None = None
    before: int = eqx.field(static=True, default=0)
    mesh: Mesh | None = eqx.field(static=True, default=None)

    @property
    def per_iteration(self) -> int:
        """Environment steps of one iteration, an episode in each environment."""
        return self.task.horizon * self.environments

    def due(self, iterations: Int[ArrayLike, ""], every: ScalarLike) -> Int[Array, ""]:
        """How many updates are due after so many iterations."""
        return jnp.floor(iterations * (self.per_iteration / every) + 1e-3).astype(int)

    def due_between(self, start, stop, every):
        return self.due(stop, every) - self.due(start, every)


def warm_up(task: AbstractTask, actions: Callable[..., Array], episodes: int, key: PRNGKeyArray) -> Trajectory:
    """Episodes under random actions, those of each drawn by `actions(key, (H, A))`."""
    shape = task.horizon, task.action_size
    action_key, act_key = jax.random.split(key)
    plans = jax.vmap(lambda k: actions(k, shape))(jax.random.split(action_key, episodes))
    return act_each(task, lambda plan: plan, plans, act_key)


def act_each(task: AbstractTask, policy: Callable[[Array], Any], plans: Float[Array, "N H A"], key: PRNGKeyArray) -> Trajectory:
    """An episode of `policy(plan)` for each plan."""
    keys = jax.random.split(key, len(plans))
    if not task.on_host:
        return jax.vmap(lambda plan, k: jtu.tree_map(lambda x: x[0], act(task, policy(plan), 1, k)))(plans, keys)
    rows = [act(task, policy(plan), 1, k) for plan, k in zip(plans, keys, strict=True)]
    return jtu.tree_map(lambda *x: jnp.concatenate(x), *rows)


def act(task: AbstractTask, policy, episodes: int, key: PRNGKeyArray) -> Trajectory:
    """Episodes of a policy, or of an array of actions."""
    if task.on_host:
        return task.collect(policy, episodes, key=key)  # pyright: ignore[reportAttributeAccessIssue]
    episode = lambda s, k: unroll(task, policy, s, task.horizon, reward=task.reward, key=k)
    reset_keys, unroll_keys = (jax.random.split(k, episodes) for k in jax.random.split(key))
    return jax.vmap(episode)(jax.vmap(task.reset)(reset_keys), unroll_keys)


def explore(loop: RunConfig, policy, key: PRNGKeyArray) -> Trajectory:
    """An episode of the policy with its noise in each environment."""
    noise_key, act_key = jax.random.split(key)
    shape = loop.task.horizon, loop.task.action_size
    noise = jax.vmap(lambda k: pink_noise(k, shape))(jax.random.split(noise_key, loop.environments))
    if loop.mesh is not None and loop.environments % loop.mesh.size == 0 and not loop.task.on_host:
        noise = split(noise, loop.mesh, "environments")
    return act_each(loop.task, lambda added: Noisy(policy, added), loop.noise * noise, act_key)


def prime(loop: RunConfig, model, reward, policy, episodes: Trajectory, capacity: int, key: PRNGKeyArray) -> TrainState:
    """The learner after the warm-up's `episodes`, all statistics theirs."""
    fit_key, ascent_key = jax.random.split(key)
    if isinstance(model, AbstractWorldModel):
        model = model.normalised(episodes.states)
    if isinstance(reward, RewardModel):
        reward = reward.normalised(episodes)
    if isinstance(getattr(policy, "input_norm", None), Normaliser):
        policy = eqx.tree_at(lambda p: p.input_norm, policy, policy.input_norm.fitted(episodes.states))
    learner = blank(loop, model, reward, policy, jtu.tree_map(lambda x: x[0], episodes), capacity, ascent_key)
    unit = learner.return_scale
    if loop.ascent.return_scale is None:
        unit = Normaliser(1).fitted(episodes.returns(loop.ascent.discount)[:, None]).scale[0]
    learner = eqx.tree_at(lambda x: (x.replay, x.return_scale), learner, (learner.replay.add(episodes), unit))
    return fit_updates(loop, learner, loop.model_updates.initial_updates, fit_key)[0]


def blank(loop: RunConfig, model, reward, policy, episode: Trajectory, capacity: int, key: PRNGKeyArray) -> TrainState:
    """The learner with an empty replay."""
    learned = _learned(model, reward)
    memory = loop.model_updates.optimiser.init(eqx.filter(learned, trainable(learned)))
    unit = jnp.asarray(1.0 if loop.ascent.return_scale is None else loop.ascent.return_scale, episode.states.dtype)
    replay = Replay.empty(capacity, episode, mesh=loop.mesh)
    return TrainState(model, reward, policy, memory, loop.ascent.init(policy, key), replay, unit)


def fit_updates(loop: RunConfig, learner: TrainState, updates, key: PRNGKeyArray) -> tuple[TrainState, Scalar]:
    """So many updates of what is learned of the replay, and the sum of their losses."""
    learned = _learned(learner.model, learner.reward)
    weights, rest = eqx.partition(learned, trainable(learned))
    zero = jnp.zeros_like(learner.return_scale)
    if not learned:
        return learner, zero

    def update(i, carry):
        weights, memory, total = carry
        batch = learner.replay.sample(
            jax.random.fold_in(key, i), loop.model_updates.batch_size, recency=loop.model_updates.recency
        )
        loss = lambda weights, episode: sum((m.loss(episode) for m in eqx.combine(weights, rest).values()), zero)
        value, grads = loss_and_gradient(loss, weights, batch, loop.model_updates.microbatch_size)
        steps, memory = loop.model_updates.optimiser.update(grads, memory, weights)
        return eqx.apply_updates(weights, steps), memory, total + value

    weights, memory, total = lax.fori_loop(0, updates, update, (weights, learner.fit_memory, zero))
    for name, module in {**eqx.combine(weights, rest), "fit_memory": memory}.items():
        learner = eqx.tree_at(lambda x, name=name: getattr(x, name), learner, module)
    return learner, total


def climb_updates(loop: RunConfig, learner: TrainState, updates, steps, key: PRNGKeyArray) -> tuple[TrainState, UpdateInfo]:
    """So many updates of the policy, and the sum of what they saw."""
    reward: Any = learner.reward
    if reward is None:
        reward = loop.task.reward if loop.reward is None else loop.reward
    zero = jnp.zeros_like(learner.return_scale)
    changing, rest = eqx.partition((learner.ascent_memory, learner.policy), eqx.is_array)

    def update(i, carry):
        changing, total = carry
        memory, policy, seen = loop.ascent.update(
            *eqx.combine(changing, rest),
            dynamics=learner.model,
            reward=reward,
            replay=learner.replay,
            return_scale=learner.return_scale,
            steps=steps,
            key=jax.random.fold_in(key, i),
        )
        return eqx.filter((memory, policy), eqx.is_array), jtu.tree_map(jnp.add, total, seen)

    changing, total = lax.fori_loop(0, updates, update, (changing, UpdateInfo(zero, zero, zero, zero, zero)))
    return eqx.tree_at(lambda x: (x.ascent_memory, x.policy), learner, eqx.combine(changing, rest)), total


def learn(
    loop: RunConfig, learner: TrainState, episodes: Trajectory, iteration, key: PRNGKeyArray
) -> tuple[TrainState, PyTree]:
    """What one iteration learns of its episodes, and the sums that `metrics` divides."""
    fit_key, climb_key = jax.random.split(key)
    error = _error(learner.model, episodes)
    learner = eqx.tree_at(lambda x: x.replay, learner, learner.replay.add(episodes))
    due = lambda every: loop.due_between(iteration, iteration + 1, every)
    learner, loss = fit_updates(loop, learner, due(loop.model_updates.steps_per_update), fit_key)
    learner, climbs = climb_updates(
        loop, learner, due(loop.ascent.steps_per_update), loop.before + iteration * loop.per_iteration, climb_key
    )
    return learner, (jnp.mean(episodes.returns()), error, loss, climbs)


def epoch(loop: RunConfig, learner: TrainState, start, stop, key: PRNGKeyArray) -> tuple[TrainState, PyTree, Scalar]:
    """Iterations `start` to `stop` in a task that JAX can trace: the learner, the sums of what was seen, the true return."""
    changing, rest = eqx.partition(learner, eqx.is_array)
    zero = jnp.zeros_like(learner.return_scale)

    def iteration(i, carry):
        changing, total = carry
        act_key, learn_key = iteration_keys(key, i)
        learner = eqx.combine(changing, rest)
        episodes = explore(loop, learner.policy, act_key)
        learner, seen = learn(loop, learner, episodes, i, learn_key)
        return eqx.filter(learner, eqx.is_array), jtu.tree_map(jnp.add, total, seen)

    total = (zero, zero, zero, UpdateInfo(zero, zero, zero, zero, zero))
    changing, total = lax.fori_loop(start, stop, iteration, (changing, total))
    learner = eqx.combine(changing, rest)
    evaluated = act(loop.task, Mode(learner.policy), loop.evaluations, evaluation_key(key))
    return learner, total, jnp.mean(evaluated.returns())


def iteration_keys(key: PRNGKeyArray, iteration) -> tuple[PRNGKeyArray, PRNGKeyArray]:
    """For acting and for learning."""
    act_key, learn_key = jax.random.split(jax.random.fold_in(key, iteration + 1))
    return act_key, learn_key


def evaluation_key(key: PRNGKeyArray) -> PRNGKeyArray:
    """The same for every epoch, so that returns along a run are compared on the same starts."""
    return jax.random.fold_in(key, 0)


def metrics(loop: RunConfig, learner: TrainState, total: PyTree, start, stop, before: int, true_return) -> Metrics:
    """The sums of an epoch as means; `before` counts the warm-up's steps."""
    acted, error, loss, climbs = total
    fits, updates = (
        loop.due_between(start, stop, every) for every in (loop.model_updates.steps_per_update, loop.ascent.steps_per_update)
    )
    climbed = jtu.tree_map(lambda x: x / jnp.maximum(updates - climbs.skipped, 1), climbs)
    fitted = isinstance(learner.model, AbstractWorldModel)
    return Metrics(
        jnp.broadcast_to(before + stop * loop.per_iteration, true_return.shape),
        true_return,
        acted / (stop - start),
        loss / jnp.maximum(fits, 1) if fitted else None,
        error / (stop - start) if fitted else None,
        eqx.tree_at(lambda c: c.skipped, climbed, climbs.skipped),
    )


def _learned(model, reward) -> dict[str, AbstractTrainable]:
    return {name: m for name, m in (("model", model), ("reward", reward)) if isinstance(m, AbstractTrainable)}


def _error(model, episodes: Trajectory) -> Scalar:
    if not isinstance(model, AbstractWorldModel):
        return jnp.zeros((), episodes.states.dtype)
    errors = jax.vmap(model.prediction)(episodes) - model.target(episodes)
    inputs = model.input_norm  # Their variance over all steps: within steps and between.
    return jnp.mean(errors**2 / (inputs.overall**2 + jnp.var(jnp.atleast_2d(inputs.shift), axis=0)))
