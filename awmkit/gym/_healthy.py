"""The rules by which Gymnasium's MuJoCo environments end an episode, on their observations."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
from jaxtyping import Array, Scalar, ScalarLike

from .._checks import check_floats, check_shapes
from ..tasks._healthy import ant, double_pendulum, Healthy, hopper, humanoid, pendulum, walker


def healthy(env_id: str, width: ScalarLike | None = None) -> "HealthyObservation":
    """Return the rule by which one of Gymnasium's MuJoCo environments ends an episode, as a function of observations.

    The environments end an episode where the body leaves its healthy range. A model of the environment ends there too if the rule
    is its `termination`:

    ```python
    task = GymnasiumTask(gymnasium.make("Hopper-v5"))
    ends = healthy("Hopper-v5", 0.05)
    result = train(task, model, policy, reward=RewardModel(11, 3, key=k1), termination=ends, key=k2, steps=50_000)
    ```

    Without `width` the rule is hard: it returns whether `next_state` is outside of the range, as the environment with its default
    arguments does, which has no gradient. With a width w it returns the probability

        p = 1 - prod_i sigmoid(d_i / w)

    where d_i are the distances to the bounds, positive inside of the range. Its gradient says how to stay healthy. At a bound
    p = 1/2, and 5 w inside of it p is below 1 %, so choose w well below the size of the range.

    | environment | healthy range of the next state |
    | --- | --- |
    | `"Hopper-v5"` | height of the torso above 0.7 m, angle within 0.2 rad, every other entry within 100 |
    | `"Walker2d-v5"` | height of the torso from 0.8 to 2 m, angle within 1 rad |
    | `"InvertedPendulum-v5"` | angle of the pole within 0.2 rad |
    | `"InvertedDoublePendulum-v5"` | height of the tip above 1 m |
    | `"Ant-v5"` | height of the torso from 0.2 to 1 m |
    | `"Humanoid-v5"` | height of the torso from 1 to 2 m |

    An observation that is not finite ends the episode by every hard rule. In two cases the observation does not tell all that the
    environment reads. Hopper's observed speeds are clipped at 10, so one above 100 does not end the episode. MuJoCo computes the
    double pendulum's tip before the last part of its last substep, so the ends differ where the tip is within a few mm of 1 m.

    **Arguments**

    - `env_id`: a name in the table.
    - `width`: w, in metres and radians, positive; it may be traced. `None`, the default, for the hard rule.

    **Returns:** the rule, called as `terminates(state, action, t, next_state)`.

    **Raises:** `ValueError` if `env_id` is not in the table, or `width` is not one positive number; when called, if `next_state` is
    not one observation of the environment with its default arguments.
    """
    if env_id not in ENVIRONMENTS:
        raise ValueError(
            f"env_id must be one of {', '.join(ENVIRONMENTS)}, got {env_id!r}; for another environment write its rule "
            "terminates(state, action, t, next_state), or fit an awmkit.TerminationModel."
        )
    size, margins, closed = ENVIRONMENTS[env_id]
    return HealthyObservation(Healthy(margins, closed, width), size)  # pyright: ignore[reportArgumentType]


class HealthyObservation(eqx.Module):
    """A rule on observations of one size."""

    rule: Healthy
    size: int = eqx.field(static=True)

    def __call__(self, state, action, t, next_state):
        check_shapes("healthy", "give one observation of the environment", next_state=(next_state, (self.size,)))
        check_floats("healthy", next_state=next_state)
        return self.rule(state, action, t, next_state)


class Observed(NamedTuple):
    """The size of an observation, the margins of its healthy range, and whether the bounds are healthy."""

    size: int
    margins: Callable[[Array], Array]
    closed: bool = False


def tip(observation: Array) -> Scalar:
    """The height of the double pendulum's tip, from the sines and cosines of its two angles."""
    s1, s2, c1, c2 = observation[1:5]
    return 0.6 * (c1 + c1 * c2 - s1 * s2)


ENVIRONMENTS = {
    "Hopper-v5": Observed(11, hopper),
    "Walker2d-v5": Observed(17, walker),
    "InvertedPendulum-v5": Observed(4, pendulum, closed=True),
    "InvertedDoublePendulum-v5": Observed(9, lambda observation: double_pendulum(tip(observation))),
    "Ant-v5": Observed(105, ant, closed=True),
    "Humanoid-v5": Observed(348, humanoid),
}
