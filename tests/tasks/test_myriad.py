"""The Myriad tasks against an independent solver's numbers, and the options of the discretisation."""

import importlib.resources
import json
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
ORACLE = dict(zip(PROBLEMS, NUMBERS.values(), strict=True))  # Both are in one order: a wrong pair fails below.
CASES = [(name, int(n)) for name, horizons in ORACLE.items() for n in horizons]


def test_every_problem_is_compared():
    assert {type(problem) for problem in PROBLEMS.values()} == set(MYRIAD)


@pytest.mark.parametrize("name, n", CASES)
def test_returns_and_clips_are_the_oracles(name, n):
    """The optimal plan, the best constant, and the very 200 random plans whose mean the oracle gives."""
    oracle, task = ORACLE[name][str(n)], Discretised(PROBLEMS[name], n)
    best = CONTROLS[f"{name}/{n}"]
    constant = np.broadcast_to(oracle["best_constant_action"], best.shape)
    random = np.random.default_rng(0).uniform(-1, 1, (200, *best.shape))

    @jax.jit
    def reports(plans):
        run = lambda plan: unroll(task, plan, task.reset(jax.random.key(0)), n, reward=task.reward)
        return jax.vmap(lambda plan: task.report(run(plan)))(plans)

    report = reports(np.concatenate([best[None], constant[None], random]))
    expected = oracle["optimal"], oracle["best_constant"]
    np.testing.assert_allclose(report.value[:2], expected, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(report.value[2:].mean(), oracle["random_mean"], rtol=1e-6)
    assert int(report.clipped[0]) == oracle["clip_steps_optimal"]
    np.testing.assert_allclose(report.clipped[2:].mean(), oracle["clip_steps_random_mean"], rtol=0.01, atol=0.01)


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_gradient_vanishes_inside_the_bounds_at_the_optimum_and_points_out_at_them(name):
    task, best = Discretised(PROBLEMS[name], 100), jnp.asarray(CONTROLS[f"{name}/100"])
    run = lambda plan: unroll_grad(task, plan, task.reset(jax.random.key(0)), 100, reward=task.reward)
    # At level 0, which the tests use, XLA (jaxlib 0.10.2, CPU) gets some derivatives of clipped states wrong.
    value, gradient = jax.jit(run, compiler_options={"xla_backend_optimization_level": 1})(best)
    random = ORACLE[name]["100"]["random_mean"]
    projected = jnp.clip(best + gradient, -1, 1) - best
    assert jnp.max(jnp.abs(projected)) < 1e-6 * abs(value - random)


@pytest.mark.parametrize("solver, error", [(diffrax.Euler(), 5e-2), (diffrax.Heun(), 3e-3), (diffrax.Tsit5(), 3e-9)])
def test_any_solver_and_any_parameter_can_be_had(solver, error):
    """Fish at a constant harvest u: x = x_0 exp(-(m + u) t)."""
    task = Discretised(Harvest(m=0.1, x0=(2.0,), T=8.0), 20, solver=solver)
    states = unroll(task, jnp.full((20, 1), -0.6), task.reset(jax.random.key(0)), 20).states[:, 0]
    exact = 2.0 * np.exp(-(0.1 + 0.2) * np.arange(21) * task.dt)
    assert jnp.max(jnp.abs(states - exact)) < error


def test_a_parameter_of_the_equations_has_a_gradient_too():
    def value(m):
        task = Discretised(Harvest(m=m), 50)
        return unroll(task, jnp.zeros((50, 1)), task.reset(jax.random.key(0)), 50, reward=task.reward).returns()

    slope = jax.jit(jax.grad(value))(0.2)
    np.testing.assert_allclose(slope, (value(0.2 + 1e-5) - value(0.2 - 1e-5)) / 2e-5, rtol=1e-8)


def test_substeps_of_euler_are_those_of_a_longer_episode():
    coarse, fine = (Discretised(Epidemic(), 20 * n, substeps=4 // n) for n in (1, 4))
    actions = jnp.linspace(-1, 0, 20)[:, None]
    start = coarse.reset(jax.random.key(0))
    a, b = unroll(coarse, actions, start, 20).states, unroll(fine, jnp.repeat(actions, 4, axis=0), start, 80).states
    np.testing.assert_allclose(a, b[::4], rtol=1e-12)


def test_noise_has_its_scale_and_distractors_mean_nothing():
    plain, noisy = Discretised(Glucose()), Discretised(Glucose(), noise=(0.02, 0.0), distractors=2)
    key, actions = jax.random.key(0), jnp.zeros((100, 1))
    keys = jax.random.split(key, 2000)
    start = noisy.reset(key)
    after = jax.vmap(lambda k: noisy.step(None, start, actions[0], 0, key=k)[1])(keys)
    spread = jnp.std(after, axis=0) / jnp.array([0.02 * np.sqrt(noisy.dt), 1.0, 1.0, 1.0])
    assert after.shape == (2000, 4) and spread[1] == 0
    np.testing.assert_allclose(spread[jnp.array([0, 2, 3])], 1, atol=0.06)  # 1 in 10,000 by chance, of a fixed seed
    quiet = eqx.tree_at(lambda task: task.noise, noisy, (0.0, 0.0))
    a, b = (unroll(task, actions, task.reset(key), 100, reward=task.reward, key=key) for task in (plain, quiet))
    np.testing.assert_allclose(a.states, b.states[:, :2], rtol=1e-12)
    np.testing.assert_allclose(a.rewards, b.rewards, rtol=1e-12)


def test_a_clip_silences_the_gradient_and_is_reported():
    """With a = 0 the colony dies at step 20: what is done before it no longer matters, but for its cost."""
    task, actions = Discretised(Bacteria()), jnp.zeros((100, 1))
    _, gradient = unroll_grad(task, actions, task.reset(jax.random.key(0)), 100, reward=task.reward)
    cost = -2 * task.control(actions[0])[0] * 1.0 * task.dt  # dg/du du/da dt
    np.testing.assert_allclose(gradient[:19], cost, rtol=1e-12)
    report = task.report(unroll(task, actions, task.reset(jax.random.key(0)), 100, reward=task.reward))
    assert report.clipped == 81
    assert str(report) == "return -1, 81 of 100 steps clipped (by entry: 81), no gradient at 81.0% of the steps"
