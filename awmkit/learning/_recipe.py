"""A description of a tree in JSON, from which `load` builds a tree of the same structure."""

import base64
import dataclasses
import enum
import importlib
import math
import sys
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

from .._fingerprint import is_array

_NUMBERS: dict[str, Any] = {"bool": bool, "int": int, "float": float, "complex": complex}
_LIBRARIES = "awmkit", "diffrax", "equinox", "jax", "optax"
_PUBLIC = (
    "jax.nn",
    "jax.numpy",
    "jax.lax",
    "jax.scipy.special",
    "jax.random",
    "equinox.nn",
)  # Their functions are defined elsewhere.


def recipe(x: Any, saved: bool = True) -> Any:
    """Return what JSON can say of `x`: classes and functions by name, settings by value.

    `saved` says that `x` is part of the tree, so that of its arrays and numbers only the types are described.
    """
    saved = saved and (type(x) in _NUMBERS.values() or is_array(x) or not jtu.all_leaves([x]))
    if saved and type(x) in _NUMBERS.values():
        return {"number": type(x).__name__}
    if is_array(x):
        return _array(x, saved)
    if x is None or type(x) in (bool, int, str) or (type(x) is float and math.isfinite(x)):
        return x
    if type(x) in (float, complex):
        return {"value": repr(x), "of": type(x).__name__}
    if isinstance(x, np.dtype):
        return {"dtype": _name_of_dtype(x)}
    if isinstance(x, enum.Enum):
        return _named(type(x), lambda name: {"member": x.name, "of": name})
    if isinstance(x, type):
        return _named(x, lambda name: {"class": name})
    if isinstance(x, list | tuple) and type(x) in (list, tuple):
        return {type(x).__name__: [recipe(y, saved) for y in x]}
    if type(x) is dict:
        return {"dict": [[recipe(key, False), recipe(y, saved)] for key, y in x.items()]}
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return _named(type(x), lambda name: {"tuple of": name, "items": [recipe(y, saved) for y in x]})
    if isinstance(x, jtu.Partial):  # It could call any function with any arguments.
        return {"unsaid": "a Partial"}
    function = _named(x, lambda name: {"function": name}) if callable(x) else {}
    if "function" in function:  # A compiled function may be a module of Equinox.
        return function
    if dataclasses.is_dataclass(x):
        static = {field.name: field.metadata.get("static", False) for field in dataclasses.fields(x) if hasattr(x, field.name)}
        inside = saved and isinstance(x, eqx.Module)
        fields = {name: recipe(getattr(x, name), inside and not static[name]) for name in static}
        return _named(type(x), lambda name: {"object": name, "fields": fields})
    return function or {"unsaid": f"a {type(x).__qualname__}"}


def build(path: Any, tree: Any, name: str = "") -> Any:
    """Return a tree of the structure that `recipe` described, with shapes for the arrays of JAX.

    Nothing is called but `__new__` of `object` and of `tuple`, and only modules of awmkit and of the libraries that it is built on
    are imported.

    **Arguments:** `path`: the file, for errors. `name`: the path of the tree within that of the file.
    """
    if not isinstance(tree, dict):
        return tree
    inner = lambda x, part: build(path, x, f"{name}{part}".removeprefix("."))
    tag = next(iter(tree))
    given = tree[tag]
    if tag == "number":
        return _NUMBERS[given](0)
    if tag == "value":
        return float(given) if tree["of"] == "float" else complex(given)
    if tag in ("array", "numpy", "scalar", "key"):
        return _blank(tag, *given) if "bytes" not in tree else _constant(tag, *given, base64.b64decode(tree["bytes"]))  # pyright: ignore[reportCallIssue]
    if tag == "dtype":
        return np.dtype(given)
    if tag == "list":
        return [inner(x, f"[{i}]") for i, x in enumerate(given)]
    if tag == "tuple":
        return tuple(inner(x, f"[{i}]") for i, x in enumerate(given))
    if tag == "dict":
        return {(key := inner(k, "")): inner(x, f"[{key!r}]") for k, x in given}
    if tag == "unsaid":
        raise _unsaid(path, name, given)
    found = _found(path, name, tree["of"] if tag == "member" else given)
    if tag == "function" and callable(found) and not isinstance(found, type) or tag == "class" and isinstance(found, type):
        return found
    if tag == "member" and isinstance(found, enum.EnumMeta):
        return found[given]
    if tag == "tuple of" and isinstance(found, type) and issubclass(found, tuple) and hasattr(found, "_fields"):
        return tuple.__new__(found, [inner(x, f".{part}") for part, x in zip(found._fields, tree["items"], strict=True)])  # pyright: ignore
    if tag == "object" and isinstance(found, type) and dataclasses.is_dataclass(found) and found is not jtu.Partial:
        made = object.__new__(found)
        for field in dataclasses.fields(found):
            if field.name in tree["fields"]:
                object.__setattr__(made, field.name, inner(tree["fields"][field.name], f".{field.name}"))
        return made
    raise _unsaid(path, name, f"{given}, which is another thing by now")


