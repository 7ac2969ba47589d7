"""Fixed steps of an ordinary differential equation by any diffrax solver, and the parameters in its equations."""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PyTree, ScalarLike

from .._checks import check_counts, check_floats, check_shapes, describe

Parameter = float | Float[Array, ""]  # A number in an equation, which may be traced and differentiated.


def as_parameter(x):
    """Return a Python number as a NumPy number, and anything else unchanged.

    `eqx.filter_grad` differentiates NumPy numbers like arrays, but not Python's. Unlike an array, a NumPy number can be hashed,
    so `jax.jit(task.reset)` works, and it keeps its precision if x64 is enabled later.
    """
    return np.float64(x) if isinstance(x, int | float) else x


def parameter(default: float):
    """Return a field for a parameter of an equation."""
    return eqx.field(default=default, converter=as_parameter)


def strength(x):
    """Return the strength of a noise as a parameter; 0 stays a Python number, which says before tracing that there is none."""
    return 0.0 if is_off(x) else as_parameter(x)


def is_off(strength) -> bool:
    """Return whether a noise of this strength is known to be absent."""
    return isinstance(strength, int | float) and bool(strength == 0)


def in_dtype(tree: PyTree, dtype) -> PyTree:
    """Return `tree` with its parameters in the dtype of the states, so that they do not change the dtype of a step."""
    return jtu.tree_map(lambda x: jnp.asarray(x, dtype) if eqx.is_inexact_array(x) else x, tree)


def ode_step(
    field: Callable[[ScalarLike, PyTree[Array], PyTree], PyTree[Array]],
    state: PyTree[Float[Array, "..."]],
    args: PyTree,
    *,
    solver: diffrax.AbstractSolver,
    dt: ScalarLike,
    substeps: int = 1,
) -> PyTree[Float[Array, "..."]]:
    """Integrate x' = field(t, x, args) over `dt` by `substeps` equal steps of `solver`.

    Use it in the `step` of your own dynamics. Its derivatives are those of the discrete steps, in forward and reverse mode, and not
    those of a continuous adjoint, which are inexact for chaotic systems. It compiles and runs several times faster than
    `diffeqsolve`, with the same values. With an explicit Runge-Kutta solver, reverse mode stores the state of each substep and
    computes the stages again, except for matrix products.
    To save memory over a long unroll, use `method=Sequential(checkpoint="nested")`.

    ```python
    class Spring(AbstractDynamics):
        state_size: int = 2
        action_size: int = 1

        def step(self, carry, state, action, t, *, key=None):
            field = lambda t, x, force: (x[1], force - x[0])
            return carry, jnp.stack(ode_step(field, tuple(state), action[0], solver=diffrax.Tsit5(), dt=0.05))
    ```

    The state may be an array as well. Use a tuple of scalars where each entry of the field is a formula: nothing is stacked or
    sliced between the stages then, and XLA compiles a substep of an explicit Runge-Kutta solver into a few kernels.

    **Arguments**

    - `field`: the vector field, called as `field(t, x, args)`, where t is the time since the start of the step.
    - `state`: x at the start of the step, an array or a tree of arrays.
    - `args`: anything that is constant over the step, such as an action.
    - `solver`: any diffrax solver. An implicit one needs a root finder with its own tolerances, because there is no step-size
      controller: `diffrax.Kvaerno3(root_finder=diffrax.VeryChord(rtol=1e-6, atol=1e-6))`.
    - `dt`: duration of the whole step, in the unit of time of `field`.
    - `substeps`: number of solver steps.

    **Returns:** x at the end of the step, in the form of `state`. It is NaN if a step of an implicit solver does not converge; take
    more substeps then, or a looser tolerance.

    **Raises:** `ValueError` if `substeps` is not a positive whole number, the field returns arrays of other shapes than `state`, or
    an implicit solver has no tolerances.
    """
    check_counts("ode_step", substeps=substeps)
    check_shapes("ode_step", "pass one number", dt=(dt, ()))
    leaves = jtu.tree_leaves(state)
    check_floats("ode_step", **{"state" if len(leaves) == 1 else f"state[{i}]": x for i, x in enumerate(leaves)})
    h = jnp.asarray(dt, jnp.result_type(*leaves)) / substeps

    def checked(t, y, args):
        slope = field(t, y, args)
        if _form(slope) != _form(state):
            needed = (
                f"an array of the state's shape {state.shape}" if hasattr(state, "shape") else f"a tree like {describe(state)}"
            )
            raise ValueError(f"field must return {needed}, got {describe(slope)}; fix its return value.")
        return slope

    weights = _weights(solver)
    if not eqx.is_array_like(getattr(getattr(solver, "root_finder", None), "rtol", 0.0)):
        raise ValueError(
            f"{type(solver).__name__} solves equations in each step and needs tolerances for them, got none; pass "
            f"{type(solver).__name__}(root_finder=diffrax.VeryChord(rtol=1e-6, atol=1e-6))."
        )
    if weights is None:
        substep, start = _diffrax_step(solver, checked, state, args, h)
    else:
        explicit = lambda y, t: _explicit_step(weights, checked, y, args, t, h)
        substep, start = jax.checkpoint(explicit, prevent_cse=False, policy=jax.checkpoint_policies.dots_saveable), state
    if substeps == 1:
        end = substep(start, jnp.zeros_like(h))
    else:
        end = lax.scan(lambda y, i: (substep(y, i * h), None), start, jnp.arange(substeps, dtype=h.dtype))[0]
    return end[0] if weights is None else end


