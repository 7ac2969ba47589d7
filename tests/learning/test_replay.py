"""The replay: an episode drawn is one that was added, whole, among the newest there is room for, as often as recency says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st
from misuse import says

from awmkit import Replay, Trajectory


def _episodes(first: int, count: int) -> Trajectory:
    """Of 3 steps, numbered from `first`: every entry holds its episode's number and its own place in it."""

    def numbered(*shape):
        numbers = np.arange(first, first + count).reshape(-1, *[1] * len(shape))
        return jnp.asarray(100.0 * numbers + np.arange(np.prod(shape)).reshape(shape))

    return Trajectory(numbered(4, 2), numbered(3, 1), numbered(3))


EMPTY = jax.eval_shape(lambda: jax.tree.map(lambda x: x[0], _episodes(0, 1)))


@given(data=st.data(), capacity=st.sampled_from([1, 4]), recency=st.sampled_from([1.0, 0.5]))
def test_an_episode_drawn_is_one_of_the_newest_that_were_added_and_whole(data, capacity, recency):
    counts = data.draw(st.lists(st.integers(1, capacity), min_size=1, max_size=6))
    replay, added = Replay.empty(capacity, EMPTY), 0
    for count in counts:
        replay, added = replay.add(_episodes(added, count)), added + count
    assert replay.size == min(added, capacity) and replay.added == added
    drawn = replay.sample(jax.random.key(data.draw(st.integers(0, 2**31 - 1))), 64, recency=recency)
    numbers = np.asarray(drawn.states)[:, 0, 0].astype(int) // 100
    assert set(numbers.tolist()) <= set(range(max(0, added - capacity), added))
    for entries, numbered in zip(*map(jax.tree.leaves, (drawn, _episodes(0, added))), strict=True):
        np.testing.assert_array_equal(entries, np.asarray(numbered)[numbers])


@pytest.mark.parametrize("recency", [1.0, 0.8, 0.5])
@pytest.mark.parametrize("added", [3, 9])
def test_each_episode_is_drawn_less_often_than_the_next_by_the_factor_recency(recency, added):
    replay = Replay.empty(6, EMPTY)
    for i in range(added):
        replay = replay.add(_episodes(i, 1))
    size, draws = min(added, 6), 20_000
    numbers = replay.sample(jax.random.key(0), draws, recency=recency).states[:, 0, 0].astype(int) // 100
    weights = recency ** np.arange(size)[::-1]
    shares = np.bincount(numbers, minlength=added)[added - size :] / draws
    np.testing.assert_allclose(shares, weights / weights.sum(), atol=4 * 0.5 / np.sqrt(draws))


def test_what_does_not_fit_is_an_error():
    says(lambda: Replay.empty(0, EMPTY), "capacity=0; give a whole number of at least 1")
    says(lambda: Replay.empty(2, EMPTY).add(_episodes(0, 3)), "room for 2 episodes and got 3 at once")
