"""Hop spectra: split a derivative by how often its paths are fed back.

A derivative through an unroll is a sum over paths from an action to a state or to the return. Each time that a predicted state
is fed back into the dynamics (or into the policy), the paths through it make one hop.

Derivatives get an additional axis, the number of hops so far, which shifts by one at each hop. Their sum over this axis is the
ordinary derivative.
"""

import operator

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray, ScalarLike

from .._checks import check_counts
from .._dynamics import AbstractDynamics
from .._norms import norm, scale_of
from .._paths import Paths
from .._reward import check_reward, Reward, with_next_state
from .._trajectory import discounts
from .._unroll import unchecked_unroll
from .._unroll_checks import check_arguments, check_differentiable, check_discount, check_functions, warn_of_constants
from ..methods._method import passes, Policy
from ._arguments import check_plan
from ._tangents import primal, step_map, steps_of


class HopSpectrum(eqx.Module):
    """The result of `hop_spectrum` and `policy_hop_spectrum`: a derivative split by the number of hops that its paths make.

    - `parts`: `parts[n]` is the sum over all paths with n hops, for n = 0 ... N, and `parts[N + 1]` over all paths with more.
      Shape (N+2, *pairs, D, E), where each (D, E) matrix is a derivative. Under `jax.vmap`, all shapes begin with the batch's axes.
    - `pair_axes`: the number of axes in *pairs.
    """

    parts: Float[Array, "... D E"]
    pair_axes: int = eqx.field(static=True)

    @property
    def _axis(self) -> int:
        """The axis of hops in `norms`; that in `parts` is two before it."""
        return -self.pair_axes - 1

    @property
    def whole(self) -> Float[Array, "... D E"]:
        """The whole derivative, the sum of all parts, shape (*pairs, D, E)."""
        return jnp.sum(self.parts, axis=self._axis - 2)

    @property
    def norms(self) -> Float[Array, "..."]:
        """The Frobenius norm of each part, shape (N+2, *pairs)."""
        return norm(self.parts, (-2, -1))

    @property
    def weights(self) -> Float[Array, "..."]:
        """The norms divided by their sum: a distribution over hops (zero if the derivative is zero), shape (N+2, *pairs)."""
        norms = self.norms / scale_of(self.norms, self._axis)
        total = jnp.sum(norms, axis=self._axis, keepdims=True)
        return norms / jnp.where(total > 0, total, 1)

    @property
    def mean_hops(self) -> Float[Array, "..."]:
        """Mean number of hops, sum_n n weights[n]; a lower bound, because paths with more than N hops count as N + 1."""
        weights = jnp.moveaxis(self.weights, self._axis, -1)
        return weights @ jnp.arange(weights.shape[-1], dtype=self.parts.dtype)

    @property
    def effective_hops(self) -> Float[Array, "..."]:
        """exp of the entropy of the weights: the number of different hop counts that matter, at least 1."""
        weights = self.weights
        return jnp.exp(-jnp.sum(weights * jnp.log(jnp.where(weights > 0, weights, 1)), axis=self._axis))

    def beyond(self, n: int) -> Float[Array, "..."]:
        """The share of the derivative in paths with more than `n` hops: |far| / (|near| + |far|), from 0 to 1.

        Here far is the sum of the parts beyond `n`, and near the sum of the others. Unlike `weights`, it does not depend on N.

        **Raises:** `ValueError` unless 0 <= n <= N.
        """
        parts = jnp.moveaxis(self.parts, self._axis - 2, 0)
        largest = len(parts) - 2
        if not 0 <= n <= largest:
            raise ValueError(f"n must be from 0 to {largest} for this spectrum, got {n}; make one with hops={n}.")
        parts = parts / scale_of(parts, (0, -2, -1))
        near, far = (norm(jnp.sum(p, axis=0), (-2, -1)) for p in (parts[: n + 1], parts[n + 1 :]))
        return far / jnp.where(near + far > 0, near + far, 1)


