"""How a policy climbs the return that a dynamics predicts: over the whole episode, or over a few steps and a critic.

Apart from the algorithm because the two are interchangeable there, and a third is one more class.
"""

import abc
import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import optax
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Scalar, ScalarLike

from ..._checks import check_counts, check_optimiser
from ..._dynamics import AbstractDynamics
from ..._normaliser import Normaliser, trainable
from ..._paths import BPO, Paths
from ..._reward import Reward, with_next_state
from ..._unroll import unroll
from ...methods import AbstractMethod, Parallel, Sequential
from .._replay import Replay

Schedule = int | float | Callable[[ScalarLike], ScalarLike]


class TargetEntropy(eqx.Module):
    """An entropy bonus whose weight keeps the policy's entropy at a target (Haarnoja et al., 2018, section 5).

    The weight grows by the factor exp(`rate` * (target - entropy)) with each update, so that one target serves rewards of any
    scale, where one weight does not.

    **Arguments**

    - `target`: nats for each entry of an action, of which uniform actions have log 2 = 0.69; or a function of the environment
      steps done, such as `optax.linear_schedule(-0.5, -4.0, 5_000)`: wide at first, to see much, and narrow in the end.
    - `rate`: how fast the weight follows.
    - `initial_weight`: the weight to begin with.
    """

    target: Schedule = eqx.field(static=True)
    rate: float = eqx.field(static=True, default=0.1)
    initial_weight: float = eqx.field(static=True, default=1e-3)


Entropy = Schedule | TargetEntropy


class UpdateInfo(eqx.Module):
    """What one update of a policy saw.

    - `predicted_return`: of the model, mean over the starts; in units of the reward.
    - `entropy`: of the policy, mean over starts and steps, in nats.
    - `gradient_norm`: before clipping, of the gradient of the return in the ascent's `return_scale`.
    - `clipped_norm`: the same after clipping.
    - `skipped`: 1 where the gradient was not finite and the update was left out, else 0.
    """

    predicted_return: Scalar
    entropy: Scalar
    gradient_norm: Scalar
    clipped_norm: Scalar
    skipped: Scalar


class AbstractAscent(eqx.Module):
    """A way to improve a policy in a dynamics.

    **Fields** a subclass provides

    - `steps_per_update`: environment steps for one update.
    - `clip`: global norm at which the gradient is clipped; `inf` never clips.
    - `entropy`: weight of the entropy bonus, or a function of the environment steps done that returns it, or a
      `awmkit.TargetEntropy`.
    - `optimiser`: of the policy.
    - `return_scale`: what returns are measured in; `None` for the standard deviation of the warm-up's returns.
    - `discount`: of rewards and entropies.
    """

    steps_per_update: eqx.AbstractVar[float]
    clip: eqx.AbstractVar[float]
    entropy: eqx.AbstractVar[Entropy]
    optimiser: eqx.AbstractVar[optax.GradientTransformation]
    return_scale: eqx.AbstractVar[float | None]
    discount: eqx.AbstractVar[float]

    @abc.abstractmethod
    def init(self, policy: PyTree, key: PRNGKeyArray) -> PyTree:
        """What the ascent must remember between updates of this policy."""

    @abc.abstractmethod
    def update(
        self,
        memory: PyTree,
        policy: PyTree,
        *,
        dynamics: AbstractDynamics,
        reward: Reward,
        replay: Replay,
        return_scale: Scalar,
        steps: ScalarLike,
        key: PRNGKeyArray,
    ) -> tuple[PyTree, PyTree, UpdateInfo]:
        """One update: the new memory, the new policy and what was seen."""


