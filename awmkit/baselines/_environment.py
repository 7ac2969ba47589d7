"""A task as the functional environment that rejax trains on."""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from gymnax.environments.spaces import Box
from jax import lax
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Scalar, ScalarLike, Shaped
from rejax.buffers import Minibatch

from .._checks import check_shapes
from .._dynamics import AbstractTask
from .._normaliser import Normaliser
from .._policies import features
from .._termination import rule_of
from .._trajectory import Trajectory
from ..tasks._episode import Episode, start_episode, step_episode


class FunctionalEnv(eqx.Module):
    """A task in gymnax's calling convention, which rejax expects. After the end of an episode it starts the next one by itself.

    **Fields**

    - `task`: any task that JAX can trace.
    - `input_norm`: normalises the states that the learner observes.
    - `reward_shift`, `reward_scale`: the learner's reward is (r_t - reward_shift_t) reward_scale. Shape (H,) and a scalar.
    - `squash`: maps the learner's actions, which are within `limit`, to [-1, 1].

    The argument `params` of its methods belongs to the calling convention and is not used.
    """

    task: AbstractTask
    input_norm: Normaliser
    reward_shift: Float[Array, " H"]
    reward_scale: Float[Array, ""]
    squash: Callable = eqx.field(static=True)
    limit: float = eqx.field(static=True)
    default_params: ClassVar[None] = None

    def __check_init__(self):
        shapes = {"reward_shift": (self.reward_shift, (self.task.horizon,)), "reward_scale": (self.reward_scale, ())}
        shapes["input_norm.shift"] = self.input_norm.shift, (self.task.state_size,)
        check_shapes("FunctionalEnv", "give one number for each step of an episode and entry of a state", **shapes)

    @classmethod
    def from_warmup(
        cls, task: AbstractTask, episodes: Trajectory, reward_scale: ScalarLike | None, *, squash: Callable, limit: float
    ) -> "FunctionalEnv":
        """Take the statistics of states and rewards from `episodes`.

        The shift is the mean reward of each step, or 0 for a task that may end early, where a shift would change which policy is
        best. The scale is by default one over the standard deviation of the rewards-to-go.
        """
        _check(task, episodes)
        episodes = episodes.filled()
        assert episodes.rewards is not None
        input_norm = Normaliser(task.state_size).fitted(_repeated(episodes, episodes.states[:, :-1]))
        shift = jnp.mean(episodes.rewards, axis=0) if rule_of(task) is None else jnp.zeros_like(episodes.rewards[0])
        to_go = lax.cumsum(episodes.rewards - shift, axis=1, reverse=True)
        scale = (
            1 / Normaliser(1).fitted(_repeated(episodes, to_go)[..., None]).scale[0] if reward_scale is None else reward_scale
        )
        return cls(task, input_norm, shift, jnp.asarray(scale, shift.dtype), squash, limit)

    def reset(self, key: PRNGKeyArray, params: Any = None) -> tuple[Float[Array, " O"], Episode]:
        """Start an episode. Returns its first observation and the episode."""
        episode = start_episode(self.task, key)
        return self.observe(episode.state, 0), episode

    def step(
        self, key: PRNGKeyArray, state: Episode, action: Float[Array, " A"], params: Any = None
    ) -> tuple[Float[Array, " O"], Episode, Scalar, Bool[Array, ""], dict]:
        """Make one step. Returns the observation, the episode, the reward, whether the episode ended, and an empty dict.

        At the end of an episode the observation and the episode are those of the next one.
        """
        check_shapes("FunctionalEnv.step", action=(action, (self.task.action_size,)))
        step_key, reset_key = jax.random.split(key)
        episode, reward = step_episode(self.task, state, self.squash(action), step_key)
        reward = (reward - self.reward_shift[state.t]) * self.reward_scale
        done = (episode.t == self.task.horizon) | episode.ended
        moved = self.observe(episode.state, episode.t), episode
        observation, episode = jtu.tree_map(lambda new, old: jnp.where(done, new, old), self.reset(reset_key), moved)
        return observation, episode, reward, done, {}

    def observe(self, state: Float[Array, " S"], t: ScalarLike) -> Float[Array, " O"]:
        """The learner's observation: what the network of an awmkit policy with a horizon reads, shape (S+2,)."""
        check_shapes("FunctionalEnv.observe", state=(state, (self.task.state_size,)), t=(t, ()))
        return features(self.input_norm(state), t, self.task.horizon)

    def transitions(self, episodes: Trajectory) -> Minibatch:
        """All steps of N whole episodes as the N H rows of a rejax replay buffer, with actions in [-1, 1].

        The steps of an episode that ended early are repeated in place of those after its end.
        """
        _check(self.task, episodes)
        episodes = episodes.filled()
        times = jnp.arange(self.task.horizon + 1)
        observations = jax.vmap(jax.vmap(self.observe), in_axes=(0, None))(episodes.states, times)
        assert episodes.rewards is not None
        rewards = (episodes.rewards - self.reward_shift) * self.reward_scale
        done = jnp.broadcast_to(times[1:] == self.task.horizon, rewards.shape)
        if episodes.length is not None and episodes.terminated is not None:
            done |= (times[1:] == episodes.length[:, None]) & episodes.terminated[:, None]
        rows = Minibatch(observations[:, :-1], episodes.actions, rewards, done, observations[:, 1:])
        return jtu.tree_map(lambda x: _repeated(episodes, x).reshape(-1, *x.shape[2:]), rows)

    def observation_space(self, params: Any = None) -> Box:
        """The space of observations, of S+2 numbers."""
        return Box(-jnp.inf, jnp.inf, (self.task.state_size + 2,), jnp.result_type(float))

    def action_space(self, params: Any = None) -> Box:
        """The space of the learner's actions, before `squash`."""
        return Box(-self.limit, self.limit, (self.task.action_size,), jnp.result_type(float))


def _repeated(episodes: Trajectory, x: Shaped[Array, "N H ..."]) -> Shaped[Array, "N H ..."]:
    """Return what belongs to each step, with the steps of a short episode again in place of its padding."""
    if episodes.length is None:
        return x
    steps = jnp.arange(x.shape[1]) % episodes.length[:, None]
    return jax.vmap(lambda x, steps: x[steps])(x, steps)


def _check(task: AbstractTask, episodes: Trajectory) -> None:
    """Raise unless these are N whole episodes of the task, with rewards."""
    S, A, H = task.state_size, task.action_size, task.horizon
    check_shapes(
        "FunctionalEnv",
        "pass whole episodes of the task, with rewards",
        states=(episodes.states, ("N", H + 1, S)),
        actions=(episodes.actions, ("N", H, A)),
        rewards=(episodes.rewards, ("N", H)),
    )
