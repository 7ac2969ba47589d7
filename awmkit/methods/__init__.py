"""Methods: ways to compute the gradient that `Paths` defines. All of them agree in values and gradients."""

from ._method import AbstractMethod as AbstractMethod, Policy as Policy
from ._parallel import Parallel as Parallel, Picard as Picard
from ._sequential import Sequential as Sequential
