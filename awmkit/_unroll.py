"""`unroll` runs a policy in a dynamics; `unroll_grad` differentiates its return with respect to the policy."""

import dataclasses
import operator
from typing import SupportsIndex

import equinox as eqx
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, Key, PyTree, Scalar

from ._diagnose import diagnose
from ._dynamics import AbstractDynamics
from ._few_at_a_time import few_at_a_time
from ._paths import Paths
from ._reward import check_reward, Reward
from ._termination import check_termination, rule_of, run, scored
from ._trajectory import Trajectory
from ._types import Termination
from ._unroll_checks import (
    check_arguments,
    check_differentiable,
    check_discount,
    check_functions,
    check_start,
    warn_of_constants,
)
from .methods import AbstractMethod, default_method, Parallel, Policy


def unroll(
    dynamics: AbstractDynamics,
    policy: Policy,
    state: Float[Array, " S"],
    horizon: SupportsIndex,
    *,
    reward: Reward | None = None,
    termination: Termination | None = None,
    key: Key[Array, ""] | None = None,
    paths: Paths = Paths(),
    method: AbstractMethod | None = None,
    t: int | Array = 0,
    carry: PyTree = None,
) -> Trajectory:
    """Run a policy in a dynamics for `horizon` steps.

        a_t     = policy(s_t, t)
        s_{t+1} = dynamics(s_t, a_t)
        r_t     = reward(s_t, a_t, t)

    It can be differentiated with respect to every array it is given, in forward and reverse mode (`jax.grad`, `jax.jacfwd`);
    `paths` says which edges between steps carry gradient. It is unbatched: use `jax.vmap` over states, policies or keys.

    ```python
    trajectory = unroll(model, policy, s_0, 100, reward=task.reward)
    episodes = jax.vmap(lambda s, k: unroll(task, policy, s, 100, reward=task.reward, key=k))(starts, keys)
    ```

    To begin in the middle of an episode, for example to plan the remaining steps, give the index of the first step and the
    dynamics' carry:

    ```python
    carry, states = model.rollout_segment(model.init(s_0, 100), s_0, actions[:30], 0)
    rest = unroll(model, policy, states[-1], 70, reward=task.reward, t=30, carry=carry)
    ```

    **Where episodes end early.** A rule `terminates(state, action, t, next_state)`, the task's own or `termination`, says whether
    step t is the last one, whose reward still counts.

    - A rule that returns a bool is hard. The trajectory has `length` and `terminated`, its states stay at the last one after the
      end, and rewards there are 0. No gradient flows through what would happen after the end, even if it is not finite, unless
      `dynamics.reads_state` is `False`: an actions world model predicts all H steps, and must stay finite. The time of the end
      has no derivative.
    - A rule that returns a probability p_t is smooth; it may be learned. The trajectory has `survival`, the probability
      survival_t = prod_{i<t} (1 - p_i) that step t happens, with gradient. `Trajectory.returns` weighs each reward by it. The
      states go on for all H steps, or until the probability of having survived is lost in rounding, where they stay (an actions
      world model goes on).

    **Arguments**

    - `dynamics`: a simulator or a world model.
    - `policy`: called as `policy(state, t, *, key)`, returns an action of shape (A,) in [-1, 1]; or an array of actions, shape
      (H, A), one row per step.
    - `state`: s_0, shape (S,), floating point.
    - `horizon`: the number of steps H, a whole number of at least 1.
    - `reward`: called as `reward(state, action, t)`, or as `reward(state, action, t, next_state)` if it has a parameter named
      `next_state`; returns a scalar. Define it once, outside of loops: every new function is compiled again.
    - `termination`: a rule, or a model of one. By default the rule of `dynamics` if it is a task that has one.
    - `key`: a `jax.random.key` for a stochastic policy or dynamics. Without one, a Gaussian policy takes its mode.
    - `paths`: gains of the gradient on the edges. They do not change values.
    - `method`: how to compute it; `methods.default_method(dynamics)` by default.
    - `t`: index of the first step, which the policy, the dynamics and the reward see. It may be traced, except for `Parallel`.
    - `carry`: the dynamics' carry before the first step, from its `init`, `step` or `rollout_segment`. If `t` is
      traced, it must have space for these steps. By default `dynamics.init(state, horizon)`.

    **Returns:** a `Trajectory`, with `t` unless that is 0.

    **Raises:** `ValueError` if an argument has the wrong type, shape or dtype, if the model supports fewer steps, if `state` or
    the actions are not finite (unless they are traced), if the policy, the reward or a step returns something of the wrong
    shape or dtype, or if `method` is `Parallel` and the dynamics reads its state.
    """
    state, policy = check_arguments(dynamics, policy, state, horizon, key=key, paths=paths, method=method)
    horizon = operator.index(horizon)  # Any other number would be traced.
    t, carry = check_start(dynamics, method, state, horizon, t, carry)
    method = default_method(dynamics, t) if method is None else method
    rule = _rule(dynamics, termination)
    episode = _unroll(dynamics, policy, state, horizon, reward, rule, key, paths, method, _as_argument(t, method), carry)
    return episode if isinstance(t, int) and t == 0 else dataclasses.replace(episode, t=jnp.asarray(t))


