"""The healthy ranges of Gymnasium's MuJoCo bodies, against the environments' own ends."""

import functools
import inspect

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from misuse import says

from awmkit.gym import healthy
from awmkit.gym._healthy import ENVIRONMENTS

RANGED = ["Hopper-v5", "Walker2d-v5", "Ant-v5", "Humanoid-v5"]


@functools.cache
def environment(id):
    return gymnasium.make(id).unwrapped


def evaluated(id, observations, width=None):
    rule = healthy(id, width)
    return np.asarray(jax.vmap(lambda o: rule(o, None, 0, o))(jnp.asarray(observations)))


def episodes(env, count, steps):
    """Observations and ends of random episodes."""
    observations, ends = [], []
    env.action_space.seed(0)
    for seed in range(count):
        env.reset(seed=seed)
        for _ in range(steps):
            observation, _, terminated, *_ = env.step(env.action_space.sample())
            observations.append(observation)
            ends.append(terminated)
            if terminated:
                break
    return np.stack(observations), np.array(ends)


@pytest.mark.parametrize("id", ENVIRONMENTS)
def test_the_hard_rule_ends_random_episodes_where_the_environment_does(id):
    # An ant falls over, but seldom leaves its range.
    observations, ends = episodes(environment(id), *((3, 100) if id == "Ant-v5" else (12, 80)))
    differs = evaluated(id, observations) != ends
    if id == "InvertedDoublePendulum-v5":  # The environment reads the tip of an earlier time.
        _, s1, s2, c1, c2 = observations[differs, :5].T
        assert differs.sum() <= 2 and (np.abs(0.6 * (c1 + c1 * c2 - s1 * s2) - 1) < 0.01).all()
    else:
        assert not differs.any()
    assert not ends.all() and (ends.any() or id == "Ant-v5")


@pytest.mark.parametrize("id", RANGED)
def test_the_hard_rule_has_the_bounds_of_the_environments_class(id):
    env = environment(id)
    bounds = {p.name: p.default for p in inspect.signature(type(env)).parameters.values() if "healthy" in p.name}
    place = env.observation_structure["skipped_qpos"]
    env.reset(seed=0)
    observations, ends = [], []
    for name, entry in [("healthy_z_range", 0), ("healthy_angle_range", 1), ("healthy_state_range", 2)]:
        for bound in filter(np.isfinite, bounds.get(name, ())):
            for moved in (np.nextafter(bound, -np.inf), bound, np.nextafter(bound, np.inf)):
                positions = env.init_qpos.copy()
                positions[place] = max(positions[place], 1.25 if id == "Hopper-v5" else 0)
                positions[place + entry] = moved
                env.set_state(positions, env.init_qvel)
                observations.append(env._get_obs())
                ends.append(not env.is_healthy)
    assert evaluated(id, observations).tolist() == ends and 2 < len(ends) > sum(ends) > 1


@pytest.mark.parametrize("id", ENVIRONMENTS)
def test_the_smooth_rule_is_a_probability_with_a_gradient_and_tends_to_the_hard_one(id):
    observations, _ = episodes(environment(id), 2, 8)
    hard, wide, narrow = (evaluated(id, observations, width) for width in (None, 0.1, 1e-5))
    assert wide.dtype == float and (0 <= wide).all() and (wide <= 1).all() and hard.dtype == bool
    np.testing.assert_allclose(narrow, hard, atol=1e-3)
    state = jnp.asarray(observations[0])
    p = jax.jit(lambda state, width: healthy(id, width)(state, None, 0, state))
    direction = jax.random.normal(jax.random.key(0), state.shape)
    slope = (p(state + 1e-6 * direction, 0.1) - p(state - 1e-6 * direction, 0.1)) / 2e-6
    np.testing.assert_allclose(jax.grad(p)(state, 0.1) @ direction, slope, rtol=1e-4)
    assert abs(slope) > 1e-7


def test_a_probability_is_one_half_at_a_single_bound_and_does_not_overflow_far_away():
    at = lambda height, width: evaluated("Hopper-v5", [[height, *[0.0] * 10]], width)[0]
    np.testing.assert_allclose([at(0.7, 0.01), at(-1e6, 0.01), at(1e6, 0.01)], [0.5, 1, 0], atol=1e-7)
    observation = jnp.zeros(11).at[0].set(1e6)
    slope = jax.grad(lambda o: healthy("Hopper-v5", 1e-3)(o, None, 0, o))(observation)
    assert jnp.isfinite(slope).all() and evaluated("Hopper-v5", [[np.nan] * 11])[0]


MISUSES = {
    "an environment without a rule": (lambda: healthy("Reacher-v5"), "env_id must be one of Hopper-v5.*got 'Reacher-v5'; for"),
    "no width": (lambda: healthy("Hopper-v5", 0), "must be one positive number, got 0; give 0.05"),
    "a width of NaN": (lambda: healthy("Hopper-v5", float("nan")), "must be one positive number, got nan"),
    "two widths": (lambda: healthy("Hopper-v5", jnp.ones(2)), r"must be one positive number, got float64\[2\]"),
    "a state of MuJoCo": (
        lambda: healthy("Hopper-v5")(None, None, 0, jnp.zeros(12)),
        r"healthy needs next_state of shape \(11,\), got .*\[12\]; give one observation",
    ),
}


@pytest.mark.parametrize("name", MISUSES)
def test_misuse_raises_one_clear_sentence(name):
    says(*MISUSES[name])
