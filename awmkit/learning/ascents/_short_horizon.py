"""Stochastic value gradients: a few imagined steps and a critic for the rest of the return."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import optax
from jax import lax
from jaxtyping import PyTree

from ..._checks import check_call, check_counts, describe
from ..._normaliser import is_stacked, normalise_inputs, trainable
from ..._paths import Paths
from ..._types import Number
from .._optimise import check_trains
from .._optimiser import AnyOptimiser, check_optimiser, holds
from .._sweep import number
from ._ascent import AbstractAscent
from ._imagined import check_pessimism, imagine, over_members
from ._policy_step import AscentState, init_ascent_state, optimiser_step, policy_step, trainable_gradient, unless_broken


class ShortHorizonState(eqx.Module):
    """What `ShortHorizon` carries from one update to the next."""

    policy: AscentState
    critic: Callable
    target_critic: Callable
    critic_optimiser: PyTree


class ShortHorizon(AbstractAscent):
    """Maximise the return of k imagined steps plus a critic's value of the state after them:

        J(theta) = mean over (s_t, t) of
            sum_{i<k} discount^i survival_i [ r_{t+i} / return_scale + entropy * H(pi(s_{t+i})) ]
            + discount^k survival_k V'(s_{t+k}, t+k)

    The start (s_t, t) is any step in the replay buffer. survival_i is the probability that the first i of these steps do not
    end the episode, 1 without a termination. The critic V is fitted to J by least squares in every update. The target critic
    V' is an exponential moving average of V. These are stochastic value gradients, SVG(k) (Heess et al., 2015), the baseline
    that the paper uses with Markov models.

    A critic that sees the step, as `Critic(state_size, horizon)` does, takes the horizon for the end of the problem: steps
    after it do not count, and its value there is 0. A critic without a horizon, `Critic(state_size)`, takes it for a time
    limit, which cuts an episode but not its future: use that for Gymnasium's environments, with a discount below 1.

    Use it where the gradient over the whole horizon explodes, with Markov models and simulators of chaotic dynamics; or where
    predictions of whole episodes are not accurate enough, as those of an AWM of a system that needs feedback.

    An `AWM` or `HWM` starts in s_t without a memory of the steps before, and counts its steps from there. The policy, the reward
    and the critic see the step t of the episode. Fit such a model to windows of at least `length` steps from anywhere in the
    episodes, because whole episodes show it initial states only:

    ```python
    critic = Critic(task.state_size, task.horizon, key=key)
    train(task, model, policy, key=key, model_updates=ModelUpdates(window=20), ascent=ShortHorizon(critic, length=20))
    ```

    **Arguments**

    - `critic`: an `awmkit.Critic`, or any module called as `critic(state, t) -> scalar`. If it has an `input_norm` that is not
      set, the states of the warm-up set it. If it has a field `horizon` that is `None`, it has no end.
    - `length`: number of imagined steps k, 2 by default; at most the horizon.
    - `critic_optimiser`: an optax optimiser for the critic, `optax.adam(1e-3)` by default.
    - `polyak`: share of the target critic that each update keeps, in [0, 1), 0.99 by default.
    - `steps_per_update`: number of environment steps per update of policy and critic, 2 by default; may be less than 1.
    - `batch_size`: number of starts per update, 256 by default.
    - `optimiser`: an optax optimiser for the policy, `optax.adam(1e-4)` by default.
    - `clip`: global norm to which the policy gradient is clipped, 100 by default.
    - `entropy`: weight of the entropy bonus, 0.1 by default; or a schedule; or an `awmkit.TargetEntropy`.
    - `return_scale`: returns are divided by it; by default the standard deviation of the warm-up's returns.
    - `discount`: discount factor, 1 by default.
    - `paths`: which edges carry gradient, all of them by default.
    - `method`: how the gradient is computed, as in `awmkit.unroll_grad`.
    - `pessimism`: with an `awmkit.Ensemble`, every member imagines the steps, whatever the ensemble's `sampling`, and the return,
      with the critic's value, is the mean over members minus this weight times its standard deviation; 0 by default. It adds no
      edge: the gradient is that of the members' returns J_m, weighted by 1 - pessimism (J_m - mean) / std. Less than 0 is
      optimistic. The critic is fitted to the pessimistic return.

    **Raises:** `ValueError` if a setting is out of range, or if `critic` has a leading axis of several critics; in its first
    update, if a model with `per_step=True` has statistics of fewer than `length` steps.
    """

    critic: Callable
    length: int = eqx.field(static=True, default=2)
    critic_optimiser: AnyOptimiser = eqx.field(default=optax.adam(1e-3))
    polyak: Number = eqx.field(default=0.99, metadata=number())
    steps_per_update: int | float = eqx.field(static=True, kw_only=True, default=2.0)
    batch_size: int = eqx.field(static=True, kw_only=True, default=256)
    paths: Paths = eqx.field(kw_only=True, default=Paths())
    pessimism: Number = eqx.field(kw_only=True, default=0.0, metadata=number(0.0))

    def __check_init__(self):
        check_counts("ShortHorizon", length=self.length)
        if not holds(self.polyak, lambda x: (0 <= x) & (x < 1)):
            raise ValueError(f"ShortHorizon needs a polyak in [0, 1), got {describe(self.polyak)}.")
        check_call("critic", "critic(state, t)", "write it so, or pass a Critic", self.critic, None, 0)
        if is_stacked(self.critic):
            raise ValueError(
                "ShortHorizon got several critics, stacked along a leading axis; pass one, from which all seeds start."
            )

        check_optimiser(self.critic_optimiser)

    @property
    def from_any_step(self):
        return True

    def check(self, dynamics, horizon):
        check_pessimism("ShortHorizon", self.pessimism, dynamics)
        if self.length > horizon:
            raise ValueError(
                f"ShortHorizon got length={self.length}, but an episode has {horizon} steps; pass a length of at most {horizon}."
            )
        value = eqx.filter_eval_shape(self.critic, jnp.zeros(dynamics.state_size), jnp.asarray(0))
        if getattr(value, "shape", None) != () or not jnp.issubdtype(value.dtype, jnp.floating):
            raise ValueError(
                f"The critic returned {describe(value)}; it must return one floating-point number, such as an "
                'eqx.nn.MLP(..., out_size="scalar") does.'
            )
        check_trains(self.critic_optimiser, self.critic)

    def init(self, policy, episodes, *, key):
        ascent_state = init_ascent_state(self, policy, episodes)
        critic = normalise_inputs(self.critic, episodes)
        critic_state = self.critic_optimiser.init(eqx.filter(critic, trainable(critic)))
        return ShortHorizonState(ascent_state, critic, critic, critic_state)

    def update(self, state, policy, *, dynamics, reward, termination, replay, steps, key):
        draw_key, unroll_key, entropy_key = jax.random.split(key, 3)
        return_scale = state.policy.return_scale
        until = replay.horizon if getattr(self.critic, "horizon", 0) is not None else None
        starts, times = replay.visited(draw_key, self.batch_size)
        weight = state.policy.entropy_weight(self.entropy, steps)

        def imagined_return(policy, start, t, key, entropy_key):
            options = {"reward": reward, "termination": termination, "key": key, "entropy_key": entropy_key}
            options |= {"paths": self.paths, "method": self.method, "discount": self.discount}

            def with_value(dynamics):
                imagined = imagine(dynamics, policy, start, self.length, t=t, until=until, **options)
                end = t + self.length
                value_of_end = imagined.survived * state.target_critic(imagined.last_state, end)
                if until is not None:
                    value_of_end = jnp.where(end < until, value_of_end, 0.0)
                total = imagined.discounted_return + self.discount**self.length * (return_scale * value_of_end)
                return total, imagined.discounted_entropy, imagined.entropy

            return over_members(self.pessimism, dynamics, with_value)

        def objective(policy):
            keys = (jax.random.split(k, self.batch_size) for k in (unroll_key, entropy_key))
            returns, entropies, entropy = jax.vmap(lambda *x: imagined_return(policy, *x))(starts, times, *keys)
            values = returns / return_scale + weight * entropies
            return jnp.mean(values), (values, jnp.mean(returns), jnp.mean(entropy))

        gradient, (values, mean_return, entropy) = trainable_gradient(objective, policy)
        size = dynamics.action_size
        policy_state, policy, info = policy_step(
            self,
            state.policy,
            policy,
            gradient,
            objective=objective,
            predicted_return=mean_return,
            entropy=entropy,
            action_size=size,
            steps=steps,
        )

        def negative_squared_error(critic):
            return -jnp.mean((jax.vmap(critic)(starts, times) - lax.stop_gradient(values)) ** 2), ()

        critic_gradient, _ = trainable_gradient(negative_squared_error, state.critic)
        old = state.critic_optimiser, state.critic
        new = optimiser_step(self.critic_optimiser, *old, critic_gradient, negative_squared_error)
        # A critic that is not finite would spoil all later updates.
        (critic_state, critic), _ = unless_broken(critic_gradient, new, old)
        average = lambda old, new: self.polyak * old + (1 - self.polyak) * new if eqx.is_inexact_array(old) else new
        target_critic = jtu.tree_map(average, state.target_critic, critic)
        return ShortHorizonState(policy_state, critic, target_critic, critic_state), policy, info
