"""The weight of the entropy bonus: a number, a schedule, or a controller that keeps the entropy at a target."""

import math
from collections.abc import Callable

import equinox as eqx
from jaxtyping import ScalarLike

Schedule = int | float | Callable[[ScalarLike], ScalarLike]


class TargetEntropy(eqx.Module):
    """An entropy bonus whose weight is adapted to keep the policy's entropy at a target.

    Each update multiplies the weight by exp(rate * (target - entropy)): it grows while the entropy is below the target and
    shrinks while it is above. Haarnoja et al. (2018), *Soft Actor-Critic Algorithms and Applications*, section 5.

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

    target: Schedule = eqx.field(static=True)
    rate: float = eqx.field(static=True, default=0.1)
    initial_weight: float = eqx.field(static=True, default=1e-3)

    def __check_init__(self):
        if not (0 < self.rate < math.inf and 0 < self.initial_weight < math.inf):
            given = f"rate={self.rate} and initial_weight={self.initial_weight}"
            raise ValueError(f"TargetEntropy needs a positive rate and initial_weight, got {given}.")


Entropy = Schedule | TargetEntropy


def schedule_value(schedule: Schedule, steps: ScalarLike) -> ScalarLike:
    """The value of a constant or of a schedule after `steps` environment steps."""
    return schedule(steps) if callable(schedule) else schedule
