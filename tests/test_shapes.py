"""Every public function that takes arrays accepts the shapes in its documentation, and refuses all others by one clear sentence.

Nothing is compiled: functions are traced abstractly, where shapes are known. Those on NumPy arrays are run.
"""

import contextlib
import itertools
import math
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from matplotlib.figure import Figure
from public_names import public

import awmkit
import awmkit.analysis as analysis
import awmkit.gym
import awmkit.learning.ascents as ascents
import awmkit.learning.tensorboard
import awmkit.methods
import awmkit.mjx
import awmkit.models.backbones
import awmkit.plot as plot
import awmkit.scores as scores
import awmkit.tasks as tasks
from awmkit import NoProgress, Trajectory

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Packages that rejax imports raise warnings.
    import awmkit.baselines

KEY = jax.random.key(0)
SIZES = {"S": 3, "A": 2, "W": 12, "H": 6, "N": 4, "B": 5, "T": 8, "U": 9, "D": 10, "P": 11, "n": 7}
FIXED = {"S", "A", "W"}  # Sizes that belong to the object, such as the state's of a model. A caller chooses the others.


class Row(NamedTuple):
    """A call with one keyword argument per array, the shape of each in the notation of jaxtyping, and that of the result.

    "H+1" is one more than H, "*" any leading axes, the same for all arrays, and "|" separates alternatives. `result=None` does not
    look at the result.
    """

    call: Callable[..., Any]
    shapes: dict[str, str]
    result: str | None = None
    numpy: bool = False


def sizes_of(needed: dict[str, str], given: dict[str, tuple[int, ...]]) -> dict[str, Any] | None:
    """Return the size of each letter, or `None` if these are not shapes that are needed."""
    for specs in itertools.product(*(spec.split("|") for spec in needed.values())):
        sizes: dict[str, Any] = {letter: SIZES[letter] for letter in FIXED}
        if all(fits(spec.split(), given[name], sizes) for name, spec in zip(needed, specs, strict=True)):
            return sizes
    return None


def fits(letters: list[str], shape: tuple[int, ...], sizes: dict[str, Any]) -> bool:
    """Return whether this is the shape, and add the sizes of its letters to `sizes`."""
    if letters[:1] == ["*"]:
        count = max(0, len(shape) - len(letters) + 1)
        if sizes.setdefault("*", shape[:count]) != shape[:count]:
            return False
        letters, shape = letters[1:], shape[count:]
    if len(letters) != len(shape):
        return False
    for letter, size in zip(letters, shape, strict=True):
        letter, more = letter.removesuffix("+1"), int(letter.endswith("+1"))
        if letter.isdigit() and int(letter) != size or sizes.setdefault(letter, size - more) + more != size:
            return False
    return True


def shape_of(spec: str, sizes: dict[str, Any]) -> tuple[int, ...]:
    """Return the shape; of alternatives, the first."""
    size = lambda x: int(x) if x.isdigit() else sizes[x.removesuffix("+1")] + x.endswith("+1")
    letters = spec.split("|")[0].split()
    return (*sizes["*"], *map(size, letters[1:])) if letters[:1] == ["*"] else tuple(map(size, letters))


