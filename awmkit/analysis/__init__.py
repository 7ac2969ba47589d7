"""Where a gradient goes, how it grows, and whether it points the right way: for simulators and models alike."""

from ._fidelity import (
    Agreement as Agreement,
    Fidelity as Fidelity,
    fidelity as fidelity,
    Interval as Interval,
    true_gradient as true_gradient,
    TrueGradient as TrueGradient,
)
from ._gradient_growth import gradient_growth as gradient_growth, GradientGrowth as GradientGrowth
from ._growth import fit_growth as fit_growth, Growth as Growth
from ._hops import hop_spectrum as hop_spectrum, HopSpectrum as HopSpectrum, policy_hop_spectrum as policy_hop_spectrum
from ._jacobian import action_jacobian as action_jacobian, ActionJacobian as ActionJacobian
from ._landscape import Landscape as Landscape, landscape as landscape
from ._lyapunov import Lyapunov as Lyapunov, lyapunov as lyapunov
from ._report import Report as Report, report as report
