"""Measure how the norm of a gradient grows with the horizon."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray, ScalarLike

from .._checks import check_counts
from .._dynamics import AbstractDynamics
from .._norms import norm
from .._reward import check_reward, Reward
from .._unroll import unchecked_unroll
from .._unroll_checks import check_discount, check_functions
from ._arguments import check_batch, check_horizons, Horizons
from ._gradients import return_gradients
from ._growth_law import fit_growth, Growth


class GradientGrowth(eqx.Module):
    """The result of `gradient_growth`, for n horizons and N starts. Print it to see the law, such as `exp(0.05 H)`.

    - `of`: `"state"` if the norms are |ds_H/da_0|, `"return"` if they are |dJ_H/da|.
    - `horizons`: the horizons H, shape (n,).
    - `norms`: the norm at each horizon and start, shape (n, N); not finite where the states overflow. With several dynamics, N
      counts the starts of all.
    - `law`: the law fitted to the medians over starts; `None` if fewer than four medians are positive and finite.
    """

    of: Literal["state", "return"]
    horizons: np.ndarray
    norms: np.ndarray
    law: Growth | None

    @property
    def median(self) -> np.ndarray:
        """Median norm over starts, shape (n,). A norm that is not a number counts as infinite, because a start has diverged."""
        return np.median(np.where(np.isnan(self.norms), np.inf, self.norms), axis=1)

    def __repr__(self) -> str:
        starts = self.norms.shape[1]
        return f"GradientGrowth(of={self.of!r}, law={self}, horizons={self.horizons.tolist()}, starts={starts})"

    def __str__(self) -> str:
        usable = _usable(self.median)
        lost = "" if usable.all() else f" (0 or not finite at H = {', '.join(map(str, self.horizons[~usable]))})"
        return f"{'no law' if self.law is None else self.law}{lost}"


def gradient_growth(
    dynamics: AbstractDynamics | Sequence[AbstractDynamics],
    states: Float[Array, "N S"],
    actions: Float[Array, "N H A"],
    *,
    reward: Reward | None = None,
    horizons: Horizons | None = None,
    discount: ScalarLike = 1.0,
    key: PRNGKeyArray | None = None,
    decisive: float = 2.0,
    batch_size: int = 16,
) -> GradientGrowth:
    """Measure a gradient's norm at several horizons and find the law by which it grows.

    The first thing to look at when a gradient explodes or vanishes. Without a reward the gradient is ds_H/da_0, the effect of
    the first action on the state after H steps. With a reward it is dJ_H/da, where J_H is the return of the first H steps:
    the gradient that an optimiser follows. One pass gives all horizons.

    ```python
    states = jax.vmap(task.reset)(jax.random.split(k1, 64))
    actions = jax.random.uniform(k2, (64, 200, task.action_size), minval=-1.0)
    growth = gradient_growth(task, states, actions, reward=task.reward)
    print(growth)  # exp(0.05 H)
    awmkit.plot.growth({"simulator": growth})
    ```

    **Arguments**

    - `dynamics`: a simulator or a model; or a list of models of one kind, such as one per seed, whose norms are pooled.
    - `states`: N initial states, shape (N, S).
    - `actions`: the actions taken from each, shape (N, H, A).
    - `reward`: `reward(state, action, t) -> scalar`, optionally with a fourth argument `next_state`; `None` measures ds_H/da_0.
    - `horizons`: at least four whole numbers from 1 to H; by default eight, evenly spaced in their logarithm.
    - `discount`: the discount of the return, 1 by default.
    - `key`: for a stochastic dynamics.
    - `decisive`: the margin below which the law is undecided, see `fit_growth`.
    - `batch_size`: number of starts computed at once; memory grows with it.

    **Returns:** a `GradientGrowth`.

    **Raises:** `ValueError` if the shapes do not fit the dynamics, a value is not finite, or the horizons are invalid.
    """
    many = list(dynamics) if isinstance(dynamics, list | tuple) else [dynamics]
    if not many:
        raise ValueError("gradient_growth needs at least one dynamics, got an empty list.")
    if reward is not None:
        check_reward(reward)
    check_counts("gradient_growth", batch_size=batch_size)
    check_discount(discount)
    for one in many:
        states, actions = check_batch(one, states, actions, key=key)
    longest = actions.shape[1]
    chosen = check_horizons(horizons, longest)
    keys = None if key is None else jax.random.split(key, states.shape[0])
    measured = []
    for one in many:
        if reward is None:
            measured.append(_state_norms(one, states, actions, chosen, keys, batch_size))
        else:
            grads = return_gradients(
                one, actions, states, longest, chosen, reward=reward, discount=discount, keys=keys, batch_size=batch_size
            )
            measured.append(norm(grads, -1))
    norms = np.concatenate([np.asarray(m, float).T for m in measured], axis=1)
    growth = GradientGrowth("state" if reward is None else "return", chosen, norms, None)
    usable = _usable(growth.median)
    if usable.sum() < 4:
        return growth
    return dataclasses.replace(growth, law=fit_growth(chosen[usable], growth.median[usable], decisive=decisive))


def _usable(norms: np.ndarray) -> np.ndarray:
    return np.isfinite(norms) & (norms > 0)


@eqx.filter_jit
def _state_norms(dynamics, states, actions, horizons, keys, batch_size) -> Float[Array, "N n"]:
    """The Frobenius norm of ds_H/da_0 for each start and horizon."""

    def at_start(x):
        state, actions, key = x
        check_functions(dynamics, actions, state, actions.shape[0], reward=None, key=key)
        after = lambda first: unchecked_unroll(dynamics, actions.at[0].set(first), state, actions.shape[0], key=key).states
        push = lambda da: jax.jvp(after, (actions[0],), (da,))[1]
        tangents = jax.vmap(push)(jnp.eye(actions.shape[1], dtype=actions.dtype))
        return norm(tangents[:, horizons], (0, 2))

    return lax.map(at_start, (states, actions, keys), batch_size=min(batch_size, states.shape[0]))