def others(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return wrong shapes: axes added, removed, changed, of size 1 and swapped, a scalar, and a batch."""
    wrong = [(1, *shape), (*shape, 1), (17, *shape), (), shape[::-1]]
    for i in range(len(shape)):
        before, size, after = shape[:i], shape[i], shape[i + 1 :]
        wrong += [(*before, 1, *after), (*before, *after), (*before, size + 1, *after)]
    return [other for other in dict.fromkeys(wrong) if other != shape]


def run(row: Row, shapes: dict[str, tuple[int, ...]], kind: str = "array") -> tuple[int, ...] | None:
    """Return the shape of the result; `None` if the function went on to read values, which are unknown."""
    values = {name: np.linspace(0.5, 0.9, math.prod(shape)).reshape(shape) for name, shape in shapes.items()}
    if kind == "whole numbers":
        values = {name: np.ones(x.shape, int) for name, x in values.items()}
    elif "t" in values:
        values["t"] = values["t"].astype(int)
    if kind == "lists":
        values = {name: x.tolist() for name, x in values.items()}
    try:
        if row.numpy:
            return np.shape(row.call(**values))
        if kind == "array":
            arrays = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in values.items()}
            return getattr(eqx.filter_eval_shape(row.call, **arrays), "shape", None)
        return getattr(eqx.filter_eval_shape(lambda: row.call(**values)), "shape", None)
    except (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError):
        return None


def check_message(error: ValueError, given: tuple[int, ...] | None) -> None:
    """Raise unless the error comes from awmkit and is one sentence that contains the shape that was given."""
    message, source = str(error), traceback.extract_tb(error.__traceback__)[-1].filename
    assert Path(source).is_relative_to(Path(awmkit.__file__).parent), f"raised in {source}: {message}"
    assert "\n" not in message and message.endswith(".") and len(message) < 600, message
    assert given is None or any(
        x in message.replace(" ", "") for x in (str(given).replace(" ", ""), str(list(given)).replace(" ", ""))
    ), f"does not name the shape {given}: {message}"


@pytest.fixture(autouse=True)
def without_executed_annotations(monkeypatch):
    """Users run without the type checks of the tests, with implicit promotion, and this test needs whole tracebacks."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with jax.numpy_dtype_promotion("standard"):
        filtering = jax.config.jax_traceback_filtering
        jax.config.update("jax_traceback_filtering", "off")
        yield
        jax.config.update("jax_traceback_filtering", filtering)


def reward(state, action, t):
    return jnp.sum(state) + jnp.sum(action)


SYSTEM = tasks.LinearQuadratic(jnp.eye(3), jnp.ones((3, 2)), horizon=5)
STATE, PLAN = jnp.zeros(3), jnp.zeros((5, 2))
MLP = awmkit.MLPPolicy(3, 2, width=4, horizon=5, key=KEY)
GAUSSIAN = awmkit.GaussianPolicy(3, 2, width=4, key=KEY)
RECURRENT = awmkit.GRUPolicy(3, 2, width=12, key=KEY)
BACKBONES = {
    "Transformer": awmkit.Transformer(12, 1, 3, key=KEY),
    "LinearStateSpace": awmkit.LinearStateSpace(12, 1, 12, key=KEY),
    "AbstractRecurrent": awmkit.LSTM(12, key=KEY),
}
MODELS = {
    "Markov": awmkit.Markov(3, 2, width=4, depth=1, horizon=5, key=KEY),
    "HWM": awmkit.HWM(3, 2, awmkit.GRU(12, key=KEY), key=KEY),
    "AWM": awmkit.AWM(3, 2, awmkit.GRU(12, key=KEY), key=KEY),
    "Anchored": awmkit.Anchored(awmkit.HWM(3, 2, awmkit.GRU(12, key=KEY), key=KEY), every=4),
}
REWARD = awmkit.RewardModel(3, 2, width=4, depth=1, horizon=5, key=KEY)
TERMINATION = awmkit.TerminationModel(3, 2, width=4, depth=1, horizon=5, key=KEY)
TASKS = (
    SYSTEM,
    tasks.CreditAssignment(5),
    tasks.Discretised(tasks.BearPopulations(), 5),
    tasks.DoublePendulum(),
    tasks.DrivenDoublePendulum(5),
    tasks.Henon(),
    tasks.Lorenz(),
    tasks.OneBounce(5),
    tasks.PartlyObserved(tasks.Discretised(tasks.BearPopulations(), 5, distractors=1), (0, 1, 2)),
    tasks.PassiveDoublePendulum(5),
    awmkit.mjx.pendulum(5),
)
EPISODE = {"states": "H+1 S", "actions": "H A"}
EPISODES = {"states": "* H+1 S", "actions": "* H A", "rewards": "* H"}
STARTS = {"states": "N S", "actions": "N H A"}


def core_rows():
    awm = awmkit.AWM(3, 2, awmkit.GRU(12, key=KEY), key=KEY)
    plan = {"state": "S", "actions": "5 A"}
    run = lambda state, actions, t: awmkit.unroll(SYSTEM, actions, state, 5, reward=reward, t=t).states
    yield "unroll", Row(run, {**plan, "t": ""}, "6 S")
    rest = lambda state, first, memory: awmkit.unroll(awm, PLAN, state, 5, t=2, carry=((memory,), first)).states
    yield "unroll, carry", Row(rest, {"state": "S", "first": "S", "memory": "W"}, "6 S")
    grad = lambda state, actions, discount: awmkit.unroll_grad(SYSTEM, actions, state, 5, reward=reward, discount=discount)[1]
    yield "unroll_grad", Row(grad, {**plan, "discount": ""}, "5 A")
    picard = lambda start: awmkit.unroll(awm, MLP, STATE, 5, method=awmkit.Parallel(awmkit.Picard(), start=start)).states
    yield "Parallel", Row(picard, {"start": "5 A"}, "6 S")
    newton = lambda start: awmkit.unroll(SYSTEM, MLP, STATE, 5, method=awmkit.Newton(start=start)).states
    yield "Newton", Row(newton, {"start": "6 S"}, "6 S")
    yield "Picard.solve", Row(lambda x, unit: awmkit.Picard().solve(jnp.cos, x, unit=unit)[0], {"x": "H D", "unit": ""}, "H D")
    paths = awmkit.Paths(0.5, 0.5, 0.5)
    for method in (paths.to_policy, paths.feed_back, paths.to_model):
        yield f"Paths.{method.__name__}", Row(lambda x, method=method: method(x), {"x": "*"}, "*")
    yield "AbstractDynamics.open_loop", Row(SYSTEM.open_loop, {"state": "S", "actions": "H A"}, "H S")
    segment = lambda state, actions: SYSTEM.rollout_segment(None, state, actions, 0)[1]
    yield "AbstractDynamics.rollout_segment", Row(segment, {"state": "S", "actions": "B A"}, "B S")
    norm, by_step = awmkit.Normaliser(3), awmkit.Normaliser(3, per_step=True)
    by_step = eqx.tree_at(lambda n: n.shift, by_step, jnp.zeros((6, 3)))
    yield "Normaliser.__call__", Row(norm, {"x": "* S"}, "* S")
    yield "Normaliser.__call__, by step", Row(by_step, {"x": "* 6 S"}, "* 6 S")
    yield "Normaliser.inverse", Row(norm.inverse, {"y": "* S"}, "* S")
    yield "Normaliser.fitted", Row(lambda data: norm.fitted(data).shift, {"data": "* S"}, "S")
    yield "Normaliser.fitted, by step", Row(lambda data: by_step.fitted(data).shift, {"data": "N T S"}, "T S")
    yield "Normaliser.at", Row(lambda t: by_step.at(t).shift, {"t": "*"}, "* S")
    returns = lambda rewards, discount: Trajectory(None, None, rewards).returns(discount)  # pyright: ignore[reportArgumentType]
    yield "Trajectory.returns", Row(returns, {"rewards": "* H", "discount": ""}, "*")
    mean = Trajectory(jnp.zeros((6, 3)), PLAN).mean_over_steps
    bounds = {"actions": "* 2", "low": "2 | ", "high": "2 | "}
    for scale in (awmkit.scale_actions, awmkit.unscale_actions):
        traced = lambda actions, low, high, scale=scale: scale(actions, low, high)
        yield scale.__name__, Row(traced, bounds, "* 2")
    yield "Trajectory.mean_over_steps", Row(mean, {"values": "5 | 5 D | 5 D P"}, "")
    episode = {"states": "n+1 D", "actions": "n P", "rewards": "n"}
    made = lambda **x: Trajectory.from_episodes([x]).states
    yield "Trajectory.from_episodes", Row(made, episode, "1 n+1 D", numpy=True)
    joined = lambda **x: Trajectory.concatenate([Trajectory(**x)]).states
    yield "Trajectory.concatenate", Row(joined, {name: f"N {shape}" for name, shape in episode.items()}, "N n+1 D")


def learning_rows():
    whole = {"states": "N H+1 S", "actions": "N H A", "rewards": "N H"}

    def error(**x):
        try:
            awmkit.prediction_error(REWARD, Trajectory(**x))
        except ValueError as error:
            if "on the host" not in str(error):
                raise

    yield "learning.prediction_error", Row(error, whole)
    for model in (REWARD, MODELS["Markov"], SYSTEM):

        def fit(model=model, **x):
            try:
                awmkit.fit(model, Trajectory(**x), key=KEY, progress=NoProgress())
            except ValueError as error:  # It cannot be traced, and says so after it has checked the shapes.
                if "from Python" not in str(error):
                    raise

        yield f"learning.fit, {type(model).__name__}", Row(fit, whole)
    empty = lambda **x: awmkit.Replay.empty(9, Trajectory(**x)).steps.state
    yield "Replay.empty", Row(empty, {"states": "H+1 D", "actions": "H P", "rewards": "H"}, "9 D")
    replay = awmkit.Replay.empty(50, jax.eval_shape(lambda: Trajectory(jnp.ones((6, 3)), PLAN, jnp.ones(5))))
    stored = {"states": "N 6 S", "actions": "N 5 A", "rewards": "N 5"}
    yield "Replay.add", Row(lambda **x: replay.add(Trajectory(**x)).steps.state, stored, "50 S")
    options = {"reward": reward, "horizon": 4, "updates": 1, "key": KEY, "progress": NoProgress()}

    def improve(**x):
        with contextlib.suppress(jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError):
            awmkit.improve(MODELS["Markov"], MLP, ascent=awmkit.FullHorizon(entropy=0.0), **options, **x)

    yield "learning.improve", Row(improve, {"starts": "N S"})
    planner = awmkit.Planner(SYSTEM, reward, 5, search=awmkit.CEM(4, 2, 1))
    yield "Planner.__call__", Row(planner, {"state": "S", "t": ""}, "A")
    act = lambda memory, state, t: planner.step(memory, state, t)[1]
    yield "Planner.step", Row(act, {"memory": "5 A", "state": "S", "t": ""}, "A")
    critic = awmkit.Critic(3, 5, width=4, key=KEY)
    yield "Critic.__call__", Row(critic, {"state": "S", "t": ""}, "")
    any_size = {"states": "N H+1 D", "actions": "N H P", "rewards": "N H"}
    yield "FullHorizon.init", Row(lambda **x: awmkit.FullHorizon().init(MLP, Trajectory(**x), key=KEY), any_size)
    short = awmkit.ShortHorizon(critic, length=2)
    yield "ShortHorizon.init", Row(lambda **x: short.init(MLP, Trajectory(**x), key=KEY), {**any_size, "states": "N H+1 S"})
    scale = lambda **x: ascents.init_ascent_state(awmkit.FullHorizon(), MLP, Trajectory(**x)).return_scale
    yield "learning.ascents.init_ascent_state", Row(scale, any_size, "")


def task_rows():
    for task in TASKS:
        name, S, A = type(task).__name__, f"{task.state_size}", f"{task.action_size}"
        carry = task.init(jnp.zeros(task.state_size), 5)
        step = lambda state, action, t, task=task, carry=carry: task.step(carry, state, action, t, key=KEY)[1]
        yield f"{name}.step", Row(step, {"state": S, "action": A, "t": ""}, S)
        if isinstance(task, awmkit.AbstractTask):
            yield f"{name}.reward", Row(task.reward, {"state": S, "action": A, "t": ""}, "")
    hidden = tasks.CreditAssignment(5, hidden=True)
    yield "CreditAssignment.init", Row(lambda state: hidden.init(state, 5), {"state": "2"}, "")
    in_part = tasks.PartlyObserved(tasks.Discretised(tasks.BearPopulations(), 5, distractors=1), (0, 1, 2))
    yield "PartlyObserved.init", Row(lambda state: in_part.init(state, 5)[0], {"state": "3"}, "1")
    discretised, pendulum = tasks.Discretised(tasks.BearPopulations(), 5), tasks.DoublePendulum(tasks.Circles())
    yield "Discretised.control", Row(discretised.control, {"action": "2"}, "2")
    yield "MJXTask.complete", Row(awmkit.mjx.pendulum(5).complete, {"state": "2"}, "2")
    episode = {"states": "H+1 3", "actions": "H 2"}
    yield "Discretised.clipped", Row(lambda **x: discretised.clipped(Trajectory(**x)), episode, "H 3")
    yield "Discretised.report", Row(lambda **x: discretised.report(Trajectory(**x)).value, {**episode, "rewards": "H"}, "")
    for coordinates in (tasks.Angles(), tasks.Circles()):
        name, size = type(coordinates).__name__, f"{coordinates.size}"
        yield f"{name}.encode", Row(coordinates.encode, {"angles": "4"}, size)
        yield f"{name}.decode", Row(coordinates.decode, {"state": size}, "4")
        yield f"{name}.heights", Row(coordinates.heights, {"state": size}, "2")
    for method in (pendulum.flow, pendulum.field):
        yield f"DoublePendulum.{method.__name__}", Row(method, {"angles": "4", "torques": "2"}, "4")
    yield "DoublePendulum.rods", Row(pendulum.rods, {"state": "6"}, "3 2")
    yield "DoublePendulum.energy", Row(pendulum.energy, {"state": "6"}, "")
    yield "AbstractPendulumTask.rods", Row(tasks.DrivenDoublePendulum(5).rods, {"state": "4"}, "3 2")
    for problem in (problem() for problem in tasks.MYRIAD):  # pyright: ignore[reportCallIssue]
        name, sizes = type(problem).__name__, {"x": f"{len(problem.x0)}", "u": f"{len(problem.u_bounds)}", "t": ""}
        yield f"{name}.field", Row(problem.field, sizes, sizes["x"])
        yield f"{name}.cost", Row(problem.cost, sizes, "")
        if type(problem).final_cost is not tasks.AbstractControlProblem.final_cost:
            yield f"{name}.final_cost", Row(problem.final_cost, {"x": sizes["x"]}, "")
    yield "AbstractControlProblem.final_cost", Row(tasks.Glucose().final_cost, {"x": "2"}, "")
    step = lambda state, slope, dt: tasks.ode_step(lambda t, x, args: slope, state, None, solver=diffrax.Euler(), dt=dt)
    yield "tasks.ode_step", Row(step, {"state": "D", "slope": "D", "dt": ""}, "D")
    matrices = {"A": "N N", "B": "N D", "Q": "N N", "R": "D D"}
    yield "LinearQuadratic", Row(lambda **x: tasks.LinearQuadratic(**x).Q, matrices, "N N")
    yield "tasks.spiral", Row(lambda **x: tasks.spiral(**x).A, {"rate": "", "angle": ""}, "2 2")


def gym_rows():
    env, envs = awmkit.gym.TaskEnv(SYSTEM, time_aware=False), awmkit.gym.TaskVectorEnv(SYSTEM, 4, time_aware=False)

    envs.reset(seed=0)
    collect = lambda actions: awmkit.gym.collect(env, actions, 1, key=KEY, progress=NoProgress()).states
    learner = awmkit.baselines.FunctionalEnv.from_warmup(
        SYSTEM, Trajectory(jnp.ones((2, 6, 3)), jnp.ones((2, 5, 2)), jnp.ones((2, 5))), 1.0, squash=jnp.tanh, limit=5.0
    )
    whole = {"states": "N 6 S", "actions": "N 5 A", "rewards": "N 5"}
    made = lambda **x: type(learner).from_warmup(SYSTEM, Trajectory(**x), 1.0, squash=jnp.tanh, limit=5.0).reward_shift
    yield "FunctionalEnv.from_warmup", Row(made, whole, "5")
    yield "FunctionalEnv.transitions", Row(lambda **x: learner.transitions(Trajectory(**x)).obs, whole)
    yield "FunctionalEnv.observe", Row(learner.observe, {"state": "S", "t": ""}, "5")
    episode = learner.reset(KEY)[1]
    yield "FunctionalEnv.step", Row(lambda action: learner.step(KEY, episode, action)[0], {"action": "A"}, "5")
    ends = lambda next_state, width: awmkit.gym.healthy("Hopper-v5", width)(None, None, 0, next_state)
    yield "gym.healthy", Row(ends, {"next_state": "11", "width": ""}, "")
    yield "gym.collect", Row(collect, {"actions": "5 A"}, "1 6 S", numpy=True)
    yield "TaskEnv.step", Row(lambda action: env.reset(seed=0) and env.step(action)[0], {"action": "A"}, "S", numpy=True)
    yield "TaskVectorEnv.step", Row(lambda actions: envs.step(actions)[0], {"actions": "4 A"}, "4 S", numpy=True)
    host = awmkit.gym.GymnasiumTask(env)
    yield (
        "GymnasiumTask.collect",
        Row(lambda actions: host.collect(actions, 1, key=KEY).states, {"actions": "5 A"}, "1 6 S", numpy=True),
    )
    reset = lambda env: lambda state: env.reset(seed=0, options={"state": state})[0]
    yield "TaskEnv.reset", Row(reset(env), {"state": "S"}, "S", numpy=True)
    yield "TaskVectorEnv.reset", Row(reset(envs), {"state": "4 S | S"}, "4 S", numpy=True)


def model_rows():
    for name, model in MODELS.items():
        carry = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(lambda m=model: m.init(STATE, 5)))
        step = lambda state, action, t, m=model, carry=carry: m.step(carry, state, action, t)[1]
        yield f"{name}.step", Row(step, {"state": "S", "action": "A", "t": ""}, "S")
        yield f"{name}.teacher_forced", Row(model.teacher_forced, EPISODE, "H S")
        yield f"{name}.residual_base", Row(model.residual_base, {"states": "H+1 S"}, "H S")
    for name in ("HWM", "AWM", "Anchored"):
        yield f"{name}.init", Row(lambda state, m=MODELS[name]: m.init(state, 5), {"state": "S"})
    markov, awm = MODELS["Markov"], MODELS["AWM"]
    cached = awmkit.AWM(3, 2, BACKBONES["Transformer"], key=KEY)
    of = lambda method: lambda states, actions: method(Trajectory(states, actions))
    whole = {"states": "N H+1 S", "actions": "N H A"}
    segment = lambda state, actions: awm.rollout_segment(awm.init(STATE, 9), state, actions, 0)[1]
    yield "AWM.rollout_segment", Row(segment, {"state": "S", "actions": "B A"}, "B S")
    yield "AWM.resize_carry", Row(lambda x, y: cached.resize_carry(([(x, y)], STATE), 9)[1], {"x": "T 3 4", "y": "T 3 4"}, "S")
    remembers = awmkit.HWM(3, 2, BACKBONES["Transformer"], key=KEY)
    yield "HWM.resize_carry", Row(lambda x, y: remembers.resize_carry([(x, y)], 9)[0][0], {"x": "T 3 4", "y": "T 3 4"})
    yield "AbstractWorldModel.decode", Row(markov.decode, {"outputs": "* S", "base": "* S | S", "t": "* | "}, "* S")
    normal = lambda mean, deviation, **x: markov.decode(awmkit.Gaussian(mean, deviation), **x).deviation
    of_two = {"mean": "* S", "deviation": "* S", "base": "* S | S", "t": "* | "}
    yield "AbstractWorldModel.decode, Gaussian", Row(normal, of_two, "* S")
    yield "GaussianHead.__call__", Row(lambda outputs: awmkit.GaussianHead(lambda x: x)(outputs).mean, {"outputs": "6"}, "3")
    yield "AbstractWorldModel.loss", Row(of(markov.loss), EPISODE, "")
    yield "AbstractWorldModel.prediction", Row(of(markov.prediction), EPISODE, "H S")
    yield (
        "AbstractWorldModel.target",
        Row(lambda states: markov.target(Trajectory(states, PLAN)), {"states": "* H+1 S"}, "* H S"),
    )
    yield (
        "AbstractWorldModel.normalised",
        Row(of(lambda x: markov.normalised(x).input_norm.shift), whole, "S"),
    )
    yield "AWM.normalised", Row(of(lambda x: awm.normalised(x).input_norm.shift), whole, "S")
    yield "Anchored.normalised", Row(of(lambda x: MODELS["Anchored"].normalised(x).input_norm.shift), whole, "S")
    ensemble = awmkit.Ensemble([markov, markov], "step")
    start = lambda ensemble: ensemble.init(STATE, 9)
    step = lambda state, action, t: ensemble.step(start(ensemble), state, action, t, key=KEY)[1]
    yield "Ensemble.step", Row(step, {"state": "S", "action": "A", "t": ""}, "S")
    yield "Ensemble.init", Row(lambda state: ensemble.init(state, 5), {"state": "S"})
    awms = awmkit.Ensemble([awm, awm])
    segment = lambda state, actions: awms.rollout_segment(start(awms), state, actions, 0)[1]
    yield "Ensemble.rollout_segment", Row(segment, {"state": "S", "actions": "B A"}, "B S")
    yield "Ensemble.disagreement", Row(ensemble.disagreement, EPISODE, "H")
    yield "Ensemble.loss", Row(of(ensemble.loss), EPISODE, "")
    yield "Ensemble.prediction", Row(of(ensemble.prediction), EPISODE, "H S")
    yield "Ensemble.target", Row(lambda states: ensemble.target(Trajectory(states, PLAN)), {"states": "* H+1 S"}, "* H S")
    yield "Ensemble.normalised", Row(of(lambda x: ensemble.normalised(x).models.input_norm.shift), whole, "2 S")
    pessimistic = awmkit.PessimisticReward(reward, ensemble)
    yield "PessimisticReward.__call__", Row(pessimistic, {"state": "S", "action": "A", "t": "", "next_state": "S"}, "")
    yield "RewardModel.__call__", Row(REWARD, {"state": "S", "action": "A", "t": "", "next_state": "S"}, "")
    both = lambda method: lambda states, actions, rewards: method(Trajectory(states, actions, rewards))
    yield "RewardModel.target", Row(both(REWARD.target), EPISODES, "* H 1")
    yield "RewardModel.loss", Row(both(REWARD.loss), {**EPISODE, "rewards": "H"}, "")
    yield "RewardModel.prediction", Row(of(REWARD.prediction), EPISODE, "H 1")
    yield "TerminationModel.__call__", Row(TERMINATION, {"state": "S", "action": "A", "t": "", "next_state": "S"}, "")
    at_any = {"states": "* H+1 S", "actions": "* H A"}
    yield "TerminationModel.target", Row(of(TERMINATION.target), at_any, "* H 1")
    yield "TerminationModel.loss", Row(of(TERMINATION.loss), EPISODE, "")
    yield "TerminationModel.prediction", Row(of(TERMINATION.prediction), EPISODE, "H 1")
    yield "TerminationModel.normalised", Row(of(lambda x: TERMINATION.normalised(x).input_norm.shift), whole, "S")
    of_many = {name: spec.replace("*", "N") for name, spec in EPISODES.items()}
    yield "RewardModel.normalised", Row(both(lambda x: REWARD.normalised(x).input_norm.shift), of_many, "S")


