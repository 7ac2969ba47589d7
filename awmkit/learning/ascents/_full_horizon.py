"""The paper's ascent: the return of whole imagined episodes."""

import jax
import jax.numpy as jnp
import jax.tree_util as jtu

from ..._few_at_a_time import few_at_a_time
from ...methods import default_method
from ._ascent import AbstractAscent
from ._imagined import imagine
from ._policy_step import init_ascent_state, policy_step, trainable_gradient


class FullHorizon(AbstractAscent):
    """Maximise the return of whole imagined episodes, which start from initial states in the replay buffer:

        J(theta) = mean over episodes of sum_t discount^t [ r(s_t, a_t) / return_scale + entropy * H(pi(s_t)) ]

    This is the policy update of Ma et al. (2024), and the default of `awmkit.train`. It needs no critic. Use it with an
    `awmkit.AWM`, whose gradient stays well behaved over a long horizon; with a Markov model or a simulator of chaotic
    dynamics, see `awmkit.ShortHorizon`.

    ```python
    FullHorizon(optimiser=optax.adam(1e-2), clip=1.0, entropy=TargetEntropy(optax.linear_schedule(-0.5, -4.0, 5_000)))
    ```

    **Arguments** (all keyword-only)

    - `steps_per_update`: number of environment steps per policy update, 16 by default; may be less than 1.
    - `batch_size`: number of imagined episodes per update, 16 by default.
    - `optimiser`: an optax optimiser for the policy, `optax.adam(1e-4)` by default.
    - `clip`: global norm to which the gradient is clipped, 100 by default.
    - `entropy`: weight of the entropy bonus, 0.1 by default; or a schedule; or an `awmkit.TargetEntropy`.
    - `return_scale`: returns are divided by it; by default the standard deviation of the warm-up's returns.
    - `discount`: discount factor, 1 by default.
    - `paths`: which edges carry gradient, `awmkit.BPO` by default: the policy reads detached states.
    - `method`: how the gradient is computed, as in `awmkit.unroll_grad`; `methods.default_method(dynamics)` by default.

    **Raises:** `ValueError` if a setting is out of range.
    """

    def init(self, policy, episodes, *, key):
        return init_ascent_state(self, policy, episodes)

    def update(self, state, policy, *, dynamics, reward, replay, steps, key):
        draw_key, unroll_key, entropy_key = jax.random.split(key, 3)
        starts = replay.sample(draw_key, self.batch_size).states[:, 0]
        horizon = replay.episodes.actions.shape[1]
        weight = state.entropy_weight(self.entropy, steps)

        keys = tuple(jax.random.split(k, self.batch_size) for k in (unroll_key, entropy_key))

        def value(policy, start, key, entropy_key):
            episode = imagine(self, dynamics, policy, start, horizon, reward=reward, key=key, entropy_key=entropy_key)
            value = episode.discounted_return / state.return_scale + weight * episode.discounted_entropy
            return value, (episode.discounted_return, episode.entropy)

        def mean(of_episode):
            return jtu.tree_map(lambda x: jnp.mean(x, axis=0), jax.vmap(of_episode)(starts, *keys))

        method = default_method(dynamics) if self.method is None else self.method
        differentiate = lambda *episode: trainable_gradient(lambda policy: value(policy, *episode), policy)
        at_a_time = method.episodes_at_a_time(dynamics, horizon)
        gradient, (mean_return, entropy) = mean(lambda *episode: few_at_a_time(differentiate, *episode, size=at_a_time))
        size = dynamics.action_size
        return policy_step(
            self,
            state,
            policy,
            gradient,
            objective=lambda policy: mean(lambda *episode: value(policy, *episode)),
            predicted_return=mean_return,
            entropy=entropy,
            action_size=size,
            steps=steps,
        )
