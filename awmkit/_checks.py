"""Checks of arguments that every part of awmkit uses: whole numbers, keys, optimisers and callables."""

import functools
import inspect
import operator
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer


def check_counts(who: str, *, least: int = 1, **counts: Any) -> None:
    """Raise if a count is not a whole number of at least `least`. `None` stands for a count that was not given."""
    for name, count in counts.items():
        if count is None:
            continue
        if isinstance(count, Tracer):
            raise ValueError(f"{who} got a traced {name}; it sets shapes, so pass a Python int.")
        try:
            whole = operator.index(count)
        except TypeError:
            whole = None
        if whole is None or isinstance(count, bool) or whole < least:
            raise ValueError(f"{who} got {name}={describe(count)}; give a whole number of at least {least}.")


def check_key(who: str, key: Any) -> None:
    """Raise if `key` is not one new-style key."""
    if not (eqx.is_array(key) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape == ()):
        raise ValueError(f"{who} got the key {describe(key)}; give one key made by jax.random.key(seed), or vmap over several.")


def check_optimiser(optimiser: Any) -> None:
    """Raise if `optimiser` is not an optax optimiser."""
    if not isinstance(optimiser, optax.GradientTransformation):
        raise ValueError(f"The optimiser is {kind(optimiser)}; pass one of optax, such as optax.adam(1e-3).")


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
    """Return an array's dtype and shape, or the repr of anything else."""
    return f"{x.dtype}{list(x.shape)}" if hasattr(x, "shape") and hasattr(x, "dtype") else repr(x)


def kind(x: Any) -> str:
    """Return words for the type of `x`, such as "a str" or "the class AWM"."""
    if x is None or hasattr(x, "dtype"):
        return describe(x)
    return f"the class {x.__name__}" if isinstance(x, type) else f"a {type(x).__name__}"
