"""Searches: ways to optimise the actions of a plan, for `awmkit.Planner`."""

import abc
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray, Scalar

from .._checks import check_counts
from ._exploration import pink_noise
from ._optimise import descend
from ._optimiser import AnyOptimiser, check_optimiser
from ._warmup import held_actions
from .ascents._policy_step import unless_broken

Value = Callable[[Float[Array, "H A"]], Scalar]


class AbstractSearch(eqx.Module):
    """How an `awmkit.Planner` optimises a plan, the actions of the next H steps. Subclass it to write your own.

    ```python
    class RandomShooting(AbstractSearch):
        samples: int = 1_000

        def optimise(self, value, plan, *, key):
            plans = jax.random.uniform(key, (self.samples, *plan.shape), minval=-1.0, maxval=1.0)
            return plans[jnp.argmax(jax.vmap(value)(plans))]

    Planner(model, reward, 30, search=RandomShooting())
    ```
    """

    @abc.abstractmethod
    def optimise(self, value: Value, plan: Float[Array, "H A"], *, key: PRNGKeyArray) -> Float[Array, "H A"]:
        """Return a plan of high value, with actions in [-1, 1]. Called inside a compiled program.

        **Arguments**

        - `value`: maps a plan to its predicted return. It can be differentiated and batched by `jax.vmap`.
        - `plan`: the warm start: the last plan, shifted by one step. All zeros at the first step of an episode.
        - `key`: for everything random in this search.
        """


class GradientSearch(AbstractSearch):
    """Gradient ascent on the predicted return, from several plans at once. Returns the best plan that it has evaluated.

    The first plan is the warm start. The others are drawn by `awmkit.held_actions`: each is constant up to noise. After every
    step of the optimiser, actions are clipped to [-1, 1], so that a plan leaves a bound as fast as it has reached it.

    A step that is not finite is not made, and a plan whose return is not finite is never chosen. If no plan has a finite
    return, the result is the warm start.

    **Arguments**

    - `optimiser`: an optax optimiser for the actions, `optax.adam(0.1)` by default. It starts again at every decision.
    - `iterations`: number of gradient steps per decision, 15 by default.
    - `starts`: number of plans, 4 by default.

    **Raises:** `ValueError` if a number is not a whole number of at least 1, or `optimiser` is not from optax.
    """

    optimiser: AnyOptimiser = optax.adam(0.1)
    iterations: int = eqx.field(static=True, default=15)
    starts: int = eqx.field(static=True, default=4)

    def __check_init__(self):
        check_optimiser(self.optimiser)
        check_counts("GradientSearch", iterations=self.iterations, starts=self.starts)

    def optimise(self, value, plan, *, key):
        shape = plan.shape[0], plan.shape[1]
        drawn = [held_actions(k, shape).astype(plan.dtype) for k in jax.random.split(key, self.starts - 1)]
        loss = lambda plan: -value(jnp.clip(plan, -1, 1))  # For an optimiser that searches along a line.

        def ascend(plan):
            def step(loop, _):
                plan, state, best = loop
                gain, gradient = jax.value_and_grad(value)(plan)
                new = descend(self.optimiser, state, plan, -gradient, loss=loss, value=-gain)
                (state, moved), _ = unless_broken(gradient, new, (state, plan))
                return (jnp.clip(moved, -1, 1), state, _better(best, plan, gain)), None

            loop = plan, self.optimiser.init(plan), (plan, jnp.asarray(-jnp.inf, plan.dtype))
            (plan, _, best), _ = lax.scan(step, loop, length=self.iterations)
            return _better(best, plan, value(plan))

        plans, gains = jax.vmap(ascend)(jnp.stack([plan, *drawn]))
        return plans[jnp.argmax(gains)]


class CEM(AbstractSearch):
    """The cross-entropy method: sample plans, fit mean and deviation to the best of them, repeat. It needs no gradient.

    Deviations from the mean have a 1/f spectrum, because independent noise averages out. The mean and the best plan so far are
    evaluated with the samples, and the result is the best of all. A plan whose return is not finite counts as the worst. Source:
    Pinneri et al. (2020), *Sample-efficient Cross-Entropy Method for Real-time Planning*.

    **Arguments**

    - `samples`: number of plans per iteration, 64 by default.
    - `elites`: number of best plans to which mean and deviation are fitted, 8 by default.
    - `iterations`: number of iterations per decision, 5 by default.
    - `std`: standard deviation of the actions in the first iteration, 0.5 by default.

    **Raises:** `ValueError` if a number is not a whole number of at least 1, there are more elites than samples, or `std` is not
    positive.
    """

    samples: int = eqx.field(static=True, default=64)
    elites: int = eqx.field(static=True, default=8)
    iterations: int = eqx.field(static=True, default=5)
    std: float = 0.5

    def __check_init__(self):
        check_counts("CEM", samples=self.samples, elites=self.elites, iterations=self.iterations)
        if self.elites > self.samples or not self.std > 0:
            given = f"elites={self.elites}, samples={self.samples} and std={self.std}"
            raise ValueError(f"CEM needs at most as many elites as samples and a positive std, got {given}.")

    def optimise(self, value, plan, *, key):
        shape = plan.shape[0], plan.shape[1]

        def iterate(loop, key):
            mean, std, best = loop
            noise = jax.vmap(lambda k: pink_noise(k, shape))(jax.random.split(key, self.samples))
            drawn = jnp.clip(mean + std * noise.astype(plan.dtype), -1, 1)
            plans = jnp.concatenate([best[None], mean[None], drawn])
            gains = jax.vmap(value)(plans)
            _, order = lax.top_k(jnp.where(jnp.isfinite(gains), gains, -jnp.inf), self.elites)
            elites = plans[order]
            # The deviation is that from the old mean. About their own mean, elites that all lie on one side of it would be close
            # together, and the search would stop on its way.
            std = jnp.sqrt(jnp.mean((elites - mean) ** 2, axis=0))
            return (jnp.mean(elites, axis=0), std, elites[0]), None

        loop = plan, jnp.full_like(plan, self.std), plan
        return lax.scan(iterate, loop, jax.random.split(key, self.iterations))[0][2]


def _better(best: tuple[Array, Scalar], plan: Array, gain: Scalar) -> tuple[Array, Scalar]:
    """Return the better of two plans, with its return. A return that is not finite is never better."""
    better = jnp.isfinite(gain) & (gain > best[1])
    return jnp.where(better, plan, best[0]), jnp.where(better, gain, best[1])
