"""Checks of arguments that every part of awmkit uses: shapes, whole numbers, keys and callables."""

import functools
import inspect
import operator
import re
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer


def check_counts(who: str, *, least: int = 1, **counts: Any) -> None:
    """Raise if a count is not a whole number of at least `least`. `None` stands for a count that was not given."""
    for name, count in counts.items():
        if count is None:
            continue
        if getattr(count, "ndim", 0):
            raise ValueError(
                f"{who} got {name}={describe(count)}; it sets a shape, or the number of times that a loop runs, which cannot vary within "
                "one program, so make one call for each value."
            )
        if isinstance(count, Tracer):
            raise ValueError(f"{who} got a traced {name}; it sets shapes, so pass a Python int.")
        try:
            whole = operator.index(count)
        except TypeError:
            whole = None
        if whole is None or isinstance(count, bool) or whole < least:
            raise ValueError(f"{who} got {name}={describe(count)}; give a whole number of at least {least}.")


Shape = tuple[int | str, ...]


def check_shapes(who: str, fix: str = "use jax.vmap for a batch", /, **arrays: tuple[Any, Shape]) -> None:
    """Raise unless every array has its shape. Shapes are static, so a compiled program does not contain the check.

    ```python
    check_shapes("Markov.loss", states=(states, ("H+1", 3)), actions=(actions, ("H", 2)))
    ```

    **Arguments:** `arrays`: each array with its shape. A size given by name must be the same wherever the name occurs, and "H+1"
    is one more than "H". A leading "*" stands for any number of axes, the same ones in all arrays that have it.
    """
    sizes: dict[str, Any] = {}
    if not all([_fits(x, shape, sizes) for x, shape in arrays.values()]):
        needed = [f"{name} of shape {_written(shape)}" for name, (_, shape) in arrays.items()]
        given = [kind(x) for x, _ in arrays.values()]
        raise ValueError(f"{who} needs {_listed(needed)}, got {_listed(given)}; {fix}.")


def check_floats(who: str, **arrays: Any) -> None:
    """Raise unless every array holds floating-point numbers."""
    for name, x in arrays.items():
        if not jnp.issubdtype(getattr(x, "dtype", type(x)), jnp.floating):
            raise ValueError(f"{who} needs {name} of floating-point numbers, got {kind(x)}; pass it .astype(float).")


def _fits(x: Any, needed: Shape, sizes: dict[str, Any]) -> bool:
    """Return whether `x` is an array or a number of the shape `needed`. Named sizes are looked up in `sizes`, and added to it."""
    shape = () if isinstance(x, int | float | complex) else getattr(x, "shape", None)
    if shape is None:
        return False
    if needed[:1] == ("*",):
        count = max(0, len(shape) - len(needed) + 1)
        if sizes.setdefault("*", shape[:count]) != shape[:count]:
            return False
        shape, needed = shape[count:], needed[1:]
    if len(shape) != len(needed):
        return False
    for size, name in zip(shape, needed, strict=True):
        if isinstance(name, str):
            more = int(name.endswith("+1"))
            sizes.setdefault(name.removesuffix("+1"), size - more)
            name = sizes[name.removesuffix("+1")] + more
        if size != name:
            return False
    return True


def _written(shape: Shape) -> str:
    return f"({', '.join('...' if size == '*' else str(size) for size in shape)}{',' * (len(shape) == 1)})"


def _listed(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def check_key(who: str, key: Any, *, several: str = "vmap over several") -> None:
    """Raise if `key` is not one new-style key. `several` says what to do with several keys."""
    if not (eqx.is_array(key) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape == ()):
        raise ValueError(f"{who} got the key {describe(key)}; give one key made by jax.random.key(seed), or {several}.")


def check_call(what: str, call: str, fix: str, fn: Any, *args: Any, **kwargs: Any) -> None:
    """Raise if `fn` cannot be called with these arguments. It is not run."""
    if isinstance(fn, type) or not callable(fn):
        first = "make an instance of it" if isinstance(fn, type) else "give a function or a module"
        raise ValueError(f"The {what} is {kind(fn)}; {first}, to be called as {call}.")
    signature = _signature(fn)
    if signature is None:
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise ValueError(f"The {what}, {kind(fn)}, cannot be called as {call} ({error}); {fix}.") from None


def parameters_of(fn: Any) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a callable by name; none if it has no signature, as some functions written in C have not."""
    signature = _signature(fn) if callable(fn) else None
    return {} if signature is None else signature.parameters


def _signature(fn: Any) -> inspect.Signature | None:
    # A method of a module under `eqx.filter_jit` is an `eqx.Partial`, whose own signature is (*args, **kwargs).
    fn = functools.partial(fn.func, *fn.args, **fn.keywords) if isinstance(fn, eqx.Partial) else fn
    try:
        return inspect.signature(fn)
    except ValueError:
        return None


def describe(x: Any) -> str:
    """Return an array's dtype and shape, or the repr of anything else, in one line of at most 100 characters."""
    if hasattr(x, "shape") and hasattr(x, "dtype"):
        return f"{x.dtype}{list(x.shape)}"
    # Arrays inside are written as dtype and shape.
    text = re.sub(r"(?<=[\[({]) ", "", " ".join(eqx.tree_pformat(x, width=1000).split()))
    return text if len(text) <= 100 else f"{text[:97]}..."


def kind(x: Any) -> str:
    """Return words for the type of `x`, such as "a str" or "the class AWM"."""
    if x is None or hasattr(x, "dtype"):
        return describe(x)
    if isinstance(x, type):
        return f"the class {x.__name__}"
    name = type(x).__name__
    return f"an {name}" if name[0] in "AEIOU" else f"a {name}"
