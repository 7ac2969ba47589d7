"""Agreement of all methods, memory with checkpointing, and the number of Picard sweeps."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, strategies as st
from jax import lax
from systems import reward

from awmkit import (
    AWM,
    BPO,
    GaussianHead,
    GaussianPolicy,
    GRU,
    HWM,
    MLPPolicy,
    Newton,
    Parallel,
    Paths,
    Picard,
    Sequential,
    Transformer,
    unroll,
    unroll_grad,
)
from awmkit.methods import _fixed_point
from awmkit.models.backbones import _attention, _blocked, _rows
from awmkit.tasks import spiral


def _awm(seed: int = 0) -> AWM:
    keys = jax.random.split(jax.random.key(seed))
    return AWM(3, 2, Transformer(12, 1, 3, key=keys[0]), key=keys[1])


def _largest_difference(x, y) -> float:
    pairs = zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)
    return max(float(jnp.max(jnp.abs(a - b)) / (1e-12 + jnp.max(jnp.abs(a)))) for a, b in pairs)


@pytest.mark.parametrize("cut", [True, False], ids=["BPO", "any gains"])
def test_sequential_and_parallel_agree_in_values_and_gradients(cut):
    policy = GaussianPolicy(3, 2, width=8, horizon=15, key=jax.random.key(1))
    picard = Parallel(sampling=Picard(), block=10)
    methods = [Sequential(), Parallel(block=7), Parallel(sampling=Picard()), picard]

    @eqx.filter_jit
    def run(seed, gains):
        model_key, state_key, key = jax.random.split(jax.random.key(seed), 3)
        model = AWM(3, 2, Transformer(12, 1, 3, key=model_key), head=GaussianHead, key=model_key)  # Sampled, by the key.
        state = jax.random.normal(state_key, (3,))
        paths = BPO if cut else Paths(*gains)
        return [unroll_grad(model, policy, state, 15, reward=reward, key=key, paths=paths, method=m) for m in methods]

    @given(seed=st.integers(0, 2**31 - 1), gains=st.sampled_from([(1.0, 1.0, 1.0), (0.5, 1.0, 0.8)]))
    def check(seed, gains):
        first, *others = run(jnp.asarray(seed), jnp.asarray(gains))
        assert all(_largest_difference(first, other) < 1e-11 for other in others)

    check()


@pytest.mark.parametrize("paths", [BPO, Paths()], ids=["BPO", "closed loop"])
def test_all_methods_agree_in_forward_mode_and_second_derivatives(paths):
    model = AWM(3, 2, Transformer(4, 1, 1, key=jax.random.key(0)), key=jax.random.key(1))
    state, policy = jnp.array([0.5, -0.3, 0.2]), MLPPolicy(3, 2, width=4, depth=1, key=jax.random.key(1))
    weights, rest = eqx.partition(policy, eqx.is_inexact_array)
    direction = jax.tree.map(jnp.ones_like, weights)

    def value(h, method):
        moved = jax.tree.map(lambda w, d: w + h * d, weights, direction)
        return jnp.sum(unroll(model, eqx.combine(moved, rest), state, 9, reward=reward, paths=paths, method=method).rewards)

    @jax.jit
    def derivatives(h):
        return [[d(h, m) for m in methods] for d in (jax.jacfwd(value), jax.grad(jax.grad(value)))]

    methods = Sequential(), Parallel(sampling=Picard()), Newton()
    for one, *others in derivatives(0.1):
        assert jnp.allclose(one, jnp.stack(others), rtol=1e-9) and abs(one) > 1e-3


@given(horizon=st.sampled_from([1, 2, 9, 30]))
def test_checkpointing_does_not_change_the_gradient(horizon):
    system, policy = spiral(1.05, 0.3), MLPPolicy(2, 1, width=4, key=jax.random.key(0))
    grads = [
        unroll_grad(system, policy, jnp.ones(2), horizon, reward=reward, method=Sequential(checkpoint))
        for checkpoint in ("none", "step", "nested")
    ]
    assert all(_largest_difference(grads[0], g) < 1e-12 for g in grads[1:])


def test_checkpointing_saves_memory():
    # Its carry is larger than the states and actions, which every method stores.
    keys = jax.random.split(jax.random.key(0), 3)
    system, policy = HWM(2, 1, GRU(64, key=keys[0]), key=keys[1]), MLPPolicy(2, 1, width=64, key=keys[2])

    def memory(checkpoint):
        run = lambda s: jax.tree.leaves(unroll_grad(system, policy, s, 4096, reward=reward, method=Sequential(checkpoint)))
        return jax.jit(run).lower(jnp.ones(2)).compile().memory_analysis().temp_size_in_bytes

    assert memory("none") > 3 * memory("step") > 3 * memory("nested")


@given(seed=st.integers(0, 2**31 - 1))
def test_picard_sampling_equals_the_scan_within_50_sweeps(seed):
    policy = MLPPolicy(3, 2, width=8, key=jax.random.key(2))
    state = jax.random.normal(jax.random.key(seed), (3,))
    scan = unroll(_awm(), policy, state, 100, method=Parallel())
    sweeps = unroll(_awm(), policy, state, 100, method=Parallel(sampling=Picard()))
    assert scan.sweeps is None and 2 <= sweeps.sweeps < 50
    assert jnp.allclose(scan.states, sweeps.states, atol=1e-12) and jnp.allclose(scan.actions, sweeps.actions, atol=1e-12)
    coarse = unroll(_awm(), policy, state, 100, method=Parallel(sampling=Picard(tolerance=1e-3)))
    assert coarse.sweeps < sweeps.sweeps and jnp.allclose(coarse.actions, scan.actions, atol=1e-2)
    again = unroll(_awm(), policy, state, 100, method=Parallel(sampling=Picard(), start=scan.actions))
    assert again.sweeps == 1 and jnp.allclose(again.actions, scan.actions, atol=1e-12)
    impatient = unroll(_awm(), policy, state, 100, method=Parallel(sampling=Picard(), patience=1))
    assert impatient.sweeps == 1 and impatient.residual == 0 and jnp.allclose(impatient.states, scan.states, atol=1e-12)


def test_picard_raises_beyond_max_sweeps_and_is_exact_after_h_sweeps():
    # In this expanding system with a feedback policy, each sweep makes one more step exact and perturbs the later ones.
    dynamics, policy = AWM.from_dynamics(spiral(1.5, 1.0)), lambda s, t, *, key=None: jnp.tanh(3 * s[:1])
    with pytest.raises(eqx.EquinoxRuntimeError, match="max_sweeps=3"):
        unroll(dynamics, policy, jnp.ones(2), 20, method=Parallel(sampling=Picard(max_sweeps=3)))
    exact = unroll(dynamics, policy, jnp.ones(2), 20, method=Parallel(sampling=Picard(tolerance=0.0)))
    scan = unroll(dynamics, policy, jnp.ones(2), 20)
    assert jnp.allclose(exact.states, scan.states, rtol=1e-12)
    # The last block has one step, whose action and next state need a sweep each.
    blocks = unroll(dynamics, policy, jnp.ones(2), 7, method=Parallel(sampling=Picard(), block=3))
    assert jnp.allclose(blocks.states, scan.states[:8], rtol=1e-12)


@pytest.mark.parametrize("rounded", ["TF32", "bfloat16"])
def test_picard_stops_where_rounding_hides_what_more_sweeps_would_change(monkeypatch, rounded):
    options = {"matmul_dtype": jnp.bfloat16}
    if rounded == "TF32":  # As a GPU rounds float32. On a CPU only the emulation knows.
        bits = lambda x: lax.reduce_precision(x, 8, 10)
        for module in (_attention, _blocked, _rows):
            monkeypatch.setattr(module, "matmul", lambda x, y, dtype: bits(x) @ bits(y))
        monkeypatch.setattr(_fixed_point, "precision", lambda jaxpr, platform: 2.0**-10)
        options = {}
    keys = jax.random.split(jax.random.key(0), 3)
    model = AWM(3, 2, Transformer(12, 1, 3, key=keys[0], **options), key=keys[1])
    model, policy = jax.tree.map(
        lambda x: x.astype(jnp.float32) if eqx.is_inexact_array(x) else x, (model, MLPPolicy(3, 2, width=8, key=keys[2]))
    )
    states = jax.random.normal(jax.random.key(1), (16, 3), jnp.float32)
    methods = Parallel(), Parallel(sampling=Picard())
    scan, sweeps = jax.jit(jax.vmap(lambda s: [unroll(model, policy, s, 40, method=m) for m in methods]))(states)
    noise = {"TF32": 2.0**-10, "bfloat16": 2.0**-7}[rounded]
    assert jnp.max(sweeps.sweeps) <= 6 and jnp.max(sweeps.residual) < 8 * noise
    assert 1e-3 * noise < jnp.max(jnp.abs(scan.actions - sweeps.actions)) < noise


def test_sweeps_stop_when_only_rounding_errors_still_move():
    weights = 0.1 * jnp.eye(2, dtype=jnp.bfloat16)
    product = lambda x: jnp.matmul(x.astype(jnp.bfloat16), weights, preferred_element_type=jnp.float32)
    sweep = lambda x: 1 + product(x) + 1e-4 * jnp.sin(1e6 * x)  # The last term changes with every sweep, as rounding errors do.
    x, sweeps = Picard(tolerance=0.0).solve(sweep, jnp.zeros((50, 2), jnp.float32), unit=1.0)
    assert sweeps.count < 10 and 0 < sweeps.residual < 1e-3 and jnp.allclose(x, 1 / 0.9, atol=1e-2)


def test_the_precision_of_matrix_products_is_that_of_their_factors_on_the_platform():
    x, y = jnp.ones((2, 2), jnp.float32), jnp.ones((2, 2), jnp.bfloat16)
    of = lambda f, platform, *x: _fixed_point.precision(jax.make_jaxpr(f)(*x).jaxpr, platform)
    looped = lambda x: lax.fori_loop(0, 3, lambda i, x: jax.nn.tanh(x @ x), x)
    assert of(jnp.sin, "cuda", x) == 0.0
    assert of(looped, "cpu", x) == 2.0**-23 and of(looped, "cuda", x) == 2.0**-10 and of(looped, "tpu", x) == 2.0**-7
    assert of(looped, "cuda", x.astype(float)) == 2.0**-52
    assert of(lambda x, y: x @ x + jnp.matmul(y, y, preferred_element_type=jnp.float32), "cpu", x, y) == 2.0**-7
    with jax.default_matmul_precision("highest"):
        assert of(looped, "cuda", x) == 2.0**-23
    with jax.default_matmul_precision("TF32_TF32_F32"):
        assert of(jnp.dot, "cpu", x, x) == 2.0**-10


def test_adjoint_sweep_n_adds_the_paths_that_cross_the_policy_edge_n_times():
    # A gain g weights sweep n by g^n, so the gradient is a polynomial in g.
    model, policy = _awm(), MLPPolicy(3, 2, width=8, key=jax.random.key(2))
    slope = lambda g: jnp.concatenate(
        [x.ravel() for x in jax.tree.leaves(unroll_grad(model, policy, jnp.ones(3), 3, reward=reward, paths=Paths(g))[1])]
    )
    slopes = jnp.stack([slope(jnp.asarray(g)) for g in (0.0, 0.5, 1.0, 1.5)])
    # In three steps, a path from an action to the last reward crosses the policy edge at most twice: its degree is 2.
    third_difference = slopes[3] - 3 * slopes[2] + 3 * slopes[1] - slopes[0]
    assert jnp.max(jnp.abs(third_difference)) < 1e-10 < jnp.max(jnp.abs(slopes[2] - 2 * slopes[1] + slopes[0]))
