"""Small chaotic systems whose Lyapunov exponents are known to many digits."""

from dataclasses import KW_ONLY

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp

from .._dynamics import AbstractTask
from ._ode import in_dtype, ode_step, Parameter, parameter


class Lorenz(AbstractTask):
    """Keep the Lorenz system (Lorenz, 1963) near the origin by a force on x.

        x' = sigma (y - x) + a,    y' = x (rho - z) - y,    z' = x y - beta z

    Use it to test an analysis of chaos. At the default parameters the largest Lyapunov exponent is 0.9056 per unit of time
    (Sprott, *Chaos and Time-Series Analysis*, 2003), and the three exponents sum to -(sigma + 1 + beta).

    - State: (x, y, z), dimensionless.
    - Action: the force a.
    - Reward: -(x^2 + y^2 + z^2) / 1000.
    - Start: near the fixed point of one wing, or near the origin if rho is at most 1, with a standard deviation of 1 in each entry.

    **Arguments**

    - `sigma`, `rho`, `beta`: parameters of the equations.
    - `dt`: units of time per step.
    - `substeps`: solver steps per step. Increase it for larger `dt`.
    - `solver`: a diffrax solver, `diffrax.Tsit5()` by default.
    - `horizon`: number of steps H.
    """

    _: KW_ONLY
    sigma: Parameter = parameter(10.0)
    rho: Parameter = parameter(28.0)
    beta: Parameter = parameter(8 / 3)
    dt: Parameter = parameter(0.01)
    solver: diffrax.AbstractSolver = diffrax.Tsit5()
    substeps: int = eqx.field(static=True, default=1)
    horizon: int = eqx.field(static=True, default=100)
    state_size: int = eqx.field(static=True, default=3, init=False)
    action_size: int = eqx.field(static=True, default=1, init=False)

    def step(self, carry, state, action, t, *, key=None):
        del t, key
        sigma, rho, beta = in_dtype((self.sigma, self.rho, self.beta), state.dtype)

        def field(t, state, force):
            x, y, z = state
            return sigma * (y - x) + force, x * (rho - z) - y, x * y - beta * z

        moved = ode_step(field, tuple(state), action[0], solver=self.solver, dt=self.dt, substeps=self.substeps)
        return carry, jnp.stack(moved)

    def reward(self, state, action, t):
        del action, t
        return -jnp.sum(state**2) / 1000

    def reset(self, key):
        square = jnp.asarray(self.beta * (self.rho - 1), float)
        # There are wings only for rho > 1. The derivative of a square root is infinite at 0.
        wing = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
        return jnp.stack([wing, wing, jnp.maximum(jnp.asarray(self.rho - 1, float), 0)]) + jax.random.normal(key, (3,))


class Henon(AbstractTask):
    """Keep the Henon map (Henon, 1976) near the origin by a small push.

        x_{t+1} = 1 - p x_t^2 + y_t + 0.01 a_t,    y_{t+1} = q x_t

    Use it to test an analysis of chaos: it is the cheapest chaotic task. At the default parameters its Lyapunov exponents are 0.4192
    and log(q) - 0.4192 per step (Sprott, *Chaos and Time-Series Analysis*, 2003).

    - State: (x, y), dimensionless.
    - Action: the push a.
    - Reward: -(x^2 + y^2).
    - Start: uniform in [-0.1, 0.1] for each entry, inside the basin of the attractor.

    **Arguments:** `p`, `q`: parameters of the map. `horizon`: number of steps H.
    """

    p: Parameter = parameter(1.4)
    q: Parameter = parameter(0.3)
    horizon: int = eqx.field(static=True, default=100)
    state_size: int = eqx.field(static=True, default=2, init=False)
    action_size: int = eqx.field(static=True, default=1, init=False)

    def step(self, carry, state, action, t, *, key=None):
        del t, key
        (x, y), (p, q) = state, in_dtype((self.p, self.q), state.dtype)
        return carry, jnp.stack([1 - p * x**2 + y + 0.01 * action[0], q * x])

    def reward(self, state, action, t):
        del action, t
        return -jnp.sum(state**2)

    def reset(self, key):
        return jax.random.uniform(key, (2,), minval=-0.1, maxval=0.1)
