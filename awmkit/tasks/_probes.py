"""Probe systems: the smallest tasks whose gradients are known in closed form.

Apart from the tasks that mean something: a test or a new analysis starts here.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, ScalarLike

from .._dynamics import AbstractTask


class LinearQuadratic(AbstractTask):
    """s_{t+1} = A s_t + B a_t + noise, r = -(s^T Q s + a^T R a).

    Every derivative is a matrix product: ds_t/da_k = A^(t-k-1) B. Anderson & Moore, *Optimal Control*, ch. 2.

    **Arguments**

    - `A`, `B`, `Q`, `R`: shapes (S, S), (S, A), (S, S), (A, A); Q and R by default the identity.
    - `noise`: standard deviation of a normal disturbance of each entry; above 0, `step` needs a key.
    - `horizon`: H.

    **Raises:** `ValueError` for shapes that do not fit together, and for a negative noise.
    """

    A: Float[Array, "S S"]
    B: Float[Array, "S A"]
    Q: Float[Array, "S S"]
    R: Float[Array, "A A"]
    noise: float
    horizon: int = eqx.field(static=True)
    state_size: int = eqx.field(static=True)
    action_size: int = eqx.field(static=True)

    def __init__(
        self,
        A: Float[Array, "S S"],
        B: Float[Array, "S A"],
        *,
        Q: Float[Array, "S S"] | None = None,
        R: Float[Array, "A A"] | None = None,
        noise: float = 0.0,
        horizon: int = 20,
    ):
        shapes = jnp.shape(A), jnp.shape(B)
        if any(len(shape) != 2 for shape in shapes) or shapes[0] != (shapes[1][0],) * 2:
            raise ValueError(f"LinearQuadratic got A {shapes[0]} and B {shapes[1]}; give shapes (S, S) and (S, A).")
        if not noise >= 0:
            raise ValueError(f"LinearQuadratic got noise={noise}; give a standard deviation of at least 0.")
        self.A = A
        self.B = B
        self.state_size, self.action_size = B.shape
        self.Q = jnp.eye(self.state_size) if Q is None else Q
        self.R = jnp.eye(self.action_size) if R is None else R
        self.noise = noise
        self.horizon = horizon

    def init(self, state, horizon):
        del state, horizon

    def step(self, carry, state, action, t, *, key=None):
        del t
        state = self.A @ state + self.B @ action
        if self.noise:
            if key is None:
                raise ValueError(f"This LinearQuadratic has noise={self.noise}; give the unroll a key=jax.random.key(seed).")
            state = state + self.noise * jax.random.normal(key, state.shape, state.dtype)
        return carry, state

    def reward(self, state, action, t):
        del t
        return -(state @ self.Q @ state + action @ self.R @ action)

    def reset(self, key):
        return jax.random.normal(key, (self.state_size,))


def spiral(rate: ScalarLike, angle: ScalarLike, *, horizon: int = 20) -> LinearQuadratic:
    """The plane turned by `angle` radians and scaled by `rate` at each step, pushed along the first axis by the action.

    |ds_t/da_k| = rate^(t-k-1): a rotation at 1, a contraction below, an expansion above.

    **Arguments:** `rate`, `angle`: per step. `horizon`: H.

    **Returns:** a `awmkit.tasks.LinearQuadratic` of 2 states and 1 action.
    """
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return LinearQuadratic(jnp.asarray(rate) * jnp.array([[cos, -sin], [sin, cos]]), jnp.array([[1.0], [0.0]]), horizon=horizon)
