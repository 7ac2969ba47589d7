"""What a transformer does otherwise for the sake of speed or memory, which must not change what it computes.

Apart from the tests of all models because no other has these ways.
"""

import jax
import jax.numpy as jnp
import pytest

from awmkit import AWM, Transformer
from awmkit.models import _transformer

ACTIONS = jax.random.normal(jax.random.key(0), (12, 2))


def _run(products=None):
    """Predictions of one model, whatever its `products`, and the gradient of what is made of them."""
    keys = jax.random.split(jax.random.key(1))
    model = AWM(3, 2, Transformer(12, 2, 3, products=products, key=keys[0]), key=keys[1])
    predict = lambda actions: model.open_loop(jnp.ones(3), actions)
    return predict(ACTIONS), jax.grad(lambda actions: jnp.sum(jnp.sin(3 * predict(actions))))(ACTIONS)


def test_one_head_after_another_is_all_at_once_in_values_and_gradients(monkeypatch):
    at_once = _run()
    monkeypatch.setattr(_transformer, "KEPT", 0)  # Of which no mask has fewer entries.
    for one, other in zip(at_once, _run(), strict=True):
        assert jnp.allclose(one, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "products, least, most", [(jnp.float64, 0, 1e-14), (jnp.float32, 1e-9, 1e-5), (jnp.bfloat16, 1e-4, 0.1)]
)
def test_products_are_rounded_as_told_and_everything_else_keeps_its_dtype(products, least, most):
    for exact, rounded in zip(_run(), _run(products), strict=True):
        assert rounded.dtype == exact.dtype == jnp.float64
        assert least <= jnp.linalg.norm(rounded - exact) / jnp.linalg.norm(exact) <= most
