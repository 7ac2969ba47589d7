"""Scores at known returns, and aggregates compared with their definitions and with scipy."""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, given, strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from misuse import says

from awmkit import unroll
from awmkit.scores import gap_closed, interval, iqm, normalised, probability_of_improvement, reference, table, TELLING
from awmkit.tasks import (
    Bacteria,
    BearPopulations,
    Bioreactor,
    CancerTreatment,
    Discretised,
    Epidemic,
    Glucose,
    Harvest,
    MYRIAD,
    OneBounce,
    PredatorPrey,
)

CONTROLS = np.load(Path(__file__).parent / "reference" / "controls.npz")
HORIZONS = (20, 50, 100, 200, 500)
tenths = st.integers(-50, 50).map(lambda n: n / 10)  # Few distinct values make ties likely, and their sums are nearly exact.


def scores(seeds=st.integers(1, 6), tasks=st.integers(1, 5)):
    return st.tuples(seeds, tasks).flatmap(lambda shape: arrays(float, shape, elements=tenths))


def pairs():
    """Scores of two methods on the same tasks, with possibly different numbers of seeds."""
    return st.integers(1, 4).flatmap(lambda tasks: st.tuples(*[scores(tasks=st.just(tasks))] * 2))


@pytest.mark.parametrize("problem", MYRIAD)
def test_the_optimum_scores_1_and_the_best_constant_action_0(problem):
    for horizon in HORIZONS:
        task, known = Discretised(problem(), horizon), reference(problem, horizon)
        assert known == reference(problem(), horizon) == reference(task)
        np.testing.assert_allclose(normalised(task, [known.optimal, known.random]), [1, 0])
        if problem in TELLING:
            assert known.optimal > known.best_constant > known.random
            returns = np.array([[known.optimal], [known.best_constant]])
            np.testing.assert_allclose(gap_closed(task, returns), [[1], [0]])
        else:
            says(lambda task=task: gap_closed(task, 0.0), f"{problem.__name__} has no gap to close, because its best constant")


def test_nine_problems_count_in_aggregates():
    assert len(TELLING) == 9 and {*MYRIAD} - {*TELLING} == {Bioreactor, PredatorPrey, Epidemic}


@pytest.mark.parametrize("name, problem", [("bear_populations", BearPopulations()), ("glucose_l05", Glucose(l=0.5))])
def test_the_optimal_controls_close_the_gap(name, problem):
    task = Discretised(problem, 50)
    plan = jnp.asarray(CONTROLS[f"{name}/50"])
    value = unroll(task, plan, task.reset(jax.random.key(0)), 50, reward=task.reward).returns()
    np.testing.assert_allclose(gap_closed(task, value), 1, atol=1e-6)


