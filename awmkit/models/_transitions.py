"""What the reward model and the termination model share: a residual MLP that reads transitions."""

from collections.abc import Callable

import jax
from jax import lax
from jaxtyping import Array, Float, Scalar

from .._checks import check_shapes
from .._trajectory import Trajectory
from ._trainable import AbstractTrainable, check_sequence


def read_transition(model, state, action, t, next_state) -> Scalar:
    """Return the output of the model's network, in the units of its `output_norm`."""
    size = (model.state_size,)
    check_shapes(
        type(model).__name__,
        state=(state, size),
        action=(action, (model.action_size,)),
        t=(t, ()),
        next_state=(next_state, size),
    )
    change = (next_state - state) / lax.stop_gradient(model.input_norm.scale)
    return model.output_norm.inverse(model.network(model.input_norm(state), change, action, t=t))[0]


def of_each_step(who: str, model: AbstractTrainable, of_transition: Callable, episode: Trajectory) -> Float[Array, "H 1"]:
    """Return `of_transition(state, action, t, next_state)` at each step of an episode."""
    check_sequence(who, model, episode.states, episode.actions)
    episode = episode.filled()
    states = episode.states
    step = lambda s, a, t, n: of_transition(s, a, t, n)  # A bound method under vmap is hashed, which fails inside grad.
    return jax.vmap(step)(states[:-1], episode.actions, episode.steps, states[1:])[:, None]
