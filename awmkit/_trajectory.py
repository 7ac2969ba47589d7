"""`Trajectory`: the states, actions and rewards of an episode, or of a batch of them."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, ScalarLike

from ._checks import check_shapes, kind, Shape


class Trajectory(eqx.Module):
    """The states, actions and rewards of an episode. Under `jax.vmap` every field gains a leading axis: a batch of episodes.

    - `states`: s_0 ... s_H, shape (H+1, S).
    - `actions`: a_0 ... a_{H-1}, shape (H, A).
    - `rewards`: r_0 ... r_{H-1}, shape (H,); `None` if no reward was given.
    - `sweeps`: number of sweeps of `Picard` or `Newton` over all steps; `None` if the steps were taken one by one.
    - `residual`: the largest change of a value in the last sweep, divided by the largest value; `None` without sweeps.
    """

    states: Float[Array, "*batch T S"]
    actions: Float[Array, "*batch H A"]
    rewards: Float[Array, "*batch H"] | None = None
    sweeps: Int[Array, "*batch"] | None = None
    residual: Float[Array, "*batch"] | None = None

    def returns(self, discount: ScalarLike = 1.0) -> Float[Array, "*batch"]:
        """Return J = sum_t discount^t r_t, one scalar per episode.

        **Raises:** `ValueError` if there are no rewards.
        """
        if self.rewards is None:
            raise ValueError("This trajectory has no rewards; pass reward=task.reward to the unroll.")
        fix = "pass one reward per step and one discount"
        check_shapes("Trajectory.returns", fix, rewards=(self.rewards, ("*", "H")), discount=(discount, ()))
        if isinstance(discount, int | float) and discount == 1:
            return jnp.sum(self.rewards, axis=-1)
        return jnp.sum(discounts(discount, self.rewards.shape[-1], self.rewards.dtype) * self.rewards, axis=-1)


def discounts(discount: ScalarLike, horizon: int, dtype: DTypeLike) -> Float[Array, " H"]:
    """Return discount^t for t = 0 ... horizon - 1."""
    steps = jnp.arange(horizon, dtype=dtype)
    # JAX computes the derivative of x^t as t x^(t-1), which is not a number for x = t = 0.
    return jnp.where(steps == 0, 1, jnp.asarray(discount, dtype) ** jnp.maximum(steps, 1))


def check_episodes(
    who: str, episodes: Any, batch: Shape = ("N",), *, state_size: int | None = None, action_size: int | None = None
) -> None:
    """Raise if `episodes` is not a `Trajectory` of whole episodes whose shapes agree with each other and with the sizes.

    Only shapes are read, so the fields may be those of `jax.eval_shape`. `batch` names the leading axes.
    """
    if not isinstance(episodes, Trajectory):
        raise ValueError(
            f"The episodes are {kind(episodes)}; pass one Trajectory whose fields have a leading axis of episodes, as "
            "jax.tree.map(lambda *x: jnp.stack(x), *episodes) makes of a list."
        )
    states, actions = (size if size is not None else name for size, name in ((state_size, "S"), (action_size, "A")))
    needed = {"states": (*batch, "H+1", states), "actions": (*batch, "H", actions), "rewards": (*batch, "H")}
    needed |= {"sweeps": batch, "residual": batch}
    given = {name: (getattr(episodes, name), shape) for name, shape in needed.items()}
    fields = {name: pair for name, pair in given.items() if pair[0] is not None or name in ("states", "actions")}
    check_shapes(who, "give the fields of the Trajectory these shapes", **fields)
