"""Fixed steps of an ordinary differential equation by any diffrax solver, and the parameters in its equations."""

from collections.abc import Callable

import diffrax
import equinox as eqx
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
    field: Callable[[ScalarLike, Array, PyTree], Array],
    state: Float[Array, " S"],
    args: PyTree,
    *,
    solver: diffrax.AbstractSolver,
    dt: ScalarLike,
    substeps: int = 1,
) -> Float[Array, " S"]:
    """Integrate x' = field(t, x, args) over `dt` by `substeps` equal steps of `solver`.

    Use it in the `step` of your own dynamics. Its derivatives are those of the discrete steps, in forward and reverse mode, and not
    those of a continuous adjoint, which are inexact for chaotic systems. It compiles several times faster than `diffeqsolve`.
    To save memory over a long unroll, use `method=Sequential(checkpoint="nested")`.

    ```python
    class Spring(AbstractDynamics):
        state_size: int = 2
        action_size: int = 1

        def step(self, carry, state, action, t, *, key=None):
            field = lambda t, x, force: jnp.stack([x[1], force - x[0]])
            return carry, ode_step(field, state, action[0], solver=diffrax.Tsit5(), dt=0.05)
    ```

    **Arguments**

    - `field`: the vector field, called as `field(t, x, args)`, where t is the time since the start of the step.
    - `state`: x at the start of the step, shape (S,).
    - `args`: anything that is constant over the step, such as an action.
    - `solver`: any diffrax solver.
    - `dt`: duration of the whole step, in the unit of time of `field`.
    - `substeps`: number of solver steps.

    **Returns:** x at the end of the step, shape (S,).

    **Raises:** `ValueError` if `substeps` is not a positive whole number.
    """
    check_counts("ode_step", substeps=substeps)
    check_shapes("ode_step", "pass an array and one number", state=(state, ("*",)), dt=(dt, ()))
    check_floats("ode_step", state=state)
    if getattr(solver, "scan_kind", "bounded") is None:  # Can be differentiated in both modes.
        solver = eqx.tree_at(lambda s: s.scan_kind, solver, "bounded", is_leaf=lambda x: x is None)
    term = diffrax.ODETerm(field)
    h = jnp.asarray(dt, state.dtype) / substeps
    slope = eqx.filter_eval_shape(field, jnp.zeros_like(h), state, args)
    if getattr(slope, "shape", None) != state.shape:
        raise ValueError(
            f"field must return an array of the state's shape {state.shape}, got {describe(slope)}; fix its return value."
        )

    def substep(loop, i):
        y, solver_state = loop
        t = i * h
        y, _, _, solver_state, _ = solver.step(term, t, t + h, y, args, solver_state, made_jump=False)
        return (y, solver_state), None

    start = (state, solver.init(term, jnp.zeros_like(h), h, state, args))
    if substeps == 1:
        return substep(start, jnp.zeros_like(h))[0][0]
    return lax.scan(substep, start, jnp.arange(substeps, dtype=state.dtype))[0][0]
