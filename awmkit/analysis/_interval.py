"""An estimate with its confidence interval."""

import equinox as eqx
import numpy as np

from .._checks import check_shapes


class Interval(eqx.Module):
    """An estimate with its 95 % bootstrap interval.

    - `value`, `low`, `high`: the estimate and the ends of its interval; arrays of one shape, for `fidelity` one entry per horizon.
    """

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def __repr__(self) -> str:
        return f"Interval({', '.join(self.format())})"

    def format(self, spec: str = ".3g") -> list[str]:
        """Each estimate as text, such as `0.92 [0.91, 0.93]`, with numbers formatted by `spec`."""
        shape = np.shape(self.value)
        check_shapes(
            "Interval",
            "give each estimate both ends",
            value=(self.value, shape),
            low=(self.low, shape),
            high=(self.high, shape),
        )
        rows = np.stack([np.ravel(self.value), np.ravel(self.low), np.ravel(self.high)], axis=1)
        return [f"{value:{spec}} [{low:{spec}}, {high:{spec}}]" for value, low, high in rows]