class FullHorizon(AbstractAscent):
    """Ascend the return of whole imagined episodes, from their true first states (Ma et al., 2024):

        J(theta) = mean over starts of sum_t discount^t [ r(s_t, a_t) / return_scale + entropy * H(pi(s_t)) ]

    **Arguments**

    - `steps_per_update`, `batch_size`: an update every so many environment steps, each from so many first states of the replay.
    - `optimiser`: `optax.adam(1e-4)` by default.
    - `clip`, `entropy`, `return_scale`: see `AbstractAscent`.
    - `discount`: 1 by default.
    - `paths`: which edges carry gradient; `BPO` by default.
    - `method`: as in `awmkit.unroll_grad`.

    **Raises:** `ValueError` for what is out of range.
    """

    steps_per_update: int | float = eqx.field(static=True, default=16.0)
    batch_size: int = eqx.field(static=True, default=16)
    optimiser: optax.GradientTransformation = eqx.field(static=True, default=optax.adam(1e-4))
    clip: int | float = eqx.field(static=True, default=100.0)
    entropy: Entropy = eqx.field(static=True, default=0.1)
    return_scale: int | float | None = eqx.field(static=True, default=None)
    discount: float = eqx.field(static=True, default=1.0)
    paths: Paths = BPO
    method: AbstractMethod | None = None

    def __check_init__(self):
        check(self)

    def init(self, policy, key):
        return begin(self, policy)

    def update(self, memory, policy, *, dynamics, reward, replay, return_scale, steps, key):
        draw_key, unroll_key, entropy_key = jax.random.split(key, 3)
        starts = replay.sample(draw_key, self.batch_size).states[:, 0]
        horizon = replay.episodes.actions.shape[1]

        def objective(policy):
            episode = lambda start, key, entropy_key: imagine(
                dynamics,
                policy,
                start,
                horizon,
                reward=reward,
                key=key,
                entropy_key=entropy_key,
                discount=self.discount,
                paths=self.paths,
                method=self.method,
            )
            keys = (jax.random.split(k, self.batch_size) for k in (unroll_key, entropy_key))
            returns, entropies, mean = jax.vmap(episode)(starts, *keys)
            seen = jnp.mean(returns), jnp.mean(mean)
            return seen[0] / return_scale + memory.weight(self.entropy, steps) * jnp.mean(entropies), seen

        return climb(self, memory, policy, *gradient(objective, policy), steps=steps, action_size=dynamics.action_size)


class Critic(eqx.Module):
    """V(s, t), an MLP: the return still to come, in the ascent's unit.

    **Arguments:** `state_size`: S. `horizon`: H; t / H is an input. `width`, `depth`: of hidden layers. `key`: for the weights.
    """

    input_norm: Normaliser
    network: eqx.nn.MLP
    horizon: int = eqx.field(static=True)

    def __init__(self, state_size: int, horizon: int, *, width: int = 64, depth: int = 2, key: PRNGKeyArray):
        self.input_norm = Normaliser(state_size)
        self.network = eqx.nn.MLP(state_size + 1, "scalar", width, depth, jax.nn.swish, key=key)
        self.horizon = horizon

    def __call__(self, state: Float[Array, " S"], t: ScalarLike) -> Scalar:
        return self.network(jnp.append(self.input_norm(state), jnp.asarray(t, state.dtype) / self.horizon))


