"""Episodes are the same after they were saved and loaded, and Minari reads ours as we read Minari's."""

import os

import gymnasium
import h5py
import jax
import jax.tree_util as jtu
import minari
import numpy as np
import pytest
from misuse import says

from awmkit import fit, load_episodes, Markov, NoProgress, save_episodes, scale_actions, Trajectory, unscale_actions
from awmkit.learning.minari import create_dataset

FIELDS = "states", "actions", "rewards", "terminated", "t"


def _episodes(**options):
    draw = np.random.default_rng(0).uniform
    rows = [{"states": draw(size=(n + 1, 4)), "actions": draw(-1, 1, (n, 1)), "rewards": draw(size=n)} for n in (3, 1, 12)]
    return Trajectory.from_episodes([{**row, "terminated": i == 1, **options} for i, row in enumerate(rows)])


def _same(found, expected):
    jtu.tree_map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y), strict=True), found, expected)


@pytest.mark.parametrize("name", ["data.npz", "data.hdf5", "data.h5"])
def test_episodes_are_loaded_as_they_were_saved(name, tmp_path, monkeypatch):
    for episodes in (_episodes(), _episodes(t=7)):
        save_episodes(tmp_path / name, episodes)
        _same(load_episodes(str(tmp_path / name)), episodes)
    whole = Trajectory(episodes.states, episodes.actions)  # All of one length, without rewards.
    save_episodes(tmp_path / name, whole)
    loaded = load_episodes(tmp_path / name)
    assert loaded.length.tolist() == [12] * 3 and loaded.rewards is None and not loaded.terminated.any()
    _same(loaded.states, whole.states)

    def fail(file):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        save_episodes(tmp_path / name, episodes)
    _same(load_episodes(tmp_path / name).states, whole.states)
    assert os.listdir(tmp_path) == [name]
    whole_file = (tmp_path / name).read_bytes()
    for damaged in (b"", whole_file[:-40], b"text"):
        (tmp_path / name).write_bytes(damaged)
        says(lambda: load_episodes(tmp_path / name), "is not a complete|must have arrays of numbers")


def test_a_file_of_another_layout_is_refused_by_one_sentence(tmp_path):
    path, episodes = tmp_path / "data.npz", _episodes()
    good = {name: np.asarray(getattr(episodes, name)) for name in FIELDS[:3]}

    def written(**arrays):
        np.savez(path, **arrays)
        return lambda: load_episodes(path)

    _same(written(**good, length=[3, 1, 12])().states, episodes.states)
    says(written(observations=good["states"]), "must have arrays of numbers called states and actions")
    says(written(states=np.array([[1.0], None], object), actions=good["actions"]), "must have arrays of numbers called states")
    says(written(**good | {"actions": good["actions"][0]}), r"N, H, A\).*pad all episodes to H steps")
    for length, message in (([3, 0, 12], "got 0 for episode 1"), ([3, 1, 13], "got 13 for"), ([0.5, 1, 2], "got 0.5 for")):
        says(written(**good, length=length), f"length of .* must be whole numbers between 1 and 12, {message}")
    says(written(**good, terminated=np.ones(3)), "terminated of episode 0 must be True or False")
    np.save(tmp_path / "one.npy", good["states"])
    (tmp_path / "one.npy").rename(path)
    says(lambda: load_episodes(path), "must have arrays of numbers called states and actions")
    with h5py.File(tmp_path / "data.hdf5", "w") as file:
        file.create_group("flight_0")
    says(lambda: load_episodes(tmp_path / "data.hdf5"), "has no group episode_0")
    with h5py.File(tmp_path / "data.hdf5", "w") as file:
        for part in ("goal", "body"):
            file.create_dataset(f"episode_0/observations/{part}", data=np.ones((2, 1)))
        file.create_dataset("episode_0/actions", data=np.ones((1, 1)))
    says(lambda: load_episodes(tmp_path / "data.hdf5"), r"states of episode 0 are a dictionary of \['body', 'goal'\]; join")
    for act in (load_episodes, lambda path: save_episodes(path, episodes)):
        says(lambda act=act: act(tmp_path / "data.csv"), "must end in .npz, .hdf5 or .h5")
    says(lambda: save_episodes(tmp_path / "none" / "data.npz", episodes), "folder that does not exist")
    says(lambda: save_episodes(path, [episodes]), "episodes are a list; pass one Trajectory")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Minari recommends to name the code and an author.
