"""What a user may get wrong: each a sentence that says what was given, what is needed and how to fix it."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import optax
import pytest
from misuse import says
from systems import reward

from awmkit import (
    AbstractDynamics,
    AWM,
    fit,
    GaussianPolicy,
    LSTM,
    MLPPolicy,
    Parallel,
    Paths,
    Picard,
    RewardModel,
    Sequential,
    Trajectory,
    Transformer,
    unroll,
    unroll_grad,
)
from awmkit.analysis import (
    action_jacobian,
    fidelity,
    fit_growth,
    gradient_growth,
    hop_spectrum,
    landscape,
    lyapunov,
    policy_hop_spectrum,
    report,
    true_gradient,
)
from awmkit.tasks import (
    Bacteria,
    CreditAssignment,
    Discretised,
    Glucose,
    LinearQuadratic,
    OneBounce,
    PassiveDoublePendulum,
    spiral,
)

KEY = jax.random.key(0)
SYSTEM = spiral(1.0, 0.3)
AWM_20 = AWM(2, 1, Transformer(12, 1, 3, horizon=20, key=KEY), key=KEY)
POLICY = MLPPolicy(2, 1, width=4, key=KEY)
STATE = jnp.ones(2)
STATES, ACTIONS = jnp.ones((4, 6, 2)), jnp.ones((4, 5, 1))
PLAN = ACTIONS[0]


@pytest.fixture(autouse=True)
def without_executed_annotations():
    """As a user has it: the annotations that other tests execute would speak first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


class Careless(AbstractDynamics):
    """A dynamics whose step returns what `wrong` says."""

    wrong: str
    state_size: int = 2
    action_size: int = 1

    def init(self, state, horizon):
        return jnp.zeros(3)

    def step(self, carry, state, action, t, *, key=None):
        if self.wrong == "state":
            return carry, state[:1]
        if self.wrong == "dtype":
            return carry, state.astype(jnp.float32)
        return carry[:2], state


def _unroll(dynamics=SYSTEM, policy=POLICY, state=STATE, horizon=5, **options):
    return unroll(dynamics, policy, state, horizon, **options)


def spiral_of_three():
    return LinearQuadratic(jnp.eye(3), jnp.ones((3, 1)))


def _play(task):
    return unroll(task, jnp.zeros((5, 1)), task.reset(KEY), 5)


def _landscape(**options):
    return landscape(SYSTEM, PLAN, STATE, 5, **{"reward": reward, "key": KEY, **options})


def _truth(policy=PLAN, states=STATES[:, 0], **options):
    return true_gradient(SYSTEM, policy, states, **{"reward": reward, "key": KEY, "pairs": 4, "horizons": (5,), **options})


