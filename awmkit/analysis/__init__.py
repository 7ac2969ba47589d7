"""What a gradient is made of and how it grows."""

from ._growth import fit_growth as fit_growth, Growth as Growth
from ._lyapunov import Lyapunov as Lyapunov, lyapunov as lyapunov
