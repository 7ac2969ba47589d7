"""Any tree is loaded exactly as it was saved, into a tree of the same structure only, and a damaged file is never loaded."""

import collections
import dataclasses
import enum
import hashlib
import json
import os
import platform
import stat
import sys
import threading
import types
import warnings
from collections.abc import Callable
from importlib.metadata import Distribution, PackageNotFoundError
from typing import Any, NamedTuple

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import ml_dtypes
import numpy as np
import optax
import pytest
import reach
from hypothesis import given, strategies as st
from misuse import says
from systems import DYNAMICS, POLICIES

from awmkit import FitResult, Markov, Normaliser, RewardModel, save, TerminationModel, Trajectory, versions
from awmkit.gym import GymnasiumTask
from awmkit.learning import fingerprint, load, read_header

NARROW = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.int4, ml_dtypes.uint4
DTYPES = "bool", "int8", "uint64", "float16", "float32", "float64", "complex64", *NARROW
SHAPES = (), (0,), (3,), (1, 1), (2, 0, 3)


Counts = collections.defaultdict  # JAX keeps its default and its keys in the structure of a tree.


class Pair(NamedTuple):
    first: Any
    second: Any


@dataclasses.dataclass
class Plain:
    value: Any


class Node(eqx.Module):
    child: Any
    activation: Callable
    options: Any = eqx.field(static=True)


def _scale(k):
    return lambda x: k * x


def _array(dtype, shape, seed, make):
    bits = np.random.default_rng(seed).integers(0, 2, (*shape, np.dtype(dtype).itemsize), np.uint8)
    array = np.ndarray(shape, dtype, bytearray(bits.tobytes()))
    return jnp.array(array) if make == "jax" else array if make == "numpy" else array.ravel()[0] if array.size else array


def _task(horizon):
    return GymnasiumTask(gymnasium.make("Pendulum-v1"), horizon=horizon)


def _markov(predict_changes):
    return Markov(2, 1, width=8, depth=1, key=jax.random.key(0), predict_changes=predict_changes)


KEYS = st.builds(
    lambda seed, impl: jax.random.key(seed, impl=impl), st.integers(0, 9), st.sampled_from(["threefry2x32", "rbg"])
)
NUMBERS = st.one_of(st.booleans(), st.integers(), st.floats(), st.complex_numbers())
ARRAYS = st.builds(_array, *map(st.sampled_from, (DTYPES, SHAPES, range(9), ("jax", "numpy", "scalar"))))
FUNCTIONS = st.one_of(st.sampled_from([jax.nn.relu, jax.nn.gelu, jnp.tanh]), st.builds(_scale, st.sampled_from([1.0, 2.0])))
OPTIONS = st.one_of(st.none(), st.booleans(), st.integers(-2, 2), st.sampled_from([0.0, -0.0, "a", "b", (1, "x")]))
TREES = st.recursive(
    st.one_of(KEYS, NUMBERS, ARRAYS, st.none()),
    lambda inner: st.one_of(
        st.builds(Node, inner, FUNCTIONS, OPTIONS),
        st.builds(Pair, inner, inner),
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["0", "a", "b"]), inner, max_size=3),
        st.dictionaries(st.integers(0, 2), inner, max_size=3),
    ),
    max_leaves=8,
)


def _exact(leaf):
    """The type, dtype, shape and bytes of a leaf; other leaves as they are."""
    if not eqx.is_array_like(leaf):
        return leaf
    array = jax.random.key_data(leaf) if eqx.is_array(leaf) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    kind = "jax" if isinstance(leaf, jax.Array) else type(leaf)
    return (kind, repr(leaf)) if not hasattr(leaf, "dtype") else (kind, leaf.dtype, leaf.shape, np.asarray(array).tobytes())


def _blank(leaf):
    """A leaf of the same type with another value."""
    if isinstance(leaf, jax.Array):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    if isinstance(leaf, np.ndarray | np.generic):
        return np.zeros_like(leaf)[()] if isinstance(leaf, np.generic) else np.zeros_like(leaf)
    return type(leaf)(0) if isinstance(leaf, bool | int | float | complex) else leaf


