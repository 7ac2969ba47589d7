"""Linear-quadratic tasks, whose gradients are known in closed form."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, ScalarLike

from .._checks import check_shapes
from .._dynamics import AbstractTask
from ._ode import in_dtype, is_off, Parameter, strength


class LinearQuadratic(AbstractTask):
    """Linear dynamics with a quadratic cost (Anderson & Moore, *Optimal Control*, 1990, ch. 2).

        s_{t+1} = A s_t + B a_t + noise,    r_t = -(s_t^T Q s_t + a_t^T R a_t)

    Every derivative is a matrix product, ds_t/da_k = A^(t-k-1) B. Start here to test a new method or analysis.

    - State: s. With the default matrices, the position and speed of a mass on a line, in m and m/s.
    - Action: a. With the default matrices, the acceleration, in m/s^2.
    - Start: standard normal.

    **Arguments**

    - `A`, `B`: shapes (S, S) and (S, A). By default a double integrator with steps of 0.1 s.
    - `Q`, `R`: costs of states and actions, shapes (S, S) and (A, A); identity matrices by default.
    - `noise`: standard deviation of the normal noise on each entry of the state. If it is above 0, `unroll` needs a key.
    - `horizon`: number of steps H.

    **Raises:** `ValueError` if the shapes of `A` and `B` do not fit, or if `noise` is negative.
    """

    A: Float[Array, "S S"]
    B: Float[Array, "S A"]
    Q: Float[Array, "S S"]
    R: Float[Array, "A A"]
    noise: Parameter
    horizon: int = eqx.field(static=True)
    state_size: int = eqx.field(static=True)
    action_size: int = eqx.field(static=True)

    def __init__(
        self,
        A: Float[Array, "S S"] | None = None,
        B: Float[Array, "S A"] | None = None,
        *,
        Q: Float[Array, "S S"] | None = None,
        R: Float[Array, "A A"] | None = None,
        noise: Parameter = 0.0,
        horizon: int = 20,
    ):
        A = jnp.array([[1.0, 0.1], [0.0, 1.0]]) if A is None else A
        B = jnp.array([[0.0], [0.1]]) if B is None else B
        shapes = {"A": (A, ("S", "S")), "B": (B, ("S", "A")), "Q": (Q, ("S", "S")), "R": (R, ("A", "A"))}
        given = {name: (x, shape) for name, (x, shape) in shapes.items() if x is not None}
        check_shapes("LinearQuadratic", "pass both A and B, or none of them", **given, noise=(noise, ()))
        if not isinstance(noise, Tracer) and not noise >= 0:
            raise ValueError(f"noise must be at least 0, got {noise}; pass a standard deviation.")
        self.A = A
        self.B = B
        self.state_size, self.action_size = B.shape
        self.Q = jnp.eye(self.state_size) if Q is None else Q
        self.R = jnp.eye(self.action_size) if R is None else R
        self.noise = strength(noise)
        self.horizon = horizon

    def step(self, carry, state, action, t, *, key=None):
        del t
        state = self.A @ state + self.B @ action
        if not is_off(self.noise):
            if key is None:
                raise ValueError("LinearQuadratic with noise needs a key; pass key=jax.random.key(seed).")
            state = state + in_dtype(self.noise, state.dtype) * jax.random.normal(key, state.shape, state.dtype)
        return carry, state

    def reward(self, state, action, t):
        del t
        return -(state @ self.Q @ state + action @ self.R @ action)

    def reset(self, key):
        return jax.random.normal(key, (self.state_size,))


def spiral(rate: ScalarLike, angle: ScalarLike, *, horizon: int = 20) -> LinearQuadratic:
    """Return a task that rotates and scales the plane at each step; the action pushes along the first axis.

    |ds_t/da_k| = rate^(t-k-1), so the gradient grows, keeps its norm or shrinks at a known rate.

    **Arguments**

    - `rate`: scale factor per step. 1 gives a rotation, less a contraction, more an expansion.
    - `angle`: rotation per step, in radians.
    - `horizon`: number of steps H.

    **Returns:** a `LinearQuadratic` with 2 states and 1 action.
    """
    check_shapes("spiral", "give one number", rate=(rate, ()), angle=(angle, ()))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return LinearQuadratic(jnp.asarray(rate) * jnp.array([[cos, -sin], [sin, cos]]), jnp.array([[1.0], [0.0]]), horizon=horizon)