def backbone_rows():
    shapes = {"Transformer": "T 3 4", "LinearStateSpace": "W", "AbstractRecurrent": "W"}
    for name, backbone in BACKBONES.items():
        memory = jax.eval_shape(lambda b=backbone: b.init(jnp.zeros(12), 7))
        built = lambda x, y, memory=memory: jax.tree.unflatten(jax.tree.structure(memory), [x, y])
        step = lambda x, y, token, b=backbone, built=built: b.step(built(x, y), token, 0)[1]
        append = lambda x, y, tokens, b=backbone, built=built: b.append(built(x, y), tokens, 0)[1]
        of_memory = {"x": shapes[name], "y": shapes[name]}
        yield f"{name}.init", Row(lambda first, b=backbone: b.init(first, 5), {"first": "W"})
        yield f"{name}.step", Row(step, {**of_memory, "token": "W"}, "W")
        yield f"{name}.append", Row(append, {**of_memory, "tokens": "B W"}, "B W")
    resize = lambda x, y: BACKBONES["Transformer"].resize([(x, y)], 9)[0][0]
    kept = lambda x, y, tokens: BACKBONES["Transformer"].append([(x, y)], tokens, 0)[0][0][0]
    yield "Transformer.append, memory", Row(kept, {"x": "T 3 4", "y": "T 3 4", "tokens": "B W"}, "T 3 4")
    yield "Transformer.resize", Row(resize, {"x": "T 3 4", "y": "T 3 4"})
    yield "AbstractBackbone.__call__", Row(BACKBONES["AbstractRecurrent"], {"first": "W", "tokens": "H W"}, "H W")

    def attend(q, k, v):
        with contextlib.suppress(RuntimeError):  # Here is no GPU.
            return awmkit.CuDNNAttention()(q, k, v)

    yield "CuDNNAttention.__call__", Row(attend, {"q": "T N D", "k": "U N D", "v": "U N D"})


