"""A fingerprint describes everything that decides a result, and equal trees have equal fingerprints."""

import collections
import dataclasses
import enum
import functools
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Optional

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from beartype import beartype
from gymnasium.envs.mujoco.hopper_v5 import HopperEnv
from gymnasium.wrappers import NormalizeObservation, StickyAction, TransformReward
from jaxtyping import jaxtyped
from misuse import says
from systems import DYNAMICS

from awmkit._fingerprint import first_difference
from awmkit.gym import GymnasiumTask, TaskEnv
from awmkit.learning import fingerprint
from awmkit.tasks import OneBounce

RATE, TABLE = 0.5, {"small": (1, 2.0)}


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Pair(NamedTuple):
    first: Any
    second: Any


def _grow(x):
    return RATE * x + len(TABLE)


class Spring(eqx.Module):
    stiffness: Any
    name: str = eqx.field(static=True, default="spring")
    unit: ClassVar[float] = 1.0

    def force(self, x):
        return -self.stiffness * _grow(x) * self.unit

    @eqx.filter_jit
    def energy(self, x):
        return self.stiffness * x**2


class Plain:
    def __init__(self, value):
        self.value = value

    def get(self):
        return self.value


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value


class Env(gymnasium.Env):
    def __init__(self, mass=1.0):
        self.mass, self.observation_space, self.action_space = mass, *(gymnasium.spaces.Box(-1, 1, (1,)) for _ in range(2))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.position = 0, self.np_random.normal(size=1)
        return self.position, {}

    def step(self, action):
        self.steps += 1
        return self.position, 0.0, False, False, {}


def _scale(k):
    return lambda x: k * x


def _vjp(k):
    fn = jax.custom_vjp(lambda x: x)
    fn.defvjp(lambda x: (x, None), lambda _, c: (k * c,))
    return fn


def _checked(k):
    @beartype
    def checked(x: np.ndarray) -> np.ndarray:
        return k * x

    return checked


def _made(k):
    env = gymnasium.make("Pendulum-v1")
    env.unwrapped.g = k
    return env


