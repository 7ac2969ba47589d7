"""Gains of edges: they leave values unchanged and scale every derivative."""

import jax
import jax.numpy as jnp
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp

from awmkit import BPO, Paths, unroll
from awmkit._paths import scale_gradient
from awmkit.tasks import spiral

ARRAYS = hnp.arrays(float, hnp.array_shapes(max_dims=2, max_side=4), elements=st.floats(-1e3, 1e3))


@given(x=ARRAYS, gain=st.floats(-2, 2), traced=st.booleans())
def test_a_gain_changes_no_value_and_scales_every_derivative(x, gain, traced):
    x, gain = jnp.asarray(x), jnp.asarray(gain) if traced else gain
    f = lambda x: scale_gradient(x, gain)
    ones = jnp.ones_like(x)
    assert (f(x) == x).all() and (jax.jit(f)(x) == x).all()
    value, tangent = jax.jvp(f, (x,), (ones,))
    assert (value == x).all() and jnp.allclose(tangent, gain)
    assert jnp.allclose(jax.vjp(f, x)[1](ones)[0], gain)
    # d/dx f(x)^3 = 3 x^2 g, and its derivative is 6 x g^2: one factor g per derivative.
    second = jax.grad(lambda x: jnp.sum(jax.grad(lambda x: jnp.sum(f(x) ** 3))(x)))(x)
    assert jnp.allclose(second, 6 * x * gain**2, atol=1e-9)


def test_second_derivatives_through_a_scan_are_the_same_in_every_mode():
    def value(h):
        policy = lambda state, t, *, key=None: jnp.tanh(h * state[:1])
        return jnp.sum(unroll(spiral(1.2, 0.7), policy, jnp.ones(2), 3, paths=Paths(0.5, 0.8, 0.9)).states ** 2)

    first, second = (jax.grad, jax.jacfwd), (jax.jacrev, jax.jacfwd)
    found = jax.jit(lambda h: jnp.stack([outer(inner(value))(h) for inner in first for outer in second]))(0.3)
    assert jnp.allclose(found, found[-1], rtol=1e-12) and abs(found[-1]) > 1e-3


def test_float32_stays_float32_under_a_float64_gain():
    assert scale_gradient(jnp.ones(2, jnp.float32), jnp.asarray(0.3)).dtype == jnp.float32


def test_bpo_cuts_only_the_edge_from_state_to_policy():
    assert (BPO.state_to_policy, BPO.state_to_model, BPO.action_to_model) == (0.0, 1.0, 1.0)
    assert Paths() == Paths(1.0, 1.0, 1.0)