def policy_rows():
    seen = {"state": "S", "t": ""}
    yield "MLPPolicy.__call__", Row(MLP, seen, "A")
    yield "GaussianPolicy.__call__", Row(lambda state, t: GAUSSIAN(state, t, key=KEY), seen, "A")
    yield "GaussianPolicy.mode", Row(GAUSSIAN.mode, seen, "A")
    yield "GaussianPolicy.gaussian", Row(lambda state, t: GAUSSIAN.gaussian(state, t)[1], seen, "A")
    yield "GaussianPolicy.log_prob", Row(GAUSSIAN.log_prob, {**seen, "action": "A"}, "")
    remembered = {"hidden": "W", "last_action": "A", **seen}
    step = lambda hidden, last_action, state, t: RECURRENT.step((hidden, last_action), state, t, key=KEY)[1]
    yield "GRUPolicy.step", Row(step, remembered, "A")
    entropy = lambda hidden, last_action, state, t: RECURRENT.entropy((hidden, last_action), state, t, key=KEY)
    yield "GRUPolicy.entropy", Row(entropy, remembered, "")
    yield "GaussianPolicy.entropy", Row(lambda state, t: GAUSSIAN.entropy(state, t, key=KEY), seen, "")


def analysis_rows():
    plan = {"state": "S", "actions": "H A"}
    yield "analysis.action_jacobian", Row(lambda **x: analysis.action_jacobian(SYSTEM, **x).blocks, plan, "H+1 H S A")
    yield "analysis.hop_spectrum", Row(lambda **x: analysis.hop_spectrum(SYSTEM, **x, hops=1).parts, plan, "3 H+1 H S A")
    returns = lambda **x: analysis.hop_spectrum(SYSTEM, **x, reward=reward, hops=1).parts
    yield "analysis.hop_spectrum, return", Row(returns, {**plan, "discount": ""}, "3 H 1 A")
    hops = lambda state, discount: analysis.policy_hop_spectrum(SYSTEM, MLP, state, 5, reward=reward, hops=1, discount=discount)
    yield "analysis.policy_hop_spectrum", Row(hops, {"state": "S", "discount": ""})
    yield "analysis.lyapunov", Row(lambda **x: analysis.lyapunov(SYSTEM, **x).running, plan, "H 1")
    sweeps = lambda **x: analysis.newton_sweeps(SYSTEM, **x, horizon=5).exponents
    yield "analysis.newton_sweeps", Row(sweeps, {"states": "N S", "policy": "5 A"}, "N")
    cut = lambda state, actions, span, discount: analysis.landscape(
        SYSTEM, actions, state, 5, reward=reward, points=3, key=KEY, span=span, discount=discount
    )
    yield "analysis.landscape", Row(cut, {"state": "S", "actions": "5 A", "span": "", "discount": ""})
    along = lambda direction: (
        analysis.landscape(SYSTEM, PLAN, STATE, 5, reward=reward, directions=[direction], points=3, key=KEY).values
    )
    yield "analysis.landscape, direction", Row(along, {"direction": "5 A"}, "3")
    yield "analysis.gradient_growth", Row(lambda **x: analysis.gradient_growth(SYSTEM, **x), STARTS)
    growth = lambda **x: analysis.gradient_growth([SYSTEM], **x, reward=reward)
    yield "analysis.gradient_growth, return", Row(growth, {**STARTS, "discount": ""})
    yield (
        "analysis.report",
        Row(lambda **x: analysis.report(SYSTEM, **x, reward=reward, key=KEY, truth=SYSTEM, progress=NoProgress()), STARTS),
    )
    true = lambda states, actions, sigma, discount: analysis.true_gradient(
        SYSTEM, actions, states, reward=reward, key=KEY, sigma=sigma, discount=discount, pairs=2
    )
    yield "analysis.true_gradient", Row(true, {"states": "N S", "actions": "H A", "sigma": "", "discount": ""})
    fields = {"exact": "n N P", "smoothed": "n N P", "horizons": "n", "states": "N S"}
    rest = {"standard_error": None, "standard_error_of_mean": None, "reward": reward, "discount": 1.0, "key": KEY, "sigma": 0.1}
    truth = lambda **x: analysis.TrueGradient(**x, **rest, policy=MLP, pairs=2)
    yield "analysis.fidelity", Row(lambda **x: analysis.fidelity(SYSTEM, truth(**x)), fields)
    yield "analysis.fit_growth", Row(analysis.fit_growth, {"horizons": "n", "norms": "n"}, numpy=True)
    ends = {"value": "*", "low": "*", "high": "*"}
    yield "Interval.format", Row(lambda **x: analysis.Interval(**x).format(), ends, numpy=True)


