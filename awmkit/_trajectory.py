"""`Trajectory`: the states, actions and rewards of an episode, or of a batch of them."""

import equinox as eqx
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, ScalarLike


class Trajectory(eqx.Module):
    """The states, actions and rewards of an episode. Under `jax.vmap` every field gains a leading axis: a batch of episodes.

    - `states`: s_0 ... s_H, shape (H+1, S).
    - `actions`: a_0 ... a_{H-1}, shape (H, A).
    - `rewards`: r_0 ... r_{H-1}, shape (H,); `None` if no reward was given.
    - `sweeps`: number of Picard sweeps used for sampling; `None` if sampling was sequential.
    """

    states: Float[Array, "*batch T S"]
    actions: Float[Array, "*batch H A"]
    rewards: Float[Array, "*batch H"] | None = None
    sweeps: Int[Array, "*batch"] | None = None

    def returns(self, discount: ScalarLike = 1.0) -> Float[Array, "*batch"]:
        """Return J = sum_t discount^t r_t, one scalar per episode.

        **Raises:** `ValueError` if there are no rewards.
        """
        if self.rewards is None:
            raise ValueError("This trajectory has no rewards; pass reward=task.reward to the unroll.")
        if isinstance(discount, int | float) and discount == 1:
            return jnp.sum(self.rewards, axis=-1)
        return jnp.sum(discounts(discount, self.rewards.shape[-1], self.rewards.dtype) * self.rewards, axis=-1)


def discounts(discount: ScalarLike, horizon: int, dtype: DTypeLike) -> Float[Array, " H"]:
    """Return discount^t for t = 0 ... horizon - 1."""
    steps = jnp.arange(horizon, dtype=dtype)
    # JAX computes the derivative of x^t as t x^(t-1), which is not a number for x = t = 0.
    return jnp.where(steps == 0, 1, jnp.asarray(discount, dtype) ** jnp.maximum(steps, 1))
