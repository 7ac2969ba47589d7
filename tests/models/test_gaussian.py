"""World models with a Gaussian head: the likelihood, samples, bounds, and a fit to a linear system with noise."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from padding import episodes
from scipy.stats import norm
from systems import DYNAMICS, HORIZON, start

from awmkit import AWM, fit, GaussianHead, GRU, Markov, NoProgress, prediction_error, unroll
from awmkit._normaliser import trainable
from awmkit.tasks import LinearQuadratic

KEY = jax.random.key(0)
MODELS = [name for name in DYNAMICS if name.endswith("Gaussian")]


def test_a_deviation_is_1_before_training_and_stays_within_its_bounds():
    head = GaussianHead(lambda x: x, lowest=0.01, highest=3.0)
    deviation = lambda x: head(jnp.stack([7.0, x])).deviation[0]
    found, slopes = jax.jit(jax.vmap(jax.value_and_grad(deviation)))(jnp.array([-1e6, -5.0, -1.0, 0.0, 1.0, 5.0, 1e6]))
    np.testing.assert_allclose(found[jnp.array([0, 3, 6])], [0.01, 1.0, 3.0])
    assert (jnp.diff(found) > 0).all() and (slopes[1:-1] > 0).all() and jnp.isfinite(slopes).all()


def test_the_loss_is_the_negative_log_likelihood_of_the_steps_that_happened_and_its_gradient_is_right():
    data = episodes(0.0)
    model = AWM(2, 1, GRU(4, key=KEY), per_step=True, head=GaussianHead, key=KEY).normalised(data)
    weights, rest = eqx.partition(model, trainable(model))
    flat, unravel = ravel_pytree(weights)
    flat = flat + 0.3 * jax.random.normal(KEY, flat.shape)
    direction = jax.random.normal(jax.random.key(1), flat.shape)
    moved = lambda h: eqx.combine(unravel(flat + h * direction), rest)

    @jax.jit
    def run(h, episode):
        return jax.value_and_grad(lambda h: moved(h).loss(episode))(h), moved(h).teacher_forced(episode.states, episode.actions)

    unit = np.asarray(model.output_norm.overall)
    for episode, n in ((data[1], 3), (data[2], 7)):
        (loss, slope), predicted = run(0.0, episode)
        mean, deviation = (np.asarray(x)[:n] for x in predicted)
        density = norm.logpdf(np.asarray(episode.states)[1 : n + 1], mean, deviation) + np.log(unit)
        np.testing.assert_allclose(loss, -density.mean(), rtol=1e-10)
        difference = (run(1e-5, episode)[0][0] - run(-1e-5, episode)[0][0]) / 2e-5
        assert abs(difference) > 1e-3 and np.isclose(slope, difference, rtol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_a_sample_is_the_mean_plus_the_deviation_times_new_noise_and_only_an_awm_does_not_feed_it_back(name):
    model = DYNAMICS[name]()

    @jax.jit
    def run(state, actions, keys, others):
        begin = model.init(state, HORIZON)
        samples, changed = (model.rollout_segment(begin, state, actions, 0, keys=k)[1] for k in (keys, others))
        mean, deviation = model.teacher_forced(jnp.concatenate([state[None], samples]), actions)
        noise = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 2**31 - 1), (3,)))(keys)
        rollouts = model.open_loop(state, actions, key=KEY), model.open_loop(state, actions)
        return samples, changed, mean, deviation * noise, rollouts

    keys = jax.random.split(KEY, HORIZON)
    others = jnp.concatenate([jax.random.key(9)[None], keys[1:]])  # Only the first step has another key.
    samples, changed, mean, noise, (sampled, plain) = run(start(model), jnp.full((HORIZON, 2), 0.3), keys, others)
    np.testing.assert_allclose(samples, mean + noise, rtol=1e-10)
    assert (jnp.abs(noise) > 1e-3).all() and (samples[0] != changed[0]).all()
    assert ((samples[1:] == changed[1:]) == (not model.reads_state)).all()
    np.testing.assert_allclose(sampled, samples, rtol=1e-10)
    assert model.reads_state or np.allclose(plain, mean, rtol=1e-10)


@functools.cache
def _noisy_episodes(count: int):
    task = LinearQuadratic(jnp.array([[0.9, 0.3], [-0.3, 0.9]]), jnp.array([[0.0], [0.5]]), noise=0.2)
    keys = jax.random.split(jax.random.key(1), count + 2)
    starts, actions = jax.random.normal(keys[-1], (count, 2)), jax.random.uniform(keys[-2], (count, 20, 1), minval=-1.0)
    return jax.jit(jax.vmap(lambda s, a, k: unroll(task, a, s, 20, key=k)))(starts, actions, keys[:count])


def test_a_model_learns_the_noise_of_a_linear_system_and_its_intervals_cover_held_out_episodes():
    """The cheap version of examples/benchmarks/calibration.py."""
    data = _noisy_episodes(500)
    with jax.numpy_dtype_promotion("standard"):
        model = Markov(2, 1, width=16, depth=0, head=GaussianHead, key=KEY)
        options = {"updates": 600, "window": 1, "batch_size": 256, "optimiser": optax.adam(1e-2), "holdout": 0.0}
        model = fit(model, data[:300], key=KEY, progress=NoProgress(), **options).model
        error = prediction_error(model, data[300:], key=KEY, samples=50)
    deviation = jax.jit(jax.vmap(model.teacher_forced))(data[300:].states, data[300:].actions).deviation
    np.testing.assert_allclose(jnp.sqrt(jnp.mean(deviation**2, axis=(0, 1))), 0.2, rtol=0.05)
    assert error.coverage is not None and (abs(error.coverage[np.array([0, 9, 19])].mean(axis=1) - 0.9) < 0.05).all()
