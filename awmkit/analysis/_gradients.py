"""Gradients of the return of the first H steps, for many horizons H in one pass.

A step cannot affect earlier ones, so one unroll to the longest horizon contains all shorter ones.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PyTree

from .._normaliser import trainable
from .._trajectory import discounts
from .._unroll import unchecked_unroll
from .._unroll_checks import check_functions, warn_of_constants


def flat_parameters(policy) -> tuple[Float[Array, " P"], Callable[[Array], PyTree]]:
    """The policy's trainable parameters as one vector, and the function that puts such a vector back into the policy."""
    weights, rest = eqx.partition(policy, trainable(policy))
    flat, unravel = ravel_pytree(weights)
    return flat, lambda flat: eqx.combine(unravel(flat), rest)


def before_overflow(dynamics, policy, state, horizon: int, **options):
    """Return the number of steps up to the last finite state, and a termination that ends the episode there.

    Without it the step that overflows, in reverse mode, adds 0 times infinity to the gradients of the steps before.
    """
    if not dynamics.reads_state:  # No step passes a state on to the next.
        return horizon, None
    states = unchecked_unroll(dynamics, policy, state, horizon, **options).states[1:]
    finite = jnp.all(jnp.isfinite(lax.stop_gradient(states)), axis=1)
    happened = jnp.where(jnp.all(finite), horizon, jnp.argmin(finite))
    return happened, lambda state, action, t: t >= happened - 1


def returns(
    dynamics, policy, state, longest: int, horizons: Int[Array, " n"], *, reward, discount, key, **options
) -> Float[Array, " n"]:
    """J_H = sum_{t<H} discount^t r_t for each of `horizons`; NaN where a state up to s_H is not finite."""
    check_functions(dynamics, policy, state, longest, reward=reward, key=key)
    happened, ends = before_overflow(dynamics, policy, state, longest, key=key, **options)
    episode = unchecked_unroll(dynamics, policy, state, longest, reward=reward, termination=ends, key=key, **options)
    assert episode.rewards is not None
    steps = jnp.arange(longest)
    # `where` and not a product with 0, because rewards after step H may be infinite.
    paid = jnp.where(steps[None] < horizons[:, None], (discounts(discount, longest, state.dtype) * episode.rewards)[None], 0)
    return jnp.where(horizons > happened, jnp.nan, jnp.sum(paid, axis=1))


@eqx.filter_jit
def return_gradients(
    dynamics, policy, states, longest: int, horizons, *, reward, discount, keys, batch_size: int, **options
) -> Float[Array, "N n P"]:
    """dJ_H/dpolicy, flattened, for each start and horizon. Actions of shape (N, H, A) belong to one start each."""

    def gradients(x):
        state, own, key = x
        flat, policy_of = flat_parameters(policy if own is None else own)
        value = lambda flat: returns(
            dynamics, policy_of(flat), state, longest, horizons, reward=reward, discount=discount, key=key, **options
        )
        values, pull = jax.vjp(value, flat)
        warn_of_constants(dynamics, policy if own is None else own, state, reward=reward, key=key)
        gradients = jax.vmap(pull)(jnp.eye(values.size, dtype=values.dtype))[0]
        return jnp.where(jnp.isnan(values)[:, None], jnp.nan, gradients)

    own = policy if eqx.is_array(policy) and policy.ndim == 3 else None
    return lax.map(gradients, (states, own, keys), batch_size=min(batch_size, states.shape[0]))
