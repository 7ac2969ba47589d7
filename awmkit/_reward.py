"""What a step pays: from the state and the action, or from the whole transition.

Apart from the unroll because the analyses score transitions too, and every one of them must take either kind.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Scalar, ScalarLike

Reward = Callable[..., Scalar]


class Transition(eqx.Module):
    """A reward that also reads the next state, r(s_t, a_t, t, s_{t+1}), such as a distance covered.

    Goes wherever a reward goes:

    ```python
    forward = Transition(lambda state, action, t, next_state: (next_state[0] - state[0]) / dt)
    trajectory = unroll(model, policy, state, 100, reward=forward)
    ```

    **Arguments:** `fn`: called as `fn(state, action, t, next_state) -> scalar`, with shapes (S,), (A,), an integer, (S,).
    """

    fn: Reward

    def __call__(
        self, state: Float[Array, " S"], action: Float[Array, " A"], t: ScalarLike, next_state: Float[Array, " S"]
    ) -> Scalar:
        return self.fn(state, action, t, next_state)


def of_transition(reward: Reward) -> Reward:
    """Either kind of reward as a plain function of s_t, a_t, t and s_{t+1}."""
    if isinstance(reward, Transition):
        return lambda state, action, t, next_state: reward(state, action, t, next_state)
    return lambda state, action, t, next_state: reward(state, action, t)


def score(reward: Reward, states: Float[Array, "T S"], actions: Float[Array, "H A"]) -> Float[Array, " H"]:
    """r_0 ... r_{H-1} of the states s_0 ... s_H, shape (H+1, S), and the actions, shape (H, A)."""
    return jax.vmap(of_transition(reward))(states[:-1], actions, jnp.arange(actions.shape[0]), states[1:])