MISUSES = {
    "state of the wrong size": (lambda: _unroll(state=jnp.ones(3)), r"state has shape \(3,\).*needs \(2,\)"),
    "a batch of states": (lambda: _unroll(state=jnp.ones((7, 2))), "jax.vmap"),
    "integer state": (lambda: _unroll(state=jnp.ones(2, int)), r"dtype int64.*astype\(float\)"),
    "state with NaN": (lambda: _unroll(state=jnp.array([1.0, jnp.nan])), r"not finite at index \[1\]"),
    "infinite actions": (lambda: _unroll(policy=jnp.full((5, 1), jnp.inf)), r"not finite at index \[0, 0\]"),
    "actions of the wrong shape": (lambda: _unroll(policy=jnp.ones((4, 1))), r"shape \(4, 1\).*\(5, 1\)"),
    "integer actions": (lambda: _unroll(policy=jnp.ones((5, 1), int)), "floating point"),
    "a policy that is no function": (lambda: _unroll(policy="greedy"), "The policy is a str"),
    "a policy of the wrong size": (lambda: _unroll(policy=MLPPolicy(2, 3, key=KEY)), r"float64\[3\].*action_size=1"),
    "a policy of integers": (lambda: _unroll(policy=lambda s, t, *, key: jnp.ones(1, int)), "floating-point action"),
    "horizon 0": (lambda: _unroll(horizon=0), "horizon is 0.*at least 1"),
    "negative horizon": (lambda: _unroll(horizon=-3), "at least 1"),
    "fractional horizon": (lambda: _unroll(horizon=2.5), "Python int"),
    "traced horizon": (lambda: jax.jit(lambda h: _unroll(horizon=h))(5), "Python int"),
    "horizon beyond the model's": (lambda: _unroll(AWM_20, horizon=21), "horizon is 21.*20 steps.*horizon=None"),
    "open loop beyond the model's horizon": (lambda: AWM_20.open_loop(STATE, jnp.ones((21, 1))), "horizon is 21"),
    "a reward of arrays": (lambda: _unroll(reward=lambda s, a, t: s), r"reward returned float64\[2\].*jnp.sum"),
    "a reward of integers": (lambda: _unroll(reward=lambda s, a, t: t), "floating-point number"),
    "no dynamics": (lambda: _unroll(dynamics=lambda s, a: s), "pass an instance of awmkit.AbstractDynamics"),
    "a step of another size": (lambda: _unroll(Careless("state")), r"Careless.step returned the state as float64\[1\]"),
    "a step of another dtype": (lambda: _unroll(Careless("dtype")), "one dtype"),
    "a step with another carry": (lambda: _unroll(Careless("carry")), "make init return what step does"),
    "a legacy key": (lambda: _unroll(key=jax.random.PRNGKey(0)), "jax.random.key"),
    "several keys": (lambda: _unroll(key=jax.random.split(KEY)), "one key"),
    "noise without a key": (
        lambda: _unroll(LinearQuadratic(jnp.eye(2), jnp.ones((2, 1)), noise=0.1)),
        r"noise=0.1; give the unroll a key=jax.random.key",
    ),
    "Parallel for what reads its state": (lambda: _unroll(method=Parallel()), r"LinearQuadratic.*use method=Sequential\(\)"),
    "a method by name": (lambda: _unroll(method="parallel"), "The method is 'parallel'; pass Sequential"),
    "paths by number": (lambda: _unroll(paths=0.0), "pass awmkit.Paths"),
    "a gradient of nothing": (
        lambda: unroll_grad(SYSTEM, lambda s, t, *, key: s[:1], STATE, 5, reward=reward),
        "no floating-point array to differentiate",
    ),
    "an unknown edge": (lambda: Paths(state_to_reward=0.0), "no edge 'state_to_reward'; use state_to_policy"),
    "an infinite gain": (lambda: Paths(float("inf")), "gain of state_to_policy is inf"),
    "a gain of many numbers": (lambda: Paths(action_to_model=jnp.ones(2)), "one real number"),
    "an unknown checkpoint": (lambda: Sequential("all"), "'none', 'step' or 'nested'"),
    "a negative tolerance": (lambda: Picard(tolerance=-1.0), "tolerance=-1.0"),
    "no sweeps": (lambda: Picard(max_sweeps=0), "at least 1"),
    "blocks of no step": (lambda: Parallel(block=0), "block=0; give at least 1"),
    "a start for a scan": (lambda: Parallel(start=jnp.ones((5, 1))), "add sampling=Picard"),
    "a start of another length": (
        lambda: unroll(AWM_20, POLICY, STATE, 5, method=Parallel(sampling=Picard(), start=jnp.ones((4, 1)))),
        r"shape \(4, 1\).*\(5, 1\)",
    ),
    "heads that do not divide": (lambda: Transformer(10, heads=3, horizon=5, key=KEY), "multiple of heads"),
    "odd heads for rotary": (lambda: Transformer(9, heads=3, key=KEY), "2 \\* heads"),
    "no spread": (lambda: GaussianPolicy(2, 1, std=0.0, key=KEY), "std=0.0"),
    "fitting a simulator": (lambda: fit(SYSTEM, Trajectory(STATES, ACTIONS), key=KEY), "pass a Markov"),
    "fitting a reward to no rewards": (
        lambda: fit(RewardModel(2, 1, key=KEY), Trajectory(STATES, ACTIONS), key=KEY),
        "collect them with reward=",
    ),
    "episodes of other sizes": (
        lambda: fit(AWM_20, Trajectory(jnp.ones((4, 6, 3)), ACTIONS), key=KEY),
        r"needs states \(N, H\+1, 2\)",
    ),
    "one step too few": (lambda: fit(AWM_20, Trajectory(STATES, ACTIONS[:, :4]), key=KEY), r"needs states \(N, H\+1, 2\)"),
    "one episode": (lambda: fit(AWM_20, Trajectory(STATES[:1], ACTIONS[:1]), key=KEY), "at least 2 episodes"),
    "episodes with NaN": (lambda: fit(AWM_20, Trajectory(STATES * jnp.nan, ACTIONS), key=KEY), "states are not all finite"),
    "no updates": (lambda: fit(AWM_20, Trajectory(STATES, ACTIONS), key=KEY, updates=0), "updates=0"),
    "everything held out": (lambda: fit(AWM_20, Trajectory(STATES, ACTIONS), key=KEY, holdout=1.0), "holdout=1.0"),
    "the return without a reward": (lambda: _unroll().value(), "reward=task.reward"),
    "a task of one step": (lambda: PassiveDoublePendulum(1), "at least 2 steps"),
    "a throw of one step": (lambda: OneBounce(1), "at least 2 steps"),
    "a ball behind the wall": (lambda: OneBounce(start=-2.0), "behind the wall at -1.0"),
    "credit over one step": (lambda: CreditAssignment(1), "at least 2 steps"),
    "negative noise": (lambda: CreditAssignment(scale=-1.0), "scale=-1.0.*at least 0"),
    "a random task without a key": (lambda: _play(CreditAssignment(5)), "give the unroll a key"),
    "distractors without a key": (lambda: _play(Discretised(Bacteria(), 5, distractors=1)), "distractors=1.*key"),
    "no steps of a problem": (lambda: Discretised(Bacteria(), 0), "horizon=0"),
    "noise of another size": (lambda: Discretised(Glucose(), noise=(0.1,)), "2 entries of x0.*1 of noise"),
    "growth from three horizons": (lambda: fit_growth([1, 2, 3], [1.0, 2.0, 3.0]), "at least 4"),
    "growth of nothing": (lambda: fit_growth([1, 2, 3, 4], [1.0, 0.0, 1.0, 1.0]), "positive and finite"),
    "too many exponents": (lambda: lyapunov(SYSTEM, STATE, jnp.zeros((5, 1)), count=3), "give 1 to 2"),
    "exponents of no step": (lambda: lyapunov(SYSTEM, STATE, PLAN, discard=5), "discard=5 of 5 steps"),
    "one action for a Jacobian": (lambda: action_jacobian(SYSTEM, STATE, jnp.ones(5)), r"shape \(5,\).*\(H, A\)"),
    "a mode of its own": (lambda: action_jacobian(SYSTEM, STATE, PLAN, mode="both"), "'forward', 'reverse' or None"),
    "negative hops": (lambda: hop_spectrum(SYSTEM, STATE, PLAN, hops=-1), "hops=-1.*at least 0"),
    "a share beyond what was told apart": (
        lambda: hop_spectrum(SYSTEM, STATE, PLAN, hops=2).beyond(3),
        "0 to 2 hops apart, not 3; ask for hops=3",
    ),
    "policy hops of actions": (
        lambda: policy_hop_spectrum(SYSTEM, PLAN, STATE, 5, reward=reward),
        "array of actions, which reads no state",
    ),
    "actions of fewer starts": (
        lambda: gradient_growth(SYSTEM, STATES[:, 0], ACTIONS[:2]),
        r"\(4, 2\).*\(2, 5, 1\).*\(N, H, A\)",
    ),
    "a horizon beyond the actions": (
        lambda: gradient_growth(SYSTEM, STATES[:, 0], ACTIONS, horizons=[1, 2, 3, 9]),
        "from 1 to 5",
    ),
    "three horizons of growth": (
        lambda: gradient_growth(SYSTEM, STATES[:, 0], ACTIONS, horizons=[1, 2, 3]),
        "at least 4 different ones",
    ),
    "a true gradient of one start": (lambda: _truth(states=STATES[:1, 0]), "at least 2 starts"),
    "a policy without horizons": (lambda: _truth(POLICY, horizons=None), "needs horizons"),
    "no smoothing": (lambda: _truth(sigma=0.0), "positive width"),
    "one pair": (lambda: _truth(pairs=1), "at least 2 pairs"),
    "a true gradient beyond its actions": (lambda: _truth(horizons=(7,)), r"shape \(5, 1\).*\(7, 1\)"),
    "fidelity of a model of another size": (lambda: fidelity(spiral_of_three(), _truth()), r"state has shape \(2,\).*\(3,\)"),
    "three directions": (lambda: _landscape(directions=3), "1 or 2 directions"),
    "two points": (lambda: _landscape(points=2), "at least 3 points"),
    "no span": (lambda: _landscape(span=0.0), "positive span"),
    "a direction of the wrong shape": (lambda: _landscape(directions=[jnp.ones((4, 1))]), r"\(4, 1\).*\(5, 1\).*policy-shaped"),
    "growth of no dynamics": (lambda: gradient_growth([], STATES[:, 0], ACTIONS), "no dynamics"),
    "a report of nothing": (lambda: report({}, STATES[:, 0], ACTIONS, reward=reward, key=KEY), "no dynamics"),
}


