"""Methods: ways to compute the gradient that `Paths` defines. All agree in values and gradients, to rounding."""

from .._types import Policy as Policy
from ._default import default_method as default_method
from ._method import AbstractMethod as AbstractMethod
from ._parallel import Parallel as Parallel, Picard as Picard
from ._sequential import Sequential as Sequential

__all__ = ["AbstractMethod", "default_method", "Parallel", "Picard", "Policy", "Sequential"]
