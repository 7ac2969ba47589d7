"""What a gradient is made of and how it grows."""

from ._growth import Growth as Growth, fit_growth as fit_growth
from ._lyapunov import Lyapunov as Lyapunov, lyapunov as lyapunov