def hop_spectrum(
    dynamics: AbstractDynamics,
    state: Float[Array, " S"],
    actions: Float[Array, "H A"],
    *,
    reward: Reward | None = None,
    hops: int = 10,
    discount: ScalarLike = 1.0,
    key: PRNGKeyArray | None = None,
    batch_size: int = 32,
) -> HopSpectrum:
    """Split ds_t/da_k, or dJ/da_k, by the number of hops: how often a path is fed back through a predicted state.

    Derivatives that take many hops are products of many Jacobians, and explode or vanish (Ma et al., 2024). From a_k to s_t, a
    simulator or Markov model has a single path with t-k-1 hops; a history world model has 2^(t-k-1) paths with 0 to t-k-1 hops;
    an actions world model has only direct paths, without a hop.

    ```python
    spectrum = hop_spectrum(model, state, actions, reward=task.reward, hops=len(actions))
    print(spectrum.mean_hops, spectrum.beyond(10))  # for each action
    ```

    **Arguments**

    - `dynamics`: a simulator or a model.
    - `state`: s_0, shape (S,).
    - `actions`: a_0 ... a_{H-1}, shape (H, A).
    - `reward`: if given, split the derivative of the return, dJ/da_k, in one backward pass; otherwise split ds_t/da_k for all t
      and k, in H A forward passes.
    - `hops`: the largest number of hops N that gets its own part, 10 by default. H - 1 is the most that a path can make.
    - `discount`: the discount of the return, 1 by default.
    - `key`: for a stochastic dynamics.
    - `batch_size`: number of forward passes computed at once; memory grows with it.

    **Returns:** a `HopSpectrum` with parts of shape (N+2, H+1, H, S, A), where `parts[n, t, k]` belongs to ds_t/da_k; with a
    reward, of shape (N+2, H, 1, A).

    **Raises:** `ValueError` if the shapes do not fit the dynamics, or `hops` is negative.
    """
    state, actions = check_plan(dynamics, state, actions, key=key)
    check_counts("hop_spectrum", least=0, hops=hops)
    check_counts("hop_spectrum", batch_size=batch_size)
    check_discount(discount)
    if reward is None:
        return _split_states(dynamics, state, actions, key, hops, batch_size)
    check_reward(reward)
    return _split_return(dynamics, state, actions, reward, key, hops, discount)


def policy_hop_spectrum(
    dynamics: AbstractDynamics,
    policy: Policy,
    state: Float[Array, " S"],
    horizon: int,
    *,
    reward: Reward,
    hops: int = 10,
    discount: ScalarLike = 1.0,
    key: PRNGKeyArray | None = None,
) -> HopSpectrum:
    """Split the policy gradient by the number of hops through the policy: how often a path enters it through a state.

    Part 0 is the paper's policy gradient (`paths=BPO`), the sum of all parts is the full gradient, so the spectrum shows what
    BPO leaves out. The actions solve a = policy(s(a)), and the adjoint of this equation is

        lambda = g + A^T lambda,   g = dJ/da,   A = dpolicy/ds ds/da,

    where A is strictly lower triangular in time. Paths with n hops are in (A^T)^n g. What a policy with a memory remembers makes
    no hop, whatever the number of steps: dpolicy/ds is then the derivative of all actions by all states.

    **Arguments**

    - `dynamics`: a simulator or a model.
    - `policy`: a module with floating-point parameters, called as `policy(state, t, *, key)`.
    - `state`: s_0, shape (S,).
    - `horizon`: the number of steps H.
    - `reward`: `reward(state, action, t) -> scalar`, optionally with a fourth argument `next_state`.
    - `hops`: the largest number of hops N that gets its own part, 10 by default.
    - `discount`: the discount of the return, 1 by default.
    - `key`: for a stochastic policy or dynamics.

    **Returns:** a `HopSpectrum` with parts of shape (N+2, 1, P). P counts the policy's parameters, in the order of
    `jax.flatten_util.ravel_pytree(eqx.filter(policy, eqx.is_inexact_array))`.

    **Raises:** `ValueError` if an argument does not fit the dynamics, `policy` is an array of actions, or `hops` is negative.
    """
    state, policy = check_arguments(dynamics, policy, state, horizon, key=key, paths=Paths(), method=None)
    horizon = operator.index(horizon)
    check_differentiable(policy)
    if eqx.is_array(policy):
        raise ValueError("policy must be a callable policy(state, t, *, key), got an array of actions, which has no hops.")
    check_counts("policy_hop_spectrum", least=0, hops=hops)
    check_discount(discount)
    check_reward(reward)
    return _split_policy(dynamics, policy, state, horizon, reward, key, hops, discount)


def _cross(parts: Float[Array, "N S"]) -> Float[Array, "N S"]:
    """Move every part up by one hop; the last part collects all further hops."""
    none = jnp.zeros_like(parts[:1])
    return jnp.concatenate([none, parts[:-2], parts[-2:-1] + parts[-1:]])


