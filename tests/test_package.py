"""The whole package: optional imports, public names, the README's examples, layers of imports, and the mutants."""

import ast
import contextlib
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
        "print(*({'mujoco', 'gymnasium', 'matplotlib', 'rejax', 'tensorboardX', 'minari', 'h5py'} & set(sys.modules)))"
    )
    assert _python(code).split() == []


def test_every_class_is_abstract_or_final():
    for cls in _descendants(eqx.Module):
        if cls.__module__.startswith("awmkit") and not cls.__name__.startswith("Abstract"):
            assert not [c for c in cls.__subclasses__() if c.__module__.startswith("awmkit")], cls


def test_every_task_model_backbone_and_policy_is_in_the_conformance_table():
    dynamics = [make() for make in DYNAMICS.values()]
    rows = {type(d) for d in dynamics} | {type(getattr(d, "backbone", None)) for d in dynamics}
    rows |= {type(make(2, 1)) for make in POLICIES.values()}
    kinds = (AbstractDynamics, AbstractBackbone, AbstractPolicy)
    public = {cls for module in (awmkit, awmkit.tasks) for cls in vars(module).values() if isinstance(cls, type)}
    concrete = {cls for cls in public if issubclass(cls, kinds) and not cls.__name__.startswith("Abstract")}
    assert concrete - rows == {awmkit.tasks.DoublePendulum}  # A component of two tasks, whose rows cover it.


def _packages():
    """Import and return awmkit, all its subpackages and all its public modules."""
    fronts = [name.removesuffix(".__init__") for name, path in MODULES.items() if path.name == "__init__.py"]
    modules = [name for name in MODULES if not name.split(".")[-1].startswith("_")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Packages that rejax imports raise warnings.
        return [importlib.import_module(name) for name in sorted({*fronts, *modules})]


def test_every_public_module_has_a_complete_list_of_names_with_docstrings():
    for module in _packages():
        assert module.__doc__ and len(set(module.__all__)) == len(module.__all__), module
        for name in module.__all__:
            thing = getattr(module, name)
            # Python gives a dataclass without a docstring its signature as docstring.
            assert not callable(thing) or not (thing.__doc__ or f"{name}(").startswith(f"{name}("), f"{module.__name__}.{name}"


def test_the_table_of_public_names_in_help_is_complete():
    table = awmkit.__doc__.split("| module |")[0]
    named = re.findall(r"`(\w+)`", table)
    assert sorted(named) == sorted(awmkit.__all__)
    modules = re.findall(r"`(awmkit\.[\w.]+)`", awmkit.__doc__)
    assert set(modules) >= {m.__name__ for m in _packages() if m.__name__.count(".") == 1} - {"awmkit"} - {
        f"awmkit.{part}" for part in ("learning", "methods", "models")
    }


@pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="the wheel contains no README")
def test_the_readme_shows_the_two_commands_and_its_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes a log file to the working directory.
    readme = (ROOT / "README.md").read_text()
    code = re.findall(r"```python\n(.*?)```", readme, re.S)
    assert readme[: readme.index("```python")].count("\n") < 30 and "from awmkit import" in code[0]
    shorter = {
        "512": "8",
        "updates=400": "updates=3",
        "horizon=100": "horizon=10",
        "1_500, held": "20, held",
        "steps=5_000": "steps=40",
    }
    text = "\n".join(code)
    for long, short in shorter.items():
        assert long in text
        text = text.replace(long, short)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes.
        exec(text.replace("batch_size=12", "batch_size=2"), {})
    assert 'pip install -e ".[all]" && python examples/double_pendulum.py' in readme
    assert 'pip install -e ".[all]" && pytest' in readme


def test_the_version_equals_the_installed_version():
    assert awmkit.__version__ == awmkit.versions()["awmkit"]
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # It may be on the path and not installed.
        assert awmkit.__version__ == importlib.metadata.version("awmkit")


def _imports(path: Path) -> set[str]:
    """Return the full names of everything that a file imports, at any level of nesting."""
    found, home = set(), ("awmkit", *path.parent.relative_to(PACKAGE).parts) if path.is_relative_to(PACKAGE) else ()
    for node in ast.walk(SOURCES[path]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = home[: len(home) + 1 - node.level] if node.level else ()
            found |= {".".join(filter(None, (*above, node.module, alias.name))) for alias in node.names}
    return found


def test_no_file_imports_private_names_or_postponed_annotations():
    assert not [path for path in SOURCES if path.stem == "utils"]
    foreign = re.compile(r"__future__\.annotations|equinox\.internal|(?!awmkit)\w+(\.\w+)*\._[a-z]")
    assert not [(path, name) for path in SOURCES for name in _imports(path) if foreign.match(name)]


LAYERS = [{"core", "methods"}, {"models", "tasks"}, {"analysis", "learning"}, {"mjx", "gym", "baselines", "plot", "scores"}]


def _layer(module: str) -> int:
    """Return the index of a module's layer. Private modules directly in `awmkit` are the core."""
    folder = module.split(".")[1]
    return next(i for i, layer in enumerate(LAYERS) if ("core" if folder.startswith("_") else folder) in layer)


def test_imports_run_from_higher_to_lower_layers_without_cycles():
    files = {name.removesuffix(".__init__"): path for name, path in MODULES.items()}
    of = lambda name: name if name in files else name.rpartition(".")[0]  # The module that defines a name.
    graph = {module: {of(name) for name in _imports(path)} & files.keys() for module, path in files.items()}
    for module in files:  # A package imports from itself to re-export names.
        graph[module].discard(module)
    graph.pop("awmkit")
    tuple(graphlib.TopologicalSorter(graph).static_order())  # Raises CycleError if there is a cycle.
    edges = [(module, under) for module in graph for under in graph[module] if under != "awmkit"]
    upwards = [(module, under) for module, under in edges if _layer(under) > _layer(module)]
    assert len(edges) > 100 and not upwards


def test_every_mutant_applies_and_names_an_existing_test():
    for mutant in MUTANTS:
        ast.parse(mutant.broken(PACKAGE))
        file, test = mutant.test.split("[")[0].split("::")
        assert f"def {test}(" in (ROOT / "tests" / file).read_text(), mutant.breaks
