"""Tasks given by equations: dynamics with a reward, initial states and a horizon."""

from ._chaos import Henon as Henon, Lorenz as Lorenz
from ._control import (
    AbstractControlProblem as AbstractControlProblem,
    ControlReport as ControlReport,
    Discretised as Discretised,
)
from ._credit_assignment import CreditAssignment as CreditAssignment
from ._double_pendulum import (
    Angles as Angles,
    Circles as Circles,
    DoublePendulum as DoublePendulum,
    DrivenDoublePendulum as DrivenDoublePendulum,
    PassiveDoublePendulum as PassiveDoublePendulum,
)
from ._myriad import (
    Bacteria as Bacteria,
    BearPopulations as BearPopulations,
    Bioreactor as Bioreactor,
    CancerTreatment as CancerTreatment,
    Epidemic as Epidemic,
    Glucose as Glucose,
    Harvest as Harvest,
    HIVTreatment as HIVTreatment,
    InvasivePlant as InvasivePlant,
    MouldFungicide as MouldFungicide,
    MYRIAD as MYRIAD,
    PredatorPrey as PredatorPrey,
    TimberHarvest as TimberHarvest,
)
from ._ode import ode_step as ode_step
from ._one_bounce import OneBounce as OneBounce
from ._probes import LinearQuadratic as LinearQuadratic, spiral as spiral

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
    "PassiveDoublePendulum",
    "PredatorPrey",
    "spiral",
    "TimberHarvest",
]
