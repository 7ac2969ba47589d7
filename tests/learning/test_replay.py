"""The replay buffer draws whole episodes that were added, from the newest that fit, as often as `recency` says."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st
from misuse import says

from awmkit import Replay, Trajectory

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
    return Replay.empty(capacity, jax.eval_shape(lambda: jax.tree.map(lambda x: x[0], _episodes(0, 1))))


@given(data=st.data(), capacity=st.sampled_from([1, 4]), recency=st.sampled_from([1.0, 0.5]))
def test_a_sample_has_whole_episodes_from_the_newest_that_fit(data, capacity, recency):
    counts = data.draw(st.lists(st.integers(1, capacity), min_size=1, max_size=6))
    replay, added = _empty(capacity), 0
    for count in counts:
        replay, added = add(replay, _episodes(added, count)), added + count
    assert replay.size == min(added, capacity) and replay.added == added
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


def test_a_capacity_of_0_and_too_many_episodes_at_once_are_errors():
    says(lambda: Replay.empty(0, _episodes(0, 1)), "capacity=0; give a whole number of at least 1")
    says(lambda: _empty(2).add(_episodes(0, 3)), "room for 2 episodes and got 3 at once")
