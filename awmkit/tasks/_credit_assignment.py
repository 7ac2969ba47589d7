"""Credit assignment: one action matters, and is paid for at the end of the episode, behind distractions.

Apart from the other tasks because nothing moves in it: it measures memory over a delay and nothing else.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp

from .._dynamics import AbstractTask


class CreditAssignment(AbstractTask):
    """Choose a_0 well; it is rewarded H-1 steps later, and in between a random number wants to be tracked.

    The state is (a_0, y): the stored first action, and the distractor, drawn anew from a normal distribution at each step.
    Steps 1 to H-2 pay -distraction (y_t - a_t)^2 / H; the last one pays max(-20 (a_0 - 0.5)^2 + 10, -10). Best is a_0 = 0.5,
    and then y_t, clipped to [-1, 1]. `unroll` needs a key.

    **Arguments**

    - `horizon`: H, at least 2.
    - `distraction`: weight of what the distractor pays; 0 leaves the delay alone.
    - `scale`: standard deviation of the distractor.
    - `reward_noise`: standard deviation of a noise on each step's reward. It is an entry of the state, drawn anew.
    - `phase`: one more entry, 1 at the step that matters and -1 after it.
    - `hidden`: the stored action is not seen (0) before the last state, where it shows: a partially observed task. The
      memory is then in the carry, so that no model that knows the last state only can predict the reward.

    **Raises:** `ValueError` for a horizon below 2 or a negative scale, weight or noise.
    """

    distraction: float
    scale: float
    reward_noise: float
    phase: bool = eqx.field(static=True)
    hidden: bool = eqx.field(static=True)
    horizon: int = eqx.field(static=True)
    state_size: int = eqx.field(static=True)
    action_size: int = eqx.field(static=True)

    def __init__(
        self,
        horizon: int = 20,
        *,
        distraction: float = 1.0,
        scale: float = 1.0,
        reward_noise: float = 0.0,
        phase: bool = False,
        hidden: bool = False,
    ):
        if horizon < 2:
            raise ValueError(f"The horizon is {horizon}; an action and a later reward for it need at least 2 steps.")
        if min(distraction, scale, reward_noise) < 0:
            given = f"distraction={distraction}, scale={scale}, reward_noise={reward_noise}"
            raise ValueError(f"CreditAssignment got {given}; each must be at least 0.")
        self.distraction, self.scale, self.reward_noise = distraction, scale, reward_noise
        self.phase = phase
        self.hidden = hidden
        self.horizon = horizon
        self.state_size = 2 + (reward_noise > 0) + phase
        self.action_size = 1

    @property
    def bounds(self):
        high = (math.inf,) * (self.state_size - self.phase) + (1.0,) * self.phase
        return tuple(-x for x in high), high

    def init(self, state, horizon):
        del horizon
        return jnp.zeros_like(state[0]) if self.hidden else None

    def step(self, carry, state, action, t, *, key=None):
        if key is None:
            raise ValueError("CreditAssignment draws its distractor at random; give the unroll a key=jax.random.key(seed).")
        t = jnp.asarray(t)
        first = jnp.where(t == 0, action[0], carry if self.hidden else state[0])
        shown = jnp.where(t + 1 == self.horizon - 1, first, 0) if self.hidden else first
        return (first if self.hidden else None), self._state(shown, -1.0, key)

    def reward(self, state, action, t):
        t, first, y = jnp.asarray(t), state[0], state[1]
        distraction = -self.distraction * (y - action[0]) ** 2 / self.horizon
        payoff = jnp.maximum(-20 * (first - 0.5) ** 2 + 10, -10)
        paid = jnp.where(t == self.horizon - 1, payoff, jnp.where(t == 0, 0, distraction))
        return paid + self.reward_noise * state[2] if self.reward_noise > 0 else paid

    def reset(self, key):
        return self._state(jnp.zeros(()), 1.0, key)

    def _state(self, first, phase, key):
        draws = jax.random.normal(key, (1 + (self.reward_noise > 0),), first.dtype).at[0].multiply(self.scale)
        return jnp.concatenate([first[None], draws, jnp.full(int(self.phase), phase, first.dtype)])
