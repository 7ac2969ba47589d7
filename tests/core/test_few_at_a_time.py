"""Running a batch in groups must not change its values or derivatives of any order."""

import jax
import jax.numpy as jnp
from systems import reward

from awmkit import AWM, BPO, GaussianPolicy, Transformer, unroll_grad
from awmkit._few_at_a_time import few_at_a_time
from awmkit.models.backbones import _transformer

W, X = jax.random.normal(jax.random.key(0), (3, 3)), jax.random.normal(jax.random.key(1), (6, 3))


def _plain(w, x):
    return jnp.sin(w @ x) * jnp.sum(x)


def _grouped(w, x):
    return few_at_a_time(_plain, w, x, size=4)  # The largest divisor of 6 that is at most 4 is 3.


def test_groups_have_the_values_and_derivatives_of_the_whole_batch():
    def results(f):
        batch = lambda w, x=X: jax.vmap(f, (None, 0))(w, x)
        total = lambda w: jnp.sum(batch(w) ** 2)
        alone = lambda x: jnp.sum(f(W, x) ** 2)
        return (
            f(W, X[0]),
            batch(W),
            jax.vmap(batch)(jnp.stack([W, 2 * W])),
            jax.vmap(f, (None, 1))(W, X.T),
            jax.grad(total)(W),
            jax.jvp(batch, (W,), (W + 1,))[1],
            jax.vmap(jax.grad(alone))(X),
            jax.jvp(jax.grad(total), (W,), (W + 1,))[1],
            jax.vmap(jax.hessian(alone))(X),
        )

    plain, grouped = jax.jit(lambda: (results(_plain), results(_grouped)))()
    assert all(jnp.allclose(x, y, rtol=1e-12, atol=1e-12) for x, y in zip(plain, grouped, strict=True))


def test_a_group_is_recomputed_in_reverse_mode_and_only_the_program_for_a_cpu_loops():
    def lowered(platform):
        program = jax.jit(jax.grad(lambda w: jnp.sum(jax.vmap(_grouped, (None, 0))(w, X)))).trace(W)
        return program.lower(lowering_platforms=(platform,)).as_text()

    assert "while" in lowered("cpu") and "while" not in lowered("cuda")


def test_arrays_that_the_function_closes_over_may_be_batched_and_differentiated():
    def results(w):
        functions = (lambda x: _plain(w, x)), (lambda x: few_at_a_time(lambda x: _plain(w, x), x, size=4))
        return tuple(jnp.sum(jax.vmap(f)(X) ** 2) for f in functions)

    both = jax.jit(lambda w: (jax.jacrev(results)(w), jax.jacfwd(results)(w), jax.vmap(results)(jnp.stack([w, 2 * w]))))
    for plain, grouped in both(W):
        assert jnp.allclose(plain, grouped, rtol=1e-12, atol=1e-12)


def test_a_batch_of_policy_gradients_in_groups_equals_one_gradient_after_the_other(monkeypatch):
    monkeypatch.setattr(_transformer, "TOKENS", 22)  # Two sequences of 11 tokens at a time.
    model = AWM(3, 2, Transformer(12, 1, 3, key=jax.random.key(0)), key=jax.random.key(1))
    policy = GaussianPolicy(3, 2, width=8, key=jax.random.key(2))
    gradient = lambda start, key: unroll_grad(model, policy, start, 11, reward=reward, key=key, paths=BPO)
    keys = jax.random.split(jax.random.key(3), 6)
    assert model.episodes_at_a_time(11) == 2
    together = jax.vmap(gradient)(X, keys)
    for i in range(6):
        for one, batch in zip(jax.tree.leaves(gradient(X[i], keys[i])), jax.tree.leaves(together), strict=True):
            assert jnp.allclose(one, batch[i], rtol=1e-10, atol=1e-12)
