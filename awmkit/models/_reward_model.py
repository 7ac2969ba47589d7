"""A learned reward, for environments that pay by rules of their own.

Apart from the world models because it moves no state: it is what an unroll scores with.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Scalar, ScalarLike

from .._checks import check_counts, check_key, kind
from .._normaliser import Normaliser
from .._trajectory import Trajectory
from ._markov import ResidualMLP
from ._trainable import AbstractTrainable


class RewardModel(AbstractTrainable):
    """r'(s_t, a_t, t, s_{t+1}), a residual MLP; fitted to the rewards of episodes, it goes where a reward goes:

    ```python
    reward = RewardModel(state_size, action_size, key=key).normalised(episodes)
    reward = fit(reward, episodes, key=key).model
    value, grads = unroll_grad(model, policy, state, 100, reward=reward)
    ```

    **Arguments**

    - `state_size`, `action_size`: S and A.
    - `width`, `depth`: of the residual blocks.
    - `horizon`: if given, t / horizon is one more input, for rewards that depend on time.
    - `key`: for the weights.

    **Raises:** `ValueError` for sizes that are no whole numbers above 0, and for another kind of key.
    """

    input_norm: Normaliser
    output_norm: Normaliser
    network: ResidualMLP
    state_size: int = eqx.field(static=True)
    action_size: int = eqx.field(static=True)
    horizon: int | None = eqx.field(static=True)

    def __init__(
        self,
        state_size: int,
        action_size: int,
        *,
        width: int = 64,
        depth: int = 2,
        horizon: int | None = None,
        key: PRNGKeyArray,
    ):
        check_counts("RewardModel", state_size=state_size, action_size=action_size, width=width, horizon=horizon)
        check_counts("RewardModel", least=0, depth=depth)
        check_key("RewardModel", key)
        self.state_size = state_size
        self.action_size = action_size
        self.input_norm = Normaliser(state_size)
        self.output_norm = Normaliser(1)
        self.network = ResidualMLP(2 * state_size + action_size + (horizon is not None), 1, width, depth, key=key)
        self.horizon = horizon

    def __call__(
        self, state: Float[Array, " S"], action: Float[Array, " A"], t: ScalarLike, next_state: Float[Array, " S"]
    ) -> Scalar:
        change = (next_state - state) / jax.lax.stop_gradient(self.input_norm.scale)
        time = [] if self.horizon is None else [jnp.asarray(t, state.dtype)[None] / self.horizon]
        return self.output_norm.inverse(self.network(jnp.concatenate([self.input_norm(state), change, action, *time])))[0]

    def normalised(self, episodes: Trajectory) -> "RewardModel":
        """This model with the statistics of episodes' states and rewards. Weights stay: do it once, before the first fit.

        **Raises:** `ValueError` for what is no trajectory, or has no rewards.
        """
        if not isinstance(episodes, Trajectory):
            raise ValueError(f"normalised got {kind(episodes)}; give a reward model whole episodes, a Trajectory with rewards.")
        statistics = self.input_norm.fitted(episodes.states), self.output_norm.fitted(self.target(episodes))
        return eqx.tree_at(lambda m: (m.input_norm, m.output_norm), self, statistics)

    def loss(self, episode):
        errors = (self.prediction(episode) - self.target(episode)) / jax.lax.stop_gradient(self.output_norm.scale)
        return 0.5 * jnp.mean(errors**2)

    def target(self, episodes):
        if episodes.rewards is None:
            raise ValueError("A reward is fitted to rewards, of which these episodes have none; collect them with reward=...")
        return episodes.rewards[..., None]

    def prediction(self, episode):
        states, steps = episode.states, jnp.arange(episode.actions.shape[0])
        step = lambda s, a, t, n: self(s, a, t, n)
        return jax.vmap(step)(states[:-1], episode.actions, steps, states[1:])[:, None]