@given(tree=TREES, other=TREES)
def test_any_tree_is_loaded_as_it_was_saved_and_into_no_other_tree(tmp_path_factory, tree, other):
    path = tmp_path_factory.mktemp("saved") / "tree"
    save(path, tree)
    for like in (tree, jtu.tree_map(_blank, tree)):
        loaded = load(path, like)
        assert jtu.tree_structure(loaded) == jtu.tree_structure(tree)
        assert list(map(_exact, jtu.tree_leaves(loaded))) == list(map(_exact, jtu.tree_leaves(tree)))
    for changed in (Node(tree, jax.nn.relu, 1), [tree, 0]):
        says(lambda changed=changed: load(path, changed), "does not fit the tree given")
    save(path, Node(tree, jax.nn.relu, 1))
    wrong = (Node(tree, jax.nn.gelu, 1), Node(tree, jax.nn.relu, 1.0), Node((tree,), jax.nn.relu, 1), Node(tree, _scale(1), 1))
    for changed in wrong:
        says(lambda changed=changed: load(path, changed), "does not fit the tree given: its (activation|options|child)")
    shapes = [(str(jtu.tree_structure(t)), [str(_exact(_blank(x))) for x in jtu.tree_leaves(t)]) for t in (tree, other)]
    if other is not None and shapes[0] != shapes[1] and not any(callable(x) for t in (tree, other) for x in jtu.tree_leaves(t)):
        save(path, tree)
        says(lambda: load(path, other), "does not fit the tree given")


@pytest.mark.parametrize(
    ("saved", "given", "message"),
    [
        (
            _markov(True),
            _markov(False),
            "its predict_changes is True, and the tree given has False; build that with the arguments",
        ),
        (Node(1.0, _scale(2.0), 3), Node(1.0, _scale(4.0), 3), "its activation.k is 2.0, and the tree given has 4.0"),
        ({"0": 1.0, "1": 2.0}, {0: 1.0, 1: 2.0}, r"its \['0'\] is float, and the tree given has missing"),
        ([jnp.ones(2), 1], (jnp.ones(2), 1), "its type is list, and the tree given has tuple"),
        ({"a": Node(jnp.ones(2), abs, 0)}, {"a": jnp.ones(2)}, r"its \['a'\] is Node, and the tree given has missing"),
        (None, 1.0, "its type is None, and the tree given has missing"),
        (jnp.ones(2, "int4"), jnp.ones(2, "uint4"), r"its type is int4\[2\], and the tree given has uint4\[2\]"),
        (jnp.ones((1, 1)), jnp.ones(1), r"its type is float64\[1, 1\], and the tree given has float64\[1\]"),
        (np.ones(2, ">f8"), np.ones(2), r"its type is >f8\[2\], and the tree given has float64\[2\]"),
        (
            collections.OrderedDict(a=1.0, b=2.0),
            collections.OrderedDict(b=1.0, a=2.0),
            "its type is OrderedDict of 'a', 'b', and",
        ),
        (Counts(list, a=1.0), Counts(int, a=1.0), "its structure.0. is class list, and the tree given has class int"),
        (Counts(list, a=1.0), Counts(list, b=1.0), "its structure.1.* is 'a', and the tree given has 'b'"),
        (_task(2), _task(3), "its horizon is 2, and the tree given has 3"),
        (True, 1, "its type is bool, and the tree given has int"),
        (jax.random.key(0), jax.random.key(0, impl="rbg"), r"its type is key<fry>\[\], and the tree given has key<rbg>\[\]"),
        (jtu.Partial(jnp.add, 1.0), jtu.Partial(jnp.subtract, 1.0), "its func is jax.add, and the tree given has jax.subtract"),
    ],
)
def test_load_names_the_first_field_that_differs(saved, given, message, tmp_path):
    save(tmp_path / "tree", saved)
    says(lambda: load(tmp_path / "tree", given), message)
    assert str(jtu.tree_leaves(load(tmp_path / "tree", saved))) == str(jtu.tree_leaves(saved))


