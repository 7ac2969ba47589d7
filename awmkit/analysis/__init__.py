"""What a gradient is made of and how it grows."""

from ._growth import fit_growth as fit_growth, Growth as Growth
from ._hops import hop_spectrum as hop_spectrum, HopSpectrum as HopSpectrum, policy_hop_spectrum as policy_hop_spectrum
from ._jacobian import action_jacobian as action_jacobian, ActionJacobian as ActionJacobian
from ._lyapunov import Lyapunov as Lyapunov, lyapunov as lyapunov
