"""`fit` finds the parameters of a simulator, and `prediction_error` measures any model in units of the data."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from awmkit import AbstractDynamics, AbstractTrainable, fit, NoProgress, prediction_error, RewardModel, Trajectory, unroll
from awmkit.learning._prediction_error import _interval

KEY = jax.random.key(0)
LENGTHS = jnp.array([5, 3, 12, 30, 17, 30, 8, 21] * 3)


class Pendulum(AbstractDynamics):
    """A damped pendulum that is driven by a torque; state (angle, speed)."""

    drag: jax.Array = eqx.field(converter=jnp.asarray)
    stiffness: jax.Array = eqx.field(converter=jnp.asarray)
    state_size: int = eqx.field(static=True, default=2)
    action_size: int = eqx.field(static=True, default=1)

    def step(self, carry, state, action, t, *, key=None):
        angle, speed = state
        speed = speed + 0.1 * (action[0] - self.stiffness * jnp.sin(angle) - self.drag * speed)
        return carry, jnp.stack([angle + 0.1 * speed, speed])


def noisy_episodes(noise: float) -> Trajectory:
    keys = jax.random.split(KEY, 3)
    starts = jax.random.normal(keys[0], (LENGTHS.size, 2))
    plans = jax.random.uniform(keys[1], (LENGTHS.size, 30, 1), minval=-1.0)
    true = jax.vmap(lambda s, plan: unroll(Pendulum(0.3, 4.0), plan, s, 30))(starts, plans)
    errors = noise * true.states.std(axis=(0, 1)) * jax.random.normal(keys[2], true.states.shape)
    padding = jnp.arange(31) > LENGTHS[:, None]
    states = jnp.where(padding[..., None], jnp.nan, true.states + errors)
    return Trajectory(states, true.actions, length=LENGTHS)


@pytest.fixture(autouse=True)
def optax_promotes():
    with jax.numpy_dtype_promotion("standard"):
        yield


def test_drag_and_stiffness_of_a_driven_pendulum_are_recovered_from_noisy_episodes_by_one_call():
    optimiser = optax.adam(optax.cosine_decay_schedule(0.1, 150))
    options = {"key": KEY, "window": 10, "updates": 150, "batch_size": 32, "optimiser": optimiser, "progress": NoProgress()}
    result = fit(Pendulum(1.0, 2.0), noisy_episodes(0.02), **options)
    assert isinstance(result.model, Pendulum)
    np.testing.assert_allclose([result.model.drag, result.model.stiffness], [0.3, 4.0], rtol=0.02)
    assert result.held_out.shape == (10,) and result.held_out.max() < 0.01


class Cubic(AbstractDynamics):
    """Grows beyond any number within a few steps unless the actions hold it back."""

    rate: jax.Array
    state_size: int = eqx.field(static=True, default=1)
    action_size: int = eqx.field(static=True, default=1)

    def step(self, carry, state, action, t, *, key=None):
        return carry, self.rate * state**3 + action


def test_a_simulator_that_overflows_after_the_end_of_an_episode_is_fitted_to_what_happened():
    episode = lambda *x: {"states": jnp.array(x)[:, None], "actions": jnp.zeros((len(x) - 1, 1))}
    episodes = Trajectory.from_episodes([episode(2.0, 8.0), episode(2.0, 8.0), episode(0.1, 1e-3, *[0.0] * 18)])
    result = fit(Cubic(jnp.array(0.9)), episodes, key=KEY, updates=3, batch_size=2, holdout=0.0, progress=NoProgress())
    assert jnp.isfinite(result.losses).all() and jnp.isfinite(result.model.rate)


class Wrong(AbstractTrainable):
    """Predicts the states with an error of sign_of_episode * step * (1, 10)."""

    state_size: int = eqx.field(static=True, default=2)
    action_size: int = eqx.field(static=True, default=1)

    def loss(self, episode):
        return jnp.zeros(())

    def target(self, episodes):
        return episodes.filled().states[..., 1:, :]

    def prediction(self, episode):
        return self.target(episode) + (1.0 + episode.steps[:, None]) * jnp.array([1.0, -10.0])


def test_the_prediction_error_is_the_root_mean_square_at_each_step_of_the_episodes_that_reach_it():
    episodes = noisy_episodes(0.0)
    error = prediction_error(Wrong(), episodes)
    steps = jnp.arange(1.0, 31)[:, None] * jnp.array([1.0, 10.0])
    np.testing.assert_allclose(error.rmse, steps)
    np.testing.assert_allclose(error.low, steps)  # All episodes have the same error.
    assert (error.episodes == [(LENGTHS >= n).sum() for n in range(1, 31)]).all()
    states = jnp.concatenate([x[1 : n + 1] for x, n in zip(episodes.states, LENGTHS, strict=True)])
    np.testing.assert_allclose(error.deviation, states.std(axis=0))
    assert len(str(error).splitlines()) == 9 and "relative" in str(error)
    in_windows = prediction_error(Wrong(), episodes, window=4)
    starts = [np.arange(0, n, 4) for n in LENGTHS]  # A window's t counts from the beginning of its episode.
    squares = [np.concatenate([s for s, n in zip(starts, LENGTHS, strict=True)]) + 1.0]
    np.testing.assert_allclose(in_windows.rmse[0, 0] ** 2, np.mean(squares[0] ** 2))
    assert in_windows.rmse.shape == (4, 2) and in_windows.episodes[0] == LENGTHS.size


def test_simulators_and_reward_models_have_a_prediction_error_too():
    episodes = noisy_episodes(0.0)
    assert prediction_error(Pendulum(0.3, 4.0), episodes).relative.max() < 1e-9
    rewards = jnp.broadcast_to(jnp.arange(30.0) ** 2, (LENGTHS.size, 30))
    episodes = eqx.tree_at(lambda e: e.rewards, episodes, rewards, is_leaf=lambda x: x is None)
    model = RewardModel(2, 1, width=4, depth=0, key=KEY)
    assert prediction_error(model, episodes, window=5).rmse.shape == (5, 1)


def test_intervals_over_episodes_contain_the_true_error_in_19_of_20_samples():
    rng = np.random.default_rng(0)
    happened = rng.integers(1, 6, (25, 2000, 1)).astype(float)  # Windows at this step in each of 25 episodes.
    size = rng.gamma(9.0, size=happened.shape)  # The windows of one episode have errors of one size.
    rmse, low, high = _interval(happened * size**2, happened)
    true = np.sqrt(90.0)  # The mean square of a gamma variable with shape 9.
    assert 0.92 < np.mean((low <= true) & (true <= high)) < 0.97 and (low > 0).all()
    rmse, low, high = _interval(np.ones((1, 3, 2)), np.ones((1, 3, 1)))
    assert (rmse == 1).all() and (low == 0).all() and (high == np.inf).all()
    assert (np.array(_interval(np.zeros((4, 3, 2)), np.ones((4, 3, 1)))) == 0).all()
