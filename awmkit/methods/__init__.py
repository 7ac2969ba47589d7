"""Methods: ways to compute the gradient that `Paths` defines. All agree in values and gradients, to rounding."""

from .._types import Policy
from ._default import default_method
from ._method import AbstractMethod, Sweeps
from ._newton import Newton
from ._parallel import Parallel, Picard
from ._sequential import Sequential

__all__ = ["AbstractMethod", "default_method", "Newton", "Parallel", "Picard", "Policy", "Sequential", "Sweeps"]
