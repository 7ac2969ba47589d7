"""Fixed steps of an ordinary differential equation, by any diffrax solver.

The solver is stepped directly: its derivative is exact in forward and in reverse mode (discretise, then optimise; never a
continuous adjoint, which is inexact under chaos), and it compiles several times faster than a whole `diffeqsolve` a step.
Recursive checkpointing over time is the unroll's: `Sequential(checkpoint="nested")`.
"""

from collections.abc import Callable

import diffrax
import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree, ScalarLike

from .._checks import check_counts


def ode_step(
    field: Callable[[ScalarLike, Array, PyTree], Array],
    state: Float[Array, " S"],
    args: PyTree,
    *,
    solver: diffrax.AbstractSolver,
    dt: ScalarLike,
    substeps: int = 1,
) -> Float[Array, " S"]:
    """The state after `dt` under x' = field(t, x, args), by `substeps` equal steps of `solver`.

    **Arguments**

    - `field`: the vector field, in seconds and the state's units. `state`: x, shape (S,). `args`: constant over the step.
    - `solver`: any diffrax solver. `dt`: seconds, of all substeps together.

    **Returns:** shape (S,).

    **Raises:** `ValueError` for `substeps` below 1.
    """
    check_counts("ode_step", substeps=substeps)
    if getattr(solver, "scan_kind", "bounded") is None:  # The kind of loop over stages that both modes can differentiate.
        solver = eqx.tree_at(lambda s: s.scan_kind, solver, "bounded", is_leaf=lambda x: x is None)
    term = diffrax.ODETerm(field)
    h = jnp.asarray(dt, state.dtype) / substeps

    def substep(loop, i):
        y, solver_state = loop
        t = i * h
        y, _, _, solver_state, _ = solver.step(term, t, t + h, y, args, solver_state, made_jump=False)
        return (y, solver_state), None

    start = (state, solver.init(term, jnp.zeros_like(h), h, state, args))
    if substeps == 1:
        return substep(start, jnp.zeros_like(h))[0][0]
    return lax.scan(substep, start, jnp.arange(substeps, dtype=state.dtype))[0][0]
