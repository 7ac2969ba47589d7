"""Where a policy gradient goes, how fast it grows, and whether it points the right way.

Every function takes a simulator or a world model. `report` runs all of them on several dynamics side by side.

An analysis follows the state for all H steps and counts all rewards, also of a task that ends early: `AbstractTask.terminates`
is not applied.

- `gradient_growth`, `fit_growth`: the norm of a gradient against the horizon, and the law by which it grows.
- `hop_spectrum`, `policy_hop_spectrum`: a derivative split by how often its paths are fed back through a state.
- `action_jacobian`: the derivative of every state by every action.
- `lyapunov`: the rates at which nearby trajectories separate.
- `newton_sweeps`: how many sweeps `Newton` needs, and the exponent that predicts it.
- `landscape`: the return along one or two directions in the space of policies.
- `true_gradient`, `fidelity`: the gradient of the true return, and how well another gradient agrees with it.
"""

from ._fidelity import Agreement, Fidelity, fidelity
from ._gradient_growth import gradient_growth, GradientGrowth
from ._growth_law import fit_growth, Growth
from ._hops import hop_spectrum, HopSpectrum, policy_hop_spectrum
from ._interval import Interval
from ._jacobian import action_jacobian, ActionJacobian
from ._landscape import Landscape, landscape
from ._lyapunov import Lyapunov, lyapunov
from ._newton_sweeps import newton_sweeps, NewtonSweeps
from ._report import Entry, Hops, Report, report
from ._true_gradient import true_gradient, TrueGradient

__all__ = [
    "action_jacobian",
    "ActionJacobian",
    "Agreement",
    "Entry",
    "Fidelity",
    "fidelity",
    "fit_growth",
    "gradient_growth",
    "GradientGrowth",
    "Growth",
    "hop_spectrum",
    "Hops",
    "HopSpectrum",
    "Interval",
    "Landscape",
    "landscape",
    "Lyapunov",
    "lyapunov",
    "newton_sweeps",
    "NewtonSweeps",
    "policy_hop_spectrum",
    "Report",
    "report",
    "true_gradient",
    "TrueGradient",
]