def score_rows():
    task = tasks.Discretised(tasks.CancerTreatment(), 100)
    yield "scores.gap_closed", Row(lambda returns: scores.gap_closed(task, returns), {"returns": "*"}, "*", numpy=True)
    yield "scores.normalised", Row(lambda returns: scores.normalised(task, returns), {"returns": "*"}, "*", numpy=True)
    yield "scores.iqm", Row(scores.iqm, {"scores": "*"}, "", numpy=True)
    pair = {"x": "N T", "y": "B T"}
    yield "scores.probability_of_improvement", Row(scores.probability_of_improvement, pair, "", numpy=True)
    one = lambda x: scores.interval(scores.iqm, x, resamples=2).value
    yield "scores.interval", Row(one, {"x": "N T"}, "", numpy=True)
    two = lambda x, y: scores.interval(scores.probability_of_improvement, x, y, resamples=2).value
    yield "scores.interval, two", Row(two, pair, "", numpy=True)
    cell = lambda x: scores.table({"AWM": {"CancerTreatment": x}}, 100)
    yield "scores.table", Row(cell, {"x": "N"}, numpy=True)


def plot_rows():
    new = lambda: Figure().subplots()
    draw = lambda function, result: lambda axes=new(), **x: function(result(**x), axes=axes) and None
    growth = lambda **x: analysis.GradientGrowth("state", **x, law=None)
    yield "plot.growth", Row(draw(plot.growth, growth), {"horizons": "n", "norms": "n N"}, numpy=True)
    yield "plot.jacobian", Row(draw(plot.jacobian, analysis.ActionJacobian), {"blocks": "H+1 H D P"}, numpy=True)
    spectrum = lambda parts: analysis.HopSpectrum(parts, 1)
    yield "plot.hops", Row(draw(plot.hops, spectrum), {"parts": "* N B D P"}, numpy=True)
    exponents = lambda running: analysis.Lyapunov(running, running)
    yield "plot.exponents", Row(draw(plot.exponents, exponents), {"running": "T D | N T D"}, numpy=True)
    cut = {"coordinates": "n", "values": "n | n n"}
    sweeps = lambda **x: analysis.NewtonSweeps(**x, horizon=20)
    yield "plot.sweeps", Row(draw(plot.sweeps, sweeps), dict.fromkeys(("sweeps", "exponents", "settled"), "n"), numpy=True)
    yield "plot.landscape", Row(draw(plot.landscape, analysis.Landscape), cut, numpy=True)

    def agreement(horizons, value, low, high):
        of = analysis.Interval(value, low, high)
        both = analysis.Agreement(of, of, of, of)
        return analysis.Fidelity(both, both, of, of, value, horizons)

    ends = {"horizons": "n", "value": "n", "low": "n", "high": "n"}
    yield "plot.fidelity", Row(draw(plot.fidelity, agreement), ends, numpy=True)


