"""Fidelity: how well a gradient agrees with the gradient of the true return, in direction and in size."""

import equinox as eqx
import numpy as np

from .._checks import check_counts, check_shapes, kind
from .._dynamics import AbstractDynamics
from .._norms import scale_of
from .._paths import Paths
from .._unroll_checks import check_arguments, check_dynamics
from ..methods import AbstractMethod
from ._gradients import return_gradients
from ._interval import Interval
from ._true_gradient import split_start_keys, TrueGradient


class Agreement(eqx.Module):
    """How a gradient g agrees with a reference h. Unless stated otherwise, g and h are means over starts.

    Each field is an `Interval` with one entry per horizon.

    - `cosine`: g.h / (|g| |h|), from -1 to 1: agreement in direction.
    - `cosine_of_each`: the cosine computed for each start, then averaged. In a chaotic system a few starts with enormous
      gradients decide `cosine`; here every start counts equally.
    - `norm_ratio`: |g| / |h|: agreement in size.
    - `bias`: |g - h| / |h|: both; 0 is perfect, and a zero gradient has 1.
    """

    cosine: Interval
    cosine_of_each: Interval
    norm_ratio: Interval
    bias: Interval


class Fidelity(eqx.Module):
    """The result of `fidelity`, for n horizons.

    - `exact`, `smoothed`: an `Agreement` with each of the two reference gradients.
    - `variance`: variance of the gradient over starts, the trace of its covariance.
    - `esnr`: |mean|^2 / variance over starts, the expected signal-to-noise ratio of the gradient of a single start (Parmas et
      al., 2018, *PIPPS*). The mean over N starts is mostly noise if it is below 1/N.
    - `finite`: the fraction of starts whose gradient is finite, shape (n,). Where it is below 1 the other fields are NaN.
    - `horizons`: the horizons H, shape (n,).
    """

    exact: Agreement
    smoothed: Agreement
    variance: Interval
    esnr: Interval
    finite: np.ndarray
    horizons: np.ndarray

    def __repr__(self) -> str:
        return (
            f"Fidelity(horizons={self.horizons.tolist()},\n  smoothed.cosine={self.smoothed.cosine},\n"
            f"  exact.cosine={self.exact.cosine}, ...)"
        )


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
    """Compare the policy gradient computed through `dynamics` with the gradient of the true return.

    Use it to find out whether a world model's gradient points in the right direction: a gradient that does not explode can
    still be wrong.

    ```python
    truth = true_gradient(task, actions, starts, reward=task.reward, horizons=(20, 50, 100, 200), key=key)
    result = fidelity(model, truth)
    print(result.smoothed.cosine.value, truth.ceiling)
    ```

    **Arguments**

    - `dynamics`: the model whose gradient is judged, or the true system itself.
    - `truth`: the reference, made by `true_gradient`, with the policy, starts, horizons and keys to use. Make it once and
      compare many models with it.
    - `paths`: gains of the judged gradient's edges; the reference is always the full gradient. With `paths=BPO` on the true
      system, `exact.bias` is what the paper's gradient leaves out.
    - `method`: how the gradient is computed, as for `unroll`.
    - `resamples`: number of bootstrap resamples of the starts, for the 95 % intervals. The intervals do not contain the noise
      of the smoothed reference; see `truth.standard_error` and `truth.ceiling` for it.
    - `seed`: seed of the bootstrap.
    - `batch_size`: number of starts computed at once; memory grows with it.

    **Returns:** a `Fidelity`.

    **Raises:** `ValueError` if `truth` was not made by `true_gradient`, or if `dynamics` does not fit its states and actions.
    """
    if not isinstance(truth, TrueGradient):
        raise ValueError(
            f"truth must be a TrueGradient, got {kind(truth)}; make one with true_gradient(task, policy, states, ...)."
        )
    check_dynamics(dynamics)
    each = ("n", "N", "P")
    check_shapes(
        "fidelity",
        "pass what true_gradient returned for a dynamics of this size",
        exact=(truth.exact, each),
        smoothed=(truth.smoothed, each),
        horizons=(truth.horizons, ("n",)),
        states=(truth.states, ("N", dynamics.state_size)),
    )
    check_counts("fidelity", resamples=resamples, batch_size=batch_size)
    longest = int(truth.horizons[-1])
    check_arguments(dynamics, truth.policy, truth.states[0], longest, key=truth.key, paths=paths, method=method)
    found = return_gradients(
        dynamics,
        truth.policy,
        truth.states,
        longest,
        truth.horizons,
        reward=truth.reward,
        discount=truth.discount,
        keys=split_start_keys(truth.key, len(truth.states))[1],
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


def _agreement(weights: np.ndarray, grads: np.ndarray, reference: np.ndarray) -> Agreement:
    """Agreement with `reference`; from inner products only, so that each bootstrap resample is cheap."""
    units = [scale_of(x, (1, 2)) for x in (grads, reference)]
    g, h = grads / units[0], reference / units[1]
    gg, gh, hh = (_mean_products(weights, *pair) for pair in ((g, g), (g, h), (h, h)))
    products = lambda a, b: np.sum(a * b, axis=-1)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        unit = (units[0] / units[1])[:, 0, 0]
        larger = np.maximum(unit, 1)
        bias = np.sqrt(np.maximum(gg * (unit / larger) ** 2 - 2 * gh * (unit / larger / larger) + hh / larger**2, 0) / hh)
        g, h = (x / scale_of(x, -1) for x in (grads, reference))
        each = products(g, h) / np.sqrt(products(g, g) * products(h, h))
        values = gh / np.sqrt(gg * hh), weights @ each.T, unit * np.sqrt(gg / hh), larger * bias
        return Agreement(*map(_interval, values))


def _spread(weights: np.ndarray, grads: np.ndarray) -> tuple[Interval, Interval]:
    """Variance over starts and ESNR."""
    unit, starts = scale_of(grads, (1, 2)), grads.shape[1]
    grads = grads / unit
    size = _mean_products(weights, grads, grads)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        centred = grads - np.mean(grads, axis=1, keepdims=True)  # Otherwise a variance far below the mean is lost to rounding.
        variance = weights @ np.sum(centred**2, axis=-1).T - _mean_products(weights, centred, centred)
        variance = np.maximum(variance, 0) * starts / (starts - 1)
        return _interval(variance * unit[:, 0, 0] ** 2), _interval(size / variance)


def _mean_products(weights: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Inner products of weighted means over starts, for each row of `weights` and each horizon, shape (B, n)."""
    with np.errstate(invalid="ignore"):
        gram = np.einsum("nip,njp->nij", a, b, optimize=True)
        return np.einsum("bi,nij,bj->bn", weights, gram, weights, optimize=True)


def _interval(draws: np.ndarray) -> Interval:
    """An estimate, the first row of `draws`, with the 95 % interval of its resamples, the other rows."""
    between, above = (np.quantile(draws[1:], [0.025, 0.975], axis=0, method=method) for method in ("linear", "higher"))
    # Linear interpolation with an infinite draw gives NaN. A resample that has one start only has an infinite ESNR.
    low, high = np.where(np.isnan(between), above, between)
    return Interval(draws[0], low, high)
