"""Is a gradient's direction right? Against the true return's own gradient, exact and smoothed.

Apart from growth because a small norm is no proof of an accurate direction, nor a large one of a wrong one.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray, ScalarLike

from .._checks import check_counts, kind
from .._dynamics import AbstractDynamics
from .._paths import Paths
from .._reward import check_reward, Reward
from .._unroll_checks import check_arguments, check_differentiable
from ..methods import AbstractMethod, Policy
from ._gradient_growth import check_horizons, Horizons
from ._gradients import flat_parameters, return_gradients, returns


class TrueGradient(eqx.Module):
    """What `true_gradient` found: dJ_H/dpolicy in the true system, at each horizon and start, flat.

    - `exact`: by the chain rule, shape (n, N, P). Under chaos it is right and useless: it points along the finest folds.
    - `smoothed`: of the return averaged over normal perturbations of the policy, estimated; shape (n, N, P).
    - `standard_error`: of the smoothed gradient of each start, shape (n, N, P), and `standard_error_of_mean`, of its mean over
      starts, shape (n, P).
    - `horizons`, `sigma`, `pairs` and what else it was made with.
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
        n, starts, size = self.exact.shape
        ceiling = ", ".join(f"{c:.2f}" for c in self.ceiling)
        return (
            f"TrueGradient(horizons={self.horizons.tolist()}, ceiling=[{ceiling}], sigma={self.sigma}, pairs={self.pairs};\n  "
            f"exact, smoothed and standard_error of shape [{n}, {starts}, {size}])"
        )

    @property
    def ceiling(self) -> np.ndarray:
        """The `cosine` with `smoothed` to expect of its own expectation: below 1 by the estimate's noise. Shape (n,).

        0 where the estimate is all noise: then raise `pairs`.
        """
        return _signal(self.smoothed.mean(axis=1), self.standard_error_of_mean)

    @property
    def ceiling_of_each(self) -> np.ndarray:
        """The same of `cosine_of_each`, shape (n,)."""
        return _signal(self.smoothed, self.standard_error).mean(axis=1)


