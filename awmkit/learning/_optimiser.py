"""`Optimiser`: an optax optimiser whose hyper-parameters are arrays."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, PyTree

from .._checks import check_call, describe, kind


class Optimiser(eqx.Module):
    """An optax optimiser whose hyper-parameters are arrays, so that a compiled program takes them as arguments.

    ```python
    FullHorizon(optimiser=Optimiser(optax.adam, learning_rate=1e-3))  # Other learning rates use the same program.
    FullHorizon(optimiser=Optimiser(optax.adam, learning_rate=jnp.logspace(-4, -2, 8)))  # A sweep; see `awmkit.train`.
    ```

    A chain or a schedule is built by a function of its numbers. Define it once: every new function is compiled again.

    ```python
    clipped = lambda rate, norm: optax.chain(optax.clip_by_global_norm(norm), optax.adam(rate))
    Optimiser(clipped, rate=1e-3, norm=1.0)
    Optimiser(lambda peak: optax.adam(optax.cosine_decay_schedule(peak, 10_000)), peak=1e-2)
    ```

    It has the methods `init` and `update` of an optax optimiser, and awmkit takes it wherever it takes one.

    **Arguments**

    - `make`: called as `make(**numbers)`, returns an optax optimiser.
    - `numbers`: its hyper-parameters by name: real numbers, or arrays of shape (N,) for a sweep of N settings. What sets a shape
      or selects an algorithm is no number: set it in `make`.

    **Raises:** `ValueError` if `make` cannot be called with these numbers or returns something else, or one of them is not a
    number or an array of shape (N,).
    """

    make: Callable[..., optax.GradientTransformation] = eqx.field(static=True)
    numbers: dict[str, Array]

    def __init__(self, make: Callable[..., optax.GradientTransformation], **numbers: ArrayLike):
        for name, x in numbers.items():
            if not holds(x, lambda x: True):
                raise ValueError(
                    f"Optimiser got {name}={describe(x)}; pass a number, or an array of shape (N,) for a sweep, and set everything else "
                    "in the function that makes the optimiser."
                )
        call = f"make({', '.join(f'{name}=...' for name in numbers)})"
        check_call("make of Optimiser", call, "pass its hyper-parameters by their names", make, **numbers)
        if not any(isinstance(x, Tracer) for x in numbers.values()):
            check_optimiser(make(**{name: np.ravel(x)[0].item() for name, x in numbers.items()}))
        self.make = make
        self.numbers = {name: weak(x) for name, x in numbers.items()}

    @property
    def built(self) -> optax.GradientTransformation:
        """The optax optimiser."""
        return self.make(**self.numbers)

    def init(self, params: PyTree) -> PyTree:
        """Return the optimiser's state before the first update, as optax does."""
        return self.built.init(params)

    def update(self, updates: PyTree, state: PyTree, params: PyTree | None = None, **extra: Any) -> tuple[PyTree, PyTree]:
        """Turn gradients into updates, as optax does. Returns the updates and the new state."""
        return optax.with_extra_args_support(self.built).update(updates, state, params, **extra)


AnyOptimiser = optax.GradientTransformation | Optimiser


def check_optimiser(optimiser: Any) -> None:
    """Raise if `optimiser` is not an optax optimiser or an `Optimiser`."""
    if isinstance(optimiser, optax.MultiSteps):
        raise ValueError("The optimiser is an optax.MultiSteps; pass what its method gradient_transformation() returns.")
    if not isinstance(optimiser, AnyOptimiser):
        raise ValueError(f"The optimiser is {kind(optimiser)}; pass one of optax, such as optax.adam(1e-3).")


def holds(x: Any, rule: Callable[[Any], Any]) -> bool:
    """Return whether `x` is a real number that obeys `rule`, or an array of shape (N,) of such numbers. A traced one may be any."""
    if not eqx.is_array_like(x) or isinstance(x, bool) or np.ndim(x) > 1 or not np.size(x):
        return False
    if not jnp.issubdtype(jnp.result_type(x), jnp.floating) and not jnp.issubdtype(jnp.result_type(x), jnp.integer):
        return False
    return isinstance(x, Tracer) or bool(np.all(rule(np.asarray(x))))


def weak(x: ArrayLike) -> Array:
    """Return an array whose dtype gives way to that of other arrays, as the dtype of a Python number does."""
    if isinstance(x, Tracer) or getattr(x, "weak_type", False):
        return jnp.asarray(x)
    values = np.asarray(x)
    if not values.ndim:
        return jnp.asarray(values.item())
    return lax.concatenate([lax.broadcast(jnp.asarray(value), (1,)) for value in values.tolist()], 0)
