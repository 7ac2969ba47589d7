"""Lyapunov exponents: how fast nearby states part, which is how fast a simulator's gradient grows.

Apart from the growth of measured norms because it is a property of the dynamics, found without a reward or a policy.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray

from .._checks import check_counts
from .._dynamics import AbstractDynamics
from ._tangents import check_plan, step_map, steps_of


class Lyapunov(eqx.Module):
    """What `lyapunov` found.

    - `exponents`: the largest `count`, in descending order, per step, shape (count,).
    - `running`: their estimates after each step counted, which show how far they have converged, shape (H - discard, count).
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
    """The largest Lyapunov exponents along a trajectory, by orthogonalised tangent propagation.

    Tangents of the carry and the state together are moved by the derivative of `step` and kept apart by a QR decomposition at
    each step; exponents are the means of log |diag R| (Benettin et al., 1980; Eckmann & Ruelle, 1985, sec. V). Along H steps
    they are finite-time exponents, and `jax.vmap` over states gives those of each start; divide by the seconds of a step for
    a rate per second. A model that has learned a system shares its exponents.

    ```python
    each = jax.vmap(lambda s: lyapunov(task, s, jnp.zeros((1000, 2)), count=4).exponents)(starts)
    ```

    **Arguments**

    - `state`: where to start, shape (S,). `actions`: applied along the way, shape (H, A); zeros for a free motion.
    - `count`: how many exponents, at most the number of floating-point entries of carry and state.
    - `discard`: how many steps are not counted at first, in which tangents turn into the direction of growth. A dynamics with a
      large carry, of which a step moves little, needs many.
    - `key`: for a stochastic dynamics, as `unroll` takes it.

    **Returns:** a `Lyapunov`. The exponent of a direction that a step forgets altogether is minus infinity.

    **Raises:** `ValueError` as `unroll` does, for more exponents than there are, and where all steps are discarded.
    """
    state, actions = check_plan(dynamics, state, actions, key=key)
    start = eqx.filter_eval_shape(lambda s: (dynamics.init(s, actions.shape[0]), s), state)
    size = sum(x.size for x in jax.tree.leaves(start) if jnp.issubdtype(x.dtype, jnp.inexact))
    check_counts("lyapunov", count=count)
    check_counts("lyapunov", least=0, discard=discard)
    if count > size:
        raise ValueError(f"lyapunov was asked for {count} exponents of a dynamics that has {size}; give 1 to {size}.")
    if discard >= actions.shape[0]:
        raise ValueError(f"lyapunov got discard={discard} of {actions.shape[0]} steps; at least 1 step must be counted.")
    return _exponents(dynamics, state, actions, key, count, discard)


@eqx.filter_jit
def _exponents(dynamics, state, actions, key, count, discard) -> Lyapunov:
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

    # Any start but an eigenvector of the other exponents will do.
    tangents = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (flat.size, count), flat.dtype))[0]
    logs = lax.scan(step, (start, tangents), steps_of(actions, key))[1][discard:]
    running = jnp.cumsum(logs, axis=0) / jnp.arange(1, logs.shape[0] + 1, dtype=logs.dtype)[:, None]
    return Lyapunov(-jnp.sort(-running[-1]), running)