EPISODES = Trajectory(jnp.ones((4, 4, 2)), jnp.ones((4, 3, 1)), jnp.ones((4, 3)), length=jnp.array([1, 2, 3, 3]))
RESULTS = {
    **{f"dynamics, {name}": make for name, make in DYNAMICS.items()},
    **{f"policy, {name}": lambda make=make: make(2, 1) for name, make in POLICIES.items()},
    "a reward model": lambda: RewardModel(2, 1, width=4, key=jax.random.key(0)),
    "a termination model": lambda: TerminationModel(2, 1, width=4, key=jax.random.key(0)),
    "a normaliser": lambda: Normaliser(2, per_step=True),
    "episodes": lambda: EPISODES,
    "a result of fit": lambda: FitResult(_markov(True), jnp.ones(3), None, 0.5),
    "a result of train": lambda: reach.run(jax.random.split(jax.random.key(3))),
    "keys, functions and an optimiser's state": lambda: {
        "keys": [jax.random.key(1), jax.random.split(jax.random.key(1, impl="rbg"))],
        "functions": Node((jax.nn.gelu, jnp.tanh, jax.nn.relu, jax.nn.silu, jax.nn.elu, jnp.sin), _by_name, reach.make),
        "state": optax.chain(optax.clip(1.0), optax.adam(1e-3)).init(jnp.ones(2)),
        "others": (np.float32(1), np.ones(3, ">f4"), 2.5, True, 1j, None, Pair(1, [2]), jnp.ones((2, 0), "bfloat16")),
    },
    "settings": lambda: Node(
        0, jnp.abs, (np.dtype(int), float("inf"), 1j, Pair, Node, Colour.RED, Plain(np.arange(1)), "é", -0.0)
    ),
}


class Colour(enum.Enum):
    RED = 1


_by_name = lambda x: x  # noqa: E731


