"""A run in one file: arrays and what they belong to, written so that a crash leaves the old file or the new one.

Apart from the algorithm because anything made of arrays can be kept with it.
"""

import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import PyTree

T = TypeVar("T")


def versions() -> dict[str, str]:
    """Of what decides a result: Python, JAX and its friends, and awmkit."""
    packages = ("awmkit", "jax", "jaxlib", "equinox", "optax", "diffrax", "numpy")
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}


def save(path: str | Path, tree: PyTree, *, config: Mapping[str, Any] | None = None) -> None:
    """Write `tree` to one file: a line of JSON with `config` and versions, then every array.

    Written beside the file and moved over it, so that a kill at any moment leaves a whole file, the old one or the new one.

    ```python
    save("model.awm", fitted.model, config={"task": "pendulum"})
    model = load("model.awm", AWM(4, 2, Transformer(key=k1), key=k2))  # of the same sizes
    ```

    **Arguments**

    - `path`: the file; its folder must exist.
    - `tree`: of arrays, random keys, numbers and anything else; what is none of the first three is not written.
    - `config`: whatever JSON can hold.

    **Raises:** `ValueError` for a folder that does not exist, and a `config` that JSON cannot hold.
    """
    path = Path(path)
    check_folder(path)
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    header = {"config": {} if config is None else dict(config), "versions": versions()}
    try:
        line = json.dumps(header).encode() + b"\n"
    except TypeError as error:
        raise ValueError(f"The config cannot be written as JSON ({error}); give numbers, strings, lists and dicts.") from None
    try:
        with beside.open("wb") as file:
            file.write(line)
            eqx.tree_serialise_leaves(file, _plain(tree))
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def check_folder(path: Path) -> None:
    """Raise where a file cannot be made."""
    if path.is_dir() or not path.parent.is_dir():
        wrong = "is a folder" if path.is_dir() else "is in a folder that does not exist"
        raise ValueError(f"{path} {wrong}; give the path of a file in a folder that does, or make it first.")


def load(path: str | Path, like: T) -> T:
    """Read what `save` wrote.

    **Arguments:** `path`: the file. `like`: a tree of the same structure, shapes and dtypes, such as a newly built model;
    arrays may be `jax.ShapeDtypeStruct`s. What is not an array comes from it.

    **Returns:** the tree.

    **Raises:** `ValueError` for a file that `save` did not write or that does not fit `like`.
    """
    with Path(path).open("rb") as file:
        _header(path, file)
        try:
            plain = eqx.tree_deserialise_leaves(file, _plain(like))
            if file.read(1):
                raise ValueError("the file goes on after it")
        except (RuntimeError, EOFError, ValueError) as error:
            raise ValueError(
                f"{path} does not hold a tree like the one given ({error}); build it with the arguments it was saved with."
            ) from error
    return jtu.tree_map(
        lambda x, new: jax.random.wrap_key_data(new, impl=jax.random.key_impl(jnp.zeros((), x.dtype))) if _is_key(x) else new,
        like,
        plain,
    )


def read_header(path: str | Path) -> dict[str, Any]:
    """The `config` and the `versions` that a file was saved with.

    **Raises:** `ValueError` for a file that `save` did not write.
    """
    with Path(path).open("rb") as file:
        return _header(path, file)


def _header(path, file) -> dict[str, Any]:
    try:
        header = json.loads(file.readline())
        return {"config": header["config"], "versions": header["versions"]}
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} was not written by awmkit.save; give the file of a checkpoint.") from None


def _is_key(x) -> bool:
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _plain(tree):
    """Random keys as the integers that they are made of."""
    data = lambda x: jax.random.key_data(x) if eqx.is_array(x) else jax.eval_shape(jax.random.key_data, x)
    return jtu.tree_map(lambda x: data(x) if _is_key(x) else x, tree)
