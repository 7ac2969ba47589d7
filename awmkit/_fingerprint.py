"""Describe what decides a result, line by line: types, fields, arrays, functions and everything they close over."""

import copyreg
import dataclasses
import dis
import enum
import functools
import hashlib
import importlib.util
import inspect
import itertools
import os
import sys
import sysconfig
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import jaxtyping
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh, Sharding

Lines = dict[str, str]

_FOLDERS = *(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")), str(Path(__file__).parent)
_INSTALLED = tuple(f"{folder}{os.sep}" for folder in _FOLDERS)
_ATOMS = (bool, int, float, complex, str, bytes, type(None), type(...), type(NotImplemented), range, slice)
_SLOTS = types.MemberDescriptorType, types.GetSetDescriptorType, types.WrapperDescriptorType, types.MethodDescriptorType
_RANDOM = "_np_random", "_np_random_seed"  # Of environments and spaces of Gymnasium. A run seeds them.
_OF_WRAPPERS = "env", "_cached_spec", "_saved_kwargs", "_action_space", "_observation_space", "_reward_range", "_metadata"
_MISSING = object()


def fingerprint(tree: Any) -> Lines:
    """Return a line of text for everything in `tree` that decides a result, by its path. Equal results need equal fingerprints.

    Arrays are described by dtype, shape and bytes; functions by their code, everything they close over, and the globals that
    they read; classes by their code; all other objects by what `pickle` would store. Functions and classes of installed
    packages are described by name. Two processes describe equal trees equally, with one minor version of Python.

    An object that this does not suit may have a method `__fingerprint__()`. It returns what to describe instead, such as a
    string or numbers that change whenever the object's behaviour does.

    A Gymnasium environment is described by its wrappers, its id and arguments, and its attributes after `env.reset(seed=0)`, which
    this calls.

    **Arguments:** `tree`: any object.

    **Returns:** the lines by path, in the order of the tree.

    **Raises:** `ValueError` if a part can neither be described nor has a method `__fingerprint__`.
    """
    walk = _Walk(saved=False)
    walk.visit(tree, "")
    return walk.lines


def structure(tree: Any) -> tuple[Lines, Lines]:
    """Return a fingerprint of a tree without the values that `awmkit.save` writes, and the types of these values.

    Static fields, functions and all other leaves are described in full, or by their class if that is not possible.
    """
    walk = _Walk(saved=True)
    walk.visit(tree, "", saved=True)
    return walk.lines, walk.arrays


def is_array(x: Any) -> bool:
    """Whether `x` is an array or a NumPy scalar, or has the shape and dtype of one."""
    return type(x) in (np.ndarray, np.memmap) or isinstance(x, np.generic | jax.Array | jax.ShapeDtypeStruct)


def first_difference(saved: Mapping[str, str], given: Mapping[str, str]) -> tuple[str, str, str] | None:
    """Return the path of the first line that differs, and both lines; `None` if all are equal."""
    for path in dict.fromkeys((*saved, *given)):
        if saved.get(path) != given.get(path):
            return path or "type", saved.get(path, "missing"), given.get(path, "missing")
    return None


class _Walk:
    """The lines so far, and what is being described."""

    def __init__(self, saved: bool):
        self.lines: Lines = {}
        self.arrays: Lines = {}  # Those whose values are written to a file.
        self._saved = saved  # Whether only the structure is described.
        self._above: list[int] = []  # The objects that contain the one being described.
        self._named: dict[Any, str] = {}  # Classes and globals, which are described once.
        self._alive: list[Any] = []  # Without a reference, the id of a temporary object could be used again.

    def visit(self, x: Any, path: str, saved: bool = False) -> None:
        """Describe `x`. `saved` says that arrays and numbers are written to a file, so that only their types matter."""
        if id(x) in self._above and not isinstance(x, _ATOMS):
            self.lines[path] = f"the object {self._above[::-1].index(id(x)) + 1} levels above"
            return
        self._above.append(id(x))
        self._alive.append(x)
        try:
            self._describe(x, path, saved)
        finally:
            self._above.pop()

    def _describe(self, x, path, saved) -> None:
        number = type(x) in (bool, int, float, complex)
        saved = saved and (number or is_array(x) or not jtu.all_leaves([x]))
        label = None if isinstance(x, type) or saved else getattr(x, "__fingerprint__", None)
        if callable(label):
            self.lines[path] = self._name_of_class(type(x))
            self.visit(label(), _join(path, "__fingerprint__()"))
        elif saved and number:
            self.arrays[path] = type(x).__name__
        elif type(x) in _ATOMS:
            self.lines[path] = _short(repr(x))
        elif is_array(x):
            self._array(x, path, saved)
        elif isinstance(x, enum.Enum):
            self.lines[path] = f"{self._name_of_class(type(x))}.{x.name}"
        elif isinstance(x, np.dtype | Mesh | Sharding | jax.Device | PurePath):
            self.lines[path] = str(x)
        elif isinstance(x, inspect.Signature):
            self.lines[path] = f"signature of {', '.join(x.parameters)}"
        elif isinstance(x, types.ModuleType):
            self.lines[path] = f"module {x.__name__.rpartition('.')[2]}"
            self._globals({path: x}, [path], [name for name in vars(x) if not name.startswith("__")], "")
        elif isinstance(x, type):
            self.lines[path] = f"class {self._name_of_class(x)}"
        elif (name := _name_in_a_package(x)) is not None:
            self.lines[path] = name
        elif isinstance(x, weakref.ref):
            self.visit(x(), path)
        elif isinstance(x, types.FunctionType) and hasattr(x, "__wrapped__") and _only_checks(x):
            self.visit(x.__wrapped__, path)
        elif isinstance(x, types.FunctionType):
            self._function(x, path)
        elif isinstance(x, types.MethodType | types.BuiltinMethodType):
            self.lines[path] = f"method {x.__name__}"
            self.visit(x.__self__, _join(path, "__self__"))
            if isinstance(x, types.MethodType):
                self.visit(x.__func__, _join(path, "__func__"))
        elif isinstance(x, functools.partial):
            self._partial(x, path, saved)
        elif type(x) in (dict, OrderedDict, types.MappingProxyType):
            order = f" of {', '.join(map(self._text, x))}" if isinstance(x, OrderedDict) else ""
            self.lines[path] = f"{type(x).__name__}{order}"
            for key in sorted(x, key=self._text):
                self.visit(x[key], f"{path}[{self._text(key)}]", saved)
        elif isinstance(x, tuple) and hasattr(x, "_fields"):
            self._children(x, path, {name: (y, saved) for name, y in cast(Any, x)._asdict().items()})
        elif type(x) in (list, tuple) and len(x) > 100 and not saved and all(type(y) in _ATOMS for y in x):
            self.lines[path] = f"{type(x).__name__} of {len(x)} {hash_of(repr(x).encode())}"
        elif type(x) in (list, tuple):
            self.lines[path] = type(x).__name__
            for i, y in enumerate(x):
                self.visit(y, f"{path}[{i}]", saved)
        elif isinstance(x, set | frozenset):
            self.lines[path] = f"{type(x).__name__} of {', '.join(sorted(map(self._text, x)))}"
        elif _is_environment(x):
            self._environment(x, path)
        elif self._name_of_class(type(x)) == "mujoco.MjData":
            # A state of MuJoCo, with bytes that were never set. An environment sets the others when it is reset.
            self.lines[path] = "mujoco.MjData"
        elif isinstance(x, eqx.Module):
            fields = {field.name: field.metadata.get("static", False) for field in dataclasses.fields(x)}
            given = ((name, static) for name, static in fields.items() if hasattr(x, name))
            self._children(x, path, {name: (getattr(x, name), saved and not static) for name, static in given})
        elif saved:
            pairs, structure = jtu.tree_flatten_with_path(x, is_leaf=lambda y: y is not x)
            children = {jtu.keystr(key).lstrip("."): (y, True) for key, y in pairs}
            self._children(x, path, children | {"structure": (structure.node_data()[1], False)})  # pyright: ignore[reportOptionalSubscript]
        elif dataclasses.is_dataclass(x):
            self._children(x, path, {field.name: (getattr(x, field.name, None), False) for field in dataclasses.fields(x)})
        elif "__wrapped__" in getattr(x, "__dict__", {}):  # jax.jit, jax.custom_jvp, functools.cache
            rest = {name: (y, False) for name, y in vars(x).items() if name[0] != "_" and name != "fun"}
            self._children(x, path, {"__wrapped__": (vars(x)["__wrapped__"], False), **rest})
        else:
            self._object(x, path)

    def _children(self, x, path, children: dict[str, tuple[Any, bool]]) -> None:
        self.lines[path] = self._name_of_class(type(x))
        for name, (y, saved) in children.items():
            self.visit(y, _join(path, name), saved)

    def _text(self, x) -> str:
        """A description of `x` in one line."""
        if type(x) in _ATOMS:
            return _short(repr(x))
        outer, self.lines = self.lines, {}
        self.visit(x, "")
        inner, self.lines = self.lines, outer
        return _short(" ".join(itertools.chain.from_iterable(inner.items())))

    def _array(self, x, path, saved) -> None:
        kind = f"{x.dtype}{list(x.shape)}"
        if isinstance(x, Tracer):
            raise ValueError(
                f"{path or 'This'} is a traced array, which has no value to describe; call this outside of jax.jit and jax.vmap."
            )
        if saved or isinstance(x, jax.ShapeDtypeStruct):
            (self.arrays if saved else self.lines)[path] = kind
            return
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.random.key_data(x)
        x = np.asarray(x)
        if x.dtype.hasobject:
            self.lines[path] = kind
            self.visit(x.tolist(), _join(path, "tolist()"))
        else:
            self.lines[path] = f"{kind} {x.tolist() if x.size <= 8 else hash_of(x)}"

    def _function(self, fn: types.FunctionType, path) -> None:
        code, installed = fn.__code__, _installed(fn.__code__.co_filename)
        package = fn.__globals__.get("__name__", "").partition(".")[0]  # functools.wraps changes the names of a function.
        self.lines[path] = f"function {package}.{code.co_qualname}" if installed else f"function {fn.__name__}"
        if not installed:
            self.lines[f"{path} code"] = hash_of(repr(_code(code)).encode())
        read = set(_names_of(code))
        for name, cell in zip(code.co_freevars, fn.__closure__ or (), strict=True):
            if isinstance(value := _content(cell), types.ModuleType):
                self._globals({name: value}, [name], read, "global ")
            else:
                self.visit(value, _join(path, name))
        names = code.co_varnames[: code.co_argcount]
        defaults = dict(zip(reversed(names), reversed(fn.__defaults__ or ()), strict=False)) | (fn.__kwdefaults__ or {})
        for name, value in sorted(defaults.items()):
            self.visit(value, f"{path}({name})")
        if not installed and not self._saved:
            for name, value in sorted(vars(fn).items()):
                self.visit(value, _join(path, name))
            self._globals(fn.__globals__, _globals_of(code), read, "global ")
            modules = _imports_of(code, fn.__globals__.get("__package__"))
            self._globals(modules, modules, read, "global ")

    def _globals(self, scope: Mapping[str, Any], names, attributes, prefix, above: tuple[int, ...] = ()) -> None:
        """Describe globals that a function reads, and attributes of modules of the user that it may read."""
        for name in sorted(names):
            value = scope.get(name, _MISSING)
            if isinstance(value, types.ModuleType):
                if _is_users(value) and id(value) not in above:
                    read = [x for x in attributes if x in vars(value)]
                    self._globals(vars(value), read, attributes, f"{prefix}{name}.", (*above, id(value)))
            elif value is not _MISSING:
                self._once((id(scope), name), f"{prefix}{name}", lambda path, value=value: self.visit(value, path))

    def _once(self, key, name, describe: Callable[[str], None]) -> str:
        """Describe something under a name of its own, unless it has been. Return the name."""
        if key not in self._named:
            taken = sum(other.partition(" (")[0] == name for other in self._named.values())
            self._named[key] = f"{name} ({taken + 1})" if taken else name
            above, self._above = self._above, []
            describe(self._named[key])
            self._above = above
        return self._named[key]

    def _name_of_class(self, cls: type) -> str:
        module = sys.modules.get(cls.__module__)
        if cls.__module__ == "builtins":
            return cls.__qualname__
        if cls.__module__ != "__main__" and module is not None and _installed(getattr(module, "__file__", None)):
            return f"{cls.__module__.partition('.')[0]}.{cls.__qualname__}"
        if self._saved or issubclass(cls, enum.Enum):
            return cls.__qualname__
        self._alive.append(cls)
        return self._once(id(cls), cls.__qualname__, lambda name: self._class(cls, name))

    def _class(self, cls: type, name: str) -> None:
        """Describe the code and the constants of a class of the user. Fields are those of its instances."""
        for base in cls.__bases__:
            self._name_of_class(base)
        fields = [field.name for field in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []
        for attribute, value in sorted(vars(cls).items()):
            function = inspect.unwrap(_function_of(value))
            is_function = isinstance(function, types.FunctionType)
            generated = is_function and function.__code__.co_filename == "<string>" and attribute.startswith("__")
            special = attribute.startswith("__") and not is_function
            if not (generated or special or attribute in fields or attribute == "_abc_impl" or isinstance(value, _SLOTS)):
                self.visit(_function_of(value), f"class {name}.{attribute}")

    def _partial(self, x: functools.partial, path, saved) -> None:
        self.lines[path] = "partial"
        self.visit(x.func, _join(path, "func"))
        try:
            parameters = list(inspect.signature(x.func).parameters.values())
        except (TypeError, ValueError):
            parameters = []
        names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        for i, y in enumerate(x.args):
            self.visit(y, _join(path, names[i] if i < len(names) else f"args[{i}]"), saved)
        for name, y in sorted(x.keywords.items()):
            self.visit(y, _join(path, name), saved)

    def _environment(self, env, path) -> None:
        """A Gymnasium environment: its wrappers, its specification, and its attributes after a reset with a seed."""
        import gymnasium

        if isinstance(env, gymnasium.Wrapper):
            if not self._saved and getattr(env, "update_running_mean", False):
                raise ValueError(
                    f"{path or 'This'} is a {type(env).__name__}, whose running statistics are not part of a checkpoint; remove it, "
                    "because awmkit.train normalises states itself, or set its update_running_mean to False."
                )
            own = {name: x for name, x in vars(env).items() if name not in _OF_WRAPPERS}
            if (recorded := getattr(env, "_saved_kwargs", None)) is not None:
                # Other attributes may count steps or seconds. Some wrappers do not record all of their arguments.
                parameters = (
                    *(name for name in inspect.signature(type(env)).parameters if name != "env"),
                    "obs_rms",
                    "return_rms",
                )
                own = {name: x for name, x in own.items() if name.lstrip("_").startswith(parameters)} | recorded
            self._children(env, path, {name: (x, False) for name, x in sorted(own.items())})
            self.visit(env.env, _join(path, "env"))
            return
        self.lines[path] = self._name_of_class(type(env))
        spec = env.spec
        if spec is not None:
            settings = {name: x for name, x in spec.kwargs.items() if name != "render_mode"}
            self.visit({"id": spec.id, **settings}, _join(path, "spec"))
        if self._saved:
            return
        env.reset(seed=0)
        for name, value in sorted(vars(env).items()):
            # An environment made by its id is described by that. Its other attributes may be windows and clocks, opened later.
            known = spec is None or (value is not None and _is_plain(value))
            if name not in ("spec", "render_mode", *_RANDOM) and known:
                self.visit(value, _join(path, name))

    def _object(self, x, path) -> None:
        """Describe `x` by what `pickle` would store of it."""
        try:
            made: Any = copyreg.dispatch_table[type(x)](x) if type(x) in copyreg.dispatch_table else x.__reduce_ex__(4)
        except Exception:
            made = None
        if made is None or isinstance(x, Iterator):
            if not self._saved:
                raise ValueError(
                    f"{path or 'This'} is a {type(x).__name__}, which cannot be described, so that a change of it would not be seen; "
                    "give its class a method __fingerprint__() that returns a string or numbers that change whenever its behaviour "
                    "does."
                )
            self.lines[path] = self._name_of_class(type(x))
            return
        if isinstance(made, str):
            self.lines[path] = f"{self._name_of_class(type(x))} {made}"
            return
        make, args, state, items, pairs = (*made, None, None, None)[:5]
        self.lines[path] = self._name_of_class(type(x))
        if make not in (copyreg.__newobj__, copyreg.__newobj_ex__):  # pyright: ignore[reportAttributeAccessIssue]
            self.visit(make, _join(path, "__reduce__"))
        for i, y in enumerate(args or ()):
            if y is not type(x):
                self.visit(y, _join(path, f"args[{i}]"))
        # The state of a class with slots is a pair of dicts.
        parts = state if isinstance(state, tuple) and all(isinstance(part, dict | None) for part in state) else (state,)
        for part in parts:
            for name, y in sorted(part.items()) if isinstance(part, dict) else ([] if part is None else [("state", part)]):
                if name not in _RANDOM:
                    self.visit(y, _join(path, str(name)))
        for i, y in enumerate(items or ()):
            self.visit(y, f"{path}[{i}]")
        if pairs is not None:
            self.visit(dict(pairs), _join(path, "items"))


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path and not name.startswith("[") else f"{path}{name}"


def hash_of(data) -> str:
    """The start of the SHA-256 of bytes, or of an array's bytes."""
    return f"sha256 {hashlib.sha256(data if isinstance(data, bytes) else data.tobytes()).hexdigest()[:16]}"


def _short(text: str) -> str:
    """A text, with its end replaced by a hash if it is long."""
    return text if len(text) <= 200 else f"{text[:120]}... {hash_of(text.encode())}"


def _installed(filename: str | None) -> bool:
    """Whether a file belongs to an installed package, to Python or to awmkit. Built-in modules have no file."""
    if filename is None or filename.startswith("<frozen"):
        return True
    return filename.startswith(_INSTALLED) or any(part in filename for part in ("site-packages", "dist-packages"))


def _only_checks(fn: types.FunctionType) -> bool:
    """Whether a function adds checks of shapes or types to another one: those of awmkit, jaxtyping and beartype.

    The checks of types are generated code that refers to objects by their addresses, and they may be on in one process only.
    """
    file = Path(fn.__code__.co_filename)
    return file.name.startswith("<") or file.parent in (Path(__file__).parent, Path(jaxtyping.__file__).parent)


def _name_in_a_package(x) -> str | None:
    """The name by which an installed package offers `x`, such as numpy.tanh."""
    modules = getattr(x, "__module__", None), getattr(type(x), "__module__", None)
    names = getattr(x, "__qualname__", None), getattr(x, "__name__", None)
    for module, name in itertools.product(modules, names):
        if isinstance(module, str) and isinstance(name, str) and module in sys.modules and module != "__main__":
            found: Any = sys.modules[module]
            if _installed(getattr(found, "__file__", None)):
                for part in name.split("."):
                    found = getattr(found, part, None)
                if found is x:
                    return f"{module.partition('.')[0]}.{name}"
    return None


def _function_of(attribute):
    """The function of a method, property, static method or class method."""
    for name in ("__func__", "fget", "func", "method"):
        if (fn := getattr(attribute, name, None)) is not None and not isinstance(attribute, types.FunctionType):
            return fn
    return attribute


def _code(x):
    """A code object without the names of files and local variables, and without line numbers."""
    if isinstance(x, types.CodeType):
        arguments = x.co_varnames[: x.co_argcount + x.co_kwonlyargcount]
        parts = x.co_code, x.co_names, arguments, x.co_argcount, x.co_posonlyargcount, x.co_flags
        return *parts, tuple(map(_code, x.co_consts)), getattr(x, "co_exceptiontable", b"")
    if isinstance(x, frozenset):
        return sorted(repr(_code(y)) for y in x)
    return tuple(map(_code, x)) if isinstance(x, tuple) else x


def _inner(code: types.CodeType) -> Iterator[types.CodeType]:
    """A code object and those of the functions inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _inner(constant)


def _globals_of(code: types.CodeType) -> set[str]:
    reads = ("LOAD_GLOBAL", "LOAD_NAME")
    return {line.argval for inner in _inner(code) for line in dis.get_instructions(inner) if line.opname in reads}


def _imports_of(code: types.CodeType, package: str | None) -> dict[str, types.ModuleType]:
    """The modules of the user that a function imports when it is called."""
    found = {}
    for inner in _inner(code):
        lines = list(dis.get_instructions(inner))
        for level, line in zip(lines, lines[2:], strict=False):
            if line.opname == "IMPORT_NAME":
                try:
                    name = importlib.util.resolve_name("." * level.argval + line.argval, package)
                    spec = importlib.util.find_spec(name)
                    if spec is not None and spec.origin is not None and not _installed(spec.origin):
                        found[name] = importlib.import_module(name)
                except (ImportError, ValueError):
                    pass  # The function cannot import it either.
    return found


def _is_users(module: types.ModuleType) -> bool:
    folder = next(iter(getattr(module, "__path__", ())), None)  # A package without an __init__.py has no file.
    return not _installed(getattr(module, "__file__", None) or folder)


def _names_of(code: types.CodeType) -> Iterator[str]:
    return itertools.chain.from_iterable(inner.co_names for inner in _inner(code))


def _content(cell: types.CellType):
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _is_environment(x) -> bool:
    gymnasium = sys.modules.get("gymnasium")
    return gymnasium is not None and isinstance(x, gymnasium.Env)


def _is_plain(x) -> bool:
    """Whether `x` consists of numbers, strings and arrays."""
    if isinstance(x, list | tuple):
        return all(map(_is_plain, x))
    if isinstance(x, dict):
        return all(map(_is_plain, x.values()))
    return type(x) in _ATOMS or isinstance(x, np.ndarray | np.generic | jax.Array)
