"""The guides do what they say, block by block, and a user's script runs; as a user has it, without executed annotations."""

import contextlib
import io
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import user_script
from notebook import blocks, GUIDES

from awmkit.analysis import Report


@pytest.fixture(autouse=True)
def as_a_user_has_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes, which only tests forbid.
        yield


@pytest.mark.skipif(not GUIDES.exists(), reason="a wheel brings no examples")
def test_every_guide_runs_and_prints_what_it_shows():
    text, names, printed = GUIDES.read_text(), {}, io.StringIO()
    with contextlib.redirect_stdout(printed):
        for block in blocks(text):
            exec(block, names)
            assert jnp.isfinite(names["value"]) and all(jnp.isfinite(g).all() for g in jax.tree.leaves(names["grads"]))
    assert np.mean(names["fitted"].held_out) < 0.3 and isinstance(names["found"], Report)
    growth = names["found"].entries["simulator"].return_growth.law
    assert growth.law == "exponential" and 0.3 < growth.rate < 0.5
    assert names["found"].entries["AWM"].hops.mean.max() == 0
    (shown,) = re.findall(r"```text\n(.*?)```", text, re.S)
    first_words = lambda text: [line.split("  ")[0].strip() for line in text.splitlines()]
    assert first_words(printed.getvalue())[-len(shown.splitlines()) :] == first_words(shown)


def test_a_users_script_runs_and_its_results_say_their_numbers(tmp_path, capsys):
    gradient, last_return = user_script.main(tmp_path)
    assert np.isfinite(gradient) and last_return < 0
    fitted, growth, result, *_, episode = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        r"FitResult\(model=AWM, losses=\S+ to \S+ in 3 updates, held_out=\S+ in the mean over steps, .*\)", fitted
    )
    assert re.fullmatch(r"GradientGrowth\(of='state', law=.*, horizons=\[.*, 5\], starts=8\)", growth)
    assert result == "TrainResult(model=Markov, policy=GaussianPolicy, reward=NoneType, learner=TrainState,"
    assert episode == "Trajectory(states=f64[6,2], actions=f64[5,2])"
