"""What does the precision of matrix products do to Picard's sweeps and to a gradient? An emulation on a CPU.

    python examples/benchmarks/precision.py                           100 steps, 64 initial states: 1 minute
    python examples/benchmarks/precision.py --horizon 1000 --batch 8  10 minutes

A GPU rounds the factors of float32 products to TF32, with 10 bits of mantissa, unless `jax.default_matmul_precision("highest")`
is set; `matmul_dtype=jnp.bfloat16` leaves 7. Here the factors of all products of a float32 transformer AWM (width 48, 2 layers,
3 heads, untrained) and of its policy are rounded in this way. Picard is told so, as it finds out itself on a GPU. Errors are
relative to `Sequential` in float64: the norm of the error of all actions, and of the mean gradient.

Expected at 100 steps: 4, 2 and 2 sweeps for float32, TF32 and bfloat16, and errors near 2e-7, 4e-4 and 3e-3, those of `Picard` as
those of sequential sampling.
"""

# Products are rounded by replacing functions of modules.
# pyright: reportAttributeAccessIssue=false

import argparse
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from awmkit import AbstractMethod, AWM, BPO, MLPPolicy, Parallel, Picard, Transformer, unroll
from awmkit.methods import _fixed_point
from awmkit.models.backbones import _attention, _blocked, _rows

EXACT_PRODUCT, EXACT_LINEAR, EXACT_PRECISION = _attention.matmul, eqx.nn.Linear.__call__, _fixed_point.precision


def round_products(bits: int | None) -> None:
    """Round the factors of all products to this many bits of mantissa from now on; `None`: do not."""
    cut = lambda x: x if bits is None else lax.reduce_precision(x, 8, bits)

    def linear(layer, x, *, key=None):
        return EXACT_LINEAR(eqx.tree_at(lambda layer: layer.weight, layer, cut(layer.weight)), cut(x), key=key)

    for module in (_attention, _blocked, _rows):
        module.matmul = lambda x, y, dtype: EXACT_PRODUCT(cut(x), cut(y), dtype)
    eqx.nn.Linear.__call__ = linear
    _fixed_point.precision = EXACT_PRECISION if bits is None else lambda jaxpr, platform: 2.0**-bits
    jax.clear_caches()


def reward(state, action, t):
    del t
    return -jnp.sum(state**2) - jnp.sum(action**2)


def gradient(model: AWM, policy: MLPPolicy, states: Array, horizon: int, method: AbstractMethod) -> dict[str, np.ndarray]:
    """Return the actions, the mean gradient, the number of sweeps and the last residual, computed in the dtype of `states`."""
    cast = lambda x: x.astype(states.dtype) if eqx.is_inexact_array(x) else x
    model, policy = jax.tree.map(cast, (model, policy))

    @eqx.filter_jit
    def run(policy, states):
        one = lambda policy, s: unroll(model, policy, s, horizon, reward=reward, paths=BPO, method=method)

        def mean(policy):
            # A few initial states at a time fit in memory.
            episodes = lax.map(lambda s: one(policy, s), states, batch_size=8)
            return jnp.mean(episodes.returns()), episodes

        grads, episodes = eqx.filter_grad(mean, has_aux=True)(policy)
        return ravel_pytree(grads)[0], episodes

    grads, episodes = run(policy, states)
    found = {"actions": episodes.actions, "gradient": grads, "sweeps": episodes.sweeps, "residual": episodes.residual}
    return {name: np.asarray(x) for name, x in found.items() if x is not None}


def main(horizon: int, batch: int) -> None:
    keys = jax.random.split(jax.random.key(0), 4)
    model = AWM(4, 2, Transformer(horizon=horizon, key=keys[0]), key=keys[1])
    policy, states = MLPPolicy(4, 2, key=keys[2]), 0.5 * jax.random.normal(keys[3], (batch, 4))
    with jax.enable_x64(True):
        exact = gradient(model, policy, states.astype(float), horizon, Parallel())
    error = lambda found, name: np.linalg.norm(found[name] - exact[name]) / np.linalg.norm(exact[name])
    methods: dict[str, Callable] = {"Parallel": Parallel, "Picard": lambda: Parallel(sampling=Picard())}
    print(f"H = {horizon}, {batch} initial states\nproducts  method    sweeps  residual  error of actions  of the gradient")
    for name, bits in {"float32": None, "TF32": 10, "bfloat16": 7}.items():
        round_products(bits)
        for label, method in methods.items():
            found = gradient(model, policy, states, horizon, method())
            sweeps, residual = (np.max(found.get(x, np.nan)) for x in ("sweeps", "residual"))
            print(
                f"{name:10}{label:10}{sweeps:6.0f}{residual:10.1e}{error(found, 'actions'):18.1e}{error(found, 'gradient'):17.1e}",
                flush=True,
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--horizon", type=int, default=100)
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    main(options.horizon, options.batch)
