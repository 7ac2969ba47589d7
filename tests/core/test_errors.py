"""Error messages for wrong calls: one sentence that says what is needed, what was given and how to fix it."""

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
    AbstractPolicy,
    AbstractTask,
    AbstractTrainable,
    Anchored,
    AWM,
    CuDNNAttention,
    Ensemble,
    fit,
    FullHorizon,
    GaussianHead,
    GaussianPolicy,
    GRU,
    GRUPolicy,
    HWM,
    improve,
    JSONLines,
    LinearStateSpace,
    LSTM,
    Markov,
    MLPPolicy,
    Newton,
    NoProgress,
    Normaliser,
    Parallel,
    Paths,
    PessimisticReward,
    Picard,
    Planner,
    prediction_error,
    Replay,
    RewardModel,
    save,
    scale_actions,
    Sequential,
    TqdmProgress,
    Trajectory,
    Transformer,
    unroll,
    unroll_grad,
    unscale_actions,
)
from awmkit.tasks import (
    Bacteria,
    CreditAssignment,
    Discretised,
    DoublePendulum,
    DrivenDoublePendulum,
    Glucose,
    Henon,
    LinearQuadratic,
    OneBounce,
    PartlyObserved,
    PassiveDoublePendulum,
    spiral,
)

KEY = jax.random.key(0)
SYSTEM = spiral(1.0, 0.3)
AWM_20 = AWM(2, 1, Transformer(12, 1, 3, horizon=20, key=KEY), key=KEY)
POLICY = MLPPolicy(2, 1, width=4, key=KEY)
RECURRENT = GRUPolicy(2, 1, width=4, key=KEY)
STATE = jnp.ones(2)
STATES, ACTIONS = jnp.ones((4, 6, 2)), jnp.ones((4, 5, 1))
PLAN = ACTIONS[0]
EPISODES = Trajectory(STATES, ACTIONS)


