"""Storage of the raw values of the paper's experiments, and the published tables made from them."""

import argparse
import contextlib
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest

PAPER = Path(__file__).parents[1] / "examples" / "paper"
pytestmark = pytest.mark.skipif(not PAPER.exists(), reason="the wheel contains no examples")


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(PAPER)
    directory = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    import study

    yield study
    jax.config.update("jax_compilation_cache_dir", directory)


def options(out, from_raw=False):
    return argparse.Namespace(out=out, from_raw=from_raw)


def test_a_finished_cell_is_read_and_not_computed_again(study, tmp_path):
    cells = {"a": ("cell a", {"seeds": 1}, lambda: {"returns": np.array([0.1, np.nan])})}
    first = study.Study(options(tmp_path), "small").collect(cells)
    cells = {"a": ("cell a", {"seeds": 1}, lambda: pytest.fail("repeated"))}
    again = study.Study(options(tmp_path), "small").collect(cells)
    np.testing.assert_equal(again, first)
    assert again["a"]["returns"][0] == 0.1 and again["a"]["seconds"] >= 0 and again["a"]["host"]["device"]


def test_a_cell_with_a_different_config_raises_unless_it_only_has_more_seeds(study, tmp_path):
    run = lambda seeds: study.Study(options(tmp_path), "small").collect({"a": ("cell a", {"seeds": seeds}, dict)})
    run(3)
    assert run(2)["a"]["config"] == {"seeds": 3}
    with pytest.raises(ValueError, match="choose another folder with --out"):
        run(5)


def test_from_raw_computes_no_cell(study, tmp_path):
    cells = {"a": ("no such cell", {}, lambda: pytest.fail("run"))}
    with pytest.raises(ValueError, match="has no cell 'no such cell'"):
        study.Study(options(tmp_path, from_raw=True), "myriad").collect(cells)


def test_concurrent_writers_lose_no_cell(study, tmp_path):
    path = tmp_path / "small.jsonl.gz"
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda i: study.add(path, {"name": str(i % 20), "value": i}), range(40)))
    assert study.read(path).keys() == {str(i) for i in range(20)}


def test_an_interrupted_write_loses_at_most_one_cell(study, tmp_path, monkeypatch):
    path = tmp_path / "small.jsonl.gz"
    study.add(path, {"name": "first", "value": 1})

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, contextlib.suppress(KeyboardInterrupt):
        patched.setattr(os, "replace", interrupted)
        study.add(path, {"name": "second"})
    assert study.read(path) == {"first": {"name": "first", "value": 1}}
    study.add(path, {"name": "second"})
    assert list(study.read(path)) == ["first", "second"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "driver",
    [
        "credit_assignment",
        "double_pendulum",
        "gradient_growth",
        "gymnasium_pendulum",
        "mjx_cartpole",
        "myriad",
        "one_bounce",
        "when",
    ],
)
def test_the_published_tables_follow_from_the_raw_values(driver, tmp_path):
    command = [sys.executable, str(PAPER / f"{driver}.py"), "--from-raw", "--out", str(tmp_path)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(PAPER.parents[1])})
    tables = list(tmp_path.glob("*.md"))
    assert tables
    numbers = lambda path: re.findall(r"-?\d+\.?\d*(?:e[+-]?\d+)?", path.read_text())
    for table in tables:
        assert numbers(table) == numbers(PAPER / "results" / table.name)
