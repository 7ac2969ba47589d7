"""A simulator as a model that can be fitted: its parameters are found by the error of its open-loop predictions."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax import lax

from .._checks import check_shapes, kind
from .._dynamics import AbstractDynamics, step_keys
from .._normaliser import Normaliser, rows_of, trainable
from .._unroll_checks import check_functions
from ..models import AbstractTrainable
from ..models._trainable import check_data, check_sequence


class OpenLoop(AbstractTrainable):
    """A dynamics whose loss is the error of its open-loop predictions from the first state of an episode or window:

    1/2 mean over t and entries of ((s'_t - s_t) / deviation)^2,    s'_{t+1} = dynamics(s'_t, a_t),    s'_0 = s_0
    """

    dynamics: AbstractDynamics
    unit: Normaliser
    state_size: int = eqx.field(static=True)
    action_size: int = eqx.field(static=True)

    def normalised(self, episodes):
        check_data(type(self.dynamics).__name__, self, episodes)
        unit = self.unit.fitted(episodes.states, rows_of(episodes, episodes.states.shape[1]))
        return eqx.tree_at(lambda m: m.unit, self, unit)

    def loss(self, episode):
        errors = (self.prediction(episode) - self.target(episode)) / lax.stop_gradient(self.unit.scale)[None]
        return 0.5 * episode.mean_over_steps(errors**2)

    def target(self, episodes):
        check_shapes(type(self.dynamics).__name__, states=(episodes.states, ("*", "H+1", self.state_size)))
        return episodes.filled().states[..., 1:, :]

    def prediction(self, episode, *, key=None):
        check_sequence(type(self.dynamics).__name__, self, episode.states, episode.actions)
        episode = episode.filled()

        def step(loop, x):
            action, t, happens, key = x
            carry, state = loop
            new = self.dynamics.step(carry, state, action, t, key=key)
            if episode.length is not None:
                # The state stays where the episode ended: where no data are, the simulator and its derivative might overflow.
                new = jtu.tree_map(lambda new, old: jnp.where(happens, new, old), new, loop)
            return new, new[1]

        state, horizon = episode.states[0], episode.actions.shape[0]
        check_functions(self.dynamics, episode.actions, state, horizon, reward=None, key=key)
        steps = episode.actions, episode.steps, episode.mask, step_keys(key, horizon)
        return lax.scan(step, (self.dynamics.init(state, horizon), state), steps)[1]


def as_trainable(who: str, model: AbstractTrainable | AbstractDynamics) -> AbstractTrainable:
    """Return the model if it defines its own loss, or else a simulator as an `OpenLoop`.

    **Raises:** `ValueError` if it is neither.
    """
    if isinstance(model, AbstractTrainable):
        return model
    if not isinstance(model, AbstractDynamics):
        raise ValueError(
            f"{who} got {kind(model)}; pass a Markov, HWM, AWM, RewardModel or TerminationModel, your own AbstractTrainable, or a "
            "simulator, an AbstractDynamics."
        )
    # A parameter made from a Python number has a weak type, which would be strong after the first update and compile again.
    strong = lambda x: lax.convert_element_type(x, x.dtype) if eqx.is_inexact_array(x) else x
    state_size, action_size = model.state_size, model.action_size
    return OpenLoop(
        dynamics=jtu.tree_map(strong, model), unit=Normaliser(state_size), state_size=state_size, action_size=action_size
    )


def check_can_be_fitted(simulator: AbstractDynamics) -> None:
    """Raise if a simulator draws random numbers, or has no floating-point array that could be fitted."""
    if not _runs(simulator, None) and _runs(simulator, jax.random.key(0)):
        raise ValueError(
            f"fit got {kind(simulator)} with noise, and fits a simulator by the error of its predictions, which it cannot make without a "
            "key; set its noise to 0, or fit a world model with head=GaussianHead, which learns the noise."
        )
    if jtu.tree_leaves(eqx.filter(simulator, trainable(simulator))):
        return
    sizes = ("state_size", "action_size", "horizon")
    fields = [f.name for f in dataclasses.fields(simulator) if not f.metadata.get("static") and f.name not in sizes]
    numbers = [name for name in fields if eqx.is_array_like(getattr(simulator, name))]
    name, example = type(simulator).__name__, (numbers or ["drag"])[0]
    raise ValueError(
        f"fit found no floating-point array in {name} to fit{f', only the numbers {numbers}' * bool(numbers)}; make each of its "
        f"parameters an array, as in {name}({example}=jnp.asarray(0.3)), or for all instances with the field {example}: Array = "
        "eqx.field(default=0.3, converter=jnp.asarray)."
    )


def _runs(simulator: AbstractDynamics, key) -> bool:
    """Return whether a step of the simulator can be traced with this key."""
    step = lambda state, action, key: simulator.step(simulator.init(state, 1), state, action, jnp.asarray(0), key=key)
    try:
        eqx.filter_eval_shape(step, jnp.zeros(simulator.state_size), jnp.zeros(simulator.action_size), key)
    except Exception:
        return False
    return True
