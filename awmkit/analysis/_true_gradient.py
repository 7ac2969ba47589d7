"""The gradient of the true return, exact and smoothed: the reference against which `fidelity` compares."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Key, PRNGKeyArray, ScalarLike

from .._checks import check_counts, check_key, check_shapes, describe
from .._dynamics import AbstractDynamics
from .._norms import norm, scale_of
from .._paths import Paths
from .._reward import check_reward, Reward
from .._unroll_checks import check_arguments, check_differentiable, check_discount, check_dynamics
from ..methods import Policy
from ._arguments import as_array, check_horizons, Horizons
from ._gradients import flat_parameters, return_gradients, returns


class TrueGradient(eqx.Module):
    """The result of `true_gradient`: dJ_H/dpolicy in the true system, for n horizons, N starts and P parameters.

    - `exact`: by the chain rule, shape (n, N, P). In a chaotic system it is correct but useless: it points along folds of the
      return that are much finer than any step.
    - `smoothed`: estimate of the gradient of the smoothed return, shape (n, N, P).
    - `standard_error`: standard error of `smoothed`, shape (n, N, P).
    - `standard_error_of_mean`: standard error of the mean of `smoothed` over starts, shape (n, P).
    - `horizons`: the horizons H in ascending order, shape (n,).
    - `policy`, `states`, `reward`, `discount`, `key`, `sigma`, `pairs`: the arguments of `true_gradient`.
    """

    exact: np.ndarray
    smoothed: np.ndarray
    standard_error: np.ndarray
    standard_error_of_mean: np.ndarray
    horizons: np.ndarray
    policy: Policy
    states: Float[Array, "N S"]
    reward: Reward
    discount: ScalarLike
    key: PRNGKeyArray
    sigma: float
    pairs: int

    def __repr__(self) -> str:
        _, starts, size = self.exact.shape
        ceiling = ", ".join(f"{c:.2f}" for c in self.ceiling)
        return (
            f"TrueGradient(horizons={self.horizons.tolist()}, starts={starts}, parameters={size}, sigma={self.sigma}, "
            f"pairs={self.pairs}, ceiling=[{ceiling}])"
        )

    @property
    def ceiling(self) -> np.ndarray:
        """The cosine with `smoothed` that a perfect gradient would have, shape (n,).

        It is below 1 because `smoothed` is a noisy estimate, and 0 if the estimate is all noise; increase `pairs` then.
        """
        return _signal(self.smoothed.mean(axis=1), self.standard_error_of_mean)

    @property
    def ceiling_of_each(self) -> np.ndarray:
        """The `cosine_of_each` that a perfect gradient would have, shape (n,)."""
        return _signal(self.smoothed, self.standard_error).mean(axis=1)


def true_gradient(
    dynamics: AbstractDynamics,
    policy: Policy,
    states: Float[Array, "N S"],
    *,
    reward: Reward,
    key: PRNGKeyArray,
    horizons: Horizons | None = None,
    discount: ScalarLike = 1.0,
    sigma: float = 0.1,
    pairs: int = 1024,
    batch_size: int = 16,
) -> TrueGradient:
    """Compute the policy gradient in the true system twice: exactly, and of a smoothed return.

    The smoothed return is the mean of J over normal perturbations of the parameters with standard deviation `sigma`. Its
    gradient says which way a step of about that size improves the return, and is estimated without derivatives, by antithetic
    evolution strategies (Salimans et al., 2017, *Evolution Strategies as a Scalable Alternative to Reinforcement Learning*):

        grad E[J(theta + sigma e)]  ~  mean over pairs of (J(theta + sigma e) - J(theta - sigma e)) e / (2 sigma),  e ~ N(0, I)

    Exact and smoothed gradients disagree where the return has folds finer than `sigma`.

    **Arguments**

    - `dynamics`: the true system.
    - `policy`: a policy, or an array of actions (H, A) used from every start. P is the number of its floating-point entries.
    - `states`: N >= 2 initial states, shape (N, S).
    - `reward`: `reward(state, action, t) -> scalar`, optionally with a fourth argument `next_state`.
    - `key`: for the perturbations, and for a stochastic policy or dynamics.
    - `horizons`: the gradient of J_H, the return of the first H steps, is computed for each. Required for a policy; for an
      array of actions the default is eight horizons up to its length.
    - `discount`: the discount of the return, 1 by default.
    - `sigma`: standard deviation of the perturbations, in units of the parameters. Choose the size of the optimiser's steps.
    - `pairs`: number of pairs of perturbations, rounded up to a multiple of the batch size. The standard error falls like
      1 / sqrt(pairs).
    - `batch_size`: number of starts or pairs computed at once; memory grows with it.

    **Returns:** a `TrueGradient`, to be passed to `fidelity`.

    **Raises:** `ValueError` if an argument is invalid, or if the return or its gradient is not finite.
    """
    check_dynamics(dynamics)
    plan: Any = as_array("policy", policy)
    states = as_array("states", states)
    planned = hasattr(plan, "shape")
    shapes: dict[str, Any] = {"states": (states, ("N", dynamics.state_size))}
    if planned:
        shapes["policy"] = (plan, ("H", dynamics.action_size))
    elif horizons is None:
        raise ValueError("true_gradient needs horizons for a policy that is not an array of actions; pass horizons=(20, 50).")
    check_shapes("true_gradient", "pass several starts, and one plan of actions for all", **shapes)
    if len(states) < 2:
        raise ValueError(f"states must hold at least 2 starts, got {describe(states)}; pass more.")
    chosen = check_horizons(horizons, len(plan) if planned else None, count=1)
    longest = int(chosen[-1])
    policy = plan[:longest] if planned else policy
    _, policy = check_arguments(dynamics, policy, states[0], longest, key=key, paths=Paths(), method=None)
    check_key("true_gradient", key)
    check_differentiable(policy)
    check_reward(reward)
    check_discount(discount)
    check_shapes("true_gradient", "give one number", sigma=(sigma, ()))
    check_counts("true_gradient", batch_size=batch_size)
    check_counts("true_gradient", least=2, pairs=pairs)
    if not sigma > 0:
        raise ValueError(f"sigma must be positive, got {sigma}; try 0.1.")
    states, (own_key, keys) = jnp.asarray(states), split_start_keys(key, len(states))
    pairs_at_once = min(batch_size, pairs)
    pairs = pairs_at_once * -(-pairs // pairs_at_once)
    exact = return_gradients(
        dynamics, policy, states, longest, chosen, reward=reward, discount=discount, keys=keys, batch_size=batch_size
    )
    smoothed, *errors = _evolution_strategies(
        dynamics, policy, states, longest, jnp.asarray(chosen), reward, discount, keys, own_key, sigma, pairs, pairs_at_once
    )
    exact, smoothed, *errors = (np.asarray(x, float) for x in (exact.swapaxes(0, 1), smoothed, *errors))
    _require_finite("gradient", exact, chosen)
    _require_finite("return under a perturbed policy", smoothed, chosen)
    return TrueGradient(exact, smoothed, *errors, chosen, policy, states, reward, discount, key, sigma, pairs)


def split_start_keys(key: PRNGKeyArray, count: int) -> tuple[PRNGKeyArray, Key[Array, " N"]]:
    """A key for the perturbations, and one for each start."""
    own, starts = jax.random.split(key)
    return own, jax.random.split(starts, count)


def _require_finite(what: str, gradient: np.ndarray, horizons: np.ndarray) -> None:
    broken = ~np.isfinite(gradient).all(axis=(1, 2))
    if broken.any():
        raise ValueError(
            f"The true system's {what} is not finite at horizon {horizons[broken][0]}; use shorter horizons, a smaller sigma, "
            "or more substeps in the simulator."
        )


@eqx.filter_jit
def _evolution_strategies(
    dynamics, policy, states, longest, horizons, reward, discount, keys, own_key, sigma, pairs, batch_size
) -> tuple[Float[Array, "n N P"], Float[Array, "n N P"], Float[Array, "n P"]]:
    """The smoothed gradient of each start, its standard error, and the standard error of the mean over starts."""
    flat, policy_of = flat_parameters(policy)

    def pair(key):
        noise = jax.random.normal(key, flat.shape, flat.dtype)
        value = lambda sign, state, key: returns(
            dynamics,
            policy_of(flat + sign * sigma * noise),
            state,
            longest,
            horizons,
            reward=reward,
            discount=discount,
            key=key,
        )
        up, down = (jax.vmap(lambda s, k, sign=sign: value(sign, s, k))(states, keys) for sign in (1.0, -1.0))
        return (up - down) / (2 * sigma), noise

    def batch(loop, keys):
        (unit, each, squares), (slopes, noise) = (
            loop,
            jax.vmap(pair)(keys),
        )  # The slopes have shape (B, N, n), the noise (B, P).
        slopes = jnp.concatenate([slopes, jnp.mean(slopes, axis=1, keepdims=True)], axis=1)
        larger = jnp.maximum(unit, scale_of(slopes, 0)[0])  # Squares are summed in units of the largest slope so far.
        slopes, shrink = slopes / larger, (unit / larger).T[..., None]
        each = shrink * each + jnp.einsum("bin,bp->nip", slopes, noise)
        squares = shrink**2 * squares + jnp.einsum("bin,bp->nip", slopes**2, noise**2)
        return (larger, each, squares), None

    of_each = states.shape[0] + 1, horizons.size  # The last start stands for the mean over starts.
    zeros = tuple(jnp.zeros(shape, flat.dtype) for shape in (of_each, *[(*of_each[::-1], flat.size)] * 2))
    (unit, *sums), _ = lax.scan(batch, zeros, jax.random.split(own_key, (pairs // batch_size, batch_size)))
    (each, squares), unit = (x / pairs for x in sums), unit.T[..., None]
    error = unit * jnp.sqrt(jnp.maximum(squares - each**2, 0) / (pairs - 1))
    return (unit * each)[:, :-1], error[:, :-1], error[:, -1]


def _signal(estimate: np.ndarray, standard_error: np.ndarray) -> np.ndarray:
    """The expected cosine between an estimate and its mean, from the part of its squared norm that is not noise."""
    size, noise = norm(estimate, -1), norm(standard_error, -1)
    share = np.minimum(noise / np.where(size > 0, size, 1), 1)
    return np.where(size > 0, np.sqrt((1 - share) * (1 + share)), 0)
