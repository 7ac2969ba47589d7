"""Episodes of unequal length in a batch: every step counts once, and windows begin at every step equally often."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, strategies as st
from padding import episodes, LENGTHS, TERMINATED

from awmkit import Anchored, AWM, fit, LSTM, Markov, NoProgress, RNN, Trajectory
from awmkit._windows import cut_windows, draw_windows, spread_windows
from awmkit.learning._minibatch import loss_and_gradient
from awmkit.learning._model_checks import normalise_by

KEY = jax.random.key(0)
ADAM = optax.adam(1e-3)


def test_the_loss_of_a_batch_counts_every_step_once():
    batch = episodes()
    loss = lambda weight, episode: episode.mean_over_steps((weight * episode.filled().rewards - 1) ** 2)
    found = [jax.jit(lambda w, n=n: loss_and_gradient(loss, w, batch, n))(jnp.asarray(0.7)) for n in (None, 2)]
    rewards = np.asarray(batch.rewards)[np.asarray(batch.mask)]
    expected = np.mean((0.7 * rewards - 1) ** 2), np.mean(2 * rewards * (0.7 * rewards - 1))
    np.testing.assert_allclose(found, [expected, expected], rtol=1e-9)


def test_every_step_is_equally_likely_to_begin_a_window_and_windows_are_parts_of_episodes():
    windows = jax.jit(lambda key, batch: draw_windows(key, batch, 36000, 3))(KEY, episodes())
    number = (windows.states[:, 0, 0] // 10).astype(int)
    counts = np.zeros((8, 7))
    np.add.at(counts, (np.asarray(number), np.asarray(windows.t)), 1)
    possible = np.arange(7) < np.array(LENGTHS)[:, None]
    assert (counts[~possible] == 0).all() and (abs(counts[possible] - 1000) < 150).all()
    left = jnp.array(LENGTHS)[number] - windows.t
    assert (windows.length == jnp.minimum(left, 3)).all()
    assert (windows.terminated == (jnp.array(TERMINATED)[number] & (left <= 3))).all()
    filled = windows.filled()
    expected = (10 * number + windows.t)[:, None] + jnp.minimum(jnp.arange(4), windows.length[:, None])
    expected = expected.astype(float)
    assert (filled.states[..., 0] == expected).all()
    assert jnp.allclose(filled.actions[..., 0], jnp.where(windows.mask, jnp.cos(expected[:, :3]), 0))
    of_some = draw_windows(KEY, episodes(), 500, 3, among=jnp.array([1, 4, 4]))
    assert (
        set(np.asarray(of_some.states[:, 0, 0] // 10)) == {1, 4}
        and (of_some.states[:, 0, 0] % 10 == of_some.t.astype(float)).all()
    )
    half = draw_windows(KEY, episodes(), 8000, 3, from_start=0.5)
    assert (half.t[:4000] == 0).all() and half.states.shape[0] == 8000
    begun = np.bincount(np.asarray(half.states[:4000, 0, 0] // 10).astype(int), minlength=8)
    assert (abs(begun - 500) < 100).all() and 0 < (half.t[4000:] == 0).mean() < 0.5
    whole = eqx.tree_at(lambda e: (e.length, e.terminated), episodes(0.0), (None, None), is_leaf=lambda x: x is None)
    drawn = draw_windows(KEY, whole, 50, 7)
    assert (drawn.length == 7 - drawn.t).all() and drawn.terminated is None


def test_windows_side_by_side_contain_every_step_once():
    windows = cut_windows(episodes(), 3)
    assert int(windows.length.sum()) == sum(LENGTHS) and len(windows) == 16
    np.testing.assert_array_equal(windows.rewards[windows.mask], episodes().rewards[episodes().mask])
    again = cut_windows(windows, 2)
    assert set(map(tuple, np.stack([again.states[:, 0, 0] % 10, again.t], axis=1))) == {(x, x) for x in (0, 2, 3, 5, 6)}
    assert (jax.jit(lambda e: cut_windows(e, 3).length.sum())(episodes()) == sum(LENGTHS)).all()


@pytest.mark.parametrize(("window", "from_start"), [(3, 0.0), (6, 0.5), (6, 1.0), (2, 1.0)])
def test_an_awms_statistics_of_each_step_are_those_of_windows_from_where_they_are_drawn(window, from_start):
    model = AWM(2, 1, LSTM(4, key=KEY), per_step=True, key=KEY)
    learned = normalise_by(model, episodes(), window, from_start).output_norm
    drawn = draw_windows(KEY, episodes(), 20000, window, from_start=from_start)
    expected = model.normalised(drawn).output_norm
    np.testing.assert_allclose(learned.shift, expected.shift, rtol=0.1, atol=0.1)
    np.testing.assert_allclose(learned.scale, expected.scale, rtol=0.1)


@given(size=st.integers(1, 9), from_start=st.sampled_from([0.0, 0.5, 1.0]))
def test_windows_that_are_spread_begin_in_every_episode_as_often_as_it_has_steps(size, from_start):
    windows = spread_windows(episodes(), size, from_start)
    first = round(from_start * len(windows))
    assert (windows.t[:first] == 0).all() and (windows.length > 0).all() and len(windows) <= 8 * 7
    number = np.asarray(windows.states[:, 0, 0] // 10).astype(int)
    np.testing.assert_allclose(np.bincount(number[:first], minlength=8), first / 8, atol=1)
    share = (len(windows) - first) / sum(LENGTHS)
    np.testing.assert_allclose(np.bincount(number[first:], minlength=8), share * np.array(LENGTHS), atol=1)


def test_statistics_of_an_anchored_model_are_those_of_the_data_in_a_compiled_program_too():
    lengths = [15, 3, 40, 7]
    rows = [(np.linspace(0, n, n + 1)[:, None], np.zeros((n, 1)), None, True) for n in lengths]
    episodes, model = Trajectory.from_episodes(rows), Anchored(AWM(1, 1, RNN(4, key=KEY), key=KEY), every=5)
    apart, compiled = model.normalised(episodes), eqx.filter_jit(lambda episodes: model.normalised(episodes))(episodes)
    for one, other in zip(*(jax.tree.leaves(eqx.filter(m, eqx.is_array)) for m in (apart, compiled)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9)


@pytest.mark.parametrize("window", [None, 3])
def test_held_out_errors_are_those_of_the_steps_that_held_out_episodes_reach(window):
    model = Markov(2, 1, width=4, depth=1, horizon=7, key=KEY)
    with jax.numpy_dtype_promotion("standard"):
        options = {"key": KEY, "updates": 2, "window": window, "batch_size": 4, "optimiser": ADAM, "holdout": 0.4}
        result = fit(model, episodes(), progress=NoProgress(), **options)
    order = jax.random.permutation(jax.random.split(KEY)[0], 8)
    assert result.held_out.shape == (window or max(LENGTHS[i] for i in order[:3]),)
    assert jnp.isfinite(result.held_out).all() and jnp.isfinite(result.losses).all()
