"""The replay buffer draws whole episodes that were added, from the newest that fit, as often as `recency` says."""

import functools
from decimal import Decimal, localcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st
from misuse import says

from awmkit import Replay, Trajectory
from awmkit.learning._replay import draw_ages

add = jax.jit(Replay.add)
sample = jax.jit(Replay.sample, static_argnums=2, static_argnames="recency")


def _episodes(first: int, count: int) -> Trajectory:
    """Episodes of 3 steps, numbered from `first`. Every entry encodes its episode's number and its own position."""

    def numbered(*shape):
        numbers = np.arange(first, first + count).reshape(-1, *[1] * len(shape))
        return jnp.asarray(100.0 * numbers + np.arange(np.prod(shape)).reshape(shape))

    return Trajectory(numbered(4, 2), numbered(3, 1), numbered(3))


@functools.cache
def _empty(capacity: int) -> Replay:
    return Replay.empty(3 * capacity, jax.eval_shape(lambda: jax.tree.map(lambda x: x[0], _episodes(0, 1))))


@given(data=st.data(), capacity=st.sampled_from([1, 4]), recency=st.sampled_from([1.0, 0.5]))
def test_a_sample_has_whole_episodes_from_the_newest_that_fit(data, capacity, recency):
    counts = data.draw(st.lists(st.integers(1, capacity), min_size=1, max_size=6))
    replay, added = _empty(capacity), 0
    for count in counts:
        replay, added = add(replay, _episodes(added, count)), added + count
    assert replay.whole == min(added, capacity) and replay.episodes_added == added
    drawn = sample(replay, jax.random.key(data.draw(st.integers(0, 2**31 - 1))), 64, recency=recency)
    numbers = np.asarray(drawn.states)[:, 0, 0].astype(int) // 100
    assert set(numbers.tolist()) <= set(range(max(0, added - capacity), added))
    for entries, numbered in zip(*map(jax.tree.leaves, (drawn, _episodes(0, added))), strict=True):
        np.testing.assert_array_equal(entries, np.asarray(numbered)[numbers])


@pytest.mark.parametrize("recency", [1.0, 0.8, 0.5])
@pytest.mark.parametrize("added", [3, 9])
def test_an_episode_is_drawn_less_often_than_the_next_newer_one_by_the_factor_recency(recency, added):
    replay = _empty(6)
    for i in range(added):
        replay = add(replay, _episodes(i, 1))
    size, draws = min(added, 6), 20_000
    numbers = np.asarray(sample(replay, jax.random.key(0), draws, recency=recency).states)[:, 0, 0].astype(int) // 100
    weights = recency ** np.arange(size)[::-1]
    shares = np.bincount(numbers, minlength=added)[added - size :] / draws
    np.testing.assert_allclose(shares, weights / weights.sum(), atol=4 * 0.5 / np.sqrt(draws))


@given(
    recency=st.floats(0, 1, exclude_min=True) | st.floats(1e-12, 1e-6).map(lambda x: 1 - x),
    size=st.integers(1, 10_000),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_an_age_is_drawn_where_the_distribution_function_says(recency, size, dtype):
    """In exact arithmetic: F(age) <= u < F(age + 1), where F(age) = (1 - recency^age) / (1 - recency^size)."""
    with localcontext(prec=60):
        uniform = np.array([0.0, 1e-6, 0.1, 0.3, 0.5, 0.9, 0.999], dtype)
        ages = np.asarray(draw_ages(jnp.asarray(uniform), jnp.asarray(size), recency))
        exact = Decimal(recency)
        below = lambda age: (1 - exact**age) / (1 - exact**size) if recency < 1 else Decimal(age) / size
        error = Decimal(20 * float(np.finfo(dtype).eps))
        for u, age in zip(uniform.tolist(), np.clip(ages, 0, size - 1).tolist(), strict=True):
            assert below(int(age)) - error <= Decimal(u) < below(int(age) + 1) + error


def test_an_empty_buffer_gives_nan_in_a_compiled_program_and_never_zeros():
    assert all(jnp.isnan(x).all() for x in jax.tree.leaves(sample(_empty(4), jax.random.key(0), 64, recency=1.0)))


def test_a_capacity_of_0_and_too_many_episodes_at_once_are_errors():
    says(
        lambda: Replay.empty(2, jax.tree.map(lambda x: x[0], _episodes(0, 1))), "capacity=2; give a whole number of at least 3"
    )
    says(lambda: _empty(2).add(_episodes(0, 3)), "room for 6 steps and got 9 at once")
