"""Derivatives of a loop of unknown length by forward mode: every mode and order, against the closed form."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from awmkit.mjx._forward_mode import by_forward_mode

POINT = jnp.array([0.7, 1.3, -0.4])
SCALE = jnp.array([1.1, 0.6, 0.9])


def powers(point, scale, count):
    """sin(scale x)^8 by squaring three times in a loop that reverse mode cannot pass, with a value without gradient."""
    value = lax.while_loop(lambda loop: loop[0] < 3, lambda loop: (loop[0] + 1, loop[1] ** 2), (0, jnp.sin(scale * point)))[1]
    return jnp.stack([jnp.sum(value), value[0] * value[1]]), count


def closed_form(point, scale):
    value = jnp.sin(scale * point) ** 8
    return jnp.stack([jnp.sum(value), value[0] * value[1]])


def ours(point, scale=SCALE):
    return by_forward_mode(powers, point, scale, jnp.array(3))[0]


def by_steps(point, scale=SCALE, checkpoint=lambda step: step, function=ours):
    def step(point, _):
        two = function(point, scale)
        return jnp.concatenate([point[:1] + two, two[:1]]), None

    return lax.scan(checkpoint(step), point, length=3)[0]


@pytest.mark.parametrize("order", ["rev", "rev rev", "fwd rev", "rev fwd", "fwd fwd", "rev rev rev"])
def test_every_mode_and_order_equals_the_closed_form(order):
    mine, truth = ours, closed_form
    for mode in order.split():
        mine, truth = ({"rev": jax.jacrev, "fwd": jax.jacfwd}[mode](f, (0, 1)) for f in (mine, truth))
    for x, y in zip(*(jax.tree.leaves(jax.jit(f)(POINT, SCALE)) for f in (mine, truth)), strict=True):
        assert jnp.allclose(x, y, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("order", ["fwd", "rev", "fwd rev", "rev rev"])
def test_derivatives_pass_a_scan(order):
    mine, truth = (lambda x, s, f=f: jnp.sum(by_steps(x, s, function=f)[:2]) for f in (ours, closed_form))
    for mode in order.split():
        mine, truth = ({"rev": jax.jacrev, "fwd": jax.jacfwd}[mode](f) for f in (mine, truth))
    assert jnp.allclose(jax.jit(mine)(POINT, SCALE), jax.jit(truth)(POINT, SCALE), rtol=1e-11)


@pytest.mark.parametrize("wrap", [jax.checkpoint, lambda step: jax.checkpoint(step, prevent_cse=False), jax.jit])
def test_checkpoints_and_compilation_leave_the_gradient(wrap):
    plain, wrapped = (
        jax.jit(jax.grad(lambda x, w=w: jnp.sum(by_steps(x, checkpoint=w))))(POINT) for w in (lambda step: step, wrap)
    )
    assert jnp.allclose(plain, wrapped, rtol=1e-13)


def test_the_gradient_of_a_batch_has_no_columns_across_the_batch():
    points, scale, weights = POINT + jnp.arange(4.0)[:, None], jnp.array(0.9), jnp.arange(8.0).reshape(2, 4)

    def loss(function, points, scale):
        by_weight = jax.vmap(lambda w: jax.vmap(lambda x, w: w * function(x, w * scale * SCALE), (1, 0))(points.T, w))
        return jnp.sum(jnp.sin(by_weight(weights)))

    gradient = lambda f: jax.grad(lambda points, scale: loss(f, points, scale), (0, 1))
    mine, truth = (jax.jit(gradient(f))(points, scale) for f in (ours, closed_form))
    assert jnp.allclose(mine[0], truth[0], rtol=1e-11) and jnp.allclose(mine[1], truth[1], rtol=1e-11)
    assert "f64[2,4,2,7]" in str(jax.make_jaxpr(gradient(ours))(points, scale))


def test_batches_of_points_and_of_scales():
    points, scales = POINT + jnp.arange(4.0)[:, None], SCALE * (1 + jnp.arange(4.0)[:, None])
    for function in (jax.jacrev, jax.jacfwd):
        mine, truth = (jax.jit(jax.vmap(function(f, (0, 1))))(points, scales) for f in (ours, closed_form))
        assert all(jnp.allclose(x, y, rtol=1e-11) for x, y in zip(mine, truth, strict=True))


@pytest.mark.parametrize("arguments, columns", [((0,), 3), ((1,), 3), ((0, 1), 6)])
def test_the_jacobian_has_columns_for_what_is_perturbed_and_is_computed_once_for_all_tangents(arguments, columns):
    tangents = [jnp.ones((50, 3)) if i in arguments else None for i in (0, 1)]

    def along(*given):
        moving = tuple(point for i, point in enumerate((POINT, SCALE)) if i in arguments)
        f = lambda *moving: ours(*(moving[arguments.index(i)] if i in arguments else (POINT, SCALE)[i] for i in (0, 1)))
        return jax.jvp(f, moving, given)[1]

    program = str(jax.make_jaxpr(jax.vmap(along))(*(tangent for tangent in tangents if tangent is not None)))
    assert f"f64[2,{columns + 1}]" in program and not re.search(r"f64\[(50,2,\d+|50,3,\d+)\]", program)


def test_an_array_that_the_function_closes_over_is_differentiated():
    closed_over = lambda scale: jnp.sum(by_forward_mode(lambda x: powers(x, scale, None), POINT)[0])
    assert jnp.allclose(jax.jit(jax.grad(closed_over))(SCALE), jax.grad(lambda s: jnp.sum(closed_form(POINT, s)))(SCALE))


def test_a_value_without_gradient_is_returned():
    value, gradient = jax.value_and_grad(lambda x: jnp.sum(by_forward_mode(powers, POINT, SCALE, x)[1] ** 2))(2.0)
    assert value == 4 and gradient == 0
