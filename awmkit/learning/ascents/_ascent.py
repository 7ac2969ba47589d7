"""The interface of an ascent, the settings that all ascents share, and what an update reports."""

import abc
import math
from collections.abc import Callable

import equinox as eqx
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, ScalarLike

from ..._checks import check_call, check_counts, describe
from ..._dynamics import AbstractDynamics
from ..._paths import BPO, Paths
from ..._policies import memory_of
from ..._reward import Reward
from ..._trajectory import Trajectory
from ..._types import Number
from ...methods import AbstractMethod
from .._optimiser import AnyOptimiser, check_optimiser, holds
from .._replay import Replay
from .._sweep import check_steps_per_update, number
from ._imagined import unknown_memory
from ._target_entropy import Entropy, is_zero, TargetEntropy


class UpdateInfo(eqx.Module):
    """Statistics of one policy update.

    - `predicted_return`: mean return of the imagined episodes, in units of the reward.
    - `entropy`: mean entropy of the policy over the imagined states, in nats.
    - `gradient_norm`: global norm of the policy gradient before clipping. The gradient is that of the return divided by
      `return_scale`.
    - `clipped_norm`: the same after clipping.
    - `skipped`: 1 if the gradient or the step along it was not finite and the update was skipped, else 0. All other fields are
      0 then.
    """

    predicted_return: Float[Array, "*updates"]
    entropy: Float[Array, "*updates"]
    gradient_norm: Float[Array, "*updates"]
    clipped_norm: Float[Array, "*updates"]
    skipped: Float[Array, "*updates"]


