"""Save any tree of arrays to one file and load it again. Writing is atomic, and a damaged file is not loaded."""

import hashlib
import json
import math
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from .._files import check_folder, replacing
from .._fingerprint import first_difference, is_array, structure
from ._recipe import build, recipe

T = TypeVar("T")

_NUMBERS = (bool, int, float, complex)


def versions() -> dict[str, str]:
    """Return the versions of Python, awmkit, JAX and the libraries based on JAX, which may all affect results."""
    packages = ("awmkit", "jax", "jaxlib", "equinox", "optax", "diffrax", "numpy")
    return {"python": platform.python_version(), **{package: _version(package) for package in packages}}


def _version(package: str) -> str:
    """The version of the code that is imported. It may be on the path without being installed, or beside an installed one."""
    found = getattr(sys.modules.get(package), "__version__", None)
    try:
        return found or version(package)
    except PackageNotFoundError:
        return "unknown"


def save(path: str | Path, tree: PyTree, *, config: Mapping[str, Any] | None = None) -> None:
    """Write a tree of arrays to one file, with checksums.

    Its first line is JSON: `config`, the versions of all libraries, the structure of the tree with its static fields, and the
    dtype and shape of each array. The bytes of the arrays follow.

    The file is replaced atomically: after a crash, `path` is either the complete old file or the complete new one. If `path` is
    a symbolic link, its target is replaced. The permissions of an existing file are kept.

    ```python
    save("model.awm", fitted.model, config={"task": "pendulum"})
    model = load("model.awm")
    model = load("model.awm", AWM(4, 2, key=key))  # a new model of the same sizes
    ```

    **Arguments**

    - `path`: the file; its folder must exist.
    - `tree`: a model, a policy, a result of `fit` or `train`, or any other tree. Arrays of any dtype, random keys and numbers are
      written. Classes and functions are written by name, settings by value. What has no name, such as a lambda, is only described,
      so that `load` can compare it with that of the tree it is given.
    - `config`: numbers, strings, lists and dicts to store with the tree, such as the arguments that built the model; read it
      with `awmkit.learning.read_header`.

    **Raises:** `ValueError` if the folder does not exist, `config` cannot be written as JSON, which has no infinities, or an array
    has objects as entries.
    """
    path = Path(path)
    check_folder(path)
    lines, arrays = structure(tree)
    leaves = [leaf for leaf in jtu.tree_leaves(tree) if _is_written(leaf)]
    digest = hashlib.sha256()
    for leaf in leaves:
        digest.update(_bytes(leaf))
    header = {"config": {} if config is None else dict(config), "versions": versions()}
    header |= {"structure": lines, "arrays": arrays, "tree": recipe(tree), "sha256": digest.hexdigest()}
    try:
        line = json.dumps(header, allow_nan=False).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"The config cannot be written as JSON ({error}); pass finite numbers, strings, lists and dicts only."
        ) from None
    with replacing(path) as file:
        file.write(line)
        file.write(hashlib.sha256(line).hexdigest().encode() + b"\n")
        for leaf in leaves:
            file.write(_bytes(leaf))


def load(path: str | Path, like: T | None = None) -> T:
    """Read a tree that `save` wrote.

    **Arguments**

    - `path`: the file.
    - `like`: a tree of the same structure, static fields, shapes and dtypes, such as a newly built model. Its arrays may be
      `jax.ShapeDtypeStruct`s. Leaves that `save` does not write, such as functions, are taken from it. `None`: the file says what
      the tree is. Its classes and functions are looked up by name, and nothing of the file is executed. Import the modules of your
      own classes first: only those of awmkit, JAX, Equinox, Optax and Diffrax are imported.

    **Returns:** the tree.

    **Raises:** `ValueError` if `save` did not write the file, it was damaged since, `like` has another structure, or `like` is `None`
    and the tree has a part without a name, such as a lambda, or a class that is not imported. Classes are
    compared by name, functions by their code and what they close over. Python's minor versions have different code, which is not
    compared then; and if the versions of any library differ, nor are static fields that only one side has.
    """
    with Path(path).open("rb") as file:
        header = _header(path, file)
        if like is None:
            if "tree" not in header:
                raise ValueError(f"{path} was saved by an older awmkit, and does not say what its tree is; pass like=.")
            like = build(path, header["tree"])
        _check_fits(path, header, like)
        digest = hashlib.sha256()
        leaves, treedef = jtu.tree_flatten(like)
        loaded = [_read(path, file, digest, leaf) if _is_written(leaf) else leaf for leaf in leaves]
        if file.read(1) or digest.hexdigest() != header["sha256"]:
            raise ValueError(_damaged(path))
    return jtu.tree_unflatten(treedef, loaded)


