"""Save any tree of arrays to one file and load it again. Writing is atomic."""

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
    """Return the versions of Python, awmkit, JAX and the libraries based on JAX, which may all affect results."""
    import awmkit  # Not at the top, since awmkit imports this file. It may be on the path without being installed.

    packages = ("jax", "jaxlib", "equinox", "optax", "diffrax", "numpy")
    installed = {package: version(package) for package in packages}
    return {"python": platform.python_version(), "awmkit": awmkit.__version__, **installed}


def save(path: str | Path, tree: PyTree, *, config: Mapping[str, Any] | None = None) -> None:
    """Write a tree of arrays to one file: a line of JSON with `config` and the versions of all libraries, then the arrays.

    The file is replaced atomically: after a crash, `path` is either the complete old file or the complete new one.

    ```python
    save("model.awm", fitted.model, config={"task": "pendulum"})
    model = load("model.awm", AWM(4, 2, key=key))  # a new model of the same sizes
    ```

    **Arguments**

    - `path`: the file; its folder must exist.
    - `tree`: a model, a policy or any other tree. Arrays, random keys and numbers are written; all other leaves, such as
      functions, are not.
    - `config`: numbers, strings, lists and dicts to store with the tree, such as the arguments that built the model; read it
      with `awmkit.learning.read_header`.

    **Raises:** `ValueError` if the folder does not exist, or `config` cannot be written as JSON.
    """
    path = Path(path)
    check_folder(path)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    header = {"config": {} if config is None else dict(config), "versions": versions()}
    try:
        line = json.dumps(header).encode() + b"\n"
    except TypeError as error:
        raise ValueError(
            f"The config cannot be written as JSON ({error}); pass numbers, strings, lists and dicts only."
        ) from None
    try:
        with part.open("wb") as file:
            file.write(line)
            eqx.tree_serialise_leaves(file, _plain(tree))
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def check_folder(path: Path) -> None:
    """Raise if `path` is a folder, or its folder does not exist."""
    if path.is_dir() or not path.parent.is_dir():
        wrong = "is a folder" if path.is_dir() else "is in a folder that does not exist"
        raise ValueError(f"{path} {wrong}; pass the path of a file in an existing folder.")


def load(path: str | Path, like: T) -> T:
    """Read a tree that `save` wrote.

    **Arguments**

    - `path`: the file.
    - `like`: a tree of the same structure, shapes and dtypes, such as a newly built model. Its arrays may be
      `jax.ShapeDtypeStruct`s. Leaves that `save` does not write, such as functions, are taken from it.

    **Returns:** the tree.

    **Raises:** `ValueError` if `save` did not write the file, or the file does not fit `like`.
    """
    with Path(path).open("rb") as file:
        _header(path, file)
        try:
            plain = eqx.tree_deserialise_leaves(file, _plain(like))
            if file.read(1):
                raise ValueError("the file has more data")
        except (RuntimeError, EOFError, ValueError) as error:
            raise ValueError(
                f"{path} does not fit the tree given ({error}); build that with the arguments of the saved one."
            ) from error
    return jtu.tree_map(
        lambda x, new: jax.random.wrap_key_data(new, impl=jax.random.key_impl(jnp.zeros((), x.dtype))) if _is_key(x) else new,
        like,
        plain,
    )


def read_header(path: str | Path) -> dict[str, Any]:
    """Read the `config` and the `versions` that `save` wrote at the head of a file.

    **Raises:** `ValueError` if `save` did not write the file.
    """
    with Path(path).open("rb") as file:
        return _header(path, file)


def _header(path, file) -> dict[str, Any]:
    try:
        header = json.loads(file.readline())
        return {"config": header["config"], "versions": header["versions"]}
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} was not written by awmkit.save; pass the path of a file that was.") from None


def _is_key(x) -> bool:
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _plain(tree):
    """The tree with random keys replaced by the integers that they are made of."""
    data = lambda x: jax.random.key_data(x) if eqx.is_array(x) else jax.eval_shape(jax.random.key_data, x)
    return jtu.tree_map(lambda x: data(x) if _is_key(x) else x, tree)