@eqx.filter_jit
def _split_states(dynamics, state, actions, key, hops, batch_size) -> HopSpectrum:
    """Split ds_t/da_k: push one tangent per number of hops through the steps, for one entry of the actions at a time."""
    (horizon, action_size), start = actions.shape, (dynamics.init(state, actions.shape[0]), state)
    none = jtu.tree_map(lambda x: jnp.zeros((hops + 2, *x.shape), x.dtype), eqx.filter(start, eqx.is_inexact_array))

    def column(index):
        """Parts of the derivative of s_1 ... s_H by one entry of the actions, shape (H, N+2, S)."""
        source = jnp.zeros(actions.size, actions.dtype).at[index].set(1).reshape(actions.shape)

        def step(loop, x):
            (carry, state), (dcarry, dstate) = loop
            here = eqx.filter(carry, eqx.is_inexact_array), state, x[0][1]
            (varying, state), push, rest = jax.linearize(step_map(dynamics, carry, x[0]), *here, has_aux=True)
            fresh = jnp.zeros((hops + 2, action_size), actions.dtype).at[0].set(x[1])
            tangents = jax.vmap(push)(dcarry, _cross(dstate), fresh)
            return ((eqx.combine(varying, rest), state), tangents), tangents[1]

        return lax.scan(step, (start, none), (steps_of(actions, key), source))[1]

    columns = lax.map(column, jnp.arange(actions.size), batch_size=min(batch_size, actions.size))
    parts = columns.reshape(horizon, action_size, horizon, hops + 2, -1).transpose(3, 2, 0, 4, 1)
    return HopSpectrum(jnp.concatenate([jnp.zeros_like(parts[:, :1]), parts], axis=1), 2)


@eqx.filter_jit
def _split_return(dynamics, state, actions, reward, key, hops, discount) -> HopSpectrum:
    """Split dJ/da: pull one cotangent per number of hops back through the steps."""
    weights = discounts(discount, actions.shape[0], state.dtype)
    before = primal(dynamics, state, actions, key)
    after_last = jtu.tree_map(lambda x: jnp.zeros((hops + 2, *x.shape[1:]), x.dtype), eqx.filter(before, eqx.is_inexact_array))

    def step(cotangents, x):
        (carry, state), (t, action, key), weight = x
        here = eqx.filter(carry, eqx.is_inexact_array), state, action
        (_, after), pull, _ = jax.vjp(step_map(dynamics, carry, (t, action, key)), *here, has_aux=True)
        paid = lambda s, a, n: weight * with_next_state(reward)(s, a, t, n)
        by_state, by_action, by_next = jax.grad(paid, (0, 1, 2))(state, action, after)
        dcarry, dnext = cotangents
        dcarry, dstate, daction = jax.vmap(pull)((dcarry, dnext.at[0].add(by_next)))
        return (dcarry, _cross(dstate).at[0].add(by_state)), daction.at[0].add(by_action)

    parts = lax.scan(step, after_last, (before, steps_of(actions, key), weights), reverse=True)[1]
    warn_of_constants(dynamics, actions, state, reward=reward, key=key)
    return HopSpectrum(parts.swapaxes(0, 1)[:, :, None], 1)


@eqx.filter_jit
def _split_policy(dynamics, policy, state, horizon, reward, key, hops, discount) -> HopSpectrum:
    """Split dJ/dpolicy: each sweep pulls the adjoint of the actions back through the policy once more."""
    weights, rest = eqx.partition(policy, eqx.is_inexact_array)
    flat, unravel = ravel_pytree(weights)
    policy_of = lambda flat: eqx.combine(unravel(flat), rest)
    check_functions(dynamics, policy, state, horizon, reward=reward, key=key)
    closed_loop = lambda flat: unchecked_unroll(dynamics, policy_of(flat), state, horizon, key=key).actions
    given = lambda actions: unchecked_unroll(dynamics, actions, state, horizon, reward=reward, key=key).returns(discount)

    def respond(flat, actions):
        """The policy's actions on the states that follow from `actions`."""
        act, predict = passes(dynamics, policy_of(flat), state, horizon, key=key, paths=Paths())
        return act(predict(actions))

    actions, pull_rest = jax.vjp(closed_loop, flat)
    pull = jax.vjp(respond, flat, actions)[1]
    sweep = lambda adjoint, _: pull(adjoint)[::-1]
    adjoint, parts = lax.scan(sweep, jax.grad(given)(actions), length=hops + 1)
    warn_of_constants(dynamics, policy, state, reward=reward, key=key)
    return HopSpectrum(jnp.concatenate([parts, pull_rest(adjoint)[0][None]])[:, None], 0)