def read_header(path: str | Path) -> dict[str, Any]:
    """Read the `config` and the `versions` that `save` wrote at the head of a file.

    **Raises:** `ValueError` if `save` did not write the file, or its head was damaged since.
    """
    with Path(path).open("rb") as file:
        header = _header(path, file)
    return {"config": header["config"], "versions": header["versions"]}


def _header(path, file) -> dict[str, Any]:
    line, checksum = file.readline(), file.readline()
    if checksum.strip().decode(errors="replace") != hashlib.sha256(line).hexdigest():
        if line.startswith(b'{"config": '):
            raise ValueError(_damaged(path))
        raise ValueError(f"{path} was not written by awmkit.save; pass the path of a file that was.")
    return json.loads(line)


def _damaged(path) -> str:
    return f"{path} was damaged after awmkit.save wrote it, because its checksum is wrong; restore it from a copy, or save it again."


def _check_fits(path, header, like) -> None:
    """Raise if the structure of `like` is not that of the file."""
    pairs = list(zip((header["structure"], header["arrays"]), structure(like), strict=True))
    saved, given = pairs[0]
    if header["versions"]["python"].split(".")[:2] != platform.python_version().split(".")[:2]:
        saved, given = ({name: x for name, x in lines.items() if not name.endswith(" code")} for lines in (saved, given))
    if header["versions"] != versions():
        saved, given = (
            {name: x for name, x in one.items() if name in other} for one, other in ((saved, given), (given, saved))
        )
    difference = first_difference(saved, given) or first_difference(*pairs[1])
    if difference is not None:
        name, saved, given = difference
        raise ValueError(
            f"{path} does not fit the tree given: its {name} is {saved}, and the tree given has {given}; build that with the "
            "arguments of the saved one."
        )


def _is_written(leaf) -> bool:
    return type(leaf) in _NUMBERS or is_array(leaf)


def _is_key(x) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _bytes(leaf) -> bytes:
    if type(leaf) in _NUMBERS:
        return repr(leaf).encode() + b"\n"
    array = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
    if array.dtype.hasobject:
        raise ValueError("save got an array of objects, or the shape of an array; pass arrays of numbers.")
    return array.tobytes()


def _read(path, file, digest, like):
    """Read a leaf of the type of `like`, and add its bytes to the checksum."""
    if type(like) in _NUMBERS:
        raw = file.readline()
        digest.update(raw)
        text = raw.decode(errors="replace").strip()
        try:
            return text == "True" if isinstance(like, bool) else type(like)(text)
        except ValueError:
            raise ValueError(_damaged(path)) from None
    data = jax.eval_shape(jax.random.key_data, like) if _is_key(like) else like
    raw = file.read(data.dtype.itemsize * math.prod(data.shape))
    digest.update(raw)
    if len(raw) < data.dtype.itemsize * math.prod(data.shape):
        raise ValueError(_damaged(path))
    array = np.ndarray(data.shape, data.dtype, bytearray(raw))
    if isinstance(like, np.ndarray):
        return array
    if isinstance(like, np.generic):
        return array[()]
    loaded = jnp.array(array)
    if loaded.dtype != array.dtype:
        raise ValueError(f"{path} has a {array.dtype} array; load it with jax.config.update('jax_enable_x64', True).")
    return jax.random.wrap_key_data(loaded, impl=jax.random.key_impl(jnp.zeros((), like.dtype))) if _is_key(like) else loaded