class ShortHorizon(AbstractAscent):
    """Ascend the return of a few imagined steps from any state of the replay, and a critic's value of where they end:
    stochastic value gradients, SVG(k) (Heess et al., 2015), the paper's Markov baseline.

        J(theta) = mean over (s_t, t) of sum_{i<k} discount^i r_{t+i} / return_scale + discount^k V'(s_{t+k}, t+k)

    The critic V descends the squared error to J along the same steps. V', which J reads, follows it,
    and is 0 after the last step.

    **Arguments**

    - `critic`: a `awmkit.Critic`, or any `critic(state, t) -> scalar`.
    - `length`: the number of steps k; at most the horizon.
    - `steps_per_update`, `batch_size`: an update every so many environment steps, each from so many states of the replay.
    - `critic_optimiser`, `polyak`: of the critic, and the share of V' that an update leaves in place.
    - the others as for `awmkit.FullHorizon`.

    Such as `ShortHorizon(Critic(task.state_size, task.horizon, key=key), length=5)`.

    **Raises:** `ValueError` for what is out of range, and for a critic with a leading axis.
    """

    critic: Callable
    length: int = eqx.field(static=True, default=2)
    steps_per_update: int | float = eqx.field(static=True, default=2.0)
    batch_size: int = eqx.field(static=True, default=256)
    optimiser: optax.GradientTransformation = eqx.field(static=True, default=optax.adam(1e-4))
    critic_optimiser: optax.GradientTransformation = eqx.field(static=True, default=optax.adam(1e-3))
    polyak: float = eqx.field(static=True, default=0.99)
    clip: int | float = eqx.field(static=True, default=100.0)
    entropy: Entropy = eqx.field(static=True, default=0.1)
    return_scale: int | float | None = eqx.field(static=True, default=None)
    discount: float = eqx.field(static=True, default=1.0)
    paths: Paths = Paths()
    method: AbstractMethod | None = None

    def __check_init__(self):
        check(self)
        if self.length < 1 or not 0 <= self.polyak < 1:
            given = f"length={self.length}, polyak={self.polyak}"
            raise ValueError(f"ShortHorizon got {given}; it needs at least 1, and a share in [0, 1).")
        if isinstance(self.critic, Critic) and self.critic.input_norm.shift.ndim > 1:
            raise ValueError(
                "ShortHorizon got several critics, with a leading axis; give one, which is the first of all seeds."
            )

    def init(self, policy, key):
        critic = self.critic
        if isinstance(critic, Critic) and isinstance(getattr(policy, "input_norm", None), Normaliser):
            critic = eqx.tree_at(lambda c: c.input_norm, critic, policy.input_norm)
        return begin(self, policy), critic, critic, self.critic_optimiser.init(eqx.filter(critic, trainable(critic)))

    def update(self, memory, policy, *, dynamics, reward, replay, return_scale, steps, key):
        policy_memory, critic, target, critic_memory = memory
        draw_key, step_key, unroll_key, entropy_key = jax.random.split(key, 4)
        horizon = replay.episodes.actions.shape[1]
        firsts = jax.random.randint(step_key, (self.batch_size,), 0, horizon - self.length + 1)
        episodes = replay.sample(draw_key, self.batch_size).states
        starts = jax.vmap(lambda states, t: states[t])(episodes, firsts)
        weight = policy_memory.weight(self.entropy, steps)

        def episode(policy, start, first, key, entropy_key):
            last = first + self.length
            end = lambda state: jnp.where(last < horizon, target(state, last), 0.0)
            return imagine(
                dynamics,
                policy,
                start,
                self.length,
                reward=reward,
                key=key,
                entropy_key=entropy_key,
                discount=self.discount,
                paths=self.paths,
                method=self.method,
                first=first,
                end=lambda state: return_scale * end(state),
            )

        def objective(policy):
            keys = (jax.random.split(k, self.batch_size) for k in (unroll_key, entropy_key))
            returns, entropies, mean = jax.vmap(lambda *x: episode(policy, *x))(starts, firsts, *keys)
            values = returns / return_scale + weight * entropies
            return jnp.mean(values), (values, (jnp.mean(returns), jnp.mean(mean)))

        grads, (values, seen) = gradient(objective, policy)
        policy_memory, policy, climbed = climb(
            self, policy_memory, policy, grads, seen, steps=steps, action_size=dynamics.action_size
        )

        def regression(critic):
            return -jnp.mean((jax.vmap(critic)(starts, firsts) - lax.stop_gradient(values)) ** 2), ()

        critic_grads, _ = gradient(regression, critic)
        critic_memory, critic = ascend(self.critic_optimiser, critic_memory, critic, critic_grads)
        follow = lambda old, new: self.polyak * old + (1 - self.polyak) * new if eqx.is_inexact_array(old) else new
        target = jtu.tree_map(follow, target, critic)
        return (policy_memory, critic, target, critic_memory), policy, climbed


class _Later(AbstractDynamics):
    """A dynamics whose time begins at `first`."""

    dynamics: AbstractDynamics
    first: ScalarLike
    state_size: int = eqx.field(static=True)
    action_size: int = eqx.field(static=True)

    def __init__(self, dynamics: AbstractDynamics, first: ScalarLike):
        self.dynamics, self.first = dynamics, first
        self.state_size, self.action_size = dynamics.state_size, dynamics.action_size

    def init(self, state, horizon):
        return self.dynamics.init(state, horizon)

    def step(self, carry, state, action, t, *, key=None):
        return self.dynamics.step(carry, state, action, t + self.first, key=key)


def imagine(
    dynamics, policy, start, horizon, *, reward, key, entropy_key, discount, paths, method, first=None, end=None
) -> tuple[Scalar, Scalar, Scalar]:
    """The return of one imagined episode, plus what `end` makes of its last state, the discounted sum of the
    policy's entropies, and their mean.

    `first` is the index of the first step, where it is not 0.
    """
    if method is None:
        method = Parallel() if dynamics.parallel and first is None else Sequential()
    act, scored = policy, reward
    if first is not None:
        dynamics, pay = _Later(dynamics, first), with_next_state(reward)
        act = lambda state, t, key=None: policy(state, t + first, key=key)
        scored = lambda state, action, t, next_state: pay(state, action, t + first, next_state)
    episode = unroll(dynamics, act, start, horizon, reward=scored, key=key, paths=paths, method=method)
    value = episode.returns(discount)
    if end is not None:
        value = value + discount**horizon * end(episode.states[-1])
    if not hasattr(policy, "entropy"):
        return value, jnp.zeros_like(value), jnp.zeros_like(value)
    steps = jnp.arange(horizon) + (0 if first is None else first)
    states = paths.to_policy(episode.states[:-1])
    entropies = jax.vmap(lambda s, t, k: policy.entropy(s, t, key=k))(states, steps, jax.random.split(entropy_key, horizon))
    discounts = jnp.asarray(discount, entropies.dtype) ** jnp.arange(horizon, dtype=entropies.dtype)
    return value, jnp.sum(discounts * entropies), jnp.mean(entropies)


