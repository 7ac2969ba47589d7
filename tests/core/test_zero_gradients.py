"""A gradient that is zero by construction, or exactly zero where it is computed, is never silent."""

import warnings
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jaxtyping import Array
from systems import reward

from awmkit import MLPPolicy, Paths, unroll, unroll_grad
from awmkit._unroll_checks import warn_of_constant_reward
from awmkit.analysis import gradient_growth, hop_spectrum, policy_hop_spectrum
from awmkit.tasks import CancerTreatment, Discretised, HIVTreatment, LinearQuadratic, spiral

KEY = jax.random.key(0)
SYSTEM, POLICY, STATE = spiral(1.1, 0.3), MLPPolicy(2, 1, width=4, key=KEY), jnp.ones(2)
STATES, PLANS = jnp.ones((2, 2)), jnp.zeros((2, 4, 1))


def healthy(state, action, t):
    return jnp.where(jnp.abs(state[0]) < 2, 1.0, 0.0)


@jax.custom_jvp
def surrogate(x):
    return jnp.sign(x)


surrogate.defjvp(lambda x, dx: (surrogate(*x), dx[0]))

STEP_FUNCTIONS = {
    "comparison": healthy,
    "comparison, compiled": jax.jit(healthy),
    "comparison, checkpointed": jax.checkpoint(healthy),
    "all entries": lambda s, a, t: jnp.all(jnp.abs(s) < 1).astype(float),
    "cast to int": lambda s, a, t: (3 * s[0]).astype(int).astype(float),
    "rounding": lambda s, a, t: jnp.round(s[0]) + jnp.sign(a[0]),
    "detached": lambda s, a, t: lax.stop_gradient(jnp.sum(s**2)),
    "branches": lambda s, a, t: lax.cond(s[0] > 0, lambda: 1.0, lambda: 0.0),
    "loop": lambda s, a, t: lax.scan(lambda c, x: (c + jnp.where(x > 0, 1.0, 0.0), None), 0.0, s)[0],
    "next state": lambda s, a, t, next_state: jnp.where(next_state[0] > 0, 1.0, 0.0),
    "time only": lambda s, a, t: 0.1 * jnp.asarray(t, float),
}
SLOPED = {
    "quadratic": reward,
    "of the next state": lambda s, a, t, next_state: next_state[0],
    "of the action": lambda s, a, t: a[0],
    "at the last step": lambda s, a, t: jnp.where(t == 5, s[0], 0.0),
    "healthy, with a cost": lambda s, a, t: healthy(s, a, t) - 0.01 * a[0] ** 2,
    "clipped": lambda s, a, t: jnp.clip(s[0], -1, 1),
    "one branch": lambda s, a, t: lax.cond(s[0] > 0, lambda s: s[0], lambda s: 0.0, s),
    "straight through": lambda s, a, t: s[0] + lax.stop_gradient(jnp.round(s[0]) - s[0]),
    "a derivative of its own": lambda s, a, t: surrogate(s[0]),
    "compiled": jax.jit(lambda s, a, t: s[0]),
}


def test_rewards_that_are_constants_to_the_gradient_are_recognised():
    for fn in STEP_FUNCTIONS.values():
        with pytest.warns(UserWarning, match="reward is a constant to the gradient: it has no derivative in the state"):
            warn_of_constant_reward(fn, STATE, jnp.zeros(1))
    for fn in SLOPED.values():
        warn_of_constant_reward(fn, STATE, jnp.zeros(1))


class Switch(eqx.Module):
    """A policy that can only be fully on or fully off."""

    weight: Array

    def __call__(self, state, t, *, key=None):
        return jnp.sign(self.weight @ state)[None]


