"""All steps at once, for actions world models, with fixed points found by Picard iteration."""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from jax import lax
from jaxtyping import Array, Float, Int, PyTree, ScalarLike

from .._paths import is_cut, Paths
from ._method import AbstractMethod, act_on, passes, Rollout, stepper
from ._sequential import Sequential


class Picard(eqx.Module):
    """Sweeps to the fixed point of a map that is causal in time, each sweep one parallel pass.

    Step t of a causal map depends on earlier steps only, so that n sweeps settle at least the first n steps and H sweeps all
    of them; a handful is enough where distant steps interact weakly.

    **Arguments**

    - `tolerance`: sweeps stop when no value moves by more, in units of the largest (for actions at least 1, their bound). By
      default 8 units in the last place.
    - `max_sweeps`: the largest number of sweeps; a run that needs more is an error. By default H, at which sweeps are exact.

    **Raises:** `ValueError` for a `tolerance` below 0 or `max_sweeps` below 1.
    """

    tolerance: float | None = None
    max_sweeps: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if self.tolerance is not None and not self.tolerance >= 0:
            raise ValueError(f"Picard got tolerance={self.tolerance}; give a number of at least 0, such as 1e-6.")
        if self.max_sweeps is not None and self.max_sweeps < 1:
            raise ValueError(f"Picard got max_sweeps={self.max_sweeps}; give at least 1, or None for the horizon.")

    def solve(
        self, sweep: Callable[[Array], Array], x: Float[Array, "H D"], *, unit: ScalarLike
    ) -> tuple[Float[Array, "H D"], Int[Array, ""]]:
        """The fixed point of `sweep`, started from `x`, in values of size `unit`, and the number of sweeps it took."""
        tolerance = 8 * jnp.finfo(x.dtype).eps if self.tolerance is None else self.tolerance
        limit = min(x.shape[0], self.max_sweeps or x.shape[0])

        def unfinished(loop):
            _, moved, size, n = loop
            return (moved > tolerance * jnp.maximum(size, unit)) & (n < limit)

        def body(loop):
            x, _, _, n = loop
            y = sweep(x)
            return y, jnp.max(jnp.abs(y - x)), jnp.max(jnp.abs(y)), n + 1

        start = (x, jnp.asarray(jnp.inf, x.dtype), jnp.ones((), x.dtype), jnp.asarray(0))
        x, moved, size, n = lax.while_loop(unfinished, body, start)
        if limit < x.shape[0]:  # At H sweeps the result is exact whatever the last one moved.
            message = (
                f"Picard sweeps had not settled after max_sweeps={limit}; raise max_sweeps or the tolerance, "
                "or sample with Parallel(sampling=Sequential())."
            )
            x = eqx.error_if(x, moved > tolerance * jnp.maximum(size, unit), message)
        return x, n