# Each builds a tree from a number. The trees of two numbers give different results.
BUILDERS: dict[str, Callable[[float], Any]] = {
    "number": lambda k: {"a": [k]},
    "complex": lambda k: complex(0, k),
    "key of a dict": lambda k: {k: 1},
    "part of a key of a dict": lambda k: {(1, k): 1},
    "part of a set": lambda k: {(1, k), (2, 2)},
    "long list": lambda k: [*range(200), k],
    "text": str,
    "bytes": lambda k: bytes(str(k), "ascii"),
    "set": lambda k: {"a", k},
    "path": lambda k: Path(f"x{k}"),
    "NumPy array": lambda k: np.array([1.0, k]),
    "NumPy array of objects": lambda k: np.array(["a", {"k": k}], object),
    "NumPy scalar": np.float32,
    "large array": lambda k: jnp.zeros((50, 2)).at[30, 1].set(k),
    "bfloat16": lambda k: jnp.array(k, jnp.bfloat16),
    "random key": lambda k: jax.random.key(int(k)),
    "random generator": lambda k: np.random.default_rng(int(k)),
    "module": Spring,
    "array of a module": lambda k: Spring(jnp.array(k)),
    "static field": lambda k: Spring(1.0, f"{k}"),
    "method of a module": lambda k: Spring(k).force,
    "compiled method": lambda k: Spring(k).energy,
    "dataclass": lambda k: dataclasses.make_dataclass("Point", ["x"])(k),
    "named tuple": lambda k: Pair(1, k),
    "object": Plain,
    "object with slots": Slotted,
    "method": lambda k: Plain(k).get,
    "method of a list": lambda k: [k].append,
    "deque": lambda k: collections.deque([k]),
    "default dict": lambda k: collections.defaultdict(list, {1: k}),
    "compiled pattern": lambda k: re.compile(f"{k}"),
    "closure": _scale,
    "default value": lambda k: lambda x, k=k: k * x,
    "constant in the code": lambda k: eval(f"lambda x: {k} * x"),
    "set in the code": lambda k: eval(f"lambda x: x in {{'a', 'b', 'c', {k}}}"),
    "code of an inner function": lambda k: eval(f"lambda x: (lambda y: {k} * y)(x)"),
    "partial": lambda k: functools.partial(max, k),
    "partial of Equinox": lambda k: eqx.Partial(jnp.add, k),
    "jit": lambda k: jax.jit(_scale(k)),
    "filter_jit": lambda k: eqx.filter_jit(_scale(k)),
    "vmap of grad": lambda k: jax.vmap(jax.grad(_scale(k))),
    "custom_vjp": _vjp,
    "checks of types": _checked,
    "checks of shapes": lambda k: jaxtyped(typechecker=beartype)(_checked(k).__wrapped__),
    "cache": lambda k: functools.cache(_scale(k)),
    "adam": optax.adam,
    "schedule": lambda k: optax.adam(optax.cosine_decay_schedule(1.0, 100, k)),
    "chain": lambda k: optax.chain(optax.clip_by_global_norm(k), optax.adam(1e-3)),
    "inject_hyperparams": lambda k: optax.inject_hyperparams(optax.adam)(1e-3, b1=k),
    "masked": lambda k: optax.masked(optax.adam(1e-3), {"a": k > 2}),
    "multi_transform": lambda k: optax.multi_transform({"a": optax.sgd(k), "b": optax.adam(1.0)}, {"x": "a"}),
    "MultiSteps": lambda k: optax.MultiSteps(optax.adam(k), 3),
    "environment": Env,
    "wrapped environment": lambda k: TransformReward(Env(), _scale(k)),
    "wrapper that does not record its arguments": lambda k: StickyAction(_made(1.0), 0.5, int(k)),
    "attribute of an environment made by its id": _made,
    "task of an environment": lambda k: GymnasiumTask(TaskEnv(OneBounce(2, wall=-k))),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_a_changed_number_anywhere_changes_the_fingerprint_and_an_equal_tree_has_an_equal_one(name):
    build = BUILDERS[name]
    first, again, other = (fingerprint({"tree": build(k)}) for k in (2.0, 2.0, 3.0))
    assert first == again and " at 0x" not in str(first)
    path, before, after = first_difference(first, other)
    assert before != after and "tree" in path


DIFFERENT = [
    (True, 1, 1.0, "1", b"1", np.float64(1), jnp.array(1), None, Colour.RED, Colour.BLUE),
    ([1, 2], (1, 2), (1, 2, 3), {1, 2}, {0: 1, 1: 2}, {"0": 1, "1": 2}, Pair(1, 2), np.array([1, 2]), np.array([1, 2], "int8")),
    (0.0, -0.0, float("nan"), float("inf"), 1e-320),
    (np.zeros((2, 1)), np.zeros((1, 2)), np.zeros((0, 2)), np.zeros((0, 3)), np.zeros(2)),
    tuple(
        np.zeros(9, dtype) for dtype in (float, int, ">f8", "U1", ml_dtypes.bfloat16, ml_dtypes.int4, ml_dtypes.float8_e4m3fn)
    ),
    (jnp.tanh, jnp.sin, np.tanh, jax.nn.relu, jax.nn.gelu, jnp.add, np.add, abs, Spring, Plain, Colour),
    (Any, Optional, Callable[[int], float], Callable[[float], float]),
    (jnp.dtype("float32"), jnp.dtype("float64"), jnp.float32),
    (jax.random.key(0), jax.random.key(0, impl="rbg"), jax.random.key_data(jax.random.key(0))),
    (collections.OrderedDict(a=1, b=2), collections.OrderedDict(b=2, a=1), {"a": 1, "b": 2}),
]


@pytest.mark.parametrize("trees", DIFFERENT)
def test_trees_of_different_types_have_different_fingerprints(trees):
    assert len({str(fingerprint(tree)) for tree in trees}) == len(trees)
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})


def test_a_function_is_described_with_the_globals_and_the_classes_that_it_uses(monkeypatch):
    before = fingerprint(lambda x: Spring(2.0).force(x))
    for target, name, value in ((globals(), "RATE", 0.6), (globals(), "TABLE", {"small": (1, 3.0)})):
        with monkeypatch.context() as patch:
            patch.setitem(target, name, value)
            assert first_difference(before, fingerprint(lambda x: Spring(2.0).force(x)))[0].startswith(f"global {name}")
    for name, value in (("unit", 2.0), ("force", lambda self, x: x)):
        with monkeypatch.context() as patch:
            patch.setattr(Spring, name, value)
            assert first_difference(before, fingerprint(lambda x: Spring(2.0).force(x)))[0].startswith(f"class Spring.{name}")
    assert before == fingerprint(lambda x: Spring(2.0).force(x))


