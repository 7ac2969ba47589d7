"""The loop of a policy and a dynamics, and its gradient: the calls everything else is made of.

It owns the edges between steps; what moves the state is behind `AbstractDynamics`, how the gradient is computed behind a
method, and which edges carry it in `Paths`.
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Scalar, ScalarLike

from ._diagnose import raise_if_nonfinite
from ._dynamics import AbstractDynamics
from ._paths import Paths
from ._reward import check_reward, Reward, score
from ._trajectory import Trajectory
from ._unroll_checks import check_arguments, check_differentiable, check_discount, check_functions
from .methods import AbstractMethod, Parallel, Policy, Sequential


def unroll(
    dynamics: AbstractDynamics,
    policy: Policy,
    state: Float[Array, " S"],
    horizon: int,
    *,
    reward: Reward | None = None,
    key: PRNGKeyArray | None = None,
    paths: Paths = Paths(),
    method: AbstractMethod | None = None,
) -> Trajectory:
    """Run a policy in a dynamics for `horizon` steps: a_t = policy(s_t, t), s_{t+1} = dynamics(s_t, a_t).

    Differentiable in everything it is given, in forward and reverse mode (`jax.grad`, `jax.jacfwd`); `paths` says which
    edges carry the gradient. Unbatched: `jax.vmap` over states, policies or keys.

    ```python
    trajectory = unroll(model, policy, s_0, 100, reward=task.reward)
    episodes = jax.vmap(lambda s, k: unroll(task, policy, s, 100, reward=task.reward, key=k))(starts, keys)
    ```

    **Arguments**

    - `dynamics`: a simulator or a world model.
    - `policy`: called as `policy(state, t, *, key)`, returns an action (A,) in [-1, 1]; or an array of actions (H, A).
    - `state`: s_0, shape (S,), floating point.
    - `horizon`: the number of steps H, at least 1; static.
    - `reward`: called as `reward(state, action, t)`, or as `reward(state, action, t, next_state)` if it has a parameter of
      that name; returns a scalar. Define it once, outside of loops: each new function compiles again.
    - `key`: a `jax.random.key` for a stochastic policy or dynamics; without one, a Gaussian policy takes its mode.
    - `paths`: gains of the gradient on the edges; they change no value.
    - `method`: `Sequential(...)`, or `Parallel(...)` for an actions world model. By default whichever gives the values
      fastest: `Parallel` for given actions in an AWM with a parallel backbone, else `Sequential`.

    **Returns:** a `awmkit.Trajectory`.

    **Raises:** `ValueError` for wrong shapes, dtypes, horizons, a non-finite `state` (where it is known before the run),
    or a `Parallel` method for a dynamics that reads its state.
    """
    state, policy = check_arguments(dynamics, policy, state, horizon, key=key, paths=paths, method=method)
    if method is None:
        method = Parallel() if isinstance(policy, Array) and dynamics.parallel else Sequential()
    return _unroll(dynamics, policy, state, horizon, reward, key, paths, method)


def unroll_grad(
    dynamics: AbstractDynamics,
    policy: Policy,
    state: Float[Array, " S"],
    horizon: int,
    *,
    reward: Reward,
    key: PRNGKeyArray | None = None,
    paths: Paths = Paths(),
    discount: ScalarLike = 1.0,
    method: AbstractMethod | None = None,
    check: bool = False,
) -> tuple[Scalar, PyTree]:
    """The return J = sum_t discount^t r(s_t, a_t) of an unroll and its gradient with respect to the policy.

    With `paths=BPO` this is the policy gradient of Ma et al. (2024), in which the policy reads detached states:

        dJ/dtheta = sum_t [ dr_t/da_t dpi(s_t)/dtheta + dr_t/ds_t sum_{k<t} ds_t/da_k dpi(s_k)/dtheta ]

    and with `paths=Paths()`, the default, that of the closed loop. Unbatched, as `unroll`:

    ```python
    value, grads = unroll_grad(model, policy, s_0, 100, reward=task.reward, paths=BPO)
    policy = eqx.apply_updates(policy, jax.tree.map(lambda g: 0.01 * g, grads))  # One step up
    values, grads = jax.vmap(lambda s: unroll_grad(model, policy, s, 100, reward=task.reward, paths=BPO))(starts)
    ```

    **Arguments**

    - `dynamics`: a simulator or a world model.
    - `policy`: a module with floating-point parameters, called as `policy(state, t, *, key)`, returns an action (A,) in
      [-1, 1]; or an array of actions (H, A).
    - `state`: s_0, shape (S,), floating point.
    - `horizon`: the number of steps H, at least 1; static.
    - `reward`: called as `reward(state, action, t)`, or as `reward(state, action, t, next_state)` if it has a parameter of
      that name; returns a scalar. Define it once, outside of loops: each new function compiles again.
    - `key`: a `jax.random.key` for a stochastic policy or dynamics; without one, a Gaussian policy takes its mode.
    - `paths`: gains of the gradient on the edges: `Paths()`, `BPO`, `Paths(state_to_model=0.9)`.
    - `discount`: a scalar, 1 by default, as in the paper.
    - `method`: by default the fastest exact one: `Parallel()` for an AWM with a parallel backbone (a transformer), else
      `Sequential()`.
    - `check`: find out where a gradient ceases to be finite. A second, sequential pass follows the gradient along each edge
      and raises an error that names the first step and edge, seen from the return backwards, at which it is not.

    **Returns:** J, a scalar, and dJ/dpolicy: a policy-shaped tree with `None` for what is not a floating-point array, or,
    for an array of actions, dJ/da of shape (H, A).

    **Raises:** `ValueError` for wrong shapes, dtypes, keys, horizons or functions, a non-finite `state`, a `Parallel` method
    for a dynamics that reads its state, and a policy without parameters; a runtime error from `check`.
    """
    state, policy = check_arguments(dynamics, policy, state, horizon, key=key, paths=paths, method=method)
    check_differentiable(policy)
    check_reward(reward)
    check_discount(discount)
    if method is None:
        method = Parallel() if dynamics.parallel else Sequential()
    value, grads = _unroll_grad(dynamics, policy, state, horizon, reward, key, paths, discount, method)
    if check:
        value, grads = raise_if_nonfinite(
            (value, grads), dynamics, policy, state, horizon, reward=reward, key=key, paths=paths, discount=discount
        )
    return value, grads


# Compiled here so that a call outside of jit is compiled once for each shape, as a call inside is.
@eqx.filter_jit
def _unroll(dynamics, policy, state, horizon, reward, key, paths, method) -> Trajectory:
    check_functions(dynamics, policy, state, horizon, reward=reward, key=key)
    states, actions, sweeps = method.run(dynamics, policy, state, horizon, key=key, paths=paths)
    states = jnp.concatenate([state[None], states])
    rewards = None
    if reward is not None:
        rewards = score(reward, states, actions)
    return Trajectory(states, actions, rewards, sweeps)


@eqx.filter_jit
def _unroll_grad(dynamics, policy, state, horizon, reward, key, paths, discount, method) -> tuple[Scalar, PyTree]:
    @eqx.filter_value_and_grad
    def value_and_grad(policy):
        return _unroll(dynamics, policy, state, horizon, reward, key, paths, method).returns(discount)

    return value_and_grad(policy)
