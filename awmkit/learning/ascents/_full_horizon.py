"""The paper's ascent: the return of whole imagined episodes."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu

from ..._checks import check_counts
from ..._few_at_a_time import few_at_a_time
from ..._types import Number
from ...methods import default_method
from .._sweep import number
from ._ascent import AbstractAscent
from ._imagined import check_pessimism, imagine, over_members
from ._policy_step import init_ascent_state, policy_step, trainable_gradient


class FullHorizon(AbstractAscent):
    """Maximise the return of imagined episodes, which start from initial states in the replay buffer:

        J(theta) = mean over episodes of sum_t discount^t survival_t [ r(s_t, a_t) / return_scale + entropy * H(pi(s_t)) ]

    Without a termination, survival_t is 1.

    This is the policy update of Ma et al. (2024), and the default of `awmkit.train`. It needs no critic. Use it with an
    `awmkit.AWM`, whose gradient stays well behaved over a long horizon; with a Markov model or a simulator of chaotic
    dynamics, see `awmkit.ShortHorizon`.

    ```python
    FullHorizon(optimiser=optax.adam(1e-2), clip=1.0, entropy=TargetEntropy(optax.linear_schedule(-0.5, -4.0, 5_000)))
    ```

    **Arguments** (all keyword-only)

    - `length`: number of imagined steps. By default whole episodes from their initial states. With a length, an imagined
      episode starts in any state of the replay buffer: use it where episodes are long, with a model that is fitted to windows
      of at least that length (`ModelUpdates(window=...)`, or any for a Markov model). What happens after these steps does not
      count; if it matters, use `awmkit.ShortHorizon`, whose critic values it.
    - `steps_per_update`: number of environment steps per policy update, 16 by default; may be less than 1.
    - `batch_size`: number of imagined episodes per update, 16 by default.
    - `optimiser`: an optax optimiser for the policy, `optax.adam(1e-4)` by default.
    - `clip`: global norm to which the gradient is clipped, 100 by default.
    - `entropy`: weight of the entropy bonus, 0.1 by default; or a schedule; or an `awmkit.TargetEntropy`.
    - `return_scale`: returns are divided by it; by default the standard deviation of the warm-up's returns.
    - `discount`: discount factor, 1 by default.
    - `paths`: which edges carry gradient, `awmkit.BPO` by default: the policy reads detached states.
    - `method`: how the gradient is computed, as in `awmkit.unroll_grad`; `methods.default_method(dynamics)` by default.
    - `pessimism`: with an `awmkit.Ensemble`, every member imagines each episode, whatever the ensemble's `sampling`, and the return
      is the mean over members minus this weight times its standard deviation; 0 by default. It adds no edge: the gradient is
      that of the members' returns J_m, weighted by 1 - pessimism (J_m - mean) / std. Less than 0 is optimistic.
    - `initial_updates`: number of policy updates of `awmkit.train` before it collects an episode of the policy, 0 by default.

    **Raises:** `ValueError` if a setting is out of range.
    """

    length: int | None = eqx.field(static=True, kw_only=True, default=None)
    pessimism: Number = eqx.field(kw_only=True, default=0.0, metadata=number(0.0))

    def __check_init__(self):
        check_counts("FullHorizon", length=self.length)

    @property
    def from_any_step(self):
        return self.length is not None

    def check(self, dynamics, horizon):
        check_pessimism("FullHorizon", self.pessimism, dynamics)
        if self.length is not None and self.length > horizon:
            raise ValueError(
                f"FullHorizon got length={self.length}, but an episode has at most {horizon} steps; pass at most {horizon}, or None."
            )

    def init(self, policy, episodes, *, key):
        return init_ascent_state(self, policy, episodes)

    def update(self, state, policy, *, dynamics, reward, termination, replay, steps, key):
        draw_key, unroll_key, entropy_key = jax.random.split(key, 3)
        if self.length is None:
            horizon, begins, until = replay.horizon, (replay.starts(draw_key, self.batch_size),), None
        else:
            horizon, begins, until = self.length, replay.visited(draw_key, self.batch_size), replay.horizon
        weight = state.entropy_weight(self.entropy, steps)

        keys = tuple(jax.random.split(k, self.batch_size) for k in (unroll_key, entropy_key))

        def value(policy, start, *rest):
            *t, key, entropy_key = rest
            options = {"reward": reward, "termination": termination, "key": key, "entropy_key": entropy_key}
            options |= {"paths": self.paths, "method": self.method, "discount": self.discount}
            options |= {"t": t[0], "until": until} if t else {}

            def imagined(dynamics):
                episode = imagine(dynamics, policy, start, horizon, **options)
                return episode.discounted_return, episode.discounted_entropy, episode.entropy

            total, entropies, entropy = over_members(self.pessimism, dynamics, imagined)
            return total / state.return_scale + weight * entropies, (total, entropy)

        def mean(of_episode):
            return jtu.tree_map(lambda x: jnp.mean(x, axis=0), jax.vmap(of_episode)(*begins, *keys))

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
