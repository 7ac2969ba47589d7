"""The package as a whole: what importing it imports, its public names, the README, and the direction of imports."""

import ast
import graphlib
import importlib
import importlib.metadata
import re
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import equinox as eqx
import jax
import pytest
from systems import DYNAMICS, POLICIES

import awmkit
import awmkit.analysis
import awmkit.gym
import awmkit.mjx
import awmkit.plot
import awmkit.scores
import awmkit.tasks
from awmkit import AbstractBackbone, AbstractDynamics, AbstractPolicy

ROOT = Path(__file__).parent.parent
MUTANTS = runpy.run_path(str(ROOT / "tests" / "mutate.py"))["MUTANTS"]
PACKAGE = Path(awmkit.__file__).parent
MODULES = {"awmkit." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
SOURCES = {path: ast.parse(path.read_text()) for path in [*MODULES.values(), *(ROOT / "examples").glob("*.py")]}


def _python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT / "tests").stdout


def _descendants(cls) -> set[type]:
    return {cls}.union(*map(_descendants, cls.__subclasses__()))


def test_importing_awmkit_imports_no_optional_package():
    code = (
        "import sys, awmkit, awmkit.tasks, awmkit.analysis; "
        "print(*({'mujoco', 'gymnasium', 'matplotlib', 'rejax', 'tensorboardX'} & set(sys.modules)))"
    )
    assert _python(code).split() == []


def test_every_class_is_abstract_or_final():
    for cls in _descendants(eqx.Module):
        if cls.__module__.startswith("awmkit") and not cls.__name__.startswith("Abstract"):
            assert not [c for c in cls.__subclasses__() if c.__module__.startswith("awmkit")], cls


def test_every_task_model_backbone_and_policy_has_a_row():
    dynamics = [make() for make in DYNAMICS.values()]
    rows = {type(d) for d in dynamics} | {type(getattr(d, "backbone", None)) for d in dynamics}
    rows |= {type(make(2, 1)) for make in POLICIES.values()}
    kinds = (AbstractDynamics, AbstractBackbone, AbstractPolicy)
    public = {cls for module in (awmkit, awmkit.tasks) for cls in vars(module).values() if isinstance(cls, type)}
    concrete = {cls for cls in public if issubclass(cls, kinds) and not cls.__name__.startswith("Abstract")}
    assert concrete - rows == {awmkit.tasks.DoublePendulum}  # Part of two others.


def _packages():
    """The front page, every package under it, and every public module."""
    fronts = [name.removesuffix(".__init__") for name, path in MODULES.items() if path.name == "__init__.py"]
    modules = [name for name in MODULES if not name.split(".")[-1].startswith("_")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # What rejax imports warns of its own.
        return [importlib.import_module(name) for name in sorted({*fronts, *modules})]


def test_every_package_and_public_module_lists_its_names_and_each_has_a_docstring():
    for module in _packages():
        assert module.__doc__ and len(set(module.__all__)) == len(module.__all__), module
        for name in module.__all__:
            thing = getattr(module, name)
            # A dataclass without a docstring gets its signature for one.
            assert not callable(thing) or not (thing.__doc__ or f"{name}(").startswith(f"{name}("), f"{module.__name__}.{name}"


def test_the_table_of_public_names_in_help_is_complete():
    table = awmkit.__doc__.split("| module |")[0]
    named = re.findall(r"`(\w+)`", table)
    assert sorted(named) == sorted(awmkit.__all__)
    modules = re.findall(r"`(awmkit\.[\w.]+)`", awmkit.__doc__)
    assert set(modules) >= {m.__name__ for m in _packages() if m.__name__.count(".") == 1} - {"awmkit"} - {
        f"awmkit.{part}" for part in ("learning", "methods", "models")
    }


@pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="a wheel brings no README")
def test_the_readme_example_runs_and_the_readme_promises_the_two_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo leaves its log where it is.
    readme = (ROOT / "README.md").read_text()
    code = re.findall(r"```python\n(.*?)```", readme, re.S)
    assert readme[: readme.index("```python")].count("\n") < 25 and "from awmkit import" in code[0]
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes.
        exec("\n".join(code).replace("5_000", "1_550"), {})  # The warm-up and one episode.
    assert 'pip install -e ".[all]" && python examples/double_pendulum.py' in readme
    assert 'pip install -e ".[all]" && pytest' in readme


def test_the_version_is_the_one_that_was_installed():
    assert awmkit.__version__ == importlib.metadata.version("awmkit") == awmkit.versions()["awmkit"]


def _imports(path: Path) -> set[str]:
    """Full names of what a file imports, wherever in it."""
    found, home = set(), ("awmkit", *path.parent.relative_to(PACKAGE).parts) if path.is_relative_to(PACKAGE) else ()
    for node in ast.walk(SOURCES[path]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = home[: len(home) + 1 - node.level] if node.level else ()
            found |= {".".join(filter(None, (*above, node.module, alias.name))) for alias in node.names}
    return found


def test_nothing_private_is_imported_and_annotations_are_never_postponed():
    assert not [path for path in SOURCES if path.stem == "utils"]
    foreign = re.compile(r"__future__\.annotations|equinox\.internal|(?!awmkit)\w+(\.\w+)*\._[a-z]")
    assert not [(path, name) for path in SOURCES for name in _imports(path) if foreign.match(name)]


ABOVE = [{"core", "methods"}, {"models", "tasks"}, {"analysis", "learning"}, {"mjx", "gym", "baselines", "plot", "scores"}]


def _layer(module: str) -> int:
    """How far up a module stands, by its folder; private files on the first floor are the core."""
    folder = module.split(".")[1]
    return next(i for i, layer in enumerate(ABOVE) if ("core" if folder.startswith("_") else folder) in layer)


def test_imports_run_downwards_and_in_no_cycle():
    files = {name.removesuffix(".__init__"): path for name, path in MODULES.items()}
    of = lambda name: name if name in files else name.rpartition(".")[0]  # A name is in its file.
    graph = {module: {of(name) for name in _imports(path)} & files.keys() for module, path in files.items()}
    for module in files:  # A package re-exports its files, and so stands above them.
        graph[module].discard(module)
    graph.pop("awmkit")
    tuple(graphlib.TopologicalSorter(graph).static_order())  # Raises where there is a cycle.
    edges = [(module, under) for module in graph for under in graph[module] if under != "awmkit"]
    upwards = [(module, under) for module, under in edges if _layer(under) > _layer(module)]
    assert len(edges) > 100 and not upwards


def test_every_mutant_still_breaks_something_and_its_test_is_there():
    for mutant in MUTANTS:
        ast.parse(mutant.broken(PACKAGE))
        file, test = mutant.test.split("[")[0].split("::")
        assert f"def {test}(" in (ROOT / "tests" / file).read_text(), mutant.breaks
