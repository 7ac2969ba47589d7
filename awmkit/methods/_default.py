"""Which method an unroll uses if none is given."""

from jax.core import Tracer
from jaxtyping import ScalarLike

from .._dynamics import AbstractDynamics
from ._method import AbstractMethod
from ._parallel import Parallel
from ._sequential import Sequential


def default_method(dynamics: AbstractDynamics, t: ScalarLike = 0) -> AbstractMethod:
    """Return the method that `unroll` and `unroll_grad` use by default.

    It is `Parallel()` if `dynamics.parallel`, as for an AWM with a transformer, and `Sequential()` otherwise.

    **Arguments:** `dynamics`: a simulator or a world model. `t`: index of the first step; if it is traced, the method is
    `Sequential()`, because `Parallel` needs a Python int.
    """
    return Parallel() if dynamics.parallel and not isinstance(t, Tracer) else Sequential()
