"""Imagined episodes: a policy run in a model, its return and its entropy."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray, Scalar, ScalarLike

from ..._checks import check_shapes, describe, kind
from ..._dynamics import AbstractDynamics
from ..._paths import Paths
from ..._policies import act, memory_of
from ..._reward import Reward, with_next_state
from ..._termination import evaluate, rule_of
from ..._trajectory import discounts
from ..._types import Number
from ..._unroll import unroll
from ...methods import AbstractMethod
from ...methods._method import split_key
from ...models import Ensemble
from ...models._anchored import too_few_steps
from ...models._ensemble import members_of, spread
from ...models._world_model import AbstractWorldModel, reads_time


class Imagined(eqx.Module):
    """The statistics of one imagined episode that ascents need. Steps after its end do not count.

    - `discounted_return`: sum_t discount^t survival_t r_t.
    - `discounted_entropy`: sum_t discount^t survival_t H(pi(s_t)); 0 for a policy without an entropy.
    - `entropy`: mean entropy over the steps, weighted by survival_t.
    - `last_state`: the state after the last step.
    - `survived`: the probability that no step ended the episode.
    """

    discounted_return: Scalar
    discounted_entropy: Scalar
    entropy: Scalar
    last_state: Float[Array, " S"]
    survived: Scalar


def over_members(
    pessimism: ScalarLike, dynamics: AbstractDynamics, imagined: Callable[[AbstractDynamics], tuple[Scalar, ...]]
) -> tuple[Scalar, ...]:
    """Return `imagined(dynamics)`, a return and other numbers. With pessimism, call it for each member of an ensemble and return means
    over the members, that of the return minus `pessimism` times its standard deviation."""
    if not _is_pessimistic(pessimism):
        return imagined(dynamics)
    returns, *others = eqx.filter_vmap(imagined)(members_of(dynamics))
    return jnp.mean(returns) - pessimism * spread(returns), *map(jnp.mean, others)


def check_pessimism(who: str, pessimism: Number, dynamics: AbstractDynamics) -> None:
    """Raise if the weight is not a number, or there are no members whose returns could differ."""
    check_shapes(who, "pass one number", pessimism=(pessimism, ("N",) if np.ndim(pessimism) else ()))
    if _is_pessimistic(pessimism) and not isinstance(dynamics, Ensemble):
        raise ValueError(
            f"{who} got pessimism={describe(pessimism)}, and {kind(dynamics)}, which has no members whose returns could differ; pass an "
            "awmkit.Ensemble as the model, or pessimism=0."
        )


def _is_pessimistic(pessimism: Number) -> bool:
    """Return whether the weight is anything but a 0 that is known before the program runs."""
    return not (isinstance(pessimism, int | float) and pessimism == 0)


class _Later(eqx.Module):
    """A policy in an episode that began `first` steps ago."""

    policy: Callable
    first: ScalarLike

    def __call__(self, state, t, *, key=None):
        return self.policy(state, t + self.first, key=key)


class _LaterRule(eqx.Module):
    """A reward or a termination in an episode that began `first` steps ago."""

    rule: Callable
    first: ScalarLike

    def __call__(self, state, action, t, next_state):
        return self.rule(state, action, t + self.first, next_state)


def imagine(
    dynamics: AbstractDynamics,
    policy: Any,
    state: Float[Array, " S"],
    horizon: int,
    *,
    reward: Reward,
    termination: Callable[..., Array] | None,
    paths: Paths,
    method: AbstractMethod | None,
    discount: ScalarLike,
    key: PRNGKeyArray | None,
    entropy_key: PRNGKeyArray | None = None,
    t: ScalarLike = 0,
    until: int | None = None,
) -> Imagined:
    """Run `policy`, or an array of actions, in `dynamics` for `horizon` steps from `state`, which is the state at step `t` of an
    episode.

    Steps from `until` on do not count. A policy with an entropy needs an `entropy_key`.

    A world model whose steps count from the first state it was given, such as an AWM, starts with the carry of its `init` and
    counts from 0; the policy, the reward and the termination see the step of the episode.

    **Raises:** `ValueError` for a policy with a memory, unless `t` is 0; or if such a model has statistics of fewer steps.
    """
    first, acting = t, policy
    options: dict[str, Any] = {"reward": reward, "termination": termination}
    memory = memory_of(policy)
    if memory is not None and not (isinstance(t, int) and t == 0):
        raise ValueError(unknown_memory(policy))
    if begins_anywhere(dynamics) and not (isinstance(t, int) and t == 0):
        _check_statistics(dynamics, horizon)
        first, acting = 0, _Later(policy, t) if callable(policy) else policy
        later = lambda rule: None if rule is None else _LaterRule(with_next_state(rule), t)
        options = {"reward": later(reward), "termination": later(termination)}
    options |= {"key": key, "paths": paths, "method": method, "t": first}
    episode = unroll(dynamics, acting, state, horizon, **options)
    steps = jnp.arange(horizon) + t
    counts = None  # The weights of the steps, where they are not 1.
    if until is not None:
        counts = (steps < until).astype(episode.states.dtype)
        assert episode.rewards is not None
        episode = eqx.tree_at(lambda x: x.rewards, episode, jnp.where(steps < until, episode.rewards, 0))
    value = episode.returns(discount)
    survived = jnp.ones_like(value)
    if episode.length is not None:
        mask = episode.mask.astype(value.dtype)
        counts = mask if counts is None else counts * mask
    if episode.terminated is not None:
        survived = jnp.where(episode.terminated, 0, survived)
    if episode.survival is not None:
        counts = episode.survival if counts is None else counts * episode.survival
        rule: Any = termination if termination is not None else rule_of(dynamics)
        alive = episode.survival[-1] > 0  # Otherwise the rule may be undefined at the last state.
        before, after = (jnp.where(alive, x, episode.states[0]) for x in episode.states[-2:])
        last = evaluate(rule)(before, episode.actions[-1], steps[-1], after)
        survived = jnp.where(alive, episode.survival[-1] * (1 - last), 0)
    if not hasattr(policy, "entropy"):
        return Imagined(value, jnp.zeros_like(value), jnp.zeros_like(value), episode.states[-1], survived)
    assert entropy_key is not None and not isinstance(policy, Array)
    seen = episode.states[:-1]
    if counts is not None:  # An entropy at a state that does not count may be infinite.
        seen = jnp.where((counts > 0)[:, None], seen, seen[:1])
    inputs = paths.to_policy(seen), steps, jax.random.split(entropy_key, horizon)
    if memory is None:
        entropies = jax.vmap(lambda s, t, k: policy.entropy(s, t, key=k))(*inputs)
    else:
        entropies = _entropies(policy, memory, *inputs, split_key(key, horizon)[0], paths)
    weights, mean = discounts(discount, horizon, entropies.dtype), jnp.mean(entropies)
    if counts is not None:
        weights, mean = weights * counts, jnp.sum(counts * entropies) / jnp.sum(counts)  # The first step always counts.
    return Imagined(value, jnp.sum(weights * entropies), mean, episode.states[-1], survived)


def begins_anywhere(dynamics: AbstractDynamics) -> bool:
    """Return whether the steps of `dynamics` count from the first state it was given, which may be any state of an episode."""
    model = members_of(dynamics)
    return not dynamics.reads_state or isinstance(model, AbstractWorldModel) and not reads_time(model)


def _check_statistics(dynamics: AbstractDynamics, steps: int) -> None:
    """Raise if a normaliser has statistics of each step of shorter windows."""
    if (few := too_few_steps(dynamics, steps)) is not None:
        raise ValueError(
            f"{few[1]} steps are imagined at a time, but the {type(members_of(dynamics)).__name__} has per_step=True and statistics of "
            f"each of {few[0]} steps; fit it to windows of at least {few[1]} steps, or build it without per_step."
        )


def unknown_memory(policy) -> str:
    """Return the error for a policy with a memory in an imagined episode that does not begin at the first step."""
    return (
        f"{type(policy).__name__} has a memory, which is unknown where an imagined episode begins in the middle of another one; use "
        "FullHorizon() without a length, whose episodes begin in initial states."
    )


def _entropies(policy, memory, states, steps, entropy_keys, keys, paths: Paths) -> Float[Array, " H"]:
    """Return the entropies of a policy with a memory, which acts on the states as in the episode, with the same keys."""

    def step(memory, x):
        state, t, entropy_key, key = x
        memory = paths.recall(memory)
        return act(policy, memory, state, t, key)[0], policy.entropy(memory, state, t, key=entropy_key)

    return lax.scan(step, memory, (states, steps, entropy_keys, keys))[1]
