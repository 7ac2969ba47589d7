"""A sequence model that begins again at its own prediction every few steps."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

from .._checks import check_counts, check_shapes, kind
from .._dynamics import AbstractDynamics
from .._normaliser import normalisers
from .._windows import cut_windows
from ._ensemble import members_of
from ._trainable import AbstractTrainable, check_data, check_sequence
from ._world_model import AbstractWorldModel, reads_time


class Anchored(AbstractWorldModel):
    """A sequence model that forgets its memory every n steps and begins again at the last state, its anchor.

        s'_{t+1} = g(s'_k, a_k ... a_t),   k = n floor(t / n)

    In an imagined episode the anchors are its own predictions. With n = 1, an anchored `AWM` is a Markov model; with n as large as the
    number of steps H, it is the AWM itself. Its gradient passes through at most H / n predicted states, the anchors, where
    `Paths.state_to_model` scales it.

    Use it where an AWM of whole episodes is not accurate enough. That model learns from each episode as one example. An anchored one,
    fitted to windows of n steps, learns from any n successive steps as one example:

    ```python
    awm = AWM(task.state_size, task.action_size, Transformer(horizon=10, key=k1), per_step=True, key=k2)
    result = train(task, Anchored(awm, every=10), policy, model_updates=ModelUpdates(window=10), key=key, steps=5000)
    ```

    Where the state changes much with time and little with the actions, an AWM of whole episodes with `per_step=True` is better.
    examples/paper/variants.py compares both.

    **Arguments**

    - `model`: an `AWM`, an `HWM` or another world model with a memory. Its steps count from the last anchor; with `per_step=True`
      it has statistics of each of the n steps after an anchor.
    - `every`: number of steps n from one anchor to the next.

    **Raises:** `ValueError` if `model` is not a world model, is anchored already, or depends on the time as a `Markov` model does; if
    `every` is not a positive whole number, or the model's network supports fewer steps.
    """

    model: AbstractWorldModel
    every: int = eqx.field(static=True)

    def __init__(self, model: AbstractWorldModel, every: int):
        check_counts("Anchored", every=every)
        if not isinstance(model, AbstractWorldModel) or isinstance(model, Anchored) or reads_time(model):
            raise ValueError(
                f"Anchored needs a world model with a memory, whose steps count from its first state, got {kind(model)}; pass an AWM or "
                "an HWM."
            )
        supported = getattr(getattr(model, "backbone", None), "horizon", None)
        if supported is not None and supported < every:
            raise ValueError(
                f"Anchored got every={every} and a network for {supported} steps; pass at most every={supported}, or a network for more."
            )
        self.model, self.every = model, every

    @property
    def state_size(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.model.state_size

    @property
    def action_size(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.model.action_size

    @property
    def predict_changes(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.model.predict_changes

    @property
    def input_norm(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.model.input_norm

    @property
    def output_norm(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.model.output_norm

    def init(self, state, horizon):
        return self.model.init(state, self.every), jnp.asarray(0)

    def step(self, carry, state, action, t, *, key=None):
        memory, age = carry
        # A conditional, which would compute a new memory at anchors only, takes twice the time on a CPU.
        anchor = age == self.every
        begin = lambda new, old: jnp.where(anchor, new, old)
        memory, age = jtu.tree_map(begin, (self.model.init(state, self.every), jnp.zeros_like(age)), (memory, age))
        memory, state = self.model.step(memory, state, action, age, key=key)
        return (memory, age + 1), state

    def episodes_at_a_time(self, horizon):
        few = self.model.episodes_at_a_time(min(self.every, horizon))
        return few if few is None else max(1, few // -(-horizon // self.every))

    def teacher_forced(self, states, actions):
        check_sequence("Anchored.teacher_forced", self, states, actions)
        steps = actions.shape[0]
        at = self._parts(steps)
        predicted = jax.vmap(self.model.teacher_forced)(states[at], actions[np.minimum(at[:, :-1], steps - 1)])
        return jtu.tree_map(lambda x: x.reshape(-1, x.shape[-1])[:steps], predicted)

    def residual_base(self, states):
        check_shapes("Anchored.residual_base", states=(states, ("H+1", self.state_size)))
        steps = states.shape[0] - 1
        bases = jax.vmap(self.model.residual_base)(states[self._parts(steps)])
        return bases.reshape(-1, states.shape[1])[:steps]

    def _parts(self, steps: int) -> np.ndarray:
        """Return the indices of the states from each anchor to the next, one row per anchor; the last state pads the last row."""
        n = max(1, min(self.every, steps))
        return np.minimum(np.arange(0, steps, n)[:, None] + np.arange(n + 1), steps)

    def normalised(self, episodes):
        check_data("Anchored.normalised", self, episodes)
        windows = cut_windows(episodes, min(self.every, episodes.horizon))
        return eqx.tree_at(lambda m: m.model, self, self.model.normalised(windows))


def too_few_steps(model: AbstractDynamics | AbstractTrainable, steps: int) -> tuple[int, int] | None:
    """Return for how many steps the model has statistics, and for how many it needs them to predict `steps` steps; `None` if it has
    enough."""
    one = members_of(model)
    needed = min(one.every, steps) if isinstance(one, Anchored) else steps
    known = (n.shift.shape[0] for n in normalisers(model) if n.per_step and n.shift.ndim > 1)
    return next(((count, needed) for count in known if count < needed), None)