@pytest.mark.parametrize("name", RESULTS)
def test_a_file_says_what_its_tree_is(name, tmp_path):
    tree = RESULTS[name]()
    save(tmp_path / "tree", tree)
    loaded = load(tmp_path / "tree")
    assert fingerprint(loaded) == fingerprint(tree) and jtu.tree_structure(loaded) == jtu.tree_structure(
        load(tmp_path / "tree")
    )
    assert list(map(_exact, jtu.tree_leaves(loaded))) == list(map(_exact, jtu.tree_leaves(tree)))


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a": Node(1.0, lambda x: x, 0)}, r"its \['a'\].activation is a lambda inside a function; pass like="),
        ([_scale(2.0)], r"its \[0\] is a lambda inside a function"),
        (Node(1.0, os.system, 0), "its activation is posix.system, which no module of your own"),
        (Node(1.0, jtu.Partial(jnp.add, 1.0), 0), "its activation is a Partial"),
        (Counts(list, a=1.0), "its type is a defaultdict"),
        (Node(1.0, abs, threading.Lock()), "its options is a lock|its activation is builtins.abs"),
        (Node(1.0, jnp.abs, Plain(np.zeros(20_000))), "its options.value is a static array without values"),
    ],
)
def test_what_a_file_cannot_say_is_named_by_its_path(tree, message, tmp_path):
    save(tmp_path / "tree", tree)
    says(lambda: load(tmp_path / "tree"), message)
    assert jtu.tree_structure(load(tmp_path / "tree", tree)) == jtu.tree_structure(tree)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"function": "os:system"}, "has os.system as its activation, and os is not imported"),
        ({"function": "builtins:eval"}, "has builtins.eval as its activation"),
        ({"function": "awmkit:os.system"}, "its activation is awmkit.os.system, which does not exist"),
        ({"function": "awmkit._files:os.replace"}, "its activation is awmkit._files.os.replace, which does not exist"),
        ({"class": "awmkit._files:Path"}, "its activation is pathlib.Path, which a file may not name"),
        ({"function": "jax.nn:missing"}, "its activation is jax.nn.missing, which does not exist"),
        ({"function": "jax.missing:relu"}, "jax.missing.relu, which cannot be imported"),
        ({"function": "antigravity:fly"}, "and antigravity is not imported; import it first"),
        ({"function": "my_models:act"}, "has my_models.act as its activation, and my_models is not imported; import it first"),
        ({"function": "awmkit:Markov"}, "is awmkit:Markov, which is another thing by now"),
        ({"object": "jax.nn:relu", "fields": {}}, "is jax.nn:relu, which is another thing by now"),
        ({"object": "equinox:Enumeration", "fields": {}}, "another thing by now"),
        ({"tuple of": "awmkit:Markov", "items": []}, "is awmkit:Markov, which is another thing by now"),
    ],
)
def test_a_file_cannot_name_what_is_not_a_class_or_function_of_a_model(change, message, tmp_path):
    """Not even one that was written to do harm. Nothing is called, and no module of another kind is imported."""
    path = tmp_path / "tree"
    save(path, Node(1.0, jnp.tanh, 0))
    line, _, rest = path.read_bytes().split(b"\n", 2)
    header = json.loads(line)
    header["tree"]["fields"]["activation"] = change
    line = json.dumps(header).encode() + b"\n"
    path.write_bytes(line + hashlib.sha256(line).hexdigest().encode() + b"\n" + rest)
    says(lambda: load(path), message)
    assert "antigravity" not in sys.modules
    del header["tree"]
    line = json.dumps(header).encode() + b"\n"
    path.write_bytes(line + hashlib.sha256(line).hexdigest().encode() + b"\n" + rest)
    says(lambda: load(path), "was saved by an older awmkit, and does not say what its tree is; pass like=")
    assert load(path, Node(0.0, jnp.tanh, 0)).child == 1.0


def test_an_array_of_doubles_is_not_rounded_when_it_is_loaded(tmp_path):
    save(tmp_path / "tree", np.array([1 / 3]))
    like = jax.ShapeDtypeStruct((1,), np.float64)
    assert load(tmp_path / "tree", like)[0] == 1 / 3
    with jax.enable_x64(False), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX warns of the rounding.
        says(lambda: load(tmp_path / "tree", like), "has a float64 array; load it with jax.config.update")


