"""Storage of the raw values of the paper's experiments, and the published tables made from them."""

import argparse
import contextlib
import functools
import gzip
import json
import os
import re
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest

from awmkit.scores import reference
from awmkit.tasks import CancerTreatment, Discretised, TimberHarvest

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


SETTINGS = argparse.Namespace(width=15)


class Once:
    """A cell that runs once."""

    def __init__(self):
        self.ran = False

    def __fingerprint__(self):
        return "once"

    def __call__(self):
        assert not self.ran
        self.ran = True
        return {"returns": np.array([0.1, np.nan, -np.inf])}


def test_a_finished_cell_is_read_and_not_computed_again(study, tmp_path):
    cells = {"a": ("cell a", {"seeds": 1}, Once())}
    first = study.Study(options(tmp_path), "small").collect(cells)
    again = study.Study(options(tmp_path), "small").collect(cells)
    np.testing.assert_equal(again, first)
    assert again["a"]["returns"][0] == 0.1 and again["a"]["seconds"] >= 0 and again["a"]["host"]["device"]


def test_a_cell_with_a_different_config_raises_unless_it_only_has_more_seeds(study, tmp_path):
    run = lambda seeds: study.Study(options(tmp_path), "small").collect({"a": ("cell a", {"seeds": seeds}, dict)})
    run(3)
    assert run(2)["a"]["config"] == {"seeds": 3}
    with pytest.raises(ValueError, match="choose another folder with --out"):
        run(5)


def test_a_cell_with_other_hyper_parameters_or_without_a_fingerprint_raises(study, tmp_path, monkeypatch):
    def collect(rate, seeds=1, from_raw=False):
        cell = functools.partial(lambda rate, seeds: {"rate": rate, "width": SETTINGS.width}, rate, seeds)
        return study.Study(options(tmp_path, from_raw), "small").collect({"a": ("cell a", {"seeds": seeds}, cell)})

    first = collect(0.1, seeds=2)
    assert collect(0.1) == first
    with pytest.raises(ValueError, match=r"by Python 3\.\d.*: its rate is 0.1, not 0.2; choose another folder with --out"):
        collect(0.2)
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="its global SETTINGS.width is 15, not 20;"):
        patch.setattr(SETTINGS, "width", 20)
        collect(0.1)
    (tmp_path / "small.jsonl.gz").unlink()
    study.add(tmp_path / "small.jsonl.gz", {"name": "cell a", "config": {"seeds": 1}})
    with pytest.raises(ValueError, match="has no fingerprint; read it with --from-raw"):
        collect(0.1)
    monkeypatch.setattr(study, "RESULTS", tmp_path)
    assert collect(0.1, from_raw=True)["a"]["config"] == {"seeds": 1}


@pytest.mark.slow  # It imports rejax.
def test_the_hyper_parameters_of_the_methods_are_part_of_a_cell(study, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Packages that rejax imports raise warnings.
        import methods
    identity = lambda: study.identity(functools.partial(methods.learn, method="Markov"))
    for change in (("WARMUP", 20), ("MODELS", {})):
        before = identity()
        monkeypatch.setattr(methods, *change)
        assert identity() != before


def test_raw_values_are_strict_json_and_are_written_through_a_link(study, tmp_path):
    (tmp_path / "small.jsonl.gz").symlink_to(tmp_path / "target")
    row = {"name": "a", "values": [1.5, np.inf, -np.inf, {"deep": [np.nan, None, "text", True]}]}
    np.testing.assert_equal(study.add(tmp_path / "small.jsonl.gz", row), row)
    assert (tmp_path / "small.jsonl.gz").is_symlink()
    with gzip.open(tmp_path / "target", "rt") as lines:
        json.loads(lines.read(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


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


@pytest.mark.parametrize("problem", [CancerTreatment, TimberHarvest])
def test_the_exact_gradient_finds_the_known_optimum_and_best_constant_action(problem, monkeypatch):
    monkeypatch.syspath_prepend(PAPER)
    from optimal import solve

    task = Discretised(problem(), 20)
    found, known = solve(task, starts=2), reference(task)
    assert found["optimal"] == pytest.approx(known.optimal, rel=1e-6)
    assert known.best_constant <= found["best_constant"] <= known.best_constant + 1e-3 * (known.optimal - known.best_constant)
    assert found["random"] == pytest.approx(known.random, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    "driver",
    [
        "amount_of_data",
        "bodies",
        "closed_loop",
        "credit_assignment",
        "double_pendulum",
        "gradient_growth",
        "gymnasium_pendulum",
        "mjx_cartpole",
        "myriad",
        "one_bounce",
        "sac_from_outside",
        "variants",
        "warmup",
        "when",
        "windows",
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
