"""Norms, root mean squares and clipping are right over the whole range of floating-point numbers, as are their derivatives."""

import math

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest
from hypothesis import given, strategies as st

from awmkit._norms import all_finite, clip_tree, norm, rms

EXPONENTS = {np.float16: (-4, 3), np.float32: (-37, 37), np.float64: (-307, 307)}
numbers = st.lists(st.floats(-9, 9).map(lambda x: round(x, 2)), min_size=3, max_size=3).filter(any)


@jax.jit
def measure(x):
    grads = [jax.grad(lambda x, f=f: f(x, 0).astype(jnp.float64))(x) for f in (norm, rms)]
    return norm(x, 0), rms(x, 0), grads, clip_tree({"a": x[:1], "b": x[1:]}, 1.0)


@pytest.mark.parametrize("dtype", EXPONENTS)
@given(data=st.data(), digits=numbers)
def test_norms_do_not_depend_on_the_size_of_their_argument(dtype, data, digits):
    exponent = data.draw(st.integers(*EXPONENTS[dtype]))
    x = (np.array(digits) * 10.0**exponent).astype(dtype)
    length, rtol = math.hypot(*x.astype(float)), 8 * float(np.finfo(dtype).eps)
    value, mean, grads, (clipped, clipped_norm) = measure(x)
    for found in (value, norm(x), clipped_norm):
        np.testing.assert_allclose(np.float64(found), length, rtol=rtol)
    np.testing.assert_allclose(np.float64(mean), length / math.sqrt(3), rtol=rtol)
    for grad, scale in zip(grads, (1, math.sqrt(3)), strict=True):
        np.testing.assert_allclose(np.float64(grad), x.astype(float) / length / scale, rtol=rtol, atol=rtol)
    expected = x.astype(float) / max(length, 1)
    np.testing.assert_allclose(
        np.append(clipped["a"], clipped["b"]).astype(float), expected, rtol=rtol, atol=rtol * abs(expected).max()
    )


@pytest.mark.parametrize("dtype", EXPONENTS)
def test_norms_at_0_and_at_the_limits_of_a_float(dtype):
    zero, largest = np.zeros(3, dtype), np.array([np.finfo(dtype).max, 0, 0])
    for x, expected in (
        (zero, 0),
        (largest, float(largest[0])),
        (zero + [0, np.nan, 1], np.nan),
        (zero + [1, 0, np.inf], np.inf),
    ):
        x = x.astype(dtype)
        value, *_, (_, clipped_norm) = measure(x)
        np.testing.assert_array_equal(np.array([value, norm(x), clipped_norm], float), expected)
        assert all_finite({"a": jnp.asarray(x)}) == np.isfinite(expected)
    np.testing.assert_array_equal(measure(zero)[2][0], 0)
    np.testing.assert_allclose(measure(largest)[2][0].astype(float), [1, 0, 0], rtol=1e-6)


def test_norms_along_axes_agree_with_numpys_and_compose_with_vmap_and_hessian():
    x, axes = np.random.default_rng(0).normal(size=(2, 3, 4)), (None, 0, -1, (1, 2), (0, 2))
    naive = lambda x: jnp.sqrt(jnp.sum(x**2))
    both = lambda x: (
        [(norm(x, a), rms(x, a)) for a in axes],
        jax.vmap(norm)(x),
        *(jax.hessian(f)(x[0, 0]) for f in (norm, naive)),
    )
    measured, each, hessian, expected_hessian = jax.jit(both)(x)
    for axis, (found, mean) in zip(axes, measured, strict=True):
        expected = np.linalg.norm(x, axis=axis)
        for value in (found, norm(x, axis), mean * np.sqrt(x.size / expected.size)):
            np.testing.assert_allclose(value, expected, rtol=1e-14)
    np.testing.assert_allclose(each, measured[3][0], rtol=1e-14)
    np.testing.assert_allclose(hessian, expected_hessian, rtol=1e-12)


def test_a_tree_is_clipped_even_if_its_norm_is_too_large_for_a_float():
    tree = jtu.tree_map(
        lambda shape: jnp.full(shape, 3e38, jnp.float32), {"a": (2, 3), "b": (3,)}, is_leaf=lambda x: isinstance(x, tuple)
    )
    clipped, size = clip_tree(tree, 6.0)
    assert jnp.isinf(size) and all_finite(tree)
    jtu.tree_map(lambda x: np.testing.assert_allclose(x, 2.0, rtol=1e-6), clipped)
