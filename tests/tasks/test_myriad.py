"""The Myriad tasks against the numbers of an independent solver, and the options of the discretisation."""

import importlib.resources
import json
from functools import partial
from pathlib import Path

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from awmkit import unroll, unroll_grad
from awmkit.tasks import (
    Bacteria,
    BearPopulations,
    Bioreactor,
    CancerTreatment,
    Discretised,
    Epidemic,
    Glucose,
    Harvest,
    HIVTreatment,
    InvasivePlant,
    MouldFungicide,
    MYRIAD,
    PredatorPrey,
    TimberHarvest,
)

CONTROLS = np.load(Path(__file__).parent.parent / "reference" / "controls.npz")
PROBLEMS = {
    "cancer_treatment": CancerTreatment(),
    "bear_populations": BearPopulations(),
    "bioreactor": Bioreactor(),
    "hiv_treatment": HIVTreatment(),
    "mould_fungicide": MouldFungicide(),
    "bacteria": Bacteria(),
    "predator_prey": PredatorPrey(),
    "glucose": Glucose(),
    "harvest": Harvest(),
    "timber_harvest": TimberHarvest(),
    "invasive_plant": InvasivePlant(),
    "epidemic_seirn": Epidemic(),
    "predator_prey_T10": PredatorPrey(T=10.0),
    "glucose_l05": Glucose(l=0.5),
}
NUMBERS = json.loads((importlib.resources.files("awmkit.tasks") / "_oracle.json").read_text())
ORACLE = dict(zip(PROBLEMS, NUMBERS.values(), strict=True))  # In the same order; a wrong pair fails below.


def test_every_problem_is_compared_with_the_oracle():
    assert {type(problem) for problem in PROBLEMS.values()} == set(MYRIAD)


def _plans(name, n):
    """Return the optimal plan, the best constant plan, and the 200 random plans of the oracle."""
    best = CONTROLS[f"{name}/{n}"]
    constant = np.broadcast_to(ORACLE[name][n]["best_constant_action"], best.shape)
    return np.concatenate([best[None], constant[None], np.random.default_rng(0).uniform(-1, 1, (200, *best.shape))])


@pytest.mark.parametrize("name", PROBLEMS)
def test_returns_and_clipped_steps_are_those_of_the_oracle_at_every_horizon(name):
    tasks = {n: Discretised(PROBLEMS[name], int(n)) for n in ORACLE[name]}

    @jax.jit
    def reports(plans):
        def report(task, plan):
            return task.report(unroll(task, plan, task.reset(jax.random.key(0)), task.horizon, reward=task.reward))

        return {n: jax.vmap(partial(report, task))(plans[n]) for n, task in tasks.items()}

    for n, report in reports({n: _plans(name, n) for n in tasks}).items():
        oracle = ORACLE[name][n]
        expected = oracle["optimal"], oracle["best_constant"]
        np.testing.assert_allclose(report.value[:2], expected, rtol=1e-8, atol=1e-9, err_msg=n)
        np.testing.assert_allclose(report.value[2:].mean(), oracle["random_mean"], rtol=1e-6, err_msg=n)
        assert int(report.clipped[0]) == oracle["clip_steps_optimal"], n
        np.testing.assert_allclose(report.clipped[2:].mean(), oracle["clip_steps_random_mean"], rtol=0.01, atol=0.01)


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_gradient_at_the_optimum_is_zero_inside_the_bounds_and_points_outwards_at_them(name):
    task, best = Discretised(PROBLEMS[name], 100), jnp.asarray(CONTROLS[f"{name}/100"])
    run = lambda plan: unroll_grad(task, plan, task.reset(jax.random.key(0)), 100, reward=task.reward)
    # At level 0, which the tests use, XLA (jaxlib 0.10.2, CPU) gets some derivatives of clipped states wrong.
    value, gradient = jax.jit(run, compiler_options={"xla_backend_optimization_level": 1})(best)
    random = ORACLE[name]["100"]["random_mean"]
    projected = jnp.clip(best + gradient, -1, 1) - best
    assert jnp.max(jnp.abs(projected)) < 1e-6 * abs(value - random)