CONSTANTS = {
    "unroll_grad": lambda: unroll_grad(SYSTEM, POLICY, STATE, 4, reward=healthy),
    "hop_spectrum": lambda: hop_spectrum(SYSTEM, STATE, PLANS[0], reward=healthy),
    "policy_hop_spectrum": lambda: policy_hop_spectrum(SYSTEM, POLICY, STATE, 4, reward=healthy),
    "gradient_growth": lambda: gradient_growth(SYSTEM, STATES, PLANS, reward=healthy, horizons=[1, 2, 3, 4]),
    "a policy": lambda: unroll_grad(SYSTEM, Switch(STATE), STATE, 4, reward=reward),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_a_gradient_that_can_only_be_zero_warns_when_it_is_traced(name):
    what = f"{'action' if name == 'a policy' else 'reward'} is a constant to the gradient"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match=what):
            CONSTANTS[name]()


class Bounded(LinearQuadratic):
    """A linear system whose actions are meant to be in [-1, 1]."""

    bounded_actions: ClassVar[bool] = True


class Capped(eqx.Module):
    """A reward of the first entry of the state, up to a cap."""

    cap: Array

    def __call__(self, state, action, t):
        return jnp.minimum(state[0], self.cap)


class Feedback(eqx.Module):
    """a = size tanh(gain s)."""

    size: Array
    gain: Array

    def __call__(self, state, t, *, key=None):
        return lax.stop_gradient(self.size) * jnp.tanh(self.gain @ state)[None]


# Of a sensible size, gain, cap and gain of the edge, the one that is changed.
CAUSES = {
    "a saturated policy": ({"gain": 50.0}, "zero: .*passes none of it on to its parameters; it is saturated"),
    "a flat reward": ({"cap": -9.0}, "zero: the reward's derivative is zero .* edges state_to_reward and action_to_reward"),
    "a cut edge": ({"edge": 0.0}, "zero: the reward's derivative is not, .* on the edge action_to_model"),
    "a policy without bounds": ({"size": 1.5}, "returned an action of 1.[0-9]+, outside .* end the policy with jnp.tanh"),
}


@pytest.mark.parametrize("name", CAUSES)
def test_check_says_why_a_gradient_is_exactly_zero_and_names_actions_out_of_range(name):
    changed, why = CAUSES[name]
    x = {"size": 1.0, "gain": 1.0, "cap": 9.0, "edge": 1.0} | changed
    policy = Feedback(jnp.asarray(x["size"]), x["gain"] * jnp.ones(2))
    reward, paths = Capped(jnp.asarray(x["cap"])), Paths(action_to_model=jnp.asarray(x["edge"]))
    with pytest.warns(UserWarning, match=why) as caught:
        _, grads = unroll_grad(Bounded(), policy, STATE, 4, reward=reward, paths=paths, check=True)
    assert len(caught) == 1 and any(g.any() for g in jax.tree.leaves(grads)) == (name == "a policy without bounds")


@pytest.mark.slow
def test_check_names_a_policy_that_large_states_saturate():
    task, policy = Discretised(HIVTreatment(), horizon=50), MLPPolicy(3, 1, width=16, key=KEY)
    with pytest.warns(UserWarning, match="exactly zero.*states of large size, so normalise"):
        unroll_grad(task, policy, task.reset(KEY), 4, reward=task.reward, check=True)


def test_an_open_loop_of_actions_out_of_range_warns_where_they_are_controls():
    task = Discretised(CancerTreatment(), 4)
    run = lambda actions: unroll(task, actions, task.reset(KEY), 4).states
    with pytest.warns(UserWarning, match=r"largest action is 2, but Discretised maps actions in \[-1, 1\].*divide"):
        wide = run(jnp.full((4, 1), 2.0))
    assert jnp.allclose(jax.jit(run)(jnp.full((4, 1), 2.0)), wide)  # A traced array has no values to warn of.
    run(jnp.ones((4, 1)))
    unroll(SYSTEM, jnp.full((4, 1), 2.0), STATE, 4)  # A linear system accepts any action.


def test_check_runs_under_jaxs_check_for_leaked_tracers():
    run = lambda: unroll_grad(SYSTEM, jnp.zeros((2, 1)), STATE, 2, reward=Capped(jnp.asarray(9.0)), check=True)
    with jax.check_tracer_leaks():
        value, _ = run()
    assert value == 1 + unroll(SYSTEM, jnp.zeros((1, 1)), STATE, 1).states[1, 0]
