"""A learned reward, for environments whose reward function is not known as JAX code."""

import equinox as eqx
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray, Scalar, ScalarLike

from .._checks import check_counts, check_shapes
from .._normaliser import Normaliser, rows_of
from ._residual_mlp import ResidualMLP
from ._trainable import AbstractTrainable, check_data
from ._transitions import of_each_step, read_transition


class RewardModel(AbstractTrainable):
    """Predicts the reward of a transition, r'(s_t, a_t, t, s_{t+1}), by a residual MLP.

    Fit it to episodes with rewards and pass it in place of a reward function:

    ```python
    reward = fit(RewardModel(state_size, action_size, key=k1), episodes, key=k2).model
    value, grads = unroll_grad(model, policy, state, 100, reward=reward)
    ```

    **Arguments**

    - `state_size`, `action_size`: number of entries of a state and of an action.
    - `width`, `depth`: width and number of the residual blocks.
    - `horizon`: if given, t / horizon is one more input, for rewards that depend on time. `None` by default.
    - `key`: for the initial weights.

    **Raises:** `ValueError` if a size is not a positive whole number, or `key` is not one key.
    """

    input_norm: Normaliser
    output_norm: Normaliser
    network: ResidualMLP
    state_size: int = eqx.field(static=True)
    action_size: int = eqx.field(static=True)

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
        check_counts("RewardModel", state_size=state_size, action_size=action_size)
        self.state_size = state_size
        self.action_size = action_size
        self.input_norm = Normaliser(state_size)
        self.output_norm = Normaliser(1)
        size = 2 * state_size + action_size
        self.network = ResidualMLP("RewardModel", size, 1, width=width, depth=depth, horizon=horizon, key=key)

    def __call__(
        self, state: Float[Array, " S"], action: Float[Array, " A"], t: ScalarLike, next_state: Float[Array, " S"]
    ) -> Scalar:
        """Return the predicted reward of a transition.

        **Arguments:** `state`, `next_state`: shape (S,). `action`: shape (A,). `t`: index of the step.
        """
        return read_transition(self, state, action, t, next_state)

    def normalised(self, episodes):
        check_data("RewardModel.normalised", self, episodes)
        states, rewards = episodes.states, self.target(episodes)
        statistics = (
            self.input_norm.fitted(states, rows_of(episodes, states.shape[1])),
            self.output_norm.fitted(rewards, rows_of(episodes, rewards.shape[1])),
        )
        return eqx.tree_at(lambda m: (m.input_norm, m.output_norm), self, statistics)

    def loss(self, episode):
        errors = (self.prediction(episode) - self.target(episode)) / lax.stop_gradient(self.output_norm.scale)[None]
        return 0.5 * episode.mean_over_steps(errors**2)

    def target(self, episodes):
        if episodes.rewards is None:
            raise ValueError("A RewardModel needs episodes with rewards, got episodes without; collect them with reward=...")
        check_shapes(
            "RewardModel.target",
            "give one reward per step",
            states=(episodes.states, ("*", "H+1", self.state_size)),
            actions=(episodes.actions, ("*", "H", self.action_size)),
            rewards=(episodes.rewards, ("*", "H")),
        )
        rewards = episodes.filled().rewards
        assert rewards is not None
        return rewards[..., None]

    def prediction(self, episode):
        return of_each_step("RewardModel.prediction", self, self, episode)