@pytest.mark.parametrize("solver, error", [(diffrax.Euler(), 5e-2), (diffrax.Heun(), 3e-3), (diffrax.Tsit5(), 3e-9)])
def test_any_solver_and_any_parameter_can_be_used(solver, error):
    """Fish at a constant harvest u: x = x_0 exp(-(m + u) t)."""
    task = Discretised(Harvest(m=0.1, x0=(2.0,), T=8.0), 20, solver=solver)
    states = unroll(task, jnp.full((20, 1), -0.6), task.reset(jax.random.key(0)), 20).states[:, 0]
    exact = 2.0 * np.exp(-(0.1 + 0.2) * np.arange(21) * task.dt)
    assert jnp.max(jnp.abs(states - exact)) < error


def test_a_parameter_of_the_equations_has_a_gradient():
    def value(m):
        task = Discretised(Harvest(m=m), 50)
        return unroll(task, jnp.zeros((50, 1)), task.reset(jax.random.key(0)), 50, reward=task.reward).returns()

    slope = jax.jit(jax.grad(value))(0.2)
    np.testing.assert_allclose(slope, (value(0.2 + 1e-5) - value(0.2 - 1e-5)) / 2e-5, rtol=1e-8)


def test_substeps_of_euler_are_the_steps_of_a_longer_episode():
    coarse, fine = (Discretised(Epidemic(), 20 * n, substeps=4 // n) for n in (1, 4))
    actions = jnp.linspace(-1, 0, 20)[:, None]
    start = coarse.reset(jax.random.key(0))
    a, b = unroll(coarse, actions, start, 20).states, unroll(fine, jnp.repeat(actions, 4, axis=0), start, 80).states
    np.testing.assert_allclose(a, b[::4], rtol=1e-12)


def test_noise_has_its_standard_deviation_and_distractors_have_no_effect():
    plain, noisy = Discretised(Glucose()), Discretised(Glucose(), noise=(0.02, 0.0), distractors=2)
    key, actions = jax.random.key(0), jnp.zeros((100, 1))
    keys = jax.random.split(key, 2000)
    start = noisy.reset(key)
    after = jax.vmap(lambda k: noisy.step(None, start, actions[0], 0, key=k)[1])(keys)
    spread = jnp.std(after, axis=0) / jnp.array([0.02 * np.sqrt(noisy.dt), 1.0, 1.0, 1.0])
    assert after.shape == (2000, 4) and spread[1] == 0
    np.testing.assert_allclose(spread[jnp.array([0, 2, 3])], 1, atol=0.06)
    quiet = eqx.tree_at(lambda task: task.noise, noisy, (0.0, 0.0))
    a, b = (unroll(task, actions, task.reset(key), 100, reward=task.reward, key=key) for task in (plain, quiet))
    np.testing.assert_allclose(a.states, b.states[:, :2], rtol=1e-12)
    np.testing.assert_allclose(a.rewards, b.rewards, rtol=1e-12)


def test_clipping_removes_the_gradient_and_is_reported():
    """With a = 0 the colony dies at step 20, so earlier actions only have their cost."""
    task, actions = Discretised(Bacteria()), jnp.zeros((100, 1))
    _, gradient = unroll_grad(task, actions, task.reset(jax.random.key(0)), 100, reward=task.reward)
    cost = -2 * task.control(actions[0])[0] * 1.0 * task.dt  # dg/du du/da dt
    np.testing.assert_allclose(gradient[:19], cost, rtol=1e-12)
    report = task.report(unroll(task, actions, task.reset(jax.random.key(0)), 100, reward=task.reward))
    assert report.clipped == 81
    assert str(report) == "return -1, 81 of 100 steps clipped (by entry: 81), no gradient at 81.0% of the steps"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_actions_of_1_and_minus_1_are_exactly_the_bounds_of_the_control(dtype):
    pairs = [(low / 10, high / 10) for low in range(-30, 31) for high in range(low, 31)]
    task = Discretised(CancerTreatment(u_bounds=tuple(pairs)))
    (low, high), ones = np.array(pairs, dtype).T, jnp.ones(len(pairs), dtype)
    assert (task.control(ones) == high).all() and (task.control(-ones) == low).all()
    almost = task.control(ones * np.nextafter(dtype(1), dtype(0)))
    assert almost.dtype == dtype and (low <= almost).all() and (almost <= high).all()
    assert (task.control(2 * ones) - high >= 0.4 * (high - low)).all()  # Beyond 1, as it was.
    for action in (ones, 0.3 * ones):
        _, slope = jax.jvp(task.control, (action,), (ones,))
        np.testing.assert_allclose(slope, (high - low) / 2, rtol=1e-6)