@given(x=arrays(float, array_shapes(max_dims=3, max_side=6), elements=tenths), random=st.randoms(use_true_random=False))
def test_the_interquartile_mean_is_the_mean_of_the_middle_half_in_any_order(x, random):
    shuffled = x.flatten().tolist()
    random.shuffle(shuffled)
    assert iqm(shuffled) == iqm(x)
    assert x.min() - 1e-9 <= iqm(x) <= x.max() + 1e-9
    np.testing.assert_allclose(iqm(x), scipy.stats.trim_mean(x, 0.25, axis=None), atol=1e-12)
    if x.size % 4 == 0:
        np.testing.assert_allclose(iqm(x), np.sort(x, axis=None)[x.size // 4 : -x.size // 4].mean(), atol=1e-12)


@given(x=scores(), outlier=st.floats(1e3, 1e300), sign=st.sampled_from([-1, 1]))
def test_an_outlier_keeps_the_interquartile_mean_within_the_range_of_the_other_scores(x, outlier, sign):
    assume(x.size >= 4)
    spoilt = x.copy()
    spoilt[0, 0] = sign * outlier
    assert x.min() - 1e-9 <= iqm(spoilt) <= x.max() + 1e-9


@given(xy=pairs())
def test_the_probability_of_improvement_equals_the_mann_whitney_statistic(xy):
    x, y = xy
    np.testing.assert_allclose(probability_of_improvement(x, y) + probability_of_improvement(y, x), 1)
    u = [scipy.stats.mannwhitneyu(a, b, method="asymptotic").statistic for a, b in zip(x.T, y.T, strict=True)]
    np.testing.assert_allclose(probability_of_improvement(x, y), np.mean(u) / (len(x) * len(y)))


@given(xy=pairs(), seed=st.integers(0, 2**32))
def test_an_interval_resamples_seeds_within_each_task_and_is_reproducible(xy, seed):
    x, y = xy
    assume(min(len(x), len(y)) > 1)

    def checked(*resampled):
        for drawn, own in zip(resampled, (x, y), strict=True):
            assert drawn.shape == own.shape and all(np.isin(d, o).all() for d, o in zip(drawn.T, own.T, strict=True))
        return probability_of_improvement(*resampled)

    run = lambda seed: interval(checked, x, y, seed=seed, resamples=50)
    one, again = run(seed), run(seed)
    assert 0 <= one.low <= one.high <= 1 and one.value == probability_of_improvement(x, y)
    assert (one.low, one.high) == (again.low, again.high)


def test_an_interval_covers_95_percent_of_2000_resamples_by_default():
    draws = itertools.count(-1)  # The first number is the statistic of the scores themselves.
    found = interval(lambda x: float(next(draws)), np.zeros((2, 1)))
    np.testing.assert_allclose([found.value, found.low, found.high], [-1, 0.025 * 1999, 0.975 * 1999])


def test_an_80_percent_interval_contains_the_truth_in_80_percent_of_cases():
    """The scores are normal with mean 0: 20 seeds on each of 4 tasks."""
    rng = np.random.default_rng(0)
    found = [interval(np.mean, rng.normal(size=(20, 4)), level=0.8, resamples=200, seed=k) for k in range(300)]
    assert abs(np.mean([i.low <= 0 <= i.high for i in found]) - 0.8) < 0.07  # three standard deviations


def test_each_task_is_resampled_separately():
    """If all seeds of a task have one score, the interval has no width. Nine tasks with equal scores give a third of the width of one."""
    found = interval(iqm, np.tile([0.0, 1.0, 2.0, 4.0], (5, 1)))
    assert found.low == found.value == found.high == 1.5
    column = np.random.default_rng(0).normal(size=(20, 1))
    one, nine = (interval(np.mean, np.tile(column, n)) for n in (1, 9))
    np.testing.assert_allclose((nine.high - nine.low) / (one.high - one.low), 1 / 3, rtol=0.1)


def returns_of(score, seeds=3, problems=MYRIAD):
    known = {p.__name__: (reference(p, 100), p in TELLING) for p in problems}
    worst = lambda r, telling: r.best_constant if telling else r.random
    return {
        n: [worst(r, t) + (score + 0.01 * k) * (r.optimal - worst(r, t)) for k in range(seeds)] for n, (r, t) in known.items()
    }


def test_the_table_shows_scores_aggregates_and_missing_runs():
    partial = returns_of(0.7)
    del partial["Harvest"]
    partial["Glucose"][1:] = [None, float("nan")]
    text = table({"AWM": returns_of(0.9), "SAC": returns_of(0.5), "HWM": partial}, 100)
    lines = {
        cells[0]: cells[1:] for cells in ([c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines()) if cells
    }
    assert lines["CancerTreatment"] == ["0.910 (0.900..0.920)", "0.510 (0.500..0.520)", "0.710 (0.700..0.720)"]
    assert lines["Epidemic *"] == lines["CancerTreatment"]
    assert lines["Harvest"][2] == "" and lines["Glucose"][2] == "0.700 (0.700..0.700), 1 of 3"
    assert lines["runs missing"] == ["0 of 36", "0 of 36", "5 of 36"]
    assert lines["IQM"][0].startswith("0.910 [0.90") and lines["IQM"][2] == ""
    assert lines["P"] == ["", "1.000 [1.000, 1.000]", ""]
    assert lines.keys() >= {p.__name__ for p in TELLING} | {"Bioreactor *", "PredatorPrey *"}


def test_a_table_of_one_seed_has_no_intervals_and_a_table_of_no_runs_no_aggregates():
    text = table(
        {"AWM": returns_of(0.9, seeds=1, problems=TELLING), "SAC": returns_of(0.5, seeds=1, problems=TELLING)}, 100, of="SAC"
    )
    assert "| IQM             | 0.900 " in text and "| P               | 0.000 " in text
    assert "| runs missing | 0 of 0 |" in table({"AWM": {"Harvest": []}}, 100)


MISUSES = {
    "another task": (lambda: reference(OneBounce(20)), "No reference returns.*OneBounce.*Discretised"),
    "another class": (lambda: reference(OneBounce, 20), "No reference returns are known for OneBounce with horizon=20"),
    "a problem without a horizon": (lambda: reference(Glucose), "for Glucose with horizon=None; pass"),
    "an unknown horizon": (lambda: reference(Glucose, 30), "Glucose at 30 steps; known are Glucose at 20, 50, 100, 200, 500"),
    "two horizons": (lambda: reference(Discretised(Glucose(), 50), 100), "horizon=100"),
    "changed parameters": (lambda: reference(Harvest(m=0.1), 50), r"for Harvest\(m=0.1\) at 50 steps; known are Harvest"),
    "a changed array": (lambda: reference(Bacteria(A=jnp.asarray(2.0)), 50), r"for Bacteria\(A=2.0\) at 50 steps"),
    "distractors": (lambda: gap_closed(Discretised(Glucose(), distractors=2), 0.0), "without distractors.*got .*distractors=2"),
    "noise": (lambda: normalised(Discretised(Bacteria(), noise=0.1), 0.0), r"or noise, got .*noise=\(0.1,\); use Discretised"),
    "no scores": (lambda: iqm([]), "at least one number.*got 0 scores"),
    "a str as a score": (lambda: iqm(["good"]), "array of numbers, got a list"),
    "a str as the task": (lambda: reference("CancerTreatment", 100), "No reference returns.*str.*awmkit.tasks.MYRIAD"),
    "a failed run": (lambda: iqm([1.0, np.nan]), "got 2 scores, 1 of them not finite"),
    "scores without an axis of tasks": (lambda: interval(iqm, [1.0, 2.0]), r"shape \(seeds, tasks\), got \(2,\)"),
    "one seed": (lambda: interval(iqm, [[1.0, 2.0]]), "at least 2 seeds, got 1"),
    "different tasks": (
        lambda: probability_of_improvement([[1.0, 2.0]], [[1.0]]),
        r"got float64\[1, 2\] and float64\[1, 1\]; pass scores of the same tasks",
    ),
    "an unknown problem": (lambda: table({"AWM": {"CartPole": [1.0]}}, 100), "got CartPole"),
    "an unknown method": (lambda: table({"AWM": {"Harvest": [1.0]}}, 100, of="SAC"), "got SAC"),
    "a table without methods": (lambda: table({}, 100), "got no method"),
    "a table without tasks": (lambda: table({"AWM": {}}, 100), "got no task"),
}


@pytest.mark.parametrize("name", MISUSES)
def test_misuse_raises_one_clear_sentence(name):
    says(*MISUSES[name])


def test_the_reference_returns_of_cancer_treatment_are_known():
    known = reference(CancerTreatment, 100)
    assert (round(known.optimal, 4), round(known.best_constant, 2), round(known.random, 1)) == (-20.5253, -21.79, -33.8)
