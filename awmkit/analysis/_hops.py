"""How circuitous a gradient is: its exact split by how often a path crossed an edge between steps.

Derivatives are carried with one more axis, the number of crossings so far, and that axis is shifted by one where the edge is
crossed. Summed over it they are the ordinary derivatives.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray, ScalarLike

from .._checks import check_counts
from .._dynamics import AbstractDynamics
from .._paths import Paths
from .._reward import check_reward, Reward, with_next_state
from .._unroll import unroll
from .._unroll_checks import check_arguments, check_differentiable
from ..methods._method import passes, Policy
from ._tangents import check_plan, primal, step_map, steps_of


class HopSpectrum(eqx.Module):
    """A derivative split by the number of hops, crossings of an edge, that its paths make.

    - `parts`: `parts[n]` are the paths of n hops, n = 0 ... N, and `parts[N + 1]` those of more; their sum is the whole
      derivative. Shape (N+2, *pairs, D, E), where a (D, E) matrix is the derivative of one thing by another.
    """

    parts: Float[Array, "N *pairs D E"]

    @property
    def whole(self) -> Float[Array, "*pairs D E"]:
        """The derivative, the sum of all parts."""
        return jnp.sum(self.parts, axis=0)

    @property
    def norms(self) -> Float[Array, "N *pairs"]:
        """The Frobenius norm of each part."""
        return jnp.linalg.norm(self.parts, axis=(-2, -1))

    @property
    def weights(self) -> Float[Array, "N *pairs"]:
        """Each part's share of the sum of the norms: a distribution over hops, all zero where the derivative is."""
        total = jnp.sum(self.norms, axis=0)
        return self.norms / jnp.where(total > 0, total, 1)

    @property
    def mean_hops(self) -> Float[Array, "*pairs"]:
        """sum_n n weights[n]. Paths of more than N hops count as N + 1: a lower bound where there are any."""
        return jnp.tensordot(jnp.arange(self.parts.shape[0], dtype=self.parts.dtype), self.weights, 1)

    @property
    def effective_hops(self) -> Float[Array, "*pairs"]:
        """exp of the entropy of the weights: over how many different numbers of hops the derivative is spread, at least 1."""
        weights = self.weights
        return jnp.exp(-jnp.sum(weights * jnp.log(jnp.where(weights > 0, weights, 1)), axis=0))

    def beyond(self, n: int) -> Float[Array, "*pairs"]:
        """The share of the derivative's norm in paths of more than `n` hops, |far| / (|near| + |far|), from 0 to 1.

        near and far are the sums of the parts up to and beyond `n`. Unlike `weights` it does not depend on how finely the
        far paths were told apart.

        **Raises:** `ValueError` for an `n` of which this spectrum cannot tell.
        """
        largest = self.parts.shape[0] - 2
        if not 0 <= n <= largest:
            raise ValueError(f"This spectrum tells 0 to {largest} hops apart, not {n}; ask for hops={n} when you make it.")
        near, far = (jnp.linalg.norm(jnp.sum(p, axis=0), axis=(-2, -1)) for p in (self.parts[: n + 1], self.parts[n + 1 :]))
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
    """Split ds_t/da_k, or dJ/da_k, by how often a path was fed back: how often it crossed the edge `state_to_model`.

    A simulator and a Markov model have one path from a_k to s_t, of t-k-1 hops; a history world model 2^(t-k-1) paths of 0 to
    t-k-1 hops; an actions world model none but direct ones.

    ```python
    spectrum = hop_spectrum(model, state, actions, reward=task.reward, hops=len(actions))
    print(spectrum.mean_hops, spectrum.beyond(10))  # for each action
    ```

    **Arguments**

    - `dynamics`: a simulator or a model. `state`: s_0, shape (S,). `actions`: shape (H, A). `key`: for a stochastic dynamics.
    - `reward`: if given, split dJ/da_k, by one backward pass of N+2 cotangents; else ds_t/da_k for all t and k, by H A forward
      passes of N+2 tangents.
    - `hops`: N, the largest number told apart; paths of more are summed. No path makes more than H - 1 hops.
    - `discount`: of the return.
    - `batch_size`: how many of the forward passes are made at once; memory grows with it.

    **Returns:** a `HopSpectrum` whose parts have shape (N+2, H+1, H, S, A), for `[n, t, k]`; of dJ/da_k, (N+2, H, 1, A).

    **Raises:** `ValueError` as `unroll` does, and for negative `hops`.
    """
    state, actions = check_plan(dynamics, state, actions, key=key)
    check_counts("hop_spectrum", least=0, hops=hops)
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
    """Split the closed loop's policy gradient by how often a path crossed the edge `state_to_policy`.

    Actions a = policy(s(a)) make the adjoint lambda = g + A^T lambda, with A = da/ds ds/da strictly lower-triangular in time:
    its n-th sweep, (A^T)^n g, holds the paths of n crossings. Part 0 is the paper's policy gradient (`paths=BPO`); the sum
    is that of the closed loop, so that the spectrum says what BPO leaves out.

    **Arguments:** as for `awmkit.unroll_grad`, and `hops`: N, the largest number told apart.

    **Returns:** a `HopSpectrum` whose parts have shape (N+2, 1, P): dJ/dtheta, flattened as by
    `jax.flatten_util.ravel_pytree(eqx.filter(policy, eqx.is_inexact_array))`.

    **Raises:** `ValueError` as `unroll_grad` does, for an array of actions, which no state reaches, and for negative `hops`.
    """
    state, policy = check_arguments(dynamics, policy, state, horizon, key=key, paths=Paths(), method=None)
    check_differentiable(policy)
    if eqx.is_array(policy):
        raise ValueError("The policy is an array of actions, which reads no state; pass a callable policy(state, t, *, key).")
    check_counts("policy_hop_spectrum", least=0, hops=hops)
    check_reward(reward)
    return _split_policy(dynamics, policy, state, horizon, reward, key, hops, discount)