def test_a_model_learns_from_a_data_set_that_minari_collected(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    env = minari.DataCollector(gymnasium.make("InvertedPendulum-v5"))
    env.action_space.seed(0)
    for seed in range(30):
        env.reset(seed=seed)
        ended = False
        while not ended:
            ended = any(env.step(env.action_space.sample())[2:4])
    dataset = env.create_dataset("test/random-v0", eval_env=env.spec)
    episodes = Trajectory.from_episodes(dataset)
    assert len(episodes) == 30 and episodes.terminated.all() and len(set(episodes.length.tolist())) > 5
    assert int(episodes.length.sum()) == dataset.total_steps and float(np.abs(episodes.actions).max()) > 1.5
    _same(load_episodes(tmp_path / "test" / "random-v0" / "data" / "main_data.hdf5"), episodes)
    low, high = env.action_space.low, env.action_space.high
    scaled = scale_actions(episodes.actions, low, high)
    ours = Trajectory(episodes.states, scaled, episodes.rewards, episodes.length, episodes.terminated)
    assert float(np.abs(scaled).max()) <= 1
    with jax.numpy_dtype_promotion("standard"):
        model = Markov(4, 1, width=16, depth=1, key=jax.random.key(0))
        fitted = fit(model, ours, key=jax.random.key(1), updates=300, batch_size=8, progress=NoProgress())
    assert float(fitted.held_out[0]) < 0.1
    again = create_dataset("test/ours-v0", ours, env.unwrapped, author="us")
    found = Trajectory.from_episodes(again)
    _same(found.length, episodes.length)
    np.testing.assert_allclose(found.actions, episodes.actions, rtol=1e-5, atol=1e-6)
    plain = Trajectory.from_episodes(create_dataset("test/plain-v0", ours))
    np.testing.assert_allclose(plain.actions, scaled, atol=1e-6)
    _same(plain.terminated, episodes.terminated)
    says(lambda: create_dataset("test/none-v0", Trajectory(episodes.states, scaled)), "needs rewards")
    env._tmp_dir.cleanup()  # env.close() would remove the folder and leave its finaliser, which then fails.
    env.env.close()


def test_actions_are_scaled_to_their_bounds_and_back():
    low, high = np.array([-2.0, 0.0]), np.array([2.0, 5.0])
    actions = np.random.default_rng(0).uniform(low, high, (4, 7, 2))
    scaled = scale_actions(actions, low, high)
    np.testing.assert_allclose(scaled, (actions - low) / (high - low) * 2 - 1, atol=1e-15)
    np.testing.assert_allclose(unscale_actions(scaled, low, high), actions, rtol=1e-14)
    assert scale_actions(np.array([-3, 3]), -3, 3).tolist() == [-1, 1] and scale_actions(np.array([6.0]), -3, 3).tolist() == [2]
    assert unscale_actions(np.array([-1.0, 1.0]), low, high).tolist() == [-2, 5]
    gradient = jax.jit(jax.vmap(jax.grad(lambda a, low, high: scale_actions(a, low, high)[1], (0, 1)), (0, None, None)))
    by_action, by_low = gradient(actions[0], low, high)
    np.testing.assert_allclose(by_action, [[0, 0.4]] * 7)
    np.testing.assert_allclose(by_low[:, 1], 2 * (actions[0, :, 1] - high[1]) / 25)
