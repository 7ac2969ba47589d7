"""Lyapunov exponents: the rates at which nearby trajectories separate."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray

from .._checks import check_counts
from .._dynamics import AbstractDynamics
from ._arguments import check_plan
from ._tangents import step_map, steps_of


class Lyapunov(eqx.Module):
    """The result of `lyapunov`.

    - `exponents`: the largest `count` exponents in descending order, per step, shape (count,).
    - `running`: the estimates after each averaged step, which show how far they have converged, shape (H - discard, count).
    """

    exponents: Float[Array, "*batch count"]
    running: Float[Array, "*batch T count"]


def lyapunov(
    dynamics: AbstractDynamics,
    state: Float[Array, " S"],
    actions: Float[Array, "H A"],
    *,
    count: int = 1,
    discard: int = 0,
    key: PRNGKeyArray | None = None,
) -> Lyapunov:
    """Estimate the largest Lyapunov exponents of a dynamics along a trajectory.

    The largest exponent is the rate l at which a small difference between two trajectories grows, like exp(l t) after t steps.
    Above 0 the system is chaotic, and derivatives through its steps grow at this rate. The i-th exponent is

        l_i = mean over steps of log |R_ii|,   Q_{t+1} R = J_t Q_t   (a QR decomposition),

    where J_t is the Jacobian of step t in the carry and the state together (Benettin et al., 1980, *Meccanica* 15; Eckmann &
    Ruelle, 1985, *Reviews of Modern Physics* 57, sec. V). H steps give finite-time exponents. Use `jax.vmap` over starts, and
    divide by the duration of a step for a rate per second. An accurate model has the exponents of the system it was fitted to.

    ```python
    each = jax.vmap(lambda s: lyapunov(task, s, jnp.zeros((1000, 2)), count=4).exponents)(starts)
    ```

    **Arguments**

    - `dynamics`: a simulator or a model.
    - `state`: s_0, shape (S,).
    - `actions`: a_0 ... a_{H-1}, shape (H, A); zeros for a free motion.
    - `count`: number of exponents, at most the number of floating-point entries of carry and state.
    - `discard`: number of first steps left out of the mean, during which tangents turn towards the growing directions.
      Increase it for a dynamics with a large carry.
    - `key`: for a stochastic dynamics.

    **Returns:** a `Lyapunov`. An exponent is minus infinity if a step forgets its direction completely.

    **Raises:** `ValueError` if the shapes do not fit the dynamics, it has fewer than `count` exponents, or no step is left.
    """
    state, actions = check_plan(dynamics, state, actions, key=key)
    start = eqx.filter_eval_shape(lambda s: (dynamics.init(s, actions.shape[0]), s), state)
    size = sum(x.size for x in jax.tree.leaves(start) if jnp.issubdtype(x.dtype, jnp.inexact))
    check_counts("lyapunov", count=count)
    check_counts("lyapunov", least=0, discard=discard)
    if count > size:
        raise ValueError(f"count must be from 1 to {size}, the number of exponents of {type(dynamics).__name__}, got {count}.")
    if discard >= actions.shape[0]:
        raise ValueError(f"discard must be less than the number of steps {actions.shape[0]}, got {discard}.")
    return _exponents(dynamics, state, actions, key, count, discard)


@eqx.filter_jit
def _exponents(dynamics, state, actions, key, count, discard) -> Lyapunov:
    """Push `count` tangents through the steps, orthonormalised by QR after each; the diagonal of R is their growth."""
    start = dynamics.init(state, actions.shape[0]), state
    flat, unravel = ravel_pytree(eqx.filter(start, eqx.is_inexact_array))

    def step(loop, x):
        (carry, state), tangents = loop
        here = eqx.filter(carry, eqx.is_inexact_array), state
        move = lambda varying, state: step_map(dynamics, carry, x)(varying, state, x[1])
        (varying, state), push, rest = jax.linearize(move, *here, has_aux=True)
        pushed = jax.vmap(lambda d: ravel_pytree(push(*unravel(d)))[0], in_axes=1, out_axes=1)(tangents)
        tangents, r = jnp.linalg.qr(pushed)
        return ((eqx.combine(varying, rest), state), tangents), jnp.log(jnp.abs(jnp.diag(r)))

    # Random tangents have a component along every direction of growth.
    tangents = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (flat.size, count), flat.dtype))[0]
    logs = lax.scan(step, (start, tangents), steps_of(actions, key))[1][discard:]
    running = jnp.cumsum(logs, axis=0) / jnp.arange(1, logs.shape[0] + 1, dtype=logs.dtype)[:, None]
    return Lyapunov(-jnp.sort(-running[-1]), running)
