"""Numbers among settings: compiled programs take them as data, and they may have an axis of settings, a sweep."""

import dataclasses
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._checks import describe
from .._paths import Paths
from ._optimiser import Optimiser, weak

T = TypeVar("T", bound=eqx.Module)


def number(*constants: float) -> dict[str, Any]:
    """Return the metadata of a field of an ascent that is a number, which may vary in a sweep.

    ```python
    bonus: ScalarLike = eqx.field(kw_only=True, default=0.1, metadata=number())
    ```

    **Arguments:** `constants`: values that have a cheaper program of their own.
    """
    return {"constants": constants}


def check_steps_per_update(who: str, steps_per_update: Any) -> None:
    """Raise if there are several."""
    if getattr(steps_per_update, "ndim", 0):
        raise ValueError(
            f"{who} got steps_per_update={describe(steps_per_update)}; it is the number of times that a loop runs, which cannot vary "
            "within one program, so make one call for each value."
        )


def _numbers(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any, bool]]:
    """Yield the path of each number, the number, and whether it is a constant of the program."""
    if isinstance(settings, Optimiser):
        yield from ((f"{prefix}{name}", x, False) for name, x in settings.numbers.items())
        return
    for field in dataclasses.fields(settings) if isinstance(settings, eqx.Module) else ():  # An optax optimiser has none.
        x = getattr(settings, field.name, None)
        constants = field.metadata.get("constants")
        if eqx.is_array_like(x) and (isinstance(settings, Paths) or constants is not None):
            # A gain of 0 or 1 that is known before the program runs spares it an edge.
            yield f"{prefix}{field.name}", x, isinstance(x, int | float) and (constants is None or x in constants)
        elif isinstance(x, eqx.Module):
            yield from _numbers(x, f"{prefix}{field.name}.")


def _at(settings: Any, path: str) -> Any:
    for name in path.split("."):
        settings = settings.numbers[name] if isinstance(settings, Optimiser) else getattr(settings, name)
    return settings


def _with(settings: T, numbers: dict[str, Array]) -> T:
    return eqx.tree_at(lambda s: [_at(s, path) for path in numbers], settings, list(numbers.values()))


def as_data(settings: T) -> T:
    """Return settings with their numbers as arrays, so that calls that differ only in these share their programs."""
    return _with(settings, {path: weak(x) for path, x, constant in _numbers(settings) if not constant})


def sweep_of(settings: Any, prefix: str = "") -> dict[str, np.ndarray]:
    """Return the numbers that have an axis of settings, by their paths, such as "ascent.optimiser.learning_rate".

    **Raises:** `ValueError` if they have other shapes than (N,), with one N.
    """
    swept = {path: np.asarray(x) for path, x, _ in _numbers(settings, prefix) if np.ndim(x)}
    if len({x.shape for x in swept.values()}) > 1:
        given = " and ".join(f"{path} {describe(x)}" for path, x in swept.items())
        raise ValueError(
            f"The numbers of a sweep vary together, so that all have one length, got {given}; make a grid of a and b with "
            "a, b = map(jnp.ravel, jnp.meshgrid(a, b))."
        )
    return swept


def settings_of(sweep: dict[str, np.ndarray]) -> tuple[int, ...]:
    """Return the shape of the axis of settings: (N,), or () if nothing varies."""
    return next((x.shape for x in sweep.values()), ())


def over_settings(fn: Callable[..., Any], settings: Any, *in_axes: Any) -> Callable[..., Any]:
    """Return `lambda *args: fn(settings, *args)`; in a sweep it calls `fn` with each setting, in one program.

    Results have a leading axis of settings then. `in_axes` are those of `args`, as for `eqx.filter_vmap`.
    """
    swept = {path: x for path, x, _ in _numbers(settings) if jnp.ndim(x)}
    if not swept:
        return lambda *args: fn(settings, *args)
    of_one = lambda numbers, *args: fn(_with(settings, numbers), *args)
    return lambda *args: eqx.filter_vmap(of_one, in_axes=(0, *in_axes))(swept, *args)


def some_finite(finite: Any, sweep: dict[str, np.ndarray]) -> bool:
    """Return whether a sweep may go on: whether all runs of a setting are finite. Warn of the settings that are not."""
    if not sweep or not (good := np.reshape(finite, (len(finite), -1)).all(axis=1)).any():
        return False
    if not good.all():
        bad = ", ".join(map(str, np.flatnonzero(~good)))
        warnings.warn(
            f"Returns or losses are not finite in settings {bad} of the sweep of {', '.join(sweep)}; the others are not affected.",
            stacklevel=4,
        )
    return True
