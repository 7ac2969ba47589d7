"""The termination model: its targets, the start of its output, and the calibration of its probabilities."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from awmkit import fit, NoProgress, TerminationModel, Trajectory

KEY = jax.random.key(0)
HORIZON = 12


def probability(next_state):
    """The true probability of ending at a state, between 0.002 and 0.75."""
    return 0.75 * jax.nn.sigmoid(3 * next_state[..., 0] - 4)


def ending_episodes(count: int, key) -> Trajectory:
    """Random walks that end with the probability of the state they reach; about one step of 20 is an end."""
    walk_key, end_key = jax.random.split(key)
    actions = jax.random.uniform(walk_key, (count, HORIZON, 1), minval=-1.0)
    states = jnp.cumsum(jnp.concatenate([jnp.zeros((count, 1, 1)), 0.7 * actions], axis=1), axis=1)
    ends = jax.random.uniform(end_key, (count, HORIZON)) < probability(states[:, 1:])
    length = jnp.where(ends.any(axis=1), jnp.argmax(ends, axis=1) + 1, HORIZON)
    return Trajectory(states, actions, length=length, terminated=ends.any(axis=1))


def test_the_last_step_of_a_terminated_episode_is_an_end_and_the_output_starts_at_the_log_odds_of_the_data():
    episodes = ending_episodes(50, KEY)
    model = TerminationModel(1, 1, width=8, depth=1, key=KEY).normalised(episodes)
    ends = model.target(episodes)[..., 0]
    assert (ends.sum(axis=1).astype(bool) == episodes.terminated).all() and 10 < ends.sum() < 50
    assert (jnp.argmax(ends, axis=1) + 1 == episodes.length)[episodes.terminated].all()
    rate = (float(ends.sum()) + 0.5) / (int(episodes.length.sum()) + 1)
    np.testing.assert_allclose(jax.nn.sigmoid(model.output_norm.shift), [rate])
    never = Trajectory(episodes.states, episodes.actions)
    assert (model.target(never) == 0).all()
    assert 0 < float(jax.nn.sigmoid(model.normalised(never).output_norm.shift[0])) < 1e-3


@pytest.mark.parametrize("logit", [-90.0, 0.3, 90.0])
def test_the_loss_is_the_negative_log_likelihood_of_the_ends_and_finite_for_sure_predictions(logit):
    model = TerminationModel(1, 1, width=4, depth=0, key=KEY)
    zero = jax.tree.map(jnp.zeros_like, model.network.leave)  # So that the output is a constant.
    model = eqx.tree_at(lambda m: (m.network.leave, m.output_norm.shift), model, (zero, jnp.array([logit])))
    episode = Trajectory(jnp.zeros((5, 1)), jnp.zeros((4, 1)), length=jnp.array(3), terminated=jnp.array(True))
    losses, slope = jax.value_and_grad(lambda shift: jnp.logaddexp(0.0, shift))(logit)
    np.testing.assert_allclose(model.loss(episode), losses - logit / 3, rtol=1e-12)
    assert jnp.isfinite(slope)
    p = jax.nn.sigmoid(logit)
    np.testing.assert_allclose(model(jnp.zeros(1), jnp.zeros(1), 0, jnp.zeros(1)), p, rtol=1e-12)


def test_probabilities_are_calibrated_on_held_out_episodes():
    model = TerminationModel(1, 1, width=16, depth=1, key=KEY)
    with jax.numpy_dtype_promotion("standard"):
        options = {"updates": 200, "batch_size": 128, "optimiser": optax.adam(optax.cosine_decay_schedule(1e-2, 200))}
        episodes = ending_episodes(3000, jax.random.key(1))
        model = fit(model, episodes, key=KEY, **options, holdout=0.0, progress=NoProgress()).model
    held_out = ending_episodes(3000, jax.random.key(2))
    mask = np.asarray(held_out.mask)
    predicted, true, ended = (
        np.asarray(x)[mask]
        for x in (
            jax.jit(jax.vmap(lambda e: model.prediction(e)))(held_out)[..., 0],
            probability(held_out.states[:, 1:]),
            model.target(held_out)[..., 0],
        )
    )
    assert abs(predicted - true).mean() < 0.01
    for bin in np.array_split(np.argsort(predicted), 10):  # Reliability: as many end as are predicted to.
        rate = predicted[bin].mean()
        assert abs(ended[bin].mean() - rate) < 0.01 + 3 * np.sqrt(rate * (1 - rate) / bin.size)
