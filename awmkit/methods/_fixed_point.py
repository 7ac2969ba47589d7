"""Fixed points by repeated sweeps over all steps, and when to stop sweeping."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax import lax
from jax.extend.core import jaxpr_as_fun, jaxprs_in_params
from jaxtyping import Array, Bool, Float, PyTree, Scalar, ScalarLike

from ._method import Sweeps


def fixed_point(
    sweep: Callable[[Array], tuple[Array, PyTree]],
    x: Float[Array, "..."],
    *,
    unit: ScalarLike,
    limit: int,
    tolerance: ScalarLike | None = None,
) -> tuple[Float[Array, "..."], PyTree, Sweeps, Bool[Array, ""]]:
    """Find x = f(x), where `sweep(x)` returns f(x) and arrays found on the way. Start from `x`; values have size `unit`.

    The residual is the largest change in a sweep, divided by the largest value, or by `unit` if that is larger. Sweeps end

    - if the residual is at most `tolerance`, by default 8 units in the last place;
    - where the factors of matrix products are rounded further (to TF32, bfloat16), by default also if the residual is at most a
      sixteenth of a unit in the last place of a factor, or will be after one more sweep if it falls as in this one;
    - if the residual is as small as rounding can explain, and no longer falls: a sweep did not reduce it, or did not halve it
      although the sweep before did. Without this rule rounding errors, which differ from sweep to sweep, can go on for ever.

    **Returns:** x; what the last sweep returned beside it; the sweeps; and whether they ended for one of these reasons within
    `limit` sweeps.
    """
    program, shapes = jax.make_jaxpr(sweep, return_shape=True)(x)
    sweep_once = lambda x: jtu.tree_unflatten(jtu.tree_structure(shapes), jaxpr_as_fun(program)(x))
    usual, small, _ = rounding(program.jaxpr, x.dtype)
    coarse = jnp.where(usual > 8 * jnp.finfo(x.dtype).eps, usual, 0) if tolerance is None else 0
    tolerance = usual if tolerance is None else tolerance

    def settled(residuals):
        now, before, earlier = residuals
        stalled = (now >= before) | ((now > before / 2) & (before <= earlier / 2))
        expected = jnp.where(before < jnp.inf, now * jnp.minimum(now / before, 1), now)
        # True for NaN, with which no sweep helps.
        return ~(now > tolerance) | (expected <= coarse) | (stalled & (now <= small))

    def body(loop):
        x, _, residuals, n = loop
        y, beside = sweep_once(x)
        size = jnp.maximum(jnp.maximum(jnp.max(jnp.abs(y)), unit), jnp.finfo(x.dtype).tiny)
        return y, beside, (jnp.max(jnp.abs(y - x)) / size, *residuals[:2]), n + 1

    zeros = jtu.tree_map(lambda s: jnp.zeros(s.shape, s.dtype), shapes[1])
    start = x, zeros, (jnp.asarray(jnp.inf, x.dtype),) * 3, jnp.asarray(0)
    x, beside, residuals, n = lax.while_loop(lambda loop: ~settled(loop[2]) & (loop[3] < limit), body, start)
    return x, beside, Sweeps(n, residuals[0]), settled(residuals)


def rounding(jaxpr, dtype) -> tuple[Scalar, Scalar, Scalar]:
    """Return the default tolerance for a program that returns values of this dtype, and the largest differences that rounding
    explains: between two sweeps, and between two results of one step."""
    eps = jnp.finfo(dtype).eps
    of_platform = lambda name: lambda: jnp.asarray(precision(jaxpr, name), dtype)
    products = lax.platform_dependent(cuda=of_platform("cuda"), tpu=of_platform("tpu"), default=of_platform("cpu"))
    return jnp.maximum(8 * eps, products / 16), jnp.maximum(64 * eps, 8 * products), jnp.maximum(64 * eps, 2 * products)


def precision(jaxpr, platform: str) -> float:
    """Return the largest unit in the last place of the factors of a program's matrix products, as `platform` rounds them.

    NVIDIA's GPUs round float32 factors to TF32, with 10 bits of mantissa, and TPUs to bfloat16, unless
    `jax.default_matmul_precision` asks for "highest".
    """
    found = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            asked = equation.params["precision"]
            name = getattr(asked[0] if isinstance(asked, tuple) else asked, "name", "DEFAULT")
            dtypes = [x.aval.dtype for x in equation.invars if jnp.issubdtype(x.aval.dtype, jnp.floating)]
            found = max([found, *(_factor_eps(dtype, name, platform) for dtype in dtypes)])
        found = max([found, *(precision(inner, platform) for inner in jaxprs_in_params(equation.params))])
    return found


def _factor_eps(dtype, precision: str, platform: str) -> float:
    """Return the unit in the last place of a factor of this dtype. `precision`: a `lax.Precision` or `DotAlgorithmPreset`."""
    if dtype == jnp.float32 and "X" not in precision:  # X3, X6 and X9 add products of the rounding errors.
        if precision.startswith("TF32") or (platform == "cuda" and precision in ("DEFAULT", "HIGH")):
            return 2.0**-10
        if precision.startswith("BF16") or (platform == "tpu" and precision == "DEFAULT"):
            return 2.0**-7
        if precision.startswith("F16"):
            return 2.0**-10
    return float(jnp.finfo(dtype).eps)
