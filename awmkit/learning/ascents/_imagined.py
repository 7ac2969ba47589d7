"""Imagined episodes: a policy run in a model, its return and its entropy."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Scalar, ScalarLike

from ..._dynamics import AbstractDynamics
from ..._reward import Reward
from ..._trajectory import discounts
from ..._unroll import unroll
from ._ascent import AbstractAscent


class Imagined(eqx.Module):
    """The statistics of one imagined episode that ascents need.

    - `discounted_return`: sum_t discount^t r_t.
    - `discounted_entropy`: sum_t discount^t H(pi(s_t)); 0 for a policy without an entropy.
    - `entropy`: mean entropy over the steps.
    - `last_state`: the state after the last step.
    """

    discounted_return: Scalar
    discounted_entropy: Scalar
    entropy: Scalar
    last_state: Float[Array, " S"]


def imagine(
    ascent: AbstractAscent,
    dynamics: AbstractDynamics,
    policy,
    state: Float[Array, " S"],
    horizon: int,
    *,
    reward: Reward,
    key: PRNGKeyArray,
    entropy_key: PRNGKeyArray,
    t: ScalarLike = 0,
) -> Imagined:
    """Run `policy` in `dynamics` for `horizon` steps from `state`, which is the state at step `t` of an episode."""
    options = {"reward": reward, "key": key, "paths": ascent.paths, "method": ascent.method, "t": t}
    episode = unroll(dynamics, policy, state, horizon, **options)
    value = episode.returns(ascent.discount)
    if not hasattr(policy, "entropy"):
        return Imagined(value, jnp.zeros_like(value), jnp.zeros_like(value), episode.states[-1])
    states, steps = ascent.paths.to_policy(episode.states[:-1]), jnp.arange(horizon) + t
    entropies = jax.vmap(lambda s, t, k: policy.entropy(s, t, key=k))(states, steps, jax.random.split(entropy_key, horizon))
    discounted_entropy = jnp.sum(discounts(ascent.discount, horizon, entropies.dtype) * entropies)
    return Imagined(value, discounted_entropy, jnp.mean(entropies), episode.states[-1])
