"""Gymnasium's MuJoCo environments in JAX: files, frame skips, rewards, initial states and ends.

They follow gymnasium/envs/mujoco/*_v5.py with default arguments.
"""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Scalar

from .._norms import norm
from .._reward import Reward
from ..tasks._healthy import double_pendulum, Healthy, hopper, pendulum, walker


class Uniform(eqx.Module):
    """Initial states uniform within `spread` of `positions` at rest."""

    positions: tuple[float, ...]
    speeds: int
    spread: float

    def __call__(self, key: PRNGKeyArray) -> Float[Array, " S"]:
        centre = jnp.array([*self.positions, *[0.0] * self.speeds])
        return centre + jax.random.uniform(key, centre.shape, minval=-self.spread, maxval=self.spread)


class NormalSpeeds(eqx.Module):
    """Initial positions uniform within `spread` of `positions`, and normal speeds of standard deviation `spread`."""

    positions: tuple[float, ...]
    spread: float

    def __call__(self, key: PRNGKeyArray) -> Float[Array, " S"]:
        for_positions, for_speeds = jax.random.split(key)
        size = (len(self.positions),)
        positions = jax.random.uniform(for_positions, size, minval=-self.spread, maxval=self.spread)
        speeds = self.spread * jax.random.normal(for_speeds, size)
        return jnp.concatenate([jnp.array(self.positions) + positions, speeds])


class NearTarget(eqx.Module):
    """Initial states of Reacher: an almost straight arm almost at rest, and a fixed target uniform in a disc of 0.2 m."""

    def __call__(self, key: PRNGKeyArray) -> Float[Array, " 8"]:
        for_arm, for_target, for_speeds = jax.random.split(key, 3)
        arm = jax.random.uniform(for_arm, (2,), minval=-0.1, maxval=0.1)
        target = 0.2 * jax.random.ball(for_target, 2)
        speeds = jax.random.uniform(for_speeds, (2,), minval=-0.005, maxval=0.005)
        return jnp.concatenate([arm, target, speeds, jnp.zeros(2)])


# The rules read (qpos, qvel). The ranges of Hopper and Walker2d begin with the height, after the position along x.
UPRIGHT = Healthy(pendulum, closed=True)
BALANCED = Healthy(lambda state: double_pendulum(tip(state)[1]))
HOPPING = Healthy(lambda state: hopper(state[1:]))
WALKING = Healthy(lambda state: walker(state[1:]))


def while_healthy(rule: Healthy, reward: float, state: Float[Array, " S"]) -> Scalar:
    """The reward for being healthy. Its derivative is zero wherever it exists."""
    return jnp.where(rule.is_healthy(state), reward, 0.0).astype(state.dtype)


def upright(state, action, t, next_state):
    """InvertedPendulum: 1 while the pole is within 0.2 rad of upright."""
    return while_healthy(UPRIGHT, 1.0, next_state)


def tip(state: Float[Array, " 6"]) -> tuple[Scalar, Scalar]:
    """The position of the double pendulum's tip along x and its height."""
    cart, th1, th2 = state[:3]
    return cart + 0.6 * (jnp.sin(th1) + jnp.sin(th1 + th2)), 0.6 * (jnp.cos(th1) + jnp.cos(th1 + th2))


def balanced(state, action, t, next_state):
    """InvertedDoublePendulum: 10 while the tip is above 1 m, minus costs of its distance from (0, 2) and of the joints' speeds."""
    (x, z), (w1, w2) = tip(next_state), next_state[4:]
    return while_healthy(BALANCED, 10.0, next_state) - 0.01 * x**2 - (z - 2) ** 2 - 1e-3 * w1**2 - 5e-3 * w2**2


def reached(state, action, t, next_state):
    """Reacher: minus the distance from fingertip to target, minus |a|^2. The gradient of a distance of 0 is 0, not NaN."""
    th1, th2, *target = next_state[:4]
    x = 0.1 * jnp.cos(th1) + 0.11 * jnp.cos(th1 + th2) - target[0]
    y = 0.1 * jnp.sin(th1) + 0.11 * jnp.sin(th1 + th2) - target[1]
    return -norm(jnp.stack([x, y])) - jnp.sum(action**2)


class Forward(eqx.Module):
    """Swimmer and HalfCheetah: speed along x in m/s, minus `cost` |a|^2."""

    dt: float
    cost: float

    def __call__(self, state, action, t, next_state):
        return (next_state[0] - state[0]) / self.dt - self.cost * jnp.sum(action**2)


class Hopping(eqx.Module):
    """Hopper: speed along x in m/s, minus 0.001 |a|^2, plus 1 while it is healthy.

    It is healthy while its torso is above 0.7 m and within 0.2 rad of upright, and no other entry of the state exceeds 100.
    """

    dt: float

    def __call__(self, state, action, t, next_state):
        return Forward(self.dt, 1e-3)(state, action, t, next_state) + while_healthy(HOPPING, 1.0, next_state)


class Walking(eqx.Module):
    """Walker2d: speed along x in m/s, minus 0.001 |a|^2, plus 1 while its torso is between 0.8 and 2 m and within 1 rad of upright."""

    dt: float

    def __call__(self, state, action, t, next_state):
        return Forward(self.dt, 1e-3)(state, action, t, next_state) + while_healthy(WALKING, 1.0, next_state)


class Body(NamedTuple):
    """The MJCF file among Gymnasium's assets, the number of MuJoCo's steps per step, reward(dt), reset(qpos0), and the hard rule
    by which episodes end."""

    file: str
    frame_skip: int
    reward: Callable[[float], Reward]
    reset: Callable[[tuple[float, ...]], Callable[[PRNGKeyArray], Array]]
    terminates: Healthy | None = None


BODIES = {
    "InvertedPendulum-v5": Body("inverted_pendulum.xml", 2, lambda dt: upright, lambda q: Uniform(q, 2, 0.01), UPRIGHT),
    "InvertedDoublePendulum-v5": Body(
        "inverted_double_pendulum.xml", 5, lambda dt: balanced, lambda q: NormalSpeeds(q, 0.1), BALANCED
    ),
    "Reacher-v5": Body("reacher.xml", 2, lambda dt: reached, lambda q: NearTarget()),
    "Swimmer-v5": Body("swimmer.xml", 4, lambda dt: Forward(dt, 1e-4), lambda q: Uniform(q, 5, 0.1)),
    "Hopper-v5": Body("hopper.xml", 4, Hopping, lambda q: Uniform(q, 6, 0.005), HOPPING),
    "HalfCheetah-v5": Body("half_cheetah.xml", 5, lambda dt: Forward(dt, 0.1), lambda q: NormalSpeeds(q, 0.1)),
    "Walker2d-v5": Body("walker2d_v5.xml", 4, Walking, lambda q: Uniform(q, 9, 0.005), WALKING),
}
