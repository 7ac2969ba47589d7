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

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from matplotlib.figure import Figure

import awmkit
import awmkit.analysis as analysis
import awmkit.gym
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


def run(row: Row, shapes: dict[str, tuple[int, ...]]) -> tuple[int, ...] | None:
    """Return the shape of the result; `None` if the function went on to read values, which are unknown."""
    if row.numpy:
        return np.shape(row.call(**{name: np.linspace(0.5, 0.9, math.prod(s)).reshape(s) for name, s in shapes.items()}))
    arrays = {name: jax.ShapeDtypeStruct(shape, int if name == "t" else float) for name, shape in shapes.items()}
    try:
        return getattr(eqx.filter_eval_shape(row.call, **arrays), "shape", None)
    except (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError):
        return None


def check_message(error: ValueError, given: tuple[int, ...] | None) -> None:
    """Raise unless the error comes from awmkit and is one sentence that contains the shape that was given."""
    message, source = str(error), traceback.extract_tb(error.__traceback__)[-1].filename
    assert Path(source).is_relative_to(Path(awmkit.__file__).parent), f"raised in {source}: {message}"
    assert "\n" not in message and message.endswith(".") and len(message) < 600, message
    assert given is None or any(str(x) in message for x in (given, list(given))), f"does not name the shape {given}: {message}"


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
BACKBONES = {
    "Transformer": awmkit.Transformer(12, 1, 3, key=KEY),
    "LinearStateSpace": awmkit.LinearStateSpace(12, 1, 12, key=KEY),
    "AbstractRecurrent": awmkit.LSTM(12, key=KEY),
}
MODELS = {
    "Markov": awmkit.Markov(3, 2, width=4, depth=1, horizon=5, key=KEY),
    "HWM": awmkit.HWM(3, 2, awmkit.GRU(12, key=KEY), key=KEY),
    "AWM": awmkit.AWM(3, 2, BACKBONES["Transformer"], key=KEY),
}
REWARD = awmkit.RewardModel(3, 2, width=4, depth=1, horizon=5, key=KEY)
TASKS = {
    "LinearQuadratic": SYSTEM,
}
EPISODE = {"states": "H+1 S", "actions": "H A"}
EPISODES = {"states": "* H+1 S", "actions": "* H A", "rewards": "* H"}
STARTS = {"states": "N S", "actions": "N H A"}


def model_rows():
    for name, model in MODELS.items():
        step = lambda state, action, t, m=model: m.step(m.init(STATE, 5), state, action, t)[1]
        yield f"{name}.step", Row(step, {"state": "S", "action": "A", "t": ""}, "S")
        yield f"{name}.teacher_forced", Row(model.teacher_forced, EPISODE, "H S")
        yield f"{name}.residual_base", Row(model.residual_base, {"states": "H+1 S"}, "H S")
    for name in ("HWM", "AWM"):
        yield f"{name}.init", Row(lambda state, m=MODELS[name]: m.init(state, 5), {"state": "S"})
    markov, awm = MODELS["Markov"], MODELS["AWM"]
    of = lambda method: lambda states, actions: method(Trajectory(states, actions))
    segment = lambda state, actions: awm.rollout_segment(awm.init(STATE, 9), state, actions, 0)[1]
    yield "AWM.rollout_segment", Row(segment, {"state": "S", "actions": "B A"}, "B S")
    yield "AWM.resize_carry", Row(lambda x, y: awm.resize_carry(([(x, y)], STATE), 9)[1], {"x": "T 3 4", "y": "T 3 4"}, "S")
    yield "AbstractWorldModel.decode", Row(markov.decode, {"outputs": "* S", "base": "* S | S", "t": "* | "}, "* S")
    yield "AbstractWorldModel.loss", Row(of(markov.loss), EPISODE, "")
    yield "AbstractWorldModel.prediction", Row(of(markov.prediction), EPISODE, "H S")
    yield (
        "AbstractWorldModel.target",
        Row(lambda states: markov.target(Trajectory(states, PLAN)), {"states": "* H+1 S"}, "* H S"),
    )
    yield (
        "AbstractWorldModel.normalised",
        Row(lambda states: markov.normalised(states).input_norm.shift, {"states": "N H+1 S"}, "S"),
    )
    yield "AWM.normalised", Row(lambda states: awm.normalised(states).input_norm.shift, {"states": "N H+1 S"}, "S")
    yield "RewardModel.__call__", Row(REWARD, {"state": "S", "action": "A", "t": "", "next_state": "S"}, "")
    both = lambda method: lambda states, actions, rewards: method(Trajectory(states, actions, rewards))
    yield "RewardModel.target", Row(both(REWARD.target), EPISODES, "* H 1")
    yield "RewardModel.loss", Row(both(REWARD.loss), {**EPISODE, "rewards": "H"}, "")
    yield "RewardModel.prediction", Row(of(REWARD.prediction), EPISODE, "H 1")
    yield "RewardModel.normalised", Row(both(lambda x: REWARD.normalised(x).input_norm.shift), EPISODES, "S")


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
    yield "GaussianPolicy.entropy", Row(lambda state, t: GAUSSIAN.entropy(state, t, key=KEY), seen, "")


