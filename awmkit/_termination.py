"""Termination: rules that end an episode, at once or with a probability."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax import lax
from jaxtyping import Array, Bool, Float, PyTree, ScalarLike

from ._checks import check_call, describe, parameters_of
from ._dynamics import AbstractDynamics
from ._policies import AbstractWrapper, act
from ._reward import with_next_state
from ._trajectory import Trajectory
from ._types import PolicyFunction, Reward, Termination
from .methods import AbstractMethod, Newton, Policy
from .methods._method import Rollout


def check_termination(rule: Termination) -> None:
    """Raise if a termination rule cannot be called as `rule(state, action, t, next_state)`."""
    call = "terminates(state, action, t, next_state)"
    options = {"next_state": 3} if "next_state" in parameters_of(rule) else {}
    fix = "write it as lambda state, action, t: ..., with a fourth parameter named next_state if it reads the next state"
    check_call("termination rule", call, fix, rule, *range(3), **options)


def rule_of(dynamics: AbstractDynamics) -> Termination | None:
    """Return the rule by which a task ends, or `None`."""
    return getattr(dynamics, "terminates", None)


def is_hard(rule: Termination, state, action) -> bool:
    """Return whether a rule returns True or False; otherwise it returns a probability. Raise if it returns anything else.

    **Arguments:** `state`, `action`: arrays, or their shapes and dtypes.
    """
    value = eqx.filter_eval_shape(evaluate(rule), state, action, jnp.asarray(0), state)
    if value.shape != () or not (value.dtype == bool or jnp.issubdtype(value.dtype, jnp.floating)):
        raise ValueError(
            f"The termination rule returned {describe(value)}; it must be one bool, or one probability as a floating-point number, "
            "so reduce it with jnp.any, or cast it with .astype(bool)."
        )
    return value.dtype == bool


def evaluate(rule: Termination) -> Callable[..., Array]:
    """Return a rule as a function of four arguments that returns an array."""
    called = with_next_state(rule)
    return lambda state, action, t, next_state: jnp.asarray(called(state, action, t, next_state))


def run(
    method: AbstractMethod,
    dynamics: AbstractDynamics,
    policy: Policy,
    state,
    horizon: int,
    *,
    rule: Termination | None,
    **options,
) -> tuple[Rollout, Bool[Array, " H"] | None]:
    """Return what `method.run` returns, and for a hard rule whether the episode has ended at each step.

    After the end, neither the dynamics nor the policy reads the states of the episode, nor the floating-point arrays of its carry
    or memory. What they compute from the first ones instead is discarded, so their values and derivatives beyond the end reach
    nothing, even if they are not finite. A dynamics that predicts from the actions alone runs on.
    """
    hard = rule is not None and is_hard(rule, state, jax.ShapeDtypeStruct((dynamics.action_size,), state.dtype))
    if rule is None or not hard and not dynamics.reads_state:
        return method.run(dynamics, policy, state, horizon, **options), None
    if not dynamics.reads_state:
        states, actions, sweeps = method.run(dynamics, policy, state, horizon, **options)
        before, steps = jnp.concatenate([state[None], states[:-1]]), options["t"] + jnp.arange(horizon)
        return (states, actions, sweeps), jax.vmap(evaluate(rule))(before, actions, steps, states)
    if isinstance(method, Newton) and method.start is not None:
        method = eqx.tree_at(lambda m: m.start, method, jnp.pad(method.start, ((0, 0), (0, 1))))
    start = lax.stop_gradient(state)
    sizes = {"state_size": dynamics.state_size + 1, "action_size": dynamics.action_size}
    if options["carry"] is None:
        options["carry"] = dynamics.init(state, horizon)
    first = jtu.tree_map(lax.stop_gradient, eqx.filter(options["carry"], eqx.is_inexact_array))
    flagged = _Flagged(dynamics=dynamics, rule=rule, start=start, first=first, **sizes)
    policy = policy if isinstance(policy, Array) else _Acting(policy, start)
    states, actions, sweeps = method.run(flagged, policy, jnp.pad(state, (0, 1)), horizon, **options)
    return (states[:, :-1], actions, sweeps), _is_over(states[:, -1]) if hard else None


def _is_over(ended: Float[Array, "*steps"]) -> Bool[Array, "*steps"]:
    """Return whether an episode is over, from the probability that it has ended: what is left of it is lost in rounding."""
    return ended > 1 - 4 * jnp.finfo(ended.dtype).eps


class _Flagged(AbstractDynamics):
    """A dynamics whose state has one more entry, the probability that the episode has ended. The state stays what it is once
    that is 1."""

    dynamics: AbstractDynamics
    rule: Termination
    start: Float[Array, " S"]
    first: PyTree  # The floating-point arrays of the first carry.
    state_size: int = eqx.field(static=True)
    action_size: int = eqx.field(static=True)

    def init(self, state, horizon):
        return self.dynamics.init(state[:-1], horizon)

    def step(self, carry, state, action, t, *, key=None):
        ended = _is_over(state[-1])
        before = jnp.where(ended, self.start, state[:-1])
        begun = lambda first, now: now if first is None else jnp.where(ended, first, now)
        given = jtu.tree_map(begun, self.first, carry, is_leaf=lambda x: x is None)
        new, after = self.dynamics.step(given, before, action, t, key=key)
        # What the step returns as it was given is constant, which `Newton` sees only if it is the same array.
        carry = jtu.tree_map(lambda old, given, new: old if new is given else new, carry, given, new)
        ends = lax.stop_gradient(evaluate(self.rule)(before, action, t, after).astype(state.dtype))
        over = jnp.where(ended, state[-1], 1 - (1 - state[-1]) * (1 - ends))
        return carry, jnp.append(jnp.where(ended, state[:-1], after), over)


class _Acting(AbstractWrapper):
    """A policy on the states of a `_Flagged` dynamics. After the end its memory is that before the first step."""

    policy: PolicyFunction
    start: Float[Array, " S"]

    def step(self, memory, state, t, *, key=None):
        over = _is_over(state[-1])
        memory = jtu.tree_map(lambda first, now: jnp.where(over, first, now), self.init(), memory)
        return act(self.policy, memory, jnp.where(over, self.start, state[:-1]), t, key)


def scored(
    states: Float[Array, "T S"],
    actions: Float[Array, "H A"],
    t: ScalarLike,
    *,
    reward: Reward | None,
    rule: Termination | None,
    ended: Bool[Array, " H"] | None,
    seen: tuple[Float[Array, "H S"], Float[Array, "H A"], Float[Array, "H S"]] | None = None,
) -> Trajectory:
    """Return the trajectory of states and actions from step `t` on, with rewards and ends.

    **Arguments:** `ended`: from `run`. `seen`: states, actions and next states as the reward and the rule read them, by default
    those of the trajectory.
    """
    before, acted, after = (states[:-1], actions, states[1:]) if seen is None else seen
    inputs = before, acted, t + jnp.arange(actions.shape[0]), after
    score = lambda *inputs: None if reward is None else jax.vmap(with_next_state(reward))(*inputs)
    if rule is None:
        return Trajectory(states, actions, score(*inputs))
    # What does not happen is scored as the first step, so that neither its values nor their derivatives can be infinite.
    where = lambda happens: [jnp.where(happens.reshape(-1, *(1,) * (x.ndim - 1)), x, x[:1]) for x in inputs]
    if ended is None:

        def surviving(inputs):
            goes_on = 1 - jax.vmap(evaluate(rule))(*inputs).astype(states.dtype)
            return jnp.concatenate([jnp.ones_like(goes_on[:1]), jnp.cumprod(goes_on[:-1])])

        # Once over, always over: after that the rule may be undefined.
        happens = jnp.cumsum(_is_over(1 - lax.stop_gradient(surviving(inputs)))) == 0
        survival = jnp.where(happens, surviving(where(happens)), 0)
        return Trajectory(states, actions, score(*where(happens)), survival=survival)
    over = jnp.any(ended)
    length = jnp.where(over, jnp.argmax(ended) + 1, len(ended))
    rewards = score(*where(jnp.arange(len(ended)) < length))
    return Trajectory(states, actions, rewards, length=length, terminated=over).filled()
