"""Credit assignment over a delay: the first action is rewarded at the end of the episode."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer

from .._dynamics import AbstractTask
from ._ode import as_parameter, in_dtype, is_off, Parameter, strength


class CreditAssignment(AbstractTask):
    """Choose the first action well; its reward comes H-1 steps later (Ma et al., 2024).

    In between, the actions are rewarded for following a random distractor. Use it to measure how far a model's gradient reaches
    back in time. `unroll` needs a key.

    - State: (a_0, y): the stored first action and the distractor y, a new normal draw at each step. Both are dimensionless.
      Options append the reward's noise and the phase.
    - Action: one entry.
    - Reward: 0 at t = 0; -distraction (y_t - a_t)^2 / H at steps 1 to H-2; max(10 - 20 (a_0 - 0.5)^2, -10) at the last step.
      The optimal actions are a_0 = 0.5 and then y_t clipped to [-1, 1].
    - Start: a stored action of 0 and a random y.

    **Arguments**

    - `horizon`: number of steps H, at least 2.
    - `distraction`: weight of the rewards for following the distractor; 0 removes them.
    - `scale`: standard deviation of the distractor.
    - `reward_noise`: standard deviation of the noise on each step's reward. If it is above 0, the noise is one more entry of the
      state, in units of this standard deviation.
    - `phase`: whether to append an entry that is 1 at the first step and -1 afterwards.
    - `hidden`: whether to hide the stored action, which is then 0 in all states before s_{H-1}. The task is then partially
      observed: the action is in the carry, and a Markov model cannot predict the reward.

    **Raises:** `ValueError` if `horizon` is below 2, or if `distraction`, `scale` or `reward_noise` is negative.
    """

    distraction: Parameter
    scale: Parameter
    reward_noise: Parameter
    phase: bool = eqx.field(static=True)
    hidden: bool = eqx.field(static=True)
    horizon: int = eqx.field(static=True)
    state_size: int = eqx.field(static=True)
    action_size: int = eqx.field(static=True)

    def __init__(
        self,
        horizon: int = 20,
        *,
        distraction: Parameter = 1.0,
        scale: Parameter = 1.0,
        reward_noise: Parameter = 0.0,
        phase: bool = False,
        hidden: bool = False,
    ):
        if horizon < 2:
            raise ValueError(
                f"CreditAssignment needs a horizon of at least 2 steps, one to act and one to score, got {horizon}."
            )
        if not all(isinstance(x, Tracer) or x >= 0 for x in (distraction, scale, reward_noise)):
            given = f"distraction={distraction}, scale={scale}, reward_noise={reward_noise}"
            raise ValueError(f"distraction, scale and reward_noise must be at least 0, got {given}.")
        self.distraction, self.scale, self.reward_noise = as_parameter(distraction), as_parameter(scale), strength(reward_noise)
        self.phase = phase
        self.hidden = hidden
        self.horizon = horizon
        self.state_size = 2 + (not is_off(reward_noise)) + phase
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
            raise ValueError("CreditAssignment needs a key for its random distractor; pass key=jax.random.key(seed).")
        t = jnp.asarray(t)
        first = jnp.where(t == 0, action[0], carry if self.hidden else state[0])
        shown = jnp.where(t + 1 == self.horizon - 1, first, 0) if self.hidden else first
        return (first if self.hidden else None), self._state(shown, -1.0, key)

    def reward(self, state, action, t):
        t, first, y = jnp.asarray(t), state[0], state[1]
        weight, reward_noise = in_dtype((self.distraction, self.reward_noise), state.dtype)
        distraction = -weight * (y - action[0]) ** 2 / self.horizon
        payoff = jnp.maximum(-20 * (first - 0.5) ** 2 + 10, -10)
        paid = jnp.where(t == self.horizon - 1, payoff, jnp.where(t == 0, 0, distraction))
        return paid if is_off(reward_noise) else paid + reward_noise * state[2]

    def reset(self, key):
        return self._state(jnp.zeros(()), 1.0, key)

    def _state(self, first, phase, key):
        draws = jax.random.normal(key, (1 + (not is_off(self.reward_noise)),), first.dtype)
        draws = draws.at[0].multiply(in_dtype(self.scale, first.dtype))
        return jnp.concatenate([first[None], draws, jnp.full(int(self.phase), phase, first.dtype)])