PARTS = (
    core_rows,
    model_rows,
    backbone_rows,
    policy_rows,
    learning_rows,
    task_rows,
    gym_rows,
    analysis_rows,
    score_rows,
    plot_rows,
)
ROWS = dict(row for part in PARTS for row in part())


@pytest.mark.parametrize("name", ROWS)
def test_only_the_documented_shapes_are_accepted_and_an_error_says_which_was_given(name):
    row, sizes = ROWS[name], {**SIZES, "*": (4,)}
    valid = {argument: shape_of(spec, sizes) for argument, spec in row.shapes.items()}
    found = run(row, valid)
    assert row.result is None or found is None or found == shape_of(row.result, sizes)
    for kind in ("lists", "whole numbers"):
        try:
            found = run(row, valid, kind)
        except ValueError as error:
            check_message(error, None)
        else:
            assert row.result is None or found is None or found == shape_of(row.result, sizes)
    silent, resized = [], False
    for argument in valid:
        for shape in others(valid[argument]):
            given = {**valid, argument: shape}
            sizes = sizes_of(row.shapes, given)
            if sizes is not None and (row.numpy or resized):
                continue  # Once is enough.
            resized = resized or sizes is not None
            try:
                found = run(row, given)
            except ValueError as error:
                # A size that a caller chooses may be too small, as one seed is for an interval.
                check_message(error, shape if sizes is None else None)
            else:
                if sizes is None:
                    silent.append(f"{argument} of shape {shape}")
                elif row.result is not None and found is not None:
                    assert found == shape_of(row.result, sizes)
    assert not silent, f"accepted {silent}"


