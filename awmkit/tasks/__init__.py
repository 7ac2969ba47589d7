"""Tasks given by equations: dynamics with a reward, initial states and a horizon."""

from ._chaos import Henon, Lorenz
from ._control import AbstractControlProblem, ControlReport, Discretised
from ._credit_assignment import CreditAssignment
from ._double_pendulum import Angles, Circles, DoublePendulum, DrivenDoublePendulum, PassiveDoublePendulum
from ._myriad import (
    Bacteria,
    BearPopulations,
    Bioreactor,
    CancerTreatment,
    Epidemic,
    Glucose,
    Harvest,
    HIVTreatment,
    InvasivePlant,
    MouldFungicide,
    MYRIAD,
    PredatorPrey,
    TimberHarvest,
)
from ._ode import ode_step
from ._one_bounce import OneBounce
from ._partly_observed import PartlyObserved
from ._probes import LinearQuadratic, spiral

__all__ = [
    "AbstractControlProblem",
    "Angles",
    "Bacteria",
    "BearPopulations",
    "Bioreactor",
    "CancerTreatment",
    "Circles",
    "ControlReport",
    "CreditAssignment",
    "Discretised",
    "DoublePendulum",
    "DrivenDoublePendulum",
    "Epidemic",
    "Glucose",
    "Harvest",
    "Henon",
    "HIVTreatment",
    "InvasivePlant",
    "LinearQuadratic",
    "Lorenz",
    "MouldFungicide",
    "MYRIAD",
    "ode_step",
    "OneBounce",
    "PartlyObserved",
    "PassiveDoublePendulum",
    "PredatorPrey",
    "spiral",
    "TimberHarvest",
]
