"""Does it explode? The law by which a norm grows with the horizon, decided by data.

Apart because it needs nothing but numbers: any norm against any horizon will do.
"""

import math
from typing import Literal

import equinox as eqx
import numpy as np
from numpy.typing import ArrayLike


class Growth(eqx.Module):
    """What `fit_growth` found.

    - `law`: `"exponential"`, `"polynomial"`, or `"undecided"` where the data tell neither from the other.
    - `rate`: of exp(rate * H), per step of the horizon; `rate_interval`: its 95 % confidence interval.
    - `degree`: of H^degree; `degree_interval`: its 95 % confidence interval.
    - `margin`: Akaike information criterion of the polynomial minus that of the exponential; positive favours the latter.
    """

    law: Literal["exponential", "polynomial", "undecided"]
    rate: float
    rate_interval: tuple[float, float]
    degree: float
    degree_interval: tuple[float, float]
    margin: float

    def __repr__(self) -> str:
        numbers = {"rate": self.rate, "degree": self.degree}
        ranges = {"rate": self.rate_interval, "degree": self.degree_interval}
        each = ", ".join(f"{n}={x:.3g} [{ranges[n][0]:.3g}, {ranges[n][1]:.3g}]" for n, x in numbers.items())
        return f"Growth(law={self.law!r}, {each}, margin={self.margin:.3g})"

    def __str__(self) -> str:
        exponential = f"exp({self.rate:.3g} H)"
        polynomial = f"H^{self.degree:.2g}"
        if self.law == "undecided":
            return f"undecided: {exponential} or {polynomial}"
        return exponential if self.law == "exponential" else polynomial


def fit_growth(horizons: ArrayLike, norms: ArrayLike, *, decisive: float = 2.0) -> Growth:
    """Fit exp(rate * H) and H^degree to norms against horizons, and say which it is.

    Both are lines in the logarithm of the norm with as many parameters, so that the difference of their information criteria
    is n log(RSS_polynomial / RSS_exponential) (Burnham & Anderson, *Model Selection*, ch. 2). Intervals are those of a
    least-squares slope, by Student's t. A rate whose interval holds 0 is no exponential: then the law is
    polynomial, a degree near 0 meaning no growth at all. A rate below 0 is a gradient that vanishes.

    **Arguments**

    - `horizons`: at least 4 different positive numbers, shape (n,). `norms`: positive, finite, shape (n,).
    - `decisive`: the margin below which the data cannot decide.

    ```python
    print(fit_growth([10, 20, 50, 100], [1.2, 3.1, 55.0, 7_800.0]))  # exp(0.0976 H)
    ```

    **Returns:** a `Growth`.

    **Raises:** `ValueError` for fewer horizons, and for norms that are not positive and finite.
    """
    try:
        h, y = np.asarray(horizons, float), np.asarray(norms, float)
    except ValueError as error:
        raise ValueError(f"fit_growth got what are no numbers ({error}); give two arrays of shape (n,).") from None
    if h.ndim != 1 or h.shape != y.shape or np.unique(h).size < 4 or not (h > 0).all():
        raise ValueError(f"fit_growth got horizons {h.shape} and norms {y.shape}; give at least 4 different horizons, all > 0.")
    if not (np.isfinite(y).all() and (y > 0).all()):
        raise ValueError("fit_growth got norms that are not all positive and finite; leave out those horizons.")
    rate, rate_width, rss_exponential = _line(h, np.log(y))
    degree, degree_width, rss_polynomial = _line(np.log(h), np.log(y))
    margin = h.size * math.log(max(rss_polynomial, 1e-300) / max(rss_exponential, 1e-300))
    law = "undecided"
    if margin < -decisive or abs(rate) <= rate_width:
        law = "polynomial"
    elif margin > decisive:
        law = "exponential"
    intervals = (rate - rate_width, rate + rate_width), (degree - degree_width, degree + degree_width)
    return Growth(law, rate, intervals[0], degree, intervals[1], margin)


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Slope of the least-squares line, half the width of its interval, and the residual sum of squares."""
    from scipy.special import stdtrit  # Here, since importing it takes longer than all of awmkit.

    n, spread = x.size, float(np.sum((x - x.mean()) ** 2))
    slope = float(np.sum((x - x.mean()) * y) / spread)
    rss = float(np.sum((y - y.mean() - slope * (x - x.mean())) ** 2))
    return slope, float(stdtrit(n - 2, 0.975)) * math.sqrt(rss / (n - 2) / spread), rss
