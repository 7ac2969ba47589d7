"""How many sweeps Newton's method needs for a trajectory, beside the exponent that predicts their number."""

import operator
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from .._checks import check_shapes, kind
from .._dynamics import AbstractDynamics
from .._paths import Paths
from .._policies import act, memory_of
from .._types import Policy
from .._unroll import unchecked_unroll
from .._unroll_checks import check_arguments, check_dynamics, check_functions
from ..methods import Newton
from ._arguments import as_array, check_starts
from ._lyapunov import lyapunov


class NewtonSweeps(eqx.Module):
    """The result of `newton_sweeps`, for N starts.

    - `sweeps`: number of sweeps, shape (N,).
    - `exponents`: largest Lyapunov exponent of the closed loop, per step, shape (N,).
    - `settled`: whether at most 0.9 H sweeps were enough, shape (N,). After H sweeps every trajectory is exact.
    - `horizon`: number of steps H.
    """

    sweeps: Int[np.ndarray, " N"]
    exponents: Float[np.ndarray, " N"]
    settled: Bool[np.ndarray, " N"]
    horizon: int = eqx.field(static=True)

    @property
    def log_condition(self) -> Float[np.ndarray, " N"]:
        """The logarithm of 1 + exp(l) + ... + exp(l (H-1)), where l is the exponent; see `newton_sweeps`."""
        return log_condition(self.exponents, self.horizon)

    def __str__(self) -> str:
        slow = int(np.sum(~self.settled))
        kept = f"; {slow} of {self.sweeps.size} starts did not settle" if slow else ""
        sweeps, exponent = np.median(self.sweeps), np.median(self.exponents)
        return f"{sweeps:g} sweeps for {self.horizon} steps, exponent {exponent:.3g} per step{kept}"


def log_condition(exponents: Float[np.ndarray, "*n"], horizon: int) -> Float[np.ndarray, "*n"]:
    """Return log sum_{k < H} exp(l k) for each exponent l."""
    return np.logaddexp.reduce(exponents[..., None] * np.arange(horizon), axis=-1)


class _ClosedLoop(AbstractDynamics):
    """A dynamics and a policy as one dynamics, which ignores its action. Its carry includes the policy's memory."""

    dynamics: AbstractDynamics
    policy: Callable
    state_size: int = eqx.field(static=True)
    action_size: int = eqx.field(static=True, default=1)

    def init(self, state, horizon):
        return memory_of(self.policy), self.dynamics.init(state, horizon)

    def step(self, carry, state, action, t, *, key=None):
        policy_key, key = (None, None) if key is None else jax.random.split(key)
        memory, action = act(self.policy, carry[0], state, t, policy_key)
        carry, state = self.dynamics.step(carry[1], state, action, t, key=key)
        return (memory, carry), state


def newton_sweeps(
    dynamics: AbstractDynamics,
    policy: Policy,
    states: Float[Array, "N S"],
    horizon: int,
    *,
    key: PRNGKeyArray | None = None,
    method: Newton = Newton(),
) -> NewtonSweeps:
    """Count the sweeps of `Newton` and measure the largest Lyapunov exponent, for each of N starts.

    Use it to decide whether a dynamics can be unrolled in parallel over time: a sweep takes all H steps at once, so a few sweeps
    are fewer operations in turn than H steps, and as many sweeps as steps are not worth it.

    Newton's method solves r = 0, where r_t = s_{t+1} - f_t(s_t), and the exponent l says how hard that is. Assume that every
    product of k successive Jacobians, at all states that the sweeps visit, has a norm between b exp(l k) and a exp(l k). The
    smallest singular value of dr/ds is then at least 1 / (a C) and at most exp(-l (H-1)) / b, with

        C = 1 + exp(l) + ... + exp(l (H-1)) = (exp(l H) - 1) / (exp(l) - 1)

    because these products are the blocks of the inverse of dr/ds. That the largest exponent decides how well conditioned the
    problem is was shown by Gonzalez et al. (2025), *Predictability enables parallelization of nonlinear state space models*. If
    the Jacobians have the Lipschitz constant L, the error after a sweep is at most a C L / 2 times the square of the error before it, so convergence is
    quadratic from a residual of 2 / (a^2 C^2 L) on. Assume also that each sweep before that divides the residual by e. The number
    of sweeps is then

        n_0 + 2 log C

    where n_0 does not depend on l. For l < 0, C is at most 1 / (1 - exp(l)) for every H; for l > 0, 2 log C grows like 2 l H. A
    jump or a large swing, where L is large, needs more.

    ```python
    result = newton_sweeps(task, policy, starts, 100)
    print(result)  # 5 sweeps for 100 steps, exponent -0.08 per step
    awmkit.plot.sweeps({"cancer": result})
    ```

    **Arguments**

    - `dynamics`: a simulator or a model.
    - `policy`: a policy, or actions of shape (H, A). The exponent is that of both together.
    - `states`: N initial states, shape (N, S).
    - `horizon`: number of steps H.
    - `key`: for a stochastic policy or dynamics.
    - `method`: a `Newton`. With a `max_sweeps` below H, a start that needs more raises an error.

    **Returns:** a `NewtonSweeps`.

    **Raises:** `ValueError` if the shapes do not fit the dynamics, a value is not finite, or `method` is not a `Newton`.
    """
    check_dynamics(dynamics)
    if not isinstance(method, Newton):
        raise ValueError(f"newton_sweeps counts the sweeps of a Newton, got {kind(method)}; pass method=Newton().")
    states = as_array("states", states)
    fix = "pass one row per start"
    check_shapes(type(dynamics).__name__, fix, states=(states, ("N", dynamics.state_size)))
    check_starts(states)
    _, policy = check_arguments(dynamics, policy, states[0], horizon, key=key, paths=Paths(), method=method)
    keys, horizon = None if key is None else jax.random.split(key, len(states)), operator.index(horizon)
    sweeps, exponents = map(np.asarray, _count(dynamics, policy, jnp.asarray(states), horizon, keys, method))
    return NewtonSweeps(sweeps, exponents, sweeps <= max(2, 9 * horizon // 10), horizon)


@eqx.filter_jit
def _count(dynamics, policy, states, horizon, keys, method) -> tuple:
    def one(state, key):
        check_functions(dynamics, policy, state, horizon, reward=None, key=key)
        sweeps = unchecked_unroll(dynamics, policy, state, horizon, key=key, method=method).sweeps
        if isinstance(policy, Array):
            return sweeps, lyapunov(dynamics, state, policy, key=key).exponents[0]
        closed = _ClosedLoop(dynamics=dynamics, policy=policy, state_size=dynamics.state_size)
        return sweeps, lyapunov(closed, state, jnp.zeros((horizon, 1), state.dtype), key=key).exponents[0]

    return jax.vmap(one)(states, keys)
