"""The package as a user meets it: what importing costs, what classes may be, what the README says."""

import re
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax

import awmkit
import awmkit.analysis
import awmkit.gym
import awmkit.mjx
import awmkit.plot
import awmkit.scores
import awmkit.tasks

ROOT = Path(__file__).parent.parent


def _python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT / "tests").stdout


def test_importing_is_quick_and_drags_no_optional_world_in():
    code = (
        "import time, sys, jax, equinox, diffrax, optax; t = time.perf_counter(); "
        "import awmkit, awmkit.tasks, awmkit.analysis; "
        "print(time.perf_counter() - t, *({'mujoco', 'gymnasium', 'matplotlib'} & set(sys.modules)))"
    )
    seconds, *dragged = min((_python(code).split() for _ in range(3)), key=lambda words: float(words[0]))
    assert float(seconds) < 0.3 and not dragged


def test_every_class_is_abstract_or_final():
    def descendants(cls):
        return {cls}.union(*map(descendants, cls.__subclasses__()))

    for cls in descendants(eqx.Module):
        if cls.__module__.startswith("awmkit") and not cls.__name__.startswith("Abstract"):
            assert not [c for c in cls.__subclasses__() if c.__module__.startswith("awmkit")], cls


def test_every_public_name_has_a_docstring():
    for module in (awmkit, awmkit.analysis, awmkit.gym, awmkit.mjx, awmkit.models, awmkit.plot, awmkit.scores, awmkit.tasks):
        for name, thing in vars(module).items():
            if not name.startswith("_") and callable(thing) and thing.__module__.startswith("awmkit"):
                assert thing.__doc__ and len(thing.__doc__) > 40, name


def test_the_readme_example_runs_and_the_readme_promises_the_two_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo leaves its log where it is.
    readme = (ROOT / "README.md").read_text()
    code = re.findall(r"```python\n(.*?)```", readme, re.S)
    assert readme[: readme.index("```python")].count("\n") < 25 and "from awmkit import" in code[0]
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes.
        exec("\n".join(code).replace("5_000", "1_550"), {})  # The warm-up and one episode.
    assert 'pip install -e ".[all]" && python examples/double_pendulum.py' in readme
    assert 'pip install -e ".[all]" && pytest' in readme