def unroll_grad(
    dynamics: AbstractDynamics,
    policy: Policy,
    state: Float[Array, " S"],
    horizon: SupportsIndex,
    *,
    reward: Reward,
    termination: Termination | None = None,
    key: Key[Array, ""] | None = None,
    paths: Paths = Paths(),
    discount: int | float | Array = 1.0,
    method: AbstractMethod | None = None,
    t: int | Array = 0,
    carry: PyTree = None,
    check: bool = False,
) -> tuple[Scalar, PyTree]:
    """Return the return J = sum_i discount^i r_i of an unroll, and its gradient with respect to the policy.

    With `paths=BPO` this is the policy gradient of Ma et al. (2024), in which the policy reads detached states:

        dJ/dtheta = sum_t [ dr_t/da_t dpi(s_t)/dtheta + dr_t/ds_t sum_{k<t} ds_t/da_k dpi(s_k)/dtheta ]

    With `paths=Paths()`, the default, it is the gradient of the closed loop. It is unbatched, like `unroll`:

    ```python
    value, grads = unroll_grad(model, policy, s_0, 100, reward=task.reward, paths=BPO)
    policy = eqx.apply_updates(policy, jax.tree.map(lambda g: 0.01 * g, grads))  # One step up.
    values, grads = jax.vmap(lambda s: unroll_grad(model, policy, s, 100, reward=task.reward, paths=BPO))(starts)
    ```

    **Arguments**

    - `dynamics`: a simulator or a world model.
    - `policy`: a module with floating-point parameters, called as `policy(state, t, *, key)`, that returns an action of shape
      (A,) in [-1, 1]; or an array of actions, shape (H, A).
    - `state`: s_0, shape (S,), floating point.
    - `horizon`: the number of steps H, a whole number of at least 1.
    - `reward`: called as `reward(state, action, t)`, or as `reward(state, action, t, next_state)` if it has a parameter named
      `next_state`; returns a scalar. Define it once, outside of loops: every new function is compiled again.
    - `termination`: a rule, or a model of one, as for `unroll`: J weighs rewards by the probability of having survived, or sums
      them up to the end. By default the rule of `dynamics` if it is a task that has one.
    - `key`: a `jax.random.key` for a stochastic policy or dynamics. Without one, a Gaussian policy takes its mode.
    - `paths`: gains of the gradient on the edges: `Paths()`, `BPO`, or for example `Paths(state_to_model=0.9)`.
    - `discount`: factor per step, a scalar; 1 by default, as in the paper.
    - `method`: how to compute it; `methods.default_method(dynamics)` by default.
    - `t`, `carry`: index of the first step, and the dynamics' carry before it, for an unroll that begins in the middle of an
      episode; see `unroll`. The discount counts from this first step.
    - `check`: whether to examine the gradient. A second, sequential pass follows it backwards along each edge, and raises an
      error that names the edge and the step where it first stops being finite. It warns, with the reason, if the gradient is
      exactly zero, and if `dynamics.bounded_actions` and the policy returns actions outside [-1, 1].

    **Returns:** J, a scalar, and dJ/dpolicy: a tree with the structure of the policy, and `None` in place of everything that
    is not a floating-point array; for an array of actions, dJ/da of shape (H, A).

    **Raises:** `ValueError` as `unroll` does, and if the policy has no floating-point array; a runtime error from `check`. It
    warns if the reward is a constant to the gradient, as a 0/1 reward is, or the policy's action is.
    """
    state, policy = check_arguments(dynamics, policy, state, horizon, key=key, paths=paths, method=method)
    horizon = operator.index(horizon)  # Any other number would be traced.
    check_differentiable(policy)
    check_reward(reward)
    check_discount(discount)
    t, carry = check_start(dynamics, method, state, horizon, t, carry)
    method = default_method(dynamics, t) if method is None else method
    rule, first = _rule(dynamics, termination), _as_argument(t, method)
    value, grads = _unroll_grad(dynamics, policy, state, horizon, reward, rule, key, paths, discount, method, first, carry)
    if check:
        given = {"reward": reward, "rule": rule, "key": key, "paths": paths, "discount": discount, "t": t, "carry": carry}
        value, grads = diagnose((value, grads), dynamics, policy, state, horizon, **given)
    return value, grads


