"""Sweeps of Newton's method beside the Lyapunov exponent of the closed loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from awmkit.analysis import newton_sweeps, NewtonSweeps
from awmkit.analysis._newton_sweeps import log_condition
from awmkit.tasks import Henon, LinearQuadratic

KEY = jax.random.key(0)
STARTS = jnp.array([[0.1, 0.0], [0.05, -0.05]])


def test_a_linear_closed_loop_with_noise_has_the_exponent_of_its_feedback_and_settles_at_once():
    system = LinearQuadratic(jnp.array([[0.9, 0.3], [0.0, 0.8]]), jnp.array([[0.0], [1.0]]), noise=0.1)
    result = newton_sweeps(system, lambda state, t, *, key=None: -0.5 * state[1:], STARTS, 40, key=KEY)
    np.testing.assert_allclose(result.exponents, np.log(0.9), atol=0.02)
    assert (result.sweeps <= 2).all() and result.settled.all()
    assert "sweeps for 40 steps" in str(result) and "did not settle" not in str(result)


def test_a_chaotic_map_needs_more_sweeps_than_a_regular_one():
    regular, chaotic = (newton_sweeps(Henon(p=p), jnp.zeros((40, 1)), STARTS, 40) for p in (0.3, 1.4))
    assert (regular.exponents < 0).all() and (chaotic.exponents > 0.1).all()
    assert (regular.sweeps <= 10).all() and (chaotic.sweeps >= 15).all()


class Ending(Henon):
    def terminates(self, state, action, t, next_state):
        return t >= 2


def test_sweeps_are_those_of_all_steps_although_the_task_ends():
    ending, plain = (newton_sweeps(system(), jnp.zeros((40, 1)), STARTS, 40) for system in (Ending, Henon))
    np.testing.assert_array_equal(ending.sweeps, plain.sweeps)


def test_the_figure_has_each_result_and_the_line_of_the_theory():
    pytest.importorskip("matplotlib").use("Agg")
    from awmkit import plot

    exponents = np.array([-0.1, 0.05])
    regular = NewtonSweeps(np.array([5, 9]), exponents, np.ones(2, bool), 50)
    slow = NewtonSweeps(np.array([50]), np.array([0.6]), np.zeros(1, bool), 50)
    axes = plot.sweeps({"regular": regular, "chaotic": slow})
    assert axes.get_legend_handles_labels()[1] == ["regular", "chaotic", "5 + 2 log C, H = 50"]
    y = np.asarray(axes.lines[-2].get_ydata())
    np.testing.assert_allclose(y[[0, -1]], [5 + 2 * regular.log_condition[0], 50])
    assert "1 of 1 starts did not settle" in str(slow)
    plot.plt.close("all")


def test_the_condition_is_a_geometric_sum():
    exponents = np.array([-0.5, 0.3, 2.0])
    expected = np.log(np.expm1(50 * exponents) / np.expm1(exponents))
    np.testing.assert_allclose(log_condition(exponents, 50), expected, rtol=1e-12)
    assert np.isclose(log_condition(np.zeros(1), 50)[0], np.log(50)) and np.isfinite(log_condition(np.ones(1), 2000)).all()