@pytest.mark.parametrize("name", MISUSES)
def test_misuse_is_one_clear_sentence(name):
    says(*MISUSES[name])


def test_a_loss_that_diverges_says_what_to_do():
    episodes = Trajectory(jax.random.normal(KEY, (8, 6, 2)), ACTIONS[:1].repeat(8, 0))
    with jax.numpy_dtype_promotion("standard"), pytest.raises(RuntimeError, match="lower the learning rate"):
        fit(AWM(2, 1, LSTM(4, key=KEY), key=KEY), episodes, key=KEY, updates=50, optimiser=optax.sgd(1e300), progress=False)


def fragile(x, breaks):
    """1 or, where it breaks, 0: finite, but there without a derivative in `x`."""
    return jnp.sqrt(jnp.where(breaks, 0.0, 1.0) + x - jax.lax.stop_gradient(x))


class FragilePolicy(eqx.Module):
    """Breaks at step 2."""

    network: MLPPolicy

    def __call__(self, state, t, *, key=None):
        return self.network(state, t) * fragile(state[:1], t == 2)


class Fragile(AbstractDynamics):
    """Values are finite everywhere; the derivative of step 3 is not, with respect to the state or the action."""

    edge: str
    state_size: int = 1
    action_size: int = 1

    def init(self, state, horizon):
        return None

    def step(self, carry, state, action, t, *, key=None):
        x = state if self.edge == "state_to_model" else action
        return carry, 0.5 * state + action + fragile(x, t == 3)