def analysis_rows():
    plan = {"state": "S", "actions": "H A"}
    yield "action_jacobian", Row(lambda **x: analysis.action_jacobian(SYSTEM, **x).blocks, plan, "H+1 H S A")
    yield "hop_spectrum", Row(lambda **x: analysis.hop_spectrum(SYSTEM, **x, hops=1).parts, plan, "3 H+1 H S A")
    returns = lambda **x: analysis.hop_spectrum(SYSTEM, **x, reward=reward, hops=1).parts
    yield "hop_spectrum, return", Row(returns, {**plan, "discount": ""}, "3 H 1 A")
    hops = lambda state, discount: analysis.policy_hop_spectrum(SYSTEM, MLP, state, 5, reward=reward, hops=1, discount=discount)
    yield "policy_hop_spectrum", Row(hops, {"state": "S", "discount": ""})
    yield "lyapunov", Row(lambda **x: analysis.lyapunov(SYSTEM, **x).running, plan, "H 1")
    cut = lambda state, actions, span, discount: analysis.landscape(
        SYSTEM, actions, state, 5, reward=reward, points=3, key=KEY, span=span, discount=discount
    )
    yield "landscape", Row(cut, {"state": "S", "actions": "5 A", "span": "", "discount": ""})
    along = lambda direction: (
        analysis.landscape(SYSTEM, PLAN, STATE, 5, reward=reward, directions=[direction], points=3, key=KEY).values
    )
    yield "landscape, direction", Row(along, {"direction": "5 A"}, "3")
    yield "gradient_growth", Row(lambda **x: analysis.gradient_growth(SYSTEM, **x), STARTS)
    growth = lambda **x: analysis.gradient_growth([SYSTEM], **x, reward=reward)
    yield "gradient_growth, return", Row(growth, {**STARTS, "discount": ""})
    yield (
        "report",
        Row(lambda **x: analysis.report(SYSTEM, **x, reward=reward, key=KEY, truth=SYSTEM, progress=NoProgress()), STARTS),
    )
    true = lambda states, actions, sigma, discount: analysis.true_gradient(
        SYSTEM, actions, states, reward=reward, key=KEY, sigma=sigma, discount=discount, pairs=2
    )
    yield "true_gradient", Row(true, {"states": "N S", "actions": "H A", "sigma": "", "discount": ""})
    fields = {"exact": "n N P", "smoothed": "n N P", "horizons": "n", "states": "N S"}
    rest = {"standard_error": None, "standard_error_of_mean": None, "reward": reward, "discount": 1.0, "key": KEY, "sigma": 0.1}
    truth = lambda **x: analysis.TrueGradient(**x, **rest, policy=MLP, pairs=2)
    yield "fidelity", Row(lambda **x: analysis.fidelity(SYSTEM, truth(**x)), fields)
    yield "fit_growth", Row(analysis.fit_growth, {"horizons": "n", "norms": "n"}, numpy=True)
    ends = {"value": "*", "low": "*", "high": "*"}
    yield "Interval.format", Row(lambda **x: analysis.Interval(**x).format(), ends, numpy=True)


def score_rows():
    task = tasks.Discretised(tasks.CancerTreatment(), 100)
    yield "gap_closed", Row(lambda returns: scores.gap_closed(task, returns), {"returns": "*"}, "*", numpy=True)
    yield "normalised", Row(lambda returns: scores.normalised(task, returns), {"returns": "*"}, "*", numpy=True)
    yield "iqm", Row(scores.iqm, {"scores": "*"}, "", numpy=True)
    pair = {"x": "N T", "y": "B T"}
    yield "probability_of_improvement", Row(scores.probability_of_improvement, pair, "", numpy=True)
    one = lambda x: scores.interval(scores.iqm, x, resamples=2).value
    yield "interval", Row(one, {"x": "N T"}, "", numpy=True)
    two = lambda x, y: scores.interval(scores.probability_of_improvement, x, y, resamples=2).value
    yield "interval, two", Row(two, pair, "", numpy=True)
    cell = lambda x: scores.table({"AWM": {"CancerTreatment": x}}, 100)
    yield "table", Row(cell, {"x": "N"}, numpy=True)


def plot_rows():
    new = lambda: Figure().subplots()
    draw = lambda function, result: lambda axes=new(), **x: function(result(**x), axes=axes) and None
    growth = lambda **x: analysis.GradientGrowth("state", **x, law=None)
    yield "growth", Row(draw(plot.growth, growth), {"horizons": "n", "norms": "n N"}, numpy=True)
    yield "jacobian", Row(draw(plot.jacobian, analysis.ActionJacobian), {"blocks": "H+1 H D P"}, numpy=True)
    yield "hops", Row(draw(plot.hops, analysis.HopSpectrum), {"parts": "* N D P"}, numpy=True)
    exponents = lambda running: analysis.Lyapunov(running, running)
    yield "exponents", Row(draw(plot.exponents, exponents), {"running": "T D | N T D"}, numpy=True)
    cut = {"coordinates": "n", "values": "n | n n"}
    yield "plot.landscape", Row(draw(plot.landscape, analysis.Landscape), cut, numpy=True)

    def agreement(horizons, value, low, high):
        of = analysis.Interval(value, low, high)
        both = analysis.Agreement(of, of, of, of)
        return analysis.Fidelity(both, both, of, of, value, horizons)

    ends = {"horizons": "n", "value": "n", "low": "n", "high": "n"}
    yield "fidelity.plot", Row(draw(plot.fidelity, agreement), ends, numpy=True)


ROWS = dict([*model_rows(), *backbone_rows(), *policy_rows(), *analysis_rows(), *score_rows(), *plot_rows()])


@pytest.mark.parametrize("name", ROWS)
def test_only_the_documented_shapes_are_accepted_and_an_error_says_which_was_given(name):
    row, sizes = ROWS[name], {**SIZES, "*": (4,)}
    valid = {argument: shape_of(spec, sizes) for argument, spec in row.shapes.items()}
    found = run(row, valid)
    assert row.result is None or found is None or found == shape_of(row.result, sizes)
    silent = []
    for argument in valid:
        for shape in others(valid[argument]):
            given = {**valid, argument: shape}
            sizes = sizes_of(row.shapes, given)
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
