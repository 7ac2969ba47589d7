"""The derivative of every state by every action."""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from .._checks import check_counts, describe
from .._dynamics import AbstractDynamics
from .._norms import norm
from .._unroll import unchecked_unroll
from .._unroll_checks import check_functions
from ._arguments import check_plan
from ._gradients import before_overflow


class ActionJacobian(eqx.Module):
    """The result of `action_jacobian`.

    - `blocks`: `blocks[t, k]` is the (S, A) matrix ds_t/da_k, which is zero if k >= t. Shape (H+1, H, S, A).
    """

    blocks: Float[Array, "*batch T H S A"]

    @property
    def norms(self) -> Float[Array, "*batch T H"]:
        """The Frobenius norm of each block, shape (H+1, H)."""
        return norm(self.blocks, (-2, -1))

    @property
    def by_lag(self) -> Float[Array, "*batch H"]:
        """The root mean square of the norms over all pairs with lag t - k = 1 ... H, shape (H,)."""
        norms = self.norms
        horizon = norms.shape[-1]
        index, k = jnp.indices((horizon, horizon))
        t = k + index + 1
        pairs = jnp.where(t <= horizon, norms[..., jnp.minimum(t, horizon), k], 0)
        return norm(pairs, -1) / jnp.sqrt(jnp.arange(horizon, 0, -1, dtype=norms.dtype))


def action_jacobian(
    dynamics: AbstractDynamics,
    state: Float[Array, " S"],
    actions: Float[Array, "H A"],
    *,
    key: PRNGKeyArray | None = None,
    mode: Literal["forward", "reverse"] | None = None,
    batch_size: int = 64,
) -> ActionJacobian:
    """Compute ds_t/da_k for all t and k, along given actions.

    For a simulator or a Markov model s_{t+1} = f(s_t, a_t) this is the product (prod_{k<i<t} df/ds_i) df/da_k; for an actions
    world model it is the Jacobian of the sequence network. Composes with `jax.jit`, `jax.vmap` and `jax.grad`.

    ```python
    norms = action_jacobian(model, state, actions).by_lag  # does |ds_{k+n}/da_k| grow with n?
    ```

    **Arguments**

    - `dynamics`: a simulator or a model.
    - `state`: s_0, shape (S,).
    - `actions`: a_0 ... a_{H-1}, shape (H, A).
    - `key`: for a stochastic dynamics.
    - `mode`: `"forward"` takes H A passes, `"reverse"` takes H S. By default the cheaper one; the results are equal.
    - `batch_size`: number of passes computed at once; memory grows with it.

    **Returns:** an `ActionJacobian`.

    **Raises:** `ValueError` if the shapes do not fit the dynamics, or `mode` is anything else.
    """
    state, actions = check_plan(dynamics, state, actions, key=key)
    check_counts("action_jacobian", batch_size=batch_size)
    if mode not in (None, "forward", "reverse"):
        raise ValueError(f"mode must be 'forward', 'reverse' or None for the cheaper one, got {describe(mode)}.")
    if mode is None:
        mode = "forward" if dynamics.action_size <= dynamics.state_size else "reverse"
    return _jacobian(dynamics, state, actions, key, mode, batch_size)


@eqx.filter_jit
def _jacobian(dynamics, state, actions, key, mode, batch_size) -> ActionJacobian:
    """Return all ds_t/da_k, one column (forward) or one row (reverse) of the whole Jacobian at a time."""
    (horizon, action_size), states = actions.shape, (actions.shape[0] + 1, state.shape[0])
    check_functions(dynamics, actions, state, horizon, reward=None, key=key)
    states_of = lambda actions, **options: unchecked_unroll(dynamics, actions, state, horizon, key=key, **options).states
    if mode == "forward":
        push = lambda da: jax.jvp(states_of, (actions,), (da,))[1]
        basis = jnp.eye(actions.size, dtype=actions.dtype).reshape(-1, *actions.shape)
        columns = lax.map(push, basis, batch_size=min(batch_size, actions.size))
        return ActionJacobian(columns.reshape(horizon, action_size, *states).transpose(2, 0, 3, 1))
    happened, ends = before_overflow(dynamics, actions, state, horizon, key=key)
    pull = jax.vjp(lambda actions: states_of(actions, termination=ends), actions)[1]
    basis = jnp.eye(states[0] * states[1], dtype=state.dtype).reshape(-1, *states)
    rows = lax.map(lambda ds: pull(ds)[0], basis, batch_size=min(batch_size, basis.shape[0]))
    blocks = rows.reshape(*states, horizon, action_size).transpose(0, 2, 1, 3)
    return ActionJacobian(jnp.where((jnp.arange(states[0]) > happened)[:, None, None, None], jnp.nan, blocks))