class AbstractAscent(eqx.Module):
    """How `awmkit.train` improves a policy: one gradient step on the return of imagined episodes. Subclass it to write your own.

    A subclass implements two methods, `init` and `update`. It inherits the settings below, which are keyword arguments of
    its constructor, and may give them other defaults. `awmkit.learning.ascents` has the building blocks:
    `init_ascent_state` (the optimiser's state, the weight of the entropy bonus, the scale of returns), `trainable_gradient`,
    and `policy_step` (clip the gradient, skip it if it is not finite, make one optimiser step, report).

    This ascent maximises the reward of one step only, from the initial states in the replay buffer:

    ```python
    import jax
    import jax.numpy as jnp
    from awmkit import AbstractAscent, unroll
    from awmkit.learning.ascents import init_ascent_state, policy_step, trainable_gradient


    class Greedy(AbstractAscent):
        def init(self, policy, episodes, *, key):
            return init_ascent_state(self, policy, episodes)

        def update(self, state, policy, *, dynamics, reward, termination, replay, steps, key):
            states = replay.starts(key, self.batch_size)

            def objective(policy):
                options = {"reward": reward, "termination": termination, "paths": self.paths}
                step = lambda s: unroll(dynamics, policy, s, 1, **options).returns()
                mean_return = jnp.mean(jax.vmap(step)(states))
                return mean_return / state.return_scale, mean_return

            gradient, mean_return = trainable_gradient(objective, policy)
            return policy_step(self, state, policy, gradient, objective=objective, predicted_return=mean_return, steps=steps)


    train(task, model, policy, key=key, ascent=Greedy(batch_size=64, entropy=0.0))
    ```

    **Arguments** of every ascent, all of them keyword-only

    - `steps_per_update`: number of environment steps per policy update; may be less than 1 for several updates per step.
    - `batch_size`: number of imagined episodes per update.
    - `optimiser`: an optax optimiser for the policy, `optax.adam(1e-4)` by default. Try larger learning rates, such as 1e-3
      or 1e-2, for short runs.
    - `clip`: global norm to which the gradient is clipped, 100 by default; `math.inf` never clips.
    - `entropy`: weight of the entropy bonus, 0.1 by default; or a function of the number of environment steps so far that
      returns it; or an `awmkit.TargetEntropy`. Use 0 for a policy without a method `entropy`.
    - `return_scale`: returns are divided by it, which makes learning rates and entropy weights comparable across tasks. By
      default the standard deviation of the warm-up's returns.
    - `discount`: discount factor of rewards and entropies, 1 by default.
    - `paths`: which edges carry gradient.
    - `method`: how the gradient is computed, as in `awmkit.unroll_grad`.
    - `initial_updates`: number of policy updates of `train` before it collects the first episode of the policy, after the
      model's initial updates, 0 by default. All updates of offline learning are initial ones.

    `optimiser` may be an `awmkit.Optimiser`. Its numbers, `clip`, `entropy`, `return_scale`, `discount` and the gains of `paths` may
    be arrays of shape (N,), a sweep; see `awmkit.train`. In `update` numbers are traced scalars, so use `jnp.where` instead of
    `if`. A discount of 1 and gains that are Python numbers stay as they are. A field of your own varies too if it is declared as
    `bonus: ScalarLike = eqx.field(kw_only=True, default=0.1, metadata=number())`, with `awmkit.learning.ascents.number`.

    **Raises:** `ValueError` if `batch_size` is not a whole number above 0, `steps_per_update`, `clip` or `return_scale` is not
    positive, `discount` is negative, `optimiser` is not from optax, or `entropy` is a string.
    """

    steps_per_update: int | float = eqx.field(static=True, kw_only=True, default=16.0)
    batch_size: int = eqx.field(static=True, kw_only=True, default=16)
    optimiser: AnyOptimiser = eqx.field(kw_only=True, default=optax.adam(1e-4))
    clip: Number = eqx.field(kw_only=True, default=100.0, metadata=number())
    entropy: Entropy = eqx.field(kw_only=True, default=0.1, metadata=number())
    return_scale: Number | None = eqx.field(kw_only=True, default=None, metadata=number())
    discount: Number = eqx.field(kw_only=True, default=1.0, metadata=number(1.0))
    paths: Paths = eqx.field(kw_only=True, default=BPO)
    method: AbstractMethod | None = eqx.field(kw_only=True, default=None)
    initial_updates: int = eqx.field(static=True, kw_only=True, default=0)

    def __check_init__(self):
        name = type(self).__name__
        check_counts(name, batch_size=self.batch_size)
        check_counts(name, least=0, initial_updates=self.initial_updates)
        check_optimiser(self.optimiser)
        check_steps_per_update(name, self.steps_per_update)
        if not self.steps_per_update > 0 or not holds(self.clip, lambda x: x > 0):
            given = f"steps_per_update={self.steps_per_update} and clip={describe(self.clip)}"
            raise ValueError(f"{name} needs positive numbers for steps_per_update and clip, got {given}.")
        scale_holds = self.return_scale is None or holds(self.return_scale, lambda x: (0 < x) & (x < math.inf))
        if not scale_holds or not holds(self.discount, lambda x: (0 <= x) & (x < math.inf)):
            given = f"return_scale={describe(self.return_scale)} and discount={describe(self.discount)}"
            raise ValueError(f"{name} needs a positive return_scale, or None, and a discount of at least 0, got {given}.")
        if not callable(self.entropy) and not isinstance(self.entropy, TargetEntropy) and not holds(self.entropy, np.isfinite):
            raise ValueError(
                f"{name} got entropy={describe(self.entropy)}; pass a number, a schedule, or TargetEntropy(-4.0) to adapt the weight."
            )

    def check(self, dynamics: AbstractDynamics, horizon: int) -> None:
        """Raise a `ValueError` if this ascent cannot use `dynamics` or episodes of `horizon` steps. Accepts all by default."""

    @property
    def from_any_step(self) -> bool:
        """Whether imagined episodes begin at any step of an episode, where the memory of a policy that has one is unknown. `False`
        by default."""
        return False

    @abc.abstractmethod
    def init(self, policy: PyTree, episodes: Trajectory, *, key: PRNGKeyArray) -> PyTree:
        """Return the ascent's state before its first update.

        **Arguments:** `policy`: the policy, its normaliser set. `episodes`: the warm-up's episodes, with a leading axis. `key`: for
        random initial values.
        """

    @abc.abstractmethod
    def update(
        self,
        state: PyTree,
        policy: PyTree,
        *,
        dynamics: AbstractDynamics,
        reward: Reward,
        termination: Callable[..., Array] | None,
        replay: Replay,
        steps: ScalarLike,
        key: PRNGKeyArray,
    ) -> tuple[PyTree, PyTree, UpdateInfo]:
        """Improve the policy by one gradient step. Called inside a compiled program.

        **Arguments**

        - `state`: what `init` or the previous `update` returned.
        - `policy`: the policy to improve.
        - `dynamics`: the world model or simulator.
        - `reward`: `reward(state, action, t)`, or with a fourth parameter `next_state`; pass it on to `awmkit.unroll`.
        - `termination`: the probability that a step ends the episode, or whether it does, called as
          `termination(state, action, t, next_state)`; `None` if episodes do not end early. Pass it on to `awmkit.unroll` too.
        - `replay`: the episodes collected so far. Draw states to start from with `replay.starts` or `replay.visited`.
        - `steps`: number of environment steps so far, for schedules.
        - `key`: for everything random in this update.

        **Returns:** the new state, the new policy and statistics of the update.
        """


def check_policy(ascent: AbstractAscent, policy) -> None:
    """Raise if `policy` cannot be called, or if `ascent` cannot improve it."""
    check_call("policy", "policy(state, t, *, key)", "write it so, or pass a GaussianPolicy", policy, None, 0, key=None)
    if not is_zero(ascent.entropy) and not hasattr(policy, "entropy"):
        raise ValueError(
            f"The entropy bonus needs a policy with a method entropy, which {type(policy).__name__} lacks; pass a GaussianPolicy, "
            f"or {type(ascent).__name__}(entropy=0)."
        )
    if ascent.from_any_step and eqx.filter_eval_shape(memory_of, policy) is not None:
        raise ValueError(unknown_memory(policy))
