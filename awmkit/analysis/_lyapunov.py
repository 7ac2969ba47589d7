"""Lyapunov exponents: how fast nearby states part, which is how fast a simulator's gradient grows.

Apart from the growth of measured norms because it is a property of the dynamics, found without a reward or a policy.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from .._dynamics import AbstractDynamics


class Lyapunov(eqx.Module):
    """What `lyapunov` found.

    - `exponents`: the largest `count`, in descending order, per step, shape (count,).
    - `running`: their estimates after each step, which show how far they have converged, shape (H, count).
    """

    exponents: Float[Array, " count"]
    running: Float[Array, "H count"]


def lyapunov(
    dynamics: AbstractDynamics, state: Float[Array, " S"], actions: Float[Array, "H A"], *, count: int = 1
) -> Lyapunov:
    """The largest Lyapunov exponents along a trajectory, by orthogonalised tangent propagation.

    Tangents of the carry and the state together are moved by the derivative of `step` and kept apart by a QR decomposition at
    each step; exponents are the means of log |diag R| (Benettin et al., 1980; Eckmann & Ruelle, 1985, sec. V). Along H steps
    they are finite-time exponents; divide by the seconds of a step for a rate per second. `jax.vmap` over states.

    **Arguments**

    - `state`: where to start, shape (S,). `actions`: applied along the way, shape (H, A); zeros for a free motion.
    - `count`: how many exponents, at most the number of floating-point entries of carry and state.

    **Raises:** `ValueError` for more exponents than there are.
    """
    flat, unravel = ravel_pytree((dynamics.init(state, actions.shape[0]), state))
    if not 1 <= count <= flat.size:
        raise ValueError(f"lyapunov was asked for {count} exponents of a dynamics that has {flat.size}; give 1 to {flat.size}.")

    def step(loop, x):
        flat, tangents = loop
        move = lambda flat: ravel_pytree(dynamics.step(*unravel(flat), *x))[0]
        flat, push = jax.linearize(move, flat)
        tangents, r = jnp.linalg.qr(jax.vmap(push, in_axes=1, out_axes=1)(tangents))
        return (flat, tangents), jnp.log(jnp.abs(jnp.diag(r)))

    # Any start but an eigenvector of the other exponents will do.
    tangents = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (flat.size, count), flat.dtype))[0]
    logs = lax.scan(step, (flat, tangents), (actions, jnp.arange(actions.shape[0])))[1]
    running = jnp.cumsum(logs, axis=0) / jnp.arange(1, logs.shape[0] + 1, dtype=logs.dtype)[:, None]
    return Lyapunov(-jnp.sort(-running[-1]), running)
