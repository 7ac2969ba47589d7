"""The weight of the entropy bonus: a number, a schedule, or a controller that keeps the entropy at a target."""

import math
from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Scalar, ScalarLike

from ..._checks import describe
from ..._types import Number
from .._optimiser import holds
from .._sweep import number

Schedule = Number | Callable[[ScalarLike], ScalarLike]

_LARGEST_CHANGE = math.log(1e6)  # of the logarithm of the weight, from its initial value


class TargetEntropy(eqx.Module):
    """An entropy bonus whose weight is adapted to keep the policy's entropy at a target.

    Each update multiplies the weight by exp(rate * (target - entropy)): it grows while the entropy is below the target and
    shrinks while it is above. Haarnoja et al. (2018), *Soft Actor-Critic Algorithms and Applications*, section 5. The weight stays
    between 1e-6 and 1e6 times `initial_weight`. Otherwise a few updates in which the model's states explode, where a policy's
    entropy can be -1,000 nats, would make it infinite and end the learning.

    A fixed weight must be tuned to the scale of the rewards; one target works for rewards of any scale.

    ```python
    FullHorizon(entropy=TargetEntropy(optax.linear_schedule(-0.5, -4.0, 5_000)))
    ```

    **Arguments**

    - `target`: entropy per entry of an action, in nats; or a function of the number of environment steps so far that returns
      it, such as an optax schedule. Uniform actions have log 2 = 0.69 nats, and smaller values mean narrower policies. A
      target that falls from about -0.5 to -4 explores early and is nearly deterministic at the end.
    - `rate`: how fast the weight adapts, 0.1 by default.
    - `initial_weight`: the weight before the first update, 1e-3 by default.

    **Raises:** `ValueError` if `rate` or `initial_weight` is not positive.
    """

    target: Schedule = eqx.field(metadata=number())
    rate: Number = eqx.field(default=0.1, metadata=number())
    initial_weight: Number = eqx.field(default=1e-3, metadata=number())

    def __check_init__(self):
        if not callable(self.target) and not holds(self.target, np.isfinite):
            raise ValueError(f"TargetEntropy got target={describe(self.target)}; pass a number of nats, or a schedule.")
        if not all(holds(x, lambda x: (0 < x) & (x < math.inf)) for x in (self.rate, self.initial_weight)):
            given = f"rate={describe(self.rate)} and initial_weight={describe(self.initial_weight)}"
            raise ValueError(f"TargetEntropy needs a positive rate and initial_weight, got {given}.")


Entropy = Schedule | TargetEntropy


def is_zero(entropy: Entropy) -> bool:
    """Return whether there is no entropy bonus."""
    return eqx.is_array_like(entropy) and not np.any(np.asarray(entropy))


def schedule_value(schedule: Schedule, steps: ScalarLike) -> ScalarLike:
    """The value of a constant or of a schedule after `steps` environment steps."""
    return schedule(steps) if callable(schedule) else schedule


def adapted(entropy: TargetEntropy, log_weight: Scalar, measured: Scalar, steps: ScalarLike) -> Scalar:
    """Return the logarithm of the weight after an update in which the entropy per entry of an action was `measured`."""
    target = jnp.asarray(schedule_value(entropy.target, steps), measured.dtype)
    initial = jnp.log(jnp.asarray(entropy.initial_weight, log_weight.dtype))
    return jnp.clip(log_weight + entropy.rate * (target - measured), initial - _LARGEST_CHANGE, initial + _LARGEST_CHANGE)
