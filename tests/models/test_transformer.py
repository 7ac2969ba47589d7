"""What a transformer does otherwise for the sake of speed or memory, which must not change what it computes.

Apart from the tests of all models because no other has these ways.
"""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from awmkit import AWM, Transformer
from awmkit.models.backbones import _transformer

ACTIONS = jax.random.normal(jax.random.key(0), (12, 2))


def _model(width=12, **options):
    keys = jax.random.split(jax.random.key(1))
    return AWM(3, 2, Transformer(width, 2, 3, **options, key=keys[0]), key=keys[1])


def _run(products=None):
    """Predictions of one model, whatever its `products`, and the gradient of what is made of them."""
    model = _model(products=products)
    predict = lambda actions: model.open_loop(jnp.ones(3), actions)
    return predict(ACTIONS), jax.grad(lambda actions: jnp.sum(jnp.sin(3 * predict(actions))))(ACTIONS)


def test_one_head_after_another_is_all_at_once_in_values_and_gradients(monkeypatch):
    microbatch_size = _run()
    monkeypatch.setattr(_transformer, "KEPT", 0)  # Of which no mask has fewer entries.
    for one, other in zip(microbatch_size, _run(), strict=True):
        assert jnp.allclose(one, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "products, least, most", [(jnp.float64, 0, 1e-14), (jnp.float32, 1e-9, 1e-5), (jnp.bfloat16, 1e-4, 0.1)]
)
def test_products_are_rounded_as_told_and_everything_else_keeps_its_dtype(products, least, most):
    for exact, rounded in zip(_run(), _run(products), strict=True):
        assert rounded.dtype == exact.dtype == jnp.float64
        assert least <= jnp.linalg.norm(rounded - exact) / jnp.linalg.norm(exact) <= most


@pytest.fixture
def gpu(monkeypatch):
    """As if there were one, as far as tracing asks."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91_100)


@pytest.mark.parametrize("horizon", [11, 12])
def test_fused_attention_is_attention_rounded(gpu, monkeypatch, horizon):
    """By XLA, which a processor can run, through the same call."""
    attend = jax.nn.dot_product_attention
    by_xla = lambda *heads, is_causal, implementation: attend(*heads, is_causal=is_causal, implementation="xla")
    monkeypatch.setattr(jax.nn, "dot_product_attention", by_xla)
    actions, models = ACTIONS[:horizon], (_model(24), _model(24, fused=True))
    value = lambda model, actions: jnp.sum(jnp.sin(3 * model.open_loop(jnp.ones(3), actions)))
    with jax.numpy_dtype_promotion("standard"):  # XLA's mixes dtypes, which only tests forbid.
        ours, theirs = (jax.jit(jax.value_and_grad(lambda a, m=m: value(m, a)))(actions) for m in models)
    for exact, rounded in zip(ours, theirs, strict=True):
        assert rounded.dtype == exact.dtype
        assert 1e-6 <= jnp.linalg.norm(rounded - exact) / jnp.linalg.norm(exact) <= 0.05


def test_fused_attention_is_cudnns_both_ways_on_a_gpu_and_keeps_no_weights(gpu):
    def program(model):
        model = jax.tree.map(lambda x: x.astype(jnp.float32) if eqx.is_inexact_array(x) else x, model)
        loss = lambda actions: jnp.sum(jax.vmap(lambda a: model.open_loop(jnp.ones(3, jnp.float32), a))(actions))
        return jax.jit(jax.grad(loss)).trace(jnp.ones((4, 12, 2), jnp.float32)).lower(lowering_platforms=("cuda",)).as_text()

    ours, fused = program(_model(24)), program(_model(24, fused=True))
    assert "cudnn$fmhaSoftmax(" in fused and "cudnn$fmhaSoftmaxBackward(" in fused
    weights = re.compile("[<x]1[2-4]x1[2-4]x")  # Of 12 queries and 13 tokens, or filled up to 14.
    assert weights.search(ours) and not weights.search(fused)
