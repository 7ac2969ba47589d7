"""Fit a law of growth to norms: exponential or polynomial in the horizon."""

import math
from typing import Literal

import equinox as eqx
import numpy as np
from numpy.typing import ArrayLike


class Growth(eqx.Module):
    """The result of `fit_growth`. Print it to see the law, such as `exp(0.05 H)` or `H^1.2`.

    - `law`: `"exponential"`, `"polynomial"`, or `"undecided"` if the data do not tell them apart.
    - `rate`, `rate_interval`: r of exp(r H), per step, with its 95 % confidence interval.
    - `degree`, `degree_interval`: p of H^p, with its 95 % confidence interval.
    - `margin`: Akaike information criterion of the polynomial minus the exponential's; positive values favour the exponential.
    """

    law: Literal["exponential", "polynomial", "undecided"]
    rate: float
    rate_interval: tuple[float, float]
    degree: float
    degree_interval: tuple[float, float]
    margin: float

    def __repr__(self) -> str:
        part = lambda name, x, ends: f"{name}={x:.3g} [{ends[0]:.3g}, {ends[1]:.3g}]"
        rate, degree = part("rate", self.rate, self.rate_interval), part("degree", self.degree, self.degree_interval)
        return f"Growth(law={self.law!r}, {rate}, {degree}, margin={self.margin:.3g})"

    def __str__(self) -> str:
        exponential, polynomial = f"exp({self.rate:.3g} H)", f"H^{self.degree:.2g}"
        if self.law == "undecided":
            return f"{exponential} or {polynomial}"
        return exponential if self.law == "exponential" else polynomial


def fit_growth(horizons: ArrayLike, norms: ArrayLike, *, decisive: float = 2.0) -> Growth:
    """Decide whether norms grow like exp(rate * H) or like H^degree, and fit both.

    Each law is a straight line in the logarithm of the norm, against H or against log H, fitted by least squares. They are
    compared by Akaike's information criterion, whose difference is

        margin = n log(RSS_polynomial / RSS_exponential)

    (Burnham & Anderson, *Model Selection and Multimodel Inference*, ch. 2), where n is the number of horizons and RSS the
    residual sum of squares. A rate whose confidence interval contains 0 counts as polynomial; a degree near 0 is no growth.
    A negative rate is a gradient that vanishes.

    ```python
    print(fit_growth([10, 20, 50, 100], [1.2, 3.1, 55.0, 7_800.0]))  # exp(0.0976 H)
    ```

    **Arguments**

    - `horizons`: at least 4 different positive numbers, shape (n,).
    - `norms`: positive, finite norms at these horizons, shape (n,).
    - `decisive`: the law is undecided if the margin is smaller than this; 2 is a common rule.

    **Returns:** a `Growth`.

    **Raises:** `ValueError` if there are fewer than 4 horizons, or a norm is not positive and finite.
    """
    try:
        h, y = np.asarray(horizons, float), np.asarray(norms, float)
    except ValueError as error:
        raise ValueError(f"horizons and norms must hold numbers; {error}.") from None
    if h.ndim != 1 or h.shape != y.shape or np.unique(h).size < 4 or not (h > 0).all():
        raise ValueError(
            "horizons and norms must have the same shape (n,) with at least 4 different horizons, all positive, "
            f"got shapes {h.shape} and {y.shape}."
        )
    if not (np.isfinite(y).all() and (y > 0).all()):
        raise ValueError(f"norms must be positive and finite, got {y.tolist()}; leave out the other horizons.")
    rate, rate_width, rss_exponential = _fit_line(h, np.log(y))
    degree, degree_width, rss_polynomial = _fit_line(np.log(h), np.log(y))
    margin = h.size * math.log(max(rss_polynomial, 1e-300) / max(rss_exponential, 1e-300))
    law = "undecided"
    if margin < -decisive or abs(rate) <= rate_width:
        law = "polynomial"
    elif margin > decisive:
        law = "exponential"
    intervals = (rate - rate_width, rate + rate_width), (degree - degree_width, degree + degree_width)
    return Growth(law, rate, intervals[0], degree, intervals[1], margin)


def _fit_line(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Slope of the least-squares line, half the width of its 95 % interval (Student's t), and the residual sum of squares."""
    from scipy.special import stdtrit  # Imported here because it takes longer to import than all of awmkit.

    n, spread = x.size, float(np.sum((x - x.mean()) ** 2))
    slope = float(np.sum((x - x.mean()) * y) / spread)
    rss = float(np.sum((y - y.mean() - slope * (x - x.mean())) ** 2))
    return slope, float(stdtrit(n - 2, 0.975)) * math.sqrt(rss / (n - 2) / spread), rss
