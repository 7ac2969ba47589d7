"""The examples in the documentation of classes that users subclass."""

import inspect
import math
import re

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import awmkit
from awmkit import fit, NoProgress, Trajectory, unroll_grad
from awmkit.tasks import AbstractControlProblem, ode_step

KEY = jax.random.key(0)
EPISODES = Trajectory(jax.random.normal(KEY, (4, 6, 3)), jax.random.uniform(KEY, (4, 5, 2), minval=-1.0))


def _run_example(thing, **names):
    """Run the example in a docstring and return the names that it defines."""
    code = "\n".join(re.findall(r"```python\n(.*?)```", inspect.getdoc(thing), re.S))
    names = {"eqx": eqx, "jax": jax, "jnp": jnp, "diffrax": diffrax, "math": math, "key": KEY, **vars(awmkit), **names}
    exec(code, names)
    return names


def _fit_briefly(model, episodes, *, key):
    with jax.numpy_dtype_promotion("standard"):
        return fit(model, episodes, key=key, updates=2, optimiser=optax.sgd(0.1), progress=NoProgress())


def _gradient(dynamics, reward=lambda state, action, t: jnp.sum(state**2)):
    state, actions = jnp.ones(dynamics.state_size), 0.1 * jnp.ones((5, dynamics.action_size))
    return unroll_grad(dynamics, actions, state, 5, reward=reward)[1]


def test_the_backbone_in_the_documentation_runs_inside_an_awm():
    model = _run_example(awmkit.AbstractBackbone, state_size=3, action_size=2)["model"]
    assert (_gradient(model)[:-1] != 0).all()


def test_the_world_model_in_the_documentation_can_be_fitted_and_unrolled():
    model = _run_example(awmkit.AbstractWorldModel, episodes=EPISODES, fit=_fit_briefly)["model"]
    assert (model.weight != 0).any() and (_gradient(model)[:-1] != 0).all()


def test_the_probabilistic_world_model_in_the_documentation_can_be_fitted_and_sampled():
    cls = _run_example(awmkit.AbstractWorldModel, episodes=EPISODES, fit=_fit_briefly)["Noisy"]
    head = awmkit.GaussianHead(eqx.nn.Linear(5, 6, key=KEY))
    model = cls(head, awmkit.Normaliser(3), awmkit.Normaliser(3), True, 3, 2)
    result = _fit_briefly(model, EPISODES, key=KEY)
    assert (result.model.head.network.weight != head.network.weight).all()
    samples = [result.model.open_loop(jnp.ones(3), EPISODES.actions[0], key=key) for key in (None, KEY)]
    assert (samples[0] != samples[1]).all()


def test_the_trainable_module_in_the_documentation_can_be_fitted():
    cls = _run_example(awmkit.AbstractTrainable)["Speedometer"]
    result = _fit_briefly(cls(eqx.nn.MLP(2, 1, 4, 1, key=KEY), 3, 2), EPISODES, key=KEY)
    assert result.held_out.shape == (5,) and jnp.isfinite(result.losses).all()


def test_the_control_problem_in_the_documentation_is_a_task_with_a_gradient():
    task = _run_example(AbstractControlProblem, **vars(awmkit.tasks))["task"]
    assert task.horizon == 100 and jnp.isfinite(_gradient(task, task.reward)).all()


def test_the_dynamics_in_the_documentation_of_ode_step_has_a_gradient():
    dynamics = _run_example(ode_step, ode_step=ode_step)["Spring"]()
    assert (_gradient(dynamics)[:-1] != 0).all()