def gradient(objective: Callable, module: PyTree) -> tuple[PyTree, PyTree]:
    """The gradient of `objective(module) -> (value, seen)` in the weights of `module`, and what was seen."""
    weights, rest = eqx.partition(module, trainable(module))
    return jax.grad(lambda weights: objective(eqx.combine(weights, rest)), has_aux=True)(weights)


def check(ascent) -> None:
    """Raise for settings that make no sense, in either way to climb."""
    who = type(ascent).__name__
    check_counts(who, batch_size=ascent.batch_size)
    check_optimiser(ascent.optimiser)
    if not ascent.steps_per_update > 0 or not ascent.clip > 0:
        raise ValueError(
            f"{who} got steps_per_update={ascent.steps_per_update}, clip={ascent.clip}; each must be a positive number."
        )
    if isinstance(ascent.entropy, str):
        raise ValueError(f"{who} got entropy={ascent.entropy!r}; give a weight, or TargetEntropy(-4.0) to find one.")


class AscentState(eqx.Module):
    """What climbing remembers: the optimiser's state, and the weight that a `TargetEntropy` has come to."""

    optimiser: PyTree
    log_weight: Scalar

    def weight(self, entropy: Entropy, steps: ScalarLike) -> Scalar:
        """The entropy bonus after so many environment steps."""
        if isinstance(entropy, TargetEntropy):
            return jnp.exp(self.log_weight)
        return jnp.asarray(at(entropy, steps), self.log_weight.dtype)


def begin(ascent: AbstractAscent, policy: PyTree) -> AscentState:
    """Before the first update of a policy."""
    first = ascent.entropy.initial_weight if isinstance(ascent.entropy, TargetEntropy) else 1.0
    log_weight = jnp.asarray(math.log(first), jnp.result_type(float))
    return AscentState(ascent.optimiser.init(eqx.filter(policy, trainable(policy))), log_weight)


def ascend(optimiser, memory, module, grads):
    """One step of the optimiser up the gradient."""
    weights, rest = eqx.partition(module, trainable(module))
    updates, memory = optimiser.update(jtu.tree_map(jnp.negative, grads), memory, weights)
    return memory, eqx.combine(eqx.apply_updates(weights, updates), rest)


def climb(
    ascent: AbstractAscent, state: AscentState, policy, grads, seen, *, steps, action_size
) -> tuple[AscentState, PyTree, UpdateInfo]:
    """One visible step up: clipped by global norm, left out where the gradient is not finite."""
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(norm)
    scale = jnp.minimum(1.0, jnp.asarray(ascent.clip, norm.dtype) / jnp.maximum(norm, jnp.finfo(norm.dtype).tiny))
    clipped = jtu.tree_map(lambda g: jnp.where(finite, g * scale, 0.0), grads)
    memory, climbed = ascend(ascent.optimiser, state.optimiser, policy, clipped)
    log_weight, entropy = state.log_weight, seen[1]
    if isinstance(ascent.entropy, TargetEntropy):
        target = jnp.asarray(at(ascent.entropy.target, steps), entropy.dtype)
        log_weight = log_weight + ascent.entropy.rate * (target - entropy / action_size)
    # A skipped update leaves the optimiser's moments and the weight alone too.
    keep = lambda new, old: jnp.where(finite, new, old) if eqx.is_array(new) else new
    after, policy = jtu.tree_map(keep, (AscentState(memory, log_weight), climbed), (state, policy))
    known = lambda x: jnp.where(finite, x, jnp.zeros_like(x))
    skipped = jnp.asarray(~finite, norm.dtype)
    return after, policy, UpdateInfo(known(seen[0]), known(entropy), known(norm), known(norm * scale), skipped)


def at(schedule: Schedule, steps: ScalarLike) -> ScalarLike:
    """Its value after so many environment steps."""
    return schedule(steps) if callable(schedule) else schedule