def test_no_file_with_a_flipped_bit_is_loaded(tmp_path):
    path, tree = tmp_path / "tree", (Node(np.arange(200.0), abs, "x"), {"n": 5, "on": True, "key": jax.random.key(1)})
    save(path, tree, config={"rate": 0.125})
    whole, random = path.read_bytes(), np.random.default_rng(0)
    for bit in [*range(0, 80, 3), *random.integers(8 * len(whole), size=200)]:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        says(lambda: load(path, tree), "was damaged after|was not written by awmkit.save")
    for damaged in (whole[:-1], whole + b"\0", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        says(lambda: load(path, tree), "was damaged after")


def test_a_class_of_a_script_is_the_same_class_when_it_is_imported(tmp_path):
    """So a model that a script saved can be loaded by another that imports the script."""
    script = "import equinox as eqx\nclass Own(eqx.Module):\n    x: float\n    n: int = eqx.field(static=True, default=1)\n"
    for name in ("__main__", "own_models"):
        module = types.ModuleType(name)
        exec(script, vars(module))
        save(tmp_path / name, module.Own(1.0)) if name == "__main__" else load(tmp_path / "__main__", module.Own(2.0))
        says(lambda module=module: load(tmp_path / "__main__", module.Own(1.0, 2)), "its n is 1, and the tree given has 2")


def test_functions_are_compared_by_name_only_if_another_python_wrote_the_file(tmp_path, monkeypatch):
    save(tmp_path / "tree", Node(1.0, lambda x: x, 0))
    same_name = Node(1.0, lambda x: x + 1, 0)
    says(lambda: load(tmp_path / "tree", same_name), "its activation code is sha256")
    monkeypatch.setattr(platform, "python_version", lambda: "3.99.0")
    assert load(tmp_path / "tree", same_name).child == 1.0
    says(lambda: load(tmp_path / "tree", Node(1.0, jnp.tanh, 0)), "its activation is function")
    says(lambda: load(tmp_path / "tree", Node(1.0, lambda x: x, 1)), "its options is 0, and the tree given has 1")


def test_a_field_that_a_class_got_later_is_accepted_only_if_the_versions_differ(tmp_path, monkeypatch):
    """A new version of a package may give a class a static field with a default value; its old files can still be loaded."""
    module = types.ModuleType("own_models")
    script = "import equinox as eqx\nclass Own(eqx.Module):\n    x: float\n    n: int = eqx.field(static=True, default=1)\n"
    for later in ("", "    new: bool = eqx.field(static=True, default=True)\n"):
        exec(script + later, vars(module))
        save(tmp_path / "tree", module.Own(2.0)) if not later else None
    says(lambda: load(tmp_path / "tree", module.Own(1.0)), "its new is missing, and the tree given has True")
    monkeypatch.setattr("awmkit.learning._checkpoint.version", lambda name: "0.0")
    monkeypatch.delitem(sys.modules, "diffrax", raising=False)
    assert load(tmp_path / "tree", module.Own(1.0)).x == 2.0
    says(lambda: load(tmp_path / "tree", module.Own(1.0, 2)), "its n is 1, and the tree given has 2")


def test_what_cannot_be_described_is_saved_beside_the_arrays(tmp_path):
    """A lock in a static field does not keep a model from being saved."""
    tree = Node(jnp.arange(2.0), abs, threading.Lock())
    save(tmp_path / "tree", tree)
    assert load(tmp_path / "tree", tree).child.tolist() == [0, 1]
    says(
        lambda: load(tmp_path / "tree", Node(jnp.arange(2.0), abs, 1)), "its options is _thread.lock, and the tree given has 1"
    )
    for unsaved in (np.array([{}], object), jax.ShapeDtypeStruct((2,), float)):
        says(lambda unsaved=unsaved: save(tmp_path / "objects", unsaved), "save got an array of objects, or the shape")
    says(lambda: jax.jit(lambda x: save(tmp_path / "traced", x))(1.0), "is a traced array")


def test_a_save_through_a_link_writes_its_target_and_keeps_the_permissions(tmp_path):
    target, link = tmp_path / "folder" / "target", tmp_path / "link"
    target.parent.mkdir()
    link.symlink_to(target)
    save(link, 1.0)
    target.chmod(0o640)
    save(link, 2.0)
    assert link.is_symlink() and load(target, 0.0) == load(link, 0.0) == 2.0
    assert stat.S_IMODE(target.stat().st_mode) == 0o640 and os.listdir(target.parent) == ["target"]


def test_a_config_must_be_strict_json(tmp_path):
    for value in (float("nan"), float("inf"), {1j}):
        says(lambda value=value: save(tmp_path / "tree", 1.0, config={"x": value}), "The config cannot be written as JSON")
    save(tmp_path / "tree", 1.0, config={"x": [1, None]})
    first_line = (tmp_path / "tree").read_bytes().partition(b"\n")[0]
    assert json.loads(first_line)["config"] == read_header(tmp_path / "tree")["config"] == {"x": [1, None]}


def test_versions_are_those_of_the_imported_packages_installed_or_not(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    import diffrax  # noqa: F401

    before = versions()
    monkeypatch.setattr(Distribution, "from_name", missing)
    assert versions() == before
    monkeypatch.delitem(sys.modules, "diffrax", raising=False)
    assert versions() == {**before, "diffrax": "unknown"}