def unchecked_unroll(
    dynamics: AbstractDynamics,
    policy: Policy,
    state: Float[Array, " S"],
    horizon: int,
    *,
    reward: Reward | None = None,
    termination: Termination | None = None,
    key: Key[Array, ""] | None = None,
    paths: Paths = Paths(),
    method: AbstractMethod | None = None,
    t: int | Array = 0,
    carry: PyTree = None,
) -> Trajectory:
    """Do what `unroll` does without its checks and without compiling.

    For code inside awmkit that has checked its arguments at its own public entry (with `check_arguments` and
    `check_functions`) and runs inside its own `jit`, such as the analyses. Without `termination` it ignores the task's own rule.
    """
    method = default_method(dynamics, t) if method is None else method
    options = {"key": key, "paths": paths, "t": t, "carry": carry}
    (states, actions, sweeps), ended = run(method, dynamics, policy, state, horizon, rule=termination, **options)
    states = jnp.concatenate([state[None], states])
    trajectory = scored(states, actions, t, reward=reward, rule=termination, ended=ended)
    count, residual = (None, None) if sweeps is None else sweeps
    return dataclasses.replace(trajectory, sweeps=count, residual=residual)


def _rule(dynamics: AbstractDynamics, termination: Termination | None) -> Termination | None:
    """Return the given rule, or the task's own; raise if it cannot be called."""
    rule = rule_of(dynamics) if termination is None else termination
    if rule is not None:
        check_termination(rule)
    return rule


def _as_argument(t: int | Array, method: AbstractMethod) -> int | Array:
    """Return the index of the first step as the compiled unroll takes it: only `Parallel` compiles again for every `t`."""
    return t if isinstance(t, Tracer) or isinstance(method, Parallel) or t == 0 else jnp.asarray(t, int)


# Compiled here, so that a call outside of jit is compiled once for each shape, as a call inside is.
@eqx.filter_jit
def _unroll(dynamics, policy, state, horizon, reward, rule, key, paths, method, t, carry) -> Trajectory:
    check_functions(dynamics, policy, state, horizon, reward=reward, rule=rule, key=key, carry=carry)
    given = {"reward": reward, "termination": rule, "key": key, "paths": paths, "method": method, "t": t, "carry": carry}
    return unchecked_unroll(dynamics, policy, state, horizon, **given)


@eqx.filter_jit
def _unroll_grad(
    dynamics, policy, state, horizon, reward, rule, key, paths, discount, method, t, carry
) -> tuple[Scalar, PyTree]:
    def differentiate(state, key, carry):
        episode = lambda policy: _unroll(dynamics, policy, state, horizon, reward, rule, key, paths, method, t, carry)
        return eqx.filter_value_and_grad(lambda policy: episode(policy).returns(discount))(policy)

    # A group of episodes is differentiated as a whole, so nothing is stored for the batch or computed twice.
    result = few_at_a_time(differentiate, state, key, carry, size=method.episodes_at_a_time(dynamics, horizon))
    warn_of_constants(dynamics, policy, state, reward=reward, rule=rule, key=key)
    return result
