"""Which method an unroll uses if none is given."""

from jax.core import Tracer
from jaxtyping import ScalarLike

from .._dynamics import AbstractDynamics
from ._method import AbstractMethod
from ._parallel import Parallel
from ._sequential import Sequential


def default_method(dynamics: AbstractDynamics, t: ScalarLike = 0) -> AbstractMethod:
    """Return the method that `unroll` and `unroll_grad` use by default.

    It is `Parallel()` if `dynamics.parallel`, as it is for an AWM whose sequence network takes all steps at once, and otherwise
    `Sequential()`.

    Sampling by `Picard` is faster only if a few sweeps settle the actions. That depends on the model and the policy: an untrained
    transformer AWM takes 3 to 5 sweeps, one that is fitted to a driven double pendulum 11 at 100 steps and 20 to 29 at 400. Try
    `Parallel(sampling=Picard())` for long horizons on a GPU, where a scan launches the kernels of every step.

    **Arguments:** `dynamics`: a simulator or a world model. `t`: index of the first step; if it is traced, the method is
    `Sequential()`, because `Parallel` needs a Python int.
    """
    return Parallel() if dynamics.parallel and not isinstance(t, Tracer) else Sequential()