def test_the_modules_of_the_user_that_a_function_reads_are_described(tmp_path, monkeypatch):
    (tmp_path / "own_settings.py").write_text("import own_values as values\nRATE = 1\nOTHER = 2\n")
    (tmp_path / "own_values.py").write_text("import own_settings as settings\nWIDTH = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    import own_settings

    def imported(x):
        from own_settings import RATE

        return RATE * x

    for fn in (lambda x: own_settings.RATE * x, imported, functools.partial(setattr, own_settings), {"module": own_settings}):
        before = fingerprint(fn)
        with monkeypatch.context() as patch:
            patch.setattr(own_settings, "RATE", 5)
            path, *values = first_difference(before, fingerprint(fn))
            assert path.endswith("RATE") and values == ["1", "5"]
    deep = lambda x: own_settings.values.settings.values.WIDTH * x
    before = fingerprint(deep)
    monkeypatch.setattr(own_settings, "OTHER", 5)
    assert fingerprint(deep) == before  # It does not read it.
    monkeypatch.setattr(own_settings.values, "WIDTH", 5)
    assert first_difference(before, fingerprint(deep)) == ("global own_settings.values.WIDTH", "3", "5")


@pytest.mark.parametrize("name", ["Markov", "bears, with noise", "AWM from the pendulum", "one bounce"])
def test_dynamics_that_are_built_twice_have_one_fingerprint(name):
    assert fingerprint(DYNAMICS[name]()) == fingerprint(DYNAMICS[name]())


def test_a_tree_that_contains_itself_has_a_fingerprint():
    def endless():
        loop = [1]
        loop.append(loop)
        recurse = lambda x: recurse(x - 1) if x else 0
        return loop, recurse

    assert fingerprint(endless()) == fingerprint(endless())


def test_a_function_that_cannot_run_yet_has_a_fingerprint():
    def unfinished():
        import no_such_module

        return no_such_module, later

    assert fingerprint(unfinished)["later"] == "None"
    later = 1
    assert fingerprint(unfinished)["later"] == "1"


def test_what_cannot_be_described_is_refused_unless_it_has_a_label():
    class Labelled:
        def __init__(self, label):
            self.lock, self.label = threading.Lock(), label

        def __fingerprint__(self):
            return self.label

    for unknown in (threading.Lock(), (x for x in "ab"), iter([1])):
        says(
            lambda unknown=unknown: fingerprint({"a": [unknown]}),
            r"\['a'\]\[0\] is a .* give its class a method __fingerprint__",
        )
    says(lambda: jax.jit(lambda x: fingerprint([x]))(1.0), "is a traced array")
    assert fingerprint(Labelled("1")) == fingerprint(Labelled("1")) != fingerprint(Labelled("2"))


def test_an_environment_with_running_statistics_is_refused_until_they_are_frozen():
    """A checkpoint does not have them, so a resumed run would see states of another scale."""
    env = NormalizeObservation(Env())
    says(lambda: fingerprint(GymnasiumTask(env, horizon=2)), "env is a NormalizeObservation, whose running statistics")
    env.update_running_mean = False
    before = fingerprint(env)
    env.obs_rms.mean = env.obs_rms.mean + 1.0
    assert first_difference(before, fingerprint(env))[0] == "obs_rms.mean"


def test_an_environment_has_one_fingerprint_before_and_after_its_episodes():
    for env in (Env(), gymnasium.make("Pendulum-v1"), StickyAction(Env(), 0.5), TaskEnv(OneBounce(2)), HopperEnv()):
        before = fingerprint(GymnasiumTask(env, horizon=2))
        env.reset(seed=3)
        env.action_space.sample()
        env.step(np.zeros(env.action_space.shape, np.float32))
        if env.spec is not None:
            env.unwrapped.screen = threading.Lock()  # An open window cannot be described.
        assert fingerprint(GymnasiumTask(env, horizon=2)) == before
