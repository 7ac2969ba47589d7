"""Save episodes to files and load them again: NumPy's `.npz`, and HDF5 in the layout of Minari."""

import io
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .._checks import check_shapes
from .._files import check_folder, replacing
from .._trajectory import check_episodes, Trajectory

_FIELDS = "states", "actions", "rewards", "length", "terminated", "t"
_HDF5 = ".hdf5", ".h5"


def save_episodes(path: str | Path, episodes: Trajectory) -> None:
    """Write episodes to one file, without what a model predicts of them. The file is replaced atomically.

    - `.npz`: the fields of the `Trajectory` by name: `states` (N, H+1, S), `actions` (N, H, A), `rewards` (N, H), `length`,
      `terminated` and `t` (N,). All but the first two may be missing. `numpy.savez` writes such a file too.
    - `.hdf5` or `.h5`: the layout of Minari. Groups `episode_0`, `episode_1` and so on have `observations` (n+1, S), `actions`
      (n, A), `rewards`, `terminations` and `truncations` (n,). Needs h5py.

    Actions are written as they are. `awmkit.learning.minari.create_dataset` writes a complete data set of Minari.

    **Arguments**

    - `path`: the file; its suffix decides the format.
    - `episodes`: a `Trajectory` with a leading axis.

    **Raises:** `ValueError` if the suffix is another one, the folder does not exist, or `episodes` has no leading axis.
    """
    path, buffer = Path(path), io.BytesIO()
    _check_suffix(path)
    check_folder(path)
    check_episodes("save_episodes", episodes)
    if path.suffix == ".npz":
        fields: Any = {name: getattr(episodes, name) for name in _FIELDS}
        np.savez(buffer, **{name: np.asarray(x) for name, x in fields.items() if x is not None})  # pyright: ignore[reportArgumentType]
    else:
        with _h5py().File(buffer, "w") as file:
            for i, episode in enumerate(episodes):
                group, steps = file.create_group(f"episode_{i}"), episode.horizon
                group.attrs.update({"id": i, "total_steps": steps} | ({} if episode.t is None else {"t": int(episode.t)}))
                last, ended = np.arange(steps) == steps - 1, bool(episode.terminated is not None and episode.terminated)
                rewards = {} if episode.rewards is None else {"rewards": episode.rewards}
                ends = {"terminations": last & ended, "truncations": last & (not ended)}
                for name, x in {"observations": episode.states, "actions": episode.actions, **rewards, **ends}.items():
                    group.create_dataset(name, data=np.asarray(x))
    with replacing(path) as file:
        file.write(buffer.getbuffer())


def load_episodes(path: str | Path) -> Trajectory:
    """Read episodes from a file that `save_episodes`, `numpy.savez` or Minari wrote.

    A data set that Minari loads needs no file: `Trajectory.from_episodes(minari.load_dataset(id))`.

    ```python
    episodes = load_episodes("flights.npz")
    episodes = load_episodes("~/.minari/datasets/mujoco/hopper/expert-v0/data/main_data.hdf5")
    ```

    **Arguments:** `path`: a `.npz`, `.hdf5` or `.h5` file in one of the layouts of `save_episodes`.

    **Returns:** a `Trajectory` in JAX's default float, with `length` and `terminated`.

    **Raises:** `ValueError` if this is not such a file, and all errors of `Trajectory.from_episodes`.
    """
    path = Path(path).expanduser()
    _check_suffix(path)
    with path.open("rb") as file:
        try:
            rows = list(_rows_of_npz(path, file) if path.suffix == ".npz" else _rows_of_hdf5(path, file))
        except (OSError, zipfile.BadZipFile, EOFError) as error:
            raise ValueError(f"{path} is not a complete {path.suffix} file ({error}); write it again.") from None
    return Trajectory.from_episodes(rows)


def _rows_of_npz(path: Path, file: Any) -> Iterator[dict[str, Any]]:
    try:
        read: Any = np.load(file, allow_pickle=False)
        given = {name: read[name] for name in read.files if name in _FIELDS}
    except (ValueError, AttributeError):  # Arrays of objects, or a single array.
        given = {}
    if "states" not in given or "actions" not in given:
        raise ValueError(
            f"{path} must have arrays of numbers called states and actions; write it by awmkit.save_episodes, or by numpy.savez with "
            "one leading axis of episodes."
        )
    fix = "pad all episodes to H steps, and give their lengths as length"
    shapes = {"states": ("N", "H+1", "S"), "actions": ("N", "H", "A"), "rewards": ("N", "H")}
    check_shapes(str(path), fix, **{name: (x, shapes.get(name, ("N",))) for name, x in given.items()})
    count, horizon = given["actions"].shape[:2]
    length = given.pop("length", np.full(count, horizon))
    if length.dtype.kind not in "iu" or (wrong := (length < 1) | (length > horizon)).any():
        at = int(np.argmax(wrong)) if length.dtype.kind in "iu" else 0
        raise ValueError(
            f"length of {path} must be whole numbers between 1 and {horizon}, got {length[at]} for episode {at}; count the steps of "
            "each episode."
        )
    sizes = {"states": 1, "actions": 0, "rewards": 0}
    for i, n in enumerate(length):
        yield {name: x[i, : n + sizes[name]] if name in sizes else x[i] for name, x in given.items()}


def _rows_of_hdf5(path: Path, file: Any) -> Iterator[Mapping[str, Any]]:
    h5py = _h5py()
    with h5py.File(file, "r") as read:
        names = sorted((name for name in read if re.fullmatch(r"episode_\d+", name)), key=lambda name: int(name[8:]))
        if not names:
            raise ValueError(f"{path} has no group episode_0; write it by awmkit.save_episodes, or by Minari.")
        for name in names:
            group = read[name]
            kept = ("observations", "actions", "rewards", "terminations")
            row = {name: _values(group[name]) for name in kept if name in group}
            yield row | ({"t": int(group.attrs["t"])} if "t" in group.attrs else {})


def _values(x: Any) -> Any:
    """Return the array of a data set, or the arrays of a group by name."""
    return {name: _values(y) for name, y in x.items()} if isinstance(x, Mapping) else x[()]


def _check_suffix(path: Path) -> None:
    if path.suffix not in (".npz", *_HDF5):
        raise ValueError(f"{path} must end in .npz, .hdf5 or .h5, the formats of episodes; convert other files by NumPy.")


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f'Files of HDF5 need h5py ({error}); run pip install "awmkit[data]".') from error
    return h5py