def _array(x: Any, saved: bool) -> dict[str, Any]:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        kind, given, data = "key", [str(jax.random.key_impl(x)), list(x.shape)], None if saved else jax.random.key_data(x)
    else:
        kind = "scalar" if isinstance(x, np.generic) else "numpy" if isinstance(x, np.ndarray) else "array"
        given, data = [_name_of_dtype(x.dtype), list(x.shape)], x
    if saved:
        return {kind: given} if getattr(x.dtype, "names", None) is None else {"unsaid": "an array of records"}
    if isinstance(x, jax.ShapeDtypeStruct) or x.dtype.hasobject or x.size > 10_000:
        return {"unsaid": "a static array without values, of objects or of more than 10,000 entries"}
    return {kind: given, "bytes": base64.b64encode(np.asarray(data).tobytes()).decode()}


def _blank(kind: str, dtype: str, shape: list[int]) -> Any:
    if kind == "key":
        return jax.eval_shape(lambda: jnp.broadcast_to(jax.random.key(0, impl=dtype), shape))
    if kind == "array":
        return jax.ShapeDtypeStruct(tuple(shape), np.dtype(dtype))
    blank = np.zeros(shape, np.dtype(dtype))
    return blank[()] if kind == "scalar" else blank


def _constant(kind: str, dtype: str, shape: list[int], raw: bytes) -> Any:
    if kind == "key":
        return jax.random.wrap_key_data(jnp.array(np.frombuffer(raw, np.uint32).reshape(*shape, -1)), impl=dtype)
    array = np.ndarray(shape, np.dtype(dtype), bytearray(raw))
    return jnp.array(array) if kind == "array" else array[()] if kind == "scalar" else array


def _name_of_dtype(dtype: Any) -> str:
    return dtype.str if dtype.isbuiltin == 1 or dtype.kind in "SUMm" or not dtype.isnative else dtype.name


def _named(x: Any, say: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """Return `say(name)` of a class or function that a module offers by a name."""
    name, home = getattr(x, "__qualname__", None) or getattr(x, "__name__", None), getattr(x, "__module__", None)
    if not isinstance(name, str) or not isinstance(home, str):
        return {"unsaid": f"a {type(x).__qualname__}"}
    if "<" in name:  # A lambda, or defined inside a function. A module may still have it by another name.
        names = (other for other, y in vars(sys.modules.get(home, object)).items() if y is x)
        name = next(names, None)
    if name is None:
        return {"unsaid": f"{'a lambda' if x.__qualname__.endswith('<lambda>') else 'defined'} inside a function"}
    parts = home.split(".")
    modules = [".".join(parts[: i + 1]) for i in range(len(parts))]
    for module in (*modules[:-1], *_PUBLIC, home):
        if module in sys.modules and _allowed(module) and _attribute(sys.modules[module], name) is x:
            return say(f"{module}:{name}")
    return {"unsaid": f"{home}.{name}, which no module of your own, awmkit, JAX, Equinox, Optax or Diffrax offers by this name"}


def _found(path: Any, at: str, given: str) -> Any:
    """Return the class or function of this name."""
    home, name = given.split(":")
    if home.partition(".")[0] in _LIBRARIES:
        try:
            importlib.import_module(home)
        except ImportError as error:
            raise _unsaid(path, at, f"{given.replace(':', '.')}, which cannot be imported ({error})") from None
    if home not in sys.modules or not _allowed(home):
        raise ValueError(
            f"{path} has {given.replace(':', '.')} as its {at or 'type'}, and {home} is not imported; import it first, or pass like=, a "
            "tree built with the arguments of the saved one."
        )
    found = _attribute(sys.modules[home], name)
    if found is None:
        raise _unsaid(path, at, f"{given.replace(':', '.')}, which does not exist")
    if not _allowed(source := str(getattr(found, "__module__", None))):
        raise _unsaid(path, at, f"{source}.{name}, which a file may not name")
    return found


def _allowed(module: str) -> bool:
    """Whether a file may refer to classes and functions of this module."""
    top = module.partition(".")[0]
    return top == "__main__" or top not in sys.stdlib_module_names


def _attribute(found: Any, name: str) -> Any:
    """Return a class or function of a module, or of one of its classes, but not of a module that it imports."""
    parts = name.split(".")
    for i, part in enumerate(parts):
        found = None if i and not isinstance(found, type) else getattr(found, part, None)
    return found


def _unsaid(path: Any, name: str, what: str) -> ValueError:
    return ValueError(
        f"{path} cannot be loaded without like, because its {name or 'type'} is {what}; pass like=, a tree built with the arguments of "
        "the saved one."
    )
