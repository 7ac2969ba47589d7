"""What an unroll did: one episode, or a batch of them.

Apart from the unroll because replay, fitting and diagnosis need it too.
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, ScalarLike


class Trajectory(eqx.Module):
    """What an unroll did. Under `jax.vmap`, a batch of episodes: every field gains a leading axis.

    - `states`: s_0 ... s_H, shape (H+1, S).
    - `actions`: a_0 ... a_{H-1}, shape (H, A).
    - `rewards`: r(s_t, a_t) for t < H, shape (H,); `None` where no reward was given.
    - `sweeps`: the number of Picard sweeps that sampling took; `None` where it took none.
    """

    states: Float[Array, "*batch T S"]
    actions: Float[Array, "*batch H A"]
    rewards: Float[Array, "*batch H"] | None = None
    sweeps: Int[Array, "*batch"] | None = None

    def returns(self, discount: ScalarLike = 1.0) -> Float[Array, "*batch"]:
        """The return J = sum_t discount^t r_t, a scalar for each episode.

        **Raises:** `ValueError` where the unroll was given no reward.
        """
        if self.rewards is None:
            raise ValueError("This trajectory has no rewards; give the unroll a reward=task.reward.")
        if isinstance(discount, int | float) and discount == 1:
            return jnp.sum(self.rewards, axis=-1)
        steps = jnp.arange(self.rewards.shape[-1], dtype=self.rewards.dtype)
        return jnp.sum(jnp.asarray(discount, self.rewards.dtype) ** steps * self.rewards, axis=-1)
