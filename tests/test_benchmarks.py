"""The benchmarks' count of kernel launches, and what they keep when they are stopped."""

import argparse
import gzip
import json
import math
import time
from pathlib import Path

import jax.numpy as jnp
import pytest

BENCHMARKS = Path(__file__).parents[1] / "examples" / "benchmarks"
pytestmark = pytest.mark.skipif(not BENCHMARKS.exists(), reason="the wheel contains no examples")


@pytest.fixture
def launches(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import launches

    return launches


@pytest.fixture
def raw(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import raw

    return raw


# As XLA prints it: two kernels, a loop of ten turns of two kernels, a loop of unknown length of one kernel and one of its
# condition, a branch of three kernels or one, and a call of one kernel.
PROGRAM = """
HloModule jit_f, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%inside_a_fusion (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %add.1 = f32[8]{0} add(%p, %p)
}

%body.1 (t: (s32[], f32[8])) -> (s32[], f32[8]) {
  %t = (s32[], f32[8]{0}) parameter(0)
  %x = f32[8]{0} get-tuple-element(%t), index=1
  %fusion.1 = f32[8]{0} fusion(%x), kind=kLoop, calls=%inside_a_fusion
  %gemm = (f32[8]{0}, s8[4194304]{0}) custom-call(%fusion.1), custom_call_target="__cublas$gemm"
  ROOT %out = (s32[], f32[8]{0}) tuple(%x, %gemm)
}

%condition.1 (t: (s32[], f32[8])) -> pred[] {
  %t = (s32[], f32[8]{0}) parameter(0)
  ROOT %lt = pred[] constant(true)
}

%body.2 (x: f32[8]) -> f32[8] {
  ROOT %reduce.1 = f32[8]{0} reduce(%x), to_apply=%inside_a_fusion
}

%condition.2 (x: f32[8]) -> pred[] {
  ROOT %gt = pred[] compare(%x, %x), direction=GT
}

%long (x: f32[8]) -> f32[8] {
  %a = f32[8]{0} copy(%x)
  %b = f32[8]{0} copy(%a)
  ROOT %c = f32[8]{0} copy(%b)
}

%short (x: f32[8]) -> f32[8] {
  ROOT %a = f32[8]{0} copy(%x)
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %copy.1 = f32[8]{0} copy(%x)
  %bitcast.1 = f32[8]{0} bitcast(%copy.1)
  %loop = (s32[], f32[8]{0}) while(%t), condition=%condition.1, body=%body.1, backend_config={"known_trip_count":{"n":"10"}}
  %sweeps = f32[8]{0} while(%x), condition=%condition.2, body=%body.2
  %branch = f32[8]{0} conditional(%i, %x, %x), branch_computations={%long, %short}
  %call = f32[8]{0} call(%x), to_apply=%short
  ROOT %sort = f32[8]{0} sort(%x), dimensions={0}, to_apply=%inside_a_fusion
}
"""


def test_launches_are_counted_through_loops_branches_and_calls(launches):
    assert launches.launches(PROGRAM, 4) == (2 + 10 * 2 + 4 * 2 + 3 + 1, 4 + 1)
    assert launches.launches(PROGRAM, 4, outer=6) == (2 + 10 * 2 + 6 * 2 + 3 + 1, 6 + 1)
    inner = "  %solver = f32[8]{0} while(%x), condition=%condition.2, body=%short\n"
    nested = PROGRAM.replace("  ROOT %reduce.1", inner + "  ROOT %reduce.1").replace("  ROOT %sort", inner + "  ROOT %sort")
    solver = 4 * 2
    expected = 2 + 10 * 2 + 6 * (2 + solver) + solver + 3 + 1, 6 * (1 + 4) + 4 + 1
    assert launches.launches(nested, 4, outer=6) == expected


def test_a_plan_needs_a_compiler_for_a_gpu(launches):
    planned = launches.plan(lambda x, flag: jnp.sort(x) if flag else x, jnp.ones(8), True)
    assert planned is None if launches.gpu() is None else planned.launches >= 1


@pytest.mark.parametrize("stop", ["ctrl-c", "minutes"])
def test_a_benchmark_that_is_stopped_keeps_what_was_measured_and_continues(raw, tmp_path, stop):
    minutes = math.inf if stop == "ctrl-c" else (time.monotonic() - raw.BEGUN + 0.2) / 60
    options = argparse.Namespace(out=tmp_path, from_raw=False, minutes=minutes)

    def interrupted():
        if stop == "ctrl-c":
            raise KeyboardInterrupt
        time.sleep(60)

    rows = raw.Raw(options, "small")
    with raw.until_stopped(options) as left:
        assert left() > 0
        rows.run("first", {}, lambda: {"ms": [1.0, math.inf]})
        rows.run("second", {}, interrupted)
    again = raw.Raw(options, "small")
    assert again.find("first", {})["ms"] == [1.0, math.inf] and again.find("second", {}) is None
    with pytest.raises(ValueError, match="choose another folder with --out"):
        again.find("first", {"batch": 16})
    assert json.loads(raw.dumps({"x": [math.nan]})) == {"x": ["nan"]}


def test_the_published_table_of_gymnasium_environments_is_that_of_its_rows(monkeypatch, tmp_path, capsys):
    """All of them made the steps of `train` that they were asked for, and their model's error is a number."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gymnasium_environments as script

    monkeypatch.setattr("sys.argv", ["gymnasium_environments.py", "--from-raw", "--out", str(tmp_path)])
    script.main()
    name = "gymnasium_environments"
    assert (tmp_path / f"{name}.md").read_text() == (BENCHMARKS / "results" / f"{name}.md").read_text()
    with gzip.open(BENCHMARKS / "results" / f"{name}.jsonl.gz", "rt") as lines:
        rows = [json.loads(line) for line in lines]
    assert {row["name"] for row in rows} == set(script.IDS)
    assert all(row["train_steps"] >= row["config"]["steps"] == 2_000 and row["model_error"] > 0 for row in rows)
