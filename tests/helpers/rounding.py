"""The precision of matrix products on the device in use, for tolerances of tests."""

import jax
import jax.numpy as jnp


def rounding(dtype) -> float:
    """Return the largest relative error of a number as a factor of a matrix product.

    A GPU rounds float32 factors to TF32, which has a mantissa of 10 bits, unless JAX is asked for a higher precision.
    """
    asked = jax.config.jax_default_matmul_precision
    tf32 = dtype == jnp.float32 and jax.default_backend() == "gpu" and asked in (None, "default", "high", "tensorfloat32")
    return 2.0**-11 if tf32 else float(jnp.finfo(dtype).eps) / 2
