"""Tasks: dynamics with a reward, initial states and a horizon."""

from ._chaos import Henon as Henon, Lorenz as Lorenz
from ._double_pendulum import (
    Angles as Angles,
    Circles as Circles,
    DoublePendulum as DoublePendulum,
    DrivenDoublePendulum as DrivenDoublePendulum,
    PassiveDoublePendulum as PassiveDoublePendulum,
)
from ._ode import ode_step as ode_step
from ._probes import LinearQuadratic as LinearQuadratic, spiral as spiral
