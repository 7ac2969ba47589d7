"""Which method an unroll uses if none is given."""

from jax.core import Tracer
from jaxtyping import ScalarLike

from .._dynamics import AbstractDynamics
from ._method import AbstractMethod
from ._parallel import Parallel, Picard
from ._sequential import Sequential


def default_method(dynamics: AbstractDynamics, t: ScalarLike = 0) -> AbstractMethod:
    """Return the method that `unroll` and `unroll_grad` use by default.

    It is

    - `Sequential()` unless `dynamics.parallel`, as it is for an AWM whose sequence network takes all steps at once;
    - `Parallel(sampling=Picard(), patience=10)` if the carry of such a dynamics grows with the horizon, as a transformer's cache
      does. A step of a scan is then expensive, and a few sweeps are faster;
    - `Parallel()` otherwise, as for a `LinearStateSpace`.

    **Arguments:** `dynamics`: a simulator or a world model. `t`: index of the first step; if it is traced, the method is
    `Sequential()`, because `Parallel` needs a Python int.
    """
    if not dynamics.parallel or isinstance(t, Tracer):
        return Sequential()
    return Parallel(sampling=Picard(), patience=10) if dynamics.resizable else Parallel()
