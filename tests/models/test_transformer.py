"""Options of the transformer that save time or memory must not change what it computes."""

import re
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from rounding import rounding

from awmkit import AbstractAttention, AWM, CuDNNAttention, Transformer
from awmkit.models.backbones import _blocked, _rows

ACTIONS = jax.random.normal(jax.random.key(0), (12, 2))


class XLAAttention(AbstractAttention):
    """The kernel in the documentation of AbstractAttention."""

    def __call__(self, q, k, v):
        mask = jnp.tril(jnp.ones((q.shape[0], k.shape[0]), bool), k.shape[0] - q.shape[0])
        return jax.nn.dot_product_attention(q, k, v, mask=mask[None])


def _model(width=12, **options):
    keys = jax.random.split(jax.random.key(1))
    return AWM(3, 2, Transformer(width, 1, 3, **options, key=keys[0]), key=keys[1])


def _value(model, actions):
    states = model.open_loop(jnp.ones(3, actions.dtype), actions)
    return jnp.sum(jnp.sin(3 * states)), states


def _run(actions=ACTIONS, **options):
    """Return the predictions of one model and the gradient of a function of them."""
    (_, states), gradient = jax.jit(jax.value_and_grad(partial(_value, _model(**options)), has_aux=True))(actions)
    return states, gradient


@pytest.fixture(scope="module")
def exact():
    return _run()


def _errors(exact, approximate):
    """Yield the relative error of the predictions and of the gradient."""
    for x, y in zip(exact, approximate, strict=True):
        assert x.dtype == y.dtype
        yield jnp.linalg.norm(y - x) / jnp.linalg.norm(x)


def test_heads_one_at_a_time_give_the_values_and_gradients_of_all_heads_at_once(exact, monkeypatch):
    monkeypatch.setattr(_rows, "MAX_WEIGHTS", 0)
    assert all(error < 1e-12 for error in _errors(exact, _run()))


@pytest.mark.parametrize("new, tokens", [(20, 20), (5, 29)], ids=["a whole sequence", "after a cached prefix"])
def test_attention_by_blocks_of_rows_has_the_values_and_all_derivatives_of_attention_by_rows(monkeypatch, new, tokens):
    monkeypatch.setattr(_blocked, "ROWS", 4)
    draw = lambda seed, length: 3 * jax.random.normal(jax.random.key(seed), (2, length, 3, 4))
    q, k, v = draw(0, new), draw(1, tokens), draw(2, tokens)
    direction = tuple(jnp.cos(9 * x) for x in (q, k, v))

    def derivatives(attend):
        loss = lambda x: jnp.sum(jnp.sin(jax.vmap(lambda *x: attend(*x, None))(*x)))
        return *jax.jvp(jax.value_and_grad(loss), ((q, k, v),), (direction,)), jax.grad(loss)((q, k, v))

    rows, blocks = (
        jax.tree.leaves(jax.jit(partial(derivatives, f))()) for f in (_rows.attention_by_rows, _blocked.attention_by_blocks)
    )
    assert all(jnp.max(jnp.abs(x - y)) < 1e-12 * jnp.max(jnp.abs(x)) for x, y in zip(rows, blocks, strict=True))


def test_a_long_sequence_is_attended_by_rows_on_a_cpu_and_by_blocks_on_a_gpu():
    program = jax.jit(lambda x: _value(_model(), x)[0]).trace(jnp.ones((300, 2)))
    cpu, gpu = (program.lower(lowering_platforms=(name,)).as_text() for name in ("cpu", "cuda"))
    last_block = "x104x304x"  # The last of 3 blocks, against all 301 keys and their padding.
    assert last_block in gpu and last_block not in cpu


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.bfloat16])
def test_matmul_dtype_rounds_matrix_products_and_nothing_else(exact, dtype):
    unit = rounding(dtype)
    least = 0 if dtype == jnp.float64 else unit / 30
    assert all(least <= error <= 30 * unit for error in _errors(exact, _run(matmul_dtype=dtype)))


def test_a_kernel_of_ones_own_is_used_for_the_parallel_pass(exact):
    with jax.numpy_dtype_promotion("standard"):  # XLA's kernel mixes dtypes, which only tests forbid.
        assert all(0 < error < 1e-6 for error in _errors(exact, _run(attention=XLAAttention())))


@pytest.fixture
def gpu(monkeypatch):
    """Make JAX trace as if there were a GPU."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91_100)


@pytest.mark.parametrize("horizon", [11, 12])
def test_cudnn_attention_differs_from_exact_attention_by_rounding_only(gpu, monkeypatch, horizon):
    """The same call, run by XLA on the CPU."""
    attend = jax.nn.dot_product_attention
    by_xla = lambda *heads, is_causal, implementation: attend(*heads, is_causal=is_causal, implementation="xla")
    monkeypatch.setattr(jax.nn, "dot_product_attention", by_xla)
    run = partial(_run, ACTIONS[:horizon], width=24)
    with jax.numpy_dtype_promotion("standard"):  # XLA's kernel mixes dtypes, which only tests forbid.
        assert all(1e-6 <= error <= 0.05 for error in _errors(run(), run(attention=CuDNNAttention())))


def test_on_a_gpu_cudnn_attention_is_one_kernel_each_way_and_stores_no_attention_weights(gpu):
    def program(model):
        model = jax.tree.map(lambda x: x.astype(jnp.float32) if eqx.is_inexact_array(x) else x, model)
        loss = lambda actions: jnp.sum(jax.vmap(partial(_value, model))(actions)[0])
        return jax.jit(jax.grad(loss)).trace(jnp.ones((4, 12, 2), jnp.float32)).lower(lowering_platforms=("cuda",)).as_text()

    ours, cudnn = program(_model(24)), program(_model(24, attention=CuDNNAttention()))
    assert "cudnn$fmhaSoftmax(" in cudnn and "cudnn$fmhaSoftmaxBackward(" in cudnn
    weights = re.compile("[<x]1[2-4]x1[2-4]x")  # 12 queries and 13 tokens, padded to 14.
    assert weights.search(ours) and not weights.search(cudnn)
