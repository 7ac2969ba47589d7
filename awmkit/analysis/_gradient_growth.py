"""The first question of anyone whose gradient explodes: its norm against the horizon, and the law of its growth.

Apart from `fit_growth`, which decides about any numbers; here they are measured.
"""

from collections.abc import Sequence
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray, ScalarLike

from .._checks import describe
from .._dynamics import AbstractDynamics
from .._reward import check_reward, Reward
from .._unroll import unroll
from ._gradients import return_gradients
from ._growth import fit_growth, Growth
from ._tangents import check_batch

Horizons = Sequence[int] | Int[np.ndarray, " n"]


class GradientGrowth(eqx.Module):
    """What `gradient_growth` found.

    - `of`: `"state"`, the norm of ds_H/da_0, or `"return"`, the norm of dJ_H/da.
    - `horizons`: shape (n,). `norms`: of each horizon and start, shape (n, N).
    - `law`: fitted to the medians over starts, where they are positive and finite; `None` where fewer than four are.
    """

    of: Literal["state", "return"]
    horizons: np.ndarray
    norms: np.ndarray
    law: Growth | None

    @property
    def median(self) -> np.ndarray:
        """Over starts, shape (n,)."""
        return np.median(self.norms, axis=1)

    def __repr__(self) -> str:
        span = f"{len(self.horizons)} from {self.horizons[0]} to {self.horizons[-1]}"
        return f"GradientGrowth(of={self.of!r}, law={self}, horizons={span}, norms={describe(self.norms)})"

    def __str__(self) -> str:
        usable = _usable(self.median)
        lost = "" if usable.all() else f"; 0 or not finite at H = {', '.join(map(str, self.horizons[~usable]))}"
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
    """How a gradient's norm grows with the horizon, over many starts, actions and seeds, and by which law.

    Without a reward, |ds_H/da_0|: what is left of an action after H steps. With one, |dJ_H/da|: the gradient that ascent
    follows, of the return of the first H steps by all their actions. All horizons come from one pass.

    ```python
    states = jax.vmap(task.reset)(jax.random.split(k1, 64))
    actions = jax.random.uniform(k2, (64, 200, task.action_size), minval=-1.0)
    growth = gradient_growth(task, states, actions, reward=task.reward)
    print(growth)  # exp(0.05 H)
    awmkit.plot.growth({"simulator": growth})
    ```

    **Arguments**

    - `dynamics`: one, or several of one kind, such as a model of each seed, whose norms are pooled.
    - `states`, `actions`: N starts, shape (N, S), and what is done from each, shape (N, H, A).
    - `reward`, `discount`: of the return.
    - `horizons`: at most H each; by default eight, evenly spaced in their logarithm, from 4 (or H / 4) to H.
    - `key`: for a stochastic dynamics.
    - `decisive`: the margin below which the data cannot decide, as in `awmkit.analysis.fit_growth`.
    - `batch_size`: how many starts are handled at once; memory grows with it.

    **Returns:** a `GradientGrowth`.

    **Raises:** `ValueError` as `unroll` does, and for fewer than 4 horizons or a horizon outside 1 ... H.
    """
    many = list(dynamics) if isinstance(dynamics, list | tuple) else [dynamics]
    if not many:
        raise ValueError("gradient_growth got no dynamics; pass one, or several of one kind.")
    if reward is not None:
        check_reward(reward)
    longest = jnp.shape(actions)[1] if jnp.ndim(actions) == 3 else 0
    for one in many:
        states, actions = check_batch(one, states, actions, key=key)
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
            measured.append(jnp.linalg.norm(grads, axis=-1))
    norms = np.concatenate([np.asarray(m, float).T for m in measured], axis=1)
    middle = np.median(norms, axis=1)
    usable = _usable(middle)
    law = fit_growth(chosen[usable], middle[usable], decisive=decisive) if usable.sum() >= 4 else None
    return GradientGrowth("state" if reward is None else "return", chosen, norms, law)


def check_horizons(horizons: Horizons | None, longest: int, *, count: int = 4) -> np.ndarray:
    """At least `count` different horizons in ascending order, each from 1 to `longest`."""
    if horizons is None:
        horizons = np.round(np.geomspace(min(4, max(1, longest // 4)), longest, 8)).astype(int)
    chosen = np.unique(np.asarray(horizons))
    if chosen.size < count or chosen[0] < 1 or chosen[-1] > longest or not np.issubdtype(chosen.dtype, np.integer):
        raise ValueError(
            f"The horizons are {chosen.tolist()} for actions of {longest} steps; give at least {count} different ones, each "
            f"a whole number from 1 to {longest}."
        )
    return chosen


def _usable(norms: np.ndarray) -> np.ndarray:
    return np.isfinite(norms) & (norms > 0)


@eqx.filter_jit
def _state_norms(dynamics, states, actions, horizons, keys, batch_size) -> Float[Array, "N n"]:
    def norms(x):
        state, actions, key = x
        after = lambda first: unroll(dynamics, actions.at[0].set(first), state, actions.shape[0], key=key).states
        push = lambda da: jax.jvp(after, (actions[0],), (da,))[1]
        tangents = jax.vmap(push)(jnp.eye(actions.shape[1], dtype=actions.dtype))
        return jnp.linalg.norm(tangents[:, horizons], axis=(0, 2))

    return lax.map(norms, (states, actions, keys), batch_size=min(batch_size, states.shape[0]))