def _form(tree: PyTree) -> tuple:
    return jtu.tree_structure(tree), [getattr(x, "shape", None) for x in jtu.tree_leaves(tree)]


def _weights(solver: diffrax.AbstractSolver) -> tuple | None:
    """Return c, a and b of the Butcher tableau of an explicit Runge-Kutta solver, and `None` for all others."""
    if type(solver) is diffrax.Euler:
        return (), (), (1.0,)
    # A subclass may do more in its step than its tableau says.
    if not isinstance(solver, diffrax.AbstractERK) or type(solver).step is not diffrax.AbstractERK.step:
        return None
    tableau: Any = solver.tableau
    return tableau.c, tableau.a_lower, tableau.b_sol


def _explicit_step(weights: tuple, field: Callable, y: PyTree, args: PyTree, t: Array, h: Array) -> PyTree:
    """Return y after one explicit Runge-Kutta step of length h from time t. Its stages are unrolled."""
    c, a, b = weights
    slopes = []

    def moved(row):
        used = [(float(w), k) for w, k in zip(row, slopes, strict=True) if w != 0]
        if not used:
            return y
        add = lambda y, *terms: y + h * sum(terms[1:], terms[0])
        return jtu.tree_map(add, y, *[jtu.tree_map(lambda x, w=w: w * x, k) for w, k in used])

    for i, (node, row) in enumerate(zip((0.0, *c), ((), *a), strict=True)):
        # The last stage of some solvers only serves the next step, where it is the first, or an estimate of the error.
        needed = any(later[i] != 0 for later in (*a[i:], b))
        slopes.append(field(t + float(node) * h, moved(row), args) if needed else None)
    return moved(b)


def _diffrax_step(
    solver: diffrax.AbstractSolver, field: Callable, y: PyTree, args: PyTree, h: Array
) -> tuple[Callable, PyTree]:
    """Return one step of any solver, as a function of the loop's variables and the time, and the loop's variables at the start."""
    if getattr(solver, "scan_kind", "bounded") is None:  # Can be differentiated in both modes.
        solver = eqx.tree_at(lambda s: s.scan_kind, solver, "bounded", is_leaf=lambda x: x is None)
    term = diffrax.ODETerm(field)

    def substep(loop, t):
        y, solver_state = loop
        y, _, _, solver_state, result = solver.step(term, t, t + h, y, args, solver_state, made_jump=False)
        converged = result == diffrax.RESULTS.successful
        return jtu.tree_map(lambda x: jnp.where(converged, x, jnp.nan), y), solver_state

    return substep, (y, solver.init(term, jnp.zeros_like(h), h, y, args))