@pytest.fixture(autouse=True)
def without_executed_annotations():
    """Disable the runtime type checks of the tests, which would raise before awmkit's own checks."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


class Careless(AbstractDynamics):
    """A dynamics whose step returns a wrong state, dtype or carry, as chosen by `wrong`."""

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


class Forgetful(AbstractPolicy):
    """A policy whose step returns a wrong memory, or one thing only, as chosen by `wrong`."""

    wrong: str = "memory"
    input_norm: Normaliser = Normaliser(2)

    def init(self):
        return jnp.zeros(3)

    def step(self, memory, state, t, *, key=None):
        return (memory[:2], state[:1]) if self.wrong == "memory" else state[:1]


class OnlyInit(AbstractPolicy):
    """A policy that defines no step."""

    input_norm: Normaliser = Normaliser(2)

    def init(self):
        return jnp.zeros(3)


class Numbers(AbstractDynamics):
    """A simulator whose parameters are Python numbers."""

    drag: float = 0.3
    mass: float = 1.0
    state_size: int = 2
    action_size: int = 1

    def step(self, carry, state, action, t, *, key=None):
        return carry, state - self.drag / self.mass * state


class Partial(AbstractDynamics):
    """A simulator whose step returns one entry of the state, which would broadcast."""

    weight: jax.Array = eqx.field(default=1.0, converter=jnp.asarray)
    state_size: int = 2
    action_size: int = 1

    def step(self, carry, state, action, t, *, key=None):
        return carry, self.weight * state[:1]


class Mismatched(AbstractTrainable):
    """A model whose loss is not one number, or whose target has another shape than its prediction, as chosen by `wrong`."""

    wrong: str
    state_size: int = 2
    action_size: int = 1

    def loss(self, episode):
        error = (self.prediction(episode) - self.target(episode)) ** 2
        return jnp.mean(error, axis=1) if self.wrong == "loss" else jnp.mean(error)

    def target(self, episodes):
        return episodes.states[..., 1:, 0] if self.wrong == "target" else episodes.states[..., 1:, :1]

    def prediction(self, episode):
        return episode.actions


class Noisy(AbstractTask):
    """A task that draws noise from its key, with a reward of the next state."""

    horizon: int = 5
    state_size: int = 2
    action_size: int = 1

    def step(self, carry, state, action, t, *, key=None):
        return carry, state + jax.random.normal(key, (2,))

    def reward(self, state, action, t, next_state=None):
        return next_state[0] - state[0]

    def reset(self, key):
        return jnp.zeros(2)


def _stack(make):
    return eqx.filter_vmap(make)(jax.random.split(KEY, 3))


_MARKOVS = _stack(lambda key: Markov(2, 1, width=4, depth=0, key=key))


def _unroll(dynamics=SYSTEM, policy=POLICY, state=STATE, horizon=5, **options):
    return unroll(dynamics, policy, state, horizon, **options)


def _play(task):
    return unroll(task, jnp.zeros((5, 1)), task.reset(KEY), 5)


def _grad(**options):
    return unroll_grad(SYSTEM, POLICY, STATE, 5, **{"reward": reward, **options})


def _fit(**options):
    return fit(AWM_20, EPISODES, **{"key": KEY, "progress": NoProgress(), **options})


def _fit_standard(**options):
    with jax.numpy_dtype_promotion("standard"):  # optax needs implicit promotion.
        return _fit(**options)


def _plan(model, steps):
    return Planner(model, SYSTEM.reward, steps).step(jnp.zeros((steps, 1)), STATE, 0)


def _fit_reward(rewards):
    return fit(RewardModel(2, 1, key=KEY), Trajectory(STATES, ACTIONS, rewards), key=KEY)


def _episode(**fields):
    return {"states": STATES[0], "actions": PLAN, **fields}


def _second(episode):
    """The index in an error is that of the wrong episode."""
    return Trajectory.from_episodes([_episode(), episode])


def _replay():
    return Replay.empty(10, Trajectory(STATES[0], ACTIONS[0]))


MISUSES = {
    "a state of the wrong size": (lambda: _unroll(state=jnp.ones(3)), r"state has shape \(3,\).*needs \(2,\)"),
    "a batch of states": (lambda: _unroll(state=jnp.ones((7, 2))), "jax.vmap"),
    "an integer state": (lambda: _unroll(state=jnp.ones(2, int)), r"dtype int64.*astype\(float\)"),
    "a state with NaN": (lambda: _unroll(state=jnp.array([1.0, jnp.nan])), r"not finite at index \[1\]"),
    "infinite actions": (lambda: _unroll(policy=jnp.full((5, 1), jnp.inf)), r"not finite at index \[0, 0\]"),
    "actions of the wrong shape": (lambda: _unroll(policy=jnp.ones((4, 1))), r"shape \(4, 1\).*\(5, 1\)"),
    "integer actions": (lambda: _unroll(policy=jnp.ones((5, 1), int)), "floating point"),
    "a str as the policy": (lambda: _unroll(policy="greedy"), "The policy is a str"),
    "a policy of the wrong size": (lambda: _unroll(policy=MLPPolicy(2, 3, key=KEY)), r"float64\[3\].*action_size=1"),
    "a policy that returns integers": (lambda: _unroll(policy=lambda s, t, *, key: jnp.ones(1, int)), "floating-point action"),
    "horizon 0": (lambda: _unroll(horizon=0), "horizon=0; give a whole number of at least 1"),
    "a negative horizon": (lambda: _unroll(horizon=-3), "at least 1"),
    "a fractional horizon": (lambda: _unroll(horizon=2.5), "horizon=2.5; give a whole number"),
    "a traced horizon": (lambda: jax.jit(lambda h: _unroll(horizon=h))(5), "Python int"),
    "a horizon beyond the model's": (lambda: _unroll(AWM_20, horizon=21), "horizon must be at most 20.*got 21.*horizon=None"),
    "open loop beyond the model's horizon": (lambda: AWM_20.open_loop(STATE, jnp.ones((21, 1))), "got 21"),
    "a reward that returns an array": (lambda: _unroll(reward=lambda s, a, t: s), r"reward returned float64\[2\].*jnp.sum"),
    "a reward that returns an integer": (lambda: _unroll(reward=lambda s, a, t: t), "floating-point number"),
    "a termination rule that returns an array": (
        lambda: _unroll(termination=lambda s, a, t: s > 0),
        r"rule returned bool\[2\]; it must be one bool, or one probability.*jnp.any",
    ),
    "a termination rule that returns an integer": (
        lambda: _grad(termination=lambda s, a, t: t),
        r"rule returned int64\[\].*\.astype\(bool\)",
    ),
    "a termination rule whose next state has another name": (
        lambda: _unroll(termination=lambda s, a, t, after: True),
        r"cannot be called as terminates\(state, action, t, next_state\).*a fourth parameter named next_state",
    ),
    "a number as the termination rule": (lambda: _unroll(termination=0.1), "termination rule is a float; give a function"),
    "a function as the dynamics": (lambda: _unroll(dynamics=lambda s, a: s), "pass an instance of awmkit.AbstractDynamics"),
    "a step that changes the size of the state": (
        lambda: _unroll(Careless("state")),
        r"Careless.step returned the state as float64\[1\]",
    ),
    "a step that changes the dtype": (lambda: _unroll(Careless("dtype")), "one dtype"),
    "a step that changes the shape of the carry": (lambda: _unroll(Careless("carry")), "make init return what step does"),
    "a legacy key": (lambda: _unroll(key=jax.random.PRNGKey(0)), "jax.random.key"),
    "several keys": (lambda: _unroll(key=jax.random.split(KEY)), "one key"),
    "noise without a key": (
        lambda: _unroll(LinearQuadratic(jnp.eye(2), jnp.ones((2, 1)), noise=0.1)),
        "noise needs a key; pass key=jax.random.key",
    ),
    "a user's noise without a key": (
        lambda: _unroll(Noisy()),
        r"dynamics, a Noisy, draws random.*pass key=jax.random.key\(seed",
    ),
    "a random policy without a key": (
        lambda: _unroll(policy=lambda s, t, *, key: jax.random.normal(key, (1,))),
        "policy, a function, draws random numbers.*pass key=",
    ),
    "an unroll of a stack of models": (
        lambda: _unroll(_stack(lambda key: Markov(2, 1, width=4, depth=0, key=key))),
        "dynamics is a stack of 3, a Markov with a leading axis.*eqx.filter_vmap",
    ),
    "a stack of systems whose shapes broadcast": (
        lambda: _unroll(_stack(lambda key: LinearQuadratic(jax.random.normal(key, (2, 2)), jnp.ones((2, 1))))),
        "dynamics is a stack of 3, a LinearQuadratic",
    ),
    "a stack of policies": (
        lambda: _unroll(policy=_stack(lambda key: MLPPolicy(2, 1, width=4, key=key))),
        "policy is a stack of 3, a MLPPolicy",
    ),
    "a reward of the next state without it": (
        lambda: Noisy().reward(STATE, PLAN[0], 0),
        r"Noisy reads the next state.*reward\(state, action, t, next_state\)",
    ),
    # Shapes in direct calls.
    "a step from a batch of states": (
        lambda: Henon().step(None, STATES[0], PLAN[0], 0),
        r"Henon.step needs state of shape \(2,\), action of shape \(1,\).*, got float64\[6, 2\], .*jax.vmap",
    ),
    "a step by a scalar action": (lambda: Discretised(Bacteria()).step(None, STATE[:1], jnp.ones(()), 0), r"got.*float64\[\]"),
    "a row of states": (lambda: Discretised(Bacteria()).step(None, STATE[None, :1], PLAN[0], 0), r"float64\[1, 1\]"),
    "the reward of a batch": (lambda: Henon().reward(STATES[0], PLAN, 0), r"Henon.reward needs.*float64\[6, 2\]"),
    "an open loop of scalar actions": (lambda: SYSTEM.open_loop(STATE, PLAN[:, 0]), r"shape \(H, 1\), got.*float64\[5\]"),
    "an open loop in a model of a batch": (lambda: AWM_20.open_loop(STATES[:, 0], PLAN), r"AWM.open_loop needs.*\[4, 2\]"),
    "a segment of actions of the wrong size": (
        lambda: AWM_20.rollout_segment(AWM_20.init(STATE, 5), STATE, jnp.ones((5, 2)), 0),
        r"AWM.rollout_segment needs.*\(H, 1\), got.*float64\[5, 2\]",
    ),
    "Parallel for a dynamics that reads its state": (
        lambda: _unroll(method=Parallel()),
        r"LinearQuadratic.*use method=Sequential\(\)",
    ),
    "a str as the method": (lambda: _unroll(method="parallel"), "The method is 'parallel'; pass Sequential"),
    "a number as the paths": (lambda: _unroll(paths=0.0), "pass awmkit.Paths"),
    "a policy without arrays to differentiate": (
        lambda: unroll_grad(SYSTEM, lambda s, t, *, key: s[:1], STATE, 5, reward=reward),
        "no floating-point array to differentiate",
    ),
    "an unknown edge": (lambda: Paths(state_to_reward=0.0), "no edge 'state_to_reward'; use state_to_policy"),
    "an infinite gain": (lambda: Paths(float("inf")), "gain of state_to_policy must be one finite real number, got inf"),
    "a table as a gain": (lambda: Paths(action_to_model=jnp.ones((2, 2))), "one finite real number"),
    "an unknown checkpoint": (lambda: Sequential("all"), "'none', 'step' or 'nested'"),
    "a negative tolerance": (lambda: Picard(tolerance=-1.0), "tolerance=-1.0"),
    "Picard with max_sweeps=0": (lambda: Picard(max_sweeps=0), "at least 1"),
    "blocks of 0 steps": (lambda: Parallel(block=0), "block=0; give a whole number of at least 1"),
    "a negative tolerance of Newton": (lambda: Newton(tolerance=-1.0), "tolerance=-1.0"),
    "Newton in blocks of 0 steps": (lambda: Newton(block=0), "block=0; give a whole number of at least 1"),
    "start of Newton without the first state": (
        lambda: _unroll(method=Newton(start=jnp.ones((5, 2)))),
        r"Newton needs start of shape \(6, 2\), got float64\[5, 2\]",
    ),
    "start without Picard": (lambda: Parallel(start=jnp.ones((5, 1))), "add sampling=Picard"),
    "a start of the wrong length": (
        lambda: unroll(AWM_20, POLICY, STATE, 5, method=Parallel(sampling=Picard(), start=jnp.ones((4, 1)))),
        r"start of shape \(5, 1\), got float64\[4, 1\]",
    ),
    "a width that is not a multiple of heads": (
        lambda: Transformer(10, heads=3, horizon=5, key=KEY),
        "multiple of 3.*got 10; use width=9",
    ),
    "rotary heads of odd size": (lambda: Transformer(9, heads=3, key=KEY), "multiple of 6.*rotary.*got 9; use width=12"),
    "std=0": (lambda: GaussianPolicy(2, 1, std=0.0, key=KEY), "std=0.0"),
    "fitting a function": (lambda: fit(jnp.sin, Trajectory(STATES, ACTIONS), key=KEY), "pass a Markov.*or a simulator"),
    "fitting a simulator with noise": (
        lambda: fit(LinearQuadratic(noise=0.1), EPISODES, key=KEY),
        "fit got a LinearQuadratic with noise.*set its noise to 0, or fit a world model with head=GaussianHead",
    ),
    "fitting a simulator without arrays": (
        lambda: fit(Numbers(), Trajectory(STATES, ACTIONS), key=KEY),
        r"no floating-point array in Numbers .*only the numbers \['drag', 'mass'\]; .*as in Numbers\(drag=jnp.asarray\(0.3\)\)",
    ),
    "fitting a simulator whose step returns a part of the state": (
        lambda: fit(Partial(), EPISODES, key=KEY),
        r"Partial.*float64\[1\]",
    ),
    "the prediction error of a function": (lambda: prediction_error(jnp.sin, EPISODES), "prediction_error got"),
    "coverage of intervals of no probability": (
        lambda: prediction_error(SYSTEM, EPISODES, level=90, key=KEY),
        "level=90; pass a probability between 0 and 1",
    ),
    "coverage of a model that draws no samples": (
        lambda: prediction_error(RewardModel(2, 1, key=KEY), EPISODES, key=KEY),
        "RewardModel draws no samples; pass a dynamics, or no key",
    ),
    "a head that has a network already": (
        lambda: Markov(2, 1, head=GaussianHead(jnp.sin), key=KEY),
        "Markov got head=a GaussianHead; pass the class, head=GaussianHead",
    ),
    "a head without a network": (lambda: GaussianHead(3), "GaussianHead needs a network.*got a int; pass an eqx.nn.MLP"),
    "bounds of a deviation above 1": (
        lambda: GaussianHead(jnp.sin, lowest=2.0),
        "bounds with 0 < lowest < 1 < highest, got lowest=2.0 and highest=10.0",
    ),
    "a head with an odd number of outputs": (lambda: GaussianHead(jnp.sin)(jnp.ones(3)), r"returns 2 S numbers.*float64\[3\]"),
    "the prediction error in windows of no step": (lambda: prediction_error(SYSTEM, EPISODES, window=0), "window=0"),
    "fitting a reward model without rewards": (
        lambda: fit(RewardModel(2, 1, key=KEY), Trajectory(STATES, ACTIONS), key=KEY),
        "needs episodes with rewards.*collect them with reward=",
    ),
    "episodes of the wrong state size": (
        lambda: fit(AWM_20, Trajectory(jnp.ones((4, 6, 3)), ACTIONS), key=KEY),
        r"needs states of shape \(N, H\+1, 2\)",
    ),
    "episodes with one action too few": (
        lambda: fit(AWM_20, Trajectory(STATES, ACTIONS[:, :4]), key=KEY),
        r"needs states of shape \(N, H\+1, 2\)",
    ),
    "rewards with a last axis of 1": (
        lambda: _fit_reward(jnp.ones((4, 5, 1))),
        r"rewards of shape \(N, H\), got .*float64\[4, 5, 1\]",
    ),
    "one reward for each episode": (lambda: _fit_reward(jnp.ones((4, 1))), r"rewards of shape \(N, H\), got .*float64\[4, 1\]"),
    "one reward for each step": (lambda: _fit_reward(jnp.ones(5)), r"rewards of shape \(N, H\), got .*float64\[5\]"),
    "rewards that a world model does not need, of a wrong shape": (
        lambda: fit(AWM_20, Trajectory(STATES, ACTIONS, jnp.ones((4, 5, 1))), key=KEY),
        r"rewards of shape \(N, H\), got .*float64\[4, 5, 1\]",
    ),
    "a reward model normalised by rewards with a last axis of 1": (
        lambda: RewardModel(2, 1, key=KEY).normalised(Trajectory(STATES, ACTIONS, jnp.ones((4, 5, 1)))),
        r"RewardModel.normalised needs.*float64\[4, 5, 1\]",
    ),
    "episodes whose fields are lists": (lambda: fit(AWM_20, Trajectory(STATES.tolist(), ACTIONS), key=KEY), "got a list"),
    "one episode without a leading axis": (lambda: fit(AWM_20, Trajectory(STATES[0], ACTIONS[0]), key=KEY), r"float64\[6, 2\]"),
    "a target of another shape than the prediction": (
        lambda: fit(Mismatched("target"), EPISODES, key=KEY),
        r"Mismatched predicts float64\[5, 1\] for one episode, whose target is float64\[5\].*one shape \(H, D\)",
    ),
    "a loss for each step": (
        lambda: fit(Mismatched("loss"), EPISODES, key=KEY),
        r"Mismatched.loss returned float64\[5\]; .* one",
    ),
    "a stack of models": (
        lambda: fit(jax.tree.map(lambda x: jnp.stack([x, x]) if eqx.is_array(x) else x, AWM_20), EPISODES, key=KEY),
        "one key but several of the model.*pass an array of keys",
    ),
    "fit under vmap": (
        lambda: eqx.filter_vmap(lambda key: _fit(key=key))(jax.random.split(KEY)),
        "fit makes its updates from Python.*call it once for each model",
    ),
    "an ensemble of one model": (lambda: Ensemble(AWM_20), "several models, stacked.*got one AWM.*or pass a list"),
    "an ensemble of one system": (lambda: Ensemble(SYSTEM), "several models, stacked.*got one LinearQuadratic"),
    "an ensemble of policies": (lambda: Ensemble([POLICY]), "needs world models or simulators, got a MLPPolicy"),
    "an ensemble of nothing": (lambda: Ensemble([]), "got an empty list; pass at least one model"),
    "an ensemble of two kinds": (lambda: Ensemble([AWM_20, SYSTEM]), "a AWM and a LinearQuadratic whose structures differ"),
    "an ensemble of two sizes": (
        lambda: Ensemble([Markov(2, 1, width=n, depth=0, key=KEY) for n in (4, 5)]),
        "structures differ|differ in shape",
    ),
    "a member drawn by name": (lambda: Ensemble(_MARKOVS, "random"), "must be 'mean', 'episode' or 'step', got 'random'"),
    "a pessimistic reward of a model": (
        lambda: PessimisticReward(reward, AWM_20),
        r"needs an Ensemble, got an AWM; pass Ensemble\(models\)",
    ),
    "a pessimistic reward of a model with a memory": (
        lambda: PessimisticReward(reward, Ensemble([AWM_20, AWM_20])),
        r"AWM predicts from the steps before them; use FullHorizon\(pessimism",
    ),
    "several weights of a pessimistic reward": (
        lambda: PessimisticReward(reward, Ensemble(_MARKOVS), jnp.ones(2)),
        r"weight of shape \(\), got float64\[2\]; pass one number",
    ),
    "pessimism without an ensemble": (
        lambda: FullHorizon(pessimism=1.0).check(_MARKOVS, 5),
        "pessimism=1.0, and a Markov, which has no members.*pass an awmkit.Ensemble",
    ),
    "more steps at a time than an AWM has statistics of": (
        lambda: _plan(AWM(2, 1, GRU(4, key=KEY), per_step=True, key=KEY).normalised(EPISODES), 6),
        "6 steps are imagined at a time, but the AWM has per_step=True and statistics of each of 5 steps",
    ),
    "more steps at a time than an ensemble of AWMs has embeddings of": (
        lambda: _plan(Ensemble([AWM_20, AWM_20]), 21),
        "horizon must be at most 20, for which this Transformer",
    ),
    "several keys for one model": (lambda: _fit(key=jax.random.split(KEY)), "2 keys but one model; build one for each key"),
    "episodes in 8 bits": (
        lambda: fit(AWM_20, Trajectory(STATES.astype(jnp.float8_e4m3fn), ACTIONS), key=KEY),
        r"states have dtype float8_e4m3fn; pass them .astype\(float\)",
    ),
    "statistics of fewer steps than the episodes": (
        lambda: fit(
            Markov(2, 1, per_step=True, key=KEY).normalised(Trajectory(STATES[:, :4], ACTIONS[:, :3])), EPISODES, key=KEY
        ),
        "statistics are those of each of 4 steps, but it predicts 5 steps at a time",
    ),
    "fitting to one episode": (lambda: fit(AWM_20, Trajectory(STATES[:1], ACTIONS[:1]), key=KEY), "at least 2 episodes"),
    "episodes with NaN": (lambda: fit(AWM_20, Trajectory(STATES * jnp.nan, ACTIONS), key=KEY), "states are not all finite"),
    "updates=0": (lambda: fit(AWM_20, Trajectory(STATES, ACTIONS), key=KEY, updates=0), "updates=0"),
    "holdout=1": (lambda: fit(AWM_20, Trajectory(STATES, ACTIONS), key=KEY, holdout=1.0), "holdout=1.0"),
    "no episode": (lambda: Trajectory.from_episodes([]), "empty list; pass at least one episode"),
    "one episode instead of a list": (lambda: Trajectory.from_episodes(_episode()), r"got a dict; pass \[episode\]"),
    "one Trajectory instead of a list": (lambda: Trajectory.from_episodes(Trajectory(STATES[0], PLAN)), r"pass \[episode\]"),
    "a path as episodes": (lambda: Trajectory.from_episodes("data.npz"), "got a str; pass"),
    "an array as an episode": (lambda: _second(STATES[0]), r"Episode 1 is float64\[6, 2\]; pass a dictionary"),
    "an episode without actions": (lambda: _second({"states": STATES[0]}), r"Episode 1 has the keys \['states'\]"),
    "an episode with unknown keys": (lambda: _second(_episode(action=PLAN)), "Episode 1 has the keys.* must have states and"),
    "a state too few": (lambda: _second(_episode(states=STATES[0, 1:])), r"Episode 1 needs.*one state more than actions"),
    "a reward for each state": (lambda: _second(_episode(rewards=jnp.ones(6))), r"Episode 1 needs.*got .*float64\[6\]"),
    "states without an axis of entries": (lambda: _second(_episode(states=jnp.ones(6))), r"Episode 1 needs.*as x\[:, None\]"),
    "one number as the states": (lambda: _second(_episode(states=jnp.nan)), r"Episode 1 needs.*float64\[\]"),
    "states of two sizes": (lambda: _second(_episode(states=jnp.ones((6, 3)))), "states of episode 1 have 3 entries.* 0 2"),
    "actions of two sizes": (lambda: _second(_episode(actions=jnp.ones((5, 2)))), "actions of episode 1 have 2 entries.* 0 1"),
    "an episode without a step": (lambda: _second((STATES[0, :1], PLAN[:0])), "Episode 1 has no step; leave it out"),
    "rewards in one of two episodes": (
        lambda: _second(_episode(rewards=jnp.ones(5))),
        "Episode 1 has rewards and episode 0 has no rewards",
    ),
    "NaN in an episode": (
        lambda: _second(_episode(actions=PLAN.at[3].set(jnp.nan))),
        "actions of episode 1 are not finite in float64 at step 3; leave out",
    ),
    "words as the states": (lambda: _second(_episode(states=[["a"]] * 6)), "states of episode 1 are not an array of numbers"),
    "rows of two lengths": (lambda: _second(_episode(states=[[1.0], [1.0, 2.0]])), "states of episode 1.*got a list"),
    "actions that are missing": (lambda: _second(_episode(actions=None)), "actions of episode 1 are not.*got None"),
    "dictionaries as observations": (
        lambda: _second(_episode(states={"goal": STATES[0], "body": STATES[0]})),
        r"states of episode 1 are a dictionary of \['body', 'goal'\]; join its arrays",
    ),
    "traced episodes": (
        lambda: eqx.filter_eval_shape(lambda x: _second(_episode(states=x)).states, STATES[0]),
        "states of episode 0 are traced; call from_episodes outside",
    ),
    "a number as terminated": (lambda: _second(_episode(terminated=1)), "terminated of episode 1.*got 1; pass it .astype"),
    "a flag too few": (lambda: _second(_episode(terminated=[True] * 4)), "terminated of episode 1 must be True or False, or 5"),
    "flags of two lengths": (lambda: _second(_episode(terminated=[True, [True]])), "terminated of episode 1 must be"),
    "an end in the middle": (
        lambda: _second(_episode(terminated=jnp.arange(5) == 2)),
        "Episode 1 is terminated after 3 of 5 steps; split it there",
    ),
    "a time as t": (lambda: _second(_episode(t=0.5)), "t of episode 1 must be the index of its first step, got 0.5"),
    "infinite bounds of actions": (
        lambda: scale_actions(PLAN, -jnp.inf, jnp.inf),
        "scale_actions needs finite bounds with low below high, got low=-inf and high=inf for entry 0",
    ),
    "equal bounds of an action": (lambda: scale_actions(jnp.ones((5, 2)), 0.0, jnp.array([1.0, 0.0])), "high=0 for entry 1"),
    "bounds in another order": (lambda: unscale_actions(PLAN, 1.0, -1.0), "unscale_actions needs finite.*low=1 and high=-1"),
    "bounds of another size": (lambda: scale_actions(PLAN, jnp.zeros(2), jnp.ones(2)), r"one bound for each entry"),
    "one number as actions": (lambda: scale_actions(0.5, 0.0, 1.0), r"actions of shape \(\.\.\., A\)"),
    "a space as a bound": (lambda: scale_actions(PLAN, object(), 1.0), "of real numbers, got float64.*, a object"),
    "nothing to concatenate": (lambda: Trajectory.concatenate([]), "empty list; pass at least one Trajectory"),
    "a list of lists to concatenate": (lambda: Trajectory.concatenate([[EPISODES]]), "a list; pass one Trajectory"),
    "an episode to concatenate": (lambda: Trajectory.concatenate([Trajectory(STATES[0], PLAN)]), r"N, H\+1, S\)"),
    "states of two sizes to concatenate": (
        lambda: Trajectory.concatenate([EPISODES, Trajectory(jnp.ones((4, 6, 3)), ACTIONS)]),
        r"states of the trajectories have \[2, 3\] entries",
    ),
    "rewards in one of two trajectories": (
        lambda: Trajectory.concatenate([EPISODES, Trajectory(STATES, ACTIONS, jnp.ones((4, 5)))]),
        "Only some of the trajectories have rewards; give them to all, or to none",
    ),
    "a length beyond the arrays": (
        lambda: Trajectory.concatenate([Trajectory(STATES, ACTIONS, length=jnp.array([5, 6, 1, 1]))]),
        "episodes of 1 to 5 steps, the size of their arrays, got length 6 in episode 1",
    ),
    "the mean of one value per episode": (
        lambda: EPISODES.mean_over_steps(jnp.ones(4)),
        r"needs values of shape \(4, 5, ...\), got float64\[4\]",
    ),
    "the return without a reward": (lambda: _unroll().returns(), "reward=task.reward"),
    "a task of one step": (lambda: PassiveDoublePendulum(1), "at least 2 steps"),
    "one bounce in one step": (lambda: OneBounce(1), "at least 2 steps"),
    "a ball behind the wall": (lambda: OneBounce(start=-2.0), "behind the wall at -1.0"),
    "credit assignment in one step": (lambda: CreditAssignment(1), "at least 2 steps"),
    "a negative noise scale": (lambda: CreditAssignment(scale=-1.0), "at least 0.*scale=-1.0"),
    "a random task without a key": (lambda: _play(CreditAssignment(5)), "needs a key.*pass key="),
    "distractors without a key": (lambda: _play(Discretised(Bacteria(), 5, distractors=1)), "distractors=1.*key"),
    "a problem with horizon 0": (lambda: Discretised(Bacteria(), 0), "horizon=0"),
    "noise of the wrong size": (
        lambda: Discretised(Glucose(), noise=(0.1,)),
        "each of the 2 entries of x0 of Glucose, got 2 and 1",
    ),
    # Objects of the wrong kind.
    "a class as the dynamics": (lambda: _unroll(Henon), "dynamics is the class Henon; pass an instance"),
    "a class as the policy": (lambda: _unroll(policy=MLPPolicy), "policy is the class MLPPolicy; make an instance"),
    "a network as the policy": (lambda: _unroll(policy=POLICY.network), r"policy, a MLP, cannot be called as policy\(state, t"),
    "a policy that ignores t": (lambda: _unroll(policy=lambda s: s[:1]), r"cannot be called as policy\(state, t, \*, key\)"),
    "a policy without the parameter key": (
        lambda: _unroll(policy=lambda s, t: s[:1]),
        "unexpected keyword argument 'key'.*key=None",
    ),
    "a policy that returns None": (lambda: _unroll(policy=lambda s, t, key: None), "policy returned None"),
    "a reward model as the dynamics": (lambda: _unroll(RewardModel(2, 1, key=KEY)), "dynamics is a RewardModel"),
    "a str as the backbone": (
        lambda: AWM(2, 1, "transformer", key=KEY),
        r"AWM needs an AbstractBackbone, got a str; pass.*LSTM\(key=key\)",
    ),
    "a class as the backbone": (lambda: HWM(2, 1, LSTM, key=KEY), "HWM needs an AbstractBackbone, got the class LSTM"),
    "a model without a memory between anchors": (
        lambda: Anchored(Markov(2, 1, key=KEY), every=5),
        "Anchored needs a world model with a memory, whose steps count from its first state, got a Markov; pass an AWM or an HWM",
    ),
    "anchors between anchors": (
        lambda: Anchored(Anchored(AWM(2, 1, LSTM(4, key=KEY), key=KEY), 3), 5),
        "got an Anchored; pass an AWM or an HWM",
    ),
    "a network for fewer steps than between anchors": (
        lambda: Anchored(AWM(2, 1, Transformer(12, 1, 3, horizon=4, key=KEY), key=KEY), every=5),
        "Anchored got every=5 and a network for 4 steps; pass at most every=4, or a network for more",
    ),
    "windows shorter than the steps between anchors": (
        lambda: fit(Anchored(AWM(2, 1, LSTM(4, key=KEY), key=KEY), 3), EPISODES, key=KEY, window=2),
        "fit got windows of 2 steps and a model that begins again every 3 steps, .*; pass window=3",
    ),
    "no step between anchors": (lambda: Anchored(AWM(2, 1, LSTM(4, key=KEY), key=KEY), every=0), "at least 1"),
    "a str in from_dynamics": (
        lambda: AWM.from_dynamics("pendulum"),
        "from_dynamics needs an AbstractDynamics, got a str; pass an instance",
    ),
    "a str as the problem": (lambda: Discretised("Bacteria"), r"problem must be.*got a str; pass.*such as CancerTreatment\(\)"),
    "a class as the problem": (lambda: Discretised(Bacteria), r"the class Bacteria; pass.*such as Bacteria\(\)"),
    "MultiSteps as the optimiser": (
        lambda: _fit(optimiser=optax.MultiSteps(optax.adam(1e-3), 2)),
        r"optax.MultiSteps; pass what its method gradient_transformation\(\) returns",
    ),
    "several learning rates": (
        lambda: _fit_standard(optimiser=optax.adam(jnp.array([1e-3, 1e-2]))),
        "optimiser cannot train AWM .*numbers or schedules",
    ),
    "an optimiser that needs more than the loss": (
        lambda: _fit_standard(optimiser=optax.contrib.sophia(1e-3)),
        "obj_fn must be provided.*no more than the gradient and the loss",
    ),
    "a str as the optimiser": (lambda: _fit(optimiser="adam"), r"optimiser is a str.*optax.adam\(1e-3\)"),
    "a dict as the episodes": (lambda: fit(AWM_20, {"states": STATES}, key=KEY), "episodes are a dict; pass one Trajectory"),
    "a list as the episodes": (lambda: fit(AWM_20, [EPISODES], key=KEY), "episodes are a list; pass one Trajectory"),
    "a model normalised by states": (lambda: AWM_20.normalised(STATES), r"got float64\[4, 6, 2\]; pass the episodes, not only"),
    "a model normalised by a list of episodes": (
        lambda: AWM_20.normalised([EPISODES] * 50),
        r"AWM.normalised needs a Trajectory of N episodes, got a list",
    ),
    "a reward model normalised by states": (
        lambda: RewardModel(2, 1, key=KEY).normalised(STATES),
        "RewardModel.normalised needs a Trajectory of N episodes",
    ),
    # Rewards.
    "unroll_grad without a reward": (
        lambda: unroll_grad(SYSTEM, POLICY, STATE, 5, reward=None),
        "reward is None; give a function",
    ),
    "a str as the reward": (lambda: _unroll(reward="height"), "reward is a str; give a function"),
    "a reward without t": (lambda: _unroll(reward=lambda s, a: s[0]), r"cannot be called as reward\(state, action, t\)"),
    "a reward with a fourth parameter of another name": (
        lambda: _unroll(reward=lambda s, a, t, n: s[0]),
        "name its fourth parameter next_state, instead of n",
    ),
    "a reward with the next state instead of t": (
        lambda: _unroll(reward=lambda s, a, next_state: s[0]),
        r"called as reward\(state, action, t, next_state=...\)",
    ),
    "a reward that takes the next state by position only": (
        lambda: _unroll(reward=lambda s, a, t, next_state, /: s[0]),
        r"called as reward\(state, action, t, next_state=...\).*positional",
    ),
    "a reward with five parameters": (lambda: _unroll(reward=lambda s, a, t, next_state, n: s[0]), "missing.*'n'"),
    "a reward that returns None": (lambda: _unroll(reward=lambda s, a, t: None), "reward returned None"),
    # Values.
    "a ragged state": (lambda: _unroll(state=[[1.0], [1.0, 2.0]]), "rows of different lengths"),
    "None as the state": (lambda: _unroll(state=None), "state holds no numbers, but object"),
    "a str as the state": (lambda: _unroll(state="start"), "state holds no numbers"),
    "a fractional first step": (lambda: _unroll(t=0.5), "t must be a whole number.*got 0.5"),
    "a negative first step": (lambda: _unroll(t=-1), "t must be at least 0.*got -1"),
    "a traced first step with Parallel": (
        lambda: jax.jit(lambda t: _unroll(AWM_20, t=t, carry=AWM_20.init(STATE, 9), method=Parallel()))(1),
        "t as a Python int, got a traced value",
    ),
    "an AWM in mid-episode without a carry": (lambda: _unroll(AWM_20, t=3), "from t=3 on needs the carry"),
    "a carry of another dynamics": (lambda: _unroll(AWM_20, t=3, carry=STATE), "structure that AWM.init returns"),
    "a horizon of 10^12": (lambda: _unroll(horizon=10**12), r"horizon=1000000000000; give less than 2\^31 steps"),
    "a horizon of True": (lambda: _unroll(horizon=True), "horizon=True; give a whole number"),
    "a str as the discount": (lambda: _grad(discount="0.9"), "discount is '0.9'; give one real number"),
    "a discount for each step": (lambda: _grad(discount=jnp.ones(5)), r"discount is float64\[5\]; give one"),
    "discount=nan": (lambda: _grad(discount=float("nan")), "discount is nan; give a finite"),
    "episodes of integers": (
        lambda: fit(AWM_20, Trajectory(STATES.astype(int), ACTIONS), key=KEY),
        r"int64; pass them .astype",
    ),
    "a microbatch size that does not divide the batch size": (
        lambda: _fit(batch_size=12, microbatch_size=8),
        "fit got microbatch_size=8 and batch_size=12; give a divisor",
    ),
    "a fractional number of updates": (lambda: _fit(updates=2.5), "fit got updates=2.5"),
    "a model normalised by one episode": (
        lambda: AWM_20.normalised(Trajectory(STATES[0], ACTIONS[0])),
        r"\(N, H\+1, 2\) and .*got float64\[6, 2\]",
    ),
    "a model normalised by states of the wrong size": (
        lambda: AWM_20.normalised(Trajectory(jnp.ones((4, 6, 3)), ACTIONS)),
        r"\(N, H\+1, 2\)",
    ),
    "a model with statistics for each step normalised by windows": (
        lambda: Markov(2, 1, per_step=True, key=KEY).normalised(Trajectory(STATES, ACTIONS, t=jnp.arange(4))),
        "Markov.normalised got windows of episodes.*whole episodes",
    ),
    "a normaliser with a mask of numbers": (
        lambda: Normaliser(2).fitted(jnp.ones((5, 2)), jnp.ones(5)),
        r"mask must be of True and False, got float64\[5\]",
    ),
    "a normaliser with a mask that leaves nothing": (
        lambda: Normaliser(2).fitted(jnp.ones((5, 2)), jnp.zeros(5, bool)),
        "mask leaves no row",
    ),
    "a normaliser fitted to rows of the wrong size": (
        lambda: Normaliser(3).fitted(jnp.ones((5, 2))),
        r"data of shape \(\.\.\., 3\), got float64\[5, 2\]",
    ),
    "a normaliser fitted to integers": (lambda: Normaliser(2).fitted(jnp.ones((5, 2), int)), r"int64\[5, 2\]; pass .*astype"),
    "a normaliser fitted to NaN": (lambda: Normaliser(2).fitted(jnp.full((5, 2), jnp.nan)), "data must be finite"),
    "a normaliser called with one entry of three": (
        lambda: Normaliser(3)(jnp.ones(1)),
        r"\(\.\.\., 3\), got float64\[1\]",
    ),
    "a normaliser of each step called with one state": (
        lambda: Normaliser(2, per_step=True).fitted(STATES)(STATE),
        r"\(\.\.\., 6, 2\), got float64\[2\].*normaliser.at\(t\)",
    ),
    "a normaliser fitted to no rows": (lambda: Normaliser(2).fitted(jnp.ones((0, 2))), "at least one row"),
    "matrices of inconsistent shapes": (
        lambda: LinearQuadratic(jnp.eye(2), jnp.ones((3, 1))),
        r"\(S, S\), B of shape \(S, A\).*got float64\[2, 2\], float64\[3, 1\]",
    ),
    "negative noise in a linear system": (
        lambda: LinearQuadratic(jnp.eye(2), jnp.ones((2, 1)), noise=-1.0),
        "noise must be at least 0, got -1.0",
    ),
    "a pendulum with horizon 0": (lambda: DrivenDoublePendulum(0), "DrivenDoublePendulum got horizon=0"),
    "a fractional horizon of a task": (lambda: Henon(horizon=2.5), "Henon got horizon=2.5"),
    "substeps=0": (lambda: _unroll(DoublePendulum(substeps=0), jnp.ones((5, 2)), jnp.ones(4)), "ode_step got substeps=0"),
    # Keys.
    "an int as the key": (lambda: _unroll(key=0), r"key 0; give one key made by jax.random.key\(seed\)"),
    "a legacy key for a model": (lambda: LSTM(key=jax.random.PRNGKey(0)), r"LSTM got the key uint32\[2\]"),
    "an int as the key of a model": (lambda: Markov(2, 1, key=0), "Markov got the key 0"),
    "several keys for one policy": (
        lambda: MLPPolicy(2, 1, key=jax.random.split(KEY)),
        r"\[2\]; give one key.*or vmap over several",
    ),
    "a legacy key for a fit": (lambda: _fit(key=jax.random.PRNGKey(0)), r"must be one jax.random.key.*got uint32\[2\]"),
    # Sizes.
    "a negative width": (lambda: MLPPolicy(2, 1, width=-4, key=KEY), "MLPPolicy got width=-4; give a whole number"),
    "a fractional action size": (lambda: GaussianPolicy(2, 1.5, key=KEY), "GaussianPolicy got action_size=1.5"),
    "a policy with state_size=0": (lambda: MLPPolicy(0, 1, key=KEY), "state_size=0"),
    "a policy with horizon 0": (lambda: MLPPolicy(2, 1, horizon=0, key=KEY), "horizon=0"),
    "a model with state_size=0": (lambda: AWM(0, 1, LSTM(4, key=KEY), key=KEY), "AWM got state_size=0"),
    "a negative depth": (lambda: Markov(2, 1, depth=-1, key=KEY), "depth=-1; give a whole number of at least 0"),
    "a GRU with width 0": (lambda: GRU(0, key=KEY), "GRU got width=0"),
    "a transformer without heads": (lambda: Transformer(heads=0, key=KEY), "Transformer got heads=0"),
    "a transformer without blocks": (lambda: Transformer(depth=0, key=KEY), "Transformer got depth=0"),
    "cuDNN attention on a CPU": (
        lambda: Transformer(attention=CuDNNAttention(), key=KEY),
        "CuDNNAttention needs an NVIDIA GPU.*got the backend cpu and heads of size 16",
    ),
    "a str as the attention": (
        lambda: Transformer(attention="cudnn", key=KEY),
        r"attention must be None or an AbstractAttention, got a str; pass CuDNNAttention\(\)",
    ),
    "a state space with chunk_size=0": (lambda: LinearStateSpace(chunk_size=0, key=KEY), "LinearStateSpace got chunk_size=0"),
    "a state space without modes": (lambda: LinearStateSpace(modes=0, key=KEY), "LinearStateSpace got modes=0"),
    "a user-defined dynamics with action_size=0": (lambda: Careless("state", action_size=0), "Careless got action_size=0"),
    "a bool as the progress": (lambda: _fit(progress=False), r"progress is a bool; pass.*NoProgress\(\)"),
    "a progress bar with total=0": (lambda: TqdmProgress().start("fit", 0), "TqdmProgress got total=0"),
    # Files and replay.
    "a log in a folder that does not exist": (lambda: JSONLines("/no/such/folder/log"), "folder that does not exist"),
    "a save in a folder that does not exist": (lambda: save("/no/such/folder/run", STATE), "folder that does not exist"),
    "a folder as the path of a save": (lambda: save("/", STATE), "/ is a folder"),
    "a config with arrays": (lambda: save("never", STATE, config={"x": STATE}), "cannot be written as JSON"),
    "episodes of the wrong length": (
        lambda: _replay().add(Trajectory(STATES[:1, :4], ACTIONS[:1, :3])),
        "pass episodes of that length",
    ),
    "a replay buffer for a dict": (lambda: Replay.empty(2, {"states": STATES[0]}), "episodes are a dict; pass one Trajectory"),
    "a replay buffer for several episodes": (
        lambda: Replay.empty(2, EPISODES),
        r"Replay.empty needs states of shape \(H\+1, S\).*float64\[4, 6, 2\]",
    ),
    "one state for three episodes": (
        lambda: _replay().add(Trajectory(STATES[:1], ACTIONS[:2])),
        r"Replay.add needs.*float64\[1, 6, 2\] and float64\[2, 5, 1\]",
    ),
    "episodes that the buffer would round": (
        lambda: Replay.empty(10, Trajectory(STATES[0].astype(jnp.float32), ACTIONS[0])).add(
            Trajectory(STATES[:1], ACTIONS[:1])
        ),
        "same fields and dtypes",
    ),
    "a memory of another shape": (
        lambda: unroll(SYSTEM, Forgetful(), STATE, 3),
        r"Forgetful.step returned the memory as float64\[2\] for a memory given as float64\[3\]",
    ),
    "a step of a policy without a memory to return": (
        lambda: unroll(SYSTEM, Forgetful("action"), STATE, 3),
        "it must return two things, the new memory and the action",
    ),
    "a policy with init and no step": (OnlyInit, r"OnlyInit must define __call__.*both init\(\) and step"),
    "a memory that is not passed": (lambda: RECURRENT(STATE, 0), "start with memory = policy.init"),
    "a memory from the middle of an episode": (
        lambda: improve(SYSTEM, RECURRENT, STATES[0], reward=SYSTEM.reward, key=KEY, horizon=4, ascent=FullHorizon(length=2)),
        "GRUPolicy has a memory, which is unknown where",
    ),
    "a history model from the middle of an episode": (
        lambda: unroll(HWM(2, 1, Transformer(4, 1, 1, key=KEY), key=KEY), jnp.zeros((3, 1)), STATE, 3, t=2),
        "HWM predicts from all steps since t = 0.*pass the carry=",
    ),
    "episodes that happen with a probability": (
        lambda: Trajectory.from_episodes([Trajectory(jnp.zeros((3, 2)), jnp.zeros((2, 1)), survival=jnp.ones(2))]),
        "Episode 0 has survival.*leading axis, with Trajectory.concatenate",
    ),
    "a reward that reads hidden entries": (lambda: PartlyObserved(SYSTEM, (0,)), "reads entries of the state that are hidden"),
    "a reward that reads hidden entries at the last step": (
        lambda: PartlyObserved(OneBounce(20), (1, 2, 3)),
        "reads entries of the state that are hidden",
    ),
    "entries out of order": (lambda: PartlyObserved(SYSTEM, (1, 0)), "from 0 to 1 in ascending order"),
    "an empty replay buffer": (lambda: _replay().sample(KEY, 1), "empty replay buffer; add episodes first"),
    "recency=0": (lambda: _replay().sample(KEY, 1, recency=0.0), r"recency=0.0; pass a number in \(0, 1\]"),
}


@pytest.mark.parametrize("name", MISUSES)
def test_misuse_raises_one_clear_sentence(name):
    says(*MISUSES[name])


def test_a_diverging_loss_raises_an_error_that_says_what_to_do():
    episodes = Trajectory(jax.random.normal(KEY, (8, 6, 2)), ACTIONS[:1].repeat(8, 0))
    with jax.numpy_dtype_promotion("standard"), pytest.raises(RuntimeError, match="lower the learning rate"):
        fit(
            AWM(2, 1, LSTM(4, key=KEY), key=KEY),
            episodes,
            key=KEY,
            updates=50,
            optimiser=optax.sgd(1e300),
            progress=NoProgress(),
        )


def fragile(x, breaks):
    """Return 0 where `breaks` and 1 elsewhere. Where it is 0, its derivative in `x` is not finite."""
    return jnp.sqrt(jnp.where(breaks, 0.0, 1.0) + x - jax.lax.stop_gradient(x))


class FragilePolicy(eqx.Module):
    """A policy whose derivative is not finite at step 2."""

    network: MLPPolicy

    def __call__(self, state, t, *, key=None):
        return self.network(state, t) * fragile(state[:1], t == 2)


class Fragile(AbstractDynamics):
    """A dynamics with finite values. Its derivative at step 3, in the state or in the action, is not finite."""

    edge: str
    state_size: int = 1
    action_size: int = 1

    def init(self, state, horizon):
        return None

    def step(self, carry, state, action, t, *, key=None):
        x = state if self.edge == "state_to_model" else action
        return carry, 0.5 * state + action + fragile(x, t == 3)


@pytest.mark.parametrize("edge", ["state_to_model", "action_to_model"])
def test_check_names_the_step_and_edge_of_a_non_finite_gradient(edge):
    policy = MLPPolicy(1, 1, width=4, key=KEY)
    run = lambda **options: unroll_grad(Fragile(edge), policy, jnp.ones(1), 6, reward=reward, **options)
    value, grads = run()
    assert jnp.isfinite(value) and not all(jnp.isfinite(g).all() for g in jax.tree.leaves(grads))
    with pytest.raises(eqx.EquinoxRuntimeError, match=f"t=3 on the edge {edge}"):
        run(check=True)
    with pytest.raises(eqx.EquinoxRuntimeError, match=f"t=3 on the edge {edge}"):
        jax.block_until_ready(eqx.filter_jit(lambda: run(check=True))())


def test_check_locates_a_non_finite_policy_or_reward_and_keeps_a_finite_gradient():
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
