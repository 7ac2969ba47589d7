"""Every guide runs and prints the output that it shows, and a typed user script runs. The guides use float32, JAX's default."""

import contextlib
import io
import re

import jax
import numpy as np
import pytest
import user_script
from notebook import blocks, GUIDES


@pytest.fixture(autouse=True)
def in_a_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with jax.numpy_dtype_promotion("standard"):  # optax needs implicit promotion, which is off in the tests.
        yield


NUMBER = re.compile(r"(?<![\w.])-?\d+\.?\d*(?:e[+-]?\d+)?(?![\w\[])")
# The guide to exploding gradients has a test of its own.
PRINTED = (
    "own_simulator",
    "own_world_model",
    "identify",
    "terminating",
    "gymnasium",
    "your_data",
    "gpu",
    "uncertainty",
    "planning",
    "memory",
    "sweeps",
)


def run(name: str) -> tuple[dict, str, str]:
    """Run a guide's code blocks in order. Returns its variables, its printed output and the output shown in the text."""
    names, printed, shown = {}, io.StringIO(), ""
    with jax.enable_x64(False), contextlib.redirect_stdout(printed):
        for code, output in blocks((GUIDES / f"{name}.md").read_text()):
            exec(code, names)
            shown += output
    return names, printed.getvalue(), shown


@pytest.mark.skipif(not GUIDES.exists(), reason="the wheel contains no examples")
@pytest.mark.parametrize("name", PRINTED)
def test_a_guide_prints_the_output_that_it_shows(name):
    _, printed, shown = run(name)
    assert NUMBER.sub("#", printed) == NUMBER.sub("#", shown)
    numbers = lambda text: [float(x) for x in NUMBER.findall(text)]
    np.testing.assert_allclose(numbers(printed), numbers(shown), rtol=0.02)


@pytest.mark.skipif(not GUIDES.exists(), reason="the wheel contains no examples")
def test_the_guide_to_exploding_gradients_prints_the_report_that_it_explains():
    names, printed, shown = run("exploding_gradients")
    first_words = lambda text: [line.split("  ")[0].strip() for line in text.splitlines()]
    assert first_words(printed) == first_words(shown)
    entries = names["result"].entries  # The system is chaotic, so the digits depend on the machine.
    law = entries["simulator"].return_growth.law
    assert law.law == "exponential" and 0.3 < law.rate < 0.5
    assert entries["AWM"].hops.mean.max() == 0


@pytest.mark.skipif(not GUIDES.exists(), reason="the wheel contains no examples")
def test_every_guide_is_run_by_a_test():
    assert {path.stem for path in GUIDES.glob("*.md")} == {*PRINTED, "exploding_gradients"}


def test_a_user_script_runs_and_its_results_have_readable_reprs(tmp_path, capsys):
    gradient, last_return = user_script.main(tmp_path)
    assert np.isfinite(gradient) and last_return < 0
    fitted, growth, result, *_, episode = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"FitResult\(model=AWM, losses: .* of 3, held_out=\S+ \(mean over steps\), seconds=\S+\)", fitted)
    assert re.fullmatch(r"GradientGrowth\(of='state', law=.*, horizons=\[.*, 5\], starts=8\)", growth)
    assert result == "TrainResult(model=Markov, policy=GaussianPolicy, reward=NoneType, termination=NoneType, state=TrainState,"
    assert episode == "Trajectory(states=f64[6,2], actions=f64[5,2])"
