"""A sweep is one program whose settings equal calls of their own, and numbers do not compile a program again."""

import dataclasses
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compilations import compilations
from misuse import says
from reach import ASCENT, host_task, MODEL_UPDATES, Reach, run

from awmkit import (
    fit,
    FullHorizon,
    improve,
    JSONLines,
    Markov,
    MLPPolicy,
    ModelUpdates,
    NoProgress,
    Optimiser,
    Paths,
    plot,
    ShortHorizon,
    TargetEntropy,
    Trajectory,
    unroll_grad,
)
from awmkit.learning.tensorboard import TensorBoard

KEYS = jax.random.split(jax.random.key(3), 2)
CHAIN = lambda rate, decay: optax.chain(optax.add_decayed_weights(decay), optax.adam(rate))


@pytest.fixture(autouse=True)
def optax_promotes():
    """optax mixes dtypes, which the tests forbid."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def _improve(rate, decay, clip, gain, discount, scale):
    numbers = {"clip": clip, "discount": discount, "return_scale": scale, "paths": Paths(state_to_model=gain)}
    ascent = FullHorizon(optimiser=Optimiser(CHAIN, rate=rate, decay=decay), entropy=0.0, batch_size=4, **numbers)
    task, policies = Reach(), eqx.filter_vmap(lambda key: MLPPolicy(2, 2, width=8, depth=1, key=key))(KEYS)
    options = {"reward": task.reward, "horizon": 6, "updates": 8, "ascent": ascent, "progress": NoProgress()}
    return improve(task, policies, jnp.zeros((3, 2)), key=KEYS, **options)


def test_each_setting_of_improve_equals_a_call_of_its_own_and_other_numbers_do_not_compile_again():
    settings = np.array([[1e-3, 0.1, 1.0, 0.5, 0.9, 2.0], [0.05, 0.0, 0.1, 1.0, 1.0, 1.0], [0.1, 1.0, 9.0, 0.0, 0.5, 0.3]])
    sweep = _improve(*settings.T)
    assert sweep.updates.predicted_return.shape == (3, 2, 8)
    np.testing.assert_array_equal(sweep.sweep["ascent.optimiser.decay"], settings[:, 1])
    assert {"ascent.clip", "ascent.paths.state_to_model", "ascent.optimiser.rate"} <= sweep.sweep.keys()
    for i in range(3):
        with compilations() as compiled:
            one = _improve(*map(jnp.asarray, settings[i]))
        assert i == 0 or not compiled
        np.testing.assert_allclose(sweep[i].updates.predicted_return, one.updates.predicted_return, rtol=1e-9)
    last = np.asarray(sweep.updates.predicted_return[..., -1])
    assert sweep.best().updates.predicted_return.shape == (2, 8) and "3 settings and 2 seeds" in repr(sweep)
    assert sweep.best().best().updates.predicted_return[-1] == last[np.argmax(last.mean(axis=1))].max()
    with pytest.raises(IndexError, match="3 settings, which has no setting 3"):
        sweep[3]
    assert "2 seeds" in repr(sweep[-1]) and not sweep[-1].sweep


def _train(key, clip, polyak, target, rate, initial_weight, recency, noise, **options):
    entropy = TargetEntropy(target, rate, initial_weight)
    ascent = dataclasses.replace(ASCENT, clip=clip, polyak=polyak, entropy=entropy)
    return run(key, ascent=ascent, model_updates=dataclasses.replace(MODEL_UPDATES, recency=recency), noise=noise, **options)


def test_each_setting_of_train_equals_a_run_of_its_own_and_a_sweep_is_logged_and_resumed(tmp_path):
    settings = np.array([[9.0, 0.9, -1.0, 0.1, 1e-3, 0.9, 0.15], [0.5, 0.5, 0.5, 1.0, 0.1, 0.7, 0.4]])
    files = {"checkpoint": tmp_path / "run", "callbacks": [JSONLines(tmp_path / "log"), TensorBoard(tmp_path / "board")]}
    _train(KEYS, *settings.T, steps=36, **files)
    sweep = _train(KEYS, *settings.T, **files)
    assert sweep.metrics.true_return.shape == (2, 2, 5)
    assert list(sweep.sweep) == [
        *("model_updates.recency", "ascent.clip", "ascent.entropy.target", "ascent.entropy.rate"),
        *("ascent.entropy.initial_weight", "ascent.polyak", "noise"),
    ]
    for i in range(2):
        with compilations() as compiled:
            one = _train(KEYS[1], *settings[i].tolist())
        assert i == 0 or not compiled
        for x, y in zip(*(jax.tree.leaves(r.metrics) for r in (sweep[i][1], one)), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-9)
        assert jax.tree.structure(sweep[i][1].policy) == jax.tree.structure(one.policy)
    assert "2 settings and 2 seeds" in repr(sweep)
    rows = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    np.testing.assert_array_equal([row["true_return"] for row in rows], np.moveaxis(sweep.metrics.true_return, -1, 0))
    points = b"".join(path.read_bytes() for path in (tmp_path / "board").iterdir())
    assert b"true_return/1/0" in points and b"skipped/0/1" in points
    says(lambda: _train(KEYS, *(settings.T + 0.01), **files), "another run: its ascent.clip is")


def test_each_setting_of_fit_equals_a_call_of_its_own_and_one_that_diverges_is_a_warning():
    models = eqx.filter_vmap(lambda key: Markov(2, 2, width=8, depth=1, key=key))(KEYS)
    noise = jax.random.normal(KEYS[0], (6, 5, 2))
    episodes, rates = Trajectory(noise, jnp.tanh(noise[:, :4])), [1e-3, 0.05, 1e300]
    fitted = lambda rate: fit(
        models, episodes, key=KEYS, updates=4, optimiser=Optimiser(optax.sgd, learning_rate=rate), progress=NoProgress()
    )
    with pytest.warns(UserWarning, match="not finite in settings 2 of the sweep of optimiser.learning_rate"):
        sweep = fitted(jnp.array(rates))
    assert sweep.losses.shape == (3, 2, 4) and sweep.held_out.shape == (3, 2, 4)
    for i in range(2):
        one = fitted(rates[i])
        for x, y in zip(*(jax.tree.leaves((r.model, r.losses, r.held_out)) for r in (sweep[i], one)), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12)
    assert sweep.best().losses.shape == (2, 4) and "3 settings and 2 members" in repr(sweep)


MISUSES = {
    "two lengths": (
        lambda: run(KEYS[0], noise=jnp.zeros(2), ascent=dataclasses.replace(ASCENT, clip=jnp.ones(3))),
        r"ascent.clip float64\[3\] and noise float64\[2\]; make a grid of a and b with",
    ),
    "a sweep on the host": (
        lambda: run(KEYS[0], host_task(), noise=jnp.zeros(2)),
        r"A sweep \(noise\) runs as one program only if JAX can trace the task; call train once for each setting",
    ),
    "several batch sizes": (lambda: ModelUpdates(batch_size=jnp.array([4, 8])), "batch_size.* cannot vary within one program"),
    "several lengths": (lambda: ShortHorizon(ASCENT.critic, length=jnp.array([1, 2])), "length.* cannot vary within one"),
    "several numbers of updates": (lambda: FullHorizon(steps_per_update=jnp.ones(2)), "steps_per_update.* cannot vary within"),
    "several capacities": (lambda: run(KEYS[0], capacity=jnp.array([48, 60])), "capacity.* cannot vary within one program"),
    "a table of clips": (lambda: FullHorizon(clip=jnp.ones((2, 2))), "positive numbers for steps_per_update and clip"),
    "no settings": (lambda: FullHorizon(discount=jnp.ones(0)), "a discount of at least 0"),
    "one of several discounts": (lambda: FullHorizon(discount=jnp.array([0.9, -1.0])), "a discount of at least 0"),
    "several gains in an unroll": (
        lambda: unroll_grad(
            Reach(), jnp.zeros((2, 2)), jnp.zeros(2), 2, reward=Reach().reward, paths=Paths(state_to_model=jnp.ones(2))
        ),
        "state_to_model must be one finite real number in an unroll",
    ),
    "an unknown hyper-parameter": (lambda: Optimiser(optax.adam, rate=1e-3), r"cannot be called as make\(rate=...\)"),
    "a flag as a hyper-parameter": (
        lambda: Optimiser(optax.adam, learning_rate=1e-3, nesterov=True),
        "got nesterov=True; pass a",
    ),
    "an optimiser of schedules": (
        lambda: Optimiser(optax.constant_schedule, value=1.0),
        "optimiser is a function; pass one of",
    ),
    "an optimiser that looks at its numbers": (
        lambda: run(
            KEYS[0],
            ascent=dataclasses.replace(
                ASCENT, optimiser=Optimiser(lambda rate: optax.sgd(rate if rate > 0 else 1.0), rate=1.0)
            ),
        ),
        "optimiser cannot train GaussianPolicy",
    ),
}


@pytest.mark.filterwarnings("ignore:A JAX array is being set as static")
@pytest.mark.parametrize("name", MISUSES)
def test_misuse_of_a_sweep_is_one_sentence(name):
    says(*MISUSES[name])


def test_a_run_whose_last_update_was_skipped_is_neither_the_best_nor_drawn():
    gains = jnp.array([0.5, 1e200, 1.0])  # With the second the gradient overflows.
    ascent = FullHorizon(optimiser=optax.adam(1e-3), entropy=0.0, batch_size=2, paths=Paths(state_to_model=gains))
    options = {"reward": Reach().reward, "horizon": 6, "updates": 8, "progress": NoProgress()}
    policy = MLPPolicy(2, 2, width=8, depth=1, key=jax.random.key(0))
    result = improve(Reach(), policy, jnp.ones((1, 2)), ascent=ascent, key=jax.random.key(1), **options)
    skipped = np.asarray(result.updates.skipped) == 1
    assert skipped[1].all() and not skipped[[0, 2]].any()
    for field in ("predicted_return", "entropy", "gradient_norm", "clipped_norm"):
        np.testing.assert_array_equal(np.isnan(getattr(result.updates, field)), skipped)
    assert np.isfinite(result.best().updates.predicted_return).all()
    np.testing.assert_allclose(plot.swept(result).lines[0].get_xdata(), [0.5, 1.0])
    nowhere = plot.swept(result, metric=lambda result: np.full((3, 2), np.nan))
    assert nowhere.lines[0].get_xdata().size == 0