@pytest.mark.parametrize("edge", ["state_to_model", "action_to_model"])
def test_check_names_the_step_and_the_edge_where_a_gradient_breaks(edge):
    policy = MLPPolicy(1, 1, width=4, key=KEY)
    run = lambda **options: unroll_grad(Fragile(edge), policy, jnp.ones(1), 6, reward=reward, **options)
    value, grads = run()
    assert jnp.isfinite(value) and not all(jnp.isfinite(g).all() for g in jax.tree.leaves(grads))
    with pytest.raises(eqx.EquinoxRuntimeError, match=f"t=3 on the edge {edge}"):
        run(check=True)
    with pytest.raises(eqx.EquinoxRuntimeError, match=f"t=3 on the edge {edge}"):
        jax.block_until_ready(eqx.filter_jit(lambda: run(check=True))())


def test_check_names_a_broken_policy_reward_or_state_and_passes_a_sound_gradient():
    run = lambda p, r, **options: unroll_grad(SYSTEM, p, STATE, 6, reward=r, check=True, **options)
    with pytest.raises(eqx.EquinoxRuntimeError, match="t=2 on the edge state_to_policy"):
        run(FragilePolicy(POLICY), reward)
    with pytest.raises(eqx.EquinoxRuntimeError, match="t=4, the reward"):
        run(POLICY, lambda s, a, t: jnp.where(t == 4, jnp.nan, 1.0) * s[0])
    with pytest.raises(eqx.EquinoxRuntimeError, match="t=5 on the edge action_to_reward"):
        run(POLICY, lambda s, a, t: s[0] + fragile(a[0], t == 5))
    value, grads = run(POLICY, reward)
    plain, plain_grads = unroll_grad(SYSTEM, POLICY, STATE, 6, reward=reward)
    assert value == plain and all((a == b).all() for a, b in zip(*map(jax.tree.leaves, (grads, plain_grads)), strict=True))
