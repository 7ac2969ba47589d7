"""Run all steps at once, for actions world models. Fixed points are found by Picard iteration."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax import lax
from jaxtyping import Array, Bool, Float, PyTree, ScalarLike

from .._checks import check_counts, check_floats, check_shapes
from .._paths import is_cut, Paths
from .._policies import memory_of
from ._fixed_point import fixed_point
from ._method import AbstractMethod, act_on, passes, Rollout, stepper, Sweeps
from ._sequential import Sequential


class Picard(eqx.Module):
    """Find the fixed point of a map that is causal in time by repeated parallel passes, called sweeps.

    Step t of a causal map depends on earlier steps only. After n sweeps at least the first n steps are therefore exact, and after
    H sweeps all of them. A few sweeps are enough if distant steps interact weakly.

    **Arguments**

    - `tolerance`: sweeps stop when no value changes by more than this fraction of the largest value, which for actions counts
      as at least 1. By default 8 units in the last place, or a sixteenth of a unit in the last place of the factors of
      matrix products if these are rounded further: to TF32 on a GPU, or to a `matmul_dtype`. Sweeps also stop when the
      changes are as small as rounding and no longer become smaller; `Trajectory.residual` is the last one.
    - `max_sweeps`: the largest number of sweeps; a run that needs more raises an error. By default H, after which the result is
      exact, and one more where the last state is wanted too.

    **Raises:** `ValueError` if `tolerance` is below 0 or `max_sweeps` below 1.
    """

    tolerance: float | None = None
    max_sweeps: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if self.tolerance is not None and not self.tolerance >= 0:
            raise ValueError(f"tolerance must be at least 0, got tolerance={self.tolerance}; 1e-6 is typical.")
        check_counts("Picard", max_sweeps=self.max_sweeps)

    def solve(
        self, sweep: Callable[[Array], Array], x: Float[Array, "H D"], *, unit: ScalarLike
    ) -> tuple[Float[Array, "H D"], Sweeps]:
        """Return the fixed point of `sweep`, and the sweeps. Start from `x`; values are of size `unit` or more."""
        x, _, sweeps, _ = self._solve(lambda x: (sweep(x), None), x, unit=unit)
        return x, sweeps

    def _solve(
        self,
        sweep: Callable[[Array], tuple[Array, PyTree]],
        x: Float[Array, "H D"],
        *,
        unit: ScalarLike,
        exact: int | None = None,
        patience: int | None = None,
    ) -> tuple[Float[Array, "H D"], PyTree, Sweeps, Bool[Array, ""]]:
        """Do what `solve` does for a sweep that also returns other arrays. Return those of the last sweep beside the result, and
        whether the values settled within `patience` sweeps. After `exact` sweeps all of this is exact."""
        check_shapes("Picard.solve", "give one row per step and one unit", x=(x, ("H", "D")), unit=(unit, ()))
        check_floats("Picard.solve", x=x)
        exact = x.shape[0] if exact is None else exact
        limit = min(exact, self.max_sweeps or exact)
        most = min(limit, patience or limit)
        x, beside, sweeps, settled = fixed_point(sweep, x, unit=unit, limit=most, tolerance=self.tolerance)
        if most == limit < exact:  # After `exact` sweeps the result is, whatever the last one changed.
            message = (
                f"Picard sweeps had not settled after max_sweeps={limit}; raise max_sweeps or the tolerance, "
                "or sample with Parallel(sampling=Sequential())."
            )
            x, beside = eqx.error_if((x, beside), ~settled, message)
        return x, beside, sweeps, settled | (most == exact)


class Parallel(AbstractMethod):
    """Run all steps at once, for a dynamics that does not read its predicted states: an actions world model.

    The actions are the fixed point a = policy(AWM(s_0, a)), which is found without gradient. One causal pass over all actions
    is then differentiated. This gives

    - the exact gradient, without a backward scan, if `state_to_policy` is cut (BPO);
    - otherwise the exact closed-loop gradient. Its adjoint equation, lambda = g + A^T lambda, is nilpotent and is solved by
      sweeps; sweep n adds the paths that cross the policy edge n times. Forward mode and higher orders work too.

    **Arguments**

    - `sampling`: how the fixed point is found: `Sequential()`, a scan with a cache (the default), or `Picard()`, sweeps of one
      parallel pass.
    - `adjoint`: the `Picard` that solves the adjoint equation of the closed loop.
    - `block`: number of steps sampled before the cache is enlarged, by default H/8 and at least 64; with `Picard` sampling, the
      number of steps that converge before the next block starts, by default all.
    - `patience`: number of Picard sweeps after which the steps are run one after the other instead, by default H. It bounds the
      time where a policy that reacts strongly to states needs many sweeps.
    - `start`: actions, shape (H, A), from which Picard sampling starts; by default those of the policy if the state remained
      s_0. The actions of the same policy before its last update, from the same s_0, need fewer sweeps.

    ```python
    value, grads = unroll_grad(awm, policy, s_0, 400, reward=task.reward, paths=BPO, method=Parallel(sampling=Picard()))
    ```

    **Raises:** `ValueError` if `block` or `patience` is not a whole number of at least 1, or `start` is given with sequential
    sampling.
    """

    sampling: Sequential | Picard = Sequential()
    adjoint: Picard = Picard()
    block: int | None = eqx.field(static=True, default=None)
    start: Float[Array, "H A"] | None = None
    patience: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        check_counts("Parallel", block=self.block, patience=self.patience)
        if self.start is not None and isinstance(self.sampling, Sequential):
            raise ValueError("Parallel uses `start` for Picard sampling only; add sampling=Picard().")

    def episodes_at_a_time(self, dynamics, horizon):
        # A scan over steps is faster for the whole batch.
        return dynamics.episodes_at_a_time(horizon) if isinstance(self.sampling, Picard) else None

    def run(self, dynamics, policy, state, horizon, *, key, paths, t=0, carry=None):
        assert isinstance(t, int)  # `unroll` raises for a traced one.
        act, predict = passes(dynamics, policy, state, horizon, key=key, paths=paths, t=t, carry=carry)
        if isinstance(policy, Array):
            return predict(policy), policy, None
        states, actions, sweeps = self._sample(dynamics, policy, state, horizon, key, t, carry)
        if is_cut(paths.state_to_policy):
            actions = act(states)
        else:
            actions = lax.custom_root(lambda a: a - act(predict(a)), actions, lambda _, root: root, self._solve_adjoint)
        # The states are known. Their derivative is that of the parallel pass, whose values are not computed once more.
        return _with_derivative_of(predict(actions), states), actions, sweeps

    def _sample(self, dynamics, policy, state, horizon, key, t, carry) -> Rollout:
        """Run the closed loop without gradient, in blocks, so that no step attends to space that only later steps need."""
        detach = lambda x: lax.stop_gradient(x) if eqx.is_inexact_array(x) else x
        dynamics, policy, state, carry, start = jtu.tree_map(detach, (dynamics, policy, state, carry, self.start))
        step, steps = stepper(dynamics, policy, horizon, key=key, paths=Paths(), t=t)
        in_turn = isinstance(self.sampling, Sequential)
        start = None if in_turn else _first_actions(start, policy, state, horizon, t, steps[2], dynamics.action_size)
        block = min(self.block or (max(64, -(-horizon // 8)) if in_turn else horizon), horizon)
        resizes = dynamics.resizable and carry is None and block < horizon
        block = horizon if in_turn and not resizes else block
        carry = dynamics.init(state, block if resizes else horizon) if carry is None else carry
        memory, first_state, first_carry = memory_of(policy), state, carry
        pieces, of_blocks, settled = [], [], jnp.asarray(True)
        for begin in range(0, horizon, block):
            end = min(begin + block, horizon)
            carry = dynamics.resize_carry(carry, end) if resizes and begin > 0 else carry
            of_block = jtu.tree_map(lambda x, begin=begin, end=end: x[begin:end], steps)
            if isinstance(self.sampling, Sequential):
                ((memory, carry), state), piece = lax.scan(step, ((memory, carry), state), of_block)
            else:
                assert start is not None
                predict, memory, piece, sweeps, of_block_settled = self._settle(
                    dynamics, policy, memory, carry, state, t + begin, of_block, start[begin:end]
                )
                if end < horizon:  # The states of the last sweep are those of the actions before it.
                    carry, states = predict(piece[1])
                    state = states[-1]
                    piece = states, piece[1]
                of_blocks.append(sweeps)
                settled &= of_block_settled
            pieces.append(piece)
        states, actions = jtu.tree_map(lambda *x: jnp.concatenate(x), *pieces)
        if in_turn:
            return states, actions, None
        sweeps = jtu.tree_map(lambda *x: jnp.max(jnp.stack(x)), *of_blocks)
        if self.patience is None:
            return states, actions, sweeps

        def run_in_turn(loop):
            # What does not depend on the loop is computed before it, and always: XLA moves it there.
            start = jnp.where(loop[0], 0, first_state)
            found = Parallel(block=self.block)._sample(dynamics, policy, start, horizon, key, t, first_carry)
            return jnp.asarray(True), found[0], found[1], jnp.zeros_like(sweeps.residual)

        # A loop of no turns or one: unlike a `cond`, it is skipped under `vmap` too if all values settled.
        loop = settled, states, actions, sweeps.residual
        _, states, actions, residual = lax.while_loop(lambda loop: ~loop[0], run_in_turn, loop)
        return states, actions, Sweeps(sweeps.count, residual)

    def _settle(
        self, dynamics, policy, memory, carry, state, t, steps, start
    ) -> tuple[Callable, PyTree, tuple[Array, Array], Sweeps, Bool[Array, ""]]:
        """Return the parallel pass over a block of steps from t on, the memory after it, its states and actions, the sweeps, and
        whether the values settled."""
        assert isinstance(self.sampling, Picard)
        _, _, policy_keys, dynamics_keys = steps
        predict = lambda actions: dynamics.rollout_segment(carry, state, actions, t, keys=dynamics_keys)

        def sweep(actions):
            states = predict(actions)[1]
            after, actions = act_on(policy, memory, state, states, t, policy_keys)
            return actions, (after, states)

        exact = len(start) + 1  # The last of H sweeps may still change the last action, and with it the last state.
        actions, (after, states), sweeps, settled = self.sampling._solve(
            sweep, start, unit=1.0, exact=exact, patience=self.patience
        )
        return predict, after, (states, actions), sweeps, settled

    def _solve_adjoint(self, residual: Callable[[Array], Array], g: Float[Array, "H A"]) -> Float[Array, "H A"]:
        """Return x with residual(x) = x - A x = g. Transposed, this is the adjoint equation."""

        def solve(residual, g):
            return self.adjoint.solve(lambda x: g + (x - residual(x)), g, unit=jnp.max(jnp.abs(g)))[0]

        return lax.custom_linear_solve(residual, g, solve, transpose_solve=solve)


def _first_actions(start, policy, state, horizon: int, t: int, keys, action_size: int) -> Float[Array, "H A"]:
    """Return the actions from which Picard sampling starts."""
    if start is None:
        return act_on(policy, memory_of(policy), state, jnp.broadcast_to(state, (horizon, *state.shape)), t, keys)[1]
    check_shapes("Parallel", "give one row for each step", start=(start, (horizon, action_size)))
    return jnp.asarray(start, state.dtype)


@jax.custom_jvp
def _with_derivative_of(x: Array, value: Array) -> Array:
    """Return `value`, with the derivatives of `x`, which equals it to rounding."""
    del x
    return value


@_with_derivative_of.defjvp
def _(primals, tangents):
    return _with_derivative_of(*primals), tangents[0]
