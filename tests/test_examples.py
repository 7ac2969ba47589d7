"""Form of the scripts in examples/: docstring, options, length, imports and index. .ci/run runs them with --quick."""

import ast
import re
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
pytestmark = pytest.mark.skipif(not SCRIPTS, reason="the wheel contains no examples")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_states_its_question_command_cost_and_expected_result(script):
    head = ast.get_docstring(ast.parse(script.read_text()))
    assert head is not None
    assert "?" in head.splitlines()[0]
    command = re.escape(f"    python examples/{script.name}")
    assert re.search(rf"^{command} +about [\d.]+ (seconds|minutes?)", head, re.M)
    assert re.search(rf"^{command} --quick +", head, re.M)
    assert re.search(r"^Expect", head, re.M)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_has_the_options_quick_and_out_and_is_short(script):
    text = script.read_text()
    assert '"--quick"' in text and '"--out"' in text
    assert len(text.splitlines()) <= 150


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_imports_no_other_example(script):
    tree = ast.parse(script.read_text())
    imported = {alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    assert not imported & ({path.stem for path in EXAMPLES.rglob("*.py")} | {"paper", "benchmarks", "examples"})


def test_the_index_lists_every_script_and_guide_and_links_to_files_that_exist():
    text = (EXAMPLES / "README.md").read_text()
    links = re.findall(r"\]\(([^)#]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    assert {script.name for script in SCRIPTS} <= set(links)
    assert {f"guides/{path.name}" for path in (EXAMPLES / "guides").glob("*.md")} <= set(links)
    missing = [link for link in links if not link.startswith("http") and not (EXAMPLES / link).exists()]
    assert not missing
