"""Episodes of unequal length: what goes in comes out, and padding is never read."""

import types

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest
from hypothesis import given, strategies as st

from awmkit import Trajectory

FIELDS = "states", "actions", "rewards"


def _rows(lengths, seed=0, start=0):
    """Dictionaries of random episodes. Every other one is terminated."""
    draw = np.random.default_rng(seed).standard_normal
    arrays = ((draw((n + 1, 3)), draw((n, 2)), draw(n)) for n in lengths)
    return [{**dict(zip(FIELDS, x, strict=True)), "terminated": i % 2 == 0, "t": start + i} for i, x in enumerate(arrays)]


def _unpadded(episodes):
    return [{name: np.asarray(getattr(episode, name)) for name in (*FIELDS, "terminated", "t")} for episode in episodes]


def _assert_equal(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        jtu.tree_map(np.testing.assert_array_equal, one, other)


def with_nan_padding(episodes: Trajectory) -> Trajectory:
    """Return the same episodes with NaN wherever no step happened."""
    state = jnp.arange(episodes.horizon + 1) <= episodes.length[..., None]
    nan = lambda x, mask: None if x is None else jnp.where(mask, x, jnp.nan)
    fields = nan(episodes.states, state[..., None]), nan(episodes.actions, episodes.mask[..., None])
    rest = nan(episodes.rewards, episodes.mask), episodes.length, episodes.terminated, episodes.t
    return Trajectory(*fields, *rest, survival=nan(episodes.survival, episodes.mask))


# Always arrays of one size, so that each operation is compiled once.
LENGTHS = st.lists(st.integers(1, 4), min_size=2, max_size=2).flatmap(lambda x: st.permutations([*x, 4]))


@given(lengths=LENGTHS, others=st.permutations([1, 2]), start=st.integers(0, 3))
def test_episodes_come_out_of_a_trajectory_as_they_went_in(lengths, others, start):
    rows, more = _rows(lengths, start=start), _rows(others, seed=1)
    episodes = Trajectory.from_episodes(rows)
    assert len(episodes) == len(lengths) and episodes.length.tolist() == lengths and episodes.horizon == max(lengths)
    assert np.array_equal(np.sum(episodes.mask, -1), lengths) and jnp.isfinite(episodes.states).all()
    assert np.array_equal(episodes.steps[:, 0], np.arange(len(lengths)) + start)
    _assert_equal(_unpadded(episodes), rows)
    _assert_equal(_unpadded(with_nan_padding(episodes)), rows)
    _assert_equal(_unpadded(Trajectory.from_episodes(list(with_nan_padding(episodes)))), rows)
    for chosen in (slice(None, None, 2), [0, -1], np.arange(len(lengths)) % 2 == 0, jnp.array([0])):
        _assert_equal(_unpadded(episodes[chosen]), [rows[i] for i in np.arange(len(rows))[chosen]])
    jtu.tree_map(np.testing.assert_array_equal, episodes[-1], episodes[len(rows) - 1])
    both = Trajectory.concatenate([with_nan_padding(episodes), Trajectory.from_episodes(more)])
    _assert_equal(_unpadded(both), rows + more)
    assert both.horizon == 4


@given(lengths=LENGTHS)
def test_padding_changes_no_value_and_no_derivative_to_the_bit(lengths):
    episodes = Trajectory.from_episodes(_rows(lengths))
    survival = jnp.linspace(1, 0.5, episodes.actions[..., 0].size).reshape(episodes.mask.shape)
    episodes = eqx.tree_at(lambda x: x.survival, episodes, survival, is_leaf=lambda x: x is None)

    @jax.jit
    @jax.value_and_grad
    def value(scale, episodes):  # A loss as a model has it, whose predictions would be NaN in padding of NaN.
        filled = episodes.filled()
        error = jnp.sin(scale * filled.states[:, 1:]) - filled.states[:, :-1]
        scored = eqx.tree_at(lambda x: x.rewards, episodes, jnp.sum(jnp.exp(scale * filled.states[:, 1:]), -1))
        return filled.mean_over_steps(error**2) + jnp.sum(scored.returns(0.9)) + jnp.sum(episodes.returns())

    found = [value(jnp.asarray(0.3), x) for x in (episodes, with_nan_padding(episodes))]
    assert jnp.isfinite(found[0][1]) and np.array_equal(found[0], found[1])
    weights = np.concatenate([np.asarray(x.survival) * 0.9 ** np.arange(x.horizon) * np.asarray(x.rewards) for x in episodes])
    np.testing.assert_allclose(jnp.sum(episodes.returns(0.9)), weights.sum(), rtol=1e-12)
    steps = np.concatenate([np.asarray(x.actions) for x in episodes])
    np.testing.assert_allclose(with_nan_padding(episodes).mean_over_steps(episodes.actions), steps.mean(), rtol=1e-12)
    np.testing.assert_allclose(episodes.mean_over_steps(episodes.actions[..., 0] > 0), (steps[:, 0] > 0).mean(), rtol=1e-12)
    one_by_one = jax.vmap(lambda x: x.mean_over_steps(x.filled().actions))(with_nan_padding(episodes))
    np.testing.assert_allclose(one_by_one, [np.mean(x.actions) for x in episodes], rtol=1e-12)
    np.testing.assert_array_equal(jax.vmap(lambda x: x.returns())(episodes), episodes.returns())


@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_a_return_weighs_rewards_by_survival_with_its_gradient(discount):
    rewards, survival = jnp.array([1.0, -2.0, 3.0, jnp.nan]), jnp.array([1.0, 0.5, 0.25, jnp.nan])
    value = lambda survival, rewards: Trajectory(
        jnp.ones((5, 1)), jnp.ones((4, 1)), rewards, length=jnp.array(3), survival=survival
    ).returns(discount)
    powers = discount ** np.arange(3)
    np.testing.assert_allclose(value(survival, rewards), powers @ (survival * rewards)[:3])
    by_survival, by_rewards = jax.grad(value, argnums=(0, 1))(survival, rewards)
    np.testing.assert_allclose(by_survival, [*(powers * rewards[:3]), 0])
    np.testing.assert_allclose(by_rewards, [*(powers * survival[:3]), 0])


def test_a_trajectory_without_length_compiles_to_the_program_of_all_steps():
    rewards = jnp.arange(6.0).reshape(2, 3)
    whole = Trajectory(jnp.ones((2, 4, 1)), jnp.ones((2, 3, 1)), rewards)
    program = lambda function: jax.make_jaxpr(function)(rewards).pretty_print(name_stack=False)
    returns = lambda x: eqx.tree_at(lambda t: t.rewards, whole, x).returns()
    assert program(returns) == program(lambda x: jnp.sum(x, axis=-1))
    assert program(whole.mean_over_steps) == program(lambda x: jnp.mean(x))
    assert whole.filled() is whole and whole.mask.all() and whole.steps[0].tolist() == [0, 1, 2]


class _Dataset:
    """A data set as Minari has it: an iterable of objects."""

    def __init__(self, rows, cast=np.asarray):
        self._rows, self._cast = rows, cast

    def __iter__(self):
        for i, row in enumerate(self._rows):
            states, actions, rewards = (self._cast(row[name]) for name in FIELDS)
            ended = np.arange(len(actions)) == len(actions) - 1
            fields = {"terminations": ended & row["terminated"], "truncations": ended & ~np.bool_(row["terminated"])}
            yield types.SimpleNamespace(id=i, observations=states, actions=actions, rewards=rewards, infos={}, **fields)


FORMS = {
    "tuples": lambda rows: [tuple(row.values())[:4] for row in rows],
    "a generator": lambda rows: (row for row in rows),
    "nested lists": lambda rows: [{name: np.asarray(x).tolist() for name, x in row.items() if name != "t"} for row in rows],
    "JAX arrays": lambda rows: [{name: jnp.asarray(x) for name, x in row.items()} for row in rows],
    "NumPy scalars": lambda rows: [{**row, "terminated": np.bool_(row["terminated"]), "t": np.int32(row["t"])} for row in rows],
    "one flag for each step": lambda rows: [
        {**row, "terminated": [False] * (len(row["actions"]) - 1) + [row["terminated"]]} for row in rows
    ],
    "objects of Minari": lambda rows: _Dataset(rows),
    "dictionaries of Minari": lambda rows: [vars(x) for x in _Dataset(rows, jnp.asarray)],
    "a batch": lambda rows: Trajectory.from_episodes(rows),
    "padded episodes": lambda rows: [Trajectory.from_episodes(rows)[i] for i in range(len(rows))],
}


@pytest.mark.parametrize("form", FORMS)
def test_episodes_are_read_in_every_form_that_a_user_has(form):
    rows = _rows([2, 1, 4])
    episodes = Trajectory.from_episodes(FORMS[form](rows))
    expected = rows if episodes.t is not None else [{name: x for name, x in row.items() if name != "t"} for row in rows]
    _assert_equal([{name: row[name] for name in expected[0]} for row in map(_fields, episodes)], expected)


def _fields(episode):
    return {name: x if x is None else np.asarray(x) for name, x in vars(episode).items()}


def test_numbers_of_any_type_become_the_default_float():
    for dtype in (np.int8, np.uint64, bool, np.float16, jnp.bfloat16, np.float32):
        episodes = Trajectory.from_episodes([(np.ones((3, 1), dtype), np.ones((2, 1), dtype), np.ones(2, dtype))])
        assert {x.dtype for x in (episodes.states, episodes.actions, episodes.rewards)} == {jnp.dtype(float)}
    with jax.enable_x64(False):
        assert Trajectory.from_episodes([(np.ones((2, 1)), np.ones((1, 1)))]).states.dtype == np.float32


def test_missing_fields_are_filled_by_what_their_absence_means():
    plain, known = Trajectory(jnp.ones((1, 3, 1)), jnp.ones((1, 2, 1))), _rows([2], start=5)[0]
    known = {"states": known["states"][:, :1], "actions": known["actions"][:, :1], "t": 5}
    several = Trajectory.from_episodes([known, {name: known[name] for name in ("states", "actions")}])
    assert several.rewards is None and several.t.tolist() == [5, 0] and not several.terminated.any()
    survival = eqx.tree_at(lambda x: x.survival, plain, jnp.full((1, 2), 0.5), is_leaf=lambda x: x is None)
    both = Trajectory.concatenate([survival, plain, several])
    assert both.t.tolist() == [0, 0, 5, 0] and both.survival.tolist() == [[0.5, 0.5]] + [[1, 1]] * 3
    assert both.length.tolist() == [2] * 4 and both.rewards is None


def test_an_index_that_no_episode_has_is_an_error():
    episodes = Trajectory.from_episodes(_rows([2, 1, 3]))
    for index in (3, -4, [0, 3], np.array([True]), 1.0, None, (0, 1), "0", True):
        with pytest.raises(IndexError):
            episodes[index]
    assert len(episodes[3:]) == 0 and list(episodes[[]]) == []
    for single in (episodes[0], jax.tree.map(lambda x: x[None], episodes)):
        for read in (len, iter, lambda x: x[0]):
            with pytest.raises(TypeError, match="one leading axis"):
                next(read(single))
    traced = jax.jit(lambda i: episodes[i])(jnp.array([2, 0]))  # As `episodes` in a compiled function.
    assert traced.length.tolist() == [3, 2]