RESULTS = {
    *(
        "ActionJacobian",
        "Agreement",
        "AscentState",
        "Baseline",
        "ControlReport",
        "Entry",
        "Evaluation",
        "Fidelity",
        "FitResult",
        "FunctionalEnv",
        "Gaussian",
    ),
    *(
        "GradientGrowth",
        "HopSpectrum",
        "Hops",
        "Interval",
        "Landscape",
        "Lyapunov",
        "Metrics",
        "NewtonSweeps",
        "PredictionError",
        "Replay",
        "Report",
        "Sweeps",
        "TrainResult",
    ),
    *("TrainState", "Trajectory", "TrueGradient", "UpdateInfo"),
}
"""Classes whose fields are arrays that awmkit itself computes. The functions that take such an object check its arrays."""

NO_ARRAYS = {
    # A key, settings, files, or arrays of any shape.
    *(
        "AWM.from_dynamics",
        "Paths.recall",
        "AbstractAttention.check",
        "Gaussian.sample",
        "CuDNNAttention.check",
        "HopSpectrum.beyond",
        "Replay.grown",
        "Replay.sample",
        "Replay.starts",
        "Replay.visited",
        "FullHorizon.check",
        "FitResult.best",
        "ImproveResult.best",
        "TrainResult.best",
        "Trajectory.filled",
        "Trajectory.padded",
        "learning.evaluate",
        "Warmup.actions",
        "CreditAssignment",
        "Discretised",
        "MJXTask",
    ),
    *(
        "baselines.ppo",
        "baselines.sac",
        "fingerprint",
        "learning.load",
        "learning.load_episodes",
        "learning.minari.create_dataset",
        "learning.save_episodes",
        "learning.read_header",
        "learning.save",
        "learning.versions",
    ),
    *(
        "learning.held_actions",
        "learning.pink_actions",
        "learning.uniform_actions",
        "learning.train",
        "mjx.cartpole",
        "mjx.double_pendulum",
        "mjx.pendulum",
    ),
    *(
        "plot.colours",
        "plot.report",
        "plot.style",
        "plot.swept",
        "learning.number",
        "scores.reference",
        "AbstractAscent.check",
        "ShortHorizon.check",
    ),
    *(
        "JSONLines.__call__",
        "JSONLines.begin_run",
        "TensorBoard.__call__",
        "TensorBoard.begin_run",
        "Metrics.row",
        "Report.json",
    ),
    *("NoProgress.start", "TqdmProgress.start", "MJXTask.from_gymnasium", "TaskEnv.render", "TaskVectorEnv.render"),
    *("FunctionalEnv.reset", "FunctionalEnv.action_space", "FunctionalEnv.observation_space", "AbstractRecurrent.initial"),
    *("LSTM.initial", *(f"{type(task).__name__}.reset" for task in TASKS if hasattr(task, "reset")), "GymnasiumTask.reset"),
    # Only look at whether t is 0, or raise for every argument.
    *("methods.default_method", "GymnasiumTask.init", "GymnasiumTask.step", "GymnasiumTask.reward"),
    # Takes numbers, or arrays of them in a sweep.
    "Paths",
    # Ignore their arguments.
    *("AbstractPolicy.init", "AbstractPolicy.__call__", "GRUPolicy.init"),
    *("AbstractDynamics.init", "AbstractDynamics.resize_carry", "AbstractBackbone.resize", "MJXTask.init"),
    *("AbstractBackbone.sequences_at_a_time", "Transformer.sequences_at_a_time", "AbstractTrainable.normalised"),
    *(
        "Ensemble.episodes_at_a_time",
        "Ensemble.resize_carry",
        "AbstractDynamics.episodes_at_a_time",
        "AWM.episodes_at_a_time",
        "HWM.episodes_at_a_time",
        "Anchored.episodes_at_a_time",
    ),
    *("AbstractMethod.episodes_at_a_time", "Parallel.episodes_at_a_time"),
    # Called with arguments that a public function has checked.
    *(
        "AbstractPolicy.step",
        "AbstractBackbone.append",
        "GRU.update",
        "LSTM.update",
        "RNN.update",
        "Newton.run",
        "Parallel.run",
        "Sequential.run",
        "FullHorizon.update",
    ),
    *(
        "ShortHorizon.update",
        "AscentState.entropy_weight",
        "CEM.optimise",
        "GradientSearch.optimise",
        "Planner.init",
        "learning.ascents.policy_step",
        "learning.ascents.trainable_gradient",
        "Optimiser.init",
        "Optimiser.update",
    ),
}


def test_every_public_function_is_in_the_table_or_takes_no_arrays():
    found, rows = public().keys(), {name.split(",")[0] for name in ROWS}
    others = RESULTS | NO_ARRAYS
    assert not found - rows - others, sorted(found - rows - others)
    assert not (rows | NO_ARRAYS) - found, sorted((rows | NO_ARRAYS) - found)
    assert not others & rows