class Parallel(AbstractMethod):
    """All steps at once, for a dynamics that never reads a predicted state: an actions world model.

    The closed loop a = policy(AWM(s_0, a)) is a causal fixed point. It is found without gradient; then one causal pass over
    all actions, differentiated, gives

    - with `state_to_policy` cut (BPO), the exact gradient, with no backward scan;
    - else the exact closed-loop gradient, whose adjoint equation lambda = g + A^T lambda is nilpotent and is solved by sweeps,
      the n-th of which adds the paths that cross the policy edge n times. Forward mode and higher orders work too.

    **Arguments**

    - `sampling`: how the fixed point is found: `Sequential()`, the cached scan, or `Picard()`, sweeps of one parallel pass.
    - `adjoint`: the sweeps of the closed-loop gradient.
    - `block`: steps that are sampled before a cache grows to make room for as many again, at least H/8 and 64 by default; or
      that Picard settles before it goes on to the next, by default all.
    - `start`: actions (H, A) to begin Picard's sampling from, by default zeros; those of a policy before its last update, from
      the same s_0, need fewer sweeps.

    ```python
    value, grads = unroll_grad(awm, policy, s_0, 400, reward=task.reward, paths=BPO, method=Parallel(sampling=Picard()))
    ```

    **Raises:** `ValueError` for a `block` below 1, or a `start` with sequential sampling.
    """

    sampling: Sequential | Picard = Sequential()
    adjoint: Picard = Picard()
    block: int | None = eqx.field(static=True, default=None)
    start: Float[Array, "H A"] | None = None

    def __check_init__(self):
        if self.block is not None and self.block < 1:
            raise ValueError(f"Parallel got block={self.block}; give at least 1, or None for the default.")
        if self.start is not None and isinstance(self.sampling, Sequential):
            raise ValueError("Parallel got a start with sequential sampling, which has no use for it; add sampling=Picard().")

    def run(self, dynamics, policy, state, horizon, *, key, paths):
        act, predict = passes(dynamics, policy, state, horizon, key=key, paths=paths)
        if isinstance(policy, Array):
            return predict(policy), policy, None
        states, actions, sweeps = self._sample(dynamics, policy, state, horizon, key)
        if is_cut(paths.state_to_policy):
            actions = act(states)
        else:
            actions = lax.custom_root(lambda a: a - act(predict(a)), actions, lambda _, root: root, self._solve_adjoint)
        return predict(actions), actions, sweeps

    def _sample(self, dynamics, policy, state, horizon, key) -> Rollout:
        """The closed loop without gradient, block after block, so that no step attends to room that only later ones need."""
        detach = lambda x: lax.stop_gradient(x) if eqx.is_inexact_array(x) else x
        dynamics, policy, state, start = jtu.tree_map(detach, (dynamics, policy, state, self._start(dynamics, horizon, state)))
        step, steps = stepper(dynamics, policy, horizon, key=key, paths=Paths())
        in_turn = isinstance(self.sampling, Sequential)
        block = min(self.block or (max(64, -(-horizon // 8)) if in_turn else horizon), horizon)
        grows = _grows(dynamics, state, block, horizon)
        block = horizon if in_turn and not grows else block
        carry, pieces, most = dynamics.init(state, block if grows else horizon), [], None if in_turn else jnp.asarray(0)
        for t in range(0, horizon, block):
            end = min(t + block, horizon)
            carry = dynamics.resize_carry(carry, end) if grows and t > 0 else carry
            of_block = jtu.tree_map(lambda x, t=t, end=end: x[t:end], steps)
            if isinstance(self.sampling, Sequential):
                (carry, state), piece = lax.scan(step, (carry, state), of_block)
            else:
                carry, piece, sweeps = self._settle(self.sampling, dynamics, policy, carry, state, t, of_block, start[t:end])
                state, most = piece[0][-1], jnp.maximum(most, sweeps)
            pieces.append(piece)
        states, actions = jtu.tree_map(lambda *x: jnp.concatenate(x), *pieces)
        return states, actions, most

    @staticmethod
    def _settle(sampling, dynamics, policy, carry, state, t, steps, start) -> tuple[PyTree, tuple[Array, Array], Array]:
        """The carry after the steps from t on, their states and actions, and the sweeps it took."""
        _, _, policy_keys, dynamics_keys = steps
        predict = lambda actions: dynamics.rollout_segment(carry, state, actions, t, keys=dynamics_keys)
        act = lambda states: act_on(policy, state, states, t, policy_keys)
        actions, sweeps = sampling.solve(lambda actions: act(predict(actions)[1]), start, unit=1.0)
        carry, states = predict(actions)
        return carry, (states, actions), sweeps

    def _start(self, dynamics, horizon: int, state) -> Float[Array, "H A"]:
        shape = horizon, dynamics.action_size
        if self.start is not None and self.start.shape != shape:
            raise ValueError(f"Parallel got a start of shape {self.start.shape}; this unroll has actions of shape {shape}.")
        return jnp.zeros(shape, state.dtype) if self.start is None else self.start

    def _solve_adjoint(self, residual: Callable[[Array], Array], g: Float[Array, "H A"]) -> Float[Array, "H A"]:
        """x such that residual(x) = x - A x = g; transposed, that is the adjoint equation."""

        def solve(residual, g):
            return self.adjoint.solve(lambda x: g + (x - residual(x)), g, unit=jnp.max(jnp.abs(g)))[0]

        return lax.custom_linear_solve(residual, g, solve, transpose_solve=solve)


def _grows(dynamics, state, block: int, horizon: int) -> bool:
    """Whether a carry depends on the horizon, and `grow` makes of a short one's that of a longer one."""
    shapes = lambda make: [x.shape for x in jtu.tree_leaves(eqx.filter_eval_shape(make, state)) if hasattr(x, "shape")]
    short, long = (shapes(lambda s, n=n: dynamics.init(s, n)) for n in (block, horizon))
    return short != long and shapes(lambda s: dynamics.resize_carry(dynamics.init(s, block), horizon)) == long