class Interval(eqx.Module):
    """An estimate with its 95 % bootstrap interval over starts, at each horizon, shape (n,) each."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def __repr__(self) -> str:
        return f"Interval({', '.join(each(self, '.3g'))})"


class Agreement(eqx.Module):
    """How the mean gradient over starts, g, agrees with a reference's, h.

    - `cosine`: g.h / |g||h|, from -1 to 1: the direction.
    - `cosine_of_each`: the mean over starts of the cosine of each one's own gradients. Under chaos a few starts with enormous
      gradients decide the other; here each start counts the same.
    - `norm_ratio`: |g| / |h|: the size.
    - `bias`: |g - h| / |h|: both at once; 0 is perfect, 1 no better than a zero gradient.
    """

    cosine: Interval
    cosine_of_each: Interval
    norm_ratio: Interval
    bias: Interval


class Fidelity(eqx.Module):
    """What `fidelity` found.

    - `exact`, `smoothed`: agreement with either reference.
    - `variance`: of the gradient over starts (and keys), the trace of its covariance.
    - `esnr`: |mean|^2 / variance, the expected signal-to-noise ratio of one start's gradient (Parmas et al., 2018).
      With N starts, values below 1/N are noise.
    - `finite`: the share of starts whose gradient is finite, shape (n,); where it is below 1 the figures are NaN.
    - `horizons`: shape (n,).
    """

    exact: Agreement
    smoothed: Agreement
    variance: Interval
    esnr: Interval
    finite: np.ndarray
    horizons: np.ndarray

    def __repr__(self) -> str:
        cosines = zip(("smoothed", "exact"), (self.smoothed.cosine, self.exact.cosine), strict=True)
        lines = "".join(f"\n  {name}.cosine={cosine}" for name, cosine in cosines)
        return f"Fidelity(horizons={self.horizons.tolist()},{lines}\n  and exact, smoothed, variance, esnr, finite)"


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
    """The gradient of the true return, twice: exact, and of the return smoothed by a normal kernel of width `sigma`.

    The latter by antithetic evolution strategies (Salimans et al., 2017), with the same perturbations for all starts:
    the mean over `pairs` of (J(theta + sigma e) - J(theta - sigma e)) e / (2 sigma). It needs no derivative, and is the
    gradient of what a step of size `sigma` can make use of. Where the two references differ the landscape is folded more
    finely than `sigma`.

    **Arguments**

    - `dynamics`: the true system.
    - `policy`: a policy, or one array of actions (H, A) for all starts; parameters P are its floating-point entries.
    - `states`: N starts, shape (N, S).
    - `horizons`: J_H is the return of the first H steps; for an array of actions, by default eight up to its length.
    - `sigma`: in units of the parameters. `pairs`: of perturbations; the standard error falls with their root.
    - `reward`, `discount`: of the return.
    - `key`: for the perturbations, and for a stochastic policy or dynamics.
    - `batch_size`: how many starts, or pairs, are handled at once; `pairs` is rounded up to a multiple.

    **Returns:** a `awmkit.analysis.TrueGradient`, to be judged by with `awmkit.analysis.fidelity`.

    **Raises:** `ValueError` as `unroll_grad` does, for a `sigma` that is not positive, for fewer than 2 pairs, and where
    the true system is not finite.
    """
    if isinstance(policy, np.ndarray):
        policy = jnp.asarray(policy)
    if horizons is None and not isinstance(policy, Array):
        raise ValueError("true_gradient needs horizons=(20, 50, ...) for a policy that is no array of actions.")
    longest = policy.shape[0] if horizons is None else int(max(horizons))
    if isinstance(policy, Array):
        policy = policy[:longest]
    if jnp.ndim(states) != 2 or len(states) < 2:
        raise ValueError(f"The states have shape {jnp.shape(states)}; pass at least 2 starts, (N, S).")
    check_arguments(dynamics, policy, states[0], longest, key=key, paths=Paths(), method=None)
    check_differentiable(policy)
    check_reward(reward)
    check_counts("true_gradient", pairs=pairs, batch_size=batch_size)
    if not sigma > 0 or pairs < 2:
        raise ValueError(f"true_gradient got sigma={sigma} and pairs={pairs}; it needs a positive width and at least 2 pairs.")
    chosen = check_horizons(horizons, longest, count=1)
    states, (own_key, keys) = jnp.asarray(states), _keys(key, len(states))
    pairs_at_once = min(batch_size, pairs)
    pairs = pairs_at_once * -(-pairs // pairs_at_once)
    exact = return_gradients(
        dynamics, policy, states, longest, chosen, reward=reward, discount=discount, keys=keys, batch_size=batch_size
    )
    smoothed, *errors = _evolution_strategies(
        dynamics, policy, states, longest, jnp.asarray(chosen), reward, discount, keys, own_key, sigma, pairs, pairs_at_once
    )
    exact, smoothed, *errors = (np.asarray(x, float) for x in (exact.swapaxes(0, 1), smoothed, *errors))
    _require_finite("exact gradient", exact, chosen)
    _require_finite("return under a perturbed policy", smoothed, chosen)
    return TrueGradient(exact, smoothed, *errors, chosen, policy, states, reward, discount, key, sigma, pairs)


def fidelity(
    dynamics: AbstractDynamics,
    truth: TrueGradient,
    *,
    paths: Paths = Paths(),
    method: AbstractMethod | None = None,
    resamples: int = 1000,
    seed: int = 0,
    batch_size: int = 16,
) -> Fidelity:
    """How good the direction of the gradient through `dynamics` is, not its size.

    ```python
    truth = true_gradient(task, actions, starts, reward=task.reward, horizons=(20, 50, 100, 200), key=key)
    result = fidelity(model, truth)
    print(result.smoothed.cosine.value, truth.ceiling)
    ```

    **Arguments**

    - `dynamics`: whose gradient is judged: a model, or the true system itself.
    - `truth`: what it is judged against, with policy, starts, horizons and keys; make it once for many models.
    - `paths`: of the judged gradient only; the reference is that of the closed loop. With `BPO` on the true system the bias is
      what the paper's gradient leaves out.
    - `method`: as for `unroll`.
    - `resamples`: of the starts, for the intervals, drawn with `seed`. The noise of the smoothed reference is not in them but
      in `truth.standard_error` and `truth.ceiling`.

    **Returns:** a `awmkit.analysis.Fidelity`.

    **Raises:** `ValueError` as `unroll_grad` does, and for another kind of truth.
    """
    if not isinstance(truth, TrueGradient):
        raise ValueError(f"The truth is {kind(truth)}; pass what true_gradient(task, ...) returns.")
    longest = int(truth.horizons[-1])
    check_arguments(dynamics, truth.policy, truth.states[0], longest, key=truth.key, paths=paths, method=method)
    keys = _keys(truth.key, len(truth.states))[1]
    found = return_gradients(
        dynamics,
        truth.policy,
        truth.states,
        longest,
        truth.horizons,
        reward=truth.reward,
        discount=truth.discount,
        keys=keys,
        batch_size=batch_size,
        paths=paths,
        method=method,
    )
    grads = np.asarray(found, float).swapaxes(0, 1)
    starts = grads.shape[1]
    draws = np.random.default_rng(seed).multinomial(starts, np.full(starts, 1 / starts), size=resamples) / starts
    weights = np.concatenate([np.full((1, starts), 1 / starts), draws])
    exact, smoothed = (_agreement(weights, grads, reference) for reference in (truth.exact, truth.smoothed))
    finite = np.isfinite(grads).all(axis=-1).mean(axis=1)
    return Fidelity(exact, smoothed, *_spread(weights, grads), finite, truth.horizons)


def each(interval: Interval, spec: str) -> list[str]:
    """Every estimate with its interval, as text."""
    triples = zip(*(np.atleast_1d(x) for x in (interval.value, interval.low, interval.high)), strict=True)
    return [f"{v:{spec}} [{low:{spec}}, {high:{spec}}]" for v, low, high in triples]


def _require_finite(what: str, gradient: np.ndarray, horizons: np.ndarray) -> None:
    broken = ~np.isfinite(gradient).all(axis=(1, 2))
    if broken.any():
        raise ValueError(
            f"The true system's {what} is not finite at horizon {horizons[broken][0]}; shorten the horizons, lower sigma, or "
            "mend the simulator, say with more substeps."
        )


def _keys(key, count: int):
    """For the perturbations, and one for each start."""
    own, starts = jax.random.split(key)
    return own, jax.random.split(starts, count)


@eqx.filter_jit
def _evolution_strategies(
    dynamics, policy, states, longest, horizons, reward, discount, keys, own_key, sigma, pairs, batch_size
) -> tuple[Float[Array, "n N P"], Float[Array, "n N P"], Float[Array, "n P"]]:
    """The smoothed gradient of each start, its standard error, and that of the mean over starts."""
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

    def batch(sums, keys):
        slopes, noise = jax.vmap(pair)(keys)  # (B, N, n), (B, P)
        each = jnp.einsum("bin,bp->nip", slopes, noise)
        squares = jnp.einsum("bin,bp->nip", slopes**2, noise**2)
        squares_of_mean = jnp.einsum("bn,bp->np", jnp.mean(slopes, axis=1) ** 2, noise**2)
        return (sums[0] + each, sums[1] + squares, sums[2] + squares_of_mean), None

    of_mean, of_each = (horizons.size, flat.size), (horizons.size, states.shape[0], flat.size)
    zeros = tuple(jnp.zeros(shape, flat.dtype) for shape in (of_each, of_each, of_mean))
    sums, _ = lax.scan(batch, zeros, jax.random.split(own_key, (pairs // batch_size, batch_size)))
    each, squares, squares_of_mean = (x / pairs for x in sums)
    error = lambda squares, mean: jnp.sqrt(jnp.maximum(squares - mean**2, 0) / (pairs - 1))
    return each, error(squares, each), error(squares_of_mean, jnp.mean(each, axis=1))


def _signal(estimate: np.ndarray, standard_error: np.ndarray) -> np.ndarray:
    """The cosine between an estimate and its expectation, from the share of its square that is no noise."""
    size, noise = np.sum(estimate**2, axis=-1), np.sum(standard_error**2, axis=-1)
    return np.sqrt(np.maximum(size - noise, 0) / np.where(size > 0, size, 1))


def _agreement(weights: np.ndarray, grads: np.ndarray, reference: np.ndarray) -> Agreement:
    """All figures from inner products of the starts' gradients, so that a resample costs nothing."""
    gg, gh, hh = (_mean_products(weights, *pair) for pair in ((grads, grads), (grads, reference), (reference, reference)))
    products = lambda a, b: np.sum(a * b, axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine, ratio = gh / np.sqrt(gg * hh), np.sqrt(gg / hh)
        bias = np.sqrt(np.maximum(gg - 2 * gh + hh, 0) / hh)
        each = products(grads, reference) / np.sqrt(products(grads, grads) * products(reference, reference))
        return Agreement(*map(_interval, (cosine, weights @ each.T, ratio, bias)))


def _spread(weights: np.ndarray, grads: np.ndarray) -> tuple[Interval, Interval]:
    size = _mean_products(weights, grads, grads)
    starts = grads.shape[1]
    variance = (np.einsum("bi,nip->bn", weights, grads**2, optimize=True) - size) * starts / (starts - 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return _interval(variance), _interval(size / variance)


def _mean_products(weights: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The inner product of the weighted means over starts, for each row of weights and horizon, shape (B, n)."""
    with np.errstate(invalid="ignore"):
        gram = np.einsum("nip,njp->nij", a, b, optimize=True)
        return np.einsum("bi,nij,bj->bn", weights, gram, weights, optimize=True)


def _interval(draws: np.ndarray) -> Interval:
    """The first row is the estimate, the others its resamples."""
    low, high = np.quantile(draws[1:], [0.025, 0.975], axis=0)
    return Interval(draws[0], low, high)