def _cross(parts: Float[Array, "N S"]) -> Float[Array, "N S"]:
    """Each part has made one hop more; the last one gathers."""
    none = jnp.zeros_like(parts[:1])
    return jnp.concatenate([none, parts[:-2], parts[-2:-1] + parts[-1:]])


@eqx.filter_jit
def _split_states(dynamics, state, actions, key, hops, batch_size) -> HopSpectrum:
    (horizon, action_size), start = actions.shape, (dynamics.init(state, actions.shape[0]), state)
    none = jtu.tree_map(lambda x: jnp.zeros((hops + 2, *x.shape), x.dtype), eqx.filter(start, eqx.is_inexact_array))

    def column(index):
        """ds_t by one entry of the actions, (H, N+2, S)."""
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
    return HopSpectrum(jnp.concatenate([jnp.zeros_like(parts[:, :1]), parts], axis=1))


@eqx.filter_jit
def _split_return(dynamics, state, actions, reward, key, hops, discount) -> HopSpectrum:
    weights = jnp.asarray(discount, state.dtype) ** jnp.arange(actions.shape[0], dtype=state.dtype)
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
    return HopSpectrum(parts.swapaxes(0, 1)[:, :, None])


@eqx.filter_jit
def _split_policy(dynamics, policy, state, horizon, reward, key, hops, discount) -> HopSpectrum:
    weights, rest = eqx.partition(policy, eqx.is_inexact_array)
    flat, unravel = ravel_pytree(weights)
    policy_of = lambda flat: eqx.combine(unravel(flat), rest)
    closed_loop = lambda flat: unroll(dynamics, policy_of(flat), state, horizon, key=key).actions
    given = lambda actions: unroll(dynamics, actions, state, horizon, reward=reward, key=key).returns(discount)
    loop = lambda flat: passes(dynamics, policy_of(flat), state, horizon, key=key, paths=Paths())
    act, predict = loop(flat)

    actions, pull_rest = jax.vjp(closed_loop, flat)
    states = predict(actions)
    pull_policy = jax.vjp(lambda flat: loop(flat)[0](states), flat)[1]
    pull_round = jax.vjp(lambda actions: act(predict(actions)), actions)[1]
    sweep = lambda adjoint, _: (pull_round(adjoint)[0], pull_policy(adjoint)[0])
    adjoint, parts = lax.scan(sweep, jax.grad(given)(actions), length=hops + 1)
    return HopSpectrum(jnp.concatenate([parts, pull_rest(adjoint)[0][None]])[:, None])
