"""A learned termination, for environments that end early by a rule that is not known as JAX code."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Scalar, ScalarLike

from .._checks import check_counts, check_shapes
from .._normaliser import Normaliser, rows_of
from ._residual_mlp import ResidualMLP
from ._trainable import AbstractTrainable, check_data
from ._transitions import of_each_step, read_transition


class TerminationModel(AbstractTrainable):
    """Predicts the probability that a transition ends the episode, p(s_t, a_t, t, s_{t+1}), by a residual MLP.

    Fit it to episodes that say whether they were terminated, and pass it in place of a termination rule:

    ```python
    episodes = Trajectory.from_episodes([{"states": s, "actions": a, "rewards": r, "terminated": True}, ...])
    ends = fit(TerminationModel(state_size, action_size, key=k1), episodes, key=k2).model
    value, grads = unroll_grad(model, policy, state, 100, reward=reward, termination=ends)
    ```

    The loss is the negative log-likelihood of the ends, a proper score, so the probabilities are calibrated as far as the data
    allow. The last step of a terminated episode is an end. The last step of a truncated one is not. Ends are rare: untrained, the
    model predicts about their rate in the data, because its output starts at the log-odds of this rate. No step is weighted more
    than another, which would bias the probabilities.

    **Arguments**

    - `state_size`, `action_size`: number of entries of a state and of an action.
    - `width`, `depth`: width and number of the residual blocks.
    - `horizon`: if given, t / horizon is one more input, for ends that depend on time. `None` by default. A time limit is a
      truncation, which needs no model.
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
        check_counts("TerminationModel", state_size=state_size, action_size=action_size)
        self.state_size = state_size
        self.action_size = action_size
        self.input_norm = Normaliser(state_size)
        self.output_norm = Normaliser(1)
        size = 2 * state_size + action_size
        self.network = ResidualMLP("TerminationModel", size, 1, width=width, depth=depth, horizon=horizon, key=key)

    def __call__(
        self, state: Float[Array, " S"], action: Float[Array, " A"], t: ScalarLike, next_state: Float[Array, " S"]
    ) -> Scalar:
        """Return the probability that the episode ends with this transition, between 0 and 1.

        **Arguments:** `state`, `next_state`: shape (S,). `action`: shape (A,). `t`: index of the step.
        """
        return jax.nn.sigmoid(read_transition(self, state, action, t, next_state))

    def normalised(self, episodes):
        check_data("TerminationModel.normalised", self, episodes)
        states, ends = episodes.states, self.target(episodes)
        steps = ends.size if episodes.length is None else jnp.sum(episodes.length)
        # Half an end and half a step without one are added, so that the odds are finite where no episode or every step ends.
        odds = (jnp.sum(ends) + 0.5) / (jnp.asarray(steps, ends.dtype) - jnp.sum(ends) + 0.5)
        statistics = self.input_norm.fitted(states, rows_of(episodes, states.shape[1])), jnp.log(odds)[None]
        return eqx.tree_at(lambda m: (m.input_norm, m.output_norm.shift), self, statistics)

    def loss(self, episode):
        logit = lambda s, a, t, n: read_transition(self, s, a, t, n)
        logits = of_each_step("TerminationModel.loss", self, logit, episode)
        return episode.mean_over_steps(jax.nn.softplus(logits) - self.target(episode) * logits)

    def target(self, episodes):
        check_shapes(
            "TerminationModel.target",
            states=(episodes.states, ("*", "H+1", self.state_size)),
            actions=(episodes.actions, ("*", "H", self.action_size)),
        )
        steps, dtype = episodes.actions.shape[:-1], episodes.states.dtype
        if episodes.terminated is None:
            return jnp.zeros((*steps, 1), dtype)
        last = jnp.full(steps[:-1], steps[-1]) if episodes.length is None else episodes.length
        ends = (jnp.arange(steps[-1]) == last[..., None] - 1) & episodes.terminated.astype(bool)[..., None]
        return ends[..., None].astype(dtype)

    def prediction(self, episode):
        return of_each_step("TerminationModel.prediction", self, self, episode)
